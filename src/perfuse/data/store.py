"""Datasets on disk: a folder of uncompressed Arrow IPC shards with a manifest that names and hashes them.

A dataset is a folder of ``manifest.json`` and ``shard-00000.arrow``, ... (``data.shard_files``), memory-mapped when
read (``data.mapped``). Nothing in a folder depends on when or where it was written: equal curves give equal bytes.

Axis legend: C curves, O reported organs, M eliminations, X exchanges, P saturable pathways, D dose events, T times.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import JsonValue

from perfuse.data.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    UNITS,
    Manifest,
    ShardInfo,
    columns_of,
    read_manifest,
)
from perfuse.data.mapped import FolderShards, MappedShard, Shards, in_threads
from perfuse.data.shard_files import (
    LARGE,
    STRINGS,
    manifest_shapes,
    shard_name,
    sync,
    table_shapes,
    write_shard,
)
from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import Topology, get_topology

_JOINED_LIMIT_BYTES = 2**27
_NAMES_BYTES = 64
"""About what the names of a curve take."""
_FEW_ROWS_A_SHARD = 4
_CHECKED_AT_ONCE = 1024


def manifest_for(
    table: CurveTable, shards: Sequence[ShardInfo], generator: dict[str, Any], seed: int | None, n_failed: int = 0
) -> Manifest:
    """The manifest of shards whose tables are alike in shape to ``table``."""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        topology=table.topology.name,
        elimination_names=table.topology.elimination_names,
        organs=ORGANS,
        units={name: UNITS[name] for name in columns_of(SCHEMA_VERSION)},
        seed=seed,
        generator=generator,
        n_curves=sum(s.rows for s in shards),
        n_doses=table.dose_mg.shape[1],
        n_times=table.time_h.shape[1],
        n_pathways=table.vmax_mg_h.shape[1],
        n_failed=n_failed,
        shards=tuple(shards),
    )


def manifest_bytes(manifest: Manifest) -> bytes:
    """``manifest.json`` as it is stored; equal manifests give equal bytes."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode()


def _write_shards(tables: Iterable[CurveTable], folder: Path, generator: dict, seed: int | None) -> Manifest:
    """Write every table as one shard of ``folder``; validates each; returns the manifest."""
    first: CurveTable | None = None
    shapes: dict[str, tuple[int, ...]] = {}
    shards: list[ShardInfo] = []
    for table in tables:
        if first is None:
            first, shapes = table, table_shapes(table)
        for name, shape in shapes.items():
            if table.column(name).shape[1:] != shape:
                raise InputError(name, "changes shape between shards", value=table.column(name).shape[1:],
                                 allowed=str(shape), hint="pad dose events with 0 mg and times with NaN")  # fmt: skip
        if table.topology is not first.topology:
            raise InputError("topology", "changes between shards", value=table.topology.name)
        name = shard_name(len(shards))
        shards.append(write_shard(table, folder / name, name))
    if first is None:
        raise InputError("curves", "are missing: there is not one", allowed=">= 1")
    return manifest_for(first, shards, generator, seed)


def write_dataset(
    tables: Iterable[CurveTable], out: Path, *, generator: dict[str, JsonValue] | dict[str, object], seed: int | None
) -> Path:
    """Write a dataset folder; each table becomes one shard.

    Everything is written into a temporary sibling folder of this call's own, synced to disk, and renamed at the end:
    ``out`` either holds the whole dataset or does not exist.

    Args:
        tables: Curves, shard by shard; all on one topology, with equal numbers of dose events and times.
        out: The folder to make; must not exist, or be empty.
        generator: How the curves came about (JSON values), kept in the manifest.
        seed: Seed of their generation, if any.

    Returns:
        ``out``.

    Raises:
        InputError: if ``out`` is in use, there is no curve, or a curve is invalid.
        PerfuseError: when the disk refuses (full, no permission).
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("out", "exists already and is not an empty folder", value=str(out), hint="choose another name")
    own: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part"))
        part = own / "data"  # a folder made by mkdtemp is its owner's alone; one inside has ordinary permissions
        part.mkdir()
        manifest = _write_shards(tables, part, dict(generator), seed)
        (part / MANIFEST).write_bytes(manifest_bytes(manifest))
        sync(part / MANIFEST)
        sync(part)
        os.rename(part, out)
        sync(out.parent)
    except OSError as error:
        raise PerfuseError(f"{out} cannot be written: {error.strerror or error}; nothing was kept") from error
    finally:
        if own is not None:
            with suppress(OSError):
                shutil.rmtree(own)
    return out


def _as_str(values: np.ndarray) -> np.ndarray:
    """ASCII byte strings ``(C,)`` as NumPy str, by widening each byte to a code point."""
    if values.dtype.kind == "U":
        return values
    width = values.dtype.itemsize
    wide = np.ascontiguousarray(values).view(np.uint8).reshape(-1, width).astype(np.uint32)
    return wide.view(f"<U{width}").reshape(-1)


class CurveStore:
    """A dataset, memory-mapped: a ``CurveSource`` whose rows are read when asked for.

    Columns without a time axis are joined over shards on first use and kept where all of them need no more than 128 MB
    (about 200,000 curves); concentrations, times and censoring, and everything of larger datasets, stay in the map.

    Args:
        path: The folder that holds the manifest.
        manifest: What the dataset is.
        shards: Its shards, mapped when asked for.
    """

    def __init__(self, path: Path, manifest: Manifest, shards: Shards) -> None:
        self.path = path
        self.manifest = manifest
        self._topology = get_topology(manifest.topology)
        self._shapes = manifest_shapes(manifest)
        self._shards = shards
        self._joined: dict[str, np.ndarray] = {}
        self._near: _Near | None = None
        per_curve = _NAMES_BYTES + 8 * sum(prod(s) for n, s in self._shapes.items() if n not in (*LARGE, *STRINGS))
        self._most_joined = _JOINED_LIMIT_BYTES // per_curve
        self._join = manifest.n_curves <= self._most_joined
        self.shard_offsets = np.cumsum([0, *(s.rows for s in manifest.shards)])
        """First row of each shard, and the number of all, ``(shards + 1,)``."""
        self.shard_bytes = np.asarray([s.bytes for s in manifest.shards], dtype=np.int64)
        """Size of each shard, ``(shards,)``."""

    @classmethod
    def open(cls, path: Path, verify: bool = False) -> CurveStore:
        """Open a dataset folder.

        Args:
            path: The folder.
            verify: Read every shard once and compare its sha256 with the manifest's, so that values are those that
                ``write_dataset`` checked. Without it only sizes, columns and row counts are compared.

        Raises:
            InputError: naming the file and what is wrong with it.
        """
        path = Path(path)
        manifest = read_manifest(path)
        return cls(path, manifest, FolderShards(path, manifest, verify))

    @property
    def topology(self) -> Topology:
        """Organ graph of all curves."""
        return self._topology

    @property
    def content_hash(self) -> str:
        """sha256 (hex) over the shards' hashes in the manifest; those of the content itself once verified."""
        return hashlib.sha256("".join(s.sha256 for s in self.manifest.shards).encode()).hexdigest()

    def __len__(self) -> int:
        return self.manifest.n_curves

    def expect(self, shards: Sequence[int]) -> None:
        """Say which shards will be read next, in order (see ``Shards.expect``).

        Their columns without a time axis are joined when first needed, where that takes no more than 128 MB.
        """
        self._shards.expect(shards)
        if not self._join and (self._near is None or self._near.shards is not shards):
            rows = sum(self.manifest.shards[i].rows for i in shards)
            self._near = _Near(shards, self) if rows <= self._most_joined else None

    def check(self, check: Callable[[CurveTable], object]) -> None:
        """Call ``check`` with every curve, some at a time, on threads where there are cores for them.

        Raises:
            Exception: what ``check`` raises, for the first shard of which it does.
        """
        for _ in in_threads(lambda i: self.check_shard(check, i), len(self.manifest.shards)):
            pass

    def check_shard(self, check: Callable[[CurveTable], object], shard: int) -> None:
        """Call ``check`` with a shard's curves, some at a time: views of the map, not copies."""
        mapped, rows = self._shards[shard], self.manifest.shards[shard].rows
        for at in range(0, rows, _CHECKED_AT_ONCE):
            some = slice(at, min(at + _CHECKED_AT_ONCE, rows))
            columns = {name: self._part(mapped, name)[some] for name in self._shapes}
            columns |= {name: _as_str(columns[name]) for name in STRINGS}
            check(CurveTable(topology=self._topology, **columns))

    def names(self, column: str) -> pa.StringArray:
        """A column of names of all curves, copied out of the map, ``(C,)``."""
        return pa.concat_arrays([self._shards.small(i).names(column) for i in range(len(self.manifest.shards))])

    def _part(self, shard: MappedShard, name: str) -> np.ndarray:
        return shard.strings(name) if name in STRINGS else shard.views[name]

    def _whole(self, name: str) -> np.ndarray | None:
        """All rows of a column as one array, where it is small or there is one shard."""
        n = len(self.manifest.shards)
        if n == 1:
            return self._part(self._shards[0] if name in LARGE else self._shards.small(0), name)
        if not self._join or name in LARGE:
            return None
        if name not in self._joined:
            self._joined[name] = np.concatenate([self._part(self._shards.small(i), name) for i in range(n)])
        return self._joined[name]

    def column(self, name: str) -> np.ndarray:
        """One column of all curves, in memory when there are several shards."""
        if name not in self._shapes:  # not stored: its neutral value, as a table of no concentrations has it
            return self.take(np.arange(len(self)), without=LARGE).column(name)
        whole = self._whole(name)
        if whole is None:
            numbers = range(len(self.manifest.shards))
            shards = (self._shards[i] if name in LARGE else self._shards.small(i) for i in numbers)
            whole = np.concatenate([self._part(shard, name) for shard in shards])
        return _as_str(whole) if name in STRINGS else whole

    def take(self, rows: Sequence[int] | np.ndarray, without: Sequence[str] = ()) -> CurveTable:
        """The named rows, in that order, copied into memory. Sorted rows are read faster.

        Args:
            rows: Row numbers.
            without: Columns with a time axis that may be left empty (no times).

        Raises:
            InputError: for a row that is not there, or a shard that has gone or changed.
        """
        index = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(index) and not (0 <= index.min() and index.max() < len(self)):
            raise InputError("rows", "are not all in the dataset", allowed=f"0..{len(self) - 1}", where=str(self.path))
        gathered: dict[str, np.ndarray] = {}
        scattered: list[str] = []
        for name, shape in self._shapes.items():
            if name in without:
                gathered[name] = np.empty((len(index), *shape[:-1], 0))
            elif (whole := self._whole(name)) is not None:
                gathered[name] = whole.take(index, axis=0, mode="clip")
            else:
                scattered.append(name)
        if scattered:
            gathered |= self._gather(index, scattered)
        for name in STRINGS:
            gathered[name] = _as_str(gathered[name])
        return CurveTable(topology=self._topology, **gathered)

    def _gather(self, index: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows of columns that lie in several shards."""
        numbers = np.searchsorted(self.shard_offsets, index, side="right") - 1
        local = index - self.shard_offsets[numbers]
        touched, at = np.unique(numbers, return_inverse=True)
        if not len(index):
            touched, at = np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int64)
        out: dict[str, np.ndarray] = {}
        near = self._near
        if near is not None and near.holds(touched):
            places = near.places(numbers, local)
            out = {name: near.column(name).take(places, axis=0, mode="clip") for name in names if name not in LARGE}
            names = [name for name in names if name in LARGE]
        large = any(name in LARGE for name in names)
        shards = [self._shards[i] if large else self._shards.small(i) for i in touched.tolist()] if names else []
        if len(index) >= len(touched) * _FEW_ROWS_A_SHARD and bool((index[1:] >= index[:-1]).all()):
            ends = np.searchsorted(at, np.arange(len(touched) + 1)).tolist()
            spans = [(local[lo:hi], slice(lo, hi)) for lo, hi in zip(ends[:-1], ends[1:], strict=True)]
            return out | {name: self._by_shard(shards, spans, len(index), name) for name in names}
        # Row by row, straight to its place: a shard's rows together would be copied twice.
        rows = list(zip(at.tolist(), local.tolist(), strict=True))
        return out | {name: self._by_row(shards, rows, name) for name in names}

    def _by_shard(
        self, shards: list[MappedShard], spans: list[tuple[np.ndarray, slice]], n: int, name: str
    ) -> np.ndarray:
        """Rows of several shards, each shard's own in one copy."""
        if name in STRINGS:
            return np.concatenate([s.strings(name)[rows] for s, (rows, _) in zip(shards, spans, strict=True)])
        out = np.empty((n, *self._shapes[name]), dtype=shards[0].views[name].dtype)
        for shard, (rows, to) in zip(shards, spans, strict=True):
            # mode="clip": bounds were checked, and "raise" would copy through a buffer
            shard.views[name].take(rows, axis=0, out=out[to], mode="clip")
        return out

    def _by_row(self, shards: list[MappedShard], places: list[tuple[int, int]], name: str) -> np.ndarray:
        if name in STRINGS:
            columns = [shard.strings(name) for shard in shards]
            kind = np.result_type(*columns)
            return np.asarray([columns[s][row] for s, row in places], dtype=kind)
        flat = [shard.flat[name] for shard in shards]
        if not places:
            return np.empty((0, *self._shapes[name]), dtype=flat[0].dtype)
        return np.concatenate([flat[s][row] for s, row in places]).reshape(len(places), *self._shapes[name])


class _Near:
    """Columns without a time axis of the shards that are being read, each joined on first use."""

    def __init__(self, shards: Sequence[int], store: CurveStore) -> None:
        self.shards = shards
        self._store = store
        self._start = np.full(len(store.manifest.shards), -1, dtype=np.int64)
        rows = [store.manifest.shards[i].rows for i in shards]
        self._start[np.asarray(shards, dtype=np.int64)] = np.cumsum([0, *rows])[:-1]
        self._joined: dict[str, np.ndarray] = {}

    def holds(self, shards: np.ndarray) -> bool:
        return bool((self._start[shards] >= 0).all())

    def places(self, shards: np.ndarray, local: np.ndarray) -> np.ndarray:
        """Where rows of shards lie in the joined columns."""
        places: np.ndarray = self._start[shards] + local
        return places

    def column(self, name: str) -> np.ndarray:
        if name not in self._joined:
            store = self._store
            self._joined[name] = np.concatenate([store._part(store._shards.small(i), name) for i in self.shards])
        return self._joined[name]


__all__ = ["MANIFEST", "SCHEMA_VERSION", "CurveStore", "Manifest", "ShardInfo", "write_dataset"]

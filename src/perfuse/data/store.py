"""Datasets on disk: uncompressed Arrow IPC shards, memory-mapped, with a manifest that names and hashes them.

A dataset is a folder of ``manifest.json`` and ``shard-00000.arrow``, ... Each shard holds one record batch; every
array field of ``CurveTable`` is one fixed-size list column (or a plain column where there is one value a curve),
so that a NumPy view of the mapped file is one pointer away. Nothing in a folder depends on when or where it was
written: equal curves give equal bytes.

Axis legend: C curves, O reported organs, M eliminations, X exchanges, P saturable pathways, D dose events, T times.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
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
from perfuse.data.table import N_PKA, CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import Topology, get_topology

_STRINGS = ("curve_id", "compound_id", "group_id", "matrix")
_COLUMNS = tuple(f.name for f in fields(CurveTable) if f.name != "topology")
_LARGE = ("time_h", "conc_mg_l", "censored")
"""Columns with a time axis: always read from the map; the others are small enough to be kept joined."""
_JOINED_LIMIT_BYTES = 2**30
_FEW_ROWS_A_SHARD = 4


def _shapes(
    topology: Topology, n_doses: int, n_times: int, n_pathways: int = 1, schema_version: int = SCHEMA_VERSION
) -> dict[str, tuple[int, ...]]:
    """Shape of one curve's value in each stored column; what is empty on a topology is not stored."""
    o = len(ORGANS)
    out: dict[str, tuple[int, ...]] = dict.fromkeys(_COLUMNS, ())
    out |= dict.fromkeys(("volume_l", "flow_l_h", "kp"), (o,))
    out |= dict.fromkeys(("dose_time_h", "dose_mg", "dose_duration_h", "dose_route"), (n_doses,))
    out |= dict.fromkeys(("vmax_mg_h", "km_u_mg_l"), (n_pathways,))
    out |= dict.fromkeys(("pka_acid", "pka_base"), (N_PKA,))
    out |= {
        "elimination_l_h": (topology.n_eliminations,), "ps_l_h": (topology.n_exchanges,), "time_h": (n_times,),
        "conc_mg_l": (o, n_times), "censored": (o, n_times),
    }  # fmt: skip
    stored = columns_of(schema_version)
    return {name: shape for name, shape in out.items() if name in stored and 0 not in shape}


def _table_shapes(table: CurveTable) -> dict[str, tuple[int, ...]]:
    return _shapes(table.topology, table.dose_mg.shape[1], table.time_h.shape[1], table.vmax_mg_h.shape[1])


_ELEMENT = {"censored": (pa.uint8(), np.uint8), "dose_route": (pa.int8(), np.int8)}
"""Arrow and NumPy type of the columns that are not float64."""


def _arrow_schema(shapes: dict[str, tuple[int, ...]]) -> pa.Schema:
    def kind(name: str) -> pa.DataType:
        if name in _STRINGS:
            return pa.string()
        value = _ELEMENT[name][0] if name in _ELEMENT else pa.float64()
        return pa.list_(value, prod(shapes[name])) if shapes[name] else value

    return pa.schema([pa.field(name, kind(name), nullable=False) for name in shapes])


def _record_batch(table: CurveTable, schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for name in schema.names:
        value, kind = table.column(name), schema.field(name).type
        if name in _STRINGS:
            arrays.append(pa.array(value.tolist(), type=kind))
            continue
        dtype = _ELEMENT[name][1] if name in _ELEMENT else np.float64
        flat = np.ascontiguousarray(value, dtype=dtype).reshape(-1)
        values = pa.array(flat)
        arrays.append(pa.FixedSizeListArray.from_arrays(values, type=kind) if value.ndim > 1 else values)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file, or a folder's entries, on disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def shard_name(index: int) -> str:
    """File name of a dataset's shard."""
    return f"shard-{index:05d}.arrow"


def shard_bytes(table: CurveTable) -> bytes:
    """The content of the file that ``write_shard`` would make.

    Raises:
        InputError: for a curve that cannot be.
    """
    table.validate("dataset")
    schema = _arrow_schema(_table_shapes(table))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(_record_batch(table, schema))
    return sink.getvalue().to_pybytes()


def write_shard(table: CurveTable, path: Path, name: str) -> ShardInfo:
    """Write one checked table as a shard file, synced to disk; equal curves give equal bytes.

    Args:
        table: Curves.
        path: The file to make.
        name: The name it will have in its dataset.

    Raises:
        InputError: for a curve that cannot be.
    """
    table.validate("dataset")
    schema = _arrow_schema(_table_shapes(table))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(_record_batch(table, schema))
    sync(path)
    return ShardInfo(file=name, rows=len(table), bytes=path.stat().st_size, sha256=file_sha256(path))


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
            first, shapes = table, _table_shapes(table)
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


def _open_shard(path: Path, info: ShardInfo, schema: pa.Schema, verify: bool) -> pa.RecordBatch:
    """Map one shard and check that it is what the manifest says."""
    where = str(path)
    if not path.is_file():
        raise InputError("shard", "is missing", where=where)
    size = path.stat().st_size
    if size != info.bytes:
        raise InputError(
            "shard", "is truncated or changed", value=size, unit="bytes", allowed=str(info.bytes), where=where
        )
    if verify and file_sha256(path) != info.sha256:
        raise InputError("shard", "has changed since it was written (sha256 differs)", where=where)
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(schema) or reader.num_record_batches != 1:
            raise InputError("shard", "has other columns than its manifest says", where=where)
        batch = reader.get_batch(0)
        batch.validate()
    except (pa.ArrowException, OSError) as error:
        raise InputError("shard", "is no readable Arrow file", hint=str(error), where=where) from None
    if batch.num_rows != info.rows:
        raise InputError(
            "rows", "differ from the manifest's", value=batch.num_rows, allowed=str(info.rows), where=where
        )
    if any(column.null_count for column in batch.columns):
        raise InputError("shard", "has null values", where=where)
    return batch


def _view(batch: pa.RecordBatch, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Zero-copy NumPy view ``(rows, *shape)`` of a mapped numeric column."""
    column = batch.column(name)
    flat = (column.flatten() if shape else column).to_numpy(zero_copy_only=True)
    view = flat.reshape(batch.num_rows, *shape)
    return view.view(np.bool_) if name == "censored" else view


def _ascii_bytes(values: list[np.ndarray]) -> np.ndarray:
    """Strings as one array: a byte a character when all are ASCII, else NumPy's four."""
    joined = np.concatenate(values)
    try:
        return joined.astype(np.bytes_)
    except UnicodeEncodeError:
        return joined


def _as_str(values: np.ndarray) -> np.ndarray:
    """ASCII byte strings ``(C,)`` as NumPy str, by widening each byte to a code point."""
    if values.dtype.kind == "U":
        return values
    width = values.dtype.itemsize
    wide = np.ascontiguousarray(values).view(np.uint8).reshape(-1, width).astype(np.uint32)
    return wide.view(f"<U{width}").reshape(-1)


def _manifest_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    m = manifest
    return _shapes(get_topology(m.topology), m.n_doses, m.n_times, m.n_pathways, m.schema_version)


class CurveStore:
    """A dataset folder, memory-mapped: a ``CurveSource`` whose rows are read when asked for.

    Columns without a time axis are joined over shards on first use and kept (about 0.6 kB a curve, up to 1 GiB
    a dataset); concentrations, times and censoring stay in the map.
    """

    def __init__(self, path: Path, manifest: Manifest, batches: list[pa.RecordBatch]) -> None:
        self.path = path
        self.manifest = manifest
        self._topology = get_topology(manifest.topology)
        self._shapes = _manifest_shapes(manifest)
        self._batches = batches
        self._offsets = np.cumsum([0, *(s.rows for s in manifest.shards)])
        numeric = [n for n in self._shapes if n not in _STRINGS]
        self._views = {n: [_view(b, n, self._shapes[n]) for b in batches] for n in numeric}
        self._flat = {n: [view.reshape(len(view), -1) for view in views] for n, views in self._views.items()}
        self._joined: dict[str, np.ndarray] = {}
        per_curve = 8 * sum(prod(self._shapes[n]) for n in numeric if n not in _LARGE)
        self._join_numbers = per_curve * manifest.n_curves <= _JOINED_LIMIT_BYTES

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
        schema = _arrow_schema(_manifest_shapes(manifest))
        return cls(path, manifest, [_open_shard(path / s.file, s, schema, verify) for s in manifest.shards])

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

    def _strings(self, name: str) -> np.ndarray:
        if name not in self._joined:
            values = []
            for batch in self._batches:
                column = batch.column(name)
                try:
                    column.validate(full=True)
                except pa.ArrowException as error:
                    raise InputError(name, "is corrupt", hint=str(error), where=str(self.path)) from None
                values.append(np.asarray(column.to_pylist(), dtype=str))
            self._joined[name] = _ascii_bytes(values)
        return self._joined[name]

    def _parts(self, name: str) -> list[np.ndarray]:
        """The shards' views of a column, as one where it is small."""
        views = self._views[name]
        if name in _LARGE or len(views) == 1 or not self._join_numbers:
            return views
        if name not in self._joined:
            self._joined[name] = np.concatenate(views)
        return [self._joined[name]]

    def column(self, name: str) -> np.ndarray:
        """One column of all curves, in memory when there are several shards."""
        if name in _STRINGS:
            return _as_str(self._strings(name))
        if name not in self._views:  # not stored: its neutral value, as a table of no concentrations has it
            return self.take(np.arange(len(self)), without=_LARGE).column(name)
        parts = self._parts(name)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def take(self, rows: Sequence[int] | np.ndarray, without: Sequence[str] = ()) -> CurveTable:
        """The named rows, in that order, copied into memory. Sorted rows are read faster.

        Args:
            rows: Row numbers.
            without: Columns with a time axis that may be left empty (no times).

        Raises:
            InputError: for a row that is not there.
        """
        index = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(index) and not (0 <= index.min() and index.max() < len(self)):
            raise InputError("rows", "are not all in the dataset", allowed=f"0..{len(self) - 1}", where=str(self.path))
        shards = np.searchsorted(self._offsets, index, side="right") - 1
        local = index - self._offsets[shards]
        by_shard = len(index) >= len(self._batches) * _FEW_ROWS_A_SHARD and bool((index[1:] >= index[:-1]).all())
        places = [] if by_shard else list(zip(shards.tolist(), local.tolist(), strict=True))
        gathered: dict[str, np.ndarray] = {n: _as_str(self._strings(n)[index]) for n in _STRINGS}
        for name in self._views:
            parts = self._parts(name)
            if name in without:
                gathered[name] = np.empty((len(index), *self._shapes[name][:-1], 0))
            elif len(parts) == 1:
                gathered[name] = parts[0].take(index, axis=0, mode="clip")
            elif by_shard or not places:
                gathered[name] = _gathered_by_shard(parts, shards, local)
            else:  # row by row, straight to its place: a shard's rows together would be copied twice
                flat = self._flat[name]
                joined = np.concatenate([flat[shard][row] for shard, row in places])
                gathered[name] = joined.reshape(len(index), *self._shapes[name])
        return CurveTable(topology=self._topology, **gathered)


def _gathered_by_shard(parts: list[np.ndarray], shards: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Rows ``local`` of parts ``shards`` (ascending), each shard's own in one copy."""
    out = np.empty((len(local), *parts[0].shape[1:]), dtype=parts[0].dtype)
    bounds = np.searchsorted(shards, np.arange(len(parts) + 1)).tolist()
    for part, lo, hi in zip(parts, bounds[:-1], bounds[1:], strict=True):
        if lo < hi:
            # mode="clip": bounds were checked, and "raise" would copy through a buffer
            part.take(local[lo:hi], axis=0, out=out[lo:hi], mode="clip")
    return out


__all__ = ["MANIFEST", "SCHEMA_VERSION", "CurveStore", "Manifest", "ShardInfo", "write_dataset"]

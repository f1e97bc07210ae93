"""Shards of a dataset folder as views of their memory maps: opened when needed, watched while they are in use.

A file that is deleted, or replaced by another, stays readable through its map. One that is shortened or written over
in place does not keep what was verified: each shard in use is looked at again about once a second.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from perfuse.data.manifest import Manifest
from perfuse.data.shard_files import STRINGS, arrow_schema, file_sha256, manifest_shapes, open_shard, view_of
from perfuse.errors import InputError

_MOST_MAPPED = 1024
"""Shards kept mapped at a time: a process may have some 65,000 maps (``vm.max_map_count``) and less memory for them."""
_LOOK_EVERY_S = 1.0
_TRY_AGAIN_AFTER_S = 1.0
"""A shard that is gone or wrong is looked for once more after this: network drives drop out for moments."""

_THREADS = 4

_T = TypeVar("_T")
_Stamp: TypeAlias = tuple[int, int, int, int]


def in_threads(do: Callable[[int], _T], n: int) -> Iterator[_T]:
    """``do(0)``, ``do(1)``, ... ``do(n - 1)``, in order, some at a time on threads where there are cores for them.

    Leaving at the first error, what has not begun is not done.
    """
    threads = min(_THREADS, n, os.cpu_count() or 1)
    if threads < 2:
        yield from map(do, range(n))
        return
    with ThreadPoolExecutor(threads, "perfuse-verify") as pool:
        running: deque[Future[_T]] = deque()
        try:
            for i in range(n):
                running.append(pool.submit(do, i))
                if len(running) > threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class MappedShard:
    """One record batch's columns, by name: ``views`` ``(rows, ...)``, and ``flat`` the same as ``(rows, any)``.

    Args:
        batch: The mapped rows; may lack columns of ``shapes``.
        shapes: Shape of one curve's value in each column.
        where: Said in errors.
    """

    def __init__(self, batch: pa.RecordBatch, shapes: dict[str, tuple[int, ...]], where: str) -> None:
        self._batch, self._where = batch, where
        held = [n for n in shapes if n not in STRINGS and n in batch.schema.names]
        self.views = {n: view_of(batch, n, shapes[n]) for n in held}
        self.flat = {n: v.reshape(len(v), -1) for n, v in self.views.items()}
        self._names: dict[str, np.ndarray] = {}

    def only(self, columns: Sequence[str]) -> pa.RecordBatch:
        """Some of the columns."""
        return self._batch.select(list(columns))

    def names(self, column: str) -> pa.StringArray:
        """``(rows,)`` names, as they lie in the map.

        Raises:
            InputError: if the column is corrupt.
        """
        values = self._batch.column(column)
        try:
            values.validate(full=True)
        except pa.ArrowException as error:
            raise InputError(column, "is corrupt", hint=str(error), where=self._where) from None
        return values

    def strings(self, column: str) -> np.ndarray:
        """The same for NumPy: a byte a character when all are ASCII, else its four; decoded on first use.

        Raises:
            InputError: if the column is corrupt.
        """
        if column not in self._names:
            values = np.asarray(self.names(column).to_pylist(), dtype=str)
            with suppress(UnicodeEncodeError):
                values = values.astype(np.bytes_)
            self._names[column] = values
        return self._names[column]


class Shards(Protocol):
    """A dataset's shards by number."""

    def __getitem__(self, index: int) -> MappedShard:
        """A whole shard."""

    def small(self, index: int) -> MappedShard:
        """At least the columns of a shard that have no time axis."""

    def expect(self, shards: Sequence[int]) -> None:
        """Say which shards will be asked for next, in order, so that they can be made ready; others need not stay.

        The same list may be given again and again: only another one changes anything.
        """


class FolderShards:
    """The shards of a local folder.

    Args:
        path: The folder.
        manifest: Its manifest.
        verify: Compare every sha256 now; sizes, columns and row counts are compared in any case.

    Raises:
        InputError: naming the file and what is wrong with it.
    """

    def __init__(self, path: Path, manifest: Manifest, verify: bool) -> None:
        self._path, self._infos = path, manifest.shards
        self._shapes = manifest_shapes(manifest)
        self._schema = arrow_schema(self._shapes)
        self._lock = threading.Lock()
        self._mapped: OrderedDict[int, MappedShard] = OrderedDict()
        self._looked = [time.monotonic()] * len(self._infos)
        self._last_expected: Sequence[int] = ()
        self._expected: frozenset[int] = frozenset()
        self._stamps: list[_Stamp] = [(0, 0, 0, 0)] * len(self._infos)
        for _ in in_threads(lambda i: self._map(i, verify), len(self._infos) if verify else 0):
            pass
        for i in range(0 if verify else len(self._infos)):
            self._map(i, verify)

    def __getitem__(self, index: int) -> MappedShard:
        with self._lock:
            shard = self._mapped.get(index)
            if shard is not None:
                self._mapped.move_to_end(index)
                if time.monotonic() - self._looked[index] > _LOOK_EVERY_S:
                    self._look(index)
                return shard
            try:
                return self._map(index, None)
            except InputError:
                time.sleep(_TRY_AGAIN_AFTER_S)
                return self._map(index, None)

    def small(self, index: int) -> MappedShard:
        """The shard itself."""
        return self[index]

    def expect(self, shards: Sequence[int]) -> None:
        """Have the system read files ahead into its page cache, where it can be asked to."""
        if shards is self._last_expected:
            return
        new, self._expected = [i for i in shards if i not in self._expected], frozenset(shards)
        self._last_expected = shards
        if not hasattr(os, "posix_fadvise"):
            return
        for i in new:
            with suppress(OSError):
                handle = os.open(self._path / self._infos[i].file, os.O_RDONLY)
                try:
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(handle)

    def _map(self, index: int, verify: bool | None) -> MappedShard:
        """Map a shard; without a word on it, it is verified if it is not the file that was opened at first."""
        info = self._infos[index]
        path = self._path / info.file
        stamp = _stamp(path)
        if verify is None:
            verify = stamp != self._stamps[index]
        batch = open_shard(path, info, self._schema, verify)
        self._stamps[index], self._looked[index] = stamp or self._stamps[index], time.monotonic()
        shard = self._mapped[index] = MappedShard(batch, self._shapes, str(path))
        with suppress(KeyError):
            while len(self._mapped) > _MOST_MAPPED:
                self._mapped.popitem(last=False)
        return shard

    def _look(self, index: int) -> None:
        """Refuse a mapped file that has been shortened or written over since it was opened."""
        info = self._infos[index]
        path, known = self._path / info.file, self._stamps[index]
        self._looked[index] = time.monotonic()
        stamp = _stamp(path)
        if stamp is None or stamp == known or stamp[:2] != known[:2]:
            return  # gone or replaced: what is mapped is still the old file
        where = str(path)
        if stamp[2] != info.bytes:
            raise InputError("shard", "was truncated or changed while it was read", value=stamp[2], unit="bytes",
                             allowed=str(info.bytes), where=where)  # fmt: skip
        if file_sha256(path) != info.sha256:
            raise InputError("shard", "has changed while it was read (sha256 differs)", where=where)
        self._stamps[index] = stamp


def _stamp(path: Path) -> _Stamp | None:
    """What tells a file from another, or from itself before a change; None when it is not there."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns

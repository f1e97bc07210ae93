"""Shards fetched from a URL when they are needed, ahead of the reader, and given back when room is.

Threads fetch what is expected in the order in which it will be read; each shard is checked by sha256 as it arrives. A
shard makes room by removing those that are not expected, the least recently used first. Threads end when there is
nothing to fetch or no room, so an idle dataset has none.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from perfuse.data.download import fetch_shard
from perfuse.data.locks import take_lock
from perfuse.data.manifest import Manifest
from perfuse.data.mapped import MappedShard
from perfuse.data.shard_files import arrow_schema, manifest_shapes, open_shard
from perfuse.errors import PerfuseError

_THREADS = 4
_TRY_AGAIN_AFTER_S = 1.0
"""A shard that cannot be had is asked for once more after this."""
_RACES = 5
"""Times that a shard may be removed by another process between its arrival and its opening."""


class StreamedShards:
    """Shards of a dataset at a URL.

    Args:
        fs: The file system.
        root: Path of the dataset there.
        url: What it is called in errors.
        folder: Where shards are kept.
        manifest: The dataset's manifest.
        room_bytes: Most that shards in the folder may take.
    """

    def __init__(self, fs: Any, root: str, url: str, folder: Path, manifest: Manifest, room_bytes: int) -> None:
        self._fs, self._root, self._url = fs, root, url
        self._folder, self._infos, self._room = folder, manifest.shards, room_bytes
        self._shapes = manifest_shapes(manifest)
        self._schema = arrow_schema(self._shapes)
        self._number = {shard.file: i for i, shard in enumerate(manifest.shards)}
        self._index: list[MappedShard] | None = None
        self._changed = threading.Condition()
        # All of these under the condition's lock.
        self._mapped: OrderedDict[int, MappedShard] = OrderedDict()
        self._expected: Sequence[int] = ()
        self._urgent: list[int] = []
        self._flying: set[int] = set()
        self._failed: dict[int, Exception] = {}
        self._threads = 0

    def use_index(self, index: list[MappedShard]) -> None:
        """Read columns without a time axis from here from now on."""
        self._index = index

    def small(self, index: int) -> MappedShard:
        """The columns without a time axis: from the index, once there is one."""
        return self[index] if self._index is None else self._index[index]

    def expect(self, shards: Sequence[int]) -> None:
        """Fetch these next, in order, as far as there is room; the others make it."""
        with self._changed:
            if shards is not self._expected:
                self._expected = shards
                self._failed.clear()
                self._start_threads()

    def __getitem__(self, index: int) -> MappedShard:
        """A shard, once it is here.

        Raises:
            InputError: naming a shard that is missing or is not what the manifest says, after another try.
            PerfuseError: when it cannot be read.
        """
        try:
            return self._wait_for(index)
        except PerfuseError:
            time.sleep(_TRY_AGAIN_AFTER_S)
            return self._wait_for(index)

    def _wait_for(self, index: int) -> MappedShard:
        with self._changed:
            self._failed.pop(index, None)
            while (shard := self._mapped.get(index)) is None:
                if (error := self._failed.pop(index, None)) is not None:
                    raise error
                if index not in self._urgent and index not in self._flying:
                    self._urgent.append(index)
                    self._start_threads()
                self._changed.wait()
            self._mapped.move_to_end(index)
            return shard

    # -- the threads --------------------------------------------------------------------------------------------

    def _start_threads(self) -> None:
        waiting = len(self._urgent) + sum(i not in self._mapped and i not in self._flying for i in self._expected)
        for _ in range(min(_THREADS - self._threads, waiting)):
            self._threads += 1
            threading.Thread(target=self._work, name="perfuse-fetch", daemon=True).start()

    def _work(self) -> None:
        """Fetch until there is nothing to do."""
        while True:
            with self._changed:
                index = self._next()
                if index is None:
                    self._threads -= 1
                    return
                self._flying.add(index)
            shard: MappedShard | None = None
            error: Exception | None = None
            try:
                shard = self._fetch(index)
            except OSError as problem:
                error = PerfuseError(f"the cache {self._folder} cannot be written: {problem.strerror or problem}")
            except Exception as problem:
                error = problem
            with self._changed:
                self._flying.discard(index)
                if shard is not None:
                    self._mapped[index] = shard
                elif error is not None:
                    self._failed[index] = error
                self._changed.notify_all()

    def _next(self) -> int | None:
        """What to fetch now, room for it having been made."""
        while self._urgent:
            index = self._urgent.pop(0)
            if index not in self._mapped and index not in self._flying:
                self._make_room(index, for_sure=True)
                return index
        for index in self._expected:
            if index not in self._mapped and index not in self._flying and index not in self._failed:
                return index if self._make_room(index, for_sure=False) else None
        return None

    def _make_room(self, index: int, for_sure: bool) -> bool:
        """Remove what is not expected, the least recently used first; at need, what is expected last."""
        info = self._infos[index]
        held = self._held()
        for gone in [i for i in self._mapped if i not in held and i not in self._expected]:
            del self._mapped[gone]  # another process has removed the file: mapped on, it would still take the room
        mine = held.pop(index, None)
        used = sum(held.values()) + sum(self._infos[i].bytes for i in self._flying if i not in held)
        needed = used + (mine or 0 if mine == info.bytes else info.bytes) - self._room
        rank = {shard: -place for place, shard in enumerate(self._expected)}
        last_used = {shard: place for place, shard in enumerate(self._mapped, 1)}
        # In order of removal: what is not expected, by use; then what is expected, the last of it first.
        candidates = sorted((i for i in held if i not in self._flying),
                            key=lambda i: (i in rank, rank.get(i, 0), last_used.get(i, 0)))  # fmt: skip
        for other in candidates:
            if needed <= 0 or (other in rank and not for_sure):
                break
            self._mapped.pop(other, None)
            with suppress(OSError):
                (self._folder / self._infos[other].file).unlink()
            needed -= held[other]
        return needed <= 0 or for_sure

    def _held(self) -> dict[int, int]:
        """Bytes of each shard in the folder, whoever put it there; the oldest first."""
        found = []
        names: list[str] = []
        with suppress(OSError):  # another process, or this one, has removed the whole dataset
            names = os.listdir(self._folder)
        for name in names:
            if (number := self._number.get(name)) is not None:
                with suppress(OSError):  # another process has just removed it
                    info = (self._folder / name).stat()
                    found.append((info.st_mtime_ns, number, info.st_size))
        return {number: size for _, number, size in sorted(found)}

    def _fetch(self, index: int) -> MappedShard:
        """Have a shard in the folder, whole and right, and map it."""
        info = self._infos[index]
        path = self._folder / info.file
        for race in range(_RACES):
            self._folder.mkdir(exist_ok=True)
            # One process on this machine fetches it, the others find it there.
            lock = take_lock(path.with_name(f".{info.file}.lock"), wait=True)
            assert lock is not None
            with lock:
                fetch_shard(self._fs, f"{self._root}/{info.file}", path, info, self._url)
                os.utime(path)
                path.with_name(f".{info.file}.lock").unlink(missing_ok=True)
                try:
                    return MappedShard(open_shard(path, info, self._schema, verify=False), self._shapes, str(path))
                except PerfuseError:
                    if path.is_file() or race == _RACES - 1:
                        raise
        raise AssertionError("unreachable")

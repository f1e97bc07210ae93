"""Datasets at an fsspec URL: fetched into a local cache of limited size, checked by sha256, then memory-mapped.

The cache holds one folder a dataset, named by the hash of its manifest: ``manifest.json`` and its shards, all of them
or, where they do not fit, those that were read last and an index of the columns without a time axis. Beside it,
``.lock`` is held by the process that fills it and ``.use``, shared, by those that read it, until they end. The least
recently used folders that nobody else reads go first when room is needed.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from perfuse.data.download import fetch_shard, file_system, is_absent, reaching, remove_left_parts
from perfuse.data.index import index_bytes, open_index, write_index
from perfuse.data.locks import take_lock
from perfuse.data.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, read_manifest
from perfuse.data.mapped import MappedShard, in_threads
from perfuse.data.order import largest_windows_bytes
from perfuse.data.store import CurveStore
from perfuse.data.streamed import StreamedShards
from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.files import write_atomic

CACHE_DIR_VARIABLE, CACHE_GB_VARIABLE = "PERFUSE_CACHE_DIR", "PERFUSE_CACHE_GB"
DEFAULT_CACHE_GB = 20.0
ROOM = ".room"
"""File of a dataset that is not kept whole: the bytes it has been given."""

_in_use: dict[Path, IO[str]] = {}
"""Locks of the datasets that this process has fetched."""


@atexit.register
def _let_go() -> None:
    for handle in _in_use.values():
        handle.close()


def cache_folder() -> Path:
    """Where datasets are cached: ``PERFUSE_CACHE_DIR``, or the user's cache folder."""
    base = os.environ.get(CACHE_DIR_VARIABLE)
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perfuse" / "datasets"


def cache_limit_bytes() -> int:
    """Largest size of the cache, ``PERFUSE_CACHE_GB`` (default 20).

    Raises:
        InputError: when the variable is no positive number.
    """
    text = os.environ.get(CACHE_GB_VARIABLE, str(DEFAULT_CACHE_GB))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < 1e9:
        raise InputError(CACHE_GB_VARIABLE, value=text, unit="GB", allowed="> 0")
    return int(gigabytes * 1e9)


def open_remote(url: str, check: Callable[[CurveTable], object] | None = None) -> CurveStore:
    """The dataset at a URL: a verified local copy where the cache may hold it, else shards fetched as they are read.

    A dataset that the cache cannot hold is read once from end to end when it is opened for the first time: its shards
    are verified, ``check`` is called with every curve, and the columns without a time axis are kept
    (``data.index``). No other process removes what is cached before this one ends.

    Args:
        url: Where it is.
        check: Called with the curves that are read on the way, some at a time; raises for those that cannot be.

    Raises:
        InputError: if there is no dataset, a shard is not what its manifest says, or the cache is too small for the
            part of it that is shuffled together.
        PerfuseError: when the place cannot be reached or the disk refuses.
    """
    fs, root = file_system(url)
    root = root.rstrip("/")
    content = _manifest_content(fs, f"{root}/{MANIFEST}", url)
    with _held(content) as folder:
        manifest = _manifest_in(folder, content)
        if _needed(manifest) > cache_limit_bytes():
            return _open_streamed(fs, root, url, folder, manifest, check)
        _fill(fs, root, folder, manifest, url)
    store = CurveStore.open(folder)
    if check is not None:
        store.check(check)
    return store


def fetch_dataset(url: str) -> Path:
    """A local, verified copy of the whole dataset at a URL; only what is missing or damaged is downloaded.

    No other process removes it before this one ends.

    Raises:
        InputError: if there is no dataset, it does not fit the cache, or a shard is not what its manifest says.
        PerfuseError: when the place cannot be reached or the disk refuses.
    """
    fs, root = file_system(url)
    root = root.rstrip("/")
    content = _manifest_content(fs, f"{root}/{MANIFEST}", url)
    with _held(content) as folder:
        _fill(fs, root, folder, _manifest_in(folder, content), url)
    return folder


@contextmanager
def _held(content: bytes) -> Iterator[Path]:
    """The folder of the dataset with this manifest, while it is filled; it is in use until this process ends."""
    folder = cache_folder() / hashlib.sha256(content).hexdigest()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            locks.enter_context(_waited(_lock_of(folder)))
            remove_left_parts(folder)
            yield folder
            if folder not in _in_use:
                _in_use[folder] = _waited(_use_of(folder), shared=True)
            os.utime(folder)
    except OSError as error:
        raise PerfuseError(f"the cache {folder.parent} cannot be written: {error.strerror or error}") from None


def _manifest_in(folder: Path, content: bytes) -> Manifest:
    """The checked manifest, written into the folder: it tells other processes how much room this dataset takes."""
    fresh = not (folder / MANIFEST).is_file()
    folder.mkdir(exist_ok=True)
    try:
        write_atomic(folder / MANIFEST, content)
        return read_manifest(folder)
    except InputError:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _open_streamed(
    fs: Any, root: str, url: str, folder: Path, manifest: Manifest, check: Callable[[CurveTable], object] | None
) -> CurveStore:
    """A dataset larger than the cache, whose lock is held."""
    index_size = index_bytes(manifest)
    least = largest_windows_bytes(manifest) + index_size
    with _waited(folder.parent / "room.lock"):
        room = _make_room(least, cache_limit_bytes(), folder, url, "what is shuffled together")
        write_atomic(folder / ROOM, f"{room}\n".encode())
    shards = StreamedShards(fs, root, url, folder, manifest, room - index_size)
    store = CurveStore(folder, manifest, shards)
    index = open_index(folder, manifest)
    if index is None:
        numbers = list(range(len(manifest.shards)))

        def each() -> Iterator[MappedShard]:
            for i in numbers:
                shards.expect(numbers[i:])
                shard = shards[i]
                if check is not None:
                    store.check_shard(check, i)
                yield shard

        write_index(folder, manifest, each())
        index = open_index(folder, manifest)
        if index is None:
            raise PerfuseError(f"the cache {folder.parent} did not keep what was written")
    shards.use_index(index)
    return store


def _manifest_content(fs: Any, path: str, url: str) -> bytes:
    try:
        with reaching(url, "read"):
            fs.invalidate_cache()
            with fs.open(path, "rb") as handle:
                content: bytes = handle.read(MAX_MANIFEST_BYTES + 1)
    except PerfuseError as error:
        if is_absent(error):
            raise InputError(
                "dataset", f"has no {MANIFEST}", value=url, hint="`perfuse simulate` makes datasets"
            ) from None
        raise
    if len(content) > MAX_MANIFEST_BYTES:
        raise InputError("manifest", "is too large", where=url)
    return content


def _fill(fs: Any, root: str, folder: Path, manifest: Manifest, url: str) -> None:
    """Have the whole dataset in its folder, whose lock is held."""
    fresh = not any((folder / shard.file).exists() for shard in manifest.shards)
    try:
        with _waited(folder.parent / "room.lock"):
            (folder / ROOM).unlink(missing_ok=True)
            needed = _needed(manifest)
            _make_room(needed, needed, folder, url, "dataset")
    except InputError:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise

    def fetch(index: int) -> None:
        shard = manifest.shards[index]
        fetch_shard(fs, f"{root}/{shard.file}", folder / shard.file, shard, url)

    for _ in in_threads(fetch, len(manifest.shards)):
        pass


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _use_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.use")


def _waited(path: Path, shared: bool = False) -> IO[str]:
    handle = take_lock(path, shared=shared, wait=True)
    assert handle is not None
    return handle


def _needed(manifest: Manifest) -> int:
    return sum(shard.bytes for shard in manifest.shards)


def _size(folder: Path) -> int:
    """Bytes that a cached dataset takes, or will take once it is whole, or has been given."""
    with suppress(InputError):
        needed = _needed(read_manifest(folder))
        with suppress(OSError, ValueError):
            needed = min(needed, int((folder / ROOM).read_text()))
        return needed
    total = 0
    for path in folder.iterdir():
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _make_room(least: int, most: int, folder: Path, url: str, what: str) -> int:
    """Remove the least recently used other datasets until there is room for ``least`` bytes.

    Returns:
        What this dataset may take, up to ``most``.
    """
    limit = cache_limit_bytes()
    refusal: dict[str, Any] = {
        "value": round(least / 1e9, 3),
        "unit": "GB",
        "where": url,
        "allowed": f"<= {limit / 1e9:g} GB",
    }
    if least > limit:
        raise InputError(what, "is larger than the cache may be", hint=f"raise {CACHE_GB_VARIABLE}", **refusal)
    others = [f for f in folder.parent.iterdir() if f.is_dir() and f != folder]
    sizes = {other: _size(other) for other in others}
    for other in sorted(others, key=lambda f: f.stat().st_mtime):
        if least + sum(sizes.values()) <= limit:
            break
        if _removed(other):
            sizes.pop(other)
    left = limit - sum(sizes.values())
    if left < least:
        hint = f"raise {CACHE_GB_VARIABLE}"
        raise InputError(what, "does not fit beside those that other processes read", hint=hint, **refusal)
    return min(most, left)


def _removed(folder: Path) -> bool:
    """Remove a cached dataset, unless another process fills or reads it. What this one has mapped stays readable."""
    mine = _in_use.pop(folder, None)
    if mine is not None:
        mine.close()
    with ExitStack() as locks:
        for path in (_lock_of(folder), _use_of(folder)):
            handle = take_lock(path)
            if handle is None:
                return False
            locks.enter_context(handle)
        shutil.rmtree(folder, ignore_errors=True)
        _lock_of(folder).unlink(missing_ok=True)
        _use_of(folder).unlink(missing_ok=True)
    return True

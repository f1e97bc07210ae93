"""Datasets at an fsspec URL: downloaded once into a local cache of limited size, checked by sha256, then memory-mapped.

The cache holds one folder a dataset, named by the hash of its manifest: ``manifest.json`` and its shards. Beside it,
``.lock`` is held by the process that fills it and ``.use``, shared, by those that read it, until they end. The least
recently used folders that nobody else reads go first when room is needed.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from perfuse.data.locks import take_lock
from perfuse.data.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, ShardInfo, read_manifest
from perfuse.data.store import file_sha256
from perfuse.errors import InputError, PerfuseError
from perfuse.files import write_atomic

CACHE_DIR_VARIABLE, CACHE_GB_VARIABLE = "PERFUSE_CACHE_DIR", "PERFUSE_CACHE_GB"
DEFAULT_CACHE_GB = 20.0
_CHUNK = 2**22
_TRIES = 2

_in_use: dict[Path, IO[str]] = {}
"""Locks of the datasets that this process has fetched."""


@atexit.register
def _let_go() -> None:
    for handle in _in_use.values():
        handle.close()


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system and path of a URL.

    Raises:
        InputError: for a protocol that is unknown or whose package is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError("URL", "cannot be opened", value=url, hint=" ".join(str(error).split())[:200]) from None


@contextmanager
def reaching(url: str, verb: str) -> Iterator[None]:
    """Whatever a file system raises, as one line: each package has errors of its own, few of them OSError.

    Raises:
        PerfuseError: ``url cannot be <verb>``, and why.
    """
    try:
        yield
    except PerfuseError:
        raise
    except Exception as error:
        told = error.__cause__ if isinstance(error.__cause__, OSError) else error
        reason = " ".join(str(told).split())[:300] or type(error).__name__
        raise PerfuseError(f"{url} cannot be {verb}: {reason}") from error


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


def fetch_dataset(url: str) -> Path:
    """A local, verified copy of the dataset at a URL; only what is missing or damaged is downloaded.

    No other process removes it before this one ends.

    Raises:
        InputError: if there is no dataset, it does not fit the cache, or a shard is not what its manifest says.
        PerfuseError: when the place cannot be reached or the disk refuses.
    """
    fs, root = file_system(url)
    root = root.rstrip("/")
    content = _manifest_content(fs, f"{root}/{MANIFEST}", url)
    folder = cache_folder() / hashlib.sha256(content).hexdigest()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            locks.enter_context(_waited(_lock_of(folder)))
            _fill(fs, root, folder, content, url)
            if folder not in _in_use:
                _in_use[folder] = _waited(_use_of(folder), shared=True)
            os.utime(folder)
    except OSError as error:
        raise PerfuseError(f"the cache {folder.parent} cannot be written: {error.strerror or error}") from None
    return folder


def _is_absent(error: PerfuseError) -> bool:
    """Whether a file is not there; over HTTP, a host that cannot be reached comes as "not found" too."""
    cause = error.__cause__
    return isinstance(cause, FileNotFoundError) and not isinstance(cause.__cause__, OSError)


def _manifest_content(fs: Any, path: str, url: str) -> bytes:
    try:
        with reaching(url, "read"):
            fs.invalidate_cache()
            with fs.open(path, "rb") as handle:
                content: bytes = handle.read(MAX_MANIFEST_BYTES + 1)
    except PerfuseError as error:
        if _is_absent(error):
            raise InputError(
                "dataset", f"has no {MANIFEST}", value=url, hint="`perfuse simulate` makes datasets"
            ) from None
        raise
    if len(content) > MAX_MANIFEST_BYTES:
        raise InputError("manifest", "is too large", where=url)
    return content


def _fill(fs: Any, root: str, folder: Path, content: bytes, url: str) -> None:
    """Have the whole dataset in its folder, whose lock is held."""
    fresh = not (folder / MANIFEST).is_file()
    folder.mkdir(exist_ok=True)
    try:
        with _waited(folder.parent / "room.lock"):
            # The manifest comes first: it tells other processes how much room this dataset takes.
            write_atomic(folder / MANIFEST, content)
            manifest = read_manifest(folder)
            _make_room(manifest, folder, url)
    except InputError:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    for shard in manifest.shards:
        _fetch_shard(fs, f"{root}/{shard.file}", folder / shard.file, shard, url)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _use_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.use")


def _waited(path: Path, shared: bool = False) -> IO[str]:
    handle = take_lock(path, shared=shared, wait=True)
    assert handle is not None
    return handle


def _size(folder: Path) -> int:
    """Bytes that a cached dataset takes, or will take once it is whole."""
    with suppress(InputError):
        return sum(shard.bytes for shard in read_manifest(folder).shards)
    total = 0
    for path in folder.iterdir():
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _make_room(manifest: Manifest, folder: Path, url: str) -> None:
    """Remove the least recently used other datasets until this one fits."""
    limit, needed = cache_limit_bytes(), sum(shard.bytes for shard in manifest.shards)
    refusal: dict[str, Any] = {
        "value": round(needed / 1e9, 3),
        "unit": "GB",
        "where": url,
        "allowed": f"<= {limit / 1e9:g} GB",
    }
    hint = f"raise {CACHE_GB_VARIABLE}"
    if needed > limit:
        raise InputError("dataset", "is larger than the cache may be", hint=hint, **refusal)
    others = [f for f in folder.parent.iterdir() if f.is_dir() and f != folder]
    sizes = {other: _size(other) for other in others}
    for other in sorted(others, key=lambda f: f.stat().st_mtime):
        if needed + sum(sizes.values()) <= limit:
            return
        if _removed(other):
            sizes.pop(other)
    if needed + sum(sizes.values()) > limit:
        raise InputError("dataset", "does not fit beside those that other processes read", hint=hint, **refusal)


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


def _is_right(path: Path, shard: ShardInfo) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256


def _fetch_shard(fs: Any, source: str, target: Path, shard: ShardInfo, url: str) -> None:
    if _is_right(target, shard):
        return
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    broken: PerfuseError | None = None
    for _ in range(_TRIES):  # a download that was cut short or damaged is tried once more
        try:
            with part.open("wb") as local, reaching(url, "read"):
                _copy(fs, source, local, shard.bytes)
            if _is_right(part, shard):
                part.replace(target)
                return
            broken = None
        except PerfuseError as error:
            if _is_absent(error):
                raise InputError("shard", "is missing", value=shard.file, where=url) from None
            broken = error
        finally:
            part.unlink(missing_ok=True)
    raise broken or InputError("shard", "is not what its manifest says (size or sha256 differs)", value=shard.file,
                               where=url)  # fmt: skip


def _copy(fs: Any, source: str, local: IO[bytes], n_bytes: int) -> None:
    """At most ``n_bytes`` of a remote file, front to back."""
    with fs.open(source, "rb") as remote:
        while n_bytes > 0 and (chunk := remote.read(min(_CHUNK, n_bytes))):
            local.write(chunk)
            n_bytes -= len(chunk)

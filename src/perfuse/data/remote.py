"""Datasets at an fsspec URL: downloaded once into a local cache of limited size, checked by sha256, then memory-mapped.

The cache holds one folder a dataset, named by the hash of its manifest: ``manifest.json`` and its shards. The least
recently used folders go first when room is needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from perfuse.data.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, ShardInfo, read_manifest
from perfuse.data.store import file_sha256
from perfuse.errors import InputError, PerfuseError
from perfuse.files import write_atomic

CACHE_DIR_VARIABLE, CACHE_GB_VARIABLE = "PERFUSE_CACHE_DIR", "PERFUSE_CACHE_GB"
DEFAULT_CACHE_GB = 20.0
_CHUNK = 2**22


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

    Raises:
        InputError: if there is no dataset, it does not fit the cache, or a shard is not what its manifest says.
        PerfuseError: when the place cannot be reached or the disk refuses.
    """
    fs, root = file_system(url)
    root = root.rstrip("/")
    try:
        if not fs.exists(f"{root}/{MANIFEST}"):
            raise InputError("dataset", f"has no {MANIFEST}", value=url, hint="`perfuse simulate` makes datasets")
        if fs.size(f"{root}/{MANIFEST}") > MAX_MANIFEST_BYTES:
            raise InputError("manifest", "is too large", where=url)
        content = fs.cat_file(f"{root}/{MANIFEST}")
    except OSError as error:
        raise PerfuseError(f"{url} cannot be read: {error}") from None
    folder = cache_folder() / hashlib.sha256(content).hexdigest()
    with _locked(folder):
        write_atomic(folder / MANIFEST, content)
        try:
            manifest = read_manifest(folder)
            _make_room(manifest, folder, url)
        except InputError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for shard in manifest.shards:
            _fetch_shard(fs, f"{root}/{shard.file}", folder / shard.file, shard, url)
        os.utime(folder)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time fills a dataset's folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(".lock").open("w")
    except OSError as error:
        raise PerfuseError(f"the cache {folder.parent} cannot be written: {error.strerror or error}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _size(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _make_room(manifest: Manifest, folder: Path, url: str) -> None:
    """Remove the least recently used other datasets until this one fits."""
    limit, needed = cache_limit_bytes(), sum(shard.bytes for shard in manifest.shards)
    if needed > limit:
        raise InputError("dataset", "is larger than the cache may be", value=round(needed / 1e9, 3), unit="GB",
                         where=url, allowed=f"<= {limit / 1e9:g} GB", hint=f"raise {CACHE_GB_VARIABLE}")  # fmt: skip
    others = [f for f in folder.parent.iterdir() if f.is_dir() and f != folder]
    sizes = {other: _size(other) for other in others}
    for other in sorted(others, key=lambda f: f.stat().st_mtime):
        if needed + sum(sizes.values()) <= limit:
            return
        shutil.rmtree(other, ignore_errors=True)  # a dataset that is mapped elsewhere stays readable there
        sizes.pop(other)


def _is_right(path: Path, shard: ShardInfo) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256


def _fetch_shard(fs: Any, source: str, target: Path, shard: ShardInfo, url: str) -> None:
    if _is_right(target, shard):
        return
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    for _ in range(2):  # a download that was cut short is tried once more
        try:
            with fs.open(source, "rb") as remote, part.open("wb") as local:
                left = shard.bytes
                while left > 0 and (chunk := remote.read(min(_CHUNK, left))):
                    local.write(chunk)
                    left -= len(chunk)
            if _is_right(part, shard):
                part.replace(target)
                return
        except FileNotFoundError:
            raise InputError("shard", "is missing", value=shard.file, where=url) from None
        except OSError as error:
            raise PerfuseError(f"{url}: {shard.file} cannot be copied into the cache: {error}") from None
        finally:
            part.unlink(missing_ok=True)
    raise InputError("shard", "is not what its manifest says (size or sha256 differs)", value=shard.file, where=url)

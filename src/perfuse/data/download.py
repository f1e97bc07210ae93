"""Files at an fsspec URL: opening the place, and downloading one shard, checked by size and sha256."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from perfuse.data.manifest import ShardInfo
from perfuse.data.shard_files import file_sha256
from perfuse.errors import InputError, PerfuseError

_CHUNK = 2**22
_TRIES = 2


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


def is_absent(error: PerfuseError) -> bool:
    """Whether a file is not there; over HTTP, a host that cannot be reached comes as "not found" too."""
    cause = error.__cause__
    return isinstance(cause, FileNotFoundError) and not isinstance(cause.__cause__, OSError)


def _is_right(path: Path, shard: ShardInfo) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256


def fetch_shard(fs: Any, source: str, target: Path, shard: ShardInfo, url: str) -> None:
    """Have a shard at ``target``, whole and right; what is there already and is so stays.

    Raises:
        InputError: if it is missing, or is not what its manifest says when it is fetched again.
        PerfuseError: when the place cannot be reached or the disk refuses.
    """
    if _is_right(target, shard):
        return
    part = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    broken: PerfuseError | None = None
    for _ in range(_TRIES):  # a download that was cut short or damaged is tried once more
        try:
            with part.open("wb") as local, reaching(f"{url.rstrip('/')}/{shard.file}", "read"):
                _copy(fs, source, local, shard.bytes)
            if _is_right(part, shard):
                part.replace(target)
                return
            broken = None
        except PerfuseError as error:
            if is_absent(error):
                raise InputError("shard", "is missing", value=shard.file, where=url) from None
            broken = error
        finally:
            part.unlink(missing_ok=True)
    raise broken or InputError("shard", "is not what its manifest says (size or sha256 differs)", value=shard.file,
                               where=url)  # fmt: skip


def remove_left_parts(folder: Path) -> None:
    """Delete what processes that were killed have left half-fetched in a cached dataset."""
    for part in folder.glob(".*.part"):
        pid = next((piece for piece in part.name.split(".")[2:] if piece.isdecimal()), "")
        if pid and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            part.unlink(missing_ok=True)


def _copy(fs: Any, source: str, local: IO[bytes], n_bytes: int) -> None:
    """At most ``n_bytes`` of a remote file, front to back."""
    with fs.open(source, "rb") as remote:
        while n_bytes > 0 and (chunk := remote.read(min(_CHUNK, n_bytes))):
            local.write(chunk)
            n_bytes -= len(chunk)

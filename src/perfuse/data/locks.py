"""Locks between processes, which the system lets go when their holder ends, however it ends.

A file that names a process would outlive a kill, and its number may belong to another program by then (in containers
it usually does). Where locks do not exist (another operating system, some network drives), they are as if free.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

fcntl: Any
try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None


def take_lock(path: Path, *, shared: bool = False, wait: bool = False) -> IO[str] | None:
    """Lock a file, which is made if need be; closing what is returned lets go.

    Args:
        path: The lock file. Whoever holds it exclusively may delete it.
        shared: Whether others may hold it too, if all of them share it.
        wait: Whether to wait for it.

    Returns:
        The open file (for reading, and writing at its end), or None when another holds the lock and ``wait`` is false.

    Raises:
        OSError: when the file cannot be made.
    """
    while True:
        handle = path.open("a+", encoding="utf-8")
        if fcntl is None:
            return handle
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            handle.close()
            return None
        except OSError:  # a drive without locks
            return handle
        if _is_at(path, handle):
            return handle
        handle.close()  # its last holder deleted it meanwhile


def _is_at(path: Path, handle: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False

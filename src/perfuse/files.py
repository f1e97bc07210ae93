"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from perfuse.errors import PerfuseError


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside ``path`` that takes its place, synced, when the block ends well, and vanishes otherwise.

    Raises:
        PerfuseError: one line, when the disk refuses; ``path`` is as it was then.
    """
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        part = Path(name)
        yield part
        part.chmod(0o666 & ~_umask())
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PerfuseError(f"{path} cannot be written ({reason}); nothing was kept; choose another place") from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Write bytes to a file, whole or not at all.

    Raises:
        PerfuseError: as ``replacing``.
    """
    with replacing(path) as part:
        part.write_bytes(content)

"""Writing files whole or not at all; reading TOML with one clear line for what is wrong."""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from perfuse.errors import InputError, PerfuseError


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


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A TOML file as plain data.

    Args:
        path: The file.
        what: What the reader knows it as, an option or a kind of file; the error begins with it.

    Raises:
        InputError: for a file that cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # editors may leave a BOM
    except OSError as error:
        raise InputError(what, "cannot be read", value=str(path), hint=error.strerror or "") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, too long a number, nested too deeply
        raise InputError(what, "is no valid TOML", value=str(path), hint=str(error)) from None

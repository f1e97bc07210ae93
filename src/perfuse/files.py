"""Writing files whole or not at all; reading TOML with one clear line for what is wrong."""

from __future__ import annotations

import os
import stat
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
def making_parents(path: Path) -> Iterator[None]:
    """Make the folders that ``path`` needs; where the block fails, those that were missing go again if they are empty.

    Raises:
        OSError: if one cannot be made.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:  # the innermost first
            with suppress(OSError):
                folder.rmdir()
        raise


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk before going on.

    Raises:
        OSError: if the folder is gone or its disk fails.
    """
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside ``path`` that takes its place, synced, when the block ends well, and vanishes otherwise.

    Raises:
        PerfuseError: one line, when the disk refuses; ``path`` is as it was then, and no new folder is left.
    """
    try:
        with making_parents(path):
            yield from _replacing(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PerfuseError(f"{path} cannot be written ({reason}); nothing was kept; choose another place") from error


def _replacing(path: Path) -> Iterator[Path]:
    part: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        part = Path(name)
        yield part
        part.chmod(0o666 & ~_umask())
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        with suppress(OSError):  # the new name; some network disks do not sync folders
            sync_folder(path.parent)
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


MAX_TOML_BYTES = 2**24
_MAX_DEPTH = 64
_MAX_INTEGER = 2**63


def check_file(path: Path, what: str, max_bytes: int | None = None) -> None:
    """Refuse what is no regular file: a pipe would be waited for, a device read for ever; and one that is too large.

    Args:
        path: The file; a link to one will do.
        what: What the reader knows it as; the error begins with it.
        max_bytes: Largest size.

    Raises:
        InputError: see above, or when there is nothing that can be read.
    """
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(what, "cannot be read", value=str(path), hint=reason or "") from None
    if not stat.S_ISREG(found.st_mode):
        is_folder = stat.S_ISDIR(found.st_mode)
        hint = "it is a folder" if is_folder else "it is a pipe, a device or a socket: save its content as a file"
        raise InputError(what, "cannot be read: it is no file", value=str(path), hint=hint)
    if max_bytes is not None and found.st_size > max_bytes:
        raise InputError(
            what, "is too large", value=found.st_size, unit="bytes", allowed=f"<= {max_bytes}", where=str(path)
        )


def check_plain(value: object) -> None:
    """Raise ValueError for plain data that is nested too deep, or holds a whole number of more than 64 bits.

    TOML and JSON readers pass both on, and much of what takes such numbers does not foresee them.
    """
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, int) and not -_MAX_INTEGER <= item < _MAX_INTEGER:
                raise ValueError(f"holds a whole number of {item.bit_length()} bits")
        if not inner:
            return
        level = inner
    raise ValueError(f"nested more than {_MAX_DEPTH} deep")


def own_file(folder: Path, name: str) -> Path:
    """The path of a file in a folder from elsewhere, which no symbolic link may lead out of; the file may be missing.

    Raises:
        InputError: if it is a link to somewhere else.
    """
    path = folder / name
    try:
        leads_out = path.is_symlink() and path.resolve().parent != folder.resolve()
    except (OSError, RuntimeError):  # a loop of links
        leads_out = True
    if leads_out:
        raise InputError(name, "is a symbolic link out of its folder", where=str(folder), hint="copy the file itself")
    return path


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A TOML file as plain data: whole numbers of 64 bits, as TOML has them, and no deep nests.

    Args:
        path: The file.
        what: What the reader knows it as, an option or a kind of file; the error begins with it.

    Raises:
        InputError: for a file that cannot be read, or is no TOML.
    """
    check_file(path, what, MAX_TOML_BYTES)
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # editors may leave a BOM
        check_plain(data)
        return data
    except OSError as error:
        raise InputError(what, "cannot be read", value=str(path), hint=error.strerror or "") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, too long a number, nested too deeply
        raise InputError(what, "is no valid TOML", value=str(path), hint=str(error)) from None

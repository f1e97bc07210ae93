"""Writing results: whole files or none, strict JSON."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from perfuse.errors import PerfuseError


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it, with the permissions that a new file would have.

    Raises:
        PerfuseError: if it cannot be written; nothing is left behind then.
    """
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(part, 0o666 & ~_umask())
        os.replace(part, path)
    except OSError as error:
        if part and os.path.exists(part):
            os.unlink(part)
        reason = error.strerror or str(error)
        raise PerfuseError(f"{path} cannot be written ({reason}); choose another place with --out") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def plain(value: object) -> object:
    """JSON values only: NumPy scalars as Python's, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def strict_json(value: object) -> str:
    """Indented JSON without NaN, ending in a newline."""
    return json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(value: object, path: Path) -> None:
    """Strict JSON (an ``Evaluation``, say) to a file, whole or not at all.

    Raises:
        PerfuseError: if the file cannot be written.
    """
    write_atomic(Path(path), strict_json(value).encode())

"""Strict JSON: no NaN, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from perfuse.files import write_atomic


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

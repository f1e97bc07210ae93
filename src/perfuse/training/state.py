"""Typed JSON: what plain JSON loses (tuples, inf and nan, enums, NumPy scalars and arrays, bytes) survives.

A value that JSON cannot carry is written as an object with one key that starts with ``$``. Reading builds values
of this fixed list of types and nothing else: no name in the text is ever imported, looked up or called. An enum
is written by name and member and comes back as the member only where the reader passes that enum in.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TypeAlias

import numpy as np

from perfuse.errors import PerfuseError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_DTYPES = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)
_MAX_DEPTH = 64


class StateError(PerfuseError):
    """Text that is no typed JSON, or a value that typed JSON does not carry."""


def dumps(value: object) -> str:
    """Typed JSON of a value made of the types above, dicts and lists.

    Raises:
        StateError: naming the type that cannot be written.
    """
    return json.dumps(_encode(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def loads(text: str, enums: Sequence[type[Enum]] = ()) -> object:
    """The value that ``dumps`` wrote.

    Args:
        text: Typed JSON.
        enums: Enums whose members may appear.

    Raises:
        StateError: saying what is wrong with the text.
    """
    try:
        plain = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise StateError(f"is no valid JSON: {str(error)[:120]}") from None
    return _decode(plain, {e.__name__: e for e in enums}, 0)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"bare {name}")


def _encode(value: object) -> Json:
    if isinstance(value, Enum):  # before int and str, which some enums are
        return {"$enum": [type(value).__name__, value.name]}
    if value is None or type(value) in (bool, int, str):
        return value  # type: ignore[return-value]
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, np.ndarray | np.generic):
        return _encode_numpy(value)
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, tuple):
        return {"$tuple": _encode_items(value)}
    if isinstance(value, list):
        return _encode_items(value)
    if isinstance(value, dict):
        if all(isinstance(k, str) and not k.startswith("$") for k in value):
            return {k: _encode(v) for k, v in value.items()}
        return {"$dict": [[_encode(k), _encode(v)] for k, v in value.items()]}
    raise StateError(f"cannot write a {type(value).__module__}.{type(value).__qualname__} as typed JSON")


def _encode_items(values: Sequence[object]) -> list[Json]:
    # Lists of compound names can be long: strings need no walk.
    if all(type(v) is str for v in values):
        return list(values)  # type: ignore[arg-type]
    return [_encode(v) for v in values]


def _encode_numpy(value: np.ndarray | np.generic) -> Json:
    if value.dtype.name not in _DTYPES:
        raise StateError(f"cannot write NumPy type {value.dtype} as typed JSON")
    little = np.asarray(value).astype(value.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode("ascii")
    if isinstance(value, np.generic):
        return {"$numpy": [value.dtype.name, data]}
    return {"$array": [value.dtype.name, list(value.shape), data]}


def _decode(value: Json, enums: dict[str, type[Enum]], depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise StateError(f"is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, list):
        return [v if type(v) is str else _decode(v, enums, depth + 1) for v in value]
    if not isinstance(value, dict):
        return value
    tag = next((k for k in value if k.startswith("$")), None)
    if tag is None:
        return {k: _decode(v, enums, depth + 1) for k, v in value.items()}
    reader = _READERS.get(tag)
    if reader is None or len(value) != 1:
        raise StateError(f"has an unknown tag {tag[:40]!r}")
    try:
        return reader(value[tag], enums, depth)
    except (TypeError, ValueError, KeyError, AttributeError, binascii.Error) as error:
        raise StateError(f"has a malformed {tag}: {str(error)[:80]}") from None


_Reader: TypeAlias = "Callable[[Json, dict[str, type[Enum]], int], object]"


def _read_float(value: Json, enums: dict[str, type[Enum]], depth: int) -> float:
    return _FLOATS[value]  # type: ignore[index]


def _read_bytes(value: Json, enums: dict[str, type[Enum]], depth: int) -> bytes:
    return base64.b64decode(value, validate=True)  # type: ignore[arg-type]


def _read_tuple(value: Json, enums: dict[str, type[Enum]], depth: int) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return tuple(_decode(value, enums, depth + 1))  # type: ignore[arg-type]


def _read_dict(value: Json, enums: dict[str, type[Enum]], depth: int) -> dict[object, object]:
    return {_decode(k, enums, depth + 1): _decode(v, enums, depth + 1) for k, v in value}  # type: ignore


def _read_enum(value: Json, enums: dict[str, type[Enum]], depth: int) -> Enum:
    name, member = value  # type: ignore
    return enums[name][member]  # type: ignore[index]


def _read_numpy(value: Json, enums: dict[str, type[Enum]], depth: int) -> np.generic:
    dtype, data = value  # type: ignore
    return _array(dtype, [1], data)[0]


def _read_array(value: Json, enums: dict[str, type[Enum]], depth: int) -> np.ndarray:
    dtype, shape, data = value  # type: ignore
    return _array(dtype, shape, data)


def _array(dtype: Json, shape: Json, data: Json) -> np.ndarray:
    if dtype not in _DTYPES or not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("bad type or shape")
    raw = base64.b64decode(data, validate=True)  # type: ignore[arg-type]
    kind = np.dtype(str(dtype))
    return np.frombuffer(raw, dtype=kind.newbyteorder("<")).astype(kind).reshape([int(n) for n in shape])  # type: ignore


_READERS: dict[str, _Reader] = {
    "$float": _read_float,
    "$bytes": _read_bytes,
    "$tuple": _read_tuple,
    "$dict": _read_dict,
    "$enum": _read_enum,
    "$numpy": _read_numpy,
    "$array": _read_array,
}

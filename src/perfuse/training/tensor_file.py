"""Safetensors files that are not trusted: size, hash and header are held against what is expected before any memory is
taken for tensors.

A safetensors file is eight bytes of header length, a JSON header that names each tensor with its type, shape and place,
and the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from itertools import pairwise
from math import prod
from pathlib import Path

from torch import Tensor, nn

from perfuse.errors import InputError
from perfuse.files import own_file

MAX_HEADER_BYTES = 2**24
_LENGTH_BYTES = 8
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8
}  # fmt: skip
_MAX_DIMENSIONS = 8


def read_tensors(folder: Path, name: str, digest: str | None, limit_bytes: int) -> dict[str, Tensor]:
    """The tensors of a file.

    Args:
        folder, name: Where it is.
        digest: sha256 that it must have.
        limit_bytes: Of the file, header included.

    Raises:
        InputError: if it is missing, too large, of another sha256, or no safetensors file; nothing was allocated then
            but its header.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path, where = own_file(folder, name), str(folder)
    if not path.is_file():
        raise InputError(name, "is missing from the checkpoint", where=where)
    size = path.stat().st_size
    if size > limit_bytes:
        raise InputError(
            name, "is larger than what the model needs", value=size, unit="bytes", allowed=f"<= {limit_bytes}",
            where=where,
        )  # fmt: skip
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise InputError(
                name, "is damaged or of another checkpoint: its sha256 is not the one in state.json", where=where
            )
        file.seek(0)
        try:
            _check_header(_header(file.read(_LENGTH_BYTES + MAX_HEADER_BYTES), size), size)
            file.seek(0)
            return load(file.read(size))
        except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError, RecursionError) as error:
            problem = " ".join(str(error).split())[:120]
            raise InputError(name, f"is no readable safetensors file: {problem}", where=where) from None


def _header(start: bytes, size: int) -> tuple[dict[str, object], int]:
    """The header, and where the tensors begin.

    Raises:
        ValueError: if there is none.
    """
    if len(start) < _LENGTH_BYTES:
        raise ValueError("it is cut short")
    (length,) = struct.unpack("<Q", start[:_LENGTH_BYTES])
    if length > min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):
        raise ValueError(f"its header would take {length} bytes")
    header = json.loads(start[_LENGTH_BYTES : _LENGTH_BYTES + length].decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header, _LENGTH_BYTES + length


def _check_header(found: tuple[dict[str, object], int], size: int) -> None:
    """Whether types and shapes make up exactly the bytes that follow, without gaps and overlaps.

    Raises:
        ValueError: naming the first tensor that does not fit.
    """
    header, begin = found
    places = [(0, 0)]
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name[:40]!r} is not described by dtype, shape and data_offsets")
        dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not _are_counts(shape, _MAX_DIMENSIONS) or not _are_counts(place, 2) or len(place) != 2:
            raise ValueError(f"{name[:40]!r} has a shape or place that cannot be")
        if dtype not in _ITEM_BYTES or place[1] - place[0] != prod(shape) * _ITEM_BYTES[dtype]:
            raise ValueError(f"{name[:40]!r} takes other bytes than {str(dtype)[:10]} {str(shape)[:40]} needs")
        places.append((place[0], place[1]))
    places.sort()
    if any(end != start for (_, end), (start, _) in pairwise(places)) or begin + places[-1][1] != size:
        raise ValueError("its tensors do not fill the file")


def _are_counts(values: object, most: int) -> bool:
    return isinstance(values, list) and len(values) <= most and all(type(v) is int and v >= 0 for v in values)


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of all tensors of a module, which may be on the ``meta`` device, where it takes no memory."""
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


def file_limit(payload_bytes: int) -> int:
    """Largest file that holds so many bytes of tensors."""
    return payload_bytes + _LENGTH_BYTES + MAX_HEADER_BYTES


__all__ = ["MAX_HEADER_BYTES", "file_limit", "read_tensors", "tensor_bytes"]

"""Small damage to valid files that gets past their headers: one edit, by what kind of file it is.

An edit is one number: it seeds the choice of what is changed, where, and to what, so that a list of numbers names an
input and hypothesis can shrink it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random

from fuzz.mutate_archives import edit_npz, edit_parquet, edit_safetensors
from fuzz.mutate_text import edit_json, edit_jsonl, edit_table, edit_toml

Edit = Callable[[bytes, Random], bytes]
MAX_INPUT_BYTES = 2**18
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
_FORMATS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


def edit_bytes(data: bytes, random: Random) -> bytes:
    """Flip, overwrite with an odd number, insert, delete, repeat or cut."""
    if not data:
        return bytes(random.randrange(256) for _ in range(random.randrange(1, 9)))
    at = random.randrange(len(data))
    if random.random() < 0.3:  # footers and directories stand at the end
        at = len(data) - 1 - random.randrange(min(len(data), 600))
    length = min(1 << random.randrange(8), len(data) - at)
    kind = random.randrange(7)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        size = random.choice((1, 2, 4, 8))
        number = struct.pack(_FORMATS[size], random.choice(_NUMBERS) % 256**size)
        return data[:at] + number + data[at + size :]
    if kind == 2:
        return data[:at] + bytes(random.randrange(256) for _ in range(random.randrange(1, 9))) + data[at:]
    if kind == 3:
        return data[:at] + data[at + length :]
    if kind == 4:
        return data[:at] + data[at : at + length] * random.randrange(2, 5) + data[at + length :]
    if kind == 5:
        return data[:at]
    source = random.randrange(len(data))
    return data[:at] + data[source : source + length] + data[at + length :]


EDITS: dict[str, Edit] = {
    "bytes": edit_bytes,
    "csv": edit_table,
    "toml": edit_toml,
    "json": edit_json,
    "jsonl": edit_jsonl,
    "npz": edit_npz,
    "parquet": edit_parquet,
    "safetensors": edit_safetensors,
}
"""By kind of file; ``arrow`` and what is unknown is ``bytes``."""


def mutated(data: bytes, kind: str, edits: Sequence[int]) -> bytes:
    """``data`` after each of the edits; every fourth is of plain bytes whatever the kind.

    Args:
        data: A file.
        kind: A key of ``EDITS``.
        edits: Non-negative numbers, one an edit.
    """
    for edit in edits:
        random = Random(edit)
        chosen = edit_bytes if random.random() < 0.25 else EDITS[kind]
        try:
            data = chosen(data, random)[:MAX_INPUT_BYTES]
        except Exception:  # what earlier edits left is no such file any more, or no library writes what was drawn
            data = edit_bytes(data, random)[:MAX_INPUT_BYTES]
    return data

"""Edits of binary files: npz archives, safetensors, Parquet."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zipfile
from random import Random
from typing import Any

from fuzz.mutate_text import edit_json

_SHAPES = ("()", "(0,)", "(1,)", "(2,)", "(-1,)", "(2, 14, 3)", "(4294967296,)", "(9223372036854775807, 9)", "(10**9,)",
           "(True,)", "(2.0,)", "(0, 14, 0)", "(0, 9223372036854775807)", "1", "None",
           "(" * 300 + ")" * 300)  # fmt: skip
_TYPES = ("'<f8'", "'<f4'", "'<f2'", "'|i1'", "'|u1'", "'>f8'", "'|O'", "'<U3'", "'|S3'", "'<U0'", "'<c16'", "'<M8[s]'",
          "'|V8'", "[('a', '<f8')]", "('<f8', (1000000,))", "'|b1'", "'<f16'", "'<U1000000000'", "''", "1", "'<i8'",
          "[('a', '|O')]", "'" + "a" * 400 + "'", "-" * 300 + "1", "'<m8'")  # fmt: skip


def _members(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        small = [info for info in archive.infolist() if info.file_size < 2**20]
        return [(info.filename, archive.read(info)) for info in small]


def _zipped(members: list[tuple[str, bytes]], how: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", how) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, how)
    return buffer.getvalue()


def _edit_npy(data: bytes, random: Random) -> bytes:
    """The text of the header, its length, or the numbers after it."""
    end = data.find(b"\n") + 1
    header, body = data[10:end].decode("latin-1"), data[end:]
    kind = random.randrange(6)
    if kind == 0:
        header = re.sub(r"'shape': [^}]*?\)", lambda _: "'shape': " + random.choice(_SHAPES), header)
    elif kind == 1:
        header = re.sub(r"'descr': ('[^']*'|\[.*?\])", lambda _: "'descr': " + random.choice(_TYPES), header)
    elif kind == 2:
        header = header.replace("False", random.choice(("True", "None", "1")))
    elif kind == 3:
        at = random.randrange(max(1, len(header)))
        header = (
            header[:at] + random.choice(("(", "{", "'", "\\", "\n", "-" * 50, "[" * 200, "\x00")) + header[at + 1 :]
        )
    elif kind == 4:
        at = random.randrange(0, max(1, len(body) - 7), 8)
        odd = random.choice((-1.0, 0.0, float("nan"), float("inf"), 1e308, 5e-324, 1.0))
        body = body[:at] + struct.pack("<d", odd) + body[at + 8 :]
    else:
        body = body * 2 if random.random() < 0.3 else body[: random.randrange(len(body) + 1)]
    raw = header.encode("latin-1")
    version = (
        random.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x01\x01")) if random.random() < 0.1 else b"\x01\x00"
    )
    length = len(raw) if random.random() < 0.9 else random.choice((0, 1, 65535))
    form = "<H" if version[:1] == b"\x01" else "<I"
    return b"\x93NUMPY" + version + struct.pack(form, min(length, 65535)) + raw + body


def edit_npz(data: bytes, random: Random) -> bytes:
    """A member's header or numbers; the members; the sizes that the archive's directory declares."""
    try:
        members = _members(data)
    except Exception:
        members = []
    if not members or random.random() < 0.15:
        return _edit_directory(data, random)
    at = random.randrange(len(members))
    name, content = members[at]
    kind = random.randrange(10)
    if kind < 6:
        members[at] = (name, _edit_npy(content, random))
    elif kind == 6:
        del members[at]
    elif kind == 7:
        members[at] = (
            random.choice(("../x.npy", "/x.npy", "x", "compound_ids.npy", random.choice(members)[0])),
            content,
        )
    elif kind == 8:
        members.append((random.choice(("compound_ids.npy", "more.npy", name)), random.choice(members)[1]))
    else:
        members[at] = (name, content + bytes(random.choice((1, 2**20))))
    how = (
        zipfile.ZIP_STORED
        if random.random() < 0.8
        else random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    )
    return _zipped(members, how)


def _edit_directory(data: bytes, random: Random) -> bytes:
    """A number of one entry of the central directory (offsets of its fields: APPNOTE 4.3.12)."""
    starts = [match.start() for match in re.finditer(b"PK\x01\x02", data)]
    if not starts:
        return data[: random.randrange(len(data) + 1)]
    field, form = random.choice(
        ((8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (28, "<H"), (30, "<H"), (42, "<I"))
    )
    at = random.choice(starts) + field
    number = random.choice((0, 1, 8, 12, 14, 99, 0xFFFF, 2**31, 2**32 - 1)) % 256 ** struct.calcsize(form)
    return data[:at] + struct.pack(form, number) + data[at + struct.calcsize(form) :]


def edit_safetensors(data: bytes, random: Random) -> bytes:
    """The JSON header, its length, or the numbers."""
    if len(data) < 9:
        return data + b"\x02\x00\x00\x00\x00\x00\x00\x00{}"
    length = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + min(length, len(data))], data[8 + min(length, len(data)) :]
    kind = random.randrange(8)
    if kind < 5:
        header = edit_json(header, random)
        length = len(header)
    elif kind == 5:
        length = random.choice((0, 1, 2, 2**20, 2**32, 2**63, 2**64 - 1, len(header) + 1, len(header) - 1))
    elif kind == 6 and body:
        at = random.randrange(0, len(body), 4)
        form, odd = random.choice(
            (("<f", float("nan")), ("<f", 3e38), ("<d", float("inf")), ("<d", -1.0), ("<q", 2**62))
        )
        body = body[:at] + struct.pack(form, odd) + body[at + struct.calcsize(form) :]
    else:
        body = body + bytes(8) if random.random() < 0.3 else body[: random.randrange(len(body) + 1)]
    return struct.pack("<Q", length % 2**64) + header + body


def edit_parquet(data: bytes, random: Random) -> bytes:
    """A column of another type, name or content; or bytes of the footer (thrift) or of a page."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if random.random() < 0.6:
        at = max(0, len(data) - 1 - random.randrange(min(len(data), 1500))) if data else 0
        if random.random() < 0.15:
            at = max(0, len(data) - 8 + random.randrange(4))  # the footer's length
        return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
    try:
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        n = table.num_rows
        at = random.randrange(table.num_columns)
    except Exception:
        return data[: len(data) // 2]
    kind = random.randrange(6)
    if kind < 4:
        name = (
            table.column_names[at]
            if kind
            else random.choice(("", "_row", "time", "\x00", "\ufeffdrug", "kp_x", "a\nb"))
        )
        table = table.set_column(at, name, _odd_column(n, random))
    elif kind == 4:
        table = table.remove_column(at) if table.num_columns > 1 else table
    else:
        table = pa.concat_tables([table] * random.choice((0, 2, 3))) if random.random() < 0.7 else table.slice(0, 0)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"compression": random.choice(("none", "snappy", "zstd", "gzip"))}
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def _odd_column(n: int, random: Random) -> Any:
    import pyarrow as pa

    columns = (
        lambda: pa.nulls(n), lambda: pa.array([1.5] * n), lambda: pa.array([float("nan")] * n),
        lambda: pa.array([True] * n),
        lambda: pa.array([[1]] * n), lambda: pa.array([{"a": 1}] * n), lambda: pa.array([b"\xff"] * n),
        lambda: pa.array(["a"] * n).dictionary_encode(), lambda: pa.array([0] * n, pa.timestamp("ns")),
        lambda: pa.array([0] * n, pa.date32()), lambda: pa.array([0] * n, pa.time64("us")), lambda: pa.array([1] * n,
        pa.uint64()),
        lambda: pa.array([0] * n, pa.duration("ms")), lambda: pa.array([None] * n, pa.decimal128(38, 37)),
        lambda: pa.array(["\x00" * 9] * n), lambda: pa.array(["\x1b[2J"] * n), lambda: pa.array(["NaN"] * n),
        lambda: pa.array(["1e999"] * n), lambda: pa.array([2**63 - 1] * n), lambda: pa.array([[]] * n,
        pa.list_(pa.string())),
        lambda: pa.array([2**55] * n, pa.timestamp("s")), lambda: pa.array([1.0] * n, pa.float16()),
    )  # fmt: skip
    return random.choice(columns)()

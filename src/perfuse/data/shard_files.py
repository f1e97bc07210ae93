"""One shard of a dataset: an uncompressed Arrow IPC file of one record batch; how it is written, checked and mapped.

Every array field of ``CurveTable`` is one fixed-size list column (or a plain column where there is one value a
curve), so that a NumPy view of the mapped file is one pointer away. Nothing in a file depends on when or where it was
written: equal curves give equal bytes.

Axis legend: C curves, O reported organs, M eliminations, X exchanges, P saturable pathways, D dose events, T times.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import fields
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa

from perfuse.data.manifest import SCHEMA_VERSION, Manifest, ShardInfo, columns_of
from perfuse.data.table import N_PKA, CurveTable
from perfuse.errors import InputError
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import Topology, get_topology

STRINGS = ("curve_id", "compound_id", "group_id", "matrix")
_COLUMNS = tuple(f.name for f in fields(CurveTable) if f.name != "topology")
LARGE = ("time_h", "conc_mg_l", "censored")
"""Columns with a time axis: always read from the map; the others are small."""


def _shapes(
    topology: Topology, n_doses: int, n_times: int, n_pathways: int = 1, schema_version: int = SCHEMA_VERSION
) -> dict[str, tuple[int, ...]]:
    """Shape of one curve's value in each stored column; what is empty on a topology is not stored."""
    o = len(ORGANS)
    out: dict[str, tuple[int, ...]] = dict.fromkeys(_COLUMNS, ())
    out |= dict.fromkeys(("volume_l", "flow_l_h", "kp"), (o,))
    out |= dict.fromkeys(("dose_time_h", "dose_mg", "dose_duration_h", "dose_route"), (n_doses,))
    out |= dict.fromkeys(("vmax_mg_h", "km_u_mg_l"), (n_pathways,))
    out |= dict.fromkeys(("pka_acid", "pka_base"), (N_PKA,))
    out |= {
        "elimination_l_h": (topology.n_eliminations,), "ps_l_h": (topology.n_exchanges,), "time_h": (n_times,),
        "conc_mg_l": (o, n_times), "censored": (o, n_times),
    }  # fmt: skip
    stored = columns_of(schema_version)
    return {name: shape for name, shape in out.items() if name in stored and 0 not in shape}


def table_shapes(table: CurveTable) -> dict[str, tuple[int, ...]]:
    return _shapes(table.topology, table.dose_mg.shape[1], table.time_h.shape[1], table.vmax_mg_h.shape[1])


_ELEMENT = {"censored": (pa.uint8(), np.uint8), "dose_route": (pa.int8(), np.int8)}
"""Arrow and NumPy type of the columns that are not float64."""


def arrow_schema(shapes: dict[str, tuple[int, ...]]) -> pa.Schema:
    def kind(name: str) -> pa.DataType:
        if name in STRINGS:
            return pa.string()
        value = _ELEMENT[name][0] if name in _ELEMENT else pa.float64()
        return pa.list_(value, prod(shapes[name])) if shapes[name] else value

    return pa.schema([pa.field(name, kind(name), nullable=False) for name in shapes])


def _record_batch(table: CurveTable, schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for name in schema.names:
        value, kind = table.column(name), schema.field(name).type
        if name in STRINGS:
            arrays.append(pa.array(value.tolist(), type=kind))
            continue
        dtype = _ELEMENT[name][1] if name in _ELEMENT else np.float64
        flat = np.ascontiguousarray(value, dtype=dtype).reshape(-1)
        values = pa.array(flat)
        arrays.append(pa.FixedSizeListArray.from_arrays(values, type=kind) if value.ndim > 1 else values)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file, or a folder's entries, on disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def shard_name(index: int) -> str:
    """File name of a dataset's shard."""
    return f"shard-{index:05d}.arrow"


def shard_bytes(table: CurveTable) -> bytes:
    """The content of the file that ``write_shard`` would make.

    Raises:
        InputError: for a curve that cannot be.
    """
    table.validate("dataset")
    schema = arrow_schema(table_shapes(table))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(_record_batch(table, schema))
    return sink.getvalue().to_pybytes()


def write_shard(table: CurveTable, path: Path, name: str) -> ShardInfo:
    """Write one checked table as a shard file, synced to disk; equal curves give equal bytes.

    Args:
        table: Curves.
        path: The file to make.
        name: The name it will have in its dataset.

    Raises:
        InputError: for a curve that cannot be.
    """
    table.validate("dataset")
    schema = arrow_schema(table_shapes(table))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(_record_batch(table, schema))
    sync(path)
    return ShardInfo(file=name, rows=len(table), bytes=path.stat().st_size, sha256=file_sha256(path))


def _mapped_batch(path: Path, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """The file's record batch, refused where it says that its buffers are compressed: few bytes may unpack to many.

    pyarrow does not tell, so that the message's metadata is read as the flatbuffer that it is (Arrow ``Message.fbs``:
    ``Message.header`` is field 2, ``RecordBatch.compression`` field 3); and the batch is made of that very message, as
    the footer may point elsewhere.
    """
    source = pa.memory_map(str(path))
    source.seek(8)  # behind the magic number
    for message in pa.ipc.MessageReader.open_stream(source):
        if message.type != "record batch":
            continue
        data = bytes(message.metadata)
        header = _field(data, struct.unpack_from("<I", data)[0], 2)
        if _field(data, header + struct.unpack_from("<I", data, header)[0], 3):
            raise InputError("shard", "is compressed", where=where, allowed="uncompressed Arrow, as Perfuse writes it")
        return pa.ipc.read_record_batch(message, schema)
    raise InputError("shard", "holds no rows", where=where)


def _field(data: bytes, table: int, index: int) -> int:
    """Where a field of a flatbuffer's table lies; 0 when it is not there."""
    entries = table - struct.unpack_from("<i", data, table)[0]
    place = 4 + 2 * index
    if place >= struct.unpack_from("<H", data, entries)[0]:
        return 0
    offset: int = struct.unpack_from("<H", data, entries + place)[0]
    return table + offset if offset else 0


def open_shard(path: Path, info: ShardInfo, schema: pa.Schema, verify: bool) -> pa.RecordBatch:
    """Map one shard and check that it is what the manifest says."""
    where = str(path)
    if not path.is_file():
        raise InputError("shard", "is missing", where=where)
    size = path.stat().st_size
    if size != info.bytes:
        raise InputError(
            "shard", "is truncated or changed", value=size, unit="bytes", allowed=str(info.bytes), where=where
        )
    if verify and file_sha256(path) != info.sha256:
        raise InputError("shard", "has changed since it was written (sha256 differs)", where=where)
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(schema) or reader.num_record_batches != 1:
            raise InputError("shard", "has other columns than its manifest says", where=where)
        batch = _mapped_batch(path, schema, where)
        batch.validate()
    except (pa.ArrowException, OSError, struct.error) as error:
        raise InputError("shard", "is no readable Arrow file", hint=str(error), where=where) from None
    if batch.num_rows != info.rows:
        raise InputError(
            "rows", "differ from the manifest's", value=batch.num_rows, allowed=str(info.rows), where=where
        )
    if any(column.null_count for column in batch.columns):
        raise InputError("shard", "has null values", where=where)
    return batch


def view_of(batch: pa.RecordBatch, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Zero-copy NumPy view ``(rows, *shape)`` of a mapped numeric column."""
    column = batch.column(name)
    flat = (column.flatten() if shape else column).to_numpy(zero_copy_only=True)
    view = flat.reshape(batch.num_rows, *shape)
    return view.view(np.bool_) if name == "censored" else view


def manifest_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    m = manifest
    return _shapes(get_topology(m.topology), m.n_doses, m.n_times, m.n_pathways, m.schema_version)

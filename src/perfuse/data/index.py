"""The columns of a dataset that have no time axis, in one file: some 4 % of its bytes, enough to divide its curves.

A dataset that is read shard by shard from a URL gets one in its cache folder: ``index-SHA256.arrow``, an Arrow IPC file
with one record batch a shard, named by the hash of its content, which is compared whenever it is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from perfuse.data.manifest import Manifest
from perfuse.data.mapped import MappedShard
from perfuse.data.shard_files import LARGE, arrow_schema, file_sha256, manifest_shapes, sync
from perfuse.errors import InputError, PerfuseError


def _small_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in manifest_shapes(manifest).items() if name not in LARGE}


def index_bytes(manifest: Manifest) -> int:
    """About what an index takes on the disk."""
    per_curve = 64 + 8 * sum(_size(shape) for shape in _small_shapes(manifest).values())
    return per_curve * manifest.n_curves


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def write_index(folder: Path, manifest: Manifest, shards: Iterable[MappedShard]) -> None:
    """Write a dataset's index from its shards, which come in order; only one of them is held at a time.

    Raises:
        PerfuseError: when the disk refuses.
    """
    schema = arrow_schema(_small_shapes(manifest))
    part = folder / f".index.{os.getpid()}.part"
    try:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for shard in shards:
                writer.write_batch(shard.only(schema.names))
        sync(part)
        part.replace(folder / f"index-{file_sha256(part)}.arrow")
    except OSError as error:
        raise PerfuseError(f"{part} cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def open_index(folder: Path, manifest: Manifest) -> list[MappedShard] | None:
    """A dataset's index, mapped, shard by shard; None where there is none that is whole and fits the manifest.

    What is damaged or of another dataset is removed: it can be made again.
    """
    for path in sorted(folder.glob("index-*.arrow")):
        found = _open(path, manifest)
        if found is not None:
            return found
        path.unlink(missing_ok=True)
    return None


def _open(path: Path, manifest: Manifest) -> list[MappedShard] | None:
    shapes = _small_shapes(manifest)
    try:
        if path.name != f"index-{file_sha256(path)}.arrow":
            return None
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(arrow_schema(shapes)) or reader.num_record_batches != len(manifest.shards):
            return None
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch, shard in zip(batches, manifest.shards, strict=True):
            batch.validate()
            if batch.num_rows != shard.rows or any(column.null_count for column in batch.columns):
                return None
        return [MappedShard(batch, shapes, str(path)) for batch in batches]
    except (pa.ArrowException, OSError, InputError):
        return None

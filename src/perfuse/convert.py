"""``perfuse convert``: one set of curves between origin ``.npz``, dataset folder and tidy CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from perfuse.data.importers.origin import write_origin_npz
from perfuse.data.importers.tidy import write_tidy
from perfuse.data.sources import open_source, source_hash
from perfuse.data.store import write_dataset
from perfuse.data.table import CurveSource, CurveTable
from perfuse.errors import InputError

_SHARD_CURVES = 4096


def convert(source_path: Path, out: Path) -> int:
    """Read curves, write them in the form that ``out``'s name asks for; returns their number.

    Raises:
        InputError: if the input cannot be read, ``out`` exists or has an unknown ending, or the form cannot
            hold these curves.
    """
    suffix = out.suffix.lower()
    if suffix not in ("", ".npz", ".csv", ".parquet"):
        raise InputError("OUT", "has an unknown ending", value=out.name, allowed=".npz, .csv, .parquet or a folder")
    if out.exists():
        raise InputError("OUT", "exists already", value=str(out), hint="choose another name or remove it first")
    source = open_source(source_path)
    if suffix == "":
        generator: dict[str, object] = {"converted_from": source_path.name, "source_sha256": source_hash(source)}
        write_dataset(_chunks(source), out, generator=generator, seed=None)
    else:
        table = source.take(np.arange(len(source)))
        out.parent.mkdir(parents=True, exist_ok=True)
        (write_origin_npz if suffix == ".npz" else write_tidy)(table, out)
    return len(source)


def _chunks(source: CurveSource) -> Iterator[CurveTable]:
    for start in range(0, len(source), _SHARD_CURVES):
        yield source.take(np.arange(start, min(start + _SHARD_CURVES, len(source))))

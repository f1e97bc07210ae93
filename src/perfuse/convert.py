"""``perfuse convert``: curves between origin ``.npz``, dataset folder, tidy table and NONMEM file; a model as SBML."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from perfuse.data.sources import open_source, source_hash
from perfuse.data.store import write_dataset
from perfuse.data.table import CurveSource, CurveTable, dose_events, system_parameters
from perfuse.errors import InputError

_SHARD_CURVES = 4096
NONMEM_ENDING = ".nonmem.csv"
READ_FORMATS = ("dataset", "npz", "tidy", "nonmem")
WRITE_FORMATS = (*READ_FORMATS, "sbml")
_ENDINGS = {
    "": "dataset", ".npz": "npz", ".csv": "tidy", ".tsv": "tidy", ".parquet": "tidy", ".xml": "sbml", ".sbml": "sbml",
}  # fmt: skip


def format_of(path: Path, stated: str, option: str, formats: tuple[str, ...]) -> str:
    """The format of a file: the stated one, or what its name says; '' when the name says nothing.

    Args:
        path: The file, which need not exist.
        stated: A format, or '' for the name's; ``.nonmem.csv`` is NONMEM, any other ``.csv`` a tidy table.
        option: What the user stated it by, for the error.
        formats: Those allowed.

    Raises:
        InputError: for a format that is not allowed.
    """
    if stated and stated not in formats:
        raise InputError(option, "is unknown", value=stated, allowed=", ".join(formats))
    if stated:
        return stated
    if path.name.lower().endswith(NONMEM_ENDING):
        return "nonmem"
    found = "dataset" if path.is_dir() else _ENDINGS.get(path.suffix.lower(), "")
    return found if found in formats else ""


def convert(
    source_path: Path, out: Path, *, source_format: str = "", out_format: str = "", nonmem: Path | None = None,
    drug: Path | None = None, curve: str = "",
) -> int:  # fmt: skip
    """Read curves, write them in the form that ``out``'s name or ``out_format`` asks for; returns their number.

    Args:
        source_path: What to read.
        out: What to write; must not exist.
        source_format: ``dataset``, ``npz``, ``tidy`` or ``nonmem``; '' for what the name says (``--from``).
        out_format: One of these, or ``sbml``; '' for what the name says (``--to``).
        nonmem: TOML of ``NonmemOptions``, for a NONMEM file that is read (``--nonmem``).
        drug: Drug TOML, for a NONMEM file without the drug's parameters (``--drug``).
        curve: For SBML, which curve: its name, or its number from 0; '' when there is one only (``--curve``).

    Raises:
        InputError: if the input cannot be read, ``out`` exists or has an unknown ending, or the form cannot
            hold these curves.
        PerfuseError: if the disk refuses, or python-libsbml is not installed.
    """
    kind = format_of(out, out_format, "--to", WRITE_FORMATS)
    if not kind:
        raise InputError("OUT", "has an unknown ending", value=out.name,
                         allowed=".npz, .csv, .tsv, .parquet, .nonmem.csv, .xml or a folder")  # fmt: skip
    if out.exists():
        raise InputError("OUT", "exists already", value=str(out), hint="choose another name or remove it first")
    source = _read(source_path, source_format, nonmem, drug)
    if kind == "dataset":
        generator: dict[str, object] = {"converted_from": source_path.name, "source_sha256": source_hash(source)}
        write_dataset(_chunks(source), out, generator=generator, seed=None)
        return len(source)
    rows = np.arange(len(source)) if kind != "sbml" else np.asarray([curve_row(source, curve)])
    _writer(kind)(source.take(rows), out)
    return len(rows)


def curve_row(source: CurveSource, curve: str) -> int:
    """The row of a curve by its name or its number from 0; of the only one when nothing is said.

    Raises:
        InputError: when there is no such curve, or nothing is said and there are several.
    """
    if not curve:
        if len(source) == 1:
            return 0
        raise InputError("--curve", "is missing", allowed=f"a curve's name, or 0 to {len(source) - 1}",
                         hint="an SBML file holds one curve")  # fmt: skip
    named = np.flatnonzero(source.column("curve_id") == curve)
    if len(named):
        return int(named[0])
    if not (curve.isdecimal() and len(curve) < 10 and int(curve) < len(source)):
        raise InputError("--curve", "is no curve", value=curve, allowed=f"a curve's name, or 0 to {len(source) - 1}")
    return int(curve)


def write_curve_sbml(table: CurveTable, path: Path) -> Path:
    """The model and doses of a table's first curve as SBML, under the curve's name (see ``pk.sbml``)."""
    from perfuse.pk.sbml import write_sbml

    return write_sbml(system_parameters(table), dose_events(table), 0, path, name=str(table.curve_id[0]))


def _read(path: Path, stated: str, nonmem: Path | None, drug: Path | None) -> CurveSource:
    kind = format_of(path, stated, "--from", READ_FORMATS)
    if kind != "nonmem":
        for option, value in (("--nonmem", nonmem), ("--drug", drug)):
            if value is not None:
                raise InputError(
                    option, "is for NONMEM files", hint="say --from nonmem, or end the name in .nonmem.csv"
                )
        if stated and kind == "dataset" and path.exists() and not path.is_dir():
            raise InputError("--from", "does not fit", value=stated, hint=f"{path} is no folder")
        return _read_as(kind, path) if stated and kind != "dataset" else open_source(path)
    from perfuse.data.drug_file import read_drug_file
    from perfuse.data.importers.nonmem import NonmemOptions, read_nonmem

    options = None if nonmem is None else NonmemOptions.from_toml(nonmem)
    return read_nonmem(path, options, drug=None if drug is None else read_drug_file(drug)[0])


def _read_as(kind: str, path: Path) -> CurveTable:
    """A file of a stated kind, whatever its ending."""
    if kind == "npz":
        from perfuse.data.importers.origin import read_origin_npz

        return read_origin_npz(path)
    from perfuse.data.importers.tidy import read_tidy

    return read_tidy(path)


def _writer(kind: str) -> Callable[[CurveTable, Path], object]:
    """What writes a table as a file of a kind."""
    if kind == "npz":
        from perfuse.data.importers.origin import write_origin_npz

        return write_origin_npz
    if kind == "nonmem":
        from perfuse.data.importers.nonmem import write_nonmem

        return write_nonmem
    if kind == "sbml":
        return write_curve_sbml
    from perfuse.data.importers.tidy import write_tidy

    return write_tidy


def _chunks(source: CurveSource) -> Iterator[CurveTable]:
    for start in range(0, len(source), _SHARD_CURVES):
        yield source.take(np.arange(start, min(start + _SHARD_CURVES, len(source))))

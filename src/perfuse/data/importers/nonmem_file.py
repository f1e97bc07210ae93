"""A NONMEM data file as text columns: header, comments, separators, missing values, names.

Axis legend: R records.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from perfuse.errors import InputError
from perfuse.files import check_file

NUMBERS = ("ID", "TIME", "AMT", "RATE", "DUR", "II", "ADDL", "SS", "DV", "EVID", "MDV", "CMT", "BLQ", "LLOQ")
"""Columns that NONMEM, or custom, knows; every one a number."""
TEXTS = ("DRUG", "CURVE", "MATRIX", "ORGAN", "TOPOLOGY")
"""Columns of ours that NONMEM does not read (they stand last, after what ``$INPUT`` names)."""
_ALIASES = {"WT": "body_weight_kg", "CENS": "BLQ", "BQL": "BLQ"}
_DATES = ("DATE", "DAT1", "DAT2", "DAT3")
_MISSING = ("", ".", "NA")
MAX_BYTES = 1 << 30


def read_records(path: Path, columns: Mapping[str, str], ours: frozenset[str]) -> tuple[pl.DataFrame, dict[str, str]]:
    """The file's records as text, null where missing, with ``_row`` (line of the file).

    The first line names the columns, in any case; commas, or blanks and tabs, separate them. Lines that begin with
    ``#``, ``;``, ``@`` or a cell ``C`` are comments; so is a repeated header.

    Args:
        path: The file.
        columns: The file's names that stand for others.
        ours: Names of our covariates, such as ``kp_liver``.

    Returns:
        The records under NONMEM's names in capitals and our covariates' names; and what the file calls each.

    Raises:
        InputError: for a file that is no such table, with the line.
    """
    where = str(path)
    header, lines = _lines(Path(path), where)
    names, shown = _names(header, columns, ours, where)
    data: dict[str, list[str | None]] = {name: [] for name in names if name}
    rows: list[int] = []
    for number, cells in lines:
        if len(cells) != len(names):
            raise InputError("record", "has a wrong number of cells", value=len(cells), allowed=str(len(names)),
                             where=f"{where}: row {number}")  # fmt: skip
        rows.append(number)
        for name, cell in zip(names, cells, strict=True):
            if name:
                data[name].append(None if cell in _MISSING else cell)
    if not rows:
        raise InputError("table", "holds no record", allowed=">= 1", where=where)
    frame = pl.DataFrame({"_row": rows} | data, schema={"_row": pl.Int64} | dict.fromkeys(data, pl.String))
    return frame, shown


def _lines(path: Path, where: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header cells, and the records' line numbers and cells."""
    check_file(path, "file", MAX_BYTES)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError("file", "cannot be read", value=where, hint=error.strerror or "") from None
    except UnicodeDecodeError as error:
        raise InputError("file", "is no text", value=where, hint=str(error)) from None
    header: list[str] = []
    records = []
    commas = False
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        if not header:
            commas = "," in line
            header = [cell.upper() for cell in _cells(line.lstrip("#@; "), commas, number, where)]
            continue
        if line.lstrip()[0] in "#;@":
            continue
        cells = _cells(line, commas, number, where)
        if cells[0].upper() != "C" and [cell.upper() for cell in cells] != header:
            records.append((number, cells))
    if not header:
        raise InputError("file", "is empty", value=where)
    return header, records


def _cells(line: str, commas: bool, number: int, where: str) -> list[str]:
    if not commas:
        return line.split()
    try:
        return [cell.strip() for cell in next(csv.reader([line], strict=True))]
    except csv.Error as error:
        raise InputError("record", "is no CSV", hint=str(error), where=f"{where}: row {number}") from None


def _names(
    header: list[str], columns: Mapping[str, str], ours: frozenset[str], where: str
) -> tuple[list[str], dict[str, str]]:
    """Our name of each column, empty for one that is passed over; and what the file calls ours."""
    given = {key.upper(): value for key, value in columns.items()}
    absent = [key for key in given if key not in header]
    if absent:
        raise InputError("columns", "names a column that the file lacks", value=absent[0], where=where,
                         allowed=", ".join(header))  # fmt: skip
    names: list[str] = []
    shown: dict[str, str] = {}
    for cell in header:
        if cell in _DATES:
            raise InputError(cell, "is not read", where=where, hint="give TIME in units since the first record")
        name = _ours(given.get(cell, cell), ours)
        if name in shown:
            raise InputError(cell, f"says the same as {shown[name]}", where=where, hint="remove one of them")
        if not name and cell in given:
            raise InputError("columns", "gives a name that is unknown", value=given[cell], where=where,
                             allowed=", ".join((*NUMBERS, *TEXTS, "WT", "and covariates such as FUP")))  # fmt: skip
        if re.fullmatch(r"KP_.+|VOLUME_.+_L|FLOW_.+_L_H|PS_.+_L_H", cell) and not name:
            raise InputError(cell, "names an unknown organ", where=where, hint="see docs/exchange.md for the columns")
        names.append(name)
        if name:
            shown[name] = cell
    for name in ("ID", "TIME", "AMT", "DV"):
        if name not in shown:
            raise InputError(f"column {name}", "is missing", where=where, allowed=", ".join(header),
                             hint="the first line names the columns; columns = {CONC = \"DV\"} renames")  # fmt: skip
    return names, shown


def _ours(cell: str, ours: frozenset[str]) -> str:
    upper, lower = cell.upper(), cell.lower()
    if upper in NUMBERS or upper in TEXTS:
        return upper
    return _ALIASES.get(upper, lower if lower in ours else "")

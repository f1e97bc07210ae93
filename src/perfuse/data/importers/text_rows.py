"""CSV as rows of text: cells are read, never evaluated, and every refusal names the file and the line."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from perfuse.errors import InputError
from perfuse.files import check_file
from perfuse.pk.checks import representable

MAX_BYTES = 2**28
"""Largest file that is read: rows of text take some ten times as much memory."""


class TextRow:
    """One row: stripped text by column, with its place for messages.

    Args:
        cells: Text by column name; an absent column reads as empty.
        where: File and line.
    """

    def __init__(self, cells: Mapping[str, str], where: str) -> None:
        self.cells = cells
        self.where = where

    def text(self, column: str) -> str:
        """The cell's text, '' when empty or absent."""
        return self.cells.get(column, "")

    def number(self, column: str) -> float | None:
        """The cell as a finite float, None when empty.

        Raises:
            InputError: if the text is no number, NaN or infinite.
        """
        text = self.text(column)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            raise InputError(column, "is not a number", value=text, where=self.where) from None
        if not math.isfinite(value):
            raise InputError(column, "is not finite", value=text, where=self.where)
        return representable(column, value, self.where)

    def numbers(self, column: str) -> tuple[float, ...]:
        """A list such as ``6.8,8.21`` or ``6.8; 8.21`` as floats; empty gives ()."""
        parts = self.text(column).replace(";", ",").split(",")
        rows = (TextRow({column: part.strip()}, self.where).number(column) for part in parts)
        return tuple(value for value in rows if value is not None)

    def flag(self, column: str) -> bool:
        """True for ``true``, ``yes`` or ``1``; False for ``false``, ``no``, ``0`` or empty.

        Raises:
            InputError: for anything else.
        """
        text = self.text(column).lower()
        if text in ("true", "yes", "1"):
            return True
        if text in ("", "false", "no", "0"):
            return False
        raise InputError(column, "is no truth value", value=text, allowed="true, false", where=self.where)


def read_rows(path: Path, required: Iterable[str]) -> tuple[list[str], list[TextRow]]:
    """Column names and rows of a CSV file with a header line; wholly empty lines are skipped.

    Raises:
        InputError: for a file that cannot be read as UTF-8 CSV, has no rows, repeats a column, has a row of the
            wrong length, or lacks a required column.
    """
    check_file(path, "file", MAX_BYTES)
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(c.strip() for c in row)]
    except OSError as error:
        raise InputError("file", "cannot be read", value=str(path), hint=error.strerror or "") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError("file", "is no CSV text", value=str(path), hint=str(error)) from None
    if not lines:
        raise InputError("file", "is empty", value=str(path))
    header = lines[0][1]
    missing = [column for column in required if column not in header]
    if missing:
        every = f"all missing: {', '.join(missing)}"
        raise InputError(f"column {missing[0]}", "is missing", hint=every, where=str(path))
    repeated = [column for column, count in Counter(header).items() if count > 1]
    if repeated:
        raise InputError(f"column {repeated[0]}", "appears twice", where=str(path))
    rows = []
    width = len(header)
    for line, cells in lines[1:]:
        where = f"{path}: line {line}"
        if len(cells) != width:
            raise InputError("row", "has a wrong number of cells", value=len(cells), allowed=str(width), where=where)
        rows.append(TextRow(dict(zip(header, cells, strict=True)), where))
    if not rows:
        raise InputError("rows", "are missing: there is only a header", where=str(path))
    return header, rows

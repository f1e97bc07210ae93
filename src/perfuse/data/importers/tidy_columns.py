"""Columns of a tidy table: reading the file, checking names, turning text into numbers in Perfuse's units.

A missing value is an empty cell, ``NA`` or ``.``; ``NaN`` is a number that went wrong and is refused.

Axis legend: R rows of the file.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl

from perfuse.data.table import N_PKA
from perfuse.data.units import conversion_factor
from perfuse.errors import InputError
from perfuse.files import check_file
from perfuse.pk.checks import GREATEST_MAGNITUDE, LEAST_MAGNITUDE, representable
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS
from perfuse.pk.topology import Topology, get_topology

REQUIRED = ("drug", "subject", "event", "time", "time_unit")
EVENT_COLUMNS = (
    *REQUIRED, "dose", "dose_unit", "duration", "duration_unit", "route", "matrix", "organ", "conc", "conc_unit",
    "lloq", "lloq_unit", "topology", "addl", "ii", "ii_unit",
)  # fmt: skip
TOPOLOGIES = ("hub", "circulation", "circulation-ps")
SCALARS = ("body_weight_kg", "fup", "bp_ratio", "loq_mg_l", "ka_1_h", "lag_h", "f_abs")
DESCRIPTORS = (
    "mw_g_mol", "logp", *(f"pka_{kind}_{i}" for kind in ("acid", "base") for i in range(1, N_PKA + 1)),
    "clint_ul_min_million_cells",
)  # fmt: skip
MAX_PATHWAYS = 9
PATHWAYS = tuple(f"{name}_{i}" for i in range(1, MAX_PATHWAYS + 1) for name in ("vmax_mg_h", "km_u_mg_l"))
_ORGAN_COLUMN = re.compile(r"(?:volume_(?P<volume>.+)_l|flow_(?P<flow>.+)_l_h|kp_(?P<kp>.+)|ps_(?P<ps>.+)_l_h)")
_RESERVED = re.compile(
    r"(volume|flow|kp|cl|clint|body_?weight|mw|fup?|bp|conc|lloq|loq|dose|duration|time|route|organ|matrix"
    r"|ps|vmax|km|ka|lag|f_abs|logp|pka|addl|ii)(_.*)?|.*_unit"
)
"""Names so close to ours that passing over them quietly would hide a slip of the pen or a wrong unit."""
_MISSING = ("", "NA", ".")
MAX_BYTES = 2**31
MAX_COLUMNS = 10_000
MAX_CELLS = 10**8
_MAX_HEADER_BYTES = 2**20


def read_frame(path: Path) -> pl.DataFrame:
    """The file as text columns, null where missing, with ``_row`` (line of a CSV, header is 1; row of a Parquet).

    Raises:
        InputError: if the file is no table, has no row, or a column twice.
    """
    where = str(path)
    check_file(path, "table", MAX_BYTES)
    frame = read_parquet(path, where) if path.suffix.lower() == ".parquet" else _read_csv(path, where)
    names = {name: name.strip().removeprefix("\ufeff") for name in frame.columns}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice or "_row" in names.values():
        problem = "appears twice" if twice else "is a name that Perfuse uses itself"
        raise InputError(f"column {twice[0] if twice else '_row'}", problem, where=where)
    frame = frame.rename(names)
    nested = [n for n, t in frame.schema.items() if t.is_nested() or t == pl.Object or t == pl.Binary]
    if nested:
        raise InputError(nested[0], "holds no plain values", value=frame.schema[nested[0]], where=where)
    try:
        frame = frame.with_columns(pl.all().cast(pl.String).str.strip_chars())
    except pl.exceptions.PolarsError as error:  # a duration, a time of day too far off, ...
        raise InputError("table", "holds values that are no text or number", hint=str(error), where=where) from None
    frame = frame.with_columns(pl.when(pl.all().is_in(_MISSING)).then(None).otherwise(pl.all()).name.keep())
    frame = frame.with_row_index("_row", offset=1 if path.suffix.lower() == ".parquet" else 2)
    if frame.height == 0:
        raise InputError("table", "holds no row", allowed=">= 1", where=where)
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        raise InputError(missing[0], "column is missing", allowed=f"the columns {', '.join(REQUIRED)}", where=where)
    return frame


def _read_csv(path: Path, where: str) -> pl.DataFrame:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open("rb") as file:  # a line of endless columns takes polars minutes
        header = file.readline(_MAX_HEADER_BYTES)
    if header.count(separator.encode()) >= MAX_COLUMNS or len(header) == _MAX_HEADER_BYTES:
        raise InputError("table", "has too many columns", allowed=f"<= {MAX_COLUMNS}", where=where)
    try:
        return pl.read_csv(path, separator=separator, infer_schema=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError) as error:
        hint = str(error).splitlines()[0] if str(error) else ""
        raise InputError("table", "cannot be read", hint=hint, where=where) from None


def read_parquet(path: Path, where: str) -> pl.DataFrame:
    """A Parquet file, read by Arrow; what its footer declares is checked before a page is.

    Runs of equal values cost nothing on disk, so that a small file may declare any number of rows.

    Raises:
        InputError: for what is no Parquet, or has too many columns or cells.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns, cells = file.metadata.num_columns, file.metadata.num_columns * file.metadata.num_rows
            if columns > MAX_COLUMNS or cells > MAX_CELLS:
                raise InputError("table", "is too large", value=f"{columns} columns, {cells} cells", where=where,
                                 allowed=f"<= {MAX_COLUMNS} columns, <= {MAX_CELLS} cells")  # fmt: skip
            nested = [f for f in file.schema_arrow if pa.types.is_nested(f.type)]
            if nested:
                raise InputError(nested[0].name, "holds no plain values", value=nested[0].type, where=where)
            table = file.read(use_threads=False)
        table.validate(full=True)
        return pl.DataFrame(pl.from_arrow(table))
    except InputError:
        raise
    except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, TypeError,
            NotImplementedError, MemoryError, OverflowError) as error:  # fmt: skip
        raise InputError("table", "cannot be read", hint=str(error)[:300], where=where) from None


def check_names(frame: pl.DataFrame, topology: Topology, where: str) -> None:
    """Refuse unknown organs in column names, and names that look like ours but are not.

    Columns that resemble none of ours (``study``, ``reference``) are passed over.
    """
    known = {*EVENT_COLUMNS, *SCALARS, *DESCRIPTORS, *PATHWAYS, *topology.elimination_names, "_row"}
    limited = [exchange.name for exchange in topology.exchanges]
    other = {name for t in TOPOLOGIES for name in get_topology(t).elimination_names}
    for name in frame.columns:
        match = _ORGAN_COLUMN.fullmatch(name)
        organ = match and next(g for g in match.groups() if g)
        if organ and organ not in ORGAN_INDEX:
            raise InputError(name, "names an unknown organ", value=organ, allowed=", ".join(ORGANS), where=where)
        if match and match["ps"] and match["ps"] not in limited:
            raise InputError(
                name, f"names an organ that is not permeability-limited on topology {topology.name}", value=match["ps"],
                allowed=", ".join(limited) or "none", where=where,
            )  # fmt: skip
        if name in other and name not in known:
            raise InputError(
                name, f"is no elimination of topology {topology.name}", where=where,
                allowed=", ".join(topology.elimination_names),
            )  # fmt: skip
        if not organ and name not in known and _RESERVED.fullmatch(name):
            raise InputError(
                name, "is no known column", where=where, hint="rename or remove it",
                allowed=", ".join(sorted(known - {"_row", *PATHWAYS[2:]})),
            )  # fmt: skip


def topology_of(frame: pl.DataFrame, given: Topology | None, where: str) -> Topology:
    """The one topology of a file: the caller's, or its ``topology`` column's (both must agree)."""
    named: list[str] = []
    if "topology" in frame.columns:
        named = sorted(frame["topology"].drop_nulls().unique().to_list())
    if len(named) > 1:
        raise InputError(
            "topology", "differs between rows", value=", ".join(named), allowed="one per file", where=where
        )
    if given is not None:
        if named and named[0] != given.name:
            raise InputError(
                "topology", "differs from the one asked for", value=named[0], allowed=given.name, where=where
            )
        return given
    if named and named[0] not in TOPOLOGIES:
        raise InputError("topology", "is unknown", value=named[0], allowed=", ".join(TOPOLOGIES), where=where)
    if not named:
        raise InputError("topology", "is missing", allowed=f"a column with one of {', '.join(TOPOLOGIES)}", where=where)
    return get_topology(named[0])


def row_place(frame: pl.DataFrame, where: str, i: int) -> str:
    """``file: row 7`` for the i-th row of a frame."""
    return f"{where}: row {frame['_row'][i]}"


def text(frame: pl.DataFrame, name: str) -> pl.Series:
    """A column, or nulls when the file has no such column."""
    return frame[name] if name in frame.columns else pl.Series(name, [None] * frame.height, dtype=pl.String)


def numbers(frame: pl.DataFrame, name: str, where: str, shown: str = "") -> np.ndarray:
    """A column as float64, NaN where missing; ``shown`` is what the file calls it.

    Raises:
        InputError: naming the first cell that is no finite number.
    """
    if name not in frame.columns:
        return np.full(frame.height, np.nan)
    raw = text(frame, name)
    value = raw.cast(pl.Float64, strict=False).to_numpy(writable=True)  # null reads as NaN
    odd = ~np.isfinite(value)
    if int(odd.sum()) > raw.null_count():
        i = int(np.argmax(odd & raw.is_not_null().to_numpy()))
        raise InputError(shown or name, "is no finite number", value=raw[i], where=row_place(frame, where, i))
    size = np.abs(value)
    extreme = (size > GREATEST_MAGNITUDE) | ((size < LEAST_MAGNITUDE) & (size > 0))
    if extreme.any():
        i = int(np.argmax(extreme))
        representable(shown or name, float(value[i]), row_place(frame, where, i))
    return value


def in_unit(
    frame: pl.DataFrame, name: str, values: np.ndarray, target: str, where: str,
    mw_g_mol: np.ndarray | None = None, body_weight_kg: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """``values`` of column ``name`` converted by its unit column; every value needs a unit.

    Args:
        frame: The rows.
        name: Column; its unit column is ``<name>_unit``.
        values: The column's numbers, NaN where there is none.
        target: Perfuse's unit.
        where: File, for errors.
        mw_g_mol: Molecular weight of each row, NaN where unknown.
        body_weight_kg: Body weight of each row, NaN where unknown.
    """
    present = ~np.isnan(values)
    units = text(frame, f"{name}_unit")
    refuse(frame, present & units.is_null().to_numpy(), where, f"{name}_unit", "is missing", allowed=f"e.g. {target}")
    nothing = np.full(len(values), np.nan)
    mw = nothing if mw_g_mol is None else mw_g_mol
    weight = nothing if body_weight_kg is None else body_weight_kg
    factor = np.ones(len(values))
    for unit in units.filter(pl.Series(present)).unique().sort().to_list():
        rows = np.flatnonzero(present & (units == unit).fill_null(False).to_numpy())
        with suppress(InputError):
            factor[rows] = conversion_factor(unit, target, name)
            continue
        for i in rows:  # needs a molecular or body weight, or is wrong
            factor[i] = conversion_factor(
                unit, target, name, row_place(frame, where, int(i)),
                None if np.isnan(mw[i]) else float(mw[i]), None if np.isnan(weight[i]) else float(weight[i]),
            )  # fmt: skip
    return values * factor


def refuse(
    frame: pl.DataFrame,
    bad: np.ndarray | pl.Series,
    where: str,
    field: str,
    problem: str = "is not allowed",
    *,
    values: np.ndarray | pl.Series | None = None,
    unit: str = "",
    allowed: str = "",
    hint: str = "",
) -> None:
    """Raise ``InputError`` for the first bad row, naming it; ``values`` holds the rows' values to show."""
    flags = np.asarray(bad, dtype=bool)
    if flags.any():
        i = int(np.argmax(flags))
        value = None if values is None else values[i]
        shown = float(value) if isinstance(value, np.floating) else value
        place = row_place(frame, where, i)
        raise InputError(field, problem, value=shown, unit=unit, allowed=allowed, hint=hint, where=place)

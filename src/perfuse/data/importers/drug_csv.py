"""A CSV of drugs x doses, as curves to predict: one row per dose, rows of one curve share its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from perfuse.data.importers.text_rows import TextRow, read_rows
from perfuse.data.inputs import DEFAULT_KP_METHOD, Dose, curve_table_for
from perfuse.data.stacking import stack_tables
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.pk.drug import OPTIONAL_NUMBERS, Drug, located
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import Topology

REQUIRED_COLUMNS = ("name", "mw_g_mol", "logp", "fup", "dose_mg")
_LISTS = ("pka_acid", "pka_base")
_KP_COLUMNS = tuple(f"kp_{organ}" for organ in ORGANS[1:])
_PS_COLUMNS = tuple(f"ps_l_h_{organ}" for organ in ORGANS[1:])
_PATHWAY = ("vmax_mg_h", "km_u_mg_l")
_DOSE_COLUMNS = ("dose_mg", "dose_time_h", "duration_h", "route")
COLUMNS = (
    *REQUIRED_COLUMNS, *_LISTS, *OPTIONAL_NUMBERS, "liver_model", *_PATHWAY, *_KP_COLUMNS, *_PS_COLUMNS,
    *_DOSE_COLUMNS[1:],
    "body_weight_kg", "matrix", "curve_id",
)  # fmt: skip
_REFERENCE_BODY_WEIGHT_KG = 70.0


def _required_number(row: TextRow, column: str) -> float:
    value = row.number(column)
    if value is None:
        raise InputError(column, "is empty", where=row.where)
    return value


def _drug(row: TextRow) -> Drug:
    data: dict[str, object] = {"name": row.text("name")}
    data |= {column: _required_number(row, column) for column in ("mw_g_mol", "logp", "fup")}
    data |= {column: row.numbers(column) for column in _LISTS}
    data |= {column: value for column in OPTIONAL_NUMBERS if (value := row.number(column)) is not None}
    if row.text("liver_model"):
        data["liver_model"] = row.text("liver_model")
    data["kp"] = {c.removeprefix("kp_"): value for c in _KP_COLUMNS if (value := row.number(c)) is not None}
    data["ps_l_h"] = {c.removeprefix("ps_l_h_"): value for c in _PS_COLUMNS if (value := row.number(c)) is not None}
    pathway = {column: value for column in _PATHWAY if (value := row.number(column)) is not None}
    if pathway:
        data["saturable"] = [{"name": "saturable", **pathway}]
    return Drug.from_mapping(data, where=row.where)


def _dose(row: TextRow) -> Dose:
    time_h, amount_mg, duration_h = (
        row.number("dose_time_h"),
        _required_number(row, "dose_mg"),
        row.number("duration_h"),
    )
    try:
        return Dose(time_h or 0.0, amount_mg, duration_h or 0.0, row.text("route"))
    except InputError as error:
        raise located(error, row.where) from None


def _check_same(rows: list[TextRow], curve_id: str) -> None:
    """Rows of one curve may differ in their dose only."""
    for row in rows[1:]:
        for column in COLUMNS:
            if column not in _DOSE_COLUMNS and row.text(column) != rows[0].text(column):
                raise InputError(
                    column, f"differs between doses of curve {curve_id}", value=row.text(column) or "empty",
                    allowed=rows[0].text(column) or "empty", hint="give each curve its own curve_id", where=row.where,
                )  # fmt: skip


def read_drug_dose_csv(
    path: Path, topology: Topology, time_h: np.ndarray, kp_method: str = DEFAULT_KP_METHOD
) -> CurveTable:
    """Curves to predict from a CSV of drugs x doses.

    Columns: ``name, mw_g_mol, logp, fup, dose_mg`` and, where known, ``pka_acid, pka_base`` (``6.8; 8.2``),
    ``bp_ratio``, one of ``clint_ul_min_million_cells, clint_ul_min_mg, clint_l_h, cl_hepatic_l_h, cl_total_l_h``, and
    the other numbers of ``pk.drug.Drug`` (``cl_renal_l_h``, ``fu_inc``, ``ka_1_h``, ``lag_h``, ``fa``, ``fg`` ...),
    ``liver_model``, one saturable pathway ``vmax_mg_h, km_u_mg_l`` (a drug TOML takes more), ``kp_<organ>``,
    ``ps_l_h_<organ>``, ``dose_time_h`` (0), ``duration_h`` (0), ``route`` (intravenous), ``body_weight_kg`` (70),
    ``matrix`` (plasma) and ``curve_id`` (the name). Rows with the same curve_id are doses of one curve. Meanings,
    units and ranges are those of ``pk.drug.Drug`` and ``data.inputs.Dose``.

    Args:
        path: The CSV file.
        topology: ``hub`` or ``circulation``.
        time_h: Times wanted for every curve, h, ``(T,)``, increasing.
        kp_method: A key of ``pk.partition.KP_METHODS``.

    Raises:
        InputError: one line naming file, line, column and value: a missing or unknown column, text where a number
            belongs, a value out of range, a drug that differs between its doses, an oral dose without ``ka_1_h``.
    """
    header, rows = read_rows(path, REQUIRED_COLUMNS)
    for column in header:
        if column not in COLUMNS:
            raise InputError(f"column {column}", "is unknown", allowed=", ".join(COLUMNS), where=str(path))
    by_curve: dict[str, list[TextRow]] = {}
    for row in rows:
        by_curve.setdefault(row.text("curve_id") or row.text("name"), []).append(row)
    tables = []
    for curve_id, group in by_curve.items():
        _check_same(group, curve_id)
        first = group[0]
        drug, doses = _drug(first), [_dose(row) for row in group]
        weight = first.number("body_weight_kg")
        try:
            table = curve_table_for(
                drug, topology, _REFERENCE_BODY_WEIGHT_KG if weight is None else weight, doses, time_h,
                first.text("matrix") or "plasma", curve_id=curve_id, kp_method=kp_method,
            )  # fmt: skip
        except InputError as error:
            raise located(error, first.where) from None
        tables.append(table)
    return stack_tables(tables)

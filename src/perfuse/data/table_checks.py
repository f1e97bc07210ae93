"""What a table of curves may hold: shapes, signs, ranges; the first value that cannot be is named.

Axis legend: C curves, O reported organs, M eliminations, X exchanges, P saturable pathways, D dose events, T times.
"""

from __future__ import annotations

import numpy as np

from perfuse.data.table import N_PKA, CurveTable
from perfuse.errors import InputError
from perfuse.pk.matrix import TISSUE_MATRIX, check_blood_matrix
from perfuse.pk.partition import KP_ALLOWED, KP_RANGE
from perfuse.pk.physiology import ORGANS
from perfuse.pk.system import ORAL

SHORTEST_INFUSION_H = 1e-6


def _refuse(table: CurveTable, bad: np.ndarray, field: str, values: np.ndarray, where: str, **text: str) -> None:
    """Raise for the first True of ``bad`` (leading axis: curves)."""
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        name = f"curve {table.curve_id[at[0]]}"
        organ = f"[{ORGANS[at[1]]}]" if len(at) > 1 and values.shape[1] == len(ORGANS) else ""
        raise InputError(field + organ, value=float(values[at]), where=f"{where}: {name}" if where else name, **text)


def check_columns(t: CurveTable, where: str = "") -> None:
    """Refuse the first value that cannot be, naming curve, column and what is allowed.

    Raises:
        InputError: see above.
    """
    _check_shapes(t, where)
    _check_system(t, where)
    _check_doses(t, where)
    _check_observations(t, where)


def _check_shapes(t: CurveTable, where: str) -> None:
    c, o, m, d, n = len(t), len(ORGANS), t.topology.n_eliminations, t.dose_mg.shape[-1], t.time_h.shape[-1]
    x, p = t.topology.n_exchanges, t.vmax_mg_h.shape[-1]
    if c == 0:
        raise InputError("curves", "are missing: there is not one", allowed=">= 1", where=where)
    shapes = {
        "curve_id": (c,), "compound_id": (c,), "group_id": (c,), "body_weight_kg": (c,), "volume_l": (c, o),
        "flow_l_h": (c, o), "kp": (c, o), "elimination_l_h": (c, m), "fup": (c,), "bp_ratio": (c,),
        "dose_time_h": (c, d), "dose_mg": (c, d), "dose_duration_h": (c, d), "time_h": (c, n),
        "conc_mg_l": (c, o, n), "censored": (c, o, n), "loq_mg_l": (c,), "matrix": (c,),
        "dose_route": (c, d), "ka_1_h": (c,), "lag_h": (c,), "f_abs": (c,), "ps_l_h": (c, x), "vmax_mg_h": (c, p),
        "km_u_mg_l": (c, p), "mw_g_mol": (c,), "logp": (c,), "pka_acid": (c, N_PKA), "pka_base": (c, N_PKA),
        "clint_ul_min_million_cells": (c,),
    }  # fmt: skip
    for name, shape in shapes.items():
        if t.column(name).shape != shape:
            raise InputError(name, "has a wrong shape", value=t.column(name).shape, allowed=str(shape), where=where)


def _not_given(values: np.ndarray) -> np.ndarray:
    """Rows that are NaN throughout: the quantity is not given, which is allowed where descriptors are."""
    return np.isnan(values).all(-1, keepdims=True)


def _check_system(t: CurveTable, where: str) -> None:
    described = ~np.isnan(np.column_stack((t.mw_g_mol, t.logp))).any(-1, keepdims=True)
    no_kp = described & _not_given(t.kp[:, 1:])
    _refuse(t, ~((t.kp >= KP_RANGE[0]) & (t.kp <= KP_RANGE[1]) | no_kp), "kp", t.kp, where, allowed=KP_ALLOWED)
    for name, unit in (("volume_l", "L"), ("bp_ratio", ""), ("body_weight_kg", "kg"), ("loq_mg_l", "mg/L")):
        v = t.column(name)
        _refuse(t, ~((v > 0) & np.isfinite(v)), name, v, where, unit=unit, allowed="> 0 and finite")
    _refuse(t, ~((t.fup > 0) & (t.fup <= 1)), "fup", t.fup, where, allowed="(0, 1]")
    absent = {"elimination_l_h": described & _not_given(t.elimination_l_h), "ps_l_h": _not_given(t.ps_l_h)}
    for name, unit in (("flow_l_h", "L/h"), ("elimination_l_h", "L/h"), ("ps_l_h", "L/h"), ("vmax_mg_h", "mg/h")):
        v = t.column(name)
        bad = ~((v >= 0) & np.isfinite(v)) & ~absent.get(name, np.zeros((1, 1), dtype=bool))
        _refuse(t, bad, name, v, where, unit=unit, allowed=">= 0 and finite")
    _refuse(t, ~((t.km_u_mg_l > 0) & np.isfinite(t.km_u_mg_l)), "km_u_mg_l", t.km_u_mg_l, where, unit="mg/L",
            allowed="> 0 and finite")  # fmt: skip
    saturable = (t.vmax_mg_h > 0) & (t.topology.saturable_node is None)
    _refuse(t, saturable, "vmax_mg_h", t.vmax_mg_h, where, unit="mg/h", allowed=f"0 on topology {t.topology.name}")
    _check_descriptors(t, where)


def _check_descriptors(t: CurveTable, where: str) -> None:
    for name, low, high, unit in (
        ("mw_g_mol", 1.0, 1e6, "g/mol"), ("logp", -15.0, 15.0, ""), ("pka_acid", -20.0, 30.0, ""),
        ("pka_base", -20.0, 30.0, ""), ("clint_ul_min_million_cells", 0.0, 1e6, "uL/min/10^6 cells"),
    ):  # fmt: skip
        v = t.column(name)
        bad = ~((v >= low) & (v <= high) | np.isnan(v))
        _refuse(t, bad, name, v, where, unit=unit, allowed=f"[{low:g}, {high:g}], or empty")


def _check_doses(t: CurveTable, where: str) -> None:
    for name, unit in (("dose_mg", "mg"), ("dose_duration_h", "h"), ("lag_h", "h")):
        v = t.column(name)
        _refuse(t, ~((v >= 0) & np.isfinite(v)), name, v, where, unit=unit, allowed=">= 0 and finite")
    _refuse(t, ~((t.f_abs > 0) & (t.f_abs <= 1)), "f_abs", t.f_abs, where, allowed="(0, 1]")
    known = (t.dose_route == 0) | (t.dose_route == ORAL)
    _refuse(t, ~known, "dose_route", t.dose_route, where, allowed=f"0 (intravenous) or {ORAL} (oral)")
    oral = (t.dose_route == ORAL) & (t.dose_mg > 0)
    nowhere = oral & (t.topology.absorption_node is None)
    _refuse(t, nowhere, "dose_route", t.dose_route, where, allowed=f"0 on topology {t.topology.name}")
    slow = ~((t.ka_1_h > 0) & np.isfinite(t.ka_1_h)) & (oral.any(1) | ~np.isnan(t.ka_1_h))
    _refuse(t, slow, "ka_1_h", t.ka_1_h, where, unit="1/h", allowed="> 0 and finite for an oral dose")
    infused = oral & (t.dose_duration_h > 0)
    _refuse(t, infused, "dose_duration_h", t.dose_duration_h, where, unit="h", allowed="0 for an oral dose")
    short = (t.dose_duration_h > 0) & (t.dose_duration_h < SHORTEST_INFUSION_H)
    _refuse(t, short, "dose_duration_h", t.dose_duration_h, where, unit="h", allowed="0 (bolus) or >= 1e-6")
    _refuse(t, ~np.isfinite(t.dose_time_h), "dose_time_h", t.dose_time_h, where, unit="h", allowed="finite")
    total = t.dose_mg.sum(-1)
    _refuse(t, ~(total > 0), "dose_mg", total, where, unit="mg", allowed="> 0 in total")


def _check_observations(t: CurveTable, where: str) -> None:
    time = t.time_h
    _refuse(t, ~((time >= 0) | np.isnan(time)) | np.isinf(time), "time_h", time, where, unit="h", allowed=">= 0")
    unsorted = np.zeros(time.shape, dtype=bool)
    unsorted[:, 1:] = ~(np.diff(time, axis=1) > 0) & ~np.isnan(time[:, 1:])
    _refuse(t, unsorted, "time_h", time, where, unit="h", allowed="strictly increasing", hint="sort the rows by time")
    conc = t.conc_mg_l
    bad = ~((conc >= 0) | np.isnan(conc)) | np.isinf(conc)
    _refuse(t, bad, "conc_mg_l", conc, where, unit="mg/L", allowed=">= 0 and finite")
    has_blood = ~np.isnan(t.conc_mg_l[:, 0]).all(-1)
    for matrix, measured in sorted({(str(m), bool(b)) for m, b in zip(t.matrix, has_blood, strict=True)}):
        if measured or matrix != TISSUE_MATRIX:  # a curve of tissues alone has no blood row to speak of
            first = t.curve_id[int(np.argmax(t.matrix == matrix))]
            check_blood_matrix(matrix, f"{where}: curve {first}" if where else f"curve {first}")

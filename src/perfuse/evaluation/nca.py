"""Non-compartmental analysis of whole tables: one row per curve, organ and dose, with the reasons for what is missing.

Axis legend: C curves, O organs, R rows (a curve in an organ), D dose events, T times.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.exposure import Exposure, exposure
from perfuse.pk.exposure_reasons import REASON_TEXT, Reason, flag_text
from perfuse.pk.exposure_rules import NcaRules, nca_rules
from perfuse.pk.interval_exposure import IntervalExposure, dose_intervals

if TYPE_CHECKING:
    import polars as pl

SINGLE_COLUMNS = tuple(f.name for f in fields(Exposure) if f.name not in ("flags", "causes", "n_points"))
"""Parameters of a single dose, as in ``Exposure``."""
INTERVAL_COLUMNS = tuple(
    f.name
    for f in fields(IntervalExposure)
    if f.name not in ("causes", "n_points", "start_h", "lambda_z_1_h", "cmax_mg_l", "tmax_h")
)
"""Parameters of a dosing interval that ``Exposure`` does not have, as in ``IntervalExposure``."""
_OF_THE_BODY = ("cl_l_h", "vz_l", "vss_l", "cl_f_l_h", "vz_f_l", "cl_ss_l_h", "cl_f_ss_l_h", "mrt_h", "mrt_ss_h")
_NO_REASON = ("lambda_z_points", "tau_h")
_ROUTES = np.asarray(["iv_bolus", "iv_infusion", "oral"])


@dataclass(frozen=True)
class NcaRows:
    """Curves to analyse, one row each.

    Attributes:
        labels: Columns that name a row, each ``(R,)``, carried to the output.
        time_h, conc_mg_l: ``(R, T)``, h and mg/L; NaN where absent, 0 where below the LOQ.
        loq_mg_l: ``(R,)``.
        is_blood: Whether the row is blood, plasma or serum, ``(R,)``; clearances and volumes have no meaning elsewhere.
        dose_time_h, dose_mg, duration_h, oral: ``(R, D)``; a dose of 0 mg pads, one of NaN mg is not known.
    """

    labels: dict[str, np.ndarray]
    time_h: np.ndarray
    conc_mg_l: np.ndarray
    loq_mg_l: np.ndarray
    is_blood: np.ndarray
    dose_time_h: np.ndarray
    dose_mg: np.ndarray
    duration_h: np.ndarray
    oral: np.ndarray

    def take(self, rows: np.ndarray) -> NcaRows:
        """The named rows."""
        arrays = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "labels"}
        return NcaRows(labels={k: v[rows] for k, v in self.labels.items()}, **arrays)


def nca_table(
    time_h: np.ndarray,
    conc_mg_l: np.ndarray,
    curve_id: Sequence[str] | np.ndarray,
    organs: Sequence[str],
    *,
    dose_mg: np.ndarray | float = np.nan,
    dose_time_h: np.ndarray | float = 0.0,
    duration_h: np.ndarray | float = 0.0,
    oral: np.ndarray | bool = False,
    drug: Sequence[str] | np.ndarray | None = None,
    matrix: Sequence[str] | np.ndarray | str = "plasma",
    loq_mg_l: np.ndarray | float = 0.0,
    tau_h: float = np.nan,
    rules: NcaRules | str | None = None,
) -> pl.DataFrame:
    """Exposure of every organ of every curve as a table.

    Args:
        time_h: ``(T,)`` or ``(C, T)``, h, increasing, NaN pads; on the clock of the doses.
        conc_mg_l: ``(C, O, T)``, mg/L; NaN where not observed, 0 where below the LOQ.
        curve_id: ``(C,)`` names.
        organs: ``(O,)`` names; ``blood`` is the one in ``matrix``, all others are tissues.
        dose_mg, dose_time_h, duration_h, oral: ``(C, D)``, or broadcast to it from ``(D,)`` or a number; a dose of
            0 mg pads a row, NaN mg is a dose that is not known.
        drug: ``(C,)`` names, if any.
        matrix: What the blood row is, ``(C,)`` or one word.
        loq_mg_l: ``(C,)`` or one.
        tau_h: Length of the last dosing interval, h; by default that of the one before.
        rules: See ``exposure``.

    Returns:
        One row per organ with at least one value (of a curve with one dose), or per organ and dosing interval (of a
        curve with several). ``SINGLE_COLUMNS`` are empty in the latter (but for Cmax, Tmax, lambda_z and half-life),
        ``INTERVAL_COLUMNS`` in the former. ``not_available`` names the empty ones and why; ``flags`` says what to be
        careful about.

    Raises:
        InputError: for shapes that do not fit, or what ``exposure`` refuses.
    """
    conc = np.asarray(conc_mg_l, float)
    if conc.ndim != 3 or conc.shape[:2] != (len(curve_id), len(organs)):
        raise InputError("conc_mg_l", "does not fit curve_id and organs", value=conc.shape,
                         allowed=f"({len(curve_id)}, {len(organs)}, T)")  # fmt: skip
    c, o, t = conc.shape
    n_doses = max(np.shape(v)[-1] if np.ndim(v) else 1 for v in (dose_mg, dose_time_h, duration_h, oral))

    def per_curve(values: object, kind: type) -> np.ndarray:
        return np.repeat(np.broadcast_to(np.asarray(values, kind), (c, n_doses)), o, axis=0)

    names = np.asarray(organs, dtype=object)
    matrices = np.full((c, o), "tissue_homogenate", dtype=object)
    matrices[:, names == "blood"] = np.broadcast_to(np.asarray(matrix, dtype=object), (c,))[:, None]
    labels = {"curve_id": np.repeat(np.asarray(curve_id, dtype=object), o)}
    if drug is not None:
        labels["drug"] = np.repeat(np.asarray(drug, dtype=object), o)
    labels |= {"organ": np.tile(names, c), "matrix": matrices.reshape(-1)}
    rows = NcaRows(
        labels, np.repeat(np.broadcast_to(np.asarray(time_h, float), (c, t)), o, axis=0), conc.reshape(-1, t),
        np.repeat(np.broadcast_to(np.asarray(loq_mg_l, float), (c,)), o), labels["organ"] == "blood",
        per_curve(dose_time_h, float), per_curve(dose_mg, float), per_curve(duration_h, float), per_curve(oral, bool),
    )  # fmt: skip
    return nca_rows(rows, rules=rules, tau_h=tau_h)


def nca_rows(rows: NcaRows, *, rules: NcaRules | str | None = None, tau_h: float = np.nan) -> pl.DataFrame:
    """``nca_table`` of rows that need not share their times."""
    import polars as pl

    chosen = nca_rules(rules)
    seen = np.flatnonzero((~np.isnan(rows.conc_mg_l)).any(axis=1))
    rows, mixed = _merged_doses(rows.take(seen))
    n_doses = (~np.isnan(rows.dose_time_h)).sum(axis=1)
    place = np.arange(len(seen))
    parts = []
    for n in np.unique(n_doses):
        at = np.flatnonzero(n_doses == n)
        group = rows.take(at)
        frame = _single(group, mixed[at], chosen) if n <= 1 else _intervals(group, mixed[at], int(n), chosen, tau_h)
        parts.append(frame.with_columns(pl.Series("_place", np.repeat(place[at], max(n, 1)))))
    if not parts:
        return pl.DataFrame(schema=_schema(rows.labels))
    return pl.concat(parts).sort("_place", maintain_order=True).drop("_place")


def _merged_doses(rows: NcaRows) -> tuple[NcaRows, np.ndarray]:
    """Doses in order of time, those at one time as one, NaN behind; and where such a one mixes routes, ``(R, D)``."""
    real = ~(rows.dose_mg == 0)
    time = np.where(real, rows.dose_time_h, np.nan)
    order = np.argsort(time, axis=1, kind="stable")
    time, mg, duration, oral = (
        np.take_along_axis(v, order, axis=1) for v in (time, rows.dose_mg, rows.duration_h, rows.oral)
    )
    mixed = np.zeros(time.shape, dtype=bool)
    for d in range(time.shape[1] - 1, 0, -1):  # from the back, so that several at one time all join the first
        same = time[:, d] == time[:, d - 1]
        mixed[:, d - 1] |= same & (
            mixed[:, d] | (duration[:, d] != duration[:, d - 1]) | (oral[:, d] != oral[:, d - 1])
        )
        mg[:, d - 1] += np.where(same, mg[:, d], 0.0)
        time[:, d] = np.where(same, np.nan, time[:, d])
        mixed[:, d] &= ~same
    order = np.argsort(np.isnan(time), axis=1, kind="stable")
    time, mg, duration, oral, mixed = (np.take_along_axis(v, order, axis=1) for v in (time, mg, duration, oral, mixed))
    mg = np.where(np.isnan(time) | mixed, np.nan, mg)
    return replace(rows, dose_time_h=time, dose_mg=mg, duration_h=duration, oral=oral), mixed


def _single(rows: NcaRows, mixed: np.ndarray, rules: NcaRules) -> pl.DataFrame:
    start = np.nan_to_num(rows.dose_time_h[:, 0], nan=0.0)
    since = rows.time_h - start[:, None]
    since = np.where(since >= 0, since, np.nan)
    duration, oral = rows.duration_h[:, 0], rows.oral[:, 0]
    bolus = rows.is_blood & (duration == 0) & ~oral
    found = exposure(
        since, rows.conc_mg_l, loq_mg_l=rows.loq_mg_l, dose_mg=np.where(rows.is_blood, rows.dose_mg[:, 0], np.nan),
        duration_h=duration, extravascular=oral, time_zero=np.where(bolus, "bolus", "zero"), rules=rules,
    )  # fmt: skip
    values = {name: getattr(found, name) for name in ("n_points", *SINGLE_COLUMNS)}
    values["mrt_h"] = np.where(rows.is_blood, found.mrt_h, np.nan)
    reasons = {n: found.reason(n) for n in SINGLE_COLUMNS if n not in _NO_REASON}
    flags = np.asarray([flag_text(int(f)) for f in range(16)], dtype=object)[found.flags]
    return _frame(rows, 1, start[:, None], values, _dose_reasons(reasons, rows.is_blood, mixed[:, 0]), flags)


def _intervals(rows: NcaRows, mixed: np.ndarray, n: int, rules: NcaRules, tau_h: float) -> pl.DataFrame:
    mg = np.where(rows.is_blood[:, None], rows.dose_mg[:, :n], np.nan)
    duration, oral, start = rows.duration_h[:, :n], rows.oral[:, :n], rows.dose_time_h[:, :n]
    found = dose_intervals(
        rows.time_h, rows.conc_mg_l, start, dose_mg=mg, duration_h=duration, extravascular=oral, tau_h=tau_h,
        loq_mg_l=rows.loq_mg_l, rules=rules, tissue=~rows.is_blood,
    )  # fmt: skip
    values = {name: getattr(found, name).reshape(-1) for name in ("n_points", "cmax_mg_l", "tmax_h", *INTERVAL_COLUMNS)}
    blood = np.repeat(rows.is_blood, n)
    values["mrt_ss_h"] = np.where(blood, values["mrt_ss_h"], np.nan)
    values["lambda_z_1_h"] = found.lambda_z_1_h.reshape(-1)
    values["half_life_h"] = np.log(2) / values["lambda_z_1_h"]
    reasons = {
        name: found.reason(name).reshape(-1)
        for name in ("cmax_mg_l", "tmax_h", *INTERVAL_COLUMNS)
        if name not in _NO_REASON
    }
    slope = np.where(np.isnan(found.lambda_z_1_h), found.causes["slope"], 0).astype(np.int8).reshape(-1)
    reasons |= {"lambda_z_1_h": slope, "half_life_h": slope}
    flags = np.full(len(blood), "", dtype=object)
    return _frame(rows, n, start, values, _dose_reasons(reasons, blood, mixed[:, :n].reshape(-1)), flags)


def _dose_reasons(reasons: dict[str, np.ndarray], is_blood: np.ndarray, mixed: np.ndarray) -> dict[str, np.ndarray]:
    """The same with the right word where the dose was withheld: several routes at once, or a tissue.

    That CL has no meaning for a dose by mouth, and CL/F for one that was not, goes without saying in a table.
    """
    out = dict(reasons)
    for name in _OF_THE_BODY:
        if name in out:
            code = np.where((out[name] == Reason.NO_DOSE) & mixed, np.int8(Reason.MIXED), out[name])
            code = np.where(is_blood, code, np.int8(Reason.MATRIX))
            out[name] = np.where(reasons[name] == Reason.ROUTE, np.int8(0), code)
    return out


def _schema(labels: dict[str, np.ndarray]) -> dict[str, Any]:
    import polars as pl

    kinds: dict[str, Any] = dict.fromkeys(labels, pl.String)
    kinds |= {"n_doses": pl.Int64, "dose_number": pl.Int64, "dose_time_h": pl.Float64, "dose_mg": pl.Float64}
    kinds |= {"route": pl.String, "duration_h": pl.Float64, "n_points": pl.Int64}
    kinds |= dict.fromkeys((*SINGLE_COLUMNS, *INTERVAL_COLUMNS), pl.Float64)
    return kinds | {"lambda_z_points": pl.Int64, "flags": pl.String, "not_available": pl.String}


def _frame(
    rows: NcaRows, n: int, start: np.ndarray, values: dict[str, np.ndarray], reasons: dict[str, np.ndarray],
    flags: np.ndarray,
) -> pl.DataFrame:  # fmt: skip
    """Rows of curves that have ``n`` doses each, in the columns of every table."""
    import polars as pl

    duration, oral = rows.duration_h[:, :n].reshape(-1), rows.oral[:, :n].reshape(-1)
    route = _ROUTES[np.where(oral, 2, (duration > 0) * 1)]
    columns: dict[str, object] = {k: np.repeat(v.astype(str), n).tolist() for k, v in rows.labels.items()}
    columns |= {
        "n_doses": np.full(len(route), n), "dose_number": np.tile(np.arange(1, n + 1), len(rows.time_h)),
        "dose_time_h": start.reshape(-1), "dose_mg": rows.dose_mg[:, :n].reshape(-1), "route": route.tolist(),
        "duration_h": duration, **values, "flags": flags.tolist(), "not_available": _missing_text(reasons),
    }  # fmt: skip
    schema = _schema(rows.labels)
    empty = {name: [None] * len(route) for name in schema if name not in columns}
    data = {name: columns.get(name, empty.get(name)) for name in schema}
    frame = pl.DataFrame(data, schema_overrides=schema)
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None))


def _missing_text(reasons: dict[str, np.ndarray]) -> list[str]:
    """``<names>: <reason>`` of each row, joined by '; '."""
    names = list(reasons)
    codes = np.column_stack([reasons[name] for name in names])
    distinct, which = np.unique(codes, axis=0, return_inverse=True)
    texts = []
    for row in distinct:
        groups = {
            Reason(code): [n for n, c in zip(names, row, strict=True) if c == code] for code in sorted(set(row)) if code
        }
        texts.append("; ".join(f"{', '.join(group)}: {REASON_TEXT[reason]}" for reason, group in groups.items()))
    return [texts[i] for i in which.reshape(-1)]


def encode_table(frame: pl.DataFrame, suffix: str) -> bytes:
    """A table as ``.csv`` or ``.parquet``."""
    buffer = io.BytesIO()
    if suffix == ".csv":
        frame.write_csv(buffer)
    else:
        frame.write_parquet(buffer)
    return buffer.getvalue()

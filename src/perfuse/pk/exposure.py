"""Exposure by non-compartmental analysis: Cmax, AUC, terminal half-life, CL, Vss, MRT; thousands of curves at once.

The rules are those of PKNCA (Denney W et al. J Pharmacokinet Pharmacodyn 2015;42:S65) and of Gabrielsson J,
Weiner D (Pharmacokinetic and Pharmacodynamic Data Analysis, 5th ed., 2016): linear-up / log-down trapezoids, and a
terminal slope from the points after Tmax that give the best adjusted R2; ``exposure_rules.NcaRules`` holds the
alternatives. What cannot be had is NaN with a reason, never a guess. One dosing interval of many:
``interval_exposure``.

Axis legend: R rows (any leading shape, flattened), T times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.exposure_points import Points, before_first, c_zero, pack_points, zero_rule_codes
from perfuse.pk.exposure_reasons import Flag, Reason, cause, first_cause, reason_text
from perfuse.pk.exposure_rules import MIN_ADJUSTED_R2, MIN_POINTS, R2_TIE, NcaRules, TimeZero, nca_rules
from perfuse.pk.terminal_slope import TerminalSlope, terminal_slope
from perfuse.pk.trapezoids import trapezoids

__all__ = ["MIN_ADJUSTED_R2", "MIN_POINTS", "R2_TIE", "Exposure", "TimeZero", "exposure", "row_arrays"]

_CHUNK_ROWS = 1000  # keeps every intermediate array in cache
_SHORT_SPAN, _LARGE_SHARE = 2.0, 0.2

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "cmax_mg_l": ("points",), "tmax_h": ("points",), "clast_mg_l": ("points",), "tlast_h": ("points",),
    "c0_mg_l": ("points", "c0"),
    **{name: ("points", "area") for name in ("auc_last_mg_h_l", "auc_all_mg_h_l", "aumc_last_mg_h2_l")},
    "lambda_z_1_h": ("points", "slope"), "half_life_h": ("points", "slope"), "clast_pred_mg_l": ("points", "slope"),
    "lambda_z_r2": ("points", "fit"), "lambda_z_adjusted_r2": ("points", "fit"), "span_ratio": ("points", "fit"),
    "lambda_z_first_h": ("points", "fit"), "lambda_z_last_h": ("points", "fit"),
    **{name: ("points", "area", "slope") for name in (
        "extrapolated_fraction", "extrapolated_fraction_pred", "back_extrapolated_fraction")},
    **{name: ("points", "area", "slope", "extrapolation") for name in (
        "auc_inf_mg_h_l", "auc_inf_pred_mg_h_l", "aumc_inf_mg_h2_l", "aumc_inf_pred_mg_h2_l", "mtt_h")},
    "mrt_h": ("points", "area", "slope", "extrapolation", "mat", "mrt"),
    "cl_l_h": ("intravenous", "dose", "points", "area", "slope", "extrapolation"),
    "vz_l": ("intravenous", "dose", "points", "area", "slope", "extrapolation"),
    "vss_l": ("intravenous", "dose", "points", "area", "slope", "extrapolation", "mrt"),
    "cl_f_l_h": ("extravascular", "dose", "points", "area", "slope", "extrapolation"),
    "vz_f_l": ("extravascular", "dose", "points", "area", "slope", "extrapolation"),
}  # fmt: skip


@dataclass(frozen=True)
class Exposure:
    """Exposure of each curve; every field has the curves' leading shape, and NaN means "not available" (``why``).

    Attributes:
        n_points: Points used: observed, positive, at or above the LOQ (plus zeros before the last of them).
        cmax_mg_l, tmax_h: Largest observed concentration and its first time.
        clast_mg_l, tlast_h: Last measurable concentration and its time.
        c0_mg_l: Concentration at time 0: as observed, or by ``time_zero``.
        auc_last_mg_h_l, aumc_last_mg_h2_l: Area and first moment from the first point (or time 0, see ``time_zero``)
            to ``tlast_h``.
        auc_all_mg_h_l: ``auc_last`` plus the triangle to the first value kept as 0 after it, if there is one.
        auc_inf_mg_h_l: ``auc_last + clast / lambda_z`` (observed Clast).
        auc_inf_pred_mg_h_l: The same with ``clast_pred``.
        aumc_inf_mg_h2_l, aumc_inf_pred_mg_h2_l: First moment to infinity, by the same rule.
        extrapolated_fraction, extrapolated_fraction_pred: Share of either ``auc_inf`` beyond ``tlast_h``.
        back_extrapolated_fraction: Share of ``auc_inf`` between time 0 and the first observed point.
        lambda_z_1_h, half_life_h: Terminal slope and ln 2 / slope; NaN unless the rules are passed.
        lambda_z_points, lambda_z_r2, lambda_z_adjusted_r2, lambda_z_first_h, lambda_z_last_h: Points, fit and time
            span of the best slope, also of one that was refused.
        span_ratio: Time span of the slope's points over the half-life; below 2 the half-life is uncertain.
        clast_pred_mg_l: The slope's line at ``tlast_h``.
        mtt_h: Mean transit time, AUMC_inf / AUC_inf: MRT, plus half the infusion, plus absorption by mouth.
        mrt_h: Mean residence time in the body: mtt - infusion duration / 2, or mtt - MAT where the mean absorption
            time of a dose by mouth is given.
        cl_l_h, vz_l, vss_l: Intravenous: dose / AUC_inf, CL / lambda_z, CL x MRT, in the matrix of the curve.
        cl_f_l_h, vz_f_l: By mouth: CL / F and Vz / F.
        flags: Bits of ``exposure_reasons.Flag``.
        causes: Codes of ``exposure_reasons.Reason`` by what is missing; read them with ``reason`` or ``why``.
    """

    n_points: np.ndarray
    cmax_mg_l: np.ndarray
    tmax_h: np.ndarray
    clast_mg_l: np.ndarray
    tlast_h: np.ndarray
    c0_mg_l: np.ndarray
    auc_last_mg_h_l: np.ndarray
    auc_all_mg_h_l: np.ndarray
    auc_inf_mg_h_l: np.ndarray
    auc_inf_pred_mg_h_l: np.ndarray
    aumc_last_mg_h2_l: np.ndarray
    aumc_inf_mg_h2_l: np.ndarray
    aumc_inf_pred_mg_h2_l: np.ndarray
    extrapolated_fraction: np.ndarray
    extrapolated_fraction_pred: np.ndarray
    back_extrapolated_fraction: np.ndarray
    lambda_z_1_h: np.ndarray
    half_life_h: np.ndarray
    lambda_z_points: np.ndarray
    lambda_z_r2: np.ndarray
    lambda_z_adjusted_r2: np.ndarray
    lambda_z_first_h: np.ndarray
    lambda_z_last_h: np.ndarray
    clast_pred_mg_l: np.ndarray
    span_ratio: np.ndarray
    mtt_h: np.ndarray
    mrt_h: np.ndarray
    cl_l_h: np.ndarray
    vz_l: np.ndarray
    vss_l: np.ndarray
    cl_f_l_h: np.ndarray
    vz_f_l: np.ndarray
    flags: np.ndarray
    causes: Mapping[str, np.ndarray]

    def reason(self, name: str) -> np.ndarray:
        """Code of ``Reason`` for one field, int8, 0 where it is available.

        Raises:
            InputError: for a name that is no field with a reason.
        """
        if name not in _NEEDS:
            raise InputError("parameter", "is unknown", value=name, allowed=", ".join(_NEEDS))
        code = first_cause(*(self.causes[need] for need in _NEEDS[name]))
        return np.where(np.isnan(getattr(self, name)), code, np.int8(0)).astype(np.int8)

    def why(self, name: str) -> np.ndarray:
        """The reason as text; '' where the field is available."""
        return reason_text(self.reason(name))


def exposure(
    time_h: np.ndarray,
    conc_mg_l: np.ndarray,
    *,
    loq_mg_l: np.ndarray | float = 0.0,
    dose_mg: np.ndarray | float = np.nan,
    duration_h: np.ndarray | float = 0.0,
    extravascular: np.ndarray | bool = False,
    mat_h: np.ndarray | float = np.nan,
    time_zero: TimeZero | np.ndarray = "observed",
    rules: NcaRules | str | None = None,
    min_adjusted_r2: float | None = None,
    min_span_ratio: float | None = None,
    slope_points: np.ndarray | None = None,
    not_slope_points: np.ndarray | None = None,
) -> Exposure:
    """Exposure of curves that share an axis of times; rows of any leading shape, broadcast together.

    Values that are NaN or at a NaN time are absent, and the trapezoid spans the gap. Values below ``loq_mg_l`` (and
    zeros) are treated by ``rules.blq``: by default they count as 0 before the first measurable one and are absent
    between measurable ones (PKNCA's default).

    Args:
        time_h: Times since the dose, h, ``(..., T)``, increasing; NaN pads.
        conc_mg_l: Concentrations, mg/L, ``(..., T)``; NaN where absent.
        loq_mg_l: Limit of quantification, mg/L, ``(...)``.
        dose_mg: The dose, mg, ``(...)``; NaN leaves CL and volumes not available.
        duration_h: Infusion duration, h, ``(...)``; 0 for a bolus.
        extravascular: Whether the dose was by mouth (or any other route with absorption), ``(...)``.
        mat_h: Mean absorption time of an extravascular dose, h, ``(...)``; without it its MRT is not available.
        time_zero: What precedes the first point, a word or ``(...)`` words. ``observed``: nothing, areas start at the
            first point (a value given at time 0 is used as it is: for a bolus it is C(0+)). ``bolus``: when time 0 is
            absent or 0, C(0+) is extrapolated along the log slope of the first two points, or the first point where
            that does not fall. ``zero``: when time 0 is absent, a 0 (infusion, oral).
            Cmax is always an observed value, never the extrapolated C(0+).
        rules: ``NcaRules``, or the name of a set in ``NCA_RULES``; by default PKNCA's.
        min_adjusted_r2, min_span_ratio: Instead of those of ``rules``.
        slope_points: bool ``(..., T)``. Rows with a True take lambda_z from exactly these points (those that are
            positive); they need ``min_points`` and a falling line, and the two thresholds do not apply to them.
        not_slope_points: bool ``(..., T)``, points that no slope uses; areas and Cmax still do.

    Raises:
        InputError: for times that do not increase, negative concentrations, doses or durations, or an unknown word.
    """
    chosen = nca_rules(rules, min_adjusted_r2, min_span_ratio)
    time, conc, shape = row_arrays(time_h, conc_mg_l)
    zero_rule = zero_rule_codes(time_zero, shape)
    loq, dose, duration, mat = (
        _per_row(name, unit, value, shape)
        for name, unit, value in (
            ("loq_mg_l", "mg/L", loq_mg_l), ("dose_mg", "mg", dose_mg),
            ("duration_h", "h", duration_h), ("mat_h", "h", mat_h),
        )
    )  # fmt: skip
    oral = np.broadcast_to(np.asarray(extravascular, bool), shape).reshape(-1)
    masks = [_mask(m, conc.shape, shape) for m in (slope_points, not_slope_points)]
    parts = []
    for start in range(0, max(len(conc), 1), _CHUNK_ROWS):
        at = slice(start, start + _CHUNK_ROWS)
        points = pack_points(time[at], conc[at], loq[at], chosen.blq, zero_rule[at])
        include, exclude = (None if m is None else _packed(m[at], points) for m in masks)
        bolus = ~oral[at] & (duration[at] == 0)
        parts.append(
            _analyse(points, zero_rule[at], chosen, dose[at], duration[at], mat[at], oral[at], bolus, include, exclude)
        )
    joined = {k: np.concatenate([p[k] for p in parts]).reshape(shape) for k in parts[0]}
    names = [f.name for f in fields(Exposure) if f.name != "causes"]
    causes = {k.removeprefix("cause "): v for k, v in joined.items() if k.startswith("cause ")}
    return Exposure(**{name: joined[name] for name in names}, causes=causes)


def row_arrays(time_h: np.ndarray, conc_mg_l: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Times and concentrations broadcast and flattened to ``(R, T)``, and the leading shape.

    Raises:
        InputError: when there is not one time.
    """
    time, conc = np.broadcast_arrays(np.asarray(time_h, float), np.asarray(conc_mg_l, float))
    if conc.ndim == 0 or conc.shape[-1] == 0:
        raise InputError("time_h", "is empty", allowed=">= 1 time")
    shape, n_times = conc.shape[:-1], conc.shape[-1]
    return time.reshape(-1, n_times), conc.reshape(-1, n_times), shape


def _per_row(name: str, unit: str, value: np.ndarray | float, shape: tuple[int, ...]) -> np.ndarray:
    out = np.broadcast_to(np.asarray(value, float), shape).reshape(-1)
    if (out < 0).any():
        raise InputError(name, "is negative", value=float(out[out < 0][0]), unit=unit, allowed=">= 0")
    return out


def _mask(mask: np.ndarray | None, rows: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray | None:
    if mask is None:
        return None
    return np.broadcast_to(np.asarray(mask, bool), (*shape, rows[-1])).reshape(rows)


def _packed(mask: np.ndarray, points: Points) -> np.ndarray:
    return mask if points.order is None else np.take_along_axis(mask, points.order, axis=1)


def _analyse(
    p: Points, zero_rule: np.ndarray, rules: NcaRules, dose: np.ndarray, duration: np.ndarray, mat: np.ndarray,
    oral: np.ndarray, bolus: np.ndarray, include: np.ndarray | None, exclude: np.ndarray | None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Every field, and every cause as ``cause <need>``, ``(R,)``."""
    rows = np.arange(len(p.t))
    has, last = p.n > 0, np.maximum(p.n - 1, 0)
    top = np.where(has, np.argmax(np.where(np.isnan(p.c), -1.0, p.c), axis=1), 0)
    cmax, tmax, tlast, clast = p.c[rows, top], p.t[rows, top], p.t[rows, last], p.c[rows, last]
    allow_top = {"never": np.zeros_like(bolus), "always": np.ones_like(bolus), "bolus": bolus}[rules.cmax_in_slope]
    slope = terminal_slope(p.t, p.c, p.n, top, allow_top, rules, include, exclude)
    c0, put_there = c_zero(p, zero_rule)
    early_auc, early_aumc = before_first(p, c0, put_there, rules)
    auc, aumc = trapezoids(p.t, p.c, tmax, rules)
    measured = (p.n >= 2) | (has & (early_auc > 0))
    auc = np.where(measured, auc + early_auc, np.nan)
    aumc = np.where(measured, aumc + early_aumc, np.nan)
    slope_cause = _slope_cause(slope, rules)
    lam = np.where(slope_cause == 0, slope.lambda_z_1_h, np.nan)
    with np.errstate(invalid="ignore"):
        out: dict[str, Any] = {
            "n_points": p.n, "cmax_mg_l": cmax, "tmax_h": tmax, "clast_mg_l": clast, "tlast_h": tlast, "c0_mg_l": c0,
            "auc_last_mg_h_l": auc, "aumc_last_mg_h2_l": aumc,
            "auc_all_mg_h_l": auc + np.nan_to_num(clast * (p.next_blq_h - tlast) / 2, nan=0.0),
            "lambda_z_1_h": lam, "half_life_h": np.log(2) / lam, "lambda_z_points": slope.points,
            "lambda_z_r2": slope.r2, "lambda_z_adjusted_r2": slope.adjusted_r2, "lambda_z_first_h": slope.first_h,
            "lambda_z_last_h": slope.last_h, "span_ratio": slope.span_ratio,
            "clast_pred_mg_l": np.where(slope_cause == 0, slope.clast_pred_mg_l, np.nan),
        }  # fmt: skip
        too_far = _to_infinity(out, early_auc, rules)
        mrt_cause = _dose_dependent(out, dose, duration, mat, oral)
        out["flags"] = _flags(out, p, oral)
    out |= {
        "cause points": np.where(has, 0, np.where(p.observed, Reason.ALL_BLQ, Reason.NO_DATA)).astype(np.int8),
        "cause area": cause(~measured, Reason.ONE_POINT),
        "cause c0": cause(np.isnan(c0), Reason.NO_C0),
        "cause fit": np.where(slope.points == 0, slope_cause, np.int8(0)),
        "cause slope": slope_cause,
        "cause extrapolation": cause(too_far, Reason.EXTRAPOLATION),
        "cause mat": cause(oral & np.isnan(mat), Reason.NO_MAT),
        "cause mrt": mrt_cause,
        "cause dose": cause(~(dose > 0), Reason.NO_DOSE),
        "cause intravenous": cause(oral, Reason.ROUTE),
        "cause extravascular": cause(~oral, Reason.ROUTE),
    }  # fmt: skip
    return out


def _slope_cause(slope: TerminalSlope, rules: NcaRules) -> np.ndarray:
    """Why lambda_z is refused, int8; the user's own points are not held against the thresholds."""
    few = slope.available < rules.min_points
    with np.errstate(invalid="ignore"):
        poor = ~(slope.adjusted_r2 >= rules.min_adjusted_r2) & ~slope.manual
        short = ~(slope.span_ratio >= rules.min_span_ratio) & ~slope.manual
    return first_cause(
        cause(few, Reason.FEW_POINTS), cause(slope.points == 0, Reason.NOT_FALLING),
        cause(poor, Reason.POOR_FIT), cause(short, Reason.SHORT_SPAN),
    )  # fmt: skip


def _to_infinity(out: dict[str, Any], early_auc: np.ndarray, rules: NcaRules) -> np.ndarray:
    """Add what extrapolates to infinity; returns where the extrapolated share is above the maximum."""
    auc, aumc, lam, tlast = (out[k] for k in ("auc_last_mg_h_l", "aumc_last_mg_h2_l", "lambda_z_1_h", "tlast_h"))
    too_far = np.zeros(len(auc), dtype=bool)
    for suffix, c in (("", out["clast_mg_l"]), ("_pred", out["clast_pred_mg_l"])):
        auc_inf = auc + c / lam
        out[f"extrapolated_fraction{suffix}"] = 1 - auc / auc_inf
        if not suffix:
            too_far = out["extrapolated_fraction"] > rules.max_extrapolated_fraction
            out["back_extrapolated_fraction"] = early_auc / auc_inf
        out[f"auc_inf{suffix}_mg_h_l"] = np.where(too_far, np.nan, auc_inf)
        out[f"aumc_inf{suffix}_mg_h2_l"] = np.where(too_far, np.nan, aumc + c * tlast / lam + c / lam**2)
    return too_far


def _dose_dependent(
    out: dict[str, Any], dose: np.ndarray, duration: np.ndarray, mat: np.ndarray, oral: np.ndarray
) -> np.ndarray:
    """Add MRT, clearances and volumes; returns why MRT is not available for its own sake, int8."""
    mtt = out["aumc_inf_mg_h2_l"] / out["auc_inf_mg_h_l"]
    mrt = mtt - np.where(oral, mat, duration / 2)
    not_positive = mrt <= 0
    mrt = np.where(not_positive, np.nan, mrt)
    cl = np.where(dose > 0, dose, np.nan) / out["auc_inf_mg_h_l"]
    vz = cl / out["lambda_z_1_h"]
    out["mtt_h"], out["mrt_h"] = mtt, mrt
    out["cl_l_h"], out["vz_l"], out["vss_l"] = (np.where(oral, np.nan, v) for v in (cl, vz, cl * mrt))
    out["cl_f_l_h"], out["vz_f_l"] = (np.where(oral, v, np.nan) for v in (cl, vz))
    return cause(not_positive, Reason.NOT_POSITIVE)


def _flags(out: dict[str, Any], p: Points, oral: np.ndarray) -> np.ndarray:
    first_after_dose = p.t[:, 0]
    if p.t.shape[1] > 1:
        first_after_dose = np.where(first_after_dose == 0, p.t[:, 1], first_after_dose)
    bits = (
        (Flag.SPAN, out["span_ratio"] < _SHORT_SPAN),
        (Flag.EXTRAPOLATED, out["extrapolated_fraction"] > _LARGE_SHARE),
        (Flag.BACK_EXTRAPOLATED, out["back_extrapolated_fraction"] > _LARGE_SHARE),
        (Flag.CMAX_FIRST, oral & (out["tmax_h"] == first_after_dose)),
    )
    flags = np.zeros(len(oral), dtype=np.int8)
    for bit, raised in bits:
        flags |= np.where(raised, np.int8(bit), np.int8(0))
    return flags

"""Exposure by non-compartmental analysis: Cmax, AUC, terminal half-life, CL, Vss, MRT; thousands of curves at once.

The rules are those of PKNCA (Denney W et al. J Pharmacokinet Pharmacodyn 2015;42:S65) and of Gabrielsson J,
Weiner D (Pharmacokinetic and Pharmacodynamic Data Analysis, 5th ed., 2016): linear-up / log-down trapezoids, and a
terminal slope from the points after Tmax that give the best adjusted R2. What cannot be had is NaN, never a guess.

Axis legend: R rows (any leading shape, flattened), T times.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from perfuse.errors import InputError

TimeZero = Literal["observed", "bolus", "zero"]

MIN_POINTS = 3
"""Fewest points of a terminal slope."""
MIN_ADJUSTED_R2 = 0.9
"""Adjusted R2 below which a terminal slope does not count (PKNCA: ``min.hl.r.squared``)."""
R2_TIE = 1e-4
"""Slopes whose adjusted R2 is this close to the best are ties; more points win (PKNCA: ``adj.r.squared.factor``)."""
_CHUNK_ROWS = 1000  # keeps every intermediate array in cache


@dataclass(frozen=True)
class Exposure:
    """Exposure of each curve; every field has the curves' leading shape, and NaN means "not available".

    Attributes:
        n_points: Points used: observed, positive, at or above the LOQ (plus zeros before the last of them).
        cmax_mg_l, tmax_h: Largest observed concentration and its first time.
        clast_mg_l, tlast_h: Last measurable concentration and its time.
        auc_last_mg_h_l: Area from the first point (or time 0, see ``time_zero``) to ``tlast_h``.
        auc_inf_mg_h_l: ``auc_last + clast / lambda_z`` (observed Clast).
        aumc_inf_mg_h2_l: First moment to infinity, by the same rule.
        extrapolated_fraction: Share of ``auc_inf`` beyond ``tlast_h``.
        lambda_z_1_h, half_life_h: Terminal slope and ln 2 / slope; NaN unless the rule is passed.
        lambda_z_points, lambda_z_adjusted_r2: Points and fit of the best slope, also of one that was refused.
        span_ratio: Time span of the slope's points over the half-life; below 2 the half-life is uncertain.
        mrt_h: Mean residence time of an intravenous dose: AUMC_inf / AUC_inf - infusion duration / 2.
        cl_l_h, vss_l: dose / AUC_inf, and CL x MRT, in the matrix of the curve; NaN without a dose.
    """

    n_points: np.ndarray
    cmax_mg_l: np.ndarray
    tmax_h: np.ndarray
    clast_mg_l: np.ndarray
    tlast_h: np.ndarray
    auc_last_mg_h_l: np.ndarray
    auc_inf_mg_h_l: np.ndarray
    aumc_inf_mg_h2_l: np.ndarray
    extrapolated_fraction: np.ndarray
    lambda_z_1_h: np.ndarray
    half_life_h: np.ndarray
    lambda_z_points: np.ndarray
    lambda_z_adjusted_r2: np.ndarray
    span_ratio: np.ndarray
    mrt_h: np.ndarray
    cl_l_h: np.ndarray
    vss_l: np.ndarray


def exposure(
    time_h: np.ndarray,
    conc_mg_l: np.ndarray,
    *,
    loq_mg_l: np.ndarray | float = 0.0,
    dose_mg: np.ndarray | float = np.nan,
    duration_h: np.ndarray | float = 0.0,
    time_zero: TimeZero = "observed",
    min_adjusted_r2: float = MIN_ADJUSTED_R2,
    min_span_ratio: float = 0.0,
) -> Exposure:
    """Exposure of curves that share an axis of times; rows of any leading shape, broadcast together.

    Values that are NaN or at a NaN time are absent, and the trapezoid spans the gap. Values below ``loq_mg_l`` count
    as 0 before the first measurable one and are absent after it (PKNCA's default for values in the middle).

    Args:
        time_h: Times, h, ``(..., T)``, increasing; NaN pads.
        conc_mg_l: Concentrations, mg/L, ``(..., T)``; NaN where absent.
        loq_mg_l: Limit of quantification, mg/L, ``(...)``.
        dose_mg: Total intravenous dose, mg, ``(...)``; NaN leaves CL and Vss not available.
        duration_h: Infusion duration, h, ``(...)``; 0 for a bolus.
        time_zero: What precedes the first point. ``observed``: nothing, areas start at the first point (a value
            given at time 0 is used as it is: for a bolus it is C(0+)). ``bolus``: when time 0 is absent, C(0+) is
            extrapolated along the log slope of the first two points, or the first point where that does not
            fall (PKNCA ``c0``: ``logslope``, then ``c1``). ``zero``: when time 0 is absent, a 0 (infusion, oral).
            Cmax is always an observed value, never the extrapolated C(0+).
        min_adjusted_r2: Threshold of the terminal slope.
        min_span_ratio: Threshold of ``span_ratio`` (PKNCA flags below 2; 0 only reports it).

    Raises:
        InputError: for times that do not increase, negative concentrations, or an unknown ``time_zero``.
    """
    if time_zero not in ("observed", "bolus", "zero"):
        raise InputError("time_zero", "is unknown", value=time_zero, allowed="observed, bolus, zero")
    time, conc = np.broadcast_arrays(np.asarray(time_h, float), np.asarray(conc_mg_l, float))
    shape, n_times = conc.shape[:-1], conc.shape[-1]
    if n_times == 0:
        raise InputError("time_h", "is empty", allowed=">= 1 time")
    per_row = [np.broadcast_to(np.asarray(v, float), shape).reshape(-1) for v in (loq_mg_l, dose_mg, duration_h)]
    time, conc = time.reshape(-1, n_times), conc.reshape(-1, n_times)
    parts = []
    for start in range(0, max(len(conc), 1), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        loq, dose, duration = (v[rows] for v in per_row)
        t, c = _measurable_points(time[rows], conc[rows], loq)
        part = _areas_and_slope(t, c, time_zero, min_adjusted_r2, min_span_ratio)
        mrt = part.aumc_inf_mg_h2_l / part.auc_inf_mg_h_l - duration / 2
        cl = dose / part.auc_inf_mg_h_l
        parts.append(replace(part, mrt_h=mrt, cl_l_h=cl, vss_l=cl * mrt))
    joined = {f.name: np.concatenate([getattr(p, f.name) for p in parts]).reshape(shape) for f in fields(Exposure)}
    return Exposure(**joined)


def _measurable_points(time: np.ndarray, conc: np.ndarray, loq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points moved to the front of each row ``(R, T)``, NaN behind; unmeasurable ones removed or 0."""
    if (conc < 0).any():
        r, k = np.argwhere(conc < 0)[0]
        raise InputError("conc_mg_l", "is negative", value=float(conc[r, k]), unit="mg/L", allowed=">= 0")
    here = ~np.isnan(time) & ~np.isnan(conc)
    measurable = here & (conc > 0) & (conc >= loq[:, None])
    later = np.cumsum(measurable, axis=1) > 0
    keep = measurable | (here & ~later & measurable.any(axis=1, keepdims=True))
    c = np.where(measurable, conc, 0.0)
    if not keep.all():
        order = np.argsort(~keep, axis=1, kind="stable")
        keep = np.take_along_axis(keep, order, axis=1)
        time, c = np.take_along_axis(time, order, axis=1), np.take_along_axis(c, order, axis=1)
    t, c = np.where(keep, time, np.nan), np.where(keep, c, np.nan)
    if (np.diff(t, axis=1) <= 0).any():
        r, k = np.argwhere(np.diff(t, axis=1) <= 0)[0]
        raise InputError("time_h", value=float(t[r, k + 1]), unit="h", allowed="strictly increasing")
    return t, c


def _areas_and_slope(t: np.ndarray, c: np.ndarray, time_zero: str, min_r2: float, min_span: float) -> Exposure:
    """All but dose-dependent fields, from points packed to the front ``(R, T)``."""
    rows = np.arange(len(t))
    n = (~np.isnan(c)).sum(1)
    has = n > 0
    last = np.maximum(n - 1, 0)
    top = np.where(has, np.argmax(np.where(np.isnan(c), -1.0, c), axis=1), 0)
    tlast, clast = t[rows, last], c[rows, last]
    lam, points, r2, span = _terminal_slope(t, c, n, top)
    auc, aumc = _trapezoids(t, c)
    early_auc, early_aumc = _before_first(t, c, n, time_zero)
    measured = (n >= 2) | (has & (early_auc > 0))
    auc = np.where(measured, auc + early_auc, np.nan)
    aumc = np.where(measured, aumc + early_aumc, np.nan)
    with np.errstate(invalid="ignore"):
        passed = (lam > 0) & (r2 >= min_r2) & (span >= min_span)
    lam = np.where(passed, lam, np.nan)
    auc_inf = auc + clast / lam
    blank = np.full(len(t), np.nan)
    return Exposure(
        n_points=n,
        cmax_mg_l=c[rows, top],
        tmax_h=t[rows, top],
        clast_mg_l=clast,
        tlast_h=tlast,
        auc_last_mg_h_l=auc,
        auc_inf_mg_h_l=auc_inf,
        aumc_inf_mg_h2_l=aumc + clast * tlast / lam + clast / lam**2,
        extrapolated_fraction=1 - auc / auc_inf,
        lambda_z_1_h=lam,
        half_life_h=np.log(2) / lam,
        lambda_z_points=points,
        lambda_z_adjusted_r2=r2,
        span_ratio=span,
        mrt_h=blank,
        cl_l_h=blank,
        vss_l=blank,
    )


def _segment(t1: np.ndarray, c1: np.ndarray, t2: np.ndarray, c2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area and first moment of each segment: logarithmic where c falls to a positive value, else linear.

    With x = ln(c1 / c2) the falling area is c1 dt (1 - e^-x) / x and its moment about t1 is
    c1 dt^2 (1 - (1 + x) e^-x) / x^2 (by its series where x is small).
    """
    dt = t2 - t1
    falls = (c2 < c1) & (c2 > 0)
    x = np.log(np.where(falls, c1, 1.0) / np.where(falls, c2, 1.0))
    safe = np.where(x > 1e-12, x, 1.0)
    decayed = np.exp(-safe)
    shape0 = np.where(x > 1e-12, -np.expm1(-safe) / safe, 1.0)
    series = 0.5 - x / 3 + x**2 / 8 - x**3 / 30 + x**4 / 144
    shape1 = np.where(x > 1e-2, (1 - (1 + safe) * decayed) / safe**2, series)
    area = np.where(falls, c1 * dt * shape0, dt * (c1 + c2) / 2)
    about_t1 = np.where(falls, c1 * dt**2 * shape1, dt**2 * (c1 / 6 + c2 / 3))
    return area, t1 * area + about_t1


def _trapezoids(t: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC and AUMC over the points of each row, ``(R,)``; 0 with fewer than two points."""
    area, moment = _segment(t[:, :-1], c[:, :-1], t[:, 1:], c[:, 1:])
    inside = ~np.isnan(c[:, 1:])
    return np.where(inside, area, 0.0).sum(1), np.where(inside, moment, 0.0).sum(1)


def _before_first(t: np.ndarray, c: np.ndarray, n: np.ndarray, time_zero: str) -> tuple[np.ndarray, np.ndarray]:
    """Area and moment between time 0 and the first point, by the rule for time 0; 0 where there is none."""
    zero = np.zeros(len(t))
    t1, c1 = t[:, 0], c[:, 0]
    missing = (n > 0) & (t1 > 0)
    if time_zero == "observed" or not missing.any():
        return zero, zero
    c0 = zero
    if time_zero == "bolus":
        c0 = c1
        if t.shape[1] > 1:
            falls = (n > 1) & (c[:, 1] < c1) & (c[:, 1] > 0)
            ratio = np.log(np.where(falls, c1, 1.0) / np.where(falls, c[:, 1], 1.0))
            gap = np.where(falls, t[:, 1] - t1, 1.0)
            c0 = np.where(falls, c1 * np.exp(ratio * t1 / gap), c1)
    area, moment = _segment(zero, c0, t1, c1)
    return np.where(missing, area, 0.0), np.where(missing, moment, 0.0)


def _terminal_slope(
    t: np.ndarray, c: np.ndarray, n: np.ndarray, top: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Slope (1/h), its points, adjusted R2 and span ratio, ``(R,)``: every tail after Tmax is tried at once.

    A tail is the last m >= 3 points; sums over tails are reversed cumulative sums about the last point.
    """
    count, width = t.shape
    rows, index = np.arange(count), np.arange(width)
    last = np.maximum(n - 1, 0)
    use = (index > top[:, None]) & (index < n[:, None]) & (np.where(np.isnan(c), 0.0, c) > 0)
    x = np.where(use, t - t[rows, last][:, None], 0.0)
    log_c = np.log(np.where(use, c, 1.0))
    y = np.where(use, log_c - log_c[rows, last][:, None], 0.0)
    tail = [np.cumsum(v[:, ::-1], axis=1)[:, ::-1] for v in (use * 1.0, x, y, x * x, x * y, y * y)]
    m, sx, sy, sxx, sxy, syy = tail
    with np.errstate(invalid="ignore", divide="ignore"):
        vx, vy, cov = sxx - sx * sx / m, syy - sy * sy / m, sxy - sx * sy / m
        slope = -cov / vx
        r2 = np.clip(cov * cov / (vx * vy), 0, 1)
        adjusted = 1 - (1 - r2) * (m - 1) / (m - 2)
        valid = use & (m >= MIN_POINTS) & np.isfinite(adjusted) & (vy > 1e-24 * (1 + syy))
    adjusted = np.where(valid, adjusted, -np.inf)
    best = adjusted.max(axis=1)
    tied = valid & (slope > 0) & (adjusted > best[:, None] - R2_TIE)
    found = tied.any(axis=1)
    start = np.argmax(tied, axis=1)  # the first True is the longest tail
    nan = np.full(count, np.nan)
    lam = np.where(found, slope[rows, start], nan)
    span_h = t[rows, last] - t[rows, start]
    points = np.where(found, m[rows, start], 0).astype(np.int64)
    return lam, points, np.where(found, adjusted[rows, start], nan), np.where(found, span_h * lam / np.log(2), nan)

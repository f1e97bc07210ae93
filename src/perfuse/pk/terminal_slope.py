"""The terminal slope lambda_z: the tail with the best adjusted R2, or the points that the user chose.

Gabrielsson J, Weiner D, Pharmacokinetic and Pharmacodynamic Data Analysis (section "Strategies for estimation of
lambda-z"); the tie rule is that of PKNCA and WinNonlin. Axis legend: R rows, T times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfuse.pk.exposure_rules import NcaRules


@dataclass(frozen=True)
class TerminalSlope:
    """Best line of ln C over the tail of each row, ``(R,)``; NaN where there is none. No threshold is applied here.

    Attributes:
        lambda_z_1_h: Slope, 1/h, > 0.
        points: Points used, int64, 0 for none.
        available: Points that could have been used.
        r2, adjusted_r2: Fit.
        first_h, last_h: Times of the first and last point used.
        clast_pred_mg_l: The line at the last measurable time.
        span_ratio: (last - first) / half-life.
        manual: Whether the points were the user's.
    """

    lambda_z_1_h: np.ndarray
    points: np.ndarray
    available: np.ndarray
    r2: np.ndarray
    adjusted_r2: np.ndarray
    first_h: np.ndarray
    last_h: np.ndarray
    clast_pred_mg_l: np.ndarray
    span_ratio: np.ndarray
    manual: np.ndarray


def terminal_slope(
    t: np.ndarray,
    c: np.ndarray,
    n: np.ndarray,
    top: np.ndarray,
    allow_top: np.ndarray,
    rules: NcaRules,
    include: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
) -> TerminalSlope:
    """Every tail after Tmax is tried at once; a tail is the last m >= ``min_points`` usable points.

    Args:
        t, c: Points packed to the front, ``(R, T)``, h and mg/L.
        n: Points of each row; the last one is measurable.
        top: Index of Cmax.
        allow_top: Whether the point at Tmax may be used, bool ``(R,)``.
        rules: ``min_points`` and ``r2_tie``.
        include: bool ``(R, T)``; rows with a True use exactly these (positive) points, wherever they are.
        exclude: bool ``(R, T)``; never used.
    """
    rows, index = np.arange(len(t)), np.arange(t.shape[1])
    last = np.maximum(n - 1, 0)
    positive = c > 0  # False where NaN
    use = positive & (index >= (top + ~allow_top)[:, None])
    manual = np.zeros(len(t), dtype=bool)
    if include is not None:
        manual = np.asarray(include.any(axis=1))
        use = np.where(manual[:, None], include & positive, use)
    if exclude is not None:
        use &= ~exclude
    log_last = np.log(np.where(n > 0, c[rows, last], 1.0))
    x = np.where(use, t - t[rows, last][:, None], 0.0)
    y = np.where(use, np.log(np.where(use, c, 1.0)) - log_last[:, None], 0.0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # what is not finite then gives no slope
        m, sx, sy, sxx, sxy, syy = (_tail_sums(v) for v in (use * 1.0, x, y, x * x, x * y, y * y))
        vx, vy, cov = sxx - sx * sx / m, syy - sy * sy / m, sxy - sx * sy / m
        r2 = np.clip(cov * cov / (vx * vy), 0, 1)
        adjusted = 1 - (1 - r2) * (m - 1) / (m - 2)
        valid = use & (m >= rules.min_points) & np.isfinite(adjusted) & (vy > 1e-24 * (1 + syy))
    if include is not None:  # one tail only: that of all the points chosen
        valid &= ~manual[:, None] | (m == m[:, :1])
    adjusted = np.where(valid, adjusted, -np.inf)
    best = adjusted.max(axis=1)
    tied = valid & (cov < 0) & ((adjusted > best[:, None] - rules.r2_tie) | (adjusted == best[:, None]))
    found = tied.any(axis=1)
    start = np.argmax(tied, axis=1)  # the first True is the longest tail
    last_used = len(index) - 1 - np.argmax(use[:, ::-1], axis=1)

    def at_start(values: np.ndarray) -> np.ndarray:
        return np.where(found, values[rows, start], np.nan)

    mean_m = np.maximum(at_start(m), 1.0)
    slope = at_start(cov) / at_start(vx)
    first_h, last_h = at_start(t), np.where(found, t[rows, last_used], np.nan)
    return TerminalSlope(
        lambda_z_1_h=-slope,
        points=np.where(found, m[rows, start], 0).astype(np.int64),
        available=m[:, 0],
        r2=at_start(r2),
        adjusted_r2=at_start(adjusted),
        first_h=first_h,
        last_h=last_h,
        clast_pred_mg_l=np.exp(log_last + (at_start(sy) - slope * at_start(sx)) / mean_m),
        span_ratio=(last_h - first_h) * -slope / np.log(2),
        manual=manual,
    )


def _tail_sums(values: np.ndarray) -> np.ndarray:
    return np.cumsum(values[:, ::-1], axis=1)[:, ::-1]

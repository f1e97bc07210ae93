"""Areas and first moments under sampled curves, and concentrations between samples, by the same rule.

Rows are curves ``(R, T)``: points packed to the front, NaN behind. Axis legend: R rows, T times.
"""

from __future__ import annotations

import numpy as np

from perfuse.pk.exposure_rules import NcaRules


def is_logarithmic(
    t1: np.ndarray, c1: np.ndarray, c2: np.ndarray, tmax: np.ndarray, rules: NcaRules
) -> np.ndarray | None:
    """Where a piece from (t1, c1) to c2 is logarithmic; None when none can be."""
    if rules.auc_method == "linear":
        return None
    if rules.auc_method == "lin-up/log-down":
        return (c2 < c1) & (c2 > 0)
    return (t1 >= tmax) & (c1 > 0) & (c2 > 0) & (c1 != c2)


def segment(
    t1: np.ndarray, c1: np.ndarray, t2: np.ndarray, c2: np.ndarray, log: np.ndarray | None, exact_moment: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Area and first moment about time 0 of each piece.

    With x = ln(c1 / c2) a logarithmic area is c1 dt (1 - e^-x) / x and its moment about t1 is
    c1 dt^2 (1 - (1 + x) e^-x) / x^2 (by its series where x is small). A straight piece has area dt (c1 + c2) / 2 and
    moment dt (t1 c1 + t2 c2) / 2, or exactly t1 area + dt^2 (c1 / 6 + c2 / 3).
    """
    dt = t2 - t1
    area = dt * (c1 + c2) / 2
    moment = t1 * area + dt**2 * (c1 / 6 + c2 / 3) if exact_moment else dt * (t1 * c1 + t2 * c2) / 2
    if log is None:
        return area, moment
    ratio = np.where(log, c2, 1.0) / np.where(log, c1, 1.0)  # e^-x
    x = -np.log(ratio)
    big = np.abs(x) > 1e-2
    safe = np.where(np.abs(x) > 1e-12, x, 1.0)
    shape0 = np.where(np.abs(x) > 1e-12, -np.expm1(-safe) / safe, 1.0)
    series = 0.5 - x / 3 + x**2 / 8 - x**3 / 30 + x**4 / 144
    shape1 = np.where(big, (1 - (1 + safe) * ratio) / safe**2, series)
    log_area = c1 * dt * shape0
    return np.where(log, log_area, area), np.where(log, t1 * log_area + c1 * dt**2 * shape1, moment)


def trapezoids(t: np.ndarray, c: np.ndarray, tmax: np.ndarray, rules: NcaRules) -> tuple[np.ndarray, np.ndarray]:
    """AUC and AUMC over the points of each row, ``(R,)``; 0 with fewer than two points."""
    t1, c1, t2, c2 = t[:, :-1], c[:, :-1], t[:, 1:], c[:, 1:]
    log = is_logarithmic(t1, c1, c2, tmax[:, None], rules)
    area, moment = segment(t1, c1, t2, c2, log, rules.aumc_rule == "exact")
    inside = c2 == c2  # False where NaN
    if not inside.all():
        area, moment = np.where(inside, area, 0.0), np.where(inside, moment, 0.0)
    return area.sum(1), moment.sum(1)


def interpolate(t: np.ndarray, c: np.ndarray, n: np.ndarray, at: np.ndarray, rules: NcaRules) -> np.ndarray:
    """Concentration of each row at time ``at`` ``(R,)`` by the rule of its piece; NaN outside the points.

    A straight piece is interpolated linearly, a logarithmic one in ln C: splitting a piece leaves its area as it was.
    """
    rows = np.arange(len(t))
    last = np.maximum(n - 1, 0)
    k = np.clip((t <= at[:, None]).sum(1) - 1, 0, np.maximum(last - 1, 0))  # NaN compares False
    after = np.minimum(k + 1, last)
    t1, c1, t2, c2 = t[rows, k], c[rows, k], t[rows, after], c[rows, after]
    tmax = t[rows, np.argmax(np.where(np.isnan(c), -1.0, c), axis=1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(t2 > t1, (at - t1) / np.where(t2 > t1, t2 - t1, 1.0), 0.0)
        out = c1 + share * (c2 - c1)
        log = is_logarithmic(t1, c1, c2, tmax, rules)
        if log is not None:
            safe1, safe2 = np.where(log, c1, 1.0), np.where(log, c2, 1.0)
            out = np.where(log, safe1 * (safe2 / safe1) ** share, out)
        inside = (n > 0) & (at >= t[:, 0]) & (at <= t[rows, last])
    return np.where(inside, out, np.nan)

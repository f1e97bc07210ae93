"""Areas over a stretch of time that need not begin or end at a sample.

PKNCA's ``aucint`` (Denney W et al. J Pharmacokinet Pharmacodyn 2015;42:S65): inside the curve the ends are interpolated
by the rule of the piece they fall into, beyond the last measurable value the terminal line is followed.
Axis legend: R rows (any leading shape, flattened), T times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.exposure import row_arrays
from perfuse.pk.exposure_points import Points, c_zero, pack_points, zero_rule_codes
from perfuse.pk.exposure_reasons import Reason, cause, first_cause, reason_text
from perfuse.pk.exposure_rules import NcaRules, TimeZero, nca_rules
from perfuse.pk.trapezoids import interpolate, trapezoids

Beyond = Literal["not_available", "last", "lambda_z"]


@dataclass(frozen=True)
class PartialExposure:
    """Area over an interval; every field has the curves' leading shape, NaN where not available.

    Attributes:
        auc_mg_h_l, aumc_mg_h2_l: Area and first moment about time 0 between start and end.
        c_start_mg_l, c_end_mg_l: Concentrations there, observed, interpolated or extrapolated.
        extrapolated_fraction: Share of the area beyond the last measurable value.
        reason: Code of ``Reason`` of the area; 0 where available.
    """

    auc_mg_h_l: np.ndarray
    aumc_mg_h2_l: np.ndarray
    c_start_mg_l: np.ndarray
    c_end_mg_l: np.ndarray
    extrapolated_fraction: np.ndarray
    reason: np.ndarray

    def why(self) -> np.ndarray:
        """The reason as text; '' where available."""
        return reason_text(self.reason)


def partial_exposure(
    time_h: np.ndarray,
    conc_mg_l: np.ndarray,
    start_h: np.ndarray | float,
    end_h: np.ndarray | float,
    *,
    loq_mg_l: np.ndarray | float = 0.0,
    time_zero: TimeZero | np.ndarray = "observed",
    rules: NcaRules | str | None = None,
    beyond: Beyond = "not_available",
    lambda_z_1_h: np.ndarray | float = np.nan,
    clast_mg_l: np.ndarray | float | None = None,
) -> PartialExposure:
    """AUC and AUMC between two times of curves without a dose in between.

    Args:
        time_h, conc_mg_l: As for ``exposure``, ``(..., T)``.
        start_h, end_h: Interval, h, ``(...)``; ``end_h`` may be infinite with ``beyond="lambda_z"``.
        loq_mg_l, time_zero, rules: As for ``exposure``; a start before the first point needs ``time_zero``.
        beyond: What an end after the last measurable value does: ``not_available``; ``last``: the area stops there
            (PKNCA ``aucint.last``); ``lambda_z``: the curve goes on with ``clast exp(-lambda_z (t - tlast))``
            (``aucint.inf.obs``), whatever the area method.
        lambda_z_1_h: Terminal slope, 1/h, ``(...)``; NaN where not available.
        clast_mg_l: Where the terminal line begins, ``(...)``; by default the last measurable value; give
            ``Exposure.clast_pred_mg_l`` for PKNCA's ``aucint.inf.pred``.

    Raises:
        InputError: for an interval that does not increase, an unknown word, or what ``exposure`` refuses.
    """
    if beyond not in ("not_available", "last", "lambda_z"):
        raise InputError("beyond", "is unknown", value=beyond, allowed="not_available, last, lambda_z")
    chosen = nca_rules(rules)
    time, conc, shape = row_arrays(time_h, conc_mg_l)
    loq, start, end, lam = (
        np.broadcast_to(np.asarray(v, float), shape).reshape(-1) for v in (loq_mg_l, start_h, end_h, lambda_z_1_h)
    )
    if (end <= start).any() or np.isinf(start).any():
        k = int(np.argmax((end <= start) | np.isinf(start)))
        raise InputError(
            "end_h", "does not lie after start_h", value=float(end[k]), unit="h", allowed=f"> {start[k]:g}"
        )
    zero_rule = zero_rule_codes(time_zero, shape)
    points = with_time_zero(pack_points(time, conc, loq, chosen.blq, zero_rule), zero_rule)
    clast = None if clast_mg_l is None else np.broadcast_to(np.asarray(clast_mg_l, float), shape).reshape(-1)
    out = between(points, start, end, chosen, beyond, lam, clast)
    return PartialExposure(**{name: getattr(out, name).reshape(shape) for name in PartialExposure.__annotations__})


def with_time_zero(p: Points, zero_rule: np.ndarray) -> Points:
    """The same points with one at time 0 put in front where the rule for time 0 gives one."""
    c0, missing = c_zero(p, zero_rule)
    if not missing.any():
        return p
    blank = np.full((len(p.t), 1), np.nan)
    t = np.where(missing[:, None], np.hstack((np.zeros_like(blank), p.t)), np.hstack((p.t, blank)))
    c = np.where(missing[:, None], np.hstack((c0[:, None], p.c)), np.hstack((p.c, blank)))
    return Points(t, c, p.n + missing, p.observed, p.next_blq_h, None)


def between(
    p: Points, start: np.ndarray, end: np.ndarray, rules: NcaRules, beyond: Beyond, lam: np.ndarray,
    clast: np.ndarray | None = None,
) -> PartialExposure:  # fmt: skip
    """``partial_exposure`` of packed rows, all arguments ``(R,)``."""
    rows = np.arange(len(p.t))
    last = np.maximum(p.n - 1, 0)
    tlast, c_observed = p.t[rows, last], p.c[rows, last]
    clast = c_observed if clast is None else clast
    with np.errstate(invalid="ignore", over="ignore"):
        after = end > tlast
        inner_end = np.where(after, tlast, end)
        c_start = interpolate(p.t, p.c, p.n, start, rules)
        c_inner_end = interpolate(p.t, p.c, p.n, inner_end, rules)
        tail_from = np.maximum(start, tlast)
        if beyond == "lambda_z":
            c_start = np.where(start > tlast, clast * np.exp(-lam * (start - tlast)), c_start)
            c_end = np.where(after, clast * np.exp(-lam * (end - tlast)), c_inner_end)
            tail, tail_moment = _exponential(tail_from, end, clast * np.exp(-lam * (tail_from - tlast)), c_end, lam)
        else:
            c_end = np.where(after, np.nan, c_inner_end)
            tail = tail_moment = np.full(len(rows), np.nan if beyond == "not_available" else 0.0)
        inner, inner_moment = _inner_area(p, start, inner_end, c_start, c_inner_end, rules)
    tail, tail_moment = np.where(after, tail, 0.0), np.where(after, tail_moment, 0.0)
    code = first_cause(
        cause((p.n == 0) & ~p.observed, Reason.NO_DATA),
        cause(p.n == 0, Reason.ALL_BLQ),
        cause(~(start >= p.t[:, 0]), Reason.START),
        cause(np.isnan(tail), Reason.BEYOND),
    )
    auc = np.where(code == 0, inner + tail, np.nan)
    return PartialExposure(
        auc_mg_h_l=auc,
        aumc_mg_h2_l=np.where(code == 0, inner_moment + tail_moment, np.nan),
        c_start_mg_l=c_start,
        c_end_mg_l=c_end,
        extrapolated_fraction=np.where(auc > 0, tail / np.where(auc > 0, auc, 1.0), np.nan),
        reason=code,
    )


def _inner_area(
    p: Points, start: np.ndarray, end: np.ndarray, c_start: np.ndarray, c_end: np.ndarray, rules: NcaRules
) -> tuple[np.ndarray, np.ndarray]:
    """Area and moment over the points between ``start`` and ``end`` and those two; 0 where end <= start."""
    t = np.hstack((p.t, start[:, None], end[:, None]))
    c = np.hstack((p.c, c_start[:, None], c_end[:, None]))
    inside = (t >= start[:, None]) & (t <= end[:, None]) & (c == c)
    t, c = np.where(inside, t, np.nan), np.where(inside, c, np.nan)
    order = np.argsort(t, axis=1, kind="stable")  # NaN last; equal times give pieces without width
    tmax = p.t[np.arange(len(p.t)), np.argmax(np.where(np.isnan(p.c), -1.0, p.c), axis=1)]
    return trapezoids(np.take_along_axis(t, order, axis=1), np.take_along_axis(c, order, axis=1), tmax, rules)


def _exponential(
    t1: np.ndarray, t2: np.ndarray, c1: np.ndarray, c2: np.ndarray, lam: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Area and moment about time 0 of c1 exp(-lam (t - t1)) from t1 to t2 (may be infinite)."""
    at_end = np.where(np.isinf(t2), 0.0, c2 * (np.where(np.isinf(t2), 0.0, t2) / lam + 1 / lam**2))
    return (c1 - c2) / lam, c1 * (t1 / lam + 1 / lam**2) - at_end

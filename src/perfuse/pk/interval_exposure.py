"""Exposure over dosing intervals: AUC_tau, Cmax, Cmin, Cavg, fluctuation, swing, accumulation, CL and MRT.

Formulas: Rowland M, Tozer TN, Clinical Pharmacokinetics and Pharmacodynamics, 4th ed., 2011 (multiple-dose regimens);
MRT at steady state: Bauer LA, Gibaldi M. J Pharm Sci 1983;72:978.

Axis legend: R rows (any leading shape, flattened), D dose events, T times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.exposure import exposure, row_arrays
from perfuse.pk.exposure_points import ZERO_RULES, Points, pack_points
from perfuse.pk.exposure_reasons import Reason, cause, first_cause, reason_text
from perfuse.pk.exposure_rules import NcaRules, nca_rules
from perfuse.pk.partial_exposure import between, with_time_zero

STEADY_FRACTION = 0.95
"""Fraction of steady state, 1 - exp(-lambda_z x time since the first dose), from which an interval counts as steady."""
_SAME_TIME_H = 1e-9
_OBSERVED, _BOLUS, _ZERO = (ZERO_RULES.index(word) for word in ("observed", "bolus", "zero"))

_NEEDS: Mapping[str, tuple[str, ...]] = {
    **{name: ("tau", "points") for name in ("cmax_mg_l", "tmax_h", "cmin_mg_l", "tmin_h")},
    "ctrough_mg_l": ("tau", "points", "trough"),
    **{name: ("tau", "area") for name in ("auc_tau_mg_h_l", "aumc_tau_mg_h2_l", "cavg_mg_l", "fluctuation")},
    "swing": ("tau", "points", "cmin"), "peak_trough_ratio": ("tau", "points", "cmin"),
    "accumulation_auc": ("tau", "area", "first"), "accumulation_cmax": ("tau", "points", "first points"),
    "accumulation_predicted": ("tau", "slope"), "fraction_of_steady_state": ("tau", "slope"),
    "cl_ss_l_h": ("intravenous", "dose", "tau", "area", "steady"),
    "cl_f_ss_l_h": ("extravascular", "dose", "tau", "area", "steady"),
    "mrt_ss_h": ("intravenous", "tau", "area", "trough", "slope", "steady"),
}  # fmt: skip


@dataclass(frozen=True)
class IntervalExposure:
    """Exposure in each dosing interval, ``(..., D)``; NaN means "not available" (``why``).

    Attributes:
        start_h, tau_h: When the dose was given, and the time to the next one (the last: ``tau_h`` as given).
        n_points: Points in the interval, its end included.
        cmax_mg_l, tmax_h, cmin_mg_l, tmin_h: Observed extremes, times since the dose; both ends belong to the
            interval (but for the value before a bolus).
        ctrough_mg_l: Concentration at the end of the interval: observed, interpolated, or on the terminal line.
        auc_tau_mg_h_l, aumc_tau_mg_h2_l: Area over the interval, and its moment about the dose.
        cavg_mg_l: AUC_tau / tau.
        fluctuation: (Cmax - Cmin) / Cavg.
        swing, peak_trough_ratio: (Cmax - Cmin) / Cmin, and Cmax / Cmin.
        accumulation_auc, accumulation_cmax: AUC_tau and Cmax over those of the first interval.
        accumulation_predicted: 1 / (1 - exp(-lambda_z tau)).
        fraction_of_steady_state: 1 - exp(-lambda_z x time from the first dose to the end of the interval).
        cl_ss_l_h, cl_f_ss_l_h: dose / AUC_tau, at steady state only; intravenous, and by mouth (CL / F).
        mrt_ss_h: (AUMC_tau + tau x AUC from tau to infinity) / AUC_tau - infusion duration / 2; at steady state only.
        lambda_z_1_h: Terminal slope used, the same in all intervals of a curve.
        causes: Codes of ``Reason`` by what is missing; read them with ``reason`` or ``why``.
    """

    start_h: np.ndarray
    tau_h: np.ndarray
    n_points: np.ndarray
    cmax_mg_l: np.ndarray
    tmax_h: np.ndarray
    cmin_mg_l: np.ndarray
    tmin_h: np.ndarray
    ctrough_mg_l: np.ndarray
    auc_tau_mg_h_l: np.ndarray
    aumc_tau_mg_h2_l: np.ndarray
    cavg_mg_l: np.ndarray
    fluctuation: np.ndarray
    swing: np.ndarray
    peak_trough_ratio: np.ndarray
    accumulation_auc: np.ndarray
    accumulation_cmax: np.ndarray
    accumulation_predicted: np.ndarray
    fraction_of_steady_state: np.ndarray
    cl_ss_l_h: np.ndarray
    cl_f_ss_l_h: np.ndarray
    mrt_ss_h: np.ndarray
    lambda_z_1_h: np.ndarray
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


def dose_intervals(
    time_h: np.ndarray,
    conc_mg_l: np.ndarray,
    dose_time_h: np.ndarray,
    *,
    dose_mg: np.ndarray | float = np.nan,
    duration_h: np.ndarray | float = 0.0,
    extravascular: np.ndarray | bool = False,
    tau_h: np.ndarray | float = np.nan,
    loq_mg_l: np.ndarray | float = 0.0,
    rules: NcaRules | str | None = None,
    lambda_z_1_h: np.ndarray | float | None = None,
    steady_state: bool | None = None,
    missing_start: Literal["not_available", "cmin"] = "not_available",
    tissue: np.ndarray | bool = False,
) -> IntervalExposure:
    """Every dosing interval of curves with many doses.

    An interval runs from its dose to the next. A value at a dose time is the one before that dose, so it ends the
    interval before; it also begins its own interval, unless the dose is a bolus: then C(0+) is extrapolated back from
    the first two points (at the first dose a positive value is C(0+) itself). No piece spans a dose: an interval whose
    end has no value goes on with lambda_z.

    Args:
        time_h, conc_mg_l: ``(..., T)``, h and mg/L, on the clock of ``dose_time_h``.
        dose_time_h: ``(..., D)``, h, increasing; NaN pads.
        dose_mg, duration_h: Of each dose, ``(..., D)``, mg and h; duration 0 for a bolus.
        extravascular: Whether each dose was by mouth, ``(..., D)``.
        tau_h: Length of the last interval, h, ``(...)``; by default that of the one before.
        loq_mg_l, rules: As for ``exposure``.
        lambda_z_1_h: Terminal slope, 1/h, ``(...)``; by default that of the points after the last dose.
        steady_state: True: every interval counts as steady; None: those with ``fraction_of_steady_state`` of at least
            ``STEADY_FRACTION``, and only when doses and intervals are all equal.
        missing_start: What stands for the value before a later dose that was not sampled, infusion or by mouth:
            nothing, or the lowest value of the interval (WinNonlin's rule at steady state).
        tissue: Rows ``(...)`` that a bolus does not reach at once, so that no C(0+) is extrapolated.

    Raises:
        InputError: for dose times that do not increase, a tau that is not positive, or what ``exposure`` refuses.
    """
    if missing_start not in ("not_available", "cmin"):
        raise InputError("missing_start", "is unknown", value=missing_start, allowed="not_available, cmin")
    chosen = nca_rules(rules)
    time, conc, shape = row_arrays(time_h, conc_mg_l)
    starts = np.asarray(dose_time_h, float)
    n_doses = starts.shape[-1] if starts.ndim else 0
    if n_doses == 0:
        raise InputError("dose_time_h", "is empty", allowed=">= 1 dose")
    wide = (*shape, n_doses)
    starts, doses, durations = (
        np.broadcast_to(np.asarray(v, float), wide).reshape(-1, n_doses) for v in (starts, dose_mg, duration_h)
    )
    oral = np.broadcast_to(np.asarray(extravascular, bool), wide).reshape(-1, n_doses)
    slow = np.broadcast_to(np.asarray(tissue, bool), shape).reshape(-1)
    loq = np.broadcast_to(np.asarray(loq_mg_l, float), shape).reshape(-1)
    tau = _interval_lengths(starts, np.broadcast_to(np.asarray(tau_h, float), shape).reshape(-1))
    if lambda_z_1_h is None:
        lam, slope_cause = _last_slope(time, conc, starts, loq, chosen)
    else:
        lam = np.broadcast_to(np.asarray(lambda_z_1_h, float), shape).reshape(-1)
        slope_cause = cause(~(lam > 0), Reason.NOT_FALLING)
    columns = [
        _one_interval(
            time - starts[:, [d]],
            conc,
            d,
            tau[:, d],
            (durations[:, d] == 0) & ~oral[:, d] & ~slow,
            loq,
            lam,
            chosen,
            missing_start,
        )
        for d in range(n_doses)
    ]
    out = {k: np.stack([column[k] for column in columns], axis=-1) for k in columns[0]}
    out |= {"start_h": starts, "tau_h": tau, "lambda_z_1_h": np.repeat(lam[:, None], n_doses, axis=1)}
    out["cause slope"] = np.repeat(slope_cause[:, None], n_doses, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        _relate(out, doses, durations, oral, steady_state)
    causes = {k.removeprefix("cause "): v.reshape(wide) for k, v in out.items() if k.startswith("cause ")}
    names = [n for n in IntervalExposure.__annotations__ if n != "causes"]
    return IntervalExposure(**{n: out[n].reshape(wide) for n in names}, causes=causes)


def steady_state_exposure(
    time_h: np.ndarray,
    conc_mg_l: np.ndarray,
    tau_h: np.ndarray | float,
    *,
    dose_mg: np.ndarray | float = np.nan,
    duration_h: np.ndarray | float = 0.0,
    extravascular: np.ndarray | bool = False,
    loq_mg_l: np.ndarray | float = 0.0,
    rules: NcaRules | str | None = None,
    lambda_z_1_h: np.ndarray | float | None = None,
    missing_start: Literal["not_available", "cmin"] = "not_available",
) -> IntervalExposure:
    """One interval that the user knows to be at steady state: times since its dose, fields ``(..., 1)``.

    Arguments as for ``dose_intervals``, with ``dose_mg``, ``duration_h`` and ``extravascular`` of shape ``(...)``. A
    value at time 0 is the one after a bolus, and the one before any other dose. Accumulation is over the interval
    itself, so 1: compare with a first interval yourself, or use ``dose_intervals``.
    """
    dose, duration, oral = (np.asarray(v)[..., None] for v in (dose_mg, duration_h, extravascular))
    return dose_intervals(
        time_h, conc_mg_l, np.zeros(1), dose_mg=dose, duration_h=duration, extravascular=oral, tau_h=tau_h,
        loq_mg_l=loq_mg_l, rules=rules, lambda_z_1_h=lambda_z_1_h, steady_state=True, missing_start=missing_start,
    )  # fmt: skip


def _interval_lengths(starts: np.ndarray, last_tau: np.ndarray) -> np.ndarray:
    """``(R, D)`` h; the last of each row is ``last_tau``, or the one before where that is NaN."""
    tau = np.full_like(starts, np.nan)
    tau[:, :-1] = starts[:, 1:] - starts[:, :-1]
    if (tau <= 0).any():
        r, d = np.argwhere(tau <= 0)[0]
        raise InputError("dose_time_h", value=float(starts[r, d + 1]), unit="h", allowed="strictly increasing")
    if (last_tau <= 0).any():
        raise InputError("tau_h", value=float(last_tau[last_tau <= 0][0]), unit="h", allowed="> 0")
    rows, last = np.arange(len(starts)), np.maximum((~np.isnan(starts)).sum(1) - 1, 0)
    before = np.where(last > 0, tau[rows, np.maximum(last - 1, 0)], np.nan)
    tau[rows, last] = np.where(np.isnan(last_tau), before, last_tau)
    return tau


def _last_slope(
    time: np.ndarray, conc: np.ndarray, starts: np.ndarray, loq: np.ndarray, rules: NcaRules
) -> tuple[np.ndarray, np.ndarray]:
    """Terminal slope of the points after the last dose, and why there is none."""
    since = time - np.fmax.reduce(starts, axis=1)[:, None]
    tail = exposure(np.where(since > 0, since, np.nan), conc, loq_mg_l=loq, rules=rules)
    return tail.lambda_z_1_h, tail.reason("lambda_z_1_h")


def _one_interval(
    since: np.ndarray, conc: np.ndarray, d: int, tau: np.ndarray, bolus: np.ndarray, loq: np.ndarray,
    lam: np.ndarray, rules: NcaRules, missing_start: str,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What the points of one interval say by themselves, ``(R,)``; ``since``: times since its dose, ``(R, T)``."""
    since = np.where(np.abs(since) <= _SAME_TIME_H, 0.0, since)
    since = np.where(np.abs(since - tau[:, None]) <= _SAME_TIME_H, tau[:, None], since)
    inside = (since >= 0) & (since <= tau[:, None])
    if d > 0:  # a value at the time of a later bolus is the one before it
        inside &= ~(bolus[:, None] & (since == 0))
    zero_rule = np.where(bolus, _BOLUS, _ZERO if d == 0 else _OBSERVED)
    p = pack_points(np.where(inside, since, np.nan), conc, loq, rules.blq, zero_rule)
    filled = with_time_zero(p, zero_rule)
    cmin = np.fmin.reduce(p.c, axis=1, initial=np.inf)
    cmin = np.where(p.n > 0, cmin, np.nan)
    if missing_start == "cmin" and d > 0:
        filled = _with_start(filled, cmin, ~bolus)
    area = between(filled, np.zeros(len(tau)), np.where(tau > 0, tau, 1.0), rules, "lambda_z", lam)
    known = tau > 0
    rows = np.arange(len(tau))
    top = np.argmax(np.where(np.isnan(p.c), -1.0, p.c), axis=1)
    low = np.argmin(np.where(np.isnan(p.c), np.inf, p.c), axis=1)
    no_trough = np.isnan(area.c_end_mg_l)
    return {
        "n_points": p.n,
        "cmax_mg_l": p.c[rows, top],
        "tmax_h": p.t[rows, top],
        "cmin_mg_l": cmin,
        "tmin_h": p.t[rows, low],
        "ctrough_mg_l": np.where(known, area.c_end_mg_l, np.nan),
        "auc_tau_mg_h_l": np.where(known, area.auc_mg_h_l, np.nan),
        "aumc_tau_mg_h2_l": np.where(known, area.aumc_mg_h2_l, np.nan),
        "cause tau": cause(~known, Reason.NO_TAU),
        "cause points": np.where(p.n > 0, 0, np.where(p.observed, Reason.ALL_BLQ, Reason.NO_DATA)).astype(np.int8),
        "cause area": area.reason,
        "cause trough": cause(no_trough, Reason.BEYOND),
        "cause cmin": cause(~(cmin > 0), Reason.NOT_POSITIVE),
    }


def _with_start(p: Points, c_start: np.ndarray, wanted: np.ndarray) -> Points:
    """A point at time 0 in front of rows that want one and have none."""
    missing = wanted & (p.n > 0) & (p.t[:, 0] > 0)
    blank = np.full((len(p.t), 1), np.nan)
    t = np.where(missing[:, None], np.hstack((np.zeros_like(blank), p.t)), np.hstack((p.t, blank)))
    c = np.where(missing[:, None], np.hstack((c_start[:, None], p.c)), np.hstack((p.c, blank)))
    return Points(t, c, p.n + missing, p.observed, p.next_blq_h, None)


def _relate(
    out: dict[str, np.ndarray], doses: np.ndarray, durations: np.ndarray, oral: np.ndarray, steady: bool | None
) -> None:
    """Add what relates intervals to each other, to the dose and to the terminal slope, ``(R, D)``."""
    auc, tau, lam, cmin = out["auc_tau_mg_h_l"], out["tau_h"], out["lambda_z_1_h"], out["cmin_mg_l"]
    cmax = out["cmax_mg_l"]
    out["cavg_mg_l"] = auc / tau
    out["fluctuation"] = (cmax - cmin) / out["cavg_mg_l"]
    positive = np.where(cmin > 0, cmin, np.nan)
    out["swing"], out["peak_trough_ratio"] = (cmax - cmin) / positive, cmax / positive
    out["accumulation_auc"], out["accumulation_cmax"] = auc / auc[:, :1], cmax / cmax[:, :1]
    out["accumulation_predicted"] = 1 / -np.expm1(-lam * tau)
    out["fraction_of_steady_state"] = -np.expm1(-lam * (out["start_h"] + tau - out["start_h"][:, :1]))
    if steady is None:
        is_steady = (out["fraction_of_steady_state"] >= STEADY_FRACTION) & _regular(tau, doses)[:, None]
    else:
        is_steady = np.full(auc.shape, steady)
    at_steady = np.where(is_steady, 1.0, np.nan)
    cl = np.where(doses > 0, doses, np.nan) / auc * at_steady
    out["cl_ss_l_h"], out["cl_f_ss_l_h"] = np.where(oral, np.nan, cl), np.where(oral, cl, np.nan)
    mrt = (out["aumc_tau_mg_h2_l"] + tau * out["ctrough_mg_l"] / lam) / auc - durations / 2
    out["mrt_ss_h"] = np.where(oral, np.nan, mrt) * at_steady
    out["cause first"] = np.repeat(out["cause area"][:, :1], auc.shape[1], axis=1)
    out["cause first points"] = np.repeat(out["cause points"][:, :1], auc.shape[1], axis=1)
    out["cause steady"] = cause(~is_steady, Reason.NOT_STEADY)
    out["cause dose"] = cause(~(doses > 0), Reason.NO_DOSE)
    out["cause intravenous"], out["cause extravascular"] = cause(oral, Reason.ROUTE), cause(~oral, Reason.ROUTE)


def _regular(tau: np.ndarray, doses: np.ndarray) -> np.ndarray:
    """Whether all intervals of a row are as long, and all its doses as large (or not given)."""

    def equal(values: np.ndarray) -> np.ndarray:
        high, low = np.fmax.reduce(values, axis=1), np.fmin.reduce(values, axis=1)
        return np.isnan(high) | (high - low <= 1e-6 * high)

    return equal(tau) & equal(doses)

"""From times and concentrations as observed to the points of an analysis: checks, absent values, values below LOQ.

Axis legend: R rows (any leading shape, flattened), T times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.exposure_rules import BlqAction, BlqRule, NcaRules
from perfuse.pk.trapezoids import is_logarithmic, segment

ZERO_RULES = ("observed", "bolus", "zero")
_OBSERVED, _BOLUS, _ZERO = range(3)


@dataclass(frozen=True)
class Points:
    """Points packed to the front of each row.

    Attributes:
        t, c: Times (h) and concentrations (mg/L), ``(R, T)``, NaN behind the points.
        n: Points, ``(R,)``; the last one is measurable, and there is none without a measurable one.
        observed: Whether the row had any value at all.
        next_blq_h: Time of the first value kept as 0 after the last point, h; NaN for none.
        order: Column each packed point came from, or None when nothing moved.
    """

    t: np.ndarray
    c: np.ndarray
    n: np.ndarray
    observed: np.ndarray
    next_blq_h: np.ndarray
    order: np.ndarray | None


def zero_rule_codes(time_zero: str | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Codes of ``ZERO_RULES``, int8 of ``shape`` flattened.

    Raises:
        InputError: for an unknown word.
    """
    words = np.broadcast_to(np.asarray(time_zero), shape).reshape(-1)
    out = np.full(len(words), -1, dtype=np.int8)
    for code, word in enumerate(ZERO_RULES):
        out[words == word] = code
    if (out < 0).any():
        raise InputError("time_zero", "is unknown", value=str(words[out < 0][0]), allowed=", ".join(ZERO_RULES))
    return out


def pack_points(time: np.ndarray, conc: np.ndarray, loq: np.ndarray, blq: BlqRule, zero_rule: np.ndarray) -> Points:
    """Points of ``(R, T)`` curves; ``loq`` mg/L ``(R,)``.

    Values that are NaN, or at a NaN time, are absent. Below the LOQ: 0, or under ``loq``. A 0 at time 0 of a bolus
    curve is the sample before the dose: it is dropped, and C(0+) extrapolated.

    Raises:
        InputError: for negative concentrations, or times that do not increase.
    """
    if (conc < 0).any():
        r, k = np.argwhere(conc < 0)[0]
        raise InputError("conc_mg_l", "is negative", value=float(conc[r, k]), unit="mg/L", allowed=">= 0")
    here = (time == time) & (conc == conc)
    measurable = here & (conc > 0) & (conc >= loq[:, None])
    if measurable.all():
        t, c, keep, next_blq = time, conc, measurable, np.full(len(time), np.nan)
    else:
        c, keep, zero_after = _by_place(here, measurable, conc, loq, blq)
        before_dose = (zero_rule == _BOLUS)[:, None] & (time == 0) & (c == 0)
        keep &= ~before_dose
        t = time
        any_zero = zero_after.any(axis=1)
        next_blq = np.where(any_zero, time[np.arange(len(time)), np.argmax(zero_after, axis=1)], np.nan)
    order = None
    if not keep.all():
        order = np.argsort(~keep, axis=1, kind="stable")
        keep = np.take_along_axis(keep, order, axis=1)
        t = np.where(keep, np.take_along_axis(t, order, axis=1), np.nan)
        c = np.where(keep, np.take_along_axis(c, order, axis=1), np.nan)
    step = t[:, 1:] - t[:, :-1]
    if (step <= 0).any():
        r, k = np.argwhere(step <= 0)[0]
        raise InputError("time_h", value=float(t[r, k + 1]), unit="h", allowed="strictly increasing")
    return Points(t, c, keep.sum(1), here.any(axis=1), next_blq, order)


def _by_place(
    here: np.ndarray, measurable: np.ndarray, conc: np.ndarray, loq: np.ndarray, blq: BlqRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concentrations, which to keep, and the values kept as 0 behind the last point, each ``(R, T)``."""
    some = measurable.any(axis=1, keepdims=True)
    begun = np.cumsum(measurable, axis=1) > 0
    to_come = np.cumsum(measurable[:, ::-1], axis=1)[:, ::-1] > 0
    below = here & ~measurable & some
    c = np.where(measurable, conc, 0.0)
    keep = measurable.copy()
    zero_after = np.zeros_like(measurable)
    first, last = below & ~begun, below & ~to_come
    places: list[tuple[BlqAction, np.ndarray]] = [(blq.first, first), (blq.middle, below & begun & to_come)]
    if blq.last == "zero":
        zero_after = last
    else:
        places.append((blq.last, last))
    for action, place in places:
        if action == "drop":
            continue
        chosen = place
        if action == "loq/2 once":
            chosen = place & (_edge(place) if place is last else _edge(place[:, ::-1])[:, ::-1])
        keep |= chosen
        value = (
            loq[:, None] / 2 if isinstance(action, str) and action != "zero" else 0.0 if action == "zero" else action
        )
        c = np.where(chosen, value, c)
    # a number for trailing values may be 0: then they are not points, and the first one ends auc_all
    trailing_zero = keep & ~to_come & (c == 0)
    return c, keep & ~trailing_zero, zero_after | trailing_zero


def _edge(mask: np.ndarray) -> np.ndarray:
    """The first True of each row."""
    return mask & (np.cumsum(mask, axis=1) == 1)


def c_zero(p: Points, zero_rule: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """C at time 0 by each row's rule, mg/L ``(R,)``, NaN where there is none, and whether it had to be put there.

    ``bolus``: extrapolated along the log slope of the first two points, or the first point where that does not fall
    (PKNCA ``c0``: ``logslope``, then ``c1``). ``zero``: 0. A point at time 0 is used as it is.
    """
    first_t, first_c = p.t[:, 0], p.c[:, 0]
    given = (p.n > 0) & (first_t == 0)
    c0 = np.where(given, first_c, np.nan)
    missing = (p.n > 0) & (first_t > 0) & (zero_rule != _OBSERVED)
    if not missing.any():
        return c0, missing
    value = first_c.copy()
    if p.t.shape[1] > 1:
        falls = (p.n > 1) & (p.c[:, 1] < first_c) & (p.c[:, 1] > 0)
        gap = np.where(falls, p.t[:, 1] - first_t, 1.0)
        with np.errstate(over="ignore"):  # of times as good as equal, or values beyond measure
            ratio = np.log(np.where(falls, first_c, 1.0) / np.where(falls, p.c[:, 1], 1.0))
            value = np.where(falls, first_c * np.exp(ratio * first_t / gap), first_c)
    value = np.where(zero_rule == _ZERO, 0.0, value)
    return np.where(missing, value, c0), missing


def before_first(p: Points, c0: np.ndarray, missing: np.ndarray, rules: NcaRules) -> tuple[np.ndarray, np.ndarray]:
    """Area and moment between time 0 and the first point, ``(R,)``; 0 where nothing was put at time 0."""
    zero = np.zeros(len(c0))
    if not missing.any():
        return zero, zero
    t1, c1 = p.t[:, 0], p.c[:, 0]
    log = is_logarithmic(
        zero, c0, c1, np.where(c0 > 0, 0.0, np.inf), rules
    )  # an extrapolated C(0+) lies after the peak
    area, moment = segment(zero, c0, t1, c1, log, rules.aumc_rule == "exact")
    return np.where(missing, area, 0.0), np.where(missing, moment, 0.0)

"""Why an exposure parameter is not available, and what to be careful about where it is."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, IntFlag

import numpy as np


class Reason(IntEnum):
    """Why a parameter is NaN; 0 where it is available."""

    AVAILABLE = 0
    NO_DATA = 1
    ALL_BLQ = 2
    ONE_POINT = 3
    FEW_POINTS = 4
    NOT_FALLING = 5
    POOR_FIT = 6
    SHORT_SPAN = 7
    EXTRAPOLATION = 8
    NO_DOSE = 9
    ROUTE = 10
    NO_MAT = 11
    NO_C0 = 12
    START = 13
    BEYOND = 14
    NOT_POSITIVE = 15
    NOT_STEADY = 16
    NO_TAU = 17
    MATRIX = 18
    MIXED = 19


REASON_TEXT: Mapping[Reason, str] = {
    Reason.AVAILABLE: "",
    Reason.NO_DATA: "no value observed",
    Reason.ALL_BLQ: "every value is below the limit of quantification",
    Reason.ONE_POINT: "fewer than two points",
    Reason.FEW_POINTS: "too few points for a terminal slope",
    Reason.NOT_FALLING: "no falling line fits the end of the curve",
    Reason.POOR_FIT: "adjusted R2 of the terminal slope is below the threshold",
    Reason.SHORT_SPAN: "the terminal slope spans too few half-lives",
    Reason.EXTRAPOLATION: "the extrapolated share of AUC_inf is above the maximum",
    Reason.NO_DOSE: "the dose is not given",
    Reason.ROUTE: "not defined for this route",
    Reason.NO_MAT: "the mean absorption time is not known",
    Reason.NO_C0: "no value at time 0, and none may be extrapolated",
    Reason.START: "the interval begins before the first point",
    Reason.BEYOND: "the interval ends after the last measurable value, and lambda_z is not available",
    Reason.NOT_POSITIVE: "came out negative or zero",
    Reason.NOT_STEADY: "not at steady state, or not known to be",
    Reason.NO_TAU: "the dosing interval is not known",
    Reason.MATRIX: "defined for blood, plasma and serum only",
    Reason.MIXED: "doses of several routes or durations at one time",
}


class Flag(IntFlag):
    """What to be careful about; a bit each.

    SPAN: the slope spans less than 2 half-lives (PKNCA ``min.span.ratio``). EXTRAPOLATED: more than 20 % of AUC_inf
    lies beyond the last value (PKNCA ``max.aucinf.pext``; EMA bioequivalence guideline CPMP/EWP/QWP/1401/98 Rev. 1,
    2010). BACK_EXTRAPOLATED: more than 20 % lies before the first value (the same limit, ours). CMAX_FIRST: the
    largest value by mouth is the first after the dose (the EMA guideline asks to avoid it).
    """

    SPAN = 1
    EXTRAPOLATED = 2
    BACK_EXTRAPOLATED = 4
    CMAX_FIRST = 8


FLAG_TEXT: Mapping[Flag, str] = {
    Flag.SPAN: "slope spans < 2 half-lives",
    Flag.EXTRAPOLATED: "> 20 % of AUC_inf extrapolated",
    Flag.BACK_EXTRAPOLATED: "> 20 % of AUC_inf extrapolated back to time 0",
    Flag.CMAX_FIRST: "Cmax is the first value after the dose",
}


def reason_text(code: np.ndarray) -> np.ndarray:
    """Codes as text, same shape; '' where available."""
    words = np.asarray([REASON_TEXT[Reason(i)] for i in range(len(Reason))], dtype=object)
    return words[np.asarray(code)]


def flag_text(flags: int) -> str:
    """The flags of one curve as text, joined by '; '; '' for none."""
    return "; ".join(text for flag, text in FLAG_TEXT.items() if flags & flag)


def first_cause(*causes: np.ndarray | None) -> np.ndarray:
    """The first code of each row that is not 0, int8; ``None`` stands for "no cause"."""
    given = [np.asarray(c, dtype=np.int8) for c in causes if c is not None]
    out = given[0]
    for cause in given[1:]:
        out = np.where(out != 0, out, cause)
    return out


def cause(bad: np.ndarray, reason: Reason) -> np.ndarray:
    """``reason`` where ``bad``, else 0; int8."""
    return np.where(bad, np.int8(reason), np.int8(0)).astype(np.int8)

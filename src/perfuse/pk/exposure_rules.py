"""The rules of a non-compartmental analysis: area method, terminal slope, values below the limit of quantification.

Sources: Denney W et al. (PKNCA) J Pharmacokinet Pharmacodyn 2015;42:S65 and its option defaults; Gabrielsson J,
Weiner D, Pharmacokinetic and Pharmacodynamic Data Analysis, 5th ed., 2016 (section "Strategies for estimation of
lambda-z"); Beal SL. J Pharmacokinet Pharmacodyn 2001;28:481 for the names M1, M5, M6, M7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from perfuse.errors import InputError

AucMethod = Literal["linear", "lin-up/log-down", "lin-log"]
MomentRule = Literal["trapezoid", "exact"]
CmaxInSlope = Literal["never", "bolus", "always"]
TimeZero = Literal["observed", "bolus", "zero"]
BlqAction = Literal["zero", "drop", "loq/2", "loq/2 once"] | float

MIN_POINTS = 3
"""Fewest points of a terminal slope (PKNCA: ``min.hl.points``)."""
MIN_ADJUSTED_R2 = 0.9
"""Adjusted R2 below which a terminal slope does not count (PKNCA: ``min.hl.r.squared``)."""
R2_TIE = 1e-4
"""Slopes whose adjusted R2 is this close to the best are ties; more points win (PKNCA: ``adj.r.squared.factor``)."""


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(name, "is unknown", value=value, allowed=", ".join(allowed))


@dataclass(frozen=True)
class BlqRule:
    """What becomes of a value below the limit of quantification (LOQ), by its place in the curve.

    ``zero`` keeps it as 0, ``drop`` removes it, ``loq/2`` puts half the LOQ, a number puts that concentration (mg/L).
    ``loq/2 once`` (``first`` and ``last`` only) puts LOQ/2 next to the measurable values and drops the others.
    A curve without any measurable value is never made up: it has no exposure under any rule.

    Attributes:
        first: Before the first measurable value.
        middle: Between the first and the last measurable value.
        last: After the last. A 0 there ends ``auc_all`` and never counts as the last measurable value; LOQ/2 does.

    Raises:
        InputError: for an unknown word or a number that is negative or not finite.
    """

    first: BlqAction = "zero"
    middle: BlqAction = "drop"
    last: BlqAction = "zero"

    def __post_init__(self) -> None:
        for place in ("first", "middle", "last"):
            action = getattr(self, place)
            if isinstance(action, str):
                words = ("zero", "drop", "loq/2") if place == "middle" else ("zero", "drop", "loq/2", "loq/2 once")
                _check_choice(f"blq {place}", action, words)
            elif not (np.isfinite(action) and action >= 0):
                raise InputError(f"blq {place}", value=float(action), unit="mg/L", allowed=">= 0 and finite")


BLQ_RULES: Mapping[str, BlqRule] = {
    "pknca": BlqRule(),
    "M1": BlqRule("drop", "drop", "drop"),
    "M5": BlqRule("loq/2", "loq/2", "loq/2"),
    "M6": BlqRule("loq/2 once", "loq/2", "loq/2 once"),
    "M7": BlqRule("zero", "zero", "zero"),
}
"""Named rules: PKNCA's default, and Beal's methods that alter data (M2 to M4 are likelihoods, no rule for an NCA)."""


def blq_rule(rule: BlqRule | str) -> BlqRule:
    """A rule, or the one of that name in ``BLQ_RULES``; InputError for an unknown name."""
    if isinstance(rule, BlqRule):
        return rule
    _check_choice("blq", rule, tuple(BLQ_RULES))
    return BLQ_RULES[rule]


@dataclass(frozen=True)
class NcaRules:
    """How areas are taken and when a terminal slope, or what rests on it, counts.

    Attributes:
        auc_method: ``linear`` trapezoids; ``lin-up/log-down``: logarithmic where the curve falls to a positive value;
            ``lin-log``: linear up to Tmax, logarithmic after it (rising pieces too), linear next to a 0.
        aumc_rule: Linear pieces of the first moment: ``trapezoid`` (t C at both ends, as PKNCA and WinNonlin do) or
            ``exact`` (the integral of t C for a straight C). Logarithmic pieces are exact in both.
        min_points: Fewest points of a terminal slope, >= 3.
        r2_tie: Adjusted R2 this close to the best is a tie; more points win.
        min_adjusted_r2: Below it lambda_z is not available.
        min_span_ratio: Least (time span of the points / half-life); 0 only reports it.
        max_extrapolated_fraction: Above it AUC_inf and all that rests on it are not available; 1 only reports it.
        cmax_in_slope: Whether the point at Tmax may belong to the slope (PKNCA ``allow.tmax.in.half.life``);
            ``bolus``: where an intravenous bolus was given, as WinNonlin does.
        blq: Values below the LOQ, a ``BlqRule`` (see ``BLQ_RULES``).

    Raises:
        InputError: for an unknown word or a number out of range.
    """

    auc_method: AucMethod = "lin-up/log-down"
    aumc_rule: MomentRule = "trapezoid"
    min_points: int = MIN_POINTS
    r2_tie: float = R2_TIE
    min_adjusted_r2: float = MIN_ADJUSTED_R2
    min_span_ratio: float = 0.0
    max_extrapolated_fraction: float = 1.0
    cmax_in_slope: CmaxInSlope = "never"
    blq: BlqRule = field(default_factory=BlqRule)

    def __post_init__(self) -> None:
        _check_choice("auc_method", self.auc_method, get_args(AucMethod))
        _check_choice("aumc_rule", self.aumc_rule, get_args(MomentRule))
        _check_choice("cmax_in_slope", self.cmax_in_slope, get_args(CmaxInSlope))
        if self.min_points < 3:
            raise InputError("min_points", value=self.min_points, allowed=">= 3 (two points always fit)")
        for name, low, high in (
            ("r2_tie", 0.0, 1.0), ("min_adjusted_r2", -np.inf, 1.0), ("min_span_ratio", 0.0, np.inf),
            ("max_extrapolated_fraction", 0.0, 1.0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(name, value=float(value), allowed=f"{low:g} to {high:g}")


NCA_RULES: Mapping[str, NcaRules] = {
    "pknca": NcaRules(),
    "winnonlin": NcaRules(auc_method="linear", min_adjusted_r2=-np.inf, cmax_in_slope="bolus"),
}
"""Named sets. ``pknca``: the default. ``winnonlin``: linear trapezoids, no threshold of fit, bolus Cmax allowed."""


def nca_rules(
    rules: NcaRules | str | None = None, min_adjusted_r2: float | None = None, min_span_ratio: float | None = None
) -> NcaRules:
    """Rules, or the set of that name, or the default; the two thresholds replace its own where given.

    Raises:
        InputError: for an unknown name or a threshold out of range.
    """
    if rules is None:
        rules = NCA_RULES["pknca"]
    elif isinstance(rules, str):
        _check_choice("rules", rules, tuple(NCA_RULES))
        rules = NCA_RULES[rules]
    if min_adjusted_r2 is not None:
        rules = replace(rules, min_adjusted_r2=min_adjusted_r2)
    if min_span_ratio is not None:
        rules = replace(rules, min_span_ratio=min_span_ratio)
    return rules

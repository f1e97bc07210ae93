"""Regimens: courses of repeated doses by any route, expanded to single doses.

Axis legend: B curves, D dose events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from perfuse.errors import InputError
from perfuse.pk.system import ROUTES, DoseEvents

MAX_DOSES = 10_000


@dataclass(frozen=True)
class DoseCourse:
    """Equal doses at equal intervals; one dose by default.

    Attributes:
        amount_mg: Each dose, mg, > 0.
        route: ``iv_bolus``, ``iv_infusion`` or ``oral``.
        time_h: Time of the first, h, >= 0.
        duration_h: Infusion duration, h; > 0 for an infusion, 0 otherwise.
        interval_h: Time between doses, h, > 0; needed for more than one.
        n_doses: How many, 1-10,000.

    Raises:
        InputError: naming the field, its value and what is allowed.
    """

    amount_mg: float
    route: str = "iv_bolus"
    time_h: float = 0.0
    duration_h: float = 0.0
    interval_h: float | None = None
    n_doses: int = 1

    def __post_init__(self) -> None:
        if self.route not in ROUTES:
            raise InputError("route", "is unknown", value=self.route, allowed=", ".join(ROUTES))
        for name, unit, low in (("amount_mg", "mg", "> 0"), ("time_h", "h", ">= 0"), ("duration_h", "h", ">= 0")):
            value = getattr(self, name)
            if not (math.isfinite(value) and (value > 0 if low == "> 0" else value >= 0)):
                raise InputError(f"dose {name}", value=float(value), unit=unit, allowed=f"{low} and finite")
        if (self.route == "iv_infusion") != (self.duration_h > 0):
            raise InputError("dose duration_h", "contradicts the route", value=float(self.duration_h), unit="h",
                             allowed="> 0 for iv_infusion, 0 otherwise")  # fmt: skip
        if isinstance(self.n_doses, bool) or not isinstance(self.n_doses, int) or not 1 <= self.n_doses <= MAX_DOSES:
            raise InputError("n_doses", value=self.n_doses, allowed=f"a whole number, 1 to {MAX_DOSES}")
        if self.interval_h is None:
            if self.n_doses > 1:
                raise InputError("interval_h", "is missing", hint="several doses need an interval")
        elif not (math.isfinite(self.interval_h) and self.interval_h > 0):
            raise InputError("interval_h", value=float(self.interval_h), unit="h", allowed="> 0 and finite")

    def times_h(self) -> list[float]:
        """When each dose is given, h."""
        return [self.time_h + i * (self.interval_h or 0.0) for i in range(self.n_doses)]


def dose_events(
    courses: Sequence[Sequence[DoseCourse]],
    ka_1_h: Sequence[float] | None = None,
    lag_h: Sequence[float] | None = None,
    f_abs: Sequence[float] | None = None,
) -> DoseEvents:
    """Courses of every curve as ``DoseEvents``, ordered in time and padded with 0 mg.

    Args:
        courses: For each curve, its courses.
        ka_1_h, lag_h, f_abs: Absorption of each curve's oral doses; needed for ``ka_1_h`` where there is one.

    Raises:
        InputError: for a curve without a dose, or an oral dose without ka.
    """
    rows = []
    for b, of_curve in enumerate(courses):
        single = [(t, c.amount_mg, c.duration_h, ROUTES[c.route]) for c in of_curve for t in c.times_h()]
        if not single:
            raise InputError("doses", "are missing: there is not one", where=f"curve {b}")
        if any(c.route == "oral" for c in of_curve) and ka_1_h is None:
            raise InputError("ka_1_h", "is missing for an oral dose", unit="1/h", allowed="> 0", where=f"curve {b}")
        rows.append(sorted(single))
    most = max(map(len, rows))
    padded = torch.tensor([row + [(0.0, 0.0, 0.0, 0)] * (most - len(row)) for row in rows], dtype=torch.float64)
    n = len(rows)
    of = lambda values, default: torch.tensor([default] * n if values is None else list(values), dtype=torch.float64)  # noqa: E731
    return DoseEvents(
        padded[..., 0], padded[..., 1], padded[..., 2], padded[..., 3].to(torch.int8), of(ka_1_h, 1.0), of(lag_h, 0.0),
        of(f_abs, 1.0),
    )  # fmt: skip

"""How a drug's numbers differ between the people of a study: log-normal factors around what the study states.

::

    [population]
    n = 500
    drug_cv = { clint = 0.5, fup = 0.2, ka_1_h = 0.4 }

The coefficients of variation are the user's: Perfuse has none of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.checks import number
from perfuse.pk.drug import HEPATIC_FIELDS, Drug
from perfuse.pk.population import log_sd

VARIED = ("clint", "fup", "cl_renal_l_h", "ka_1_h", "lag_h")
"""``clint``: whichever hepatic clearance the drug states, and every pathway's Vmax, together."""
_STREAM = 1


def read_drug_cv(value: object) -> dict[str, float]:
    """The table ``drug_cv``.

    Raises:
        InputError: for an unknown name, or a coefficient outside [0, 2].
    """
    if not isinstance(value, Mapping):
        raise InputError("population.drug_cv", "is no table", value=value, hint="write drug_cv = { clint = 0.3 }")
    out = {}
    for name, cv in value.items():
        field = f"population.drug_cv.{name}"
        if name not in VARIED:
            raise InputError(field, "is nothing that varies", allowed=", ".join(VARIED))
        out[str(name)] = number(field, cv)
        if not 0 <= out[str(name)] <= 2:
            raise InputError(field, value=out[str(name)], allowed="[0, 2]")
    return out


def vary_drugs(drugs: Sequence[Drug], cv: Mapping[str, float], seed: int) -> list[Drug]:
    """A drug a person, each number times a factor of median 1; equal seeds give equal factors, whatever else varies.

    The factor on fup is one on bound over unbound drug, which keeps it within (0, 1].

    Raises:
        InputError: for a number that the drug does not state, or one that leaves its range.
    """
    random = np.random.default_rng([seed, _STREAM])
    scores = random.standard_normal((len(drugs), len(VARIED)))
    factors = {name: np.exp(log_sd(cv[name]) * scores[:, i]) for i, name in enumerate(VARIED) if name in cv}
    for name in factors:
        if name == "clint":
            missing = not drugs[0].saturable and all(getattr(drugs[0], f) is None for f in HEPATIC_FIELDS)
        else:
            missing = getattr(drugs[0], name) is None
        if missing:
            raise InputError(f"population.drug_cv.{name}", "varies what the drug does not state")
    return [_varied(drug, {name: float(f[i]) for name, f in factors.items()}) for i, drug in enumerate(drugs)]


def _varied(drug: Drug, factors: Mapping[str, float]) -> Drug:
    change: dict[str, Any] = {}
    for name, factor in factors.items():
        if name == "fup":
            change["fup"] = drug.fup / (drug.fup + factor * (1 - drug.fup))
        elif name == "clint":
            stated = [field for field in HEPATIC_FIELDS if getattr(drug, field) is not None]
            change |= {field: getattr(drug, field) * factor for field in stated}
            change["saturable"] = tuple(replace(p, vmax_mg_h=p.vmax_mg_h * factor) for p in drug.saturable)
        else:
            change[name] = getattr(drug, name) * factor
    return replace(drug, **change)

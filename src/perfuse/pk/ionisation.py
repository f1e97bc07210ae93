"""Ionisation at a pH: the Henderson-Hasselbalch equation for any number of acidic and basic groups.

Axis legend: C drugs, G groups (padded with NaN).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from perfuse.errors import InputError

PLASMA_PH = 7.4
IonClass = Literal["acid", "base", "neutral", "zwitterion"]
PKA_RANGE = (-20.0, 30.0)
"""Bounds that only wrong input exceeds: predicted pKa lists reach from about -7 to 15."""


def check_number(field: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse a number that is not finite or out of range.

    Raises:
        InputError: naming the field, the value and what is allowed.
    """
    inside = math.isfinite(value) and (low < value if open_low else low <= value) and value <= high
    if not inside:
        raise InputError(field, value=float(value), allowed=f"{'(' if open_low else '['}{low:g}, {high:g}]")


def check_pka(pka_acid: tuple[float, ...], pka_base: tuple[float, ...]) -> None:
    """Refuse a pKa out of range.

    Raises:
        InputError: naming the first.
    """
    for field, values in (("pka_acid", pka_acid), ("pka_base", pka_base)):
        for value in values:
            check_number(field, value, *PKA_RANGE)


def _log10_ladder(steps: np.ndarray) -> np.ndarray:
    """log10 of 1 + 10^s1 + 10^(s1+s2) + ... along the last axis, without overflow; NaN steps end the sum."""
    exponents = np.cumsum(np.where(np.isnan(steps), -np.inf, steps), axis=-1)
    exponents = np.concatenate((np.zeros((*steps.shape[:-1], 1)), exponents), -1)
    top = exponents.max(-1, keepdims=True)
    return top[..., 0] + np.log10((10.0 ** (exponents - top)).sum(-1))


def log10_species(pka_acid: np.ndarray, pka_base: np.ndarray, ph: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log10 of (all / un-ionised) for the acidic groups and for the basic groups, ``(...)`` each.

        acids: 1 + 10^(pH - pKa1) + 10^(2 pH - pKa1 - pKa2) + ...    (pKa ascending)
        bases: 1 + 10^(pKa1 - pH) + 10^(pKa1 + pKa2 - 2 pH) + ...    (pKa descending)

    Args:
        pka_acid, pka_base: ``(..., G)``, NaN where there is no group.
        ph: pH, broadcast against the leading axes.
    """
    ph = np.asarray(ph, dtype=np.float64)[..., None]
    acid = ph - np.sort(pka_acid, axis=-1)  # NaN sorts last
    base = -np.sort(-np.asarray(pka_base), axis=-1) - ph
    return _log10_ladder(acid), _log10_ladder(base)


def _row(values: tuple[float, ...]) -> np.ndarray:
    return np.asarray(values or (np.nan,), dtype=np.float64)


def log10_total_to_unionised(pka_acid: tuple[float, ...], pka_base: tuple[float, ...], ph: float = PLASMA_PH) -> float:
    """log10 of (all species / un-ionised species) at a pH (see ``log10_species``).

    The factors of acidic and basic groups multiply: the groups take up protons independently of one another, and the
    drug that carries both charges counts as ionised (``pk.rodgers_rowland`` counts it as un-ionised).

    Raises:
        InputError: for a pKa or pH that is not finite or out of range.
    """
    check_number("ph", ph, 0.0, 14.0)
    check_pka(pka_acid, pka_base)
    acid, base = log10_species(_row(pka_acid), _row(pka_base), ph)
    return float(acid + base)


def fraction_unionised(pka_acid: tuple[float, ...], pka_base: tuple[float, ...], ph: float = PLASMA_PH) -> float:
    """Share of the drug that carries no charge at a pH, in [0, 1]; see ``log10_total_to_unionised``."""
    return 10.0 ** -log10_total_to_unionised(pka_acid, pka_base, ph)


def unionised_fraction(pka_acid: np.ndarray, pka_base: np.ndarray, ph: float = PLASMA_PH) -> np.ndarray:
    """The same for many drugs at once, ``(C,)``, from ``(C, G)`` arrays padded with NaN."""
    acid, base = log10_species(pka_acid, pka_base, ph)
    return 10.0 ** -(acid + base)


def ion_class(pka_acid: tuple[float, ...], pka_base: tuple[float, ...], ph: float = PLASMA_PH) -> IonClass:
    """Acid, base, zwitterion or neutral: which of the drug's groups are more than half ionised at a pH."""
    check_number("ph", ph, 0.0, 14.0)
    check_pka(pka_acid, pka_base)
    acid = any(pka < ph for pka in pka_acid)
    base = any(pka > ph for pka in pka_base)
    if acid and base:
        return "zwitterion"
    return "acid" if acid else "base" if base else "neutral"

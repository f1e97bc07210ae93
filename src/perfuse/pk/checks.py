"""Range checks of single numbers that the clearance modules share."""

from __future__ import annotations

import math

from perfuse.errors import InputError

LEAST_MAGNITUDE, GREATEST_MAGNITUDE = 1e-100, 1e100


def number(field_name: str, value: object) -> float:
    """A finite float, or a clear refusal (text, NaN, infinity, a truth value).

    Raises:
        InputError: naming the field and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(field_name, "is not a number", value=value)
    if not math.isfinite(value):
        raise InputError(field_name, "is not finite", value=float(value))
    return representable(field_name, float(value))


def representable(field_name: str, value: float, where: str = "") -> float:
    """The value, or a refusal of one whose square or reciprocal no float can hold; 0 is allowed.

    Raises:
        InputError: naming the field and the value.
    """
    if value != 0 and not LEAST_MAGNITUDE <= abs(value) <= GREATEST_MAGNITUDE:
        raise InputError(field_name, "is too small or too large to compute with", value=value, where=where,
                         allowed=f"0, or {LEAST_MAGNITUDE:g} to {GREATEST_MAGNITUDE:g} in magnitude")  # fmt: skip
    return value


def check_positive(field: str, value: float, unit: str = "", *, or_zero: bool = False) -> None:
    """Refuse a value that is not finite or not above zero (or, with ``or_zero``, is negative).

    Raises:
        InputError: naming the field, its value and unit.
    """
    if not (math.isfinite(value) and (value >= 0 if or_zero else value > 0)):
        raise InputError(field, value=float(value), unit=unit, allowed=f"{'>=' if or_zero else '>'} 0 and finite")


def check_fraction(field: str, value: float) -> None:
    """Refuse a value outside (0, 1].

    Raises:
        InputError: naming the field and its value.
    """
    if not 0 < value <= 1:
        raise InputError(field, value=float(value), allowed="(0, 1]")

"""Unit conversion at the edges (pint): text in a file's unit column to a factor into Perfuse's units."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from perfuse.errors import InputError

if TYPE_CHECKING:
    from pint import UnitRegistry

# No digits: a unit is not an expression to be computed. Both micro signs count as letters.
_UNIT_TEXT = re.compile(r"[A-Za-zµμ]{1,20}(\s*[/*]\s*[A-Za-zµμ]{1,20}){0,3}")


@lru_cache(maxsize=1)
def _registry() -> UnitRegistry:
    from pint import UnitRegistry

    return UnitRegistry()


def conversion_factor(
    unit: str, target: str, field: str, where: str = "", mw_g_mol: float | None = None,
    body_weight_kg: float | None = None,
) -> float:  # fmt: skip
    """What a value in ``unit`` is multiplied by to be in ``target``.

    Args:
        unit: Unit as written in the file, such as ``ng/mL``; case counts (``mg`` is not ``Mg``).
        target: ``h``, ``mg`` or ``mg/L``.
        field: Column of the value, for the error.
        where: Place, for the error.
        mw_g_mol: Molecular weight, g/mol, which turns amounts of substance into mass.
        body_weight_kg: Body weight, kg, which doses per kg (``mg/kg``) are multiplied by.

    Raises:
        InputError: for an unknown unit, one of another kind, or one that needs a molecular or body weight.
    """
    text = unit.strip()
    if not _UNIT_TEXT.fullmatch(text):
        raise InputError(f"{field}_unit", "is no unit", value=unit, allowed=f"e.g. {target}", where=where)
    factor = 1.0
    per_kg = re.fullmatch(r"(.+?)\s*/\s*kg", text)
    if per_kg and target == "mg":
        if body_weight_kg is None:
            raise InputError(f"{field}_unit", "is per kg of body weight", value=unit, where=where,
                             hint="give body_weight_kg, or the dose in mg")  # fmt: skip
        text, factor = per_kg.group(1), body_weight_kg
    try:
        plain, per_mw = _pint_factors(text, target)
    except ValueError as error:
        raise InputError(
            f"{field}_unit", str(error), value=unit, allowed=f"convertible to {target}", where=where
        ) from None
    if not per_mw:
        return factor * plain
    if mw_g_mol is None:
        raise InputError(
            f"{field}_unit", "is molar and needs a molecular weight", value=unit, where=where,
            hint="give mw_g_mol (g/mol), or the values by mass",
        )  # fmt: skip
    return factor * plain * mw_g_mol


@lru_cache(maxsize=1024)
def _pint_factors(unit: str, target: str) -> tuple[float, bool]:
    """Factor of ``unit`` into ``target``, and whether it still wants multiplying by g/mol.

    Raises:
        ValueError: saying what is the matter with the unit.
    """
    registry = _registry()
    wanted = registry.Quantity(1.0, target)
    try:
        quantity = registry.Quantity(1.0, registry.parse_units(unit))
    except Exception:  # pint raises many kinds, tokeniser errors among them
        raise ValueError("is unknown") from None
    if quantity.check(wanted.dimensionality):
        return float(quantity.to(target).magnitude), False
    try:
        per_mol = quantity * registry.Quantity(1.0, "g/mol")
    except Exception:  # degrees Celsius, decibels: what has an offset, or is a logarithm, multiplies nothing
        raise ValueError("is of another kind") from None
    if not per_mol.check(wanted.dimensionality):
        raise ValueError("is of another kind")
    return float(per_mol.to(target).magnitude), True

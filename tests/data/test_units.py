"""Unit conversion at the edges."""

from __future__ import annotations

import pytest

from perfuse.data.units import conversion_factor
from perfuse.errors import InputError


@pytest.mark.parametrize(
    ("unit", "target", "factor"),
    [
        ("mg/L", "mg/L", 1), ("ng/mL", "mg/L", 1e-3), ("ug/mL", "mg/L", 1), ("µg/mL", "mg/L", 1), ("μg/ml", "mg/L", 1),
        ("g/L", "mg/L", 1e3), ("pg/mL", "mg/L", 1e-6), ("mg/dL", "mg/L", 10), ("ug / L", "mg/L", 1e-3),
        ("min", "h", 1 / 60), ("s", "h", 1 / 3600), ("day", "h", 24), ("d", "h", 24), ("hr", "h", 1),
        ("week", "h", 168),
        ("g", "mg", 1e3), ("ug", "mg", 1e-3), ("mcg", "mg", 1e-3),
    ],
)  # fmt: skip
def test_factors(unit: str, target: str, factor: float) -> None:
    assert conversion_factor(unit, target, "x") == pytest.approx(factor, rel=1e-14)


@pytest.mark.parametrize(
    ("unit", "target", "factor"), [("umol/L", "mg/L", 0.3), ("nM", "mg/L", 3e-4), ("mmol", "mg", 300)]
)
def test_molar_units_use_the_molecular_weight(unit: str, target: str, factor: float) -> None:
    assert conversion_factor(unit, target, "x", mw_g_mol=300.0) == pytest.approx(factor, rel=1e-14)
    with pytest.raises(InputError, match="x_unit is molar and needs a molecular weight"):
        conversion_factor(unit, target, "x")


def test_doses_per_kg_use_the_body_weight() -> None:
    assert conversion_factor("mg/kg", "mg", "dose", body_weight_kg=70.0) == pytest.approx(70)
    assert conversion_factor("umol/kg", "mg", "dose", mw_g_mol=500.0, body_weight_kg=20.0) == pytest.approx(10)
    with pytest.raises(InputError, match="per kg of body weight"):
        conversion_factor("mg/kg", "mg", "dose")


@pytest.mark.parametrize("unit", ["", "10 mg", "mg**9**9", "__import__", "mg;L", "m" * 50, "mg/L/L/L/L/L"])
def test_text_that_is_no_unit_is_refused(unit: str) -> None:
    with pytest.raises(InputError, match="x_unit is no unit"):
        conversion_factor(unit, "mg", "x")


@pytest.mark.parametrize("unit", ["furlongs", "mgg", "MG"])
def test_unknown_and_wrong_units_are_refused(unit: str) -> None:
    with pytest.raises(InputError, match="x_unit is (unknown|of another kind)"):
        conversion_factor(unit, "mg", "x")


@pytest.mark.parametrize(
    ("unit", "target"), [("mg", "mg/L"), ("h", "mg"), ("mg/L", "h"), ("mol", "mg/L"), ("mg/kg", "mg/L")]
)
def test_units_of_another_kind_are_refused(unit: str, target: str) -> None:
    with pytest.raises(InputError, match="x_unit is of another kind"):
        conversion_factor(unit, target, "x", mw_g_mol=100.0)

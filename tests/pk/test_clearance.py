"""Well-stirred liver, in-vitro scaling and filtration: limits, inversion, published values, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from perfuse.errors import InputError
from perfuse.pk import clearance
from perfuse.pk.physiology import ORGAN_INDEX, human_reference


def test_small_clint_gives_unbound_clint() -> None:
    assert clearance.hepatic_clearance_well_stirred(1e-6, 0.2, 0.8, 90.0) == pytest.approx(0.25e-6, rel=1e-6)
    assert clearance.hepatic_clearance_well_stirred(0.0, 0.2, 0.8, 90.0) == 0.0


def test_large_clint_gives_liver_flow_and_never_more() -> None:
    assert clearance.hepatic_clearance_well_stirred(1e12, 0.2, 0.8, 90.0) == pytest.approx(90.0)
    assert clearance.hepatic_clearance_well_stirred(1e300, 1.0, 0.8, 90.0) <= 90.0


def test_clearance_grows_with_clint() -> None:
    values = [clearance.hepatic_clearance_well_stirred(10.0**k, 0.1, 1.0, 90.0) for k in range(-3, 6)]
    assert all(a < b for a, b in zip(values, values[1:], strict=False))


@pytest.mark.parametrize(("clint", "published"), [(48.0, 15.0), (1.2, 1.1)])
def test_published_values(clint: float, published: float) -> None:
    # Obach RS. Drug Metab Dispos 1997;25:1359-1369, table 3, equation 1 (binding ignored): mL/min/kg, Q = 21.
    # Propranolol's and warfarin's entries, printed with two digits.
    assert clearance.hepatic_clearance_well_stirred(clint, 1.0, 1.0, 21.0) == pytest.approx(published, rel=0.04)


@pytest.mark.parametrize("clint", [1e-3, 1.0, 80.0, 4e4])
def test_inversion_returns_the_clint(clint: float) -> None:
    blood = clearance.hepatic_clearance_well_stirred(clint, 0.07, 0.62, 90.0)
    assert clearance.clint_from_hepatic_clearance(blood, 0.07, 0.62, 90.0) == pytest.approx(clint, rel=1e-9)
    total_plasma = blood * 0.62 + 0.5
    inverted = clearance.clint_from_total_clearance(total_plasma, 0.5, 0.07, 0.62, 90.0)
    assert inverted == pytest.approx(clint, rel=1e-9)


def test_inversion_limits() -> None:
    assert clearance.clint_from_hepatic_clearance(0.0, 0.1, 1.0, 90.0) == 0.0
    small = clearance.clint_from_hepatic_clearance(1e-6, 0.1, 2.0, 90.0)
    assert small == pytest.approx(1e-6 * 2.0 / 0.1, rel=1e-6)
    assert clearance.clint_from_hepatic_clearance(89.9999, 0.1, 1.0, 90.0) > 1e6


def test_all_renal_leaves_no_clint() -> None:
    assert clearance.clint_from_total_clearance(5.0, 5.0, 0.5, 1.0, 90.0) == 0.0


def test_hepatocyte_scaling_by_hand() -> None:
    # 10 uL/min/10^6 cells x 99e6 cells/g x 1800 g = 1.782 L/min
    assert clearance.scale_hepatocyte_clint(10.0, 1.8) == pytest.approx(1.782 * 60)
    liver_l = float(human_reference(70.0).volume_l[ORGAN_INDEX["liver"]])
    assert clearance.scale_hepatocyte_clint(20.0, liver_l) == pytest.approx(
        2 * clearance.scale_hepatocyte_clint(10.0, liver_l)
    )
    assert clearance.scale_hepatocyte_clint(0.0, 1.8) == 0.0


def test_filtration() -> None:
    assert clearance.glomerular_filtration_l_h(70.0) == pytest.approx(7.2)
    assert clearance.glomerular_filtration_l_h(140.0) == pytest.approx(7.2 * 2**0.75)
    assert clearance.renal_clearance_filtration(0.25, 70.0) == pytest.approx(1.8)


REFUSED: list[tuple[Callable[..., float], tuple[float, ...], str]] = [
    (clearance.hepatic_clearance_well_stirred, (-1.0, 0.1, 1.0, 90.0), "clint_l_h"),
    (clearance.hepatic_clearance_well_stirred, (1.0, 0.0, 1.0, 90.0), "fup"),
    (clearance.hepatic_clearance_well_stirred, (1.0, 1.1, 1.0, 90.0), "fup"),
    (clearance.hepatic_clearance_well_stirred, (1.0, 0.1, 0.0, 90.0), "bp_ratio"),
    (clearance.hepatic_clearance_well_stirred, (1.0, 0.1, 1.0, math.inf), "hepatic_flow_l_h"),
    (clearance.clint_from_hepatic_clearance, (90.0, 0.1, 1.0, 90.0), "cl_hepatic_blood_l_h"),
    (clearance.clint_from_hepatic_clearance, (-1.0, 0.1, 1.0, 90.0), "cl_hepatic_blood_l_h"),
    (clearance.clint_from_hepatic_clearance, (1.0, math.nan, 1.0, 90.0), "fup"),
    (clearance.clint_from_hepatic_clearance, (1.0, 0.1, -1.0, 90.0), "bp_ratio"),
    (clearance.clint_from_hepatic_clearance, (1.0, 0.1, 1.0, 0.0), "hepatic_flow_l_h"),
    (clearance.clint_from_total_clearance, (1.0, 2.0, 0.1, 1.0, 90.0), "cl_total_l_h"),
    (clearance.clint_from_total_clearance, (-1.0, 0.0, 0.1, 1.0, 90.0), "cl_total_l_h"),
    (clearance.clint_from_total_clearance, (1.0, -1.0, 0.1, 1.0, 90.0), "cl_renal_l_h"),
    (clearance.clint_from_total_clearance, (1.0, 0.0, 0.1, 0.0, 90.0), "bp_ratio"),
    (clearance.scale_hepatocyte_clint, (-1.0, 1.8), "clint_ul_min_million_cells"),
    (clearance.scale_hepatocyte_clint, (math.nan, 1.8), "clint_ul_min_million_cells"),
    (clearance.scale_hepatocyte_clint, (1.0, 0.0), "liver_volume_l"),
    (clearance.glomerular_filtration_l_h, (0.0,), "body_weight_kg"),
    (clearance.glomerular_filtration_l_h, (301.0,), "body_weight_kg"),
    (clearance.renal_clearance_filtration, (0.0, 70.0), "fup"),
    (clearance.renal_clearance_filtration, (0.5, math.nan), "body_weight_kg"),
]


@pytest.mark.parametrize(("function", "arguments", "field"), REFUSED)
def test_refused(function: Callable[..., float], arguments: tuple[float, ...], field: str) -> None:
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert error.value.field == field
    assert "allowed:" in str(error.value)

"""Liver models: limits, order, published values, inversion, the dispersion equation itself, equal clearance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.errors import InputError
from perfuse.pk.liver_models import (
    DISPERSION_NUMBER,
    LIVER_MODELS,
    clint_from_hepatic_clearance,
    hepatic_clearance,
    hepatic_extraction,
    well_stirred_equivalent_clint,
)

LOG_CLINT = st.floats(-4.0, 5.0)


@pytest.mark.parametrize("model", LIVER_MODELS)
def test_limits(model: str) -> None:
    assert hepatic_clearance(0.0, 0.2, 0.8, 90.0, model) == 0.0
    assert hepatic_clearance(1e-7, 0.2, 0.8, 90.0, model) == pytest.approx(0.25e-7, rel=1e-8)  # fu_b CL_int
    assert hepatic_clearance(1e12, 0.2, 0.8, 90.0, model) == pytest.approx(90.0)
    assert hepatic_clearance(1e308, 1.0, 0.01, 90.0, model) <= 90.0


@given(LOG_CLINT, st.floats(0.01, 1.0))
@settings(max_examples=40, deadline=None)
def test_dispersion_lies_between_the_other_two(log_clint: float, fup: float) -> None:
    low, middle, high = (
        hepatic_clearance(10**log_clint, fup, 1.0, 90.0, model)
        for model in ("well-stirred", "dispersion", "parallel-tube")
    )
    assert low <= middle * (1 + 1e-12) and middle <= high * (1 + 1e-12)


@given(LOG_CLINT, st.sampled_from(LIVER_MODELS))
@settings(max_examples=60, deadline=None)
def test_extraction_and_availability_add_to_one(log_clint: float, model: str) -> None:
    e, f = hepatic_extraction(10**log_clint, 0.1, 0.9, 90.0, model)
    assert e + f == pytest.approx(1.0, abs=1e-14)


@given(st.floats(-9.0, -1e-9), st.sampled_from(LIVER_MODELS), st.floats(0.02, 5.0))
@settings(max_examples=80, deadline=None)
def test_inversion_gives_the_clearance_back(log_share: float, model: str, dispersion_number: float) -> None:
    clearance = 90.0 * 10**log_share * (1 - 1e-9)
    clint = clint_from_hepatic_clearance(clearance, 0.07, 0.62, 90.0, model, dispersion_number)
    assert hepatic_clearance(clint, 0.07, 0.62, 90.0, model, dispersion_number) == pytest.approx(clearance, rel=1e-10)


def test_inversions_in_closed_form() -> None:
    assert clint_from_hepatic_clearance(45.0, 0.1, 0.5, 90.0) == pytest.approx(90 / 0.2)
    assert clint_from_hepatic_clearance(45.0, 0.1, 0.5, 90.0, "parallel-tube") == pytest.approx(90 * math.log(2) / 0.2)


def test_dispersion_number_leads_from_one_model_to_the_other() -> None:
    tube, stirred = (hepatic_clearance(900.0, 0.1, 1.0, 90.0, m) for m in ("parallel-tube", "well-stirred"))
    assert hepatic_clearance(900.0, 0.1, 1.0, 90.0, "dispersion", 1e-3) == pytest.approx(tube, rel=1e-3)
    assert hepatic_clearance(900.0, 0.1, 1.0, 90.0, "dispersion", 1e3) == pytest.approx(stirred, rel=1e-3)


@pytest.mark.parametrize("efficiency", [0.3, 1.0, 4.0])
def test_dispersion_solves_its_equation(efficiency: float) -> None:
    """DN C'' - C' - R C = 0 on [0, 1], C - DN C' = 1 at the inlet and C' = 0 at the outlet, by finite volumes."""
    n = 2000
    dx, flux = 1 / n, DISPERSION_NUMBER * n
    matrix = np.zeros((n, n))
    index = np.arange(n)
    matrix[index, index] = 1 / 2 * np.where((index == 0) | (index == n - 1), np.where(index == 0, 1, -1), 0)
    matrix[index, index] += efficiency * dx + flux * np.where((index == 0) | (index == n - 1), 1, 2)
    matrix[index[1:], index[:-1]] = -(0.5 + flux)
    matrix[index[:-1], index[1:]] = 0.5 - flux
    matrix[n - 1, n - 1] += 1  # leaves with the stream
    inflow = np.zeros(n)
    inflow[0] = 1
    outlet = np.linalg.solve(matrix, inflow)[-1]
    _, availability = hepatic_extraction(efficiency * 90.0, 1.0, 1.0, 90.0, "dispersion")
    assert availability == pytest.approx(outlet, rel=1e-5)


@given(LOG_CLINT, st.sampled_from(LIVER_MODELS))
@settings(max_examples=60, deadline=None)
def test_well_stirred_equivalent_clears_the_same(log_clint: float, model: str) -> None:
    wanted = hepatic_clearance(10**log_clint, 0.1, 0.9, 90.0, model)
    equivalent = well_stirred_equivalent_clint(10**log_clint, 0.1, 0.9, 90.0, model)
    assert math.isfinite(equivalent)
    assert hepatic_clearance(equivalent, 0.1, 0.9, 90.0) == pytest.approx(wanted, rel=1e-8)


def test_equivalent_of_well_stirred_is_itself() -> None:
    assert well_stirred_equivalent_clint(123.4, 0.1, 0.9, 90.0, "well-stirred") == 123.4


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((-1.0, 0.1, 1.0, 90.0, "dispersion"), "clint_l_h"),
        ((1.0, 0.0, 1.0, 90.0, "dispersion"), "fup"),
        ((1.0, 0.1, 1.0, 90.0, "stirred"), "liver_model"),
        ((1.0, 0.1, 1.0, 90.0, "dispersion", 0.0), "dispersion_number"),
        ((1.0, 0.1, 1.0, 90.0, "dispersion", math.nan), "dispersion_number"),
    ],
)
def test_refused(arguments: tuple[object, ...], field: str) -> None:
    with pytest.raises(InputError) as error:
        hepatic_clearance(*arguments)  # type: ignore[arg-type]
    assert error.value.field == field


@pytest.mark.parametrize("model", LIVER_MODELS)
def test_a_clearance_of_all_liver_flow_has_no_inverse(model: str) -> None:
    with pytest.raises(InputError, match="reaches hepatic blood flow"):
        clint_from_hepatic_clearance(90.0, 0.1, 1.0, 90.0, model)

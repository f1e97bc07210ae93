"""One entry point for bodies and conditions: what it gives, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.errors import InputError
from perfuse.pk.bodies import CONDITIONS, reference, with_condition
from perfuse.pk.growth import for_person, reference_person
from perfuse.pk.physiology import check_flow_balance, rat_reference


def test_defaults_are_the_man_of_35_and_the_rat_of_250_g() -> None:
    man, rat = reference(), reference("rat")
    assert (man.sex, man.age_year, man.body_weight_kg) == ("male", 35.0, pytest.approx(73))
    np.testing.assert_array_equal(man.volume_l, reference_person(35, "male").volume_l)
    np.testing.assert_array_equal(rat.flow_l_h, rat_reference().flow_l_h)
    assert rat.body_weight_kg == 0.25


def test_arguments_reach_the_body() -> None:
    girl = reference("human", "female", age_year=8, body_weight_kg=30, height_cm=130)
    np.testing.assert_array_equal(girl.volume_l, for_person(8, "female", 30).volume_l)
    assert girl.height_cm == 130
    assert reference("rat", body_weight_kg=0.3).volume_l.sum() == pytest.approx(0.3)


@settings(max_examples=40, deadline=None)
@given(
    condition=st.sampled_from(CONDITIONS), sex=st.sampled_from(["male", "female"]), age=st.floats(18, 95),
    relative=st.floats(0.6, 1.8),
)  # fmt: skip
def test_every_condition_leaves_a_body_that_adds_up(condition: str, sex: str, age: float, relative: float) -> None:
    healthy = reference("human", sex, age_year=age).scaled(60 * relative)
    ill, _ = with_condition(healthy, condition, 140.0 if condition == "obese" else None)
    check_flow_balance(ill.flow_l_h, rtol=1e-12)
    assert ill.volume_l.sum() == pytest.approx(ill.body_weight_kg, rel=1e-12)
    assert (ill.volume_l > 0).all()
    assert (ill.flow_l_h > 0).all()
    assert ill.hepatic_artery_l_h > 0
    assert 0 < ill.haematocrit <= healthy.haematocrit
    assert ill.gfr_or_default <= healthy.gfr_or_default or condition == "obese"
    assert ill.name != healthy.name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: reference("dog"), "species is unknown"),
        (lambda: reference("rat", "male"), "sex is not modelled for a rat"),
        (lambda: reference("rat", age_year=1), "age_year is not modelled for a rat"),
        (lambda: reference("rat", height_cm=20), "height_cm is not modelled for a rat"),
        (lambda: reference("human", "unknown"), "sex is unknown"),
        (lambda: reference(age_year=1), "age_year"),
        (lambda: reference(body_weight_kg=400), "body_weight_kg"),
        (lambda: with_condition(reference(), "renal:awful"), "condition is unknown"),
        (lambda: with_condition(reference("rat"), "renal:mild"), "condition is not modelled for a rat"),
        (lambda: with_condition(reference(), "obese"), "goes with the condition obese"),
        (lambda: with_condition(reference(), "renal:mild", 80), "goes with the condition obese"),
    ],
)
def test_what_is_not_modelled_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()

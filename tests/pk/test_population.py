"""Virtual people: they add up, vary as asked, correlate as asked, and repeat."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.errors import InputError
from perfuse.pk.growth import reference_bodies
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, check_flow_balance
from perfuse.pk.population import default_correlation, sample_population


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), cv=st.floats(0, 0.8), low=st.floats(2, 60))
def test_people_always_add_up(seed: int, cv: float, low: float) -> None:
    people = sample_population(
        np.random.default_rng(seed), 40, age_range_year=(low, low + 30), volume_cv=cv, flow_cv=cv, weight_cv=cv / 2
    )
    np.testing.assert_allclose(people.volume_l.sum(1), people.body_weight_kg, rtol=1e-12)
    check_flow_balance(people.flow_l_h)
    assert (people.volume_l > 0).all()
    assert len(people) == 40
    one = people.person(3)
    assert one.cardiac_output_l_h == people.flow_l_h[3, ORGAN_INDEX["lung"]]
    assert one.sex in ("male", "female")


def test_without_variation_everybody_is_the_reference() -> None:
    people = sample_population(
        np.random.default_rng(0), 30, share_female=0, weight_cv=0, volume_cv=0, flow_cv=0, output_cv=0
    )
    bodies = reference_bodies(people.age_year, "male")
    np.testing.assert_allclose(people.volume_l, bodies.volume_l, rtol=1e-12)
    np.testing.assert_allclose(people.flow_l_h, bodies.flow_l_h, rtol=1e-12)
    assert set(people.sex) == {"male"}


def test_spread_and_correlation_are_those_asked_for() -> None:
    n, heart = 8000, ORGAN_INDEX["heart"]  # a small organ: renormalising hardly touches it
    people = sample_population(
        np.random.default_rng(1), n, share_female=0, age_range_year=(25, 25), weight_cv=0, output_cv=0
    )
    log_volume, log_flow = np.log(people.volume_l[:, heart]), np.log(people.flow_l_h[:, heart])
    expected = np.sqrt(np.log1p(0.2**2))
    assert log_volume.std() == pytest.approx(np.hypot(expected, 0.11), rel=0.12)  # the sum of the others varies by 0.1
    assert np.corrcoef(log_volume, log_flow)[0, 1] == pytest.approx(0.5, abs=0.12)
    women = sample_population(np.random.default_rng(2), n, share_female=0.3)
    assert (women.sex == "female").mean() == pytest.approx(0.3, abs=0.02)
    weight = women.body_weight_kg[women.sex == "male"]
    assert weight.std() / weight.mean() == pytest.approx(0.15, abs=0.01)


def test_equal_seeds_give_equal_people() -> None:
    a, b = (sample_population(np.random.default_rng(7), 5) for _ in range(2))
    assert np.array_equal(a.volume_l, b.volume_l)
    assert not np.array_equal(a.volume_l, sample_population(np.random.default_rng(8), 5).volume_l)


def test_a_correlation_matrix_may_be_given() -> None:
    size = 2 * len(ORGANS)
    one = np.full((size, size), 0.999) + 0.001 * np.eye(size)  # all organs large together: sums leave nothing to vary
    people = sample_population(
        np.random.default_rng(3), 300, share_female=0, age_range_year=(25, 25), weight_cv=0, correlation=one
    )
    relative = people.volume_l[:, ORGAN_INDEX["liver"]]
    assert relative.std() / relative.mean() < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n is not allowed"), ({"share_female": 1.5}, "share_female"), ({"age_range_year": (1, 5)},
        "age_year"), ({"age_range_year": (30, 20)}, "youngest <= oldest"), ({"volume_cv": -0.1}, "volume_cv"),
        ({"flow_cv": float("nan")}, "flow_cv"), ({"correlation": np.eye(3)}, "no symmetric matrix"),
        ({"correlation": 2 * np.eye(28)}, "no correlation matrix"),
        ({"correlation": 2 * default_correlation() - 3 * np.eye(28) + 2 * np.full((28, 28), -0.9)}, "correlation"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"n": 3, **change}
    with pytest.raises(InputError, match=message):
        sample_population(np.random.default_rng(0), **arguments)

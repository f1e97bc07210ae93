"""Virtual people: they add up, vary as asked, correlate as asked, and repeat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import block_diag

from perfuse.errors import InputError
from perfuse.pk.growth import reference_bodies
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, PORTAL_ORGANS, check_flow_balance
from perfuse.pk.population import (
    HEIGHT_WEIGHT_CORRELATION,
    MCNALLY_FLOW_CV,
    MCNALLY_VOLUME_CV,
    Population,
    Variation,
    default_correlation,
    sample_population,
)

OUTFLOWS = [i for name, i in ORGAN_INDEX.items() if name not in ("blood", "lung")]


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
        np.random.default_rng(0), 30, share_female=0, weight_cv=0, volume_cv=0, flow_cv=0, output_cv=0,
        height_cv=0, gfr_cv=0,
    )  # fmt: skip
    bodies = reference_bodies(people.age_year, "male")
    np.testing.assert_allclose(people.volume_l, bodies.volume_l, rtol=1e-12)
    np.testing.assert_allclose(people.flow_l_h, bodies.flow_l_h, rtol=1e-12)
    np.testing.assert_allclose(people.height_cm, bodies.height_cm, rtol=1e-12)
    np.testing.assert_allclose(people.gfr_l_h, bodies.gfr_l_h, rtol=1e-12)
    assert set(people.sex) == {"male"}


def _log_factors(people: Population, sex: str) -> np.ndarray:
    """Logs of volumes and systemic outflows over the reference's, each centred within a body, ``(C, O + outflows)``."""
    reference = reference_bodies(people.age_year, sex)
    logs = []
    for volume, flow in ((people.volume_l, people.flow_l_h), (reference.volume_l, reference.flow_l_h)):
        outflow = flow.copy()
        outflow[:, ORGAN_INDEX["liver"]] -= outflow[:, [ORGAN_INDEX[o] for o in PORTAL_ORGANS]].sum(1)
        logs.append((np.log(volume), np.log(outflow[:, OUTFLOWS])))
    blocks = [ours - references for ours, references in zip(*logs, strict=True)]
    return np.concatenate([block - block.mean(1, keepdims=True) for block in blocks], 1)


def _some_correlation(seed: int) -> np.ndarray:
    loadings = np.random.default_rng(seed).standard_normal((2 * len(ORGANS), 3))
    covariance = loadings @ loadings.T + np.eye(2 * len(ORGANS))
    return covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))


@pytest.mark.parametrize(
    ("volume_cv", "flow_cv", "correlation"),
    [
        (0.2, 0.2, default_correlation()), (0.3, 0.1, _some_correlation(1)),
        (MCNALLY_VOLUME_CV, MCNALLY_FLOW_CV, default_correlation()),
    ],
)  # fmt: skip
def test_ratios_between_organs_vary_and_correlate_as_asked_for(
    volume_cv: Variation, flow_cv: float, correlation: np.ndarray
) -> None:
    """Adding up divides all organs by one number, which ratios do not see: their covariances are exact."""
    n = 20_000
    people = sample_population(
        np.random.default_rng(1), n, share_female=0, age_range_year=(25, 25), volume_cv=volume_cv, flow_cv=flow_cv,
        correlation=correlation,
    )  # fmt: skip
    cvs = [volume_cv.get(o, 0.0) if isinstance(volume_cv, Mapping) else volume_cv for o in ORGANS]
    sd = np.sqrt(np.log1p(np.square([*cvs, *[flow_cv] * len(ORGANS)])))
    used = [*range(len(ORGANS)), *(len(ORGANS) + i for i in OUTFLOWS)]
    covariance = (correlation * np.outer(sd, sd))[np.ix_(used, used)]
    sizes = (len(ORGANS), len(OUTFLOWS))
    centring = block_diag(*[np.eye(size) - 1 / size for size in sizes])
    expected = centring @ covariance @ centring
    found = np.cov(_log_factors(people, "male").T)
    error = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / n)
    assert np.abs((found - expected) / error).max() < 5


def test_people_differ_in_sex_size_and_filtration_as_asked_for() -> None:
    n = 20_000
    people = sample_population(np.random.default_rng(2), n, share_female=0.3, age_range_year=(25, 25))
    assert (people.sex == "female").mean() == pytest.approx(0.3, abs=0.015)
    men = people.sex == "male"
    for values, cv, reference in (
        (people.body_weight_kg, 0.15, 73.0), (people.height_cm, 0.04, 176.0), (people.gfr_l_h, None, None),
    ):  # fmt: skip
        spread = values[men].std() / values[men].mean()
        if cv is None:  # filtration varies with weight, too
            assert spread == pytest.approx(np.sqrt(0.15**2 + (0.75 * 0.15) ** 2), rel=0.03)
        else:
            assert spread == pytest.approx(cv, rel=0.03)
            assert np.median(values[men]) == pytest.approx(reference, rel=0.01)
    correlation = np.corrcoef(np.log(people.body_weight_kg[men]), np.log(people.height_cm[men]))[0, 1]
    assert correlation == pytest.approx(HEIGHT_WEIGHT_CORRELATION, abs=0.03)
    output = people.flow_l_h[men, ORGAN_INDEX["lung"]] / people.body_weight_kg[men] ** 0.75
    assert output.std() / output.mean() == pytest.approx(0.1, rel=0.03)


def test_height_and_filtration_are_drawn_last_and_only_if_they_vary() -> None:
    first, second = np.random.default_rng(4), np.random.default_rng(4)
    varied, fixed = sample_population(first, 6), sample_population(second, 6, height_cv=0, gfr_cv=0)
    np.testing.assert_array_equal(varied.volume_l, fixed.volume_l)
    np.testing.assert_array_equal(varied.flow_l_h, fixed.flow_l_h)
    assert (varied.height_cm != fixed.height_cm).all()
    assert (varied.gfr_l_h != fixed.gfr_l_h).all()


def test_organs_that_are_not_named_do_not_vary_by_themselves() -> None:
    people = sample_population(
        np.random.default_rng(5), 50, share_female=0, age_range_year=(25, 25), volume_cv={"liver": 0.3}, flow_cv={}
    )
    ratio = people.volume_l / people.volume_l[:, [ORGAN_INDEX["muscle"]]]
    varies = ratio.std(0) / ratio.mean(0) > 1e-9
    assert [organ for organ in ORGANS if varies[ORGAN_INDEX[organ]]] == ["liver"]


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
        ({"flow_cv": float("nan")}, "flow_cv"), ({"volume_cv": {"tail": 0.1}}, "volume_cv.tail is no organ"),
        ({"flow_cv": {"liver": -1.0}}, "flow_cv"), ({"height_cv": 3.0}, "height_cv"), ({"gfr_cv": -0.1}, "gfr_cv"),
        ({"correlation": np.eye(3)}, "no symmetric matrix"),
        ({"correlation": 2 * np.eye(28)}, "no correlation matrix"),
        ({"correlation": 2 * default_correlation() - 3 * np.eye(28) + 2 * np.full((28, 28), -0.9)}, "correlation"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"n": 3, **change}
    with pytest.raises(InputError, match=message):
        sample_population(np.random.default_rng(0), **arguments)

"""Conformal quantiles: the finite-sample correction, equal weight of drugs, and coverage that could fail."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perfuse.training.conformal import MIN_ORGAN_DRUGS, drug_weighted_quantile, least_drugs, organ_quantiles


def test_quantile_of_one_value_a_drug_is_the_textbooks() -> None:
    """ceil((n + 1) level)-th smallest: with 19 drugs at 90 % the 18th, where the plain quantile would be the 17.1th."""
    score = np.arange(1.0, 20.0)[::-1]
    assert drug_weighted_quantile(score, np.arange(19), 0.9) == 18.0
    assert drug_weighted_quantile(score, np.arange(19), 0.5) == 10.0
    assert drug_weighted_quantile(score, np.arange(19), 0.95) == 19.0


def test_too_few_drugs_have_no_quantile() -> None:
    assert [least_drugs(level) for level in (0.5, 0.8, 0.9, 0.95)] == [1, 4, 9, 19]
    for level in (0.5, 0.8, 0.9, 0.95):
        n = least_drugs(level)
        assert drug_weighted_quantile(np.arange(float(n)), np.arange(n), level) == n - 1
        assert drug_weighted_quantile(np.arange(n - 1.0), np.arange(n - 1), level) == math.inf


def test_a_drug_with_many_values_weighs_as_one() -> None:
    """1,000 values of drug 0 at 5 and one value of each of 99 others at 1: a pooled quantile would be 5."""
    score = np.concatenate((np.full(1000, 5.0), np.ones(99)))
    drug = np.concatenate((np.zeros(1000, dtype=int), np.arange(1, 100)))
    assert drug_weighted_quantile(score, drug, 0.9) == 1.0
    assert np.quantile(score, 0.9) == 5.0


@pytest.mark.parametrize(("most_values", "at_most"), [(1, 0.915), (30, 0.945)])
def test_coverage_is_promised_with_few_drugs(most_values: int, at_most: float) -> None:
    """20 drugs of very unequal spread and size: the mean coverage of new drugs over 400 draws is 90 % or a bit more.

    Without the correction (level x n instead of n + 1) it falls below.
    """
    random = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        sizes = random.integers(1, most_values + 1, n)
        drug = np.repeat(np.arange(n), sizes)
        spread = np.exp(random.normal(0, 1, n))
        return np.abs(random.normal(size=len(drug))) * spread[drug], drug

    def share(score: np.ndarray, drug: np.ndarray, q: float) -> float:
        return float((np.bincount(drug, weights=score <= q) / np.bincount(drug)).mean())

    corrected, plain = [], []
    for _ in range(400):
        score, drug = draw(20)
        fresh = draw(50)
        corrected.append(share(*fresh, drug_weighted_quantile(score, drug, 0.9)))
        plain.append(share(*fresh, drug_weighted_quantile(score, drug, 0.9 * 20 / 21)))
    assert 0.895 < np.mean(corrected) < at_most
    assert np.mean(plain) < 0.895


def test_each_organ_has_its_own_quantile_where_drugs_suffice() -> None:
    n, few = 150, MIN_ORGAN_DRUGS - 1
    score = np.concatenate((np.linspace(0, 1, n), np.linspace(0, 10, n), np.full(few, 100.0)))
    drug = np.concatenate((np.arange(n), np.arange(n), np.arange(few)))
    organ = np.repeat([0, 1, 2], [n, n, few])
    quantiles, drugs = organ_quantiles(score, drug, organ, (0.5, 0.9), 4)
    assert drugs.tolist() == [n, n, few, 0]
    assert quantiles[1, 0] == pytest.approx(0.906, abs=0.005) and quantiles[1, 1] == pytest.approx(9.06, abs=0.05)
    pooled = drug_weighted_quantile(score, drug, 0.9)
    assert quantiles[1, 2] == pooled and np.isnan(quantiles[:, 3]).all()
    assert (np.diff(quantiles[:, :3], axis=0) >= 0).all()

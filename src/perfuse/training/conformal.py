"""Conformal quantiles where each drug weighs the same.

A new drug d has many scores s_dj. With n calibration drugs that are exchangeable with it,

    q = min { s : sum_d F_d(s) / (n + 1) >= level },    F_d(s) = share of drug d's scores that are <= s

gives E[F_new(q)] >= level: of a new drug's values, the expected share with a score <= q is at least the level. This is
the hierarchical conformal quantile (Lee Y, Barber RF, Willett R. arXiv:2306.06342) and conformal risk control of the
share missed (Angelopoulos AN, Bates S, Fisch A, Lei L, Schuster T. ICLR 2024).

Axis legend: V values, O organs, L levels.
"""

from __future__ import annotations

import math

import numpy as np

LEVELS = (0.5, 0.8, 0.9, 0.95)
MIN_ORGAN_DRUGS = 100
"""An organ with fewer drugs takes the quantile of all organs together."""


def least_drugs(level: float) -> int:
    """Fewest drugs with which a level can be promised: n / (n + 1) >= level."""
    return math.ceil(level / (1 - level) - 1e-9)


def drug_weighted_quantile(score: np.ndarray, drug: np.ndarray, level: float) -> float:
    """The conformal quantile of scores ``(V,)``, whose drugs are ``(V,)`` whole numbers; inf with too few drugs."""
    _, code, count = np.unique(drug, return_inverse=True, return_counts=True)
    order = np.argsort(score, kind="stable")
    covered = np.cumsum(1.0 / count[code[order]])
    reached = covered >= level * (len(count) + 1) * (1 - 1e-12)
    return float(score[order[int(np.argmax(reached))]]) if reached.any() else math.inf


def organ_quantiles(
    score: np.ndarray, drug: np.ndarray, organ: np.ndarray, levels: tuple[float, ...], n_organs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles ``(L, O)`` and drugs ``(O,)`` of each organ.

    An organ with ``MIN_ORGAN_DRUGS`` drugs has a quantile of its own, so the promise holds in that organ. One with
    fewer takes that of all values together, and one without any has none (NaN).
    """
    drugs = np.asarray([len(np.unique(drug[organ == o])) for o in range(n_organs)])
    quantiles = np.full((len(levels), n_organs), np.nan)
    for i, level in enumerate(levels):
        pooled = drug_weighted_quantile(score, drug, level)
        for o in np.flatnonzero(drugs):
            here = organ == o
            enough = drugs[o] >= MIN_ORGAN_DRUGS
            quantiles[i, o] = drug_weighted_quantile(score[here], drug[here], level) if enough else pooled
    return quantiles, drugs

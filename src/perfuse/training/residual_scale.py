"""The scale of a model's errors: how large |ln(pred / true)| is to be expected, value by value.

    ln sigma = table(organ, time since the last dose) + curve(ln (C V_blood / dose)) + drug(distance, features)

The first two are piecewise linear in the logs, fitted by ridge regression of ln(|r| + epsilon) on all values, each
drug weighing the same; the third is fitted on what is left, one value a curve, with a penalty that generalised
cross-validation chooses (Golub GH, Heath M, Wahba G. Technometrics 1979;21:215-223): where the features say nothing
of the error, it fades to 0. Last, the table is moved so that near each organ's time knots the same share (90 %) of
errors is below a common multiple of sigma: where errors have heavy tails, their typical size alone is no guide to the
ends of an interval. Divided by such a scale, errors of all organs, times and drugs are alike, so one quantile
serves them all (locally weighted conformal prediction: Lei J et al. J Am Stat Assoc 2018;113:1094-1111).

Axis legend: C curves, V values, O organs, T times, K time knots, M level knots, F features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from perfuse.pk.physiology import ORGANS

TIME_KNOTS_LN_H = np.log([0.1, 0.3, 1.0, 3.0, 8.0, 24.0, 72.0])
LEVEL_KNOTS_LN = np.log(10.0) * np.arange(-5.0, 1.0)
"""ln of concentration x blood volume / dose."""
MAX_LN_SIGMA = 50.0
"""|ln sigma| is held within this: errors are from rounding (ln 1e-15 = -35) to far beyond any use."""
MAX_Z = 3.0
"""Standardised features are held within this, so that no feature alone makes sigma run away."""
_EPSILON_SHARE = 0.05
_RIDGE_TABLE, _RIDGE_MARGIN, _RIDGE_LEVEL = 0.3, 0.01, 0.03
"""In units of drugs: the table is drawn towards organ + time, these towards 0."""
_DRUG_PENALTIES = np.append(np.geomspace(3.0, 3e4, 13), np.inf)
_TAIL_LEVEL = 0.9
_LEAST_TAIL_DRUGS = 20
"""Cells of the table with fewer drugs keep their tails; with more, the move is drawn towards 0 by as many."""


@dataclass(frozen=True)
class Residuals:
    """Errors of calibration curves and what they may depend on.

    Attributes:
        curve: ``(V,)`` curve of each value, 0..C-1.
        organ: ``(V,)``.
        ln_time: ``(V,)`` ln h since the last dose.
        ln_level: ``(V,)`` ln of predicted concentration x blood volume / dose.
        error: ``(V,)`` |ln(pred / true)|.
        weight: ``(V,)`` of each value; every drug's sum to 1.
        drug: ``(V,)`` drug of each value.
        curve_features: ``(C, F)`` ln of distance over the typical one, then standardised features.
        is_outside: ``(C,)`` bool: outside of what the model was trained on.
    """

    curve: np.ndarray
    organ: np.ndarray
    ln_time: np.ndarray
    ln_level: np.ndarray
    error: np.ndarray
    weight: np.ndarray
    drug: np.ndarray
    curve_features: np.ndarray
    is_outside: np.ndarray

    def of_drugs(self, chosen: np.ndarray) -> Residuals:
        """The values of some drugs; curves keep their numbers."""
        return self._values(np.isin(self.drug, chosen))

    def some(self, most: int, random: np.random.Generator) -> Residuals:
        """At most so many values, drawn from all alike."""
        n = len(self.error)
        return self if n <= most else self._values(np.sort(random.choice(n, most, replace=False)))

    def _values(self, keep: np.ndarray) -> Residuals:
        names = ("curve", "organ", "ln_time", "ln_level", "error", "weight", "drug")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})


@dataclass(frozen=True)
class ResidualScale:
    """Fitted parameters.

    Attributes:
        table: ``(O, K)`` ln sigma at the time knots.
        level: ``(M,)`` added at the level knots.
        centre, spread: ``(2 F - 1,)`` standardisation of the drug terms.
        drug: ``(2 F - 1,)`` their coefficients; the first, of the distance, is never negative.
    """

    table: np.ndarray
    level: np.ndarray
    centre: np.ndarray
    spread: np.ndarray
    drug: np.ndarray

    def values(self, organ: np.ndarray, ln_time: np.ndarray, ln_level: np.ndarray) -> np.ndarray:
        """ln sigma of values without the drug's part; arrays of one shape."""
        low, part = _between(ln_time, TIME_KNOTS_LN_H)
        out = self.table[organ, low] * (1 - part) + self.table[organ, low + 1] * part
        low, part = _between(ln_level, LEVEL_KNOTS_LN)
        return out + self.level[low] * (1 - part) + self.level[low + 1] * part

    def curves(self, features: np.ndarray, is_outside: np.ndarray) -> np.ndarray:
        """The drug's part of ln sigma, ``(C,)``.

        Outside of what the model was trained on (``(C,)`` bool) features can only widen: that a feature narrowed the
        errors was learned inside.
        """
        parts = (_drug_terms(features) - self.centre) / self.spread * self.drug
        others = parts[:, 1:].sum(axis=1)
        out: np.ndarray = parts[:, 0] + np.where(is_outside, np.maximum(others, 0.0), others)
        return out


def bounded(ln_sigma: np.ndarray) -> np.ndarray:
    """ln sigma held within ``MAX_LN_SIGMA``."""
    return np.clip(ln_sigma, -MAX_LN_SIGMA, MAX_LN_SIGMA)


def _between(x: np.ndarray, knots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The knot below and how far towards the next, in 0..1; outside the ends, at the end."""
    inside = np.clip(x, knots[0], knots[-1])
    low = np.clip(np.searchsorted(knots, inside, side="right") - 1, 0, len(knots) - 2)
    return low, (inside - knots[low]) / (knots[low + 1] - knots[low])


def _drug_terms(features: np.ndarray) -> np.ndarray:
    """``(C, 2 F - 1)``: distance, features and their squares."""
    z = np.clip(features[:, 1:], -MAX_Z, MAX_Z)
    return np.column_stack((features[:, :1], z, z * z))


def fit_scale(residuals: Residuals) -> ResidualScale:
    """Fit on the curves of some drugs; what it is judged by must be others."""
    r = residuals
    weight = r.weight / r.weight.sum() * len(np.unique(r.drug))
    order = np.argsort(r.error, kind="stable")
    typical = r.error[order[np.searchsorted(np.cumsum(weight[order]), 0.5 * weight.sum())]]
    y = np.log(r.error + max(_EPSILON_SHARE * typical, 1e-13))
    table, level = _fit_values(r, y, weight)
    size = 2 * r.curve_features.shape[1] - 1
    blank = ResidualScale(table, level, np.zeros(size), np.ones(size), np.zeros(size))
    left = y - blank.values(r.organ, r.ln_time, r.ln_level)
    n = len(r.curve_features)
    curve_weight = np.bincount(r.curve, weights=weight, minlength=n)
    seen = curve_weight > 0
    mean = np.bincount(r.curve, weights=weight * left, minlength=n)[seen] / curve_weight[seen]
    terms = _drug_terms(r.curve_features[seen])
    w = curve_weight[seen] / curve_weight[seen].sum()
    centre = w @ terms
    spread = np.sqrt(w @ (terms - centre) ** 2)
    # A term that hardly varies here (the distance in a task of one body, say) must not become a lever elsewhere.
    usable = spread > 1e-3
    spread = np.where(usable, spread, 1.0)
    drug = _fit_drugs((terms - centre) / spread * usable, mean, w)
    return _with_equal_tails(ResidualScale(table, level, centre, spread, drug), r)


def _with_equal_tails(scale: ResidualScale, r: Residuals) -> ResidualScale:
    """The scale, time knots moved so that ``_TAIL_LEVEL`` of the errors near each lie where they do overall."""
    ln_sigma = scale.values(r.organ, r.ln_time, r.ln_level) + scale.curves(r.curve_features, r.is_outside)[r.curve]
    ln_score = np.log(np.maximum(r.error, 1e-15)) - ln_sigma
    everywhere = _weighted_quantile(ln_score, r.weight)
    low, part = _between(r.ln_time, TIME_KNOTS_LN_H)
    table = scale.table.copy()
    for organ, knot in np.ndindex(table.shape):
        share = np.where(low == knot, 1 - part, np.where(low + 1 == knot, part, 0.0))
        near = np.flatnonzero((r.organ == organ) & (share > 0))
        n = len(np.unique(r.drug[near]))
        if n >= _LEAST_TAIL_DRUGS:
            here = _weighted_quantile(ln_score[near], (r.weight * share)[near])
            table[organ, knot] += (here - everywhere) * n / (n + _LEAST_TAIL_DRUGS)
    return replace(scale, table=table)


def _weighted_quantile(value: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(value, kind="stable")
    total = np.cumsum(weight[order])
    return float(value[order[np.searchsorted(total, _TAIL_LEVEL * total[-1])]])


def _fit_values(r: Residuals, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Table and level curve by weighted ridge regression."""
    n, n_organs, n_time, n_level = len(y), len(ORGANS), len(TIME_KNOTS_LN_H), len(LEVEL_KNOTS_LN)
    low, part = _between(r.ln_time, TIME_KNOTS_LN_H)
    level, along = _between(r.ln_level, LEVEL_KNOTS_LN)
    organ_at, time_at = n_organs * n_time, n_organs * (n_time + 1)
    level_at = time_at + n_time
    cell = r.organ * n_time + low
    columns = (cell, cell + 1, organ_at + r.organ, time_at + low, time_at + low + 1, level_at + level,
               level_at + level + 1)  # fmt: skip
    one = np.ones(n)
    values = (1 - part, part, one, 1 - part, part, 1 - along, along)
    index = np.column_stack(columns).ravel()
    x = sparse.csr_matrix((np.column_stack(values).ravel(), index, 7 * np.arange(n + 1)), shape=(n, level_at + n_level))
    centre = float(weight @ y / weight.sum())
    penalty = np.repeat([_RIDGE_TABLE, _RIDGE_MARGIN, _RIDGE_LEVEL], [organ_at, n_organs + n_time, n_level])
    weighted = x.multiply(weight[:, None]).tocsr()
    beta = np.linalg.solve((weighted.T @ x).toarray() + np.diag(penalty), weighted.T @ (y - centre))
    table = centre + beta[:organ_at].reshape(n_organs, n_time)
    table += beta[organ_at:time_at, None] + beta[time_at:level_at]
    return table, beta[level_at:]


def _fit_drugs(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Ridge coefficients ``(2 F - 1,)``; the penalty by generalised cross-validation; the distance's is >= 0."""
    beta = _ridge(x, y, weight)
    if beta[0] < 0:  # farther away is never surer
        beta = np.append(0.0, _ridge(x[:, 1:], y, weight))
    return beta


def _ridge(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    root = np.sqrt(weight * len(y))
    u, s, vt = np.linalg.svd(x * root[:, None], full_matrices=False)
    target = root * (y - weight @ y)
    along = u.T @ target
    best, beta = np.inf, np.zeros(x.shape[1])
    for penalty in _DRUG_PENALTIES:
        shrink = np.where(s > 0, s * s / (s * s + penalty), 0.0) if np.isfinite(penalty) else np.zeros_like(s)
        rest = float(target @ target - along @ along + (((1 - shrink) * along) ** 2).sum())
        freedom = max(len(y) - 1 - shrink.sum(), 1e-9)
        score = rest / freedom**2
        if score < best:
            best, beta = score, vt.T @ (along * np.divide(shrink, s, out=np.zeros_like(s), where=s > 0))
    return beta

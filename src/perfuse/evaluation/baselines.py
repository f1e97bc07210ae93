"""Trivial baselines, fitted on training curves only: mean curve, 5 nearest neighbours, log-linear regression.

All three predict ln(C / dose) of venous blood and tissues on a grid of times since the first dose and interpolate
linearly in ln C for other times (constant before the grid, along the last quarter's slope, never rising, beyond it).
Curves are divided by the total dose, and times count from the first dose; the regimen is a few more features (number
of doses, span, infusion, share by mouth), since superposition would make them models. Plasma rows are converted with
the curve's B:P on the way in and out. Values below the LOQ count as LOQ.

Axis legend: C curves, F features, O the 14 reported organs, G grid times, T times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from perfuse.data.table import CurveTable
from perfuse.evaluation.metrics import FLOOR_FRACTION_OF_LOQ, first_dose_h
from perfuse.pk.matrix import PLASMA_MATRICES
from perfuse.pk.physiology import ORGANS
from perfuse.pk.system import ORAL
from perfuse.training.drug_features import drug_features

NEIGHBOURS = 5
MAX_GRID_TIMES = 120
MAX_TRAINING_CURVES = 20_000
_RIDGE = 1e-8
_LEAST_SHARE_OF_GRID = 0.5
"""Of log-linear regression: with fewer grid times left there is no regression."""


class Baseline(Protocol):
    """Something that predicts curves from a table's inputs."""

    @property
    def name(self) -> str:
        """How tables call it."""

    def predict(self, table: CurveTable) -> np.ndarray:
        """Concentrations, mg/L, ``(C, O, T)``, in each curve's matrix; NaN where it cannot say."""


@dataclass(frozen=True)
class Unavailable:
    """A baseline that could not be fitted, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class GridCurves:
    """Training curves on one grid.

    Attributes:
        grid_h: Times since the first dose, h, ``(G,)``, increasing.
        log_conc: ln(C / dose), ln(1/L), of blood and tissues, ``(C, O, G)``, float32; NaN where not observed.
    """

    grid_h: np.ndarray
    log_conc: np.ndarray


def log_features(table: CurveTable) -> np.ndarray:
    """``(C, F)``: logs of what is given of body, drug and regimen; NaN where it is not (dose enters as a factor).

    The drug's are those of ``training.drug_features``; descriptors count where Kp or clearances are not given, as for
    the models.
    """
    with_descriptors = bool(np.isnan(table.kp).any() or np.isnan(table.elimination_l_h).any())
    return np.column_stack((drug_features(table, with_descriptors), np.log(table.body_weight_kg), _regimen(table)))


def _regimen(table: CurveTable) -> np.ndarray:
    """``(C, 4)``: ln of the number of doses and of (1 + hours they span), mean hours of infusion, share by mouth."""
    given = table.dose_mg > 0
    n, total = given.sum(axis=1), table.dose_mg.sum(axis=1)
    span_h = np.where(given, table.dose_time_h, -np.inf).max(axis=1) - first_dose_h(table)
    infused_h = (table.dose_mg * table.dose_duration_h).sum(axis=1) / total
    oral = (table.dose_mg * (table.dose_route == ORAL)).sum(axis=1) / total
    return np.column_stack((np.log(n), np.log1p(span_h), infused_h, oral))


@dataclass(frozen=True)
class Standardiser:
    """Mean and standard deviation of the features that vary in training; one that a curve lacks is at the mean."""

    varies: np.ndarray
    mean: np.ndarray
    sd: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray) -> Standardiser:
        """From training features ``(C, F)``."""
        given = ~np.isnan(features)
        n = np.maximum(given.sum(axis=0), 1)
        mean = np.where(given, features, 0.0).sum(axis=0) / n
        sd = np.sqrt((np.where(given, features - mean, 0.0) ** 2).sum(axis=0) / n)
        varies = sd > 1e-9
        return cls(varies, mean[varies], sd[varies])

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """``(C, F')`` standardised."""
        return np.nan_to_num((features[:, self.varies] - self.mean) / self.sd, nan=0.0)


def _blood_factor(table: CurveTable) -> np.ndarray:
    """``(C,)``: what turns venous blood into the curve's matrix."""
    return np.where(np.isin(table.matrix, PLASMA_MATRICES), 1 / table.bp_ratio, 1.0)


def grid_curves(table: CurveTable) -> GridCurves:
    """Dose-normalised ln C of training curves on one grid.

    The grid is the curves' own times where they share at most ``MAX_GRID_TIMES`` of them, else as many quantiles.
    Each curve is interpolated in ln C between its own observations, never beyond them.
    """
    since = table.time_h - first_dose_h(table)[:, None]
    usable = ~np.isnan(since) & (since > 0)
    grid = np.unique(np.round(since[usable], 9))
    if len(grid) > MAX_GRID_TIMES:
        grid = np.unique(np.quantile(since[usable], np.linspace(0, 1, MAX_GRID_TIMES)))
    conc = np.maximum(table.conc_mg_l, table.loq_mg_l[:, None, None])  # NaN stays NaN
    conc = conc / table.dose_mg.sum(axis=1)[:, None, None]
    conc[:, 0] /= _blood_factor(table)[:, None]
    log_conc = np.log(conc)
    out = np.full((len(table), len(ORGANS), len(grid)), np.nan, dtype=np.float32)
    if since.shape[1] >= len(grid) and usable.any():
        on_grid = np.flatnonzero(usable[0])
        same = len(on_grid) == len(grid) and np.allclose(since[:, on_grid], grid, rtol=0, atol=1e-8)
        if same:
            out[:] = log_conc[:, :, on_grid]
            return GridCurves(grid, out)
    for c, o in np.argwhere((~np.isnan(log_conc) & usable[:, None]).any(axis=2)):
        seen = usable[c] & ~np.isnan(log_conc[c, o])
        out[c, o] = np.interp(grid, since[c, seen], log_conc[c, o, seen], left=np.nan, right=np.nan)
        # A lone observation lies on no grid time of a coarse grid: give it to the nearest one.
        if seen.sum() == 1:
            out[c, o, np.abs(grid - since[c, seen][0]).argmin()] = log_conc[c, o, seen][0]
    return GridCurves(grid, out)


def from_grid(grid_h: np.ndarray, log_conc: np.ndarray, table: CurveTable) -> np.ndarray:
    """Concentrations, mg/L, ``(C, O, T)`` in each curve's matrix, from ln(C / dose) on the grid ``(C, O, G)``."""
    since = np.nan_to_num(table.time_h - first_dose_h(table)[:, None], nan=0.0)
    g = len(grid_h)
    if g == 1:
        log_at = np.repeat(log_conc, since.shape[1], axis=2)
    else:
        right = np.clip(np.searchsorted(grid_h, since), 1, g - 1)
        left = right - 1
        weight = np.clip((since - grid_h[left]) / (grid_h[right] - grid_h[left]), 0, 1)[:, None]
        low = np.take_along_axis(log_conc, left[:, None].repeat(len(ORGANS), 1), axis=2)
        high = np.take_along_axis(log_conc, right[:, None].repeat(len(ORGANS), 1), axis=2)
        log_at = low * (1 - weight) + high * weight
        quarter = min(np.searchsorted(grid_h, grid_h[-1] - 0.25 * (grid_h[-1] - grid_h[0])), g - 2)
        slope = (log_conc[:, :, -1] - log_conc[:, :, quarter]) / (grid_h[-1] - grid_h[quarter])
        log_at = log_at + np.minimum(slope, 0)[..., None] * np.maximum(since - grid_h[-1], 0)[:, None]
    conc = np.exp(log_at) * table.dose_mg.sum(axis=1)[:, None, None]
    conc[:, 0] *= _blood_factor(table)[:, None]
    conc = np.where((since >= 0)[:, None], conc, 0.0)
    return np.where(np.isnan(log_at), np.nan, np.maximum(conc, FLOOR_FRACTION_OF_LOQ * table.loq_mg_l[:, None, None]))


def _fill_times(grid_h: np.ndarray, log_conc: np.ndarray) -> np.ndarray:
    """Mean curves ``(O, G)`` with gaps in time interpolated; an organ never observed stays NaN."""
    out = log_conc.copy()
    for row in out:
        seen = ~np.isnan(row)
        if seen.any():
            row[:] = np.interp(grid_h, grid_h[seen], row[seen])
    return out


def _nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    n = (~np.isnan(values)).sum(axis=axis)
    with np.errstate(invalid="ignore"):
        return np.nansum(values, axis=axis, dtype=np.float64) / np.where(n > 0, n, np.nan)


@dataclass(frozen=True)
class MeanCurve:
    """The geometric mean of dose-normalised training curves."""

    grid_h: np.ndarray
    mean: np.ndarray
    name: str = "mean-curve"

    @classmethod
    def fit(cls, curves: GridCurves) -> MeanCurve:
        """From training curves."""
        return cls(curves.grid_h, _fill_times(curves.grid_h, _nan_mean(curves.log_conc, 0)))

    def predict(self, table: CurveTable) -> np.ndarray:
        """See ``Baseline``."""
        return from_grid(self.grid_h, np.broadcast_to(self.mean, (len(table), *self.mean.shape)), table)


@dataclass(frozen=True)
class NearestNeighbours:
    """Geometric mean of the 5 training curves with the nearest standardised log features."""

    curves: GridCurves
    scale: Standardiser
    features: np.ndarray
    fallback: np.ndarray
    name: str = "5-nearest"

    @classmethod
    def fit(cls, table: CurveTable, curves: GridCurves) -> NearestNeighbours:
        """From training curves."""
        features = log_features(table)
        scale = Standardiser.fit(features)
        return cls(curves, scale, scale(features), MeanCurve.fit(curves).mean)

    def predict(self, table: CurveTable) -> np.ndarray:
        """See ``Baseline``; where no neighbour was observed, the mean curve."""
        z, k = self.scale(log_features(table)), min(NEIGHBOURS, len(self.features))
        distance = (z**2).sum(1)[:, None] - 2 * z @ self.features.T + (self.features**2).sum(1)
        nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
        mean = _nan_mean(self.curves.log_conc[nearest], 1)
        return from_grid(self.curves.grid_h, np.where(np.isnan(mean), self.fallback, mean), table)


@dataclass(frozen=True)
class LogLinear:
    """ln(C / dose) regressed on log features, one regression per organ and grid time."""

    grid_h: np.ndarray
    scale: Standardiser
    coefficient: np.ndarray
    """``(F + 1, O, G)``; NaN for an organ never observed."""
    name: str = "log-linear"

    @classmethod
    def fit(cls, table: CurveTable, curves: GridCurves) -> LogLinear | Unavailable:
        """From training curves, at the grid times where every regression has more curves than coefficients + 1.

        Not available when those are less than half of the grid's.
        """
        features = log_features(table)
        scale = Standardiser.fit(features)
        design = np.column_stack((np.ones(len(table)), scale(features)))
        target = curves.log_conc.reshape(len(table), -1)
        seen = ~np.isnan(target)
        organ_seen = seen.reshape(curves.log_conc.shape).any(axis=(0, 2))
        counts = seen.sum(axis=0).reshape(len(ORGANS), -1)[organ_seen].min(axis=0)
        need = design.shape[1] + 1
        enough = counts >= need  # on irregular times few curves reach the very first and last
        if enough.mean() < _LEAST_SHARE_OF_GRID:
            return Unavailable(
                cls.name, f"needs {need} training curves at every organ and time, has {int(counts.min())} at the fewest"
            )
        if not enough.all():
            return cls.fit(table, GridCurves(curves.grid_h[enough], curves.log_conc[:, :, enough]))
        beta = np.full((design.shape[1], target.shape[1]), np.nan)
        for columns, rows in _equal_patterns(seen):
            x = design[rows]
            gram = x.T @ x + _RIDGE * len(x) * np.eye(x.shape[1])
            beta[:, columns] = np.linalg.solve(gram, x.T @ target[np.ix_(rows, columns)].astype(np.float64))
        return cls(curves.grid_h, scale, beta.reshape(-1, len(ORGANS), len(curves.grid_h)))

    def predict(self, table: CurveTable) -> np.ndarray:
        """See ``Baseline``."""
        design = np.column_stack((np.ones(len(table)), self.scale(log_features(table))))
        return from_grid(self.grid_h, np.einsum("cf,fog->cog", design, self.coefficient, optimize=True), table)


def _equal_patterns(seen: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Columns of ``(C, K)`` grouped by the rows observed in them; columns without any are left out."""
    packed = np.packbits(seen, axis=0)
    _, first, label = np.unique(packed, axis=1, return_index=True, return_inverse=True)
    out = []
    for i, column in enumerate(first):
        rows = np.flatnonzero(seen[:, column])
        if len(rows):
            out.append((np.flatnonzero(label.reshape(-1) == i), rows))
    return out


def fit_baselines(training: CurveTable) -> list[Baseline | Unavailable]:
    """The trivial baselines, fitted on these curves and nothing else.

    Curves with no value after their first dose teach nothing; when there is none left, no baseline is available.
    """
    curves = grid_curves(training)
    if not len(curves.grid_h) or np.isnan(curves.log_conc).all():
        reason = "no training curve has a value after its first dose"
        return [Unavailable(name, reason) for name in ("mean-curve", "5-nearest", "log-linear")]
    return [MeanCurve.fit(curves), NearestNeighbours.fit(training, curves), LogLinear.fit(training, curves)]

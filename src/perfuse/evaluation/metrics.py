"""How good a prediction is: every metric of the project, streamed over batches of curves.

One mask for all of them: observed values at t > 0, at or above the curve's LOQ, not censored. Predictions are floored
at LOQ/100 and never dropped; only half-life takes them as they are, because a floor would flatten a steep tail. GMFE,
fractions and bias weigh every drug equally (mean over the values of a drug, then mean over drugs); R2, RMSE, MAE and
MAPE pool the values.

    GMFE = exp(mean |ln(pred / true)|)        bias = exp(mean ln(pred / true))

Axis legend: C curves, D drugs, O the 14 reported organs, W time windows, T times, K the sums of ``_SUMS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from perfuse.data.scoring import FLOOR_FRACTION_OF_LOQ, first_dose_h, floored, scored_mask
from perfuse.data.table import CurveTable
from perfuse.errors import PerfuseError
from perfuse.pk.exposure import exposure
from perfuse.pk.physiology import ORGANS

WINDOWS: tuple[tuple[str, float, float], ...] = (
    ("0-1 h", 0.0, 1.0),
    ("1-4 h", 1.0, 4.0),
    ("4-12 h", 4.0, 12.0),
    ("12-24 h", 12.0, 24.0),
    (">24 h", 24.0, np.inf),
)
"""Time windows (from, to], h since the curve's first dose."""
EXPOSURES = ("cmax", "auc", "half_life")
_RESAMPLES = 1000
_SUMS = ("n", "abs_log", "log", "in_1_25", "in_1_5", "in_2", "sq", "abs", "ape", "y", "yy", "sq_log", "ly", "lyy")
_K = {name: i for i, name in enumerate(_SUMS)}


class Summary(TypedDict):
    """Metrics of a set of values; ``None`` where there is no value (or no spread, for R2). MAPE in per cent."""

    gmfe: float | None
    bias: float | None
    within_1_25: float | None
    within_1_5: float | None
    within_2: float | None
    r2: float | None
    r2_log: float | None
    rmse: float | None
    mae: float | None
    mape: float | None
    n_values: int


class ExposureSummary(TypedDict):
    """Fold error of one exposure parameter over the (curve, organ) pairs where both sides have it."""

    gmfe: float | None
    bias: float | None
    within_2: float | None
    n: int


@dataclass(frozen=True)
class ScoredValues:
    """What one batch contributes: kept for plots and for the errors of single curves.

    Attributes:
        mask: ``(C, O, T)`` the values that count.
        true_mg_l, pred_mg_l: ``(C, O, T)``; the prediction is floored.
        curve_gmfe: ``(C,)`` GMFE of each curve, NaN where no value counts.
    """

    mask: np.ndarray
    true_mg_l: np.ndarray
    pred_mg_l: np.ndarray
    curve_gmfe: np.ndarray


def window_of(table: CurveTable) -> np.ndarray:
    """``(C, T)`` place in ``WINDOWS`` of each time."""
    since_dose = np.nan_to_num(table.time_h - first_dose_h(table)[:, None], nan=0.0)
    return np.searchsorted([w[2] for w in WINDOWS[:-1]], since_dose)


class MetricAccumulator:
    """Sums over batches, divided once at the end; memory grows with drugs, not with values."""

    def __init__(self, compound_id: np.ndarray) -> None:
        """Args: compound_id: drug of every curve that will come, ``(C_all,)``."""
        self._drugs = np.unique(compound_id)
        d = len(self._drugs)
        self._organ = np.zeros((d, len(ORGANS), len(_SUMS)))
        self._window = np.zeros((d, len(WINDOWS), len(_SUMS)))
        self._exposure = np.zeros((d, len(EXPOSURES), 4))  # n, |log|, log, within 2
        self._censored = np.zeros(2, dtype=np.int64)  # all, predicted below their LLOQ
        self._n_curves = 0

    def update(self, table: CurveTable, pred_mg_l: np.ndarray) -> ScoredValues:
        """Add the curves of ``table`` and their predictions, mg/L, ``(C, O, T)``.

        Raises:
            PerfuseError: if a prediction that counts is not a finite number.
        """
        mask = scored_mask(table)
        _refuse_non_finite(table, pred_mg_l, mask | (table.censored & ~np.isnan(table.conc_mg_l)))
        pred = floored(table, pred_mg_l)
        true = np.where(mask, table.conc_mg_l, 1.0)
        drug = np.searchsorted(self._drugs, table.compound_id)
        curve, organ, k = np.nonzero(mask)
        p, y = pred[mask], true[mask]
        abs_log = self._add(drug[curve], organ, window_of(table)[curve, k], p, y)
        below = table.censored & ~np.isnan(table.conc_mg_l)
        with np.errstate(invalid="ignore"):
            self._censored += [int(below.sum()), int((below & (pred < table.conc_mg_l)).sum())]
        self._add_exposure(table, drug, mask, pred, true, pred_mg_l)
        self._n_curves += int(mask.any(axis=(1, 2)).sum())
        n = np.bincount(curve, minlength=len(table))
        with np.errstate(invalid="ignore"):
            gmfe = np.exp(np.bincount(curve, weights=abs_log, minlength=len(table)) / np.where(n > 0, n, np.nan))
        return ScoredValues(mask, np.where(mask, true, np.nan), pred, gmfe)

    def _add(self, drug: np.ndarray, organ: np.ndarray, window: np.ndarray, p: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Add values, one entry each; returns |ln(p / y)|."""
        error, ly = p - y, np.log(y)
        log = np.log(p) - ly
        fold = np.abs(log)
        one = np.ones_like(p)
        inside = [(fold <= np.log(limit) * (1 + 1e-12)) * 1.0 for limit in (1.25, 1.5, 2.0)]
        values = (one, fold, log, *inside, error**2, np.abs(error), np.abs(error) / y, y, y * y, log**2, ly, ly * ly)
        for sums, place in ((self._organ, organ), (self._window, window)):
            flat = drug * sums.shape[1] + place
            for i, value in enumerate(values):
                sums[..., i] += np.bincount(flat, weights=value, minlength=sums[..., i].size).reshape(sums.shape[:2])
        return fold

    def _add_exposure(
        self, table: CurveTable, drug: np.ndarray, mask: np.ndarray, pred: np.ndarray, true: np.ndarray,
        unfloored: np.ndarray,
    ) -> None:  # fmt: skip
        pairs = np.argwhere(mask.any(axis=2))
        seen = mask[pairs[:, 0], pairs[:, 1]]
        time = table.time_h[pairs[:, 0]]
        a, b = (exposure(time, np.where(seen, c[pairs[:, 0], pairs[:, 1]], np.nan)) for c in (pred, true))
        raw = np.where(seen, unfloored[pairs[:, 0], pairs[:, 1]], np.nan)
        half_life = _half_life(time, raw, a.half_life_h, table.loq_mg_l[pairs[:, 0]])
        both = ((a.cmax_mg_l, b.cmax_mg_l), (a.auc_last_mg_h_l, b.auc_last_mg_h_l), (half_life, b.half_life_h))
        for i, (p, y) in enumerate(both):
            ok = (p > 0) & (y > 0)
            log = np.log(p[ok] / y[ok])
            near = (np.abs(log) <= np.log(2.0) * (1 + 1e-12)) * 1.0
            for j, value in enumerate((np.ones_like(log), np.abs(log), log, near)):
                index = drug[pairs[:, 0]][ok]
                self._exposure[:, i, j] += np.bincount(index, weights=value, minlength=len(self._drugs))

    def overall(self) -> Summary:
        """Metrics over everything added so far."""
        return _summary(self._organ.sum(axis=1))

    def gmfe_interval(self) -> list[float] | None:
        """95 % interval of the GMFE: percentile bootstrap over drugs, 1,000 resamples; None with fewer than 3 drugs."""
        return _bootstrap(self.drug_errors())

    def drug_errors(self) -> np.ndarray:
        """``(D,)`` mean |ln(pred / true)| of each drug in alphabetical order; NaN where it has no value."""
        sums = self._organ.sum(axis=1)
        return sums[:, _K["abs_log"]] / np.where(sums[:, 0] > 0, sums[:, 0], np.nan)

    def ratio_interval(self, other: MetricAccumulator) -> list[float] | None:
        """95 % interval of this GMFE over another's on the same curves: the same drugs are drawn for both."""
        return _bootstrap(self.drug_errors() - other.drug_errors())

    def per_organ(self) -> dict[str, Summary]:
        """Metrics of each organ that has a value."""
        return {o: _summary(self._organ[:, i]) for i, o in enumerate(ORGANS) if self._organ[:, i, 0].any()}

    def per_window(self) -> dict[str, Summary]:
        """Metrics of each time window that has a value."""
        return {w[0]: _summary(self._window[:, i]) for i, w in enumerate(WINDOWS) if self._window[:, i, 0].any()}

    def exposure(self) -> dict[str, ExposureSummary]:
        """Fold errors of Cmax, AUC_last and half-life, every drug weighing equally.

        Both curves at the observed times, over the values that count, by the same rule; half-life only where both
        pass the terminal-slope rule of ``pk.exposure``, and from predictions that were not floored.
        """
        out: dict[str, ExposureSummary] = {}
        for i, name in enumerate(EXPOSURES):
            n, fold, log, near = (self._exposure[:, i, j] for j in range(4))
            out[name] = ExposureSummary(
                gmfe=_exp(_drug_mean(fold, n)), bias=_exp(_drug_mean(log, n)), within_2=_drug_mean(near, n),
                n=int(n.sum()),
            )  # fmt: skip
        return out

    def counts(self) -> dict[str, int | float | None]:
        """``n_curves``, ``n_drugs``, and the censored values with the fraction predicted below their LLOQ."""
        total, below = (int(v) for v in self._censored)
        return {
            "n_curves": self._n_curves,
            "n_drugs": int((self._organ[..., 0].sum(axis=1) > 0).sum()),
            "n_censored": total,
            "censored_predicted_below_lloq": below / total if total else None,
        }


def _refuse_non_finite(table: CurveTable, pred: np.ndarray, needed: np.ndarray) -> None:
    bad = needed & ~np.isfinite(pred)
    if bad.any():
        c, o, k = np.argwhere(bad)[0]
        raise PerfuseError(
            f"the prediction for curve {table.curve_id[c]}, {ORGANS[o]} at {table.time_h[c, k]:.6g} h is not finite "
            f"({pred[c, o, k]}); {int(bad.sum())} such values"
        )


def _half_life(time_h: np.ndarray, raw: np.ndarray, floored: np.ndarray, loq_mg_l: np.ndarray) -> np.ndarray:
    """``(R,)`` half-life of predictions ``(R, T)`` as they are; ``floored`` is right where no floor was met."""
    changed = (raw < FLOOR_FRACTION_OF_LOQ * loq_mg_l[:, None]).any(axis=1)
    out = floored.copy()
    if changed.any():
        out[changed] = exposure(time_h[changed], np.maximum(raw[changed], 0.0)).half_life_h  # 0 is no point of a slope
    return out


def _bootstrap(per_drug: np.ndarray) -> list[float] | None:
    """Percentile interval of exp(mean) over drugs, 1,000 resamples; None with fewer than 3 drugs."""
    values = per_drug[np.isfinite(per_drug)]
    if len(values) < 3:
        return None
    random = np.random.default_rng(0)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(_RESAMPLES)]
    low, high = np.exp(np.quantile(means, (0.025, 0.975)))
    return [float(low), float(high)]


def _drug_mean(total: np.ndarray, n: np.ndarray) -> float | None:
    here = n > 0
    return float((total[here] / n[here]).mean()) if here.any() else None


def _exp(value: float | None) -> float | None:
    return None if value is None else float(np.exp(value))


def _r2(residual: float, n: float, total: float, total_squares: float) -> float | None:
    """1 - SSE / SST; None where the truth has no spread beyond rounding."""
    spread = total_squares - total**2 / n
    return float(1 - residual / spread) if spread > 1e-12 * total_squares and n > 1 else None


def _summary(sums: np.ndarray) -> Summary:
    """From sums per drug ``(D, K)``."""
    n_drug = sums[:, 0]
    pooled = sums.sum(axis=0)
    n = pooled[0]
    mean = {name: _drug_mean(sums[:, _K[name]], n_drug) for name in ("abs_log", "log", "in_1_25", "in_1_5", "in_2")}
    has = n > 0
    return Summary(
        gmfe=_exp(mean["abs_log"]),
        bias=_exp(mean["log"]),
        within_1_25=mean["in_1_25"],
        within_1_5=mean["in_1_5"],
        within_2=mean["in_2"],
        r2=_r2(pooled[_K["sq"]], n, pooled[_K["y"]], pooled[_K["yy"]]) if has else None,
        r2_log=_r2(pooled[_K["sq_log"]], n, pooled[_K["ly"]], pooled[_K["lyy"]]) if has else None,
        rmse=float(np.sqrt(pooled[_K["sq"]] / n)) if has else None,
        mae=float(pooled[_K["abs"]] / n) if has else None,
        mape=float(100 * pooled[_K["ape"]] / n) if has else None,
        n_values=int(n),
    )

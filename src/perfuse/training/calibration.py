"""Intervals around a model's predictions, calibrated on drugs that it was neither trained nor selected on.

    ln C in ln pred +- q(level, organ) sigma(organ, time, level of C, drug)

sigma (``residual_scale``) is fitted on a part of the calibration drugs, q (``conformal``) taken from the others, so
that what q promises holds whatever sigma is.

Axis legend: C curves, O organs, T times, L levels, V values, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from perfuse.data.compounds import compound_keys
from perfuse.data.scoring import floored, scored_mask, since_last_dose_h
from perfuse.data.split import curve_units
from perfuse.data.table import CurveSource, CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS
from perfuse.training.conformal import LEVELS, MIN_ORGAN_DRUGS, least_drugs, organ_quantiles
from perfuse.training.distance import OUTSIDE_PERCENTILE, Measured, TrainingDistance
from perfuse.training.residual_scale import Residuals, ResidualScale, bounded, fit_scale

DEMANDED_DRUGS = 500
"""Fewest calibration drugs for which 90 % may be claimed: with fewer, chance alone moves the coverage by points."""
MAX_DRUGS, MAX_CURVES = 2000, 4000
"""More than these add cost and little accuracy: some are drawn."""
REPORTED_LEVEL = 0.9
MAX_HALF_WIDTH = 500.0
"""Of an interval, in ln C: greater ones say nothing more, and their ends would not be numbers."""
_SCALE_SHARE = 0.3
_SCALE_VALUES = 400_000
_BATCH = 256
_LEAST_TIME_H = 1e-3
_CALIBRATION_STREAM = 0xCA11B
Predictor = Callable[[CurveTable], np.ndarray]


@dataclass(frozen=True)
class Calibration:
    """A scale and its quantiles, for one model.

    Attributes:
        distance: The distance to the training drugs, which sigma looks at.
        scale: sigma.
        levels: Levels that the drugs sufficed for, increasing.
        quantiles: ``(L, O)``; NaN for an organ without a calibration value.
        organ_drugs: ``(O,)`` drugs behind each organ's quantile.
        n_drugs, n_scale_drugs, n_curves, n_values: What it was made from.
        coverage_se: ``(L,)`` standard error of the mean coverage over the drugs that q comes from.
    """

    distance: TrainingDistance
    scale: ResidualScale
    levels: tuple[float, ...]
    quantiles: np.ndarray
    organ_drugs: np.ndarray
    n_drugs: int
    n_scale_drugs: int
    n_curves: int
    n_values: int
    coverage_se: np.ndarray

    @property
    def doubt(self) -> str:
        """Why 90 % may not be claimed; '' where it may."""
        if self.n_drugs >= DEMANDED_DRUGS:
            return ""
        return (
            f"calibrated on {self.n_drugs} drugs, fewer than the {DEMANDED_DRUGS} that a {REPORTED_LEVEL:.0%} claim "
            "needs: coverage may be off by several points"
        )

    @property
    def pooled_organs(self) -> tuple[str, ...]:
        """Organs with too few drugs for a quantile of their own."""
        return tuple(o for o, n in zip(ORGANS, self.organ_drugs, strict=True) if 0 < n < MIN_ORGAN_DRUGS)

    @property
    def organs_without(self) -> tuple[str, ...]:
        """Organs without a calibration value: they have no interval."""
        return tuple(o for o, n in zip(ORGANS, self.organ_drugs, strict=True) if n == 0)

    def half_widths(self, table: CurveTable, pred_mg_l: np.ndarray, measured: Measured | None = None) -> np.ndarray:
        """q sigma for every level, ``(L, C, O, T)``, in ln C; NaN at t <= 0 and in organs without calibration."""
        measured = self.distance.measure(table) if measured is None else measured
        sigma = np.exp(self._ln_sigma(table, floored(table, pred_mg_l), measured))
        sigma = np.where((np.nan_to_num(table.time_h, nan=0.0) > 0)[:, None], sigma, np.nan)
        return np.minimum(self.quantiles[:, None, :, None] * sigma, MAX_HALF_WIDTH)

    def bounds(
        self, table: CurveTable, pred_mg_l: np.ndarray, level: float = REPORTED_LEVEL, measured: Measured | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end, mg/L, ``(C, O, T)``; they contain the prediction. NaN where ``half_widths`` has none.

        Raises:
            InputError: for a level that is not stored.
        """
        if level not in self.levels:
            raise InputError("level", "is not calibrated", value=level, allowed=", ".join(map(str, self.levels)))
        width = self.half_widths(table, pred_mg_l, measured)[self.levels.index(level)]
        return ends(table, pred_mg_l, width)

    def _ln_sigma(self, table: CurveTable, pred: np.ndarray, measured: Measured) -> np.ndarray:
        organ = np.arange(len(ORGANS))[None, :, None]
        ln_time, ln_level = _time_and_level(table, pred)
        of_curve = self.scale.curves(curve_features(self.distance, measured), _outside(measured))
        return bounded(self.scale.values(organ, ln_time[:, None], ln_level) + of_curve[:, None, None])


def ends(table: CurveTable, pred_mg_l: np.ndarray, half_width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of intervals, mg/L, around predictions, which are floored as everywhere and lie inside all the same."""
    centre = floored(table, pred_mg_l)
    return np.minimum(centre * np.exp(-half_width), pred_mg_l), centre * np.exp(half_width)


def _outside(measured: Measured) -> np.ndarray:
    return measured.percentile > OUTSIDE_PERCENTILE


def curve_features(distance: TrainingDistance, measured: Measured) -> np.ndarray:
    """``(C, F)`` what sigma may know of a curve's drug: ln of its relative distance, then standardised features."""
    return np.column_stack((np.log(np.maximum(measured.distance / distance.typical, 1e-3)), measured.z))


def _time_and_level(table: CurveTable, pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln h since the last dose ``(C, T)``, and ln of predicted concentration x blood volume / dose ``(C, O, T)``."""
    since = np.maximum(np.nan_to_num(since_last_dose_h(table), nan=_LEAST_TIME_H), _LEAST_TIME_H)
    scale = table.volume_l[:, ORGAN_INDEX["blood"]] / np.maximum(table.dose_mg.sum(axis=1), 1e-12)
    return np.log(since), np.log(np.maximum(pred * scale[:, None, None], 1e-12))


def check_enough_drugs(n_drugs: int, field: str, allow_few: bool = False) -> None:
    """Whether 90 % intervals may be calibrated on so many drugs.

    Raises:
        InputError: below ``DEMANDED_DRUGS``; with ``allow_few`` below what an interval can be made from at all.
    """
    least = least_calibration_drugs(REPORTED_LEVEL)
    if n_drugs < least or (n_drugs < DEMANDED_DRUGS and not allow_few):
        few = n_drugs >= least
        hint = ", or use --allow-few: intervals that are then called uncertain" if few else ""
        raise InputError(
            field, f"leaves too few drugs to calibrate {REPORTED_LEVEL:.0%} intervals", value=n_drugs, unit="drugs",
            allowed=f">= {DEMANDED_DRUGS if not allow_few else least}", hint=f"give more drugs{hint}",
        )  # fmt: skip


def least_calibration_drugs(level: float) -> int:
    """Fewest calibration drugs of which enough are left for the quantile of a level."""
    n = least_drugs(level)
    while n - _n_scale(n) < least_drugs(level):
        n += 1
    return n


def _n_scale(n_drugs: int) -> int:
    return max(1, int(_SCALE_SHARE * n_drugs))


def fit_calibration(
    predict: Predictor, source: CurveSource, rows: np.ndarray, distance: TrainingDistance, seed: int,
    *, allow_few: bool = False, field: str = "calibration",
) -> Calibration:  # fmt: skip
    """Calibrate a model on these curves.

    The result depends on names, curves and seed, not on the order of rows (but for rounding).

    Args:
        predict: mg/L, ``(C, O, T)``, of a table.
        source, rows: Curves of drugs that the model was neither trained nor selected on.
        distance: From the model's training drugs.
        seed: Says which drugs the scale is fitted on.
        allow_few: Also calibrate on fewer than ``DEMANDED_DRUGS`` drugs.
        field: What the errors call the data.

    Raises:
        InputError: with too few drugs.
        PerfuseError: for a prediction that is not finite.
    """
    unit = curve_units(source.column("compound_id")[rows], source.column("group_id")[rows])
    check_enough_drugs(int(unit.max()) + 1 if len(unit) else 0, field, allow_few)
    random = np.random.Generator(np.random.Philox(key=np.asarray([seed, _CALIBRATION_STREAM], dtype=np.uint64)))
    drawn = random.permutation(int(unit.max()) + 1)[:MAX_DRUGS]
    keep = _some_curves_each(source, rows, unit, drawn, random)
    residuals = _residuals(predict, source, rows[keep], unit[keep], distance)
    drugs = drawn[np.isin(drawn, residuals.drug)]  # those with a value that counts
    check_enough_drugs(len(drugs), field, allow_few)
    n_scale = _n_scale(len(drugs))
    scale = fit_scale(residuals.of_drugs(drugs[:n_scale]).some(_SCALE_VALUES, random))
    held = residuals.of_drugs(drugs[n_scale:])
    ln_sigma = scale.values(held.organ, held.ln_time, held.ln_level)
    of_curve = scale.curves(held.curve_features, held.is_outside)[held.curve]
    score = held.error * np.exp(-bounded(ln_sigma + of_curve))
    levels = tuple(level for level in LEVELS if len(drugs) - n_scale >= least_drugs(level))
    quantiles, organ_drugs = organ_quantiles(score, held.drug, held.organ, levels, len(ORGANS))
    return Calibration(
        distance, scale, levels, quantiles, organ_drugs, len(drugs), n_scale, len(keep), len(residuals.error),
        _coverage_se(score, held, quantiles),
    )  # fmt: skip


def _some_curves_each(
    source: CurveSource, rows: np.ndarray, unit: np.ndarray, drawn: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Places in ``rows`` of the drawn drugs' curves, equally many at most of each so that all are ``MAX_CURVES``."""
    order = np.lexsort((source.column("curve_id")[rows], compound_keys(source.column("compound_id")[rows])))
    shuffled = order[random.permutation(len(order))]
    by_drug = shuffled[np.argsort(unit[shuffled], kind="stable")]
    sizes = np.bincount(unit)
    place = np.arange(len(by_drug)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = (place < max(1, MAX_CURVES // len(drawn))) & np.isin(unit[by_drug], drawn)
    return np.sort(by_drug[chosen])


def _coverage_se(score: np.ndarray, held: Residuals, quantiles: np.ndarray) -> np.ndarray:
    _, code, count = np.unique(held.drug, return_inverse=True, return_counts=True)
    shares = [np.bincount(code, weights=score <= q[held.organ]) / count for q in quantiles]
    return np.asarray([share.std(ddof=1) / np.sqrt(len(count)) for share in shares])


def _residuals(
    predict: Predictor, source: CurveSource, rows: np.ndarray, unit: np.ndarray, distance: TrainingDistance
) -> Residuals:
    """Every scored value of the curves, in the order of the curves' names."""
    order = np.lexsort((source.column("curve_id")[rows], compound_keys(source.column("compound_id")[rows])))
    parts: list[tuple[np.ndarray, ...]] = []
    features, outside = [np.zeros((0, len(distance.names) + 1))], [np.zeros(0, dtype=bool)]
    done = 0
    for at in _blocks(order):
        table = source.take(rows[at])
        pred = np.asarray(predict(table), dtype=np.float64)
        mask = scored_mask(table)
        if not np.isfinite(pred[mask]).all():
            raise PerfuseError("a prediction for a calibration curve is not finite: the model cannot be calibrated")
        centre = floored(table, pred)
        ln_time, ln_level = _time_and_level(table, centre)
        curve, organ, k = np.nonzero(mask)
        error = np.abs(np.log(centre[mask] / table.conc_mg_l[mask]))
        parts.append((done + curve, organ, ln_time[curve, k], ln_level[mask], error, unit[at][curve]))
        measured = distance.measure(table)
        features.append(curve_features(distance, measured))
        outside.append(_outside(measured))
        done += len(at)
    joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)] if parts else [np.zeros(0, int)] * 6
    curve, organ, ln_time, ln_level, error, drug = joined
    count = np.bincount(drug, minlength=1)
    weight = 1.0 / count[drug] if len(drug) else np.zeros(0)
    return Residuals(
        curve, organ, ln_time, ln_level, error, weight, drug, np.concatenate(features), np.concatenate(outside)
    )


def _blocks(order: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(order), _BATCH):
        yield order[start : start + _BATCH]

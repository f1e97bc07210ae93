"""How often calibrated intervals contain the truth: overall, per organ and per time window, drugs weighing equally.

Axis legend: D drugs, P places (organs or time windows), L levels, K sums (n, inside each level, ln width at 90 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from perfuse.data.scoring import floored, scored_mask
from perfuse.data.table import CurveTable
from perfuse.evaluation.judged_data import JudgedData
from perfuse.evaluation.metrics import WINDOWS, window_of
from perfuse.evaluation.runs import TrainedRun
from perfuse.evaluation.training_distance import training_distance
from perfuse.pk.physiology import ORGANS
from perfuse.training.calibration import REPORTED_LEVEL, Calibration
from perfuse.training.distance import OUTSIDE_PERCENTILE, Measured

NOT_CALIBRATED = "not calibrated: no interval is given (`perfuse calibrate RUN DATA` makes them)"


class CoverageSummary(TypedDict):
    """Shares of values inside their intervals, 0..1; None where there is no value or no interval of that level.

    ``coverage_90_se`` is the standard error over drugs; ``fold_width_90`` the geometric mean of upper / lower end.
    """

    coverage_50: float | None
    coverage_80: float | None
    coverage_90: float | None
    coverage_95: float | None
    coverage_90_se: float | None
    fold_width_90: float | None
    n_values: int


class Coverage(TypedDict):
    """Coverage of a run's intervals on judged curves.

    ``note`` says what limits the claim: not calibrated, or on few drugs; else ''. ``drugs`` were calibrated on.
    """

    calibrated: bool
    note: str
    drugs: int | None
    overall: CoverageSummary | None
    per_organ: dict[str, CoverageSummary]
    windows: dict[str, CoverageSummary]


class DistanceSummary(TypedDict):
    """Where judged curves lie among the training drugs; None, and a ``note`` why, where that is not known."""

    median_percentile: float | None
    share_outside: float | None
    note: str


class CoverageAccumulator:
    """Sums over batches of curves."""

    def __init__(self, calibration: Calibration, compound_id: np.ndarray) -> None:
        """Args: calibration: of the judged run; compound_id: drug of every curve that will come."""
        self._calibration = calibration
        self._drugs = np.unique(compound_id)
        n_sums = 2 + len(calibration.levels)
        self._organ = np.zeros((len(self._drugs), len(ORGANS), n_sums))
        self._window = np.zeros((len(self._drugs), len(WINDOWS), n_sums))

    def update(self, table: CurveTable, pred_mg_l: np.ndarray, measured: Measured) -> None:
        """Add curves, their predictions ``(C, O, T)`` and their distances to the training drugs."""
        width = self._calibration.half_widths(table, pred_mg_l, measured)
        mask = scored_mask(table) & ~np.isnan(width[0])
        curve, organ, k = np.nonzero(mask)
        error = np.abs(np.log(floored(table, pred_mg_l)[mask] / table.conc_mg_l[mask]))
        inside = [(error <= w[mask]) * 1.0 for w in width]
        at = self._calibration.levels.index(REPORTED_LEVEL)
        values = (np.ones_like(error), *inside, 2 * width[at][mask])
        drug = np.searchsorted(self._drugs, table.compound_id)[curve]
        for sums, place in ((self._organ, organ), (self._window, window_of(table)[curve, k])):
            flat = drug * sums.shape[1] + place
            for i, value in enumerate(values):
                sums[..., i] += np.bincount(flat, weights=value, minlength=sums[..., i].size).reshape(sums.shape[:2])

    def result(self) -> Coverage:
        """Everything added so far."""
        organs, windows = self._organ, self._window
        return Coverage(
            calibrated=True, note=self._calibration.doubt, drugs=self._calibration.n_drugs,
            overall=self._summary(organs.sum(axis=1)),
            per_organ={o: self._summary(organs[:, i]) for i, o in enumerate(ORGANS) if organs[:, i, 0].any()},
            windows={w[0]: self._summary(windows[:, i]) for i, w in enumerate(WINDOWS) if windows[:, i, 0].any()},
        )  # fmt: skip

    def _summary(self, sums: np.ndarray) -> CoverageSummary:
        """From sums per drug ``(D, K)``."""
        here = sums[:, 0] > 0
        share = sums[here, 1:] / sums[here, :1]
        mean = share.mean(axis=0) if here.any() else np.full(share.shape[1], np.nan)
        levels = self._calibration.levels
        se = float(share[:, levels.index(REPORTED_LEVEL)].std(ddof=1) / np.sqrt(here.sum())) if here.sum() > 1 else None

        def at(level: float) -> float | None:
            return float(mean[levels.index(level)]) if level in levels and here.any() else None

        return CoverageSummary(
            coverage_50=at(0.5), coverage_80=at(0.8), coverage_90=at(0.9), coverage_95=at(0.95), coverage_90_se=se,
            fold_width_90=float(np.exp(mean[-1])) if here.any() else None, n_values=int(sums[:, 0].sum()),
        )  # fmt: skip


def not_calibrated() -> Coverage:
    """What an evaluation says of a run without calibration."""
    return Coverage(calibrated=False, note=NOT_CALIBRATED, drugs=None, overall=None, per_organ={}, windows={})


def distance_summary(percentiles: Sequence[np.ndarray], note: str) -> DistanceSummary:
    """Of the percentiles of all judged curves, batch by batch."""
    if note or not percentiles:
        return DistanceSummary(median_percentile=None, share_outside=None, note=note)
    joined = np.concatenate(percentiles)
    return DistanceSummary(
        median_percentile=float(np.median(joined)), share_outside=float((joined > OUTSIDE_PERCENTILE).mean()), note=""
    )


def coverage_sentence(coverage: Coverage) -> str:
    """Coverage in one plain sentence."""
    overall = coverage["overall"]
    if overall is None:
        return f"Intervals: {coverage['note']}."
    if overall["coverage_90"] is None or overall["fold_width_90"] is None:
        return "Intervals: no value that counts has one."
    organs = [s["coverage_90"] for s in coverage["per_organ"].values() if s["coverage_90"] is not None]
    return (
        f"90 % intervals, calibrated on {coverage['drugs']} drugs, contain {100 * overall['coverage_90']:.1f} % of "
        f"values (single organs {100 * min(organs):.1f} to {100 * max(organs):.1f} %); their upper end is "
        f"{overall['fold_width_90']:.4g} times the lower (geometric mean)."
        + (f" They are {coverage['note']}." if coverage["note"] else "")
    )


class IntervalJudge:
    """A run's intervals, where it is calibrated, and how far the judged drugs lie from those of its training."""

    def __init__(self, run: TrainedRun, judged: JudgedData, compounds: np.ndarray) -> None:
        """Args: run; judged data; compounds: drug of every curve that will come."""
        self._distance = training_distance(run, judged)
        self._coverage = None if run.calibration is None else CoverageAccumulator(run.calibration, compounds)
        self._percentiles: list[np.ndarray] = []

    def update(self, table: CurveTable, pred: np.ndarray) -> None:
        """Add curves and their predictions, mg/L, ``(C, O, T)``."""
        if isinstance(self._distance, str):
            return
        measured = self._distance.measure(table)
        self._percentiles.append(measured.percentile)
        if self._coverage is not None:
            self._coverage.update(table, pred, measured)

    def coverage(self) -> Coverage:
        """Coverage over everything added so far."""
        return not_calibrated() if self._coverage is None else self._coverage.result()

    def distance(self) -> DistanceSummary:
        """Distances of everything added so far."""
        return distance_summary(self._percentiles, self._distance if isinstance(self._distance, str) else "")

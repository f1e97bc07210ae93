"""``perfuse calibrate``: intervals for a finished run of any model, from drugs it was not trained or selected on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import perfuse
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.evaluation.evaluate import model_predictor
from perfuse.evaluation.judged_data import JudgedData, JudgedRows, choose_rows, open_judged_data
from perfuse.evaluation.runs import TrainedRun, open_run, rows_of
from perfuse.evaluation.training_distance import training_distance
from perfuse.training.calibration import REPORTED_LEVEL, Calibration, fit_calibration
from perfuse.training.calibration_file import CalibrationRecord, save_calibration
from perfuse.training.precision import check_device


@dataclass(frozen=True)
class CalibrationReport:
    """What was calibrated.

    Attributes:
        path: ``calibration.json`` beside the checkpoint; its tensors lie next to it.
        calibration: The intervals.
        scope: ``calibration split`` (the run's own data) or ``unseen curves``.
        excluded: Curves left out by reason.
        caveats: What could not be checked.
    """

    path: Path
    calibration: Calibration
    scope: str
    excluded: dict[str, int]
    caveats: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report as lines of text."""
        c = self.calibration
        levels = ", ".join(f"{level:.0%}" for level in c.levels)
        error = 100 * float(c.coverage_se[c.levels.index(REPORTED_LEVEL)])
        out = [
            f"{levels} intervals from {c.n_drugs} drugs, {c.n_curves} curves, {c.n_values} values ({self.scope}): "
            f"{self.path}",
            f"  expected coverage of the {REPORTED_LEVEL:.0%} interval on drugs like these: {REPORTED_LEVEL:.0%}, with "
            f"a standard error of {error:.1f} % by the draw of calibration drugs",
        ]
        pooled = c.pooled_organs
        if pooled:
            out.append(f"  too few drugs for a quantile of their own, so that of all organs: {', '.join(pooled)}")
        if c.organs_without:
            out.append(f"  no calibration value, so no interval: {', '.join(c.organs_without)}")
        out += [f"  {n} curves left out: {reason}" for reason, n in self.excluded.items()]
        out += [f"  {caveat}" for caveat in self.caveats]
        return out + ([f"  warning: {c.doubt}"] if c.doubt else [])


def calibrate_run(
    run: Path,
    data: Path,
    *,
    allow_few: bool = False,
    device: str = "cpu",
    seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationReport:
    """Calibrate a run's intervals and leave them beside its checkpoint, replacing what was there.

    On the data that the run was trained on, its calibration split is used; elsewhere every curve, less those whose
    compound or parameter group it was trained or selected on.

    Args:
        run: Run folder (its ``best`` checkpoint) or checkpoint folder.
        data: As for ``evaluate_run``.
        allow_few: Calibrate on fewer than 500 drugs; the intervals are then called uncertain wherever they appear.
        device: Where the model runs.
        seed: Says which drugs the scale is fitted on; by default the run's.
        progress: Called with (curves predicted, curves in all).

    Raises:
        InputError: for a missing run or data, too few drugs, or training drugs that cannot be looked at.
        PerfuseError: for a prediction that is not finite, or a folder that cannot be written.
    """
    check_device(device, "--device")
    trained = open_run(Path(run), with_calibration=False)
    judged = open_judged_data(Path(data), trained.topology)
    chosen = _calibration_rows(judged, trained)
    distance = training_distance(trained, judged)
    if isinstance(distance, str):
        raise InputError("RUN", "cannot be calibrated: the distance to its training drugs is not known", hint=distance)
    seed = trained.config.seed if seed is None else seed
    calibration = fit_calibration(
        _counting(model_predictor(trained.model, device), len(chosen.rows), progress), judged.source, chosen.rows,
        distance, seed, allow_few=allow_few, field=str(data),
    )  # fmt: skip
    path = save_calibration(trained.checkpoint, calibration, _record(trained, judged, chosen, calibration, seed))
    return CalibrationReport(path, calibration, chosen.scope, chosen.excluded, chosen.caveats)


def _calibration_rows(judged: JudgedData, run: TrainedRun) -> JudgedRows:
    if judged.content_hash != run.data_hash:
        return choose_rows(judged, [run])
    rows = rows_of(judged.source, run.calibration_compounds)
    if not len(rows):
        raise InputError(
            "DATA", "is what the run was trained on, and it kept no calibration split", value=str(judged.path),
            hint="calibrate on other data, or train with split.calibration_fraction > 0",
        )  # fmt: skip
    return JudgedRows(rows, "calibration split", {})


def _counting(
    predict: Callable[[CurveTable], np.ndarray], total: int, progress: Callable[[int, int], None] | None
) -> Callable[[CurveTable], np.ndarray]:
    if progress is None:
        return predict
    done = 0

    def counted(table: CurveTable) -> np.ndarray:
        nonlocal done
        out = predict(table)
        done += len(table)
        progress(done, total)
        return out

    return counted


def _record(
    run: TrainedRun, judged: JudgedData, chosen: JudgedRows, calibration: Calibration, seed: int
) -> CalibrationRecord:
    def distinct(column: str) -> list[str]:
        return sorted({str(v) for v in judged.source.column(column)[chosen.rows]})

    c = calibration
    return CalibrationRecord(
        code_version=perfuse.__version__, model_sha256=run.weights_hash, topology=run.topology.name,
        levels=list(c.levels), features=list(c.distance.names), with_descriptors=c.distance.with_descriptors,
        neighbours=c.distance.neighbours, n_drugs=c.n_drugs, n_scale_drugs=c.n_scale_drugs, n_curves=c.n_curves,
        n_values=c.n_values, seed=seed, data_path=str(judged.path.resolve()), data_sha256=judged.content_hash,
        compound_ids=distinct("compound_id"), group_ids=distinct("group_id"),
    )  # fmt: skip

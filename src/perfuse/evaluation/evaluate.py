"""Judging a run: the model, trivial baselines, ``loglinear-rates`` and other runs on the same unseen curves."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from perfuse.data.sources import source_hash
from perfuse.data.table import CurveTable, to_batch
from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation.baselines import MAX_TRAINING_CURVES, Unavailable, fit_baselines
from perfuse.evaluation.coverage import Coverage, DistanceSummary, IntervalJudge, distance_summary, not_calibrated
from perfuse.evaluation.judged_data import JudgedData, JudgedRows, choose_rows, open_judged_data
from perfuse.evaluation.metrics import ExposureSummary, MetricAccumulator, Summary, scored_mask
from perfuse.evaluation.rates_baseline import MAX_CURVES, RatesBaseline, rates_baseline, sample_rows
from perfuse.evaluation.results import CaseStore, evaluation_folder, save_evaluation
from perfuse.evaluation.runs import TrainedRun, open_run, rows_of, training_source
from perfuse.evaluation.verdict import NETWORK_FREE, SIMULATED, TRIVIAL, beats, verdict
from perfuse.models.base import CurveModel
from perfuse.training.machine import provenance, without_secrets
from perfuse.training.memory import keep_freed_memory
from perfuse.training.precision import check_device

SCHEMA_VERSION = 2
"""2: coverage and training_distance."""
Speed = dict[str, float | int | str | None]
Predictor = Callable[[CurveTable], np.ndarray]


class Contender(Summary):
    """Metrics of one baseline or other run.

    ``gmfe_ratio_ci95`` is the 95 % interval, over drugs, of the judged model's GMFE over this one's: below 1 the model
    is better; with 1 inside, the difference may be chance.
    """

    gmfe_ratio_ci95: list[float] | None
    exposure: dict[str, ExposureSummary]
    per_organ: dict[str, Summary]
    windows: dict[str, Summary]


class Evaluation(TypedDict):
    """What ``perfuse evaluate --json`` writes: DESIGN's keys first, then context. No NaN: absent is None.

    ``rmse`` and ``mae`` are mg/L, ``mape`` per cent, fractions are 0..1. ``beats_baselines`` is about the trivial
    baselines; ``beats_loglinear_rates`` about the network-free model; both by GMFE, None when not available.
    """

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
    n_curves: int
    n_values: int
    n_drugs: int
    gmfe_ci95: list[float] | None
    per_organ: dict[str, Summary]
    windows: dict[str, Summary]
    exposure: dict[str, ExposureSummary]
    baselines: dict[str, Contender]
    beats_baselines: bool | None
    beats_loglinear_rates: bool | None
    verdict: str
    notes: list[str]
    baselines_unavailable: dict[str, str]
    baselines_fit: dict[str, object]
    against: dict[str, Contender]
    n_censored: int
    censored_predicted_below_lloq: float | None
    coverage: Coverage
    training_distance: DistanceSummary
    model: dict[str, object]
    data: dict[str, object]
    speed: Speed
    provenance: dict[str, object]
    schema_version: int


@dataclass
class _Candidate:
    """One thing that is judged: its predictor, its sums, and why it dropped out if it did."""

    name: str
    predict: Predictor
    metrics: MetricAccumulator
    reason: str = ""

    def update(self, table: CurveTable) -> None:
        """Add a batch; a baseline that cannot predict a value that counts drops out with its reason."""
        if self.reason:
            return
        pred = self.predict(table)
        missing = np.isnan(pred) & scored_mask(table)
        if missing.any():
            from perfuse.pk.physiology import ORGANS

            self.reason = f"its training data has no {ORGANS[int(np.argwhere(missing)[0][1])]} values"
            return
        self.metrics.update(table, pred)

    def result(self, model: MetricAccumulator) -> Contender:
        return Contender(
            **self.metrics.overall(), gmfe_ratio_ci95=model.ratio_interval(self.metrics),
            exposure=self.metrics.exposure(), per_organ=self.metrics.per_organ(), windows=self.metrics.per_window(),
        )  # fmt: skip


def model_predictor(model: CurveModel, device: str = "cpu") -> Predictor:
    """Concentrations, mg/L, ``(C, O, T)``, of a table by a model in eval mode, without gradients."""
    keep_freed_memory()
    model = model.to(device).eval()

    def predict(table: CurveTable) -> np.ndarray:
        with torch.inference_mode():
            out: np.ndarray = model(to_batch(table).to(device)).to(torch.float64).cpu().numpy()
            return out

    return predict


def evaluate_run(
    run: Path,
    data: Path,
    out: Path | None = None,
    *,
    against: Sequence[Path] = (),
    batch_size: int = 512,
    device: str = "cpu",
    baselines: bool = True,
    save: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judge a run on data that it has not seen.

    On the data that it was trained on, only its test split counts; elsewhere every curve counts, less those whose
    compound or parameter group it was trained or selected on.

    Args:
        run: Run folder (its ``best`` checkpoint) or checkpoint folder.
        data: Dataset folder, origin .npz, tidy table, or CSV of measured human curves.
        out: Folder for ``evaluation.json`` and ``evaluation_curves.npz``; by default ``evaluation`` in the run for its
            own test split, ``evaluation-<data>`` for other data.
        against: Other runs to judge on the same curves; what any of the runs has seen is left out for all.
        batch_size: Curves per batch.
        device: Where the models run.
        baselines: Whether to fit the baselines (on the run's training split, when its data is at hand).
        save: Whether to write anything.
        progress: Called with (curves done, curves in all).

    Raises:
        InputError: for a missing run or data, another topology, an absent device, or when no unseen curve is left.
        PerfuseError: for a prediction that is not finite, or a folder that cannot be written.
    """
    if batch_size < 1:
        raise InputError("batch_size", value=batch_size, allowed=">= 1")
    check_device(device, "--device")
    trained = open_run(Path(run))
    others = _open_others(against, trained)
    judged = open_judged_data(Path(data), trained.topology)
    chosen = choose_rows(judged, [trained, *others.values()])
    compounds = judged.source.column("compound_id")[chosen.rows]
    metrics = MetricAccumulator(compounds)
    candidates, absent, fit_facts = _baselines(trained, judged, compounds, save) if baselines else ([], {}, {})
    rivals = [_Candidate(n, model_predictor(o.model, device), MetricAccumulator(compounds)) for n, o in others.items()]
    predict = model_predictor(trained.model, device)
    intervals = IntervalJudge(trained, judged, compounds)
    cases = CaseStore(len(chosen.rows))
    seconds = 0.0
    predict(judged.source.take(chosen.rows[:1]))  # warm up: first-call costs are not the model's speed
    for table in _batches(judged, chosen, batch_size, progress):
        began = time.perf_counter()
        pred = predict(table)
        seconds += time.perf_counter() - began
        cases.add(table, metrics.update(table, pred))
        intervals.update(table, pred)
        for candidate in (*candidates, *rivals):
            candidate.update(table)
    for candidate in candidates:
        if candidate.reason:
            absent[candidate.name] = candidate.reason
    results = {c.name: c.result(metrics) for c in candidates if not c.reason}
    speed = _speed(seconds, len(chosen.rows), metrics.overall()["n_values"], device, batch_size)
    evaluation = _assemble(trained, judged, chosen, metrics, results, absent, fit_facts, speed)
    evaluation["against"] = {r.name: r.result(metrics) for r in rivals}
    evaluation["coverage"], evaluation["training_distance"] = intervals.coverage(), intervals.distance()
    if save:
        folder = evaluation_folder(trained, judged, chosen, out)
        shown = cases.choose(judged.source, chosen.rows, predict, trained.calibration)
        save_evaluation(folder, dict(evaluation), shown)
    return evaluation


def _open_others(against: Sequence[Path], run: TrainedRun) -> dict[str, TrainedRun]:
    """Other runs by label; runs of one label also by their folder's name."""
    others = [open_run(Path(path)) for path in against]
    out: dict[str, TrainedRun] = {}
    for other in others:
        if other.topology.name != run.topology.name:
            raise InputError(
                "--against", "is on another topology", value=f"{other.folder} ({other.topology.name})",
                allowed=run.topology.name,
            )  # fmt: skip
        alone = sum(o.label == other.label for o in (run, *others)) == 1
        out[other.label if alone else f"{other.label} in {other.folder}"] = other
    return out


def _batches(
    judged: JudgedData, chosen: JudgedRows, size: int, progress: Callable[[int, int], None] | None
) -> Iterator[CurveTable]:
    total = len(chosen.rows)
    for start in range(0, total, size):
        yield judged.source.take(chosen.rows[start : start + size])
        if progress is not None:
            progress(min(start + size, total), total)


def _speed(seconds: float, curves: int, values: int, device: str, batch_size: int) -> Speed:
    """Speed of the model alone (tensors built, network, curves), without reading data or metrics."""
    rate = curves / seconds if seconds > 0 else None
    return {
        "predict_curves_per_s": rate, "predict_seconds": seconds,
        "scored_values_per_s": values / seconds if rate else None, "batch_size": min(batch_size, curves),
        "device": device, "threads": torch.get_num_threads(),
    }  # fmt: skip


def _baselines(
    run: TrainedRun, judged: JudgedData, compounds: np.ndarray, keep: bool
) -> tuple[list[_Candidate], dict[str, str], dict[str, object]]:
    """Baselines fitted on the run's training split; reasons for those that are not available; facts of the fit."""
    wanted = [*TRIVIAL, *([NETWORK_FREE] if run.config.model.name != NETWORK_FREE else [])]
    source = training_source(run, judged)
    if isinstance(source, str):
        return [], dict.fromkeys(wanted, source), {}
    rows = rows_of(source, run.train_compounds)
    training = source.take(sample_rows(rows, MAX_TRAINING_CURVES))
    fitted: list[object] = list(fit_baselines(training))
    facts: dict[str, object] = {"training_curves": len(rows), "training_curves_used": len(training)}
    if NETWORK_FREE in wanted:
        few = source.take(sample_rows(rows, MAX_CURVES))
        rates = rates_baseline(few, source_hash(few), run.folder / "baselines" if keep else None)
        fitted.append(rates)
        if isinstance(rates, RatesBaseline):
            facts[NETWORK_FREE] = rates.facts
    candidates, absent = [], {}
    for baseline in fitted:
        if isinstance(baseline, Unavailable):
            absent[baseline.name] = baseline.reason
        else:
            candidates.append(_Candidate(baseline.name, baseline.predict, MetricAccumulator(compounds)))  # type: ignore[attr-defined]
    return candidates, absent, facts


def _assemble(
    run: TrainedRun,
    judged: JudgedData,
    chosen: JudgedRows,
    metrics: MetricAccumulator,
    results: dict[str, Contender],
    absent: dict[str, str],
    fit_facts: dict[str, object],
    speed: Speed,
) -> Evaluation:
    overall, counts = metrics.overall(), metrics.counts()
    trivial = [results[n] for n in TRIVIAL if n in results]
    free = results.get(NETWORK_FREE)
    scored = overall["gmfe"] is not None
    n_curves, n_drugs = int(counts["n_curves"] or 0), int(counts["n_drugs"] or 0)
    text = verdict(
        run.label, overall, dict(results), chance=_within_chance(results), n_curves=n_curves, n_drugs=n_drugs,
        interval=metrics.gmfe_interval(), scope=chosen.scope, simulated=judged.simulated,
    )  # fmt: skip
    return Evaluation(
        **overall,
        n_curves=n_curves,
        n_drugs=n_drugs,
        gmfe_ci95=metrics.gmfe_interval(),
        per_organ=metrics.per_organ(),
        windows=metrics.per_window(),
        exposure=metrics.exposure(),
        baselines=results,
        beats_baselines=all(beats(overall, s) for s in trivial) if trivial and scored else None,
        beats_loglinear_rates=beats(overall, free) if free and scored else None,
        verdict=text,
        notes=_notes(judged, chosen),
        baselines_unavailable=absent,
        baselines_fit=fit_facts,
        against={},
        coverage=not_calibrated(),
        training_distance=distance_summary((), ""),
        n_censored=int(counts["n_censored"] or 0),
        censored_predicted_below_lloq=counts["censored_predicted_below_lloq"],
        model=run.describe(),
        data={
            "path": str(judged.path), "sha256": judged.content_hash, "simulated": judged.simulated,
            "topology": judged.source.topology.name, "curves_in_data": len(judged.source),
            "curves_judged": len(chosen.rows), "scope": chosen.scope, "curves_excluded": chosen.excluded,
            "rows_sha256": sha256(np.ascontiguousarray(chosen.rows, dtype="<i8").tobytes()).hexdigest(),
            "import": judged.import_report,
        },
        speed=speed,
        provenance=_provenance(run, judged),
        schema_version=SCHEMA_VERSION,
    )  # fmt: skip


def _within_chance(results: dict[str, Contender]) -> set[str]:
    """Those whose difference from the model may be chance."""
    intervals = {name: r["gmfe_ratio_ci95"] for name, r in results.items()}
    return {name for name, ci in intervals.items() if ci is None or ci[0] <= 1 <= ci[1]}


def _provenance(run: TrainedRun, judged: JudgedData) -> dict[str, object]:
    """Where the evaluation was made, and the commands that make run and evaluation again."""
    again = run.reproduction()
    judge = shlex.join(["perfuse", "evaluate", str(run.folder.resolve()), without_secrets(str(judged.path))])
    return provenance() | {"reproduction": None if again is None else again.plain(), "evaluate_command": judge}


def _notes(judged: JudgedData, chosen: JudgedRows) -> list[str]:
    notes = []
    if chosen.scope == "test split":
        notes.append("The run was trained on this data: only its test split counts, training and validation do not.")
    notes += [f"{n} curves excluded: {reason}." for reason, n in chosen.excluded.items()]
    notes += chosen.caveats
    left_out = judged.import_report.get("curves_left_out")
    if isinstance(left_out, dict):
        notes += [f"{n} curves left out by the importer: {reason}." for reason, n in left_out.items()]
    if judged.simulated:
        notes.append(SIMULATED[0].upper() + SIMULATED[1:] + ".")
    elif judged.simulated is False:
        notes.append(
            "Measured human curves; the model's inputs come from in-vitro values by the simplest published scaling, so "
            "errors of that scaling are in these numbers too."
        )
    return notes


__all__ = ["Contender", "Evaluation", "PerfuseError", "evaluate_run", "model_predictor"]

"""One job, in a process of its own: train or fit, calibrate, judge on fresh curves, write a JSON.

Training, calibration and metrics are those of the command line. Whatever a model cannot do is a result too:
``refused``, with the one line that a user would see.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.suite.learned import tissue_elasticities
from benchmarks.suite.plan import BASELINES, TIME_TASK, DataSpec, Job
from benchmarks.time_to_accuracy import Reached, best_batch, engine_time, loop_class, plain_time
from perfuse.config import RunConfig, parse_config
from perfuse.data.simulation import simulate_dataset
from perfuse.data.sources import open_source
from perfuse.data.table import CurveSource, CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation.baselines import Unavailable, fit_baselines
from perfuse.evaluation.calibrate import calibrate_run
from perfuse.evaluation.evaluate import evaluate_run
from perfuse.evaluation.files import strict_json
from perfuse.evaluation.metrics import MetricAccumulator
from perfuse.evaluation.rates_baseline import RatesBaseline, fit_rates, sample_rows
from perfuse.files import write_atomic
from perfuse.models.base import CurveModel
from perfuse.models.flux import LoglinearRates
from perfuse.training.load import load_model
from perfuse.training.run import train

BATCH = 512
"""Curves at a time in prediction: ``perfuse evaluate``'s own."""
MAX_EVALUATIONS = 2000
"""Of the L-BFGS fit; its time limit comes first nearly always."""
FEW_DRUGS = 500
"""Fewer calibration drugs must be asked for, and their intervals are called uncertain."""
KEPT = ("gmfe", "bias", "within_1_25", "within_1_5", "within_2", "r2", "r2_log", "mape")
Result = dict[str, Any]
Predictor = Callable[[CurveTable], np.ndarray]


def make_data(spec: DataSpec, folder: Path) -> None:
    """Simulate a data set unless it is there; a half-made one is made anew."""
    out = folder / spec.folder
    if not out.exists():
        temporary = folder / f".{spec.folder}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        simulate_dataset(spec.task, spec.n, spec.seed, temporary)
        temporary.rename(out)


def perform(job: Job, data: Path, runs: Path) -> Result:
    """Do a job; never raises for what a model refuses or fails at.

    Args:
        job: What to do.
        data: Folder of simulated data sets, made beforehand.
        runs: Folder for the run, which is removed afterwards.
    """
    torch.set_num_threads(1)
    began = time.monotonic()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    result: Result = {
        "job": asdict(job), "status": "done", "reason": "", "rows": [],
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"), "load_average_1_min": load,
    }  # fmt: skip
    try:
        if job.task == TIME_TASK:
            result |= _time(job, data)
        else:
            result |= _baselines(job, data) if job.arm == BASELINES else _train_and_judge(job, data, runs)
    except InputError as error:
        result |= {"status": "refused", "reason": str(error)}
    except PerfuseError as error:
        result |= {"status": "failed", "reason": str(error)}
    except Exception as error:
        traceback.print_exc()
        result |= {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    result["seconds"] = round(time.monotonic() - began, 2)
    return result


def perform_to_file(job: Job, data: Path, runs: Path, path: Path) -> None:
    """``perform`` in a child process: its result goes into ``path``, what it prints beside it."""
    log = path.with_suffix(".log")
    with log.open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        result = perform(job, data, runs)
        sys.stdout.flush()
        sys.stderr.flush()
    write_atomic(path, strict_json(result).encode())
    if not log.stat().st_size:
        log.unlink()


# -- models ----------------------------------------------------------------------------------------------------------


def _train_and_judge(job: Job, data: Path, runs: Path) -> Result:
    source, run = open_source(data / job.train.folder), runs / f"{job.name}-{job.key}"
    shutil.rmtree(run, ignore_errors=True)
    config = _config(job)
    try:
        trained = train(source, config, run, data_path=str(data / job.train.folder))
        facts: Result = {
            "curves": len(source), "training_curves": trained.n_train, "validation_curves": trained.n_validation,
            "steps": trained.steps, "epochs": trained.epochs, "ending": trained.ending,
            "seconds": round(trained.seconds, 2), "curves_per_s": _last_rate(run), "best_step": trained.best_step,
            "peak_rss_mb": peak_rss_mb(),
        }  # fmt: skip
        few = job.calibration is not None and job.calibration.n < FEW_DRUGS
        why_not = _calibrate(run, data / job.calibration.folder, few) if job.calibration else "is not asked for"
        rows = [_judged_run(job.arm, run, name, data / spec.folder) for name, spec in job.tests.items()]
        model = load_model(run).model
    finally:
        shutil.rmtree(run, ignore_errors=True)
    facts["n_parameters"] = sum(p.numel() for p in model.parameters())
    return {"training": facts, "uncalibrated": why_not, "rows": rows, **_learned(job, model, data)}


def _config(job: Job) -> RunConfig:
    """The run's configuration.

    Raises:
        PerfuseError: for one that cannot be: a switch that this version does not have is no refusal but a failure.
    """
    try:
        return parse_config({
            "seed": job.seed, "model": job.model,
            "split": {"validation_fraction": job.validation_fraction, "test_fraction": 0.0},
            "training": {"max_minutes": job.minutes, "device": "cpu", "tensorboard": False},
        })  # fmt: skip
    except InputError as error:
        raise PerfuseError(f"no such configuration: {error}") from None


def _learned(job: Job, model: CurveModel, data: Path) -> Result:
    """Exponents and elasticities of a model that has rates; why not, where something goes wrong in looking at them."""
    if not isinstance(model, LoglinearRates):
        return {}
    found: Result = {"exponents": model.exponents(), "elasticities": {}}
    spec = next(iter(job.tests.values()))
    try:
        found["elasticities"] = tissue_elasticities(
            model, open_source(data / spec.folder).take(np.arange(min(64, spec.n)))
        )
    except (RuntimeError, TypeError, AttributeError) as error:
        found["elasticities_missing"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return found


def _calibrate(run: Path, folder: Path, allow_few: bool) -> str:
    """Give a run intervals from fresh drugs; "" or why there are none."""
    try:
        calibrate_run(run, folder, allow_few=allow_few)
    except PerfuseError as error:
        return str(error)
    return ""


def _judged_run(arm: str, run: Path, test: str, folder: Path) -> Result:
    """What ``perfuse evaluate`` says of a run on unseen curves."""
    found: Mapping[str, Any] = evaluate_run(run, folder, baselines=False, save=False, batch_size=BATCH)
    row = _row(arm, test, found, found["per_organ"], found["windows"], found["exposure"])
    more = ("n_curves", "coverage", "training_distance")
    return row | {name: found[name] for name in more} | {"predict_curves_per_s": found["speed"]["predict_curves_per_s"]}


def _last_rate(run: Path) -> float | None:
    """Training curves/s of the last epoch that has one."""
    rates = [json.loads(s).get("train_curves_per_s") for s in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return next((rate for rate in reversed(rates) if rate), None)


# -- baselines and time to accuracy ----------------------------------------------------------------------------------


def _baselines(job: Job, data: Path) -> Result:
    source = open_source(data / job.train.folder)
    training = source.take(np.arange(len(source), dtype=np.int64))
    began = time.perf_counter()
    fitted: list[Any] = list(fit_baselines(training))
    facts: Result = {"curves": len(training), "seconds": round(time.perf_counter() - began, 2)}
    few = training.take(sample_rows(np.arange(len(training)), int(job.model["rates_curves"])))
    rates = fit_rates(few, 60 * job.minutes, MAX_EVALUATIONS)
    fitted.append(rates)
    found: Result = {"rows": [], "unavailable": {}, "training": facts, "rates_fit": {}}
    if isinstance(rates, RatesBaseline):
        found |= {"rates_fit": dict(rates.facts), **_learned(job, rates.model, data)}
    for baseline in fitted:
        if isinstance(baseline, Unavailable):
            found["unavailable"][baseline.name] = baseline.reason
            continue
        for test, spec in job.tests.items():
            unseen = open_source(data / spec.folder)
            try:
                found["rows"].append(_judged(baseline.name, baseline.predict, test, unseen))
            except PerfuseError as error:
                found["unavailable"][f"{baseline.name} on {test}"] = str(error)
    return found


def _time(job: Job, data: Path) -> Result:
    source = open_source(data / job.train.folder)
    table, settings = source.take(np.arange(len(source), dtype=np.int64)), job.model
    common = (settings["gmfe"], job.minutes, job.seed, job.validation_fraction)
    if "model" in settings:
        reached: Reached = engine_time(table, settings["model"], *common, arm=job.arm)
    else:
        loop, size = loop_class(settings.get("loop", "plain")), settings["batch_size"]
        if size == "best":
            small = settings["max_batch_size"]  # of the quick profile
            size = best_batch(table, job.seed, [small], 0.0, loop) if small else best_batch(table, job.seed, loop=loop)
        reached = plain_time(table, size, *common, arm=job.arm, loop=loop)
    return {"reached": asdict(reached)}


# -- judging ---------------------------------------------------------------------------------------------------------


def _judged(name: str, predict: Predictor, test: str, source: CurveSource) -> Result:
    """The same metrics of a baseline."""
    metrics, seconds = MetricAccumulator(source.column("compound_id")), 0.0
    predict(source.take(np.arange(1)))  # what a first call costs is not the speed of prediction
    for start in range(0, len(source), BATCH):
        table = source.take(np.arange(start, min(start + BATCH, len(source)), dtype=np.int64))
        began = time.perf_counter()
        found = predict(table)
        seconds += time.perf_counter() - began
        metrics.update(table, found)
    row = _row(name, test, metrics.overall(), metrics.per_organ(), metrics.per_window(), metrics.exposure())
    rate = len(source) / seconds if seconds else None
    return row | {"n_curves": metrics.counts()["n_curves"], "coverage": None, "predict_curves_per_s": rate}


def _row(
    arm: str, test: str, overall: Mapping[str, Any], organs: Mapping[str, Any], windows: Mapping[str, Any],
    exposure: Mapping[str, Any],
) -> Result:  # fmt: skip
    return {
        "arm": arm, "test": test, **{name: overall[name] for name in KEPT}, "n_values": overall["n_values"],
        "per_organ": {name: summary["gmfe"] for name, summary in organs.items()},
        "windows": {name: summary["gmfe"] for name, summary in windows.items()},
        "exposure": exposure,
    }  # fmt: skip


def peak_rss_mb() -> float:
    """Greatest resident memory of this process so far, MB, libraries and mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)

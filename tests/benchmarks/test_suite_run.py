"""The suite's jobs, done: one of each kind, in processes; resumed; crashed. And the time to an accuracy."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import time_to_accuracy
from benchmarks.suite.__main__ import main
from benchmarks.suite.learned import tissue_elasticities
from benchmarks.suite.plan import TIME_TASK, DataSpec, Job, load_suite, make_jobs
from benchmarks.suite.pool import Pool, _Running
from benchmarks.suite.results import ResultStore
from benchmarks.suite.work import make_data, perform
from benchmarks.time_to_accuracy import Reached, engine_time, plain_time, ratio, ratio_text
from perfuse.config import parse_config, resolve
from perfuse.data.simulate import simulate_task
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.evaluation.metrics import MetricAccumulator
from perfuse.evaluation.rates_baseline import RatesBaseline, fit_rates
from perfuse.training.gauss_newton import FitReport, start_exponents

ROOT = Path(__file__).resolve().parents[2]
TINY = """
validation_fraction = 0.25
baselines_minutes = 0.01
baselines_rates_curves = 8
coverage = { level = 0.9, overall = [0.88, 0.92], organ = [0.85, 0.95], tasks = ["T1"] }
ablations = []
[time_to_accuracy]
data = "T1"
curves = 12
held_out = 3
gmfe = 1000.0
flux_minutes = 0.02
plain_minutes = 0.001
pyg_minutes = 0.001
target_ratio = 100.0
[profiles.full]
seeds = [1]
test_curves = 6
calibration_curves = 24
max_batch_size = 8
[arms]
flux = { name = "flux", prior = "none" }
[[tasks]]
id = "T1"
title = "tiny"
data = "T1"
curves = 12
minutes = 0.03
tests = ["T1"]
"""


@pytest.fixture(scope="module")
def job() -> Job:
    spec = DataSpec("T1", 12, 1)
    return Job("T1", "mlp", 1, "model", {"name": "mlp"}, 0.02, spec, 0.25, None, {"T1": DataSpec("T1", 6, 2)})


def test_the_suite_runs_and_goes_on_where_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan, out = tmp_path / "tiny.toml", tmp_path / "out"
    plan.write_text(TINY, encoding="utf-8")
    arguments = ["--suite", str(plan), "--out", str(out), "--jobs", "2", "--task", "T1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.suite", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = sorted((out / "results").glob("*.json"))
    kinds = {json.loads(path.read_text())["job"]["kind"] for path in results}
    assert len(results) == 2 and kinds == {"model", "baselines"} and not list((out / "runs").iterdir())
    text = (out / "suite.md").read_text(encoding="utf-8")
    assert "2 of 2 jobs gave a result" in text and "| T1 | `flux` |" in text.replace("`flux`, tested", "")
    before = [path.stat().st_mtime_ns for path in results]
    assert main(arguments) == 0
    assert [path.stat().st_mtime_ns for path in results] == before, "a finished job was done again"
    flux = json.loads(next(p for p in results if p.name.startswith("T1-flux")).read_text())
    assert flux["rows"][0]["coverage"]["calibrated"] and flux["elasticities"].keys() == {"flow", "volume", "kp"}
    capfd.readouterr()


@pytest.mark.parametrize(
    ("settings", "batch_size"),
    [
        ({"batch_size": "best", "max_batch_size": 4}, 4),
        ({"batch_size": 8, "loop": "plain"}, 8),
        ({"model": {"name": "mlp"}}, 9),
    ],
)
def test_time_jobs(job: Job, settings: dict[str, object], batch_size: int, tmp_path: Path) -> None:
    make_data(job.train, tmp_path)
    result = perform(replace(job, task=TIME_TASK, model={"gmfe": 1e9, **settings}), tmp_path, tmp_path / "runs")
    assert result["status"] == "done" and result["reached"]["seconds"] > 0, result["reason"]
    assert result["reached"]["batch_size"] == batch_size and not result["rows"]


def test_a_crash_is_a_result_and_not_the_end(job: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store, said = ResultStore(tmp_path / "results", lambda _: "code"), []
    pool = Pool(tmp_path / "data", tmp_path / "runs", store, 2, said.append, perform=operator.add, preload=())
    pool.run([job, replace(job, seed=2)])
    assert len(said) == 2 and "crashed: exit code 1" in said[0]
    assert store.remaining([job]) == [job], "what crashed is tried again"
    capfd.readouterr()  # the children's tracebacks


def test_what_takes_too_long_is_stopped(tmp_path: Path) -> None:
    pool = Pool(tmp_path, tmp_path, ResultStore(tmp_path, lambda _: "code"), 1, preload=())
    ended, limits = [], {60.0: 0.0, 0.01: 60.0}  # seconds it sleeps, and those it may take
    tasks = [lambda s=s: _Running(pool._start(time.sleep, s), str(s), time.monotonic() + limits[s]) for s in limits]
    pool._all(tasks, lambda running, reason: ended.append((running.label, reason)))
    assert ended == [("60.0", "it took too long and was stopped"), ("0.01", "")]


def test_unknown_switches_fail_and_are_not_skipped(job: Job, tmp_path: Path) -> None:
    make_data(job.train, tmp_path)
    result = perform(replace(job, model={"name": "flux", "turbo": True}), tmp_path, tmp_path / "runs")
    assert result["status"] == "failed" and "model.flux.turbo" in result["reason"]


def test_what_a_model_refuses_is_a_result(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perfuse.models.mlp import Mlp

    monkeypatch.setattr(Mlp, "models_oral", False)
    oral = replace(job, task="T3", train=DataSpec("T3", 16, 1))
    make_data(oral.train, tmp_path)
    result = perform(oral, tmp_path, tmp_path / "runs")
    assert result["status"] == "refused" and "is not modelled by mlp" in result["reason"]


def test_data_are_made_once(job: Job, tmp_path: Path) -> None:
    make_data(job.train, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    make_data(job.train, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_elasticities_of_the_exact_rates_are_the_textbooks() -> None:
    table = simulate_task("T2", 40, 3)
    fitted = fit_rates(table.take(range(30)))
    assert isinstance(fitted, RatesBaseline)
    found = tissue_elasticities(fitted.model, table.take(range(30, 40)))
    assert {name: round(f["mean"], 2) for name, f in found.items()} == {"flow": 1.0, "volume": -1.0, "kp": -1.0}
    assert all(f["least"] <= f["mean"] <= f["greatest"] for f in found.values())


# -- time to accuracy ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few_times(t1_table: CurveTable) -> CurveTable:
    every = slice(None, None, 25)
    return replace(
        t1_table, time_h=t1_table.time_h[:, every], conc_mg_l=t1_table.conc_mg_l[:, :, every],
        censored=t1_table.censored[:, :, every],
    ).take(range(20))  # fmt: skip


def test_reached_and_ratios() -> None:
    flux, plain = Reached("flux", 256, 1.05, 30.0), Reached("plain", 8, 1.05, 600.0)
    assert not flux.check(1.0, 1.2) and flux.check(2.0, 1.04) and flux.check(3.0, 1.2)
    assert flux.seconds == 2.0 and flux.best_gmfe == 1.04 and flux.text() == "2.00 s"
    plain.check(600.0, 1.8)
    assert ratio(plain, flux) == (300.0, True) and ratio_text(plain, flux) == "at least 300 times (a bound)"
    assert plain.text() == "not there after 10.0 min (GMFE 1.800)"
    plain.check(700.0, 1.0)
    assert ratio(plain, flux) == (350.0, False)
    assert ratio_text(plain, Reached("flux", 1, 1.05, 1.0)) == "flux not there"


def test_gmfe_is_the_metric_of_evaluation(few_times: CurveTable) -> None:
    predicted = few_times.conc_mg_l * np.linspace(0.5, 2, 20)[:, None, None]
    predicted[0] = 0.0  # floored
    metrics = MetricAccumulator(few_times.compound_id)
    metrics.update(few_times, predicted)
    parts = [(rows, predicted[rows]) for rows in (np.arange(7), np.arange(7, 20))]
    assert time_to_accuracy._gmfe(few_times, parts) == pytest.approx(metrics.overall()["gmfe"], rel=1e-12)


def test_engine_stops_when_it_is_there(few_times: CurveTable) -> None:
    before = time.monotonic()
    there = engine_time(few_times, {"name": "mlp"}, 1e9, 5.0, 1, 0.2, arm="mlp")
    assert time.monotonic() - before < 60 and there.seconds is not None and there.curves == 16
    assert len(there.checks) == 1 and there.batch_size == 16


def test_engine_counts_its_first_fit_and_its_own_batch(few_times: CurveTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged after the fit, before any epoch: what the fit went through counts, not an epoch."""
    reports = []

    def fit(*arguments: object, **named: object) -> FitReport:
        reports.append(start_exponents(*arguments, **named))  # type: ignore[arg-type]
        return reports[-1]

    monkeypatch.setattr(time_to_accuracy, "start_exponents", fit)
    model = {"name": "loglinear-rates"}
    there = engine_time(few_times, model, 1e9, 1.0, 1, 0.2)
    assert len(reports) == 1 and len(there.checks) == 1
    assert there.curves == reports[0].curves * reports[0].iterations > 0
    table = few_times.take(np.arange(400) % 20)
    table = replace(table, curve_id=np.asarray([f"c{i}" for i in range(400)]))
    config = parse_config({"model": {"name": "flux"}})
    n_train = len(time_to_accuracy.held_out(table, 0.2, 1).train)
    found = engine_time(table, {"name": "flux"}, 1e9, 1.0, 1, 0.2)
    assert found.batch_size == resolve(config, n_train).training.batch_size < n_train


def test_engine_that_is_not_there_says_so(few_times: CurveTable) -> None:
    there = engine_time(few_times, {"name": "mlp"}, 1.0000001, 0.03, 1, 0.2)
    assert there.seconds is None and there.trained_s > 0 and len(there.checks) > 1


def test_plain_loop_is_judged_on_the_same_curves(few_times: CurveTable) -> None:
    torch.manual_seed(0)
    there = plain_time(few_times, 4, 1e9, 0.001, 1, 0.2, "plain")
    assert there.seconds is not None and len(there.checks) == 1 and there.curves >= 4
    slow = plain_time(few_times, 4, 1.0000001, 0.002, 1, 0.2, "plain")
    assert slow.seconds is None and slow.trained_s >= 0.12 and np.isfinite(slow.best_gmfe)


def test_learning_rate_of_the_plain_loop_suits_the_batch() -> None:
    rates = [time_to_accuracy.plain_lr(batch) for batch in (8, 32, 128)]
    assert rates[1] == pytest.approx(2 * rates[0]) and rates[0] < rates[1] < rates[2] == time_to_accuracy.PLAIN_LR_MOST


def test_absent_pytorch_geometric_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.delitem(sys.modules, "benchmarks.pyg_loop", raising=False)
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    with pytest.raises(InputError, match="torch_geometric is not installed"):
        time_to_accuracy.loop_class("pyg")


def test_script_refuses_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["time_to_accuracy.py", "--gmfe", "0.9"])
    with pytest.raises(SystemExit) as stopped:
        time_to_accuracy.main()
    assert stopped.value.code == 2 and "--gmfe > 1" in capsys.readouterr().err


def test_plan_and_time_jobs_share_curves() -> None:
    jobs = [job for job in make_jobs(load_suite(), "full") if job.kind == "time"]
    assert len(jobs) == 5 and len({(job.train, job.validation_fraction, job.seed) for job in jobs}) == 1

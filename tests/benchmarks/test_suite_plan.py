"""The plan of the task suite: what the file may hold, which jobs it makes, what makes a result old."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.suite.plan import (
    BASELINES,
    CALIBRATION_SEED,
    PLAIN_BEST,
    SUITE_FILE,
    TEST_SEED,
    TIME_TASK,
    expected_minutes,
    load_suite,
    make_jobs,
)
from benchmarks.suite.results import ResultStore, not_run
from benchmarks.suite.sources import ROOT, code_hash, job_files
from perfuse.config import parse_config


def _changed(tmp_path: Path, old: str, new: str) -> Path:
    text = SUITE_FILE.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "suite.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("validation_fraction = 0.1", "validation_fraction = 1.5", "validation_fraction: Input should be less than 1"),
        ("validation_fraction = 0.1", "sedes = 3", "sedes: Extra inputs|validation_fraction: Field required"),
        ("validation_fraction = 0.1", "validation_fraction = ", "Invalid value"),
        ('data = "T1"', 'data = "T9"', "no such task: T9"),
        ('id = "T1-800"', 'id = "T1-80"', "two tasks share an id"),
        ('targets = { T1 = 1.003 }', 'targets = { T2 = 1.003 }', "T1-18000 has a target for a test set"),
        ("[arms]", '[arms]\nbaselines = { name = "mlp" }', "no arm may be called baselines"),
        ('flux = { name = "flux", prior = "none" }', "", "there is no arm flux"),
        ('tasks = ["T7", "T6"]', 'tasks = ["T10"]', "no such task: T10"),
        ('skip_tasks = ["T1-800"', 'skip_tasks = ["T1-8"', "no such task: T1-8"),
        ("seeds = [1, 2, 3]", "seeds = []", "profiles.full.seeds"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        load_suite(_changed(tmp_path, old, new))
    assert re.search(said, str(stopped.value)) and "\n" not in str(stopped.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"none\.toml"):
        load_suite(tmp_path / "none.toml")


def test_every_arm_is_a_configuration_of_this_version() -> None:
    suite = load_suite()
    for job in make_jobs(suite, "full"):
        model = job.model.get("model", job.model)
        if "name" in model:
            parse_config({"model": model})


def test_full_plan_is_whole_and_short_enough() -> None:
    suite = load_suite()
    jobs = make_jobs(suite, "full")
    assert len({job.name for job in jobs}) == len({job.key for job in jobs}) == len(jobs)
    assert all(re.fullmatch(r"[\w.-]+", job.name) for job in jobs), "names become file names"
    assert {t.data for t in suite.tasks} == {"T1", "T2", "T3", "T4", "T5", "T6", "T7"}
    arms = {(job.task, job.arm) for job in jobs}
    assert all((t.id, arm) in arms for t in suite.tasks for arm in (*suite.arms, BASELINES))
    assert sum(job.arm == PLAIN_BEST for job in jobs) == 1
    assert expected_minutes(jobs, 2) <= 70


def test_test_and_calibration_curves_are_never_trained_on() -> None:
    for job in make_jobs(load_suite(), "full"):
        assert job.train.seed not in (TEST_SEED, CALIBRATION_SEED)
        assert all(spec.seed == TEST_SEED for spec in job.tests.values())
        assert job.calibration is None or (job.calibration.seed == CALIBRATION_SEED and job.calibration.n >= 500)


def test_quick_plan_takes_every_path_on_little() -> None:
    suite = load_suite()
    jobs = make_jobs(suite, "quick")
    assert {job.train.task for job in jobs} == {t.data for t in suite.tasks}
    assert {job.task for job in jobs} == {t.id for t in suite.tasks} - set(suite.profiles["quick"].skip_tasks) | {
        TIME_TASK
    }
    assert {job.kind for job in jobs} == {"model", "ablation", "baselines", "time"}
    assert all(job.train.n <= 64 and job.minutes <= 0.2 for job in jobs)
    assert {a.name for a in suite.ablations} == {
        job.arm.removeprefix("flux: ") for job in jobs if job.kind == "ablation"
    }


def test_first_seeds_come_first_and_long_jobs_within_them() -> None:
    jobs = make_jobs(load_suite(), "full")
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    of_two = [job.minutes for job in jobs if job.seed == 2]
    assert of_two == sorted(of_two, reverse=True)


@pytest.mark.parametrize(
    ("profile", "tasks", "arms", "said"),
    [
        ("half", [], [], "--profile: 'half'"),
        ("full", ["T8"], [], "--task: 'T8'"),
        ("full", [], ["gru"], "--arm: 'gru'"),
    ],
)
def test_unknown_names_are_refused(profile: str, tasks: list[str], arms: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        make_jobs(load_suite(), profile, tasks, arms)


def test_a_choice_of_jobs() -> None:
    jobs = make_jobs(load_suite(), "full", ["T7"], ["flux", "flux: message passing off"])
    assert {(job.task, job.arm) for job in jobs} == {("T7", "flux"), ("T7", "flux: message passing off")}


def test_a_result_depends_on_the_files_of_its_model_only() -> None:
    jobs = {job.arm: job for job in make_jobs(load_suite(), "full", ["T2"])}
    models = ROOT / "src" / "perfuse" / "models"
    assert models / "flux_network.py" in job_files(jobs["flux"])
    assert models / "flux.py" in job_files(jobs[BASELINES]), "loglinear-rates is among them"
    assert models / "flux_network.py" not in job_files(jobs["mlp"])
    assert models / "mlp.py" not in job_files(jobs["flux"])
    assert code_hash(jobs["flux"]) != code_hash(jobs["mlp"])
    for job in jobs.values():
        package = ROOT / "src" / "perfuse"
        everyones = {package / "training" / name for name in ("run.py", "loop.py", "keeper.py", "optimizer.py")}
        everyones |= {package / "evaluation" / n for n in ("runs.py", "judged_data.py", "training_distance.py")}
        assert everyones <= set(job_files(job)), "the engine is no model's own"
        has_rates = job.arm.startswith(("flux", "loglinear-rates", BASELINES))
        assert (package / "training" / "gauss_newton.py" in job_files(job)) == has_rates
        assert all(path.is_file() for path in job_files(job))
        assert not [p for p in job_files(job) if p.name == "cli.py"]


def test_time_jobs_depend_on_what_measures_them() -> None:
    for job in make_jobs(load_suite(), "full", [TIME_TASK]):
        names = {p.name for p in job_files(job) if p.parent == ROOT / "benchmarks"}
        assert names == {"time_to_accuracy.py", "plain_loop.py", "pyg_loop.py", "common.py"}


def test_results_are_kept_by_definition_and_code(tmp_path: Path) -> None:
    suite = load_suite()
    job, other = make_jobs(suite, "full", ["T2"], ["mlp"])[:2]
    store = ResultStore(tmp_path, lambda _: "aaaa")
    assert store.remaining([job, other]) == [job, other]
    store.path(job).write_text(json.dumps(not_run(job) | {"status": "done"}), encoding="utf-8")
    assert store.remaining([job, other]) == [other]
    store.path(other).write_text(json.dumps(not_run(other, "failed", "no")), encoding="utf-8")
    assert store.remaining([job, other]) == [other], "what failed is tried again"
    store.path(other).write_text("{half", encoding="utf-8")
    assert store.load(other) is None

    newer = ResultStore(tmp_path, lambda _: "bbbb")
    assert newer.remaining([job]) == [job]
    assert newer.load_all([job])[0]["status"] == "not run"
    kept = ResultStore(tmp_path, lambda _: "bbbb", any_code=True).load(job)
    assert kept is not None and kept["other_code"] is True
    longer = make_jobs(
        load_suite(_changed(tmp_path, "test_curves = 2000", "test_curves = 1000")), "full", ["T2"], ["mlp"]
    )[0]
    assert ResultStore(tmp_path, lambda _: "aaaa", any_code=True).load(longer) is None, "another definition"

"""What the suite runs: ``suite.toml`` as typed values, and the list of jobs that a profile makes of it."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ROOT = Path(__file__).resolve().parents[2]
SUITE_FILE = ROOT / "benchmarks" / "suite.toml"
BASELINES = "baselines"
"""The arm that fits and judges every baseline of a task and seed in one job."""
TEST_SEED, CALIBRATION_SEED = 1_000_001, 1_000_002
"""Seeds of simulation that no training data uses: test and calibration curves are of drugs and people never seen."""
FORMAT = 1
"""Of a job's result; a change makes old results strangers."""
TIME_TASK = "time-to-accuracy"
"""The task of the jobs that measure how long it takes to reach an accuracy."""


FLUX_ADAMW = "flux, AdamW alone"
PLAIN_SMALL, PLAIN_BEST = "plain loop, batch 8", "plain loop, its best batch"
PYG_BEST = "PyTorch Geometric, its best batch"
_OVERHEAD_MINUTES = 0.08
_SAFE = str.maketrans({" ": "-", ":": None, ",": None})


class _Typed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(_Typed):
    """One training set with its budget and test sets."""

    id: str
    title: str
    data: str
    curves: int = Field(ge=4)
    minutes: float = Field(gt=0)
    tests: list[str] = Field(min_length=1)
    targets: dict[str, float] = Field(default_factory=dict)


class Ablation(_Typed):
    """`flux` with a part switched off."""

    name: str
    switch: dict[str, Any]
    tasks: list[str]


class Profile(_Typed):
    """How much of everything."""

    seeds: list[int] = Field(min_length=1)
    test_curves: int = Field(ge=1)
    calibration_curves: int = Field(ge=1)
    max_curves: int | None = None
    max_minutes: float | None = None
    max_ablated_tasks: int | None = None
    """At most so many tasks of each ablation."""
    skip_tasks: list[str] = Field(default_factory=list)
    max_batch_size: int | None = None
    """Of the plain loop, where its best one is looked for."""


class TimeToAccuracy(_Typed):
    """How long each arm may take to reach a GMFE on held-out curves, and the least ratio of plain loop to `flux`."""

    data: str
    curves: int = Field(ge=4)
    held_out: int = Field(ge=1)
    gmfe: float = Field(gt=1)
    flux_minutes: float = Field(gt=0)
    plain_minutes: float = Field(gt=0)
    pyg_minutes: float = Field(gt=0)
    target_ratio: float = Field(gt=0)


class CoverageTarget(_Typed):
    """How often intervals must hold the truth, on which data."""

    level: float
    overall: tuple[float, float]
    organ: tuple[float, float]
    tasks: list[str]


class Suite(_Typed):
    """The whole file."""

    validation_fraction: float = Field(gt=0, lt=1)
    baselines_minutes: float = Field(gt=0)
    baselines_rates_curves: int = Field(ge=1)
    time_to_accuracy: TimeToAccuracy
    coverage: CoverageTarget
    profiles: dict[str, Profile]
    arms: dict[str, dict[str, Any]]
    tasks: list[Task]
    ablations: list[Ablation]

    @model_validator(mode="after")
    def _names_exist(self) -> Suite:
        from perfuse.data.tasks import TASKS

        ids = [task.id for task in self.tasks]
        if len(set(ids)) < len(ids):
            raise ValueError("two tasks share an id")
        unknown = (
            {self.time_to_accuracy.data}
            | {t.data for t in self.tasks}
            | {n for t in self.tasks for n in (*t.tests, *t.targets)}
        )
        unknown -= set(TASKS)
        unknown |= {name for a in self.ablations for name in a.tasks} - set(ids)
        unknown |= {name for profile in self.profiles.values() for name in profile.skip_tasks} - set(ids)
        if unknown:
            raise ValueError(f"no such task: {', '.join(sorted(unknown))}")
        untested = [t.id for t in self.tasks if not set(t.targets) <= set(t.tests)]
        if untested:
            raise ValueError(f"{untested[0]} has a target for a test set that it is not tested on")
        if BASELINES in self.arms:
            raise ValueError(f"no arm may be called {BASELINES}")
        if "flux" not in self.arms:
            raise ValueError("there is no arm flux, which targets and ablations are about")
        return self


def load_suite(path: Path = SUITE_FILE) -> Suite:
    """The suite of a file.

    Raises:
        SystemExit: with one line, for a file that does not hold one.
    """
    try:
        return Suite.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SystemExit(f"{path}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise SystemExit(f"{path}: {'.'.join(map(str, first['loc'])) or 'suite'}: {first['msg']}") from None


@dataclass(frozen=True)
class DataSpec:
    """A simulated data set."""

    task: str
    n: int
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.task}-{self.n}-seed{self.seed}"


@dataclass(frozen=True)
class Job:
    """One training and its judgement, or all baselines of a task and seed, or one arm's time to an accuracy.

    Attributes:
        task, arm, seed: What it is; together unique in a plan.
        kind: ``model``, ``ablation``, ``baselines`` or ``time``.
        model: ``[model]`` of the run's configuration; settings of baselines, or of the plain loop.
        minutes: Wall-clock budget of training (of each fit, for baselines).
        train: Its curves.
        validation_fraction: Share of them that selects the best checkpoint.
        calibration: Curves that intervals are calibrated on; None for baselines and ablations.
        tests: What it is judged on, by name.
    """

    task: str
    arm: str
    seed: int
    kind: Literal["model", "ablation", "baselines", "time"]
    model: dict[str, Any]
    minutes: float
    train: DataSpec
    validation_fraction: float
    calibration: DataSpec | None
    tests: dict[str, DataSpec] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.task}-{self.arm}-seed{self.seed}".translate(_SAFE)

    @property
    def key(self) -> str:
        """Hash of everything that defines it."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def data(self) -> list[DataSpec]:
        """Every data set that it needs."""
        return [self.train, *self.tests.values(), *([self.calibration] if self.calibration else [])]


def make_jobs(suite: Suite, profile_name: str, tasks: Iterable[str] = (), arms: Iterable[str] = ()) -> list[Job]:
    """The jobs of a profile: first seeds first, so that an interrupted run has whole tables; within a seed, long first.

    Args:
        suite: The suite.
        profile_name: Key of ``suite.profiles``.
        tasks, arms: Only these; empty is all. An ablation's arm is ``flux: NAME``.

    Raises:
        SystemExit: with one line, for a profile, task or arm that is not there.
    """
    if profile_name not in suite.profiles:
        raise SystemExit(f"--profile: {profile_name!r} is none of {', '.join(suite.profiles)}")
    profile, jobs = suite.profiles[profile_name], []
    chosen = [task for task in suite.tasks if task.id not in profile.skip_tasks]
    for number, seed in enumerate(profile.seeds):
        of_seed = [job for task in chosen for job in _task_jobs(suite, profile, task, seed)]
        if number == 0:  # one seed will do: the plain loop takes minutes to get nowhere
            of_seed += _time_jobs(suite, profile, seed)
        jobs += sorted(of_seed, key=lambda job: -job.minutes)
    for option, chosen, there in (
        ("--task", set(tasks), {j.task for j in jobs}),
        ("--arm", set(arms), {j.arm for j in jobs}),
    ):
        if chosen - there:
            raise SystemExit(f"{option}: {sorted(chosen - there)[0]!r} is none of {', '.join(sorted(there))}")
    only_tasks, only_arms = set(tasks), set(arms)
    return [j for j in jobs if (not only_tasks or j.task in only_tasks) and (not only_arms or j.arm in only_arms)]


def _task_jobs(suite: Suite, profile: Profile, task: Task, seed: int) -> list[Job]:
    curves = min(task.curves, profile.max_curves or task.curves)
    minutes = min(task.minutes, profile.max_minutes or task.minutes)
    train = DataSpec(task.data, curves, seed)
    tests = {name: DataSpec(name, profile.test_curves, TEST_SEED) for name in task.tests}
    calibration = DataSpec(task.data, profile.calibration_curves, CALIBRATION_SEED)
    fraction = suite.validation_fraction
    fit_minutes = min(suite.baselines_minutes, 2 * minutes) if profile.max_minutes else suite.baselines_minutes
    settings = {"rates_curves": suite.baselines_rates_curves}
    jobs = [Job(task.id, BASELINES, seed, "baselines", settings, fit_minutes, train, fraction, None, tests)]
    jobs += [
        Job(task.id, arm, seed, "model", model, minutes, train, fraction, calibration, tests)
        for arm, model in suite.arms.items()
    ]
    for ablation in suite.ablations:
        if task.id in ablation.tasks[: profile.max_ablated_tasks]:
            model = {**suite.arms["flux"], **ablation.switch}
            arm = ablation_arm(ablation)
            jobs.append(Job(task.id, arm, seed, "ablation", model, minutes, train, fraction, None, tests))
    return jobs


def _time_jobs(suite: Suite, profile: Profile, seed: int) -> list[Job]:
    """`flux`, the same by AdamW alone; the plain loop at batch 8 and its best batch, PyTorch Geometric at its best."""
    spec = suite.time_to_accuracy
    limit = profile.max_minutes or max(spec.flux_minutes, spec.plain_minutes)
    train = DataSpec(spec.data, min(spec.curves, profile.max_curves or spec.curves), seed)
    fraction = min(spec.held_out / spec.curves, 0.25)
    common = {"gmfe": spec.gmfe}
    best = common | {"batch_size": "best", "max_batch_size": profile.max_batch_size}
    arms: list[tuple[str, dict[str, Any], float]] = [
        ("flux", common | {"model": suite.arms["flux"]}, spec.flux_minutes),
        (FLUX_ADAMW, common | {"model": {**suite.arms["flux"], "start": "zero"}}, spec.flux_minutes),
        (PLAIN_SMALL, common | {"batch_size": 8}, spec.plain_minutes),
        (PLAIN_BEST, best, spec.plain_minutes),
        (PYG_BEST, best | {"loop": "pyg"}, spec.pyg_minutes),
    ]
    return [
        Job(TIME_TASK, arm, seed, "time", model, min(minutes, limit), train, fraction, None, {})
        for arm, model, minutes in arms
    ]


def ablation_arm(ablation: Ablation) -> str:
    """How results call it."""
    return f"flux: {ablation.name}"


def expected_minutes(jobs: Iterable[Job], workers: int) -> float:
    """Wall-clock minutes that jobs should take: their budgets, and some seconds each to start and to be judged."""
    return sum(job.minutes + _OVERHEAD_MINUTES for job in jobs) / workers

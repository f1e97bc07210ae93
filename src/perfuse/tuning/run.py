"""``tune``: a sweep from data, a base configuration and a space, in a folder of its own, or the rest of one.

The folder holds ``sweep.json``, ``trials.jsonl``, ``trials/NNNN`` (run folders), ``best.toml`` and ``tune.html``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import perfuse
from perfuse.config import RunConfig, resolve
from perfuse.data.locks import take_lock
from perfuse.data.manifest import MANIFEST
from perfuse.data.simulation_ray import EMBEDDED, connected, import_ray
from perfuse.data.sources import open_source, source_hash
from perfuse.data.split import split_curves
from perfuse.errors import InputError, PerfuseError
from perfuse.training.interrupt import Interrupted, Interruption
from perfuse.tuning.page import write_page
from perfuse.tuning.record import (
    MOST_TRIALS,
    Journal,
    SweepRecord,
    TrialRecord,
    holds_sweep,
    read_sweep,
    read_trials,
    write_sweep,
)
from perfuse.tuning.space import Space, default_space
from perfuse.tuning.suggestions import import_optuna
from perfuse.tuning.sweep import Sweep

_LOCK_FILE = ".sweep.lock"
_STORAGE = ".ray-"
DEFAULT_TRIALS = 20


@dataclass(frozen=True)
class TuneRequest:
    """What to search, and how far.

    Attributes:
        data: Dataset folder (absolute), file or URL.
        base: Configuration that the space's values are put into; None: the defaults, or what the sweep began with.
        space: What is searched, given the resolved base; None: the model's default space.
        trials: Trials in all.
        max_minutes: Wall-clock budget of this session.
        trial_minutes: Wall-clock budget of a trial, in place of epochs.
        concurrent: Trials at a time; None: one, or on a cluster as many as it has CPUs.
        ray: Address of a cluster; "local" starts Ray here.
        seed: Of the suggestions (runs use the configuration's own); None: 0, or what the sweep began with.
        early_termination: Whether bad trials end early.
    """

    data: str
    base: RunConfig | None = None
    space: Callable[[RunConfig], Space] | None = None
    trials: int = DEFAULT_TRIALS
    max_minutes: float | None = None
    trial_minutes: float | None = None
    concurrent: int | None = None
    ray: str = "local"
    seed: int | None = None
    early_termination: bool = True


def tune(
    request: TuneRequest, folder: Path, *, resume: bool = False, note: Callable[[str], None] = lambda line: None
) -> Sweep:
    """Run a sweep to its end, or until its minutes are used up.

    Args:
        request: What to search.
        folder: Where the sweep lives; must hold none unless ``resume``.
        resume: Go on with the sweep in the folder.
        note: Called with a line for the user now and then.

    Raises:
        InputError: for a request, data or folder that cannot be used; nothing has been written then.
        Interrupted: after Ctrl-C or SIGTERM, with everything saved.
        PerfuseError: if every trial failed, or the sweep cannot go on.
    """
    folder = Path(folder).absolute()
    _check(request)
    ray = import_ray("perfuse tune", request.ray in EMBEDDED)
    import_optuna()
    if resume:
        read_sweep(folder)  # before anything takes long
    else:
        _refuse_other_content(folder)
    record = asked(request)
    trials: list[TrialRecord] = []
    if resume:
        record, trials = _taken_up(request, record, folder)
    with (
        connected(ray, request.ray, request.concurrent or 1),  # before anything is written
        _begun(folder, None if resume else record) as space,
        _journal(folder) as journal,
        _storage(folder, request.ray) as storage,
    ):
        concurrent, gpus = _places(ray, request, record.config)
        sweep = Sweep(
            folder, record, space, trials, journal, n_trials=request.trials, concurrent=concurrent,
            max_minutes=request.max_minutes, note=note,
        )  # fmt: skip
        from perfuse.tuning.ray_run import run_on_ray

        with _stopped_by_signals(sweep, note) as interruption:
            run_on_ray(sweep, storage, gpus)
    return finish(sweep, interruption.received)


def _refuse_other_content(folder: Path) -> None:
    """Refuse a folder that holds a sweep, a run or a dataset, or is none.

    Raises:
        InputError: if so.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError("--out", "is not a folder", value=str(folder))
    if holds_sweep(folder):
        hint = "use --resume to continue it, or another folder"
        raise InputError("--out", "already holds a sweep", value=str(folder), hint=hint)
    for what, names in (("dataset", (MANIFEST,)), ("run", ("config.toml", "last", "best"))):
        if any((folder / name).exists() for name in names):
            hint = "give the sweep a folder of its own"
            raise InputError("--out", f"holds a {what}", value=str(folder), hint=hint)


def _check(request: TuneRequest) -> None:
    for name, value, high in (
        ("--trials", request.trials, MOST_TRIALS), ("--concurrent", request.concurrent, 10**4)
    ):  # fmt: skip
        if value is not None and not 1 <= value <= high:
            raise InputError(name, value=value, allowed=f"1 to {high}")
    for name, minutes in (("--max-minutes", request.max_minutes), ("--trial-minutes", request.trial_minutes)):
        if minutes is not None and not 0 < minutes < 10**7:
            raise InputError(name, value=minutes, unit="min", allowed="> 0")
    if request.seed is not None and not 0 <= request.seed < 2**63:
        raise InputError("--seed", value=request.seed, allowed="0 to 2^63 - 1")


def asked(request: TuneRequest) -> SweepRecord:
    """The record of a new sweep, with the data opened and every value of the space checked.

    Raises:
        InputError: for what cannot be used.
    """
    base = request.base or RunConfig()
    if (getattr(base.training, "devices", None) or 1) != 1:
        raise InputError("training.devices", "is too many for a sweep", allowed="1: each trial is one process")
    if request.trial_minutes is not None:
        base = base.model_copy(
            update={"training": base.training.model_copy(update={"max_minutes": request.trial_minutes})}
        )
    source = open_source(request.data)
    split = split_curves(source, base.split, base.seed)
    resolved = resolve(base, len(split.train))
    space = request.space(resolved) if request.space else default_space(resolved)
    return SweepRecord(
        seed=request.seed or 0, config=base, space=space.plain(), early_termination=request.early_termination,
        data=request.data, data_sha256=source_hash(source), n_train=len(split.train),
        n_validation=len(split.validation), n_test=len(split.test), code_version=perfuse.__version__,
    )  # fmt: skip


def _taken_up(request: TuneRequest, now: SweepRecord, folder: Path) -> tuple[SweepRecord, list[TrialRecord]]:
    """What the sweep in a folder was asked and has done.

    Raises:
        InputError: if what is asked now differs in what a sweep may not change.
    """
    before, space = read_sweep(folder)
    if now.data_sha256 != before.data_sha256:
        raise InputError(
            "--resume: data", "are not what the sweep began with", value=f"sha256 {now.data_sha256[:12]}",
            allowed=f"{before.data}, sha256 {before.data_sha256[:12]}",
        )  # fmt: skip
    given = (
        ("--seed", request.seed is not None, now.seed != before.seed),
        ("--space", request.space is not None, now.space != before.space),
        ("--config", request.base is not None or request.trial_minutes is not None, now.config != before.config),
    )
    for name, is_given, differs in given:
        if is_given and differs:
            raise InputError(f"--resume: {name}", "has changed", hint="leave it out, or begin another sweep")
    return before.model_copy(update={"data": request.data}), read_trials(folder, space)


def _places(ray: object, request: TuneRequest, config: RunConfig) -> tuple[int, float]:
    """Trials at a time, and GPUs of each."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[attr-defined]
    has_room = int(resources.get("CPU", 1))
    concurrent = request.concurrent or (1 if request.ray in EMBEDDED else has_room)
    gpus = resources.get("GPU", 0.0) if config.training.device != "cpu" else 0.0
    return concurrent, min(1.0, gpus / concurrent)


def finish(sweep: Sweep, received: int | None = None) -> Sweep:
    """Write the page and say how the sweep ended.

    Raises:
        Interrupted: if a signal ended it.
        PerfuseError: if it cannot go on, or no trial has a loss.
    """
    sweep.write_best()
    write_page(sweep)
    open_trials = sum(t.is_open for t in sweep.trials)
    if received is not None:
        raise Interrupted(
            received, f"{len(sweep.trials) - open_trials} trials have ended and are kept, {open_trials} can go on; the "
            "same command with --resume continues from there",
        )  # fmt: skip
    if sweep.best() is None:
        reasons = [t.ended.reason for t in sweep.trials if t.ended is not None and t.ended.reason]
        if reasons:
            raise PerfuseError(f"all {len(reasons)} trials failed; the last: {reasons[-1]}")
        raise PerfuseError(f"no trial has ended: {sweep.stopped_because or 'none was run'}; --resume goes on")
    if sweep.is_lost:
        raise PerfuseError(f"the sweep ended early: {sweep.stopped_because}; --resume goes on")
    return sweep


@contextmanager
def _begun(folder: Path, new: SweepRecord | None) -> Iterator[Space]:
    """Write down a new sweep, and refuse a second one in the same folder while this one runs; gives its space.

    Raises:
        InputError: if the folder has come to hold something else meanwhile.
        PerfuseError: if another sweep runs there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(folder / _LOCK_FILE)
    if lock is None:
        raise PerfuseError(f"another process is running the sweep in {folder}")
    try:
        if new is not None:
            _refuse_other_content(folder)
            write_sweep(folder, new)
        yield read_sweep(folder)[1]
    finally:
        lock.close()


@contextmanager
def _journal(folder: Path) -> Iterator[Journal]:
    journal = Journal(folder)
    try:
        yield journal
    finally:
        journal.close()


@contextmanager
def _storage(folder: Path, address: str) -> Iterator[Path]:
    """A folder for what Ray Tune writes, never read back; a cluster's lies in the sweep's, which every node reaches."""
    for left in folder.glob(f"{_STORAGE}*"):  # of a session that was killed
        shutil.rmtree(left, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=_STORAGE, dir=None if address in EMBEDDED else folder))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _stopped_by_signals(sweep: Sweep, note: Callable[[str], None]) -> Iterator[Interruption]:
    """Ctrl-C and SIGTERM have running trials save and leave; a second one ends at once."""

    def announce(line: str) -> None:
        sweep.stop(line.split(":")[0])
        note(f"{line.split(':')[0]}: running trials save at their next validation; once more ends at once")

    with Interruption(announce) as interruption:
        yield interruption

"""One trial: a run like any other, in a folder of its own, that asks at each rung whether it goes on.

Knows nothing of Ray: whoever calls it says what happens at a rung and when to leave.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from perfuse.config import RunConfig, parse_config, resolve
from perfuse.data.locks import take_lock
from perfuse.data.sources import open_source, source_hash
from perfuse.data.split import split_curves
from perfuse.errors import InputError, PerfuseError
from perfuse.training.interrupt import LeftOff
from perfuse.training.logs import METRICS_FILE
from perfuse.tuning.halving import RUNGS
from perfuse.tuning.record import Ended, Status

AtRungFunction: TypeAlias = Callable[[int, Ended], bool]
_LOCK_FILE = ".trial.lock"
_LOCK_WAIT_S = 60.0
_SHOWN = 300


@dataclass(frozen=True)
class TrialSpec:
    """What a process needs to run a trial, as plain data.

    Attributes:
        number: The trial.
        folder: Its run folder.
        data: Dataset folder, file or URL; opened by the trial's own process.
        data_sha256: Hash of the content that the sweep began with.
        config: The run's configuration as plain data.
    """

    number: int
    folder: str
    data: str
    data_sha256: str
    config: dict[str, Any]


class TrialLeft(LeftOff):
    """A trial was told to stop, and has saved."""


class _Lost(PerfuseError):
    """A trial could not go on for no fault of its configuration."""


class _Watch:
    """Follows a trial's validations: its best loss, how far it is, and the rungs on its way."""

    def __init__(
        self, config: RunConfig, at_rung: AtRungFunction, is_leaving: Callable[[], bool], number: int
    ) -> None:  # fmt: skip
        self.best, self.best_epoch, self.epochs, self.steps = math.inf, 0, 0, 0
        self.seconds, self.progress = 0.0, 0.0
        self.config = config
        self._number = number
        self._at_rung = at_rung
        self._is_leaving = is_leaving
        self._next = 0

    def __call__(self, line: Mapping[str, object]) -> None:
        self.follow(line)
        if self._is_leaving():
            raise TrialLeft("the sweep stops")

    def follow(self, line: Mapping[str, object]) -> None:
        """Take in a line of metrics, and ask at the rungs that it reaches."""
        loss, epoch, step, time_s = (_number(line.get(k)) for k in ("val_loss", "epoch", "step", "time_s"))
        self.epochs, self.steps, self.seconds = int(epoch), int(step), time_s
        if loss < self.best:
            self.best, self.best_epoch = loss, self.epochs
        self.progress = fraction_done(self.config, self.epochs, self.seconds, self.steps)
        while self._next < len(RUNGS) and RUNGS[self._next] <= self.progress < 1:
            self._next += 1
            if not self._at_rung(self._next - 1, self.ended("terminated")):
                raise TrialLeft("terminated early")

    def ended(self, status: Status, reason: str = "") -> Ended:
        return Ended(
            number=self._number, status=status, val_loss=self.best if math.isfinite(self.best) else None,
            progress=1.0 if status == "completed" else min(self.progress, 1.0), best_epoch=self.best_epoch,
            epochs=self.epochs, steps=self.steps, seconds=self.seconds, reason=" ".join(reason.split())[:_SHOWN],
        )  # fmt: skip


def fraction_done(config: RunConfig, epochs: int, seconds: float, steps: int = 0) -> float:
    """How much of a resolved configuration's run is behind: of its minutes if it has a budget, else of its epochs or
    steps, whichever end it first.
    """
    if config.training.max_minutes is not None:
        return seconds / (60 * config.training.max_minutes)
    parts = ((epochs, config.training.epochs), (steps, config.training.max_steps))
    return max(done / whole for done, whole in parts if whole is not None)


def run_trial(spec: TrialSpec, at_rung: AtRungFunction, is_leaving: Callable[[], bool] = lambda: False) -> Ended | None:
    """Train a trial, or go on with one whose folder holds a checkpoint.

    Args:
        spec: The trial.
        at_rung: Called with a rung's index and the end of the trial if it does not go on; says whether it does.
        is_leaving: Asked after every validation; true ends the run, saved.

    Returns:
        How it ended; None where it was told to leave, at a rung or between, with everything saved.
    """
    try:
        with _locked(Path(spec.folder)):
            return _trained(spec, at_rung, is_leaving)
    except TrialLeft:
        return None
    except (_Lost, OSError) as error:
        return Ended(number=spec.number, status="lost", reason=" ".join(str(error).split())[:_SHOWN])


def _trained(spec: TrialSpec, at_rung: AtRungFunction, is_leaving: Callable[[], bool]) -> Ended:
    from perfuse.evaluation.during_training import ValidationGmfe
    from perfuse.training.loop import NonFiniteError
    from perfuse.training.retention import holds_checkpoint
    from perfuse.training.run import train

    try:
        source = open_source(spec.data, verify=False)  # the sweep has verified it, or fetching does
        if source_hash(source) != spec.data_sha256:
            raise _Lost("the data have changed since the sweep began")
    except InputError as error:
        raise _Lost(str(error)) from None
    config, folder = parse_config(spec.config, "trial"), Path(spec.folder)
    watch = _Watch(config, at_rung, is_leaving, spec.number)
    try:
        watch.config = resolve(config, len(split_curves(source, config.split, config.seed).train))
        resume = holds_checkpoint(folder)
        if resume:
            _take_up(watch, folder)
        result = train(
            source, config, folder, resume=resume, validate=ValidationGmfe(), data_path=spec.data, on_validation=watch
        )
    except TrialLeft:
        raise
    except (InputError, NonFiniteError) as error:
        return watch.ended("failed", str(error))
    except (PerfuseError, OSError) as error:
        return watch.ended("lost", str(error))
    except Exception as error:  # out of memory, say: the next trial may do better
        return watch.ended("failed", f"{type(error).__name__}: {error}")
    watch.best, watch.best_epoch = result.best_val_loss, result.best_epoch
    watch.epochs, watch.steps, watch.seconds = result.epochs, result.steps, result.seconds
    if not math.isfinite(result.best_val_loss):
        return watch.ended("failed", "no validation loss was finite")
    return watch.ended("completed")


def _take_up(watch: _Watch, folder: Path) -> None:
    """Let the watch follow the validations before the checkpoint, asking at their rungs again.

    A trial may have left at a rung, before it heard an answer; it must not be judged by a later loss than at first.
    """
    from perfuse.training.resume import read_last

    validated = read_last(folder, with_optimizer=False).state.progress.validated_step
    path = folder / METRICS_FILE
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # cut short: it is after the checkpoint
        if isinstance(line, dict) and _number(line.get("step")) <= validated:
            watch.follow(line)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a process of an earlier session, which may take a moment to end, from writing to the same run.

    Raises:
        _Lost: if it does not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + _LOCK_WAIT_S
    while (lock := take_lock(folder / _LOCK_FILE)) is None:
        if time.monotonic() > until:
            raise _Lost("another process is still training this trial")
        time.sleep(0.2)
    try:
        yield
    finally:
        lock.close()


def _number(value: object) -> float:
    """A number of ``metrics.jsonl``; null stands for one that is not finite."""
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else math.inf

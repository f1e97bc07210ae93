"""The course of a sweep: which trial is next, who goes on, what is best so far. Whoever runs the trials asks and tells.

Every answer is in ``trials.jsonl`` before it is given, so a sweep that is killed at any moment goes on from there.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perfuse.config import RunConfig, resolve
from perfuse.errors import InputError
from perfuse.files import write_atomic
from perfuse.training.config_file import config_toml
from perfuse.tuning.halving import Halving
from perfuse.tuning.record import (
    BEST_FILE,
    AtRung,
    Ended,
    Journal,
    Started,
    SweepRecord,
    TrialRecord,
    trial_folder,
)
from perfuse.tuning.space import Space, base_values, merged
from perfuse.tuning.suggestions import Suggestions
from perfuse.tuning.trial import TrialSpec

_LOST_IN_A_ROW = 3


class Sweep:
    """A sweep under way.

    Args:
        folder: Where it lives.
        record, space: What was asked.
        trials: What an earlier session left.
        journal: Where events go.
        n_trials: Trials in all, those of earlier sessions included.
        concurrent: Trials at a time.
        max_minutes: Wall-clock budget of this session; None for no end.
        note: Called with a line for the user now and then.
    """

    def __init__(
        self, folder: Path, record: SweepRecord, space: Space, trials: list[TrialRecord], journal: Journal, *,
        n_trials: int, concurrent: int = 1, max_minutes: float | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self.folder, self.record, self.space, self.trials = folder, record, space, trials
        self.concurrent = concurrent
        self.stopped_because = ""
        self.halving = Halving(record.early_termination)
        self._journal = journal
        self._n_trials = n_trials
        self._note = note
        self._deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._running: set[int] = set()
        self._lost_in_a_row = 0
        base = resolve(record.config, record.n_train)
        self._suggestions = Suggestions(space, record.seed, base_values(space, base))
        self._restore()
        self._open = deque(t.number for t in trials if t.is_open)

    def _restore(self) -> None:
        for trial in self.trials:
            for rung in trial.rungs.values():
                loss = math.inf if rung.val_loss is None else rung.val_loss
                self.halving.replay(trial.number, rung.rung, loss, rung.goes_on)
            if trial.is_open:
                self._suggestions.restore_running(trial.values)
            else:
                assert trial.ended is not None
                self._suggestions.restore_ended(trial.values, *_told(trial.ended))

    @property
    def is_stopping(self) -> bool:
        """Whether running trials are to save and leave."""
        if not self.stopped_because and time.monotonic() > self._deadline:
            self.stop("the wall-clock budget is used up")
        return bool(self.stopped_because)

    @property
    def is_lost(self) -> bool:
        """Whether so many trials were lost in a row that something outside of them must be wrong."""
        return self._lost_in_a_row >= _LOST_IN_A_ROW

    @property
    def has_more(self) -> bool:
        """Whether there is, or will be, another trial to run."""
        return not self.is_stopping and (bool(self._open) or len(self.trials) < self._n_trials)

    def stop(self, reason: str) -> None:
        """Hand out no more trials, and have the running ones leave."""
        self.stopped_because = self.stopped_because or reason

    def next_trial(self) -> TrialSpec | None:
        """A trial to run now; None where there is none, or enough are running."""
        while self.has_more and len(self._running) < self.concurrent:
            if self._open:
                trial = self.trials[self._open.popleft()]
            else:
                number, values = self._suggestions.ask()
                trial = TrialRecord(number, values)
                self._journal.write(Started(number=number, values=values))
                self.trials.append(trial)
            self._running.add(trial.number)
            try:
                return self._spec(trial)
            except InputError as error:  # values that do not go together
                self.ended(Ended(number=trial.number, status="failed", reason=str(error)))
        return None

    def _spec(self, trial: TrialRecord) -> TrialSpec:
        config = merged(self.record.config, trial.values)
        # Hundreds of trials: what is only looked at is left out, and one save of each is enough.
        training = config.training.model_copy(update={"tensorboard": False, "keep_last": 1})
        data = config.model_copy(update={"training": training}).model_dump(mode="json", exclude_unset=True)
        data.setdefault("model", {})["name"] = config.model.name
        data["training"] = training.model_dump(mode="json", exclude_unset=True)
        folder = trial_folder(self.folder, trial.number)
        return TrialSpec(trial.number, str(folder), self.record.data, self.record.data_sha256, data)

    def at_rung(self, rung: int, so_far: Ended) -> bool:
        """Whether a trial goes on from a rung; if not, it has ended as ``so_far`` says."""
        loss = math.inf if so_far.val_loss is None else so_far.val_loss
        trial = self.trials[so_far.number]
        goes_on = self.halving.goes_on(trial.number, rung, loss)
        if rung not in trial.rungs:
            trial.rungs[rung] = AtRung(number=trial.number, rung=rung, val_loss=so_far.val_loss, goes_on=goes_on)
            self._journal.write(trial.rungs[rung])
        if not goes_on:
            self.ended(so_far)
        return goes_on

    def ended(self, ended: Ended) -> None:
        """Take note of how a trial ended."""
        trial = self.trials[ended.number]
        self._journal.write(ended)
        trial.ended = ended
        self._running.discard(ended.number)
        if ended.status == "lost":
            self._lost_in_a_row += 1
            if self.is_lost:
                self.stop(f"{_LOST_IN_A_ROW} trials in a row were lost: {ended.reason}")
        else:
            self._lost_in_a_row = 0
            self._suggestions.tell(ended.number, *_told(ended))
        best = self.best()
        if best is trial:
            self.write_best()
        self._note(_line(trial, best))

    def released(self, number: int) -> None:
        """A running trial has left because the sweep stops; a resumed one takes it up again."""
        self._running.discard(number)

    def died(self, number: int) -> None:
        """A running trial's process has ended, and its second one too; a resumed sweep takes it up again."""
        if number in self._running:
            self.ended(Ended(number=number, status="lost", reason="its process ended unexpectedly, twice"))

    def best(self) -> TrialRecord | None:
        """The trial with the lowest validation loss, of those that went to their end, else of all that have one."""
        judged = [t for t in self.trials if t.ended and t.ended.val_loss is not None and not t.is_open]
        whole = [t for t in judged if t.ended and t.ended.status == "completed"]
        return min(whole or judged, key=_loss_of, default=None)

    def best_config(self) -> RunConfig | None:
        """Configuration of the best trial, as ``perfuse train --config`` should use it."""
        best = self.best()
        return None if best is None else merged(self.record.config, best.values)

    def write_best(self) -> None:
        """Write ``best.toml``, if there is a best yet."""
        best, config = self.best(), self.best_config()
        if best is None or config is None:
            return
        head = (
            f"# The best of {sum(t.ended is not None for t in self.trials)} trials of a sweep: trial {best.number}, "
            f"validation loss {_loss_of(best):.6g}.\n# That loss is what it was chosen by: judge a run of it on its "
            "test part (perfuse evaluate).\n"
        )
        write_atomic(self.folder / BEST_FILE, (head + config_toml(config)).encode())


def plain_spec(spec: TrialSpec) -> dict[str, Any]:
    """A spec as plain data, as it travels to another process."""
    return asdict(spec)


def _told(ended: Ended) -> tuple[float | None, float | None]:
    """What the sampler is told: loss (None for a failure) and, for a trial terminated early, how far it came."""
    if ended.status == "failed":
        return None, None
    return ended.val_loss, ended.progress if ended.status == "terminated" else None


def _loss_of(trial: TrialRecord) -> float:
    assert trial.ended is not None and trial.ended.val_loss is not None
    return trial.ended.val_loss


def _line(trial: TrialRecord, best: TrialRecord | None) -> str:
    ended = trial.ended
    assert ended is not None
    loss = "no finite loss" if ended.val_loss is None else f"validation loss {ended.val_loss:.4g}"
    how = {
        "completed": f"{loss}, {ended.seconds:.0f} s",
        "terminated": f"{loss}, ended early at {ended.progress:.0%} of its length",
        "failed": f"failed: {ended.reason}",
        "lost": f"lost: {ended.reason}",
    }[ended.status]
    if best is None:
        return f"trial {trial.number}: {how}"
    return f"trial {trial.number}: {how} (best so far {_loss_of(best):.4g}, trial {best.number})"

"""The training loop.

    for each epoch
        for each group of micro-batches
            sum the weighted loss of each, backward, divided by the group's joint weight
            stop here if the loss or the gradient is not finite (an fp16 overflow only skips the step)
            clip, update, average the weights
        validate, keep the best, go on, or stop

Several processes run the same loop, each on its share of every micro-batch: they add up gradients and losses in one
exchange per step (``exchange``), and decide alike because they decide on what all of them know. The first one writes.

Per step the loop waits for the device once: for the losses and the gradient norm together. (Models look at doses and
time grids on the host; with a batch on a GPU that waits too.)
"""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, nullcontext, suppress
from typing import Literal, TypeAlias

import torch

from perfuse.config import RunConfig
from perfuse.data.loader import LoadedBatch, LoadingStopped
from perfuse.errors import PerfuseError
from perfuse.training.budget import Budget, Costs, Pace, StepTimer, planned
from perfuse.training.exchange import StepSums
from perfuse.training.interrupt import Interrupted, Interruption
from perfuse.training.keeper import Keeper
from perfuse.training.logs import Line, RunLogs
from perfuse.training.progress import ProgressDisplay
from perfuse.training.record import CheckpointState, IntervalRecord, PlanRecord, PlateauRecord, ProgressRecord
from perfuse.training.rng import capture_rng
from perfuse.training.step import NonFiniteError, Parts, Stepper, named_curves
from perfuse.training.validation import ValidationResult
from perfuse.training.world import LostProcess

Ending: TypeAlias = Literal["", "completed", "early", "deadline"]
_STEPS_THAT_TELL = 10
"""Before so many steps the start weighs so much that the time left would be guessed a hundredfold too long."""


class Trainer:
    """Runs the loop from wherever ``progress`` says it is.

    Args:
        parts: Model, loss, data and so on.
        config: The resolved configuration.
        template: Checkpoint state of this run; the parts that change are replaced when saving.
        plan: Length of the run.
        progress: Where the run is; the trainer counts in it.
        budget: The clock.
        logs: Metrics.
        display: Progress for the user.
        interruption: Signals.
        on_validation: Called in the first process with every line of metrics.
    """

    def __init__(
        self, parts: Parts, config: RunConfig, template: CheckpointState, plan: PlanRecord,
        progress: ProgressRecord, budget: Budget, logs: RunLogs, display: ProgressDisplay, interruption: Interruption,
        on_validation: Callable[[Mapping[str, object]], None] | None = None,
    ) -> None:  # fmt: skip
        self.parts = parts
        self.config = config
        self.plan = plan
        self.progress = progress
        self.budget = budget
        self.keeper: Keeper | None = None
        self.validation = dict(template.validation)
        self._template = template
        self._logs = logs
        self._display = display
        self._interruption = interruption
        self._on_validation = on_validation
        self._world, self._clock = parts.world, parts.clock
        self._step = Stepper(parts, config, progress, logs, display, self._asks)
        self._step.total_steps = plan.total_steps
        parts.loader.should_stop = lambda: interruption.received is not None
        self._timer = StepTimer()
        self._pace = Pace(budget, progress.step)
        self._mark = parts.clock.now()
        self._curves = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch; the last may have fewer micro-batches."""
        return math.ceil(len(self.parts.loader) / self.config.training.accumulate)

    def state(self) -> CheckpointState:
        """The checkpoint state as of now."""
        self.progress.elapsed_s = self.budget.elapsed_s()
        plateau = self.parts.schedule.plateau
        ema = self.parts.learner.ema
        changed = {
            "plan": self.plan,
            "progress": self.progress.model_copy(deep=True),
            "plateau": PlateauRecord(best=plateau.best, bad_validations=plateau.bad_validations, scale=plateau.scale),
            "scaler": self.parts.scaler.state(),
            "ema_updates": None if ema is None else ema.updates,
            "rng": capture_rng(),
            "validation": self.validation,
        }
        return self._template.model_copy(update=changed)

    def run(self, keeper: Keeper) -> Ending:
        """Train to the end and save; returns why it ended.

        Raises:
            Interrupted: after a signal, with everything saved.
            NonFiniteError: before an update that would have spoilt the weights.
            PerfuseError: if the wall-clock budget does not allow a single step.
        """
        self.keeper = keeper
        self.parts.learner.model.train()
        self._mark = self._clock.now()
        ending: Ending = ""
        try:
            while not ending:
                ending = self._train_epoch()
                ending = self._close_epoch(ending)
            self.progress.stopped = ending
            self._save_last()
        except NonFiniteError:
            self._world.on_main(keeper.save_best)
            raise
        except LostProcess as lost:
            self._save_after_loss(lost)
        return ending

    def _save_after_loss(self, lost: LostProcess) -> None:
        """Another process is gone. No step is half done: gradients are exchanged before anything changes.

        Raises:
            LostProcess: saying, in the process that saves, how to go on.
        """
        step = self.progress.step
        self._logs.event("rank_lost", level="error", step=step, reason=str(lost))
        if not self._world.is_main:
            raise lost
        self._keeper().save_last()
        words = f"{lost}; saved after step {step}; the same command with --resume continues from there"
        raise LostProcess(words) from lost

    def validate_start(self, keeper: Keeper) -> None:
        """Score what a run starts from, where that may already be the best there is."""
        self.keeper = keeper
        self._validate()

    # -- one epoch ---------------------------------------------------------------------------------------------

    def _train_epoch(self) -> Ending:
        """Steps from the current position to the end of the epoch or of the run."""
        if ending := self._ending():
            if self.progress.step == 0:
                raise PerfuseError("the wall-clock budget was used up before the first step: allow more minutes")
            return ending
        with closing(self._groups()) as groups:
            for micros in groups:
                sums = self._step(micros)
                self.progress.batch += len(micros)
                self.progress.step += 1
                self._after_step(sums)
                if ending := self._ending():
                    return ending
        return ""

    def _groups(self) -> Generator[list[LoadedBatch], None, None]:
        """Groups of ``accumulate`` micro-batches, from the current position on."""
        if self.progress.batch >= len(self.parts.loader):
            return
        epoch = self.parts.loader.epoch(self.progress.epoch, self.progress.batch)
        try:
            while micros := self._read(epoch):
                yield micros
        finally:
            if isinstance(epoch, Generator):  # ends its thread
                epoch.close()

    def _asks(self) -> tuple[bool, bool]:
        """Whether this process is to stop, and whether it is time to save."""
        return self._interruption.received is not None, self._keeper().is_due(end_of_epoch=False)

    def _read(self, epoch: Iterator[LoadedBatch]) -> list[LoadedBatch]:
        """The next group; what has been learnt is saved when the data have become unreadable."""
        try:
            return list(itertools.islice(epoch, self.config.training.accumulate))
        except LoadingStopped:
            self._leave_alone()
            raise AssertionError("unreachable") from None
        except PerfuseError:
            self._save_what_is_learnt()
            raise

    def _leave_alone(self) -> None:
        """Stop while a batch does not come. Other processes wait in their step, and learn it when this one ends."""
        if self._world.is_main:
            self._keeper().save_last()
        number = self._interruption.received or signal.SIGTERM
        self._logs.event("interrupted", level="warning", step=self.progress.step, signal=number)
        raise Interrupted(number, f"saved after step {self.progress.step}; --resume continues from there")

    def _save_what_is_learnt(self) -> None:
        """The data have become unreadable here; the other processes learn it when this one ends."""
        if self._world.is_main and self.progress.step:
            with suppress(PerfuseError):  # the first trouble is the one to tell
                self._keeper().save_last()
            self._display.note(f"saved after step {self.progress.step}: --resume continues once the data are whole")

    def _ending(self) -> Ending:
        if self.plan.total_steps is not None and self.progress.step >= self.plan.total_steps:
            return "completed"
        return "deadline" if self.budget.is_over(self.plan) else ""

    def _after_step(self, sums: StepSums) -> None:
        now = self._clock.now()
        seconds, self._mark = now - self._mark, now
        self.progress.interval.train_s += seconds
        self.progress.interval.curves += sums.curves
        self._curves += sums.curves
        if sums.is_interrupted or (self._world.is_alone and self._interruption.received is not None):
            self._leave(self._interruption.received or signal.SIGTERM)
        if self.plan.total_steps is None:
            self._timer.add(seconds)
            if self._timer.is_enough(self.budget):
                self._fix_length()
        elif total := self._pace.affordable_total(self.plan, self.progress.step):
            pace = "slower" if total < self.plan.total_steps else "faster"
            self._display.note(f"{pace} than measured: {total} steps instead of {self.plan.total_steps}")
            self._set_plan(self.plan.model_copy(update={"total_steps": total, "changes": self.plan.changes + 1}))
            self._logs.event("plan_changed", step=self.progress.step, total_steps=total)
        if sums.is_save_due:
            self._save_last()
            self._mark = self._clock.now()
        if self._display.due:
            self._show()
        self._logs.alive(step=self.progress.step)

    def _close_epoch(self, ending: Ending) -> Ending:
        """Validate when it is time, move on to the next epoch, and decide on early stopping."""
        progress, patience = self.progress, self.config.training.early_stopping_patience
        is_complete = progress.batch >= len(self.parts.loader)
        is_due = is_complete and (progress.epoch + 1) % self.plan.validate_every_epochs == 0
        if is_due or ending:
            if progress.validated_step != progress.step:
                self._validate()
            if not ending and patience and progress.epoch - max(progress.best_epoch, 0) >= patience:
                ending = "early"
        if is_complete:
            progress.epoch, progress.batch = progress.epoch + 1, 0
        if not ending and self._world.agree([self._keeper().is_due(end_of_epoch=True)])[0]:
            self._save_last()
        self._clock.meet()
        self._mark = self._clock.now()
        return ending

    def _save_last(self) -> None:
        """Have the first process write, after a look whether all have the same weights, as they must.

        Raises:
            PerfuseError: if they have not, or the disk refuses.
        """
        if not self._world.is_alone:
            weights = self.parts.learner.model.state_dict().values()
            mine = b"".join(t.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for t in weights)
            if self._world.differs(mine):
                raise PerfuseError(
                    f"the processes' weights have come apart before step {self.progress.step}: a machine computes "
                    "wrongly, or they run different versions; the save before is kept"
                )
        self._world.on_main(self._keeper().save_last)
        self._logs.event("checkpoint_saved", which="last", step=self.progress.step)
        self._clock.meet()

    def _keeper(self) -> Keeper:
        if self.keeper is None:
            raise PerfuseError("the trainer has no keeper: call run(keeper)")
        return self.keeper

    def _leave(self, signal_number: int) -> None:
        self._save_last()
        self._logs.event("interrupted", level="warning", step=self.progress.step, signal=signal_number)
        raise Interrupted(
            signal_number,
            f"saved after step {self.progress.step}; the same command with --resume continues from there",
        )

    # -- validation and length -----------------------------------------------------------------------------------

    def _score(self) -> ValidationResult:
        learner = self.parts.learner
        try:
            with learner.ema.applied() if learner.ema is not None else nullcontext():
                result = self.parts.validator(learner.model, lambda: self._interruption.received is not None)
        except LostProcess:
            raise
        except PerfuseError:
            self._save_what_is_learnt()
            raise
        if result is None:
            self._leave(self._interruption.received or signal.SIGTERM)
            raise AssertionError("unreachable")
        return result

    def _validate(self) -> None:
        result = self._score()
        progress, interval = self.progress, self.progress.interval
        if result.bad_curves:
            self._display.note(f"validation loss is not finite for curves {named_curves(result.bad_curves)}")
        lr = self.parts.schedule.lr(max(progress.step - 1, 0))
        self.parts.schedule.after_validation(result.loss)
        self.validation = {**result.metrics, "val_loss": result.loss}
        progress.validated_step = progress.step
        progress.interval = IntervalRecord()
        if result.loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_step = result.loss, progress.step
            progress.best_epoch = progress.epoch if progress.step else -1
            if self._world.is_main:
                self._keeper().take_best()
        self._display.validated(result.loss)
        updates = max(interval.updates, 1)
        self._told(
            {
                **result.metrics,
                "epoch": progress.epoch + 1 if progress.step else 0,
                "step": progress.step,
                "train_loss": interval.loss_total / interval.loss_weight if interval.loss_weight else math.nan,
                "val_loss": result.loss,
                "lr": lr,
                "grad_norm": interval.norm_total / updates,
                "grad_norm_max": interval.norm_max,
                "train_curves_per_s": interval.curves / interval.train_s if interval.train_s else math.nan,
                "time_s": self.budget.elapsed_s(),
                "skipped_steps": progress.skipped_steps,
                "val_loss_per_organ": dict(result.per_organ),
            }
        )

    def _told(self, line: Line) -> None:
        """Log a validation, and tell whoever follows the run; what they raise ends it, with everything saved."""
        self._logs.write(line)
        self._logs.event("validated", epoch=line["epoch"], step=line["step"], val_loss=line["val_loss"])
        if self._on_validation is not None and self._world.is_main:
            try:
                self._on_validation(line)
            except BaseException:
                self._keeper().save_last()
                raise

    def _fix_length(self) -> None:
        """Time a validation and a save, and fix how many steps the budget allows and how often to validate.

        What has been trained so far was trained at the full rate, so the cosine begins here.
        """
        start = self._now()
        self._score()  # the first one fills caches, and must not count where it is short
        warm = self._now()
        self._validate()
        scored = self._now()
        self._save_last()
        saved = self._now()
        costs = Costs(self._timer.mean_s(), min(warm - start, scored - warm), saved - scored)
        self.plan = planned(
            self.plan, costs, self.config, self.budget.left_s(), self.progress.step, self.steps_per_epoch
        )
        self._set_plan(self.plan.model_copy(update={"cosine_start": max(self.plan.cosine_start, self.progress.step)}))
        self._logs.event("plan_fixed", step=self.progress.step, total_steps=self.plan.total_steps, step_s=costs.step_s)
        self._mark = self._now()

    def _now(self) -> float:
        """This moment, alike in all processes."""
        self._clock.meet()
        return self._clock.now()

    def _set_plan(self, plan: PlanRecord) -> None:
        self.plan = plan
        self._step.total_steps = plan.total_steps
        self.parts.schedule.set_length(plan.total_steps, plan.cosine_start)

    def _show(self) -> None:
        progress, interval, total = self.progress, self.progress.interval, self.plan.total_steps
        left = None
        if total is not None and progress.step >= _STEPS_THAT_TELL:
            left = min(self.budget.left_s(), (total - progress.step) * self.budget.elapsed_s() / progress.step)
        self._display.show(
            epoch=progress.epoch + 1, step=progress.step, total_steps=total,
            train_loss=interval.loss_total / interval.loss_weight if interval.loss_weight else math.nan,
            lr=self.parts.schedule.lr(max(progress.step - 1, 0)), curves=self._curves, left_s=left,
        )  # fmt: skip

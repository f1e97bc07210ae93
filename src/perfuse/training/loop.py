"""The training loop.

    for each epoch
        for each group of micro-batches
            sum the weighted loss of each, backward, divided by the group's joint weight
            stop here if the loss or the gradient is not finite (an fp16 overflow only skips the step)
            clip, update, average the weights
        validate, keep the best, go on, or stop

Per step the loop waits for the device once: for the losses and the gradient norm together. (Models look at doses and
time grids on the host; with a batch on a GPU that waits too.)
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from perfuse.config import RunConfig
from perfuse.data.loader import CurveLoader, LoadedBatch
from perfuse.errors import PerfuseError
from perfuse.training.budget import Budget, Costs, Pace, StepTimer, planned
from perfuse.training.interrupt import Interrupted, Interruption
from perfuse.training.keeper import Keeper, Learner
from perfuse.training.logs import RunLogs
from perfuse.training.loss import CurveLoss
from perfuse.training.optimizer import clip_gradients, gradient_norm, gradients, set_learning_rates
from perfuse.training.precision import LossScaler
from perfuse.training.progress import ProgressDisplay
from perfuse.training.record import CheckpointState, IntervalRecord, PlanRecord, PlateauRecord, ProgressRecord
from perfuse.training.rng import capture_rng
from perfuse.training.schedule import Schedule
from perfuse.training.validation import Autocast, ValidationResult, Validator, bad_curves

Ending: TypeAlias = Literal["", "completed", "early", "deadline"]
_SHOWN_CURVES = 5


class NonFiniteError(PerfuseError):
    """A loss or gradient that is NaN or infinite; the weights have not been touched by it."""


@dataclass(frozen=True)
class Parts:
    """What the loop works with; ``run.py`` puts it together."""

    learner: Learner
    loss: CurveLoss
    schedule: Schedule
    scaler: LossScaler
    loader: CurveLoader
    validator: Validator
    device: torch.device
    autocast: Autocast


def named_curves(names: Sequence[str]) -> str:
    """At most five names and how many there are."""
    more = f" and {len(names) - _SHOWN_CURVES} more" if len(names) > _SHOWN_CURVES else ""
    return ", ".join(names[:_SHOWN_CURVES]) + more


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
    """

    def __init__(
        self, parts: Parts, config: RunConfig, template: CheckpointState, plan: PlanRecord,
        progress: ProgressRecord, budget: Budget, logs: RunLogs, display: ProgressDisplay, interruption: Interruption,
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
        self._timer = StepTimer()
        self._pace = Pace(budget, progress.step)
        self._mark = time.monotonic()
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
        self._mark = time.monotonic()
        ending: Ending = ""
        try:
            while not ending:
                ending = self._train_epoch()
                ending = self._close_epoch(ending)
        except NonFiniteError:
            keeper.save_best()
            raise
        self.progress.stopped = ending
        keeper.save_last()
        return ending

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
                self._update(micros)
                self.progress.batch += len(micros)
                self.progress.step += 1
                self._after_step(sum(len(m.rows) for m in micros))
                if ending := self._ending():
                    return ending
        return ""

    def _groups(self) -> Generator[list[LoadedBatch], None, None]:
        """Groups of ``accumulate`` micro-batches, from the current position on."""
        if self.progress.batch >= len(self.parts.loader):
            return
        epoch = self.parts.loader.epoch(self.progress.epoch, self.progress.batch)
        try:
            while micros := list(itertools.islice(epoch, self.config.training.accumulate)):
                yield micros
        finally:
            if isinstance(epoch, Generator):  # ends its thread
                epoch.close()

    def _ending(self) -> Ending:
        if self.plan.total_steps is not None and self.progress.step >= self.plan.total_steps:
            return "completed"
        return "deadline" if self.budget.is_over(self.plan) else ""

    def _after_step(self, curves: int) -> None:
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        self.progress.interval.train_s += seconds
        self.progress.interval.curves += curves
        self._curves += curves
        if self._interruption.received is not None:
            self._leave(self._interruption.received)
        if self.plan.total_steps is None:
            self._timer.add(seconds)
            if self._timer.is_enough(self.budget):
                self._fix_length()
        elif total := self._pace.affordable_total(self.plan, self.progress.step):
            self._display.note(f"slower than measured: {total} steps instead of {self.plan.total_steps}")
            self._set_plan(self.plan.model_copy(update={"total_steps": total}))
        if self._keeper().save_if_due(end_of_epoch=False):
            self._mark = time.monotonic()
        if self._display.due:
            self._show()

    def _close_epoch(self, ending: Ending) -> Ending:
        """Validate when it is time, move on to the next epoch, and decide on early stopping."""
        progress, patience = self.progress, self.config.training.early_stopping_patience
        is_complete = progress.batch >= len(self.parts.loader)
        is_due = is_complete and (progress.epoch + 1) % self.plan.validate_every_epochs == 0
        if (is_due or ending) and progress.validated_step != progress.step:
            self._validate()
            if not ending and patience and progress.epoch - max(progress.best_epoch, 0) >= patience:
                ending = "early"
        if is_complete:
            progress.epoch, progress.batch = progress.epoch + 1, 0
        if not ending:
            self._keeper().save_if_due(end_of_epoch=True)
        self._mark = time.monotonic()
        return ending

    def _keeper(self) -> Keeper:
        if self.keeper is None:
            raise PerfuseError("the trainer has no keeper: call run(keeper)")
        return self.keeper

    def _leave(self, signal_number: int) -> None:
        self._keeper().save_last()
        raise Interrupted(
            signal_number,
            f"saved after step {self.progress.step}; the same command with --resume continues from there",
        )

    # -- one step ----------------------------------------------------------------------------------------------

    def _update(self, micros: Sequence[LoadedBatch]) -> None:
        """One optimiser step on a group of micro-batches: the gradient is that of the joint batch.

        The weights depend on masks alone, so the joint weight is known before the first backward pass. Several
        processes would sum it over all of them here, and multiply by their number what DDP will average.
        """
        parts, learner = self.parts, self.parts.learner
        known = [parts.loss.weight(m.batch) for m in micros]
        joint = sum(w.total for w in known) or 1.0  # no value counts: the gradient is zero
        learner.optimizer.zero_grad(set_to_none=True)
        totals = []
        for micro, weight in zip(micros, known, strict=True):
            batch = micro.batch if parts.device.type == "cpu" else micro.batch.to(parts.device)
            with parts.autocast():
                pred = learner.model(batch)
            part = parts.loss(pred, batch, weight.has_censored)
            parts.scaler.scale(part.total / joint).backward()
            totals.append(part.total.detach())
        parts.scaler.unscale(learner.optimizer)
        grads = gradients(learner.model)
        *losses, norm = _on_host([*totals, gradient_norm(grads)])
        if not all(math.isfinite(value) for value in losses):
            raise self._non_finite("loss", micros)
        interval = self.progress.interval
        interval.loss_total += sum(losses)
        interval.loss_weight += sum(w.total for w in known)
        if not math.isfinite(norm):
            self._skip(micros)
            return
        clip_gradients(grads, norm, self.config.optimizer.clip)
        step = self.progress.step
        set_learning_rates(learner.optimizer, parts.schedule.lr(step), step, self.plan.total_steps)
        learner.optimizer.step()
        parts.scaler.update()
        if learner.ema is not None:
            learner.ema.update()
        interval.norm_total += norm
        interval.norm_max = max(interval.norm_max, norm)
        interval.updates += 1
        self.progress.skipped_in_row = 0

    def _skip(self, micros: Sequence[LoadedBatch]) -> None:
        """An infinite gradient: with fp16 a scale that was too high, otherwise the end."""
        if not self.parts.scaler.enabled:
            raise self._non_finite("gradient", micros)
        self.parts.scaler.update()
        progress = self.progress
        progress.skipped_in_row += 1
        progress.skipped_steps += 1
        scale = self.parts.scaler.state()["scale"]
        self._logs.note("skipped_step", scale, progress.step)
        self._display.note(f"step {progress.step}: fp16 overflow, step skipped, loss scale now {scale:g}")
        if progress.skipped_in_row >= self.config.training.max_skipped_steps:
            raise self._non_finite(f"gradient ({progress.skipped_in_row} fp16 overflows in a row)", micros)

    def _non_finite(self, what: str, micros: Sequence[LoadedBatch]) -> NonFiniteError:
        """The error, naming the curves whose loss is not finite, or all of the step's."""
        parts = self.parts
        guilty: list[str] = []
        if what == "loss":
            with torch.no_grad():
                for micro in micros:
                    batch = micro.batch.to(parts.device)
                    with parts.autocast():
                        pred = parts.learner.model(batch)
                    guilty += bad_curves(parts.loss, pred, micro)
        names = guilty or [str(name) for m in micros for name in m.curve_id]
        return NonFiniteError(
            f"the {what} is not finite in epoch {self.progress.epoch + 1}, step {self.progress.step}, "
            f"{len(names)} {'curve' if len(names) == 1 else 'curves'}: {named_curves(names)}; "
            "no weight was changed by it (a lower learning rate, or a look at these curves, may help)"
        )

    # -- validation and length -----------------------------------------------------------------------------------

    def _score(self) -> ValidationResult:
        learner = self.parts.learner
        with learner.ema.applied() if learner.ema is not None else nullcontext():
            result = self.parts.validator(learner.model, lambda: self._interruption.received is not None)
        if result is None:
            assert self._interruption.received is not None
            self._leave(self._interruption.received)
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
            self._keeper().take_best()
        self._display.validated(result.loss)
        updates = max(interval.updates, 1)
        self._logs.write(
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

    def _fix_length(self) -> None:
        """Time a validation and a save, and fix how many steps the budget allows and how often to validate.

        What has been trained so far was trained at the full rate, so the cosine begins here.
        """
        start = time.monotonic()
        self._score()  # the first one fills caches, and must not count where it is short
        warm = time.monotonic()
        self._validate()
        scored = time.monotonic()
        self._keeper().save_last()
        saved = time.monotonic()
        costs = Costs(self._timer.mean_s(), min(warm - start, scored - warm), saved - scored)
        self.plan = planned(
            self.plan, costs, self.config, self.budget.left_s(), self.progress.step, self.steps_per_epoch
        )
        self._set_plan(self.plan.model_copy(update={"cosine_start": max(self.plan.cosine_start, self.progress.step)}))
        self._mark = time.monotonic()

    def _set_plan(self, plan: PlanRecord) -> None:
        self.plan = plan
        self.parts.schedule.set_length(plan.total_steps, plan.cosine_start)

    def _show(self) -> None:
        progress, interval, total = self.progress, self.progress.interval, self.plan.total_steps
        left = None
        if total is not None and progress.step:
            left = min(self.budget.left_s(), (total - progress.step) * self.budget.elapsed_s() / progress.step)
        self._display.show(
            epoch=progress.epoch + 1, step=progress.step, total_steps=total,
            train_loss=interval.loss_total / interval.loss_weight if interval.loss_weight else math.nan,
            lr=self.parts.schedule.lr(max(progress.step - 1, 0)), curves=self._curves, left_s=left,
        )  # fmt: skip


def _on_host(values: Sequence[Tensor]) -> list[float]:
    """Scalars of one device as numbers, waiting once."""
    return torch.stack([v.to(torch.float64) for v in values]).tolist()

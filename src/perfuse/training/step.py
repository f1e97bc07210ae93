"""One optimiser step: the weighted loss of a group of micro-batches, its gradient over all processes, an update.

A loss or a gradient that is not finite stops the run before a weight has been touched, and names the curves; an fp16
overflow only skips the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perfuse.config import RunConfig
from perfuse.data.loader import CurveLoader, LoadedBatch
from perfuse.errors import PerfuseError
from perfuse.training.clock import Clock
from perfuse.training.exchange import Exchange, StepSums
from perfuse.training.keeper import Learner
from perfuse.training.logs import RunLogs
from perfuse.training.loss import CurveLoss
from perfuse.training.optimizer import clip_gradients, gradient_norm, gradients, set_learning_rates
from perfuse.training.precision import LossScaler
from perfuse.training.progress import ProgressDisplay
from perfuse.training.record import ProgressRecord
from perfuse.training.rng import seed_micro_batch
from perfuse.training.schedule import Schedule
from perfuse.training.validation import Autocast, Validator, bad_curves
from perfuse.training.world import World

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
    world: World
    clock: Clock


def named_curves(names: Sequence[str]) -> str:
    """At most five names and how many there are."""
    more = f" and {len(names) - _SHOWN_CURVES} more" if len(names) > _SHOWN_CURVES else ""
    return ", ".join(names[:_SHOWN_CURVES]) + more


class Stepper:
    """Makes steps.

    Args:
        parts: Model, loss, data and so on.
        config: The resolved configuration.
        progress: Where the run is; sums of the step go into its interval.
        logs: For skipped steps.
        display: For skipped steps.
        asks: Whether this process has been asked to stop, and whether it finds it time to save.

    Attributes:
        total_steps: Length of the run, where it is known.
    """

    def __init__(
        self, parts: Parts, config: RunConfig, progress: ProgressRecord, logs: RunLogs, display: ProgressDisplay,
        asks: Callable[[], tuple[bool, bool]],
    ) -> None:  # fmt: skip
        self._parts, self._config, self._progress = parts, config, progress
        self._logs, self._display, self._asks = logs, display, asks
        parameters = [p for p in parts.learner.model.parameters() if p.requires_grad]
        self._exchange = Exchange(parts.world, parts.clock, parameters)
        self.total_steps: int | None = None

    def __call__(self, micros: Sequence[LoadedBatch]) -> StepSums:
        """One optimiser step on a group of micro-batches: the gradient is that of the joint batch of all processes.

        The weights depend on masks alone, so this process's is known before its first backward pass.
        """
        parts, learner = self._parts, self._parts.learner
        sums = self._exchange(self._backward(micros))
        parts.scaler.unscale(learner.optimizer)
        grads = gradients(learner.model)
        loss, norm = _on_host([sums.loss, gradient_norm(grads).to(sums.loss.device)])
        if not math.isfinite(loss):
            raise self._non_finite("loss", micros)
        interval = self._progress.interval
        interval.loss_total += loss
        interval.loss_weight += sums.weight
        if not math.isfinite(norm):
            self._skip(micros)
            return sums
        clip_gradients(grads, norm, self._config.optimizer.clip)
        step = self._progress.step
        set_learning_rates(learner.optimizer, parts.schedule.lr(step), step, self.total_steps)
        learner.optimizer.step()
        parts.scaler.update()
        if learner.ema is not None:
            learner.ema.update()
        interval.norm_total += norm
        interval.norm_max = max(interval.norm_max, norm)
        interval.updates += 1
        self._progress.skipped_in_row = 0
        return sums

    def _backward(self, micros: Sequence[LoadedBatch]) -> StepSums:
        """Gradients of this process's mean loss over a group of micro-batches, and its sums."""
        parts, learner = self._parts, self._parts.learner
        known = [parts.loss.weight(m.batch) for m in micros]
        mine = sum(w.total for w in known)
        learner.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=parts.device)
        for i, (micro, weight) in enumerate(zip(micros, known, strict=True)):
            if not len(micro.rows):
                continue
            batch = micro.batch if parts.device.type == "cpu" else micro.batch.to(parts.device)
            seed_micro_batch(self._config.seed, self._progress.step, i, self._parts.world.rank, parts.device)
            with parts.autocast():
                pred = learner.model(batch)
            part = parts.loss(pred, batch, weight.has_censored)
            parts.scaler.scale(part.total / (mine or 1.0)).backward()  # no value counts: the gradient is zero
            total += part.total.detach()
        curves = sum(len(m.rows) for m in micros)
        return StepSums(total, mine, curves, *self._asks())

    def _skip(self, micros: Sequence[LoadedBatch]) -> None:
        """An infinite gradient: with fp16 a scale that was too high, otherwise the end."""
        if not self._parts.scaler.enabled:
            raise self._non_finite("gradient", micros)
        self._parts.scaler.update()
        progress = self._progress
        progress.skipped_in_row += 1
        progress.skipped_steps += 1
        scale = self._parts.scaler.state()["scale"]
        self._logs.note("skipped_step", scale, progress.step)
        self._logs.event("skipped_step", level="warning", step=progress.step, loss_scale=scale)
        self._display.note(f"step {progress.step}: fp16 overflow, step skipped, loss scale now {scale:g}")
        if progress.skipped_in_row >= self._config.training.max_skipped_steps:
            raise self._non_finite(f"gradient ({progress.skipped_in_row} fp16 overflows in a row)", micros)

    def _non_finite(self, what: str, micros: Sequence[LoadedBatch]) -> NonFiniteError:
        """The error, naming the curves whose loss is not finite, or all of the step's."""
        parts = self._parts
        guilty: list[str] = []
        if what == "loss":
            with torch.no_grad():
                for micro in (m for m in micros if len(m.rows)):
                    batch = micro.batch.to(parts.device)
                    with parts.autocast():
                        pred = parts.learner.model(batch)
                    guilty += bad_curves(parts.loss, pred, micro)
        names = self._of_all(guilty) or self._of_all([str(name) for m in micros for name in m.curve_id])
        return NonFiniteError(
            f"the {what} is not finite in epoch {self._progress.epoch + 1}, step {self._progress.step}, "
            f"{len(names)} {'curve' if len(names) == 1 else 'curves'}: {named_curves(names)}; "
            "no weight was changed by it (a lower learning rate, or a look at these curves, may help)"
        )

    def _of_all(self, names: list[str]) -> list[str]:
        """The names that all processes have."""
        told = self._parts.world.gather_bytes("\n".join(names).encode())
        return [name for some in told for name in some.decode().split("\n") if name]


def _on_host(values: Sequence[Tensor]) -> list[float]:
    """Scalars of one device as numbers, waiting once."""
    return torch.stack([v.to(torch.float64) for v in values]).tolist()

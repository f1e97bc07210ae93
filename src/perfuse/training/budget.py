"""Wall-clock budgets: time a few steps once, fix the number of steps, and stop in time whatever happens.

Everything that the run does counts: starting up, steps, validations, saving, and the last validation and save.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from perfuse.config import RunConfig
from perfuse.training.record import PlanRecord

TIMED_STEPS = 20
"""Steps that are timed; the first ``_IGNORED_STEPS`` of them warm caches and do not count."""
_IGNORED_STEPS = 5
_VALIDATION_SHARE = 0.1
"""Unless the user says how often to validate, validation takes at most this share of the time."""
_SAFETY_S = 0.3
_SAFETY_SHARE = 0.1
"""Left unplanned: a run that ends a little early, its learning rate decayed, beats one that the clock cuts off."""


@dataclass(frozen=True)
class Costs:
    """Seconds per training step, per validation and per save of a checkpoint."""

    step_s: float
    validation_s: float
    save_s: float

    @property
    def ending_s(self) -> float:
        """What the end of a run takes: a validation and two saves."""
        return self.validation_s + 2 * self.save_s + _SAFETY_S


def choose_validation_interval(costs: Costs, steps_per_epoch: int) -> int:
    """Epochs between validations that keep validation at a tenth of the time or less."""
    epoch_s = max(costs.step_s * steps_per_epoch, 1e-9)
    allowed = _VALIDATION_SHARE / (1 - _VALIDATION_SHARE) * epoch_s
    return max(1, math.ceil(costs.validation_s / allowed))


def affordable_steps(left_s: float, costs: Costs, steps_per_epoch: int, validate_every_epochs: int) -> int:
    """Whole steps that fit into ``left_s`` with their validations and the ending, at least 1."""
    each = costs.step_s + costs.validation_s / (validate_every_epochs * steps_per_epoch)
    left = left_s * (1 - _SAFETY_SHARE) - costs.ending_s
    return max(1, math.floor(left / max(each, 1e-9)))


class Budget:
    """Time of a run on a monotonic clock, earlier sessions included.

    Args:
        limit_s: Seconds that the run may take in all; None is unlimited.
        spent_s: Seconds spent by earlier sessions.
        started: ``time.monotonic()`` at the start of this session.
    """

    def __init__(self, limit_s: float | None, spent_s: float = 0.0, started: float | None = None) -> None:
        self.limit_s = limit_s
        self._origin = (time.monotonic() if started is None else started) - spent_s

    def elapsed_s(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._origin

    def left_s(self) -> float:
        """Seconds left; infinite without a limit."""
        return math.inf if self.limit_s is None else self.limit_s - self.elapsed_s()

    def is_over(self, plan: PlanRecord) -> bool:
        """Whether the run must end now, so that its last validation and save still fit."""
        if self.limit_s is None:
            return False
        return self.left_s() <= Costs(plan.step_s, plan.validation_s, plan.save_s).ending_s + plan.step_s


class StepTimer:
    """Mean duration of the first steps of a session."""

    def __init__(self) -> None:
        self._durations: list[float] = []

    def add(self, seconds: float) -> None:
        """Take note of one step."""
        self._durations.append(seconds)

    def is_enough(self, budget: Budget) -> bool:
        """After ``TIMED_STEPS``, or when a twentieth of the budget has gone into at least two steps."""
        count, spent = len(self._durations), sum(self._durations)
        return count >= TIMED_STEPS or (count >= 2 and spent > 0.05 * (budget.limit_s or math.inf))

    def mean_s(self) -> float:
        """Mean without the first few."""
        kept = self._durations[_IGNORED_STEPS:] if len(self._durations) >= TIMED_STEPS else self._durations[1:]
        return sum(kept) / len(kept)


def planned(
    plan: PlanRecord, costs: Costs, config: RunConfig, left_s: float, step: int, steps_per_epoch: int
) -> PlanRecord:
    """The plan with its number of steps fixed from measured costs (and the configured epochs, if there are any)."""
    training = config.training
    every = plan.validate_every_epochs
    if "validate_every_epochs" not in training.model_fields_set:
        every = choose_validation_interval(costs, steps_per_epoch)
    total = step + affordable_steps(left_s, costs, steps_per_epoch, every)
    if training.epochs is not None:
        total = min(total, training.epochs * steps_per_epoch)
    measured = {"step_s": costs.step_s, "validation_s": costs.validation_s, "save_s": costs.save_s}
    return plan.model_copy(update={"total_steps": total, "validate_every_epochs": every, **measured})

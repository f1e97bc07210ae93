"""Wall-clock budgets: time a few steps once, fix the number of steps, and stop in time whatever happens.

Everything that the run does counts: starting up, steps, validations, saving, and the last validation and save.

The number of steps that is fixed is stored, so the schedule stays a function of the step. It is made smaller only
where the machine has become so slow that the deadline would cut the run off with its learning rate still high; such a
run could not have been the planned one anyway. It is made larger only early on, where the steps that were timed turn
out to have been slow ones (another program was busy just then), and the cosine has hardly begun.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perfuse.config import RunConfig
from perfuse.training.clock import Clock
from perfuse.training.record import PlanRecord
from perfuse.training.world import World

TIMED_STEPS = 20
"""Steps that are timed at least; the first ``_IGNORED_STEPS`` of them warm caches and do not count."""
_IGNORED_STEPS = 5
_TIMED_S = 2.0
_TIMED_SHARE = 0.03
"""Tiny steps are timed for so long, or this share of the budget, since other programs make short samples noisy."""
_MILESTONES = (0.1, 0.2, 0.4, 0.6, 0.8, 0.9)
"""Shares of the budget at which the plan is held against the clock."""
_EARLY = 0.25
_WORTH_GROWING = 1.1
"""Up to this share of the budget a plan may grow, when the clock allows so many times its steps."""
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
        spent_s: Seconds spent so far, by earlier sessions and by this one.
        clock: Of the run; None is this process's own.
    """

    def __init__(self, limit_s: float | None, spent_s: float = 0.0, clock: Clock | None = None) -> None:
        self.limit_s = limit_s
        self._clock = Clock(World()) if clock is None else clock
        self._origin = self._clock.now() - spent_s

    def elapsed_s(self) -> float:
        """Seconds so far."""
        return self._clock.now() - self._origin

    def left_s(self) -> float:
        """Seconds left; infinite without a limit."""
        return math.inf if self.limit_s is None else self.limit_s - self.elapsed_s()

    def is_over(self, plan: PlanRecord) -> bool:
        """Whether the run must end now, so that its last validation and save still fit."""
        if self.limit_s is None:
            return False
        return self.left_s() <= Costs(plan.step_s, plan.validation_s, plan.save_s).ending_s + plan.step_s


class Pace:
    """Holds a plan against the clock at a few milestones.

    Args:
        budget: The clock.
        step: Steps done when the session began.
    """

    def __init__(self, budget: Budget, step: int) -> None:
        self._budget = budget
        self._since = (budget.elapsed_s(), step)
        limit_s = budget.limit_s
        self._marks = [] if limit_s is None else [m * limit_s for m in _MILESTONES if m * limit_s > self._since[0]]

    def affordable_total(self, plan: PlanRecord, step: int) -> int | None:
        """The total that the pace since the last milestone allows, when another must or may well be planned; else None.

        A smaller one at any milestone, a larger one only early.
        """
        if not self._marks or plan.total_steps is None or (elapsed := self._budget.elapsed_s()) < self._marks[0]:
            return None
        self._marks = [m for m in self._marks if m > elapsed]
        (since_s, since_step), self._since = self._since, (elapsed, step)
        if step <= since_step:
            return None
        left_s = self._budget.left_s() - Costs(plan.step_s, plan.validation_s, plan.save_s).ending_s
        total = step + max(1, math.floor(left_s * (1 - _SAFETY_SHARE / 3) * (step - since_step) / (elapsed - since_s)))
        if total < plan.total_steps:
            return total
        limit_s = self._budget.limit_s
        is_early = limit_s is not None and elapsed <= _EARLY * limit_s
        return total if is_early and total > _WORTH_GROWING * plan.total_steps else None


class StepTimer:
    """Mean duration of the first steps of a session."""

    def __init__(self) -> None:
        self._durations: list[float] = []
        self._spent_s = 0.0

    def add(self, seconds: float) -> None:
        """Take note of one step."""
        self._durations.append(seconds)
        self._spent_s += seconds

    def is_enough(self, budget: Budget) -> bool:
        """After ``TIMED_STEPS`` and a moment, or when a twentieth of the budget has gone into at least two steps."""
        limit_s = math.inf if budget.limit_s is None else budget.limit_s
        count, spent = len(self._durations), self._spent_s
        if count < TIMED_STEPS:
            return count >= 2 and spent > 0.05 * limit_s
        return spent >= min(_TIMED_S, _TIMED_SHARE * limit_s)

    def mean_s(self) -> float:
        """Mean without the first few."""
        kept = self._durations[_IGNORED_STEPS:] if len(self._durations) >= TIMED_STEPS else self._durations[1:]
        return sum(kept) / len(kept)


def configured_steps(config: RunConfig, steps_per_epoch: int) -> int | None:
    """Steps that epochs and ``max_steps`` allow; None where neither is set."""
    training = config.training
    by_epochs = None if training.epochs is None else training.epochs * steps_per_epoch
    return min((n for n in (by_epochs, training.max_steps) if n is not None), default=None)


def planned(
    plan: PlanRecord, costs: Costs, config: RunConfig, left_s: float, step: int, steps_per_epoch: int
) -> PlanRecord:
    """The plan with its number of steps fixed from measured costs (and the configured epochs, if there are any)."""
    training = config.training
    every = plan.validate_every_epochs
    if "validate_every_epochs" not in training.model_fields_set:
        every = choose_validation_interval(costs, steps_per_epoch)
    total = step + affordable_steps(left_s, costs, steps_per_epoch, every)
    most = configured_steps(config, steps_per_epoch)
    total = total if most is None else min(total, most)
    measured = {"step_s": costs.step_s, "validation_s": costs.validation_s, "save_s": costs.save_s}
    return plan.model_copy(update={"total_steps": total, "validate_every_epochs": every, **measured})

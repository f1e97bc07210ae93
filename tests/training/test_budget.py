from __future__ import annotations

import math

import pytest

from perfuse.config import RunConfig, TrainingConfig
from perfuse.training.budget import (
    TIMED_STEPS,
    Budget,
    Costs,
    Pace,
    StepTimer,
    affordable_steps,
    choose_validation_interval,
    planned,
)
from perfuse.training.record import PlanRecord

PLAN = PlanRecord(total_steps=None, warmup_steps=20, cosine_start=20, validate_every_epochs=1)


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 300])
@pytest.mark.parametrize("validation_s", [0.001, 0.05, 3.0])
def test_validation_takes_a_tenth_at_most(steps_per_epoch: int, validation_s: float) -> None:
    costs = Costs(step_s=0.01, validation_s=validation_s, save_s=0.1)
    every = choose_validation_interval(costs, steps_per_epoch)
    training_s = every * steps_per_epoch * costs.step_s
    assert validation_s / (validation_s + training_s) <= 0.1 + 1e-9
    if every > 1:
        fewer = (every - 1) * steps_per_epoch * costs.step_s
        assert validation_s / (validation_s + fewer) > 0.1


def test_planned_steps_fit_with_their_validations() -> None:
    costs = Costs(step_s=0.02, validation_s=0.1, save_s=0.2)
    steps = affordable_steps(60.0, costs, steps_per_epoch=5, validate_every_epochs=2)
    assert 50 < steps * 0.02 + steps / 10 * 0.1 + costs.ending_s < 60
    assert affordable_steps(-5.0, costs, 5, 2) == 1


def test_epochs_bound_a_budgeted_run_and_an_explicit_cadence_is_kept() -> None:
    costs = Costs(0.001, 1.0, 0.1)
    free = planned(PLAN, costs, RunConfig(), 600.0, 20, 2)
    assert free.total_steps is not None
    assert free.total_steps > 10_000
    assert free.validate_every_epochs > 1000
    config = RunConfig(training=TrainingConfig(epochs=30, validate_every_epochs=1))
    bounded = planned(PLAN, costs, config, 600.0, 20, 2)
    assert (bounded.total_steps, bounded.validate_every_epochs) == (60, 1)
    assert bounded.step_s == 0.001


def test_the_timer_ignores_the_first_steps() -> None:
    timer, budget = StepTimer(), Budget(1e6)
    for i in range(TIMED_STEPS):
        assert not timer.is_enough(budget)
        timer.add(100.0 if i < 3 else 0.5)
    assert timer.is_enough(budget)
    assert timer.mean_s() == 0.5


def test_tiny_steps_are_timed_for_longer() -> None:
    timer = StepTimer()
    for _ in range(TIMED_STEPS):
        timer.add(0.001)
    assert not timer.is_enough(Budget(600.0))
    for _ in range(2000):
        timer.add(0.001)
    assert timer.is_enough(Budget(600.0))


def test_slow_steps_are_judged_by_fewer() -> None:
    timer = StepTimer()
    timer.add(40.0)
    timer.add(20.0)
    assert timer.is_enough(Budget(600.0))
    assert timer.mean_s() == 20


def test_budget_counts_earlier_sessions_and_ends_in_time_for_the_last_validation() -> None:
    plan = PLAN.model_copy(update={"total_steps": 10, "step_s": 1.0, "validation_s": 5.0, "save_s": 1.0})
    assert Budget(100.0, 50.0).left_s() == pytest.approx(50, abs=0.5)
    assert not Budget(100.0, 50.0).is_over(plan)
    assert Budget(100.0, 95.0).is_over(plan)
    assert Budget(None, 1e9).left_s() == math.inf
    assert not Budget(None, 1e9).is_over(plan)


class FakeClock(Budget):
    def __init__(self, limit_s: float | None) -> None:
        super().__init__(limit_s)
        self.now = 0.0

    def elapsed_s(self) -> float:
        return self.now


def test_a_plan_that_the_machine_keeps_is_never_touched() -> None:
    clock = FakeClock(100.0)
    pace = Pace(clock, 0)
    plan = PLAN.model_copy(update={"total_steps": 900, "step_s": 0.1})
    for step in range(1, 901):
        clock.now = step * 0.1
        assert pace.affordable_total(plan, step) is None


def test_a_slower_machine_gets_fewer_steps_that_fit() -> None:
    clock = FakeClock(100.0)
    pace = Pace(clock, 0)
    plan = PLAN.model_copy(update={"total_steps": 900, "step_s": 0.1})
    step = 0
    while step < (plan.total_steps or 0):
        step += 1
        clock.now += 0.2  # twice as slow as measured
        if total := pace.affordable_total(plan, step):
            assert total < (plan.total_steps or 0)
            plan = plan.model_copy(update={"total_steps": total})
        assert not clock.is_over(plan) or step >= (plan.total_steps or 0) - 1
    assert 90 < clock.now < 100


def test_steps_that_were_timed_while_the_machine_was_busy_give_way_to_more_early_on() -> None:
    clock = FakeClock(100.0)
    pace = Pace(clock, 0)
    plan = PLAN.model_copy(update={"total_steps": 450, "step_s": 0.2})
    step = 0
    while step < (plan.total_steps or 0):
        step += 1
        clock.now += 0.1  # twice as fast as measured
        if total := pace.affordable_total(plan, step):
            assert total > 1.1 * (plan.total_steps or 0)
            assert clock.now <= 21
            plan = plan.model_copy(update={"total_steps": total})
        assert not clock.is_over(plan)
    assert 850 < step < 1000
    assert 85 < clock.now < 100


def test_a_machine_that_becomes_faster_late_keeps_its_plan() -> None:
    """The learning rate has fallen by then: more steps would mean another schedule."""
    clock = FakeClock(100.0)
    pace = Pace(clock, 0)
    plan = PLAN.model_copy(update={"total_steps": 450, "step_s": 0.2})
    for step in range(1, 451):
        clock.now += 0.2 if step <= 110 else 0.05
        assert pace.affordable_total(plan, step) is None


def test_without_a_limit_there_is_no_pace() -> None:
    clock = FakeClock(None)
    clock.now = 1e9
    assert Pace(clock, 0).affordable_total(PLAN.model_copy(update={"total_steps": 5}), 3) is None

from __future__ import annotations

import math

import pytest
import torch

from perfuse.config import ScheduleConfig
from perfuse.errors import InputError
from perfuse.training.schedule import Plateau, Schedule, cosine_factor, effective_warmup, warmup_factor


def test_cosine_at_first_step_end_of_warmup_and_last_step() -> None:
    s = Schedule(ScheduleConfig(kind="cosine", warmup_steps=10, final_fraction=0.01), 0.2, 10, total_steps=100)
    assert s.lr(0) == pytest.approx(0.02)
    assert s.lr(8) == pytest.approx(0.18)
    assert s.lr(9) == 0.2
    assert s.lr(10) < 0.2
    assert s.lr(99) == pytest.approx(0.002)
    assert s.lr(1000) == pytest.approx(0.002)
    middle = 0.002 + 0.5 * (0.2 - 0.002)
    assert s.lr(54) == pytest.approx(middle, rel=1e-9)  # half-way from step 9 to step 99


def test_lr_is_a_function_of_the_step_alone() -> None:
    config = ScheduleConfig(warmup_steps=5)
    walked, fresh = (Schedule(config, 1.0, 5, total_steps=40) for _ in range(2))
    forwards = [walked.lr(i) for i in range(40)]
    assert [fresh.lr(i) for i in reversed(range(40))] == forwards[::-1]
    assert forwards[4:] == sorted(forwards[4:], reverse=True)


def test_without_a_total_the_rate_waits_at_its_top_and_the_cosine_starts_there() -> None:
    s = Schedule(ScheduleConfig(kind="cosine"), 1.0, 5, cosine_start=20)
    before = [s.lr(i) for i in range(21)]
    s.set_length(200, 20)
    assert [s.lr(i) for i in range(21)] == before
    assert before[5:] == [1.0] * 16
    assert s.lr(21) < 1


def test_constant_warms_up_and_stays() -> None:
    s = Schedule(ScheduleConfig(kind="constant"), 0.5, 2, total_steps=10)
    assert [s.lr(i) for i in range(4)] == [0.25, 0.5, 0.5, 0.5]


def test_no_warmup_and_one_step_runs() -> None:
    assert warmup_factor(0, 0) == 1
    assert cosine_factor(0, 0, 1, 0.01) == 1
    assert cosine_factor(1, 0, 2, 0.01) == pytest.approx(0.01)


def test_plateau_follows_pytorch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    ours = Plateau(0.5, 2)
    losses = [5, 4, 4, 4, 4, 3.9999, 3, 3, 3, 3, 3, 3, 3, 2.9, 3, 3, 3, 3, 3, 3]
    for loss in losses:
        theirs.step(loss)
        ours.update(loss)
        assert ours.scale == optimizer.param_groups[0]["lr"]
    assert ours.scale < 0.2


def test_plateau_counts_nan_as_bad_and_composes_with_warmup() -> None:
    s = Schedule(ScheduleConfig(kind="plateau", patience=0, min_lr=0.1), 1.0, 4)
    assert s.lr(0) == 0.25
    s.after_validation(1.0)
    s.after_validation(math.nan)
    assert s.lr(0) == 0.125
    assert s.lr(10) == 0.5
    for _ in range(10):
        s.after_validation(2.0)
    assert s.lr(10) == pytest.approx(0.1)  # min_lr


def test_only_plateau_looks_at_validation() -> None:
    s = Schedule(ScheduleConfig(kind="cosine", patience=0), 1.0, 0, total_steps=10)
    before = s.lr(5)
    for _ in range(5):
        s.after_validation(1.0)
    assert s.lr(5) == before


def test_short_runs_shorten_the_default_warmup_and_refuse_one_that_was_asked_for() -> None:
    assert effective_warmup(ScheduleConfig(), 10) == 2
    assert effective_warmup(ScheduleConfig(), 1000) == 20
    assert effective_warmup(ScheduleConfig(warmup_steps=7), 8) == 7
    with pytest.raises(InputError, match=r"schedule.warmup_steps leaves no step .*got 30.*allowed: < 10"):
        effective_warmup(ScheduleConfig(warmup_steps=30), 10)

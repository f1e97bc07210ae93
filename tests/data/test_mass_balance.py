"""Ten thousand random drugs, people and regimens: no drug is lost, none appears, nothing is negative."""

from __future__ import annotations

import pytest
import torch

from perfuse.data.table import CurveTable, dose_events, system_parameters
from perfuse.data.tasks import BLOCK_CURVES, draw_block
from perfuse.pk.mechanistic import solve
from perfuse.pk.system import DoseEvents

LINEAR = ("T1", "T2", "T3", "T5-wide")
BLOCKS_EACH = 10
"""4 tasks x 10 blocks x 256 = 10,240 draws; a table of 100 times each."""


def given_so_far(doses: DoseEvents, time_h: torch.Tensor) -> torch.Tensor:
    """Drug given up to each time, mg, ``(B, T)``, counted from the doses alone."""
    total = torch.zeros_like(time_h)
    first = torch.where(doses.amount_mg > 0, doses.time_h, torch.inf).amin(1)
    for d in range(doses.amount_mg.shape[1]):
        start, amount, duration = (x[:, d, None] for x in (doses.time_h, doses.amount_mg, doses.duration_h))
        since = time_h - start
        at_once = (since > 0) | ((since == 0) & (start == first[:, None]))
        running = (since / torch.where(duration > 0, duration, 1.0)).clamp(0, 1)
        total = total + amount * torch.where(duration > 0, running, at_once.double())
    return total


def check(table: CurveTable, tolerance: float) -> None:
    doses, time_h = dose_events(table), torch.as_tensor(table.time_h)
    amounts = solve(system_parameters(table), doses, time_h, with_sinks=True)
    given = given_so_far(doses, time_h)
    assert (amounts >= 0).all()
    assert torch.isfinite(amounts).all()
    error = (amounts.sum(1) - given).abs()
    assert float((error / given.clamp_min(1e-300))[given > 0].max()) < tolerance
    assert not error[given == 0].any()


@pytest.mark.parametrize("task", LINEAR)
def test_linear_kinetics_balance_to_1e_10(task: str) -> None:
    assert len(LINEAR) * BLOCKS_EACH * BLOCK_CURVES >= 10_000
    for block in range(BLOCKS_EACH):
        check(draw_block(task, 12345, block), 1e-10)


def test_saturable_kinetics_balance_to_1e_6() -> None:
    for block in range(BLOCKS_EACH):
        check(draw_block("T4", 12345, block), 1e-6)


def test_permeability_limited_organs_balance_too() -> None:
    check(draw_block("T7", 12345, 0), 1e-10)

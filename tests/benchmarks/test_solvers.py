"""The solver benchmark: its LSODA, its cases and its error measure, on a few curves."""

import numpy as np
import pytest
import torch

from benchmarks.solvers import (
    QUICK,
    SpeedRow,
    case_named,
    convergence,
    errors,
    lsoda,
    saturable_regimens,
    solved,
    speed_table,
)
from perfuse.pk.reference import curve_equations


@pytest.mark.parametrize("name", ["linear, uniform times", "saturable, irregular times"])
def test_lsoda_solves_the_same_equations(name: str) -> None:
    case = case_named(name, 3, 5)
    curves = [
        lsoda(own, float(case.doses.amount_mg[i, 0]), case.time_h[i].numpy(), 1e-8)
        for i, own in enumerate(curve_equations(case.system, case.doses))
    ]
    amounts = torch.as_tensor(np.stack(curves))
    assert errors(case, amounts, solved(case, 1e-9)).max() < 1e-5
    assert errors(case, 1.01 * amounts, solved(case, 1e-9)).max() == pytest.approx(0.01, rel=1e-2)


def test_saturable_regimens_have_every_route_and_saturate() -> None:
    case = saturable_regimens(64, 0)
    assert bool(case.doses.is_oral.any()) and bool((case.doses.duration_h > 0).any())
    assert case.system.vmax_mg_h.shape == (64, 2) and not case.system.is_linear


def test_order_is_eight_where_nothing_is_stiff() -> None:
    _, rows = convergence()
    assert rows[1]["one_order"] > 7.5
    assert rows[-1]["body"] < rows[0]["body"] < 1e-5


def test_a_missed_target_is_named() -> None:
    rates = {f"{solver}, {n}": [2.0] for solver in ("perfuse", "LSODA") for n in ("1 process", "2 processes")}
    same = {"perfuse": 1e-5, "LSODA": 1e-6}
    row = SpeedRow("some", same, same, rates, [30.0], [19.0], 20.0)
    assert "MISSED" in speed_table([row]) and not row.met
    assert QUICK.draws < 10_000

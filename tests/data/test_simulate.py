"""Simulated curves: right physics (independent solver, the origin's file), right distributions, right repeats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from perfuse.data.importers.origin import read_origin_npz
from perfuse.data.simulate import simulate_task, solved
from perfuse.data.simulation import simulate_dataset
from perfuse.data.store import CurveStore
from perfuse.data.table import CurveTable
from perfuse.data.tasks import BLOCK_CURVES
from perfuse.data.tasks.bodies_and_drugs import (
    CL_HEPATIC_LOG,
    CL_RENAL_LOG,
    KP_LOG,
    KP_LOG_OTHERS,
    MAX_RENAL_EXTRACTION,
)
from perfuse.errors import InputError
from perfuse.pk.physiology import ORGANS, check_flow_balance, human_reference
from perfuse.pk.population import sample_adults

AGREEMENT_FLOOR = 1e-6
"""Concentrations count where they exceed this fraction of the curve's peak."""


def hub_right_hand_side(table: CurveTable, i: int):
    """The hub's equations as DESIGN writes them, in concentrations, organ by organ."""
    volume, flow, kp = table.volume_l[i], table.flow_l_h[i], table.kp[i]
    cl_hepatic, cl_renal = table.elimination_l_h[i]

    def rhs(_: float, c: np.ndarray) -> np.ndarray:
        out = np.zeros(len(ORGANS))
        for organ in range(1, len(ORGANS)):
            out[0] += flow[organ] / volume[0] * (c[organ] / kp[organ] - c[0])
            out[organ] = flow[organ] / volume[organ] * (c[0] - c[organ] / kp[organ])
        out[0] -= (cl_hepatic + cl_renal) * c[0] / volume[0]
        return out

    start = np.zeros(len(ORGANS))
    start[0] = table.dose_mg[i, 0] / volume[0]
    return rhs, start


def circulation_right_hand_side(table: CurveTable, i: int):
    """The circulation's equations in amounts: 14 organs (venous first) and arterial blood last."""
    names = [*ORGANS, "arterial"]
    at = {name: n for n, name in enumerate(names)}
    volume = dict(zip(ORGANS, table.volume_l[i], strict=True))
    volume["arterial"], volume["blood"] = 0.25 * volume["blood"], 0.75 * volume["blood"]
    flow = dict(zip(ORGANS, table.flow_l_h[i], strict=True))
    kp = dict(zip(ORGANS, table.kp[i], strict=True))
    clint, cl_renal = table.elimination_l_h[i]
    fup, bp = table.fup[i], table.bp_ratio[i]
    cardiac_output = flow["lung"]

    def rhs(_: float, a: np.ndarray) -> np.ndarray:
        out = np.zeros(len(names))
        conc = {name: a[at[name]] / volume[name] for name in names}
        leaving = {name: conc[name] / (kp[name] / bp) for name in ORGANS[1:]}
        out[at["blood"]] = -cardiac_output * conc["blood"]
        out[at["lung"]] = cardiac_output * (conc["blood"] - leaving["lung"])
        out[at["arterial"]] = cardiac_output * (leaving["lung"] - conc["arterial"])
        artery = flow["liver"] - flow["gut"] - flow["spleen"] - flow["pancreas"]
        for name in ORGANS[1:]:
            if name == "lung":
                continue
            if name == "liver":
                portal = sum(flow[p] * leaving[p] for p in ("gut", "spleen", "pancreas"))
                out[at[name]] = artery * conc["arterial"] + portal - flow["liver"] * leaving["liver"]
                out[at[name]] -= clint * fup * conc["liver"] / kp["liver"]
            else:
                out[at[name]] = flow[name] * (conc["arterial"] - leaving[name])
            if name == "kidney":
                out[at[name]] -= cl_renal * conc["arterial"] / bp
            if name not in ("gut", "spleen", "pancreas"):
                out[at["blood"]] += flow[name] * leaving[name]
        return out

    start = np.zeros(len(names))
    start[0] = table.dose_mg[i, 0]
    scale = np.asarray([volume[name] for name in ORGANS])
    return rhs, start, scale


def integrate(rhs, start: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Solver values at ``times``, ``(N, T)``; each is a step's end, for the interpolant between steps is good
    to 1e-7 only.
    """
    values = [start]
    for a, b in zip(times, times[1:], strict=False):
        step = solve_ivp(rhs, (a, b), values[-1], "DOP853", rtol=1e-13, atol=1e-15 * start[0])
        assert step.success
        values.append(step.y[:, -1])
    return np.asarray(values).T


def largest_relative_error(value: np.ndarray, truth: np.ndarray) -> float:
    """Over all organs and times where the truth exceeds 1e-6 of the curve's peak."""
    counts = truth > AGREEMENT_FLOOR * truth.max()
    return float(np.abs(value[counts] / truth[counts] - 1).max())


@pytest.mark.parametrize("curve", [0, 1])
def test_hub_agrees_with_an_independent_solver(curve: int) -> None:
    table = simulate_task("T1", 2, seed=11)
    rhs, start = hub_right_hand_side(table, curve)
    truth = integrate(rhs, start, table.time_h[curve, ::9])
    assert largest_relative_error(table.conc_mg_l[curve][:, ::9], truth) < 1e-9


def test_circulation_agrees_with_an_independent_solver() -> None:
    table = simulate_task("T2", 1, seed=11)
    rhs, start, volume_l = circulation_right_hand_side(table, 0)
    truth = integrate(rhs, start, table.time_h[0, ::9])
    assert largest_relative_error(table.conc_mg_l[0][:, ::9], truth[: len(ORGANS)] / volume_l[:, None]) < 1e-9


@pytest.mark.real_data
def test_hub_reproduces_the_origins_file(perfuse_data: Path) -> None:
    table = read_origin_npz(perfuse_data / "origin" / "training_data.npz")
    again = solved(table)
    for i in range(len(table)):
        assert largest_relative_error(again.conc_mg_l[i], table.conc_mg_l[i]) < 2e-4


@pytest.mark.real_data
def test_t1_draws_from_the_origins_distributions(perfuse_data: Path) -> None:
    """Means and spreads of logs within four standard errors of the file's 100 curves (and of our 5,120)."""
    theirs = read_origin_npz(perfuse_data / "origin" / "training_data.npz")
    ours = simulate_task("T1", 20 * BLOCK_CURVES, seed=5)
    columns = lambda t: np.column_stack((np.log(t.elimination_l_h), np.log(t.kp[:, 1:]), t.dose_mg))  # noqa: E731
    a, b = columns(theirs), columns(ours)
    standard_error = b.std(0) * np.sqrt(1 / len(a) + 1 / len(b))
    assert (np.abs(a.mean(0) - b.mean(0)) < 4 * standard_error).all()
    assert (np.abs(np.log(a.std(0) / b.std(0))) < 4 * np.sqrt(0.5 / len(a) + 0.5 / len(b))).all()
    assert np.isclose(theirs.loq_mg_l / theirs.dose_mg[:, 0], ours.loq_mg_l[0] / ours.dose_mg[0, 0]).all()


def test_t1_distributions() -> None:
    table = simulate_task("T1", 16 * BLOCK_CURVES, seed=1)
    logs = np.column_stack((np.log(table.elimination_l_h), np.log(table.kp[:, 1:])))
    wanted = np.asarray([CL_HEPATIC_LOG, CL_RENAL_LOG, *(KP_LOG.get(o, KP_LOG_OTHERS) for o in ORGANS[1:])])
    assert np.allclose(logs.mean(0), wanted[:, 0], atol=0.07)
    assert np.allclose(logs.std(0), wanted[:, 1], rtol=0.06)
    assert (table.kp[:, 0] == 1).all()
    assert table.dose_mg.min() >= 10
    assert table.dose_mg.max() <= 1000
    assert np.allclose(table.dose_mg.mean(), 505, rtol=0.04)


@pytest.mark.parametrize("task", ["T1", "T2"])
def test_curves_are_valid_positive_and_start_at_the_dose(task: str) -> None:
    table = simulate_task(task, 60, seed=2).validate()
    assert table.time_h.shape == (60, 100)
    assert (table.time_h == np.linspace(0, 24, 100)).all()
    assert (table.conc_mg_l[:, :, 1:] > 0).all()
    venous_l = table.volume_l[:, 0] * (1.0 if task == "T1" else 0.75)
    assert np.allclose(table.conc_mg_l[:, 0, 0], table.dose_mg[:, 0] / venous_l, rtol=1e-12)
    assert (table.conc_mg_l[:, 1:, 0] == 0).all()
    assert np.allclose(table.loq_mg_l, 1e-5 * table.dose_mg[:, 0] / table.volume_l[:, 0], rtol=1e-12)
    assert len(np.unique(table.compound_id)) == len(np.unique(table.group_id)) == 60
    assert table.compound_id[7] == f"{task}-2-7"


@pytest.mark.parametrize("task", ["T1", "T2"])
def test_a_curve_is_the_same_bits_whatever_is_asked_for_beside_it(task: str) -> None:
    whole = simulate_task(task, BLOCK_CURVES + 40, seed=3)
    part = simulate_task(task, 20, seed=3, start=BLOCK_CURVES - 10)
    one = simulate_task(task, 1, seed=3, start=BLOCK_CURVES)
    rows = np.arange(BLOCK_CURVES - 10, BLOCK_CURVES + 10)
    for name in ("conc_mg_l", "kp", "volume_l", "elimination_l_h", "dose_mg", "curve_id", "group_id", "loq_mg_l"):
        assert np.array_equal(part.column(name), whole.column(name)[rows]), name
        assert np.array_equal(one.column(name)[0], whole.column(name)[BLOCK_CURVES]), name


def test_seeds_tasks_and_blocks_have_streams_of_their_own() -> None:
    drawn = [simulate_task("T1", 1, 0), simulate_task("T1", 1, 1), simulate_task("T1", 1, 0, start=BLOCK_CURVES),
             simulate_task("T2", 1, 0)]  # fmt: skip
    assert len({float(t.dose_mg[0, 0]) for t in drawn}) == 4


def test_adults_vary_and_add_up() -> None:
    weight_kg, volume_l, flow_l_h = sample_adults(np.random.default_rng(0), 2000)
    assert weight_kg.min() >= 40
    assert weight_kg.max() <= 120
    check_flow_balance(flow_l_h)
    for i in (0, 1, 2):
        reference = human_reference(float(weight_kg[i]))
        assert np.isclose(volume_l[i].sum(), reference.volume_l.sum(), rtol=1e-12)
        assert np.isclose(flow_l_h[i, ORGANS.index("lung")], reference.cardiac_output_l_h, rtol=1e-12)
    relative = volume_l / volume_l.sum(1, keepdims=True)
    brain = ORGANS.index("brain")
    assert np.isclose(relative[:, brain].std() / relative[:, brain].mean(), 0.2, atol=0.04)


def test_t2_people_have_drugs_that_their_kidneys_can_clear() -> None:
    table = simulate_task("T2", 2000, seed=4)
    renal_blood = table.elimination_l_h[:, 1] / table.bp_ratio
    assert (renal_blood <= MAX_RENAL_EXTRACTION * table.flow_l_h[:, ORGANS.index("kidney")] * (1 + 1e-12)).all()
    assert 0.01 <= table.fup.min() < 0.02
    assert 0.9 < table.fup.max() <= 1
    assert 0.55 <= table.bp_ratio.min() < table.bp_ratio.max() <= 2


def test_dataset_holds_the_same_curves_whatever_the_shard_size(tmp_path: Path) -> None:
    done: list[int] = []
    simulate_dataset("T1", 70, 9, tmp_path / "a", shard_size=32, progress=lambda made, failed: done.append(made))
    simulate_dataset("T1", 70, 9, tmp_path / "b", shard_size=70)
    a, b = CurveStore.open(tmp_path / "a", verify=True), CurveStore.open(tmp_path / "b")
    assert done == [0, 32, 64, 70]
    assert [s.rows for s in a.manifest.shards] == [32, 32, 6]
    assert a.manifest.seed == 9
    assert a.manifest.generator["task"] == "T1"
    rows = np.arange(70)
    assert np.array_equal(a.take(rows).conc_mg_l, b.take(rows).conc_mg_l)
    assert np.array_equal(a.take(rows).conc_mg_l, simulate_task("T1", 70, 9).conc_mg_l)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("T9", 1, 0), "--task"), (("T1", 0, 0), "--n"), (("T1", 1, -1), "--seed"), (("T1", 1, 2**63), "--seed"),
        (("T1", 1, 0, -1), "start"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(arguments: tuple, named: str) -> None:
    with pytest.raises(InputError, match=named):
        simulate_task(*arguments)


def test_a_shard_needs_a_curve(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--shard-size"):
        simulate_dataset("T1", 10, 0, tmp_path / "a", shard_size=0)
    assert not (tmp_path / "a").exists()

"""The references are right and fair, the arithmetic of ratios is right, and every script runs on tiny settings."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import ODEintWarning

from benchmarks import accuracy, arms, ode_reference, plain_loop, profile_flux, speed, two_processes, weak_scaling
from benchmarks.common import Spread, number, rate
from perfuse import cli
from perfuse.config import LossConfig
from perfuse.data.table import CurveTable, to_batch
from perfuse.pk.mechanistic import organ_concentrations, solve
from perfuse.pk.physiology import ORGANS
from perfuse.training.loss import CurveLoss

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def short_table(t1_table: CurveTable) -> CurveTable:
    """The shared curves at every ninth time: the plain loop's cost is proportional to times."""
    every = slice(None, None, 9)
    return replace(
        t1_table, time_h=t1_table.time_h[:, every], conc_mg_l=t1_table.conc_mg_l[:, :, every],
        censored=t1_table.censored[:, :, every],
    )  # fmt: skip


# -- the plain loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gru", ["organ", "mean"])
def test_plain_loop_learns(short_table: CurveTable, gru: str) -> None:
    loop = plain_loop.PlainLoop(short_table, gru=gru)
    rows = range(8)
    losses = [loop.train_step(rows) for _ in range(25)]
    assert losses[-1] < 0.2 * losses[0]


def test_plain_loss_is_the_loss_of_training(short_table: CurveTable) -> None:
    loop = plain_loop.PlainLoop(short_table)
    rows = [3, 0, 7]
    with torch.no_grad():
        predicted = loop.predict(rows)
        batch, loss = to_batch(short_table.take(rows)), CurveLoss(LossConfig())
        expected = float(loss(predicted, batch).total) / loss.weight(batch).total
        assert float(loop.loss(predicted, rows)) == pytest.approx(expected, rel=1e-5)


def test_plain_batch_equals_singles(short_table: CurveTable) -> None:
    loop = plain_loop.PlainLoop(short_table)
    with torch.no_grad():
        together = loop.predict([4, 9])
        alone = torch.cat([loop.predict([4]), loop.predict([9])])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=0)
    assert together.shape == (2, len(ORGANS), short_table.time_h.shape[1])


def test_plain_graph_is_the_hub(short_table: CurveTable) -> None:
    graph = plain_loop.PlainData(short_table).batch([0, 1])
    source, target = graph.edge_index
    assert graph.edge_index.shape == (2, 2 * 2 * (len(ORGANS) - 1))
    assert bool((source // len(ORGANS) == target // len(ORGANS)).all()), "an edge joins two curves"
    expected = {(a, b) for a, b in short_table.topology.edges}
    assert set(zip(source[:26].tolist(), target[:26].tolist(), strict=True)) == expected
    np.testing.assert_allclose(graph.x[:14, 1].exp(), short_table.kp[0], rtol=1e-5)


def test_scan_keeps_the_faster_thread_count(short_table: CurveTable) -> None:
    loop = plain_loop.PlainLoop(short_table)
    rates = {(4, 1): 5.0, (4, 2): 3.0, (8, 1): 6.0, (8, 2): 9.0}
    loop.train_for = lambda batch, seconds: rates.get((batch, torch.get_num_threads()), 1.0)  # type: ignore[method-assign]
    settings = plain_loop.scan(loop, (4, 8), (1, 2))
    assert [(s.batch_size, s.threads, s.curves_per_s) for s in settings] == [(4, 1, 5.0), (8, 2, 9.0)]
    assert torch.get_num_threads() == 1


def test_scan_leaves_out_what_does_not_fit_into_memory(
    short_table: CurveTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = plain_loop.PlainLoop(short_table)
    loop.train_for = lambda batch, seconds: float(batch)  # type: ignore[method-assign]
    per_curve = 320 * 64 * 14 * short_table.time_h.shape[1]
    assert loop.fits(256, 0.5, 512 * per_curve) and not loop.fits(257, 0.5, 512 * per_curve)
    monkeypatch.setattr(loop, "fits", lambda batch, share: batch <= 256)
    assert [s.batch_size for s in plain_loop.scan(loop, threads=(1,))] == [8, 16, 32, 64, 128, 256]
    monkeypatch.setattr(loop, "fits", lambda batch, share: False)
    assert [s.batch_size for s in plain_loop.scan(loop, threads=(1,))] == [8], "the smallest is always tried"


# -- the solvers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ode_reference.SOLVERS))
def test_ode_reference_agrees_with_the_exact_solver(t1_table: CurveTable, name: str) -> None:
    rows = list(range(10))
    batch = to_batch(t1_table.take(rows))
    exact = organ_concentrations(batch.system, solve(batch.system, batch.doses, batch.time_h)).numpy()
    reference = ode_reference.OdeReference(t1_table)
    found = np.stack([reference.curve(row, ode_reference.SOLVERS[name]) for row in rows])
    peak = exact.max(axis=2, keepdims=True)
    assert np.abs(found / peak - exact / peak).max() < 1e-6


def test_ode_reference_refuses_a_failed_solution(t1_table: CurveTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ode_reference, "MAX_STEPS", 1)
    with pytest.warns(ODEintWarning), pytest.raises(RuntimeError, match="odeint failed"):
        ode_reference.OdeReference(t1_table).curve(0, ode_reference.solve_odeint)


# -- ratios and tables -----------------------------------------------------------------------------------------------


def test_spread_and_numbers() -> None:
    assert str(Spread.of([3.0, 1.0, 20.0])) == "3.00 (1.00-20.0)"
    assert str(Spread.of([6543.2])) == "6,543"
    assert number(0.1234) == "0.123"


def test_rate_counts_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("benchmarks.common.time.perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert rate(lambda: calls.append(1), 7, 2.5) == 7 * 3 / 4  # the clock is read once more at the end
    assert len(calls) == 3
    assert rate(lambda: calls.append(1), 7, 0.0) > 0, "at least once"


def _arm(name: str) -> arms.Arm:
    return arms.Arm(name, 8, 1, lambda: 0.0)


def test_ratios_are_taken_within_rounds_against_the_fastest_reference() -> None:
    rates = [[10.0, 20.0], [20.0, 10.0], [100.0, 400.0]]
    rows = speed.with_ratios([_arm("a"), _arm("b"), _arm("c")], rates, {"ref": [0, 1], "a": [0]}, {2: 13.0})
    assert rows[2].ratios == {"ref": [5.0, 20.0], "a": [10.0, 20.0]}
    assert rows[2].verdict("ref") == ">= 13: MISSED"
    assert rows[2].verdict("a") == ">= 13: met"
    assert rows[0].verdict("ref") == ""
    beside = replace(rows[2], ratios={"solve_ivp": [300.0], "odeint": [80.0, 90.0, 70.0]}, target=250.0)
    assert beside.verdict("solve_ivp") == ">= 250: met (80.0 x odeint)"
    assert "80.0 times odeint, which is less than 250" in speed.prediction_words([rows[0], beside])
    assert speed.missed(rows) == ["c, batch 8, 1 threads: >= 13: MISSED"]
    assert "| c | 8 | 1 | 250 (100-400) | 12.5 (5.00-20.0) | 15.0 (10.0-20.0) | >= 13: MISSED |" in speed.rows_table(
        rows, "what"
    )


def test_the_networks_overhead_is_over_the_same_threads() -> None:
    def row(name: str, threads: int, *per_s: float) -> speed.Row:
        return speed.Row(name, 8, threads, list(per_s), {}, None)

    rows = [row("flux", 1, 1.0), row("flux", 2, 80.0, 100.0), row("loglinear-rates", 2, 100.0, 110.0)]
    added = speed.overhead(rows)
    assert added == pytest.approx([0.25, 0.1])
    assert "adds 18% (10% to 25%)" in speed.overhead_line(added)
    assert "<= 30%: met" in speed.overhead_line(added)
    assert "MISSED" in speed.overhead_line([0.5])
    assert speed.overhead(rows[:2]) is None


def test_operations_are_sorted_by_kind() -> None:
    entries = {
        "aten::_linalg_eigh": "decompositions", "aten::bmm": "matrix products", "aten::addmm": "matrix products",
        "aten::exp_": "exponentials, logs, SiLU", "aten::silu_backward": "exponentials, logs, SiLU",
        "aten::add_": "elementwise, sums, copies", "aten::index_select": "gathers and scatters",
        "Optimizer.step#AdamW.step": "optimiser and gradient norm", "_BolusModesBackward": profile_flux.REST,
        "aten::as_strided": profile_flux.REST,
    }  # fmt: skip
    assert {name: profile_flux.kind_of(name) for name in entries} == entries
    found = profile_flux.shares([("aten::bmm", 3.0), ("aten::as_strided", 1.0)])
    assert (found["matrix products"], found[profile_flux.REST]) == (0.75, 0.25)


def test_arms_take_turns_and_set_their_threads() -> None:
    seen: list[tuple[str, int]] = []

    def arm(name: str, threads: int) -> arms.Arm:
        return arms.Arm(name, 1, threads, lambda: float(seen.append((name, torch.get_num_threads())) is None))

    try:
        speed.measured([arm("a", 1), arm("b", 2)], 3, "test")
    finally:
        torch.set_num_threads(1)
    assert seen == [("a", 1), ("b", 2), ("b", 2), ("a", 1), ("a", 1), ("b", 2)]


def test_rates_of_processes_are_summed_and_put_beside_the_solver() -> None:
    text, result = two_processes.table_of({"LSODA": [100.0, 50.0], "flux": [300.0, 200.0],
                                           "loglinear-rates": [400.0, 300.0]}, 2)  # fmt: skip
    assert result["ratios"]["flux"] == [3.0, 4.0]
    assert result["network_overhead"] == pytest.approx([1 / 3, 0.5])
    assert "| flux | 2 |" in text
    assert "adds 42% (33% to 50%)" in text


# -- whole scripts ---------------------------------------------------------------------------------------------------


def test_speed_runs_on_tiny_settings(tmp_path: Path) -> None:
    tiny = speed.Settings(
        models=("flux",), small_batch_models=("flux",), curves=160, rounds=1, turn_s=0.05, warm_s=0.0, solver_s=0.0,
        scan_batch_sizes=(2,), scan_s=0.0, threads=1, prediction_batch=16, growth_batches=(4,), growth_times=(5,),
        usual_batch=8, onnx=False,
    )  # fmt: skip
    text, result = speed.compare(tiny, tmp_path)
    training, prediction = result["training"], result["prediction"]
    assert isinstance(training, list)
    assert isinstance(prediction, list)
    assert [(row["name"], row["batch_size"]) for row in training] == [("plain loop", 2), ("flux", 144), ("flux", 8)]
    assert [row["name"] for row in prediction] == [*ode_reference.SOLVERS, "plain loop", "flux"]
    assert all(per_s > 0 for row in [*training, *prediction] for per_s in row["curves_per_s"])
    assert training[0]["ratios"]["plain loop at batch 2"] == [1.0]
    assert "## Prediction" in text
    assert result["network_overhead"] is None, "loglinear-rates was not measured"
    assert [row["what"] for row in result["limits"]] == ["prediction", "training step"]  # type: ignore[union-attr]
    assert all(row["share"] > 0 and row["float32_kflop_per_curve"] > 0 for row in result["limits"])  # type: ignore[union-attr]
    cases = [row["case"] for row in result["growth"]]  # type: ignore[union-attr]
    assert cases[:3] == ["batch 4", "5 times, batch 8", "1 threads, batch 8"]
    json.dumps(result, allow_nan=False)


def test_an_engine_run_goes_on_where_it_stopped(t1_table: CurveTable, tmp_path: Path) -> None:
    run = arms.EngineRun("mlp", 8, t1_table, tmp_path, turn_s=0.01, warm_s=0.0)
    before = run.epochs
    assert run.train() > 0
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == run.epochs == before + arms.EPOCHS_PER_TURN
    assert [line["step"] for line in lines] == [run.batches * (i + 1) for i in range(len(lines))]


def test_accuracy_runs_on_tiny_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_process(*arguments: object) -> float:
        assert cli.run([str(a) for a in arguments]) == 0
        return 1.0

    monkeypatch.setattr(accuracy, "perfuse", in_process)  # a process of its own takes seconds to start
    fresh = accuracy.dataset(tmp_path, 6, 1 + accuracy.FRESH_SEED_OFFSET)
    outcome = accuracy.run_job(accuracy.Job("flux", 12, 0.15), 1, tmp_path, fresh)
    assert outcome.evaluation["n_curves"] == 6
    assert outcome.gmfe >= 1
    assert {"mean-curve", "5-nearest"} <= set(outcome.beside)
    text = accuracy.table([outcome, replace(outcome, seed=2, gmfe=outcome.gmfe + 1)])
    assert f"({outcome.gmfe:.4f}-{outcome.gmfe + 1:.4f})" in text
    assert "<= 1.01: MISSED" in text
    assert "beside it: mean-curve" in text


def test_a_failed_command_stops_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="does not exist"):
        accuracy.perfuse("evaluate", tmp_path / "no-run", tmp_path)


@pytest.mark.parametrize("script", ["plain_loop", "ode_reference", "speed", "accuracy", "profile_flux"])
def test_scripts_answer_help(script: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{script}.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout


def test_weak_scaling_takes_its_ratios_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([100.0, 180.0, 190.0, 50.0, 80.0, 100.0])  # one, two, apart; twice
    monkeypatch.setattr(weak_scaling, "run_arm", lambda *_: next(rates))
    text, facts = weak_scaling.compare(["mlp"], rounds=2, curves=8, epochs=2)
    assert facts["models"]["mlp"]["efficiency"] == pytest.approx([0.9, 0.8])
    assert facts["models"]["mlp"]["beside_apart"] == pytest.approx([180 / 190, 0.8])
    assert "| mlp | 128 / 256 | 75.0 | 130 | 145 | 85% (80%-90%) | 87% (80%-95%) |" in text


def test_weak_scaling_measures_real_runs(tmp_path: Path) -> None:
    weak_scaling.simulate_dataset("T1", 40, 0, tmp_path / "whole")
    assert weak_scaling.run_arm("two", tmp_path, "mlp", 8, 2) > 0


def test_two_processes_runs_with_one() -> None:
    _, result = two_processes.compare(processes=1, rounds=1, seconds=0.01)
    assert all(rates[0] > 0 for rates in result["curves_per_s"].values())

"""``train`` as a whole: what it writes, how it ends, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.config import RunConfig, load_config, resolve
from perfuse.data.table import CurveTable, to_batch
from perfuse.errors import InputError, PerfuseError
from perfuse.training.checkpoint import load_checkpoint
from perfuse.training.config_file import config_toml
from perfuse.training.interrupt import Interrupted
from perfuse.training.load import load_model
from perfuse.training.loop import Trainer
from perfuse.training.precision import LossScaler
from perfuse.training.run import train
from perfuse.training.step import NonFiniteError, Stepper

MakeConfig = Callable[..., RunConfig]
Lines = Callable[[Path], list[dict[str, Any]]]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_checkpoint(run / name).model


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- what a run leaves ---------------------------------------------------------------------------------------------


def test_a_run_leaves_its_folder(small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines) -> None:
    run = tmp_path / "deep" / "run"
    result = train(small_table, config("mlp", training={"tensorboard": True}), run, data_path="data.npz")
    kept = ["best", "config.toml", "last", "log.jsonl", "metrics.jsonl", "provenance.json", "tensorboard"]
    kept.append("training_distance.safetensors")
    assert sorted(p.name for p in run.iterdir()) == kept
    assert (result.ending, result.epochs, result.steps) == ("completed", 3, 12)
    assert (result.n_train, result.n_validation, result.n_test) == (16, 2, 2)
    rows = lines(run)
    assert [(r["epoch"], r["step"]) for r in rows] == [(1, 4), (2, 8), (3, 12)]
    assert result.best_val_loss == min(r["val_loss"] for r in rows)
    assert set(rows[0]) == {
        "epoch", "step", "train_loss", "val_loss", "lr", "grad_norm", "grad_norm_max", "skipped_steps",
        "val_loss_per_organ",
    }  # fmt: skip
    meta = load_model(run).meta
    assert meta.data.path == "data.npz"
    assert meta.progress.best_val_loss == result.best_val_loss
    parts = [set(p.compound_ids) for p in (meta.split.train, meta.split.validation, meta.split.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 20


def test_config_toml_reads_back_and_keeps_automatic_values(config: MakeConfig, tmp_path: Path) -> None:
    made = config("flux", loss={"organ_weight": {"brain": 3.5}}, training={"max_minutes": 0.5, "epochs": None})
    path = tmp_path / "config.toml"
    path.write_text(config_toml(made))
    back = load_config(path)
    assert back == made
    assert "validate_every_epochs" not in back.training.model_fields_set
    explicit = config("flux", training={"validate_every_epochs": 2})
    path.write_text(config_toml(explicit))
    assert "validate_every_epochs" in load_config(path).training.model_fields_set


def test_statistics_come_from_the_training_split_alone(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perfuse.data.split import split_curves
    from perfuse.models.base import CurveModel

    seen: list[np.ndarray] = []
    original = CurveModel.fit_normalisation

    def fit(self: CurveModel, batch: Any) -> None:
        seen.append(batch.doses.amount_mg[:, 0].numpy())
        original(self, batch)

    monkeypatch.setattr(CurveModel, "fit_normalisation", fit)
    c = config("mlp", training={"epochs": 1})
    train(small_table, c, tmp_path / "run")
    rows = split_curves(small_table, c.split, c.seed).train
    np.testing.assert_array_equal(np.concatenate(seen), small_table.dose_mg[rows, 0])


def test_two_runs_of_one_seed_are_equal_and_another_seed_differs(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(small_table, config("mlp", seed=seed, training={"epochs": 1}), tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("model", ["flux", "loglinear-rates", "recurrent", "lstm", "mlp"])
def test_every_model_learns_from_eight_curves(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines, model: str
) -> None:
    no_dropout = {} if model == "loglinear-rates" else {"dropout": 0.0}
    training = {"epochs": 60, "validate_every_epochs": 10, "batch_size": 16}
    c = config(model, no_dropout, training=training, optimizer={"lr": 0.02})
    train(small_table.take(np.arange(10)), c, tmp_path / "run")
    rows = lines(tmp_path / "run")
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]


def test_metrics_that_are_handed_in_are_logged_and_stored(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines, metric_of: Any
) -> None:
    calls = iter(range(10))
    result = train(
        small_table, config("mlp", training={"epochs": 2}), tmp_path / "run",
        validate=metric_of(lambda: {"gmfe": 2.0 - next(calls) / 10, "step": -1.0}),
    )  # fmt: skip
    assert [r["gmfe"] for r in lines(tmp_path / "run")] == [2.0, 1.9]
    assert [r["step"] for r in lines(tmp_path / "run")] == [4, 8]  # ours, whatever the metrics are called
    assert result.validation["gmfe"] == load_model(tmp_path / "run" / "last").meta.validation["gmfe"] == 1.9


def test_validation_cadence(small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines) -> None:
    train(small_table, config("mlp", training={"epochs": 5, "validate_every_epochs": 2}), tmp_path / "run")
    assert [r["epoch"] for r in lines(tmp_path / "run")] == [2, 4, 5]  # the last step always validates


# -- the step ------------------------------------------------------------------------------------------------------


def test_accumulated_micro_batches_are_the_joint_batch(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines
) -> None:
    plain = {"dropout": 0.0}
    for name, size, accumulate in (("joint", 16, 1), ("parts", 3, 6)):
        training = {"epochs": 2, "batch_size": size, "accumulate": accumulate}
        train(small_table, config("mlp", plain, training=training, optimizer={"lr": 1e-2}), tmp_path / name)
    joint, parts = weights(tmp_path / "joint"), weights(tmp_path / "parts")
    for key, value in joint.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-6)
    a, b = lines(tmp_path / "joint")[0], lines(tmp_path / "parts")[0]
    assert a["step"] == b["step"] == 1
    for key in ("train_loss", "grad_norm", "val_loss"):
        assert b[key] == pytest.approx(a[key], rel=1e-5)


def test_a_batch_larger_than_the_training_split_is_the_training_split(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    result = train(small_table, config("mlp", training={"epochs": 2, "batch_size": 1000}), tmp_path / "run")
    assert result.steps == 2


def test_clipping_acts_before_the_step_and_the_norm_before_clipping_is_logged(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perfuse.training.optimizer import gradient_norm

    norms: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norms.append(gradient_norm(grads).item())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train(small_table, config("mlp", optimizer={"clip": 0.01}, training={"epochs": 1}), tmp_path / "run")
    assert norms == pytest.approx([0.01] * 4, rel=1e-4)
    assert lines(tmp_path / "run")[0]["grad_norm"] > 0.01


def test_the_learning_rate_of_the_schedule_reaches_the_optimiser(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines
) -> None:
    schedule = {"kind": "cosine", "warmup_steps": 4, "final_fraction": 0.1}
    train(small_table, config("mlp", schedule=schedule, optimizer={"lr": 1e-3}), tmp_path / "run")
    rates = [r["lr"] for r in lines(tmp_path / "run")]
    assert rates[0] == 1e-3  # step 3 is the last of the warm-up
    assert rates[-1] == pytest.approx(1e-4)


def test_plateau_lowers_the_rate_when_validation_stands_still(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines
) -> None:
    schedule = {"kind": "plateau", "patience": 0, "warmup_steps": 0, "min_lr": 0.0}
    c = config("mlp", schedule=schedule, optimizer={"lr": 1e-9}, training={"epochs": 4})
    train(small_table, c, tmp_path / "run")
    assert [r["lr"] for r in lines(tmp_path / "run")] == pytest.approx([1e-9, 1e-9, 5e-10, 2.5e-10])


def test_early_stopping(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines, metric_of: Any
) -> None:
    calls = iter(range(100))

    c = config("mlp", optimizer={"lr": 1e-9}, training={"epochs": 50, "early_stopping_patience": 3})
    result = train(small_table, c, tmp_path / "run", validate=metric_of(lambda: {"n": float(next(calls))}))
    assert result.ending == "early"
    rows = lines(tmp_path / "run")
    best = int(np.argmin([r["val_loss"] for r in rows])) + 1
    assert rows[-1]["epoch"] - best == 3
    assert result.best_epoch == best
    again = train(small_table, c, tmp_path / "run", resume=True)
    assert (again.ending, again.steps) == ("early", result.steps)


def test_ema_weights_are_validated_and_saved_with_the_raw_ones_beside(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    c = config("mlp", {"dropout": 0.0}, training={"ema_decay": 0.9}, optimizer={"lr": 1e-2})
    train(small_table, c, tmp_path / "ema")
    train(small_table, config("mlp", {"dropout": 0.0}, optimizer={"lr": 1e-2}), tmp_path / "raw")
    averaged = load_checkpoint(tmp_path / "ema" / "last", with_optimizer=True)
    plain = weights(tmp_path / "raw")
    trained = {k.removesuffix("/raw"): v for k, v in averaged.optimizer.items() if k.endswith("/raw")}
    assert trained
    for name, value in trained.items():
        assert torch.equal(value, plain[name])
        assert not torch.equal(value, averaged.model[name])
    from perfuse.training.loss import CurveLoss

    model = load_model(tmp_path / "ema" / "last")
    from perfuse.data.split import split_curves

    batch = to_batch(small_table.take(split_curves(small_table, c.split, c.seed).validation))
    loss = CurveLoss(c.loss)
    with torch.no_grad():
        value = loss(model.model(batch), batch).total / loss.weight(batch).total
    assert float(value) == pytest.approx(model.meta.validation["val_loss"], rel=1e-6)


@pytest.mark.parametrize("model", ["flux", "loglinear-rates", "recurrent", "lstm", "mlp"])
def test_bf16_ends_near_float32(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines, model: str
) -> None:
    """Stated tolerance: after 12 steps losses differ by less than 5 %, and they do differ where layers are hidden."""
    no_dropout = {} if model == "loglinear-rates" else {"dropout": 0.0}
    final = {}
    for precision in ("32", "bf16"):
        train(small_table, config(model, no_dropout, training={"precision": precision}), tmp_path / precision)
        final[precision] = lines(tmp_path / precision)[-1]["val_loss"]
    assert final["bf16"] == pytest.approx(final["32"], rel=0.05)
    if model == "loglinear-rates":
        assert final["bf16"] == final["32"]


# -- what is not finite --------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_curve(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, models: dict[str, Any], use_model: Any
) -> None:
    from perfuse.data.split import split_curves

    c = config("mlp", training={"epochs": 2, "batch_size": 16})
    guilty = split_curves(small_table, c.split, c.seed).train[5]
    built = use_model(lambda topology: models["nan_for_dose"](topology, float(small_table.dose_mg[guilty, 0])))
    with pytest.raises(NonFiniteError) as caught:
        train(small_table, c, tmp_path / "run")
    text = str(caught.value)
    assert f"the loss is not finite in epoch 1, step 0, 1 curve: {small_table.curve_id[guilty]};" in text
    assert (built[0].log_scale == 0).all()
    assert load_checkpoint(tmp_path / "run" / "last").state.progress.step == 0


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, models: dict[str, Any], use_model: Any
) -> None:
    built = use_model(models["infinite_gradient"])
    with pytest.raises(
        NonFiniteError, match=r"the gradient is not finite in epoch 1, step 0, 16 curves: .* and 11 more;"
    ):
        train(small_table, config("mlp", training={"batch_size": 16}), tmp_path / "run")
    assert (built[0].log_scale == 0).all()


def test_the_best_so_far_is_kept_when_a_later_loss_is_not_finite(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any, use_model: Any, models: dict[str, Any]
) -> None:
    built = use_model(models["scaled"])
    stop_at(9, lambda: built[0].log_scale.data.fill_(torch.nan))
    with pytest.raises(NonFiniteError, match="epoch 3, step 9"):
        train(small_table, config("mlp"), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "best").state.progress.step == 8


def use_scaler(monkeypatch: pytest.MonkeyPatch, init_scale: float) -> None:
    monkeypatch.setattr(
        "perfuse.training.session.LossScaler", lambda device, enabled: LossScaler(device, True, init_scale=init_scale)
    )


def test_fp16_overflows_are_skipped_logged_and_got_over(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch,
    models: dict[str, Any], use_model: Any,
) -> None:  # fmt: skip
    use_scaler(monkeypatch, 2.0**127)
    use_model(models["steep"])
    c = config("mlp", training={"epochs": 20}, optimizer={"lr": 1e-2})
    train(small_table, c, tmp_path / "run")
    rows = lines(tmp_path / "run")
    assert 0 < rows[-1]["skipped_steps"] < 20
    assert rows[0]["skipped_steps"] > 0
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    state = load_checkpoint(tmp_path / "run" / "last").state
    assert 1 < state.scaler["scale"] < 2.0**127
    assert state.progress.skipped_in_row == 0


def test_too_many_overflows_in_a_row_stop_the_run(
    small_table: CurveTable,
    config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    models: Any,
    use_model: Any,
) -> None:
    use_scaler(monkeypatch, 4.0)
    built = use_model(models["infinite_gradient"])
    with pytest.raises(NonFiniteError, match=r"gradient \(5 fp16 overflows in a row\)"):
        train(small_table, config("mlp", training={"max_skipped_steps": 5}), tmp_path / "run")
    assert (built[0].log_scale == 0).all()


def test_loss_scaling_changes_nothing_when_nothing_overflows(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(small_table, config("mlp"), tmp_path / "plain")
    use_scaler(monkeypatch, 2.0**10)  # a power of two: exact
    train(small_table, config("mlp"), tmp_path / "scaled")
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "scaled"))


# -- wall clock ----------------------------------------------------------------------------------------------------


def test_a_wall_clock_budget_is_planned_once_and_kept(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines
) -> None:
    seconds = 6.0
    c = config("mlp", training={"max_minutes": seconds / 60, "epochs": None})
    started = time.monotonic()
    result = train(small_table, c, tmp_path / "run")
    assert time.monotonic() - started < seconds + 2
    assert result.ending in ("completed", "deadline")
    plan = load_checkpoint(tmp_path / "run" / "last").state.plan
    assert plan.total_steps is not None
    assert plan.total_steps >= result.steps > 20
    assert lines(tmp_path / "run")[-1]["step"] == result.steps


@pytest.fixture
def slowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take 0.1 s more once the length of the run is fixed."""
    original = Stepper.__call__

    def slow(self: Stepper, micros: Any) -> Any:
        time.sleep(0.0 if self.total_steps is None else 0.1)
        return original(self, micros)

    monkeypatch.setattr(Stepper, "__call__", slow)


@pytest.mark.usefixtures("slowing")
def test_a_machine_that_becomes_slower_gets_a_shorter_schedule(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines
) -> None:
    c = config("mlp", training={"max_minutes": 0.1, "epochs": None}, schedule={"final_fraction": 0.01})
    started = time.monotonic()
    result = train(small_table, c, tmp_path / "run")
    assert result.ending == "completed"
    assert time.monotonic() - started < 6 + 2
    assert lines(tmp_path / "run")[-1]["lr"] == pytest.approx(0.01 * (resolve(c).optimizer.lr or 0))
    assert load_checkpoint(tmp_path / "run" / "last").state.plan.total_steps == result.steps


@pytest.mark.usefixtures("slowing")
def test_the_deadline_stops_a_run_that_is_late_all_the_same(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perfuse.training.budget.Pace.affordable_total", lambda *_: None)
    started = time.monotonic()
    result = train(small_table, config("mlp", training={"max_minutes": 0.08, "epochs": None}), tmp_path / "run")
    assert result.ending == "deadline"
    assert time.monotonic() - started < 4.8 + 2
    assert load_checkpoint(tmp_path / "run" / "last").state.progress.validated_step == result.steps


def test_a_budget_without_a_single_step_is_refused_and_leaves_no_usable_model(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(PerfuseError, match="budget was used up before the first step"):
        train(small_table, config("mlp", training={"max_minutes": 1e-6, "epochs": None}), tmp_path / "run")
    with pytest.raises(InputError, match="RUN holds an untrained model"):
        load_model(tmp_path / "run")


# -- what is refused -----------------------------------------------------------------------------------------------


def test_a_folder_with_a_run_is_left_alone(small_table: CurveTable, config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    train(small_table, config("mlp", training={"epochs": 1}), tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(InputError, match="--out already holds a run .*--resume"):
        train(small_table, config("mlp"), tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"loss": {"organ_weight": {"thymus": 2}}}, "unknown organ"),
        ({"training": {"precision": "16"}}, "needs a CUDA device"),
        ({"schedule": {"warmup_steps": 500}}, "warmup_steps leaves no step"),
        ({"split": {"kind": "scaffold"}}, "SMILES"),
    ],
)
def test_options_that_cannot_be_used_write_nothing(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        train(small_table, config("mlp", **sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_without_a_value_that_counts_is_refused(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    empty = replace(small_table, conc_mg_l=np.full_like(small_table.conc_mg_l, np.nan))
    with pytest.raises(InputError, match="training split has no value that counts"):
        train(empty, config("mlp"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_out_that_is_a_file_or_cannot_be_made_gives_one_line(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="--out is not a folder"):
        train(small_table, config("mlp"), file)
    with pytest.raises(PerfuseError, match="cannot write the run"):
        train(small_table, config("mlp"), file / "below")


def test_a_dataset_is_no_place_for_a_run(small_table: CurveTable, config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="--out holds a dataset") as caught:
        train(small_table, config("mlp"), tmp_path)
    assert caught.value.exit_code == 2 and [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_global_settings_are_as_before(small_table: CurveTable, config: MakeConfig, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    train(small_table, config("mlp", training={"epochs": 1}), tmp_path / "run")
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.get_num_threads() == threads


def test_config_is_recorded_as_resolved(small_table: CurveTable, config: MakeConfig, tmp_path: Path) -> None:
    c = config("mlp", training={"epochs": 1})
    train(small_table, c, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "last" / "state.json").read_text())["config"]
    assert stored["optimizer"]["lr"] == load_config(tmp_path / "run" / "config.toml").optimizer.lr
    assert stored["optimizer"]["lr"] == resolve(c).optimizer.lr is not None


def test_few_curves_get_more_epochs_unless_told_otherwise() -> None:
    few, many = resolve(RunConfig(), 64).training.epochs, resolve(RunConfig(), 18_000).training.epochs
    assert few is not None
    assert many is not None
    assert few >= 2000 > 100 >= many
    asked = RunConfig.model_validate({"training": {"epochs": 7}})
    assert resolve(asked, 64).training.epochs == 7
    clock = RunConfig.model_validate({"training": {"max_minutes": 1.0}})
    assert resolve(clock, 64).training.epochs is None


def test_a_start_that_left_no_checkpoint_may_be_tried_again(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("seed = 1")
    (run / "metrics.jsonl").write_text('{"step": 99}\n')
    result = train(small_table, config(training={"epochs": 1}), run)
    assert result.steps == 4
    assert '"step": 99' not in (run / "metrics.jsonl").read_text()


# -- the start by Gauss-Newton


def fitted_start(config: MakeConfig, model: str = "loglinear-rates", **training: object) -> RunConfig:
    return config(model, {"start": "gauss-newton"}, training={"epochs": 2, **training})


@pytest.mark.parametrize("model", ["flux", "loglinear-rates"])
def test_a_fitted_start_is_validated_as_epoch_0_and_may_be_the_best(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines, model: str
) -> None:
    result = train(small_table, fitted_start(config, model, ema_decay=0.9), tmp_path / "run")
    rows = lines(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[0]["step"] == 0
    assert rows[0]["val_loss"] < 1e-4
    assert result.best_val_loss == min(row["val_loss"] for row in rows)
    assert (tmp_path / "run" / "best").is_dir()
    loaded = load_model(tmp_path / "run")
    assert loaded.meta.progress.best_val_loss < 1e-4


def test_a_signal_at_the_fitted_start_loses_nothing(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = fitted_start(config)
    train(small_table, c, tmp_path / "whole")
    score = Trainer._score

    def interrupted(self: Trainer) -> object:
        self._interruption.received = signal.SIGINT
        return score(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_score", interrupted)
        with pytest.raises(Interrupted):
            train(small_table, c, tmp_path / "run")
    train(small_table, c, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    kept, whole = lines(tmp_path / "run"), lines(tmp_path / "whole")
    assert [row["epoch"] for row in kept] == [row["epoch"] for row in whole] == [0, 1, 2]
    assert [row["val_loss"] for row in kept] == [row["val_loss"] for row in whole]


def test_a_signal_during_the_fit_saves_nothing_and_the_run_may_start_again(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perfuse.training import session as module

    def signalled(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return fit(*arguments)

    fit = module.start_exponents
    with monkeypatch.context() as patch:
        patch.setattr(module, "start_exponents", signalled)
        with pytest.raises(Interrupted, match="nothing is saved, start it again") as stopped:
            train(small_table, fitted_start(config), tmp_path / "run")
    assert stopped.value.exit_code == 143
    train(small_table, fitted_start(config), tmp_path / "run")

"""Several processes are one with the joint batch; one that dies ends the run, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks, start_ranks, wait

from perfuse.config import RunConfig
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from perfuse.training.run import TrainResult, train

MakeConfig = Callable[..., RunConfig]
NO_DROPOUT = {"dropout": 0.0}


@pytest.fixture(scope="module")
def uneven(t1_table: CurveTable) -> CurveTable:
    """37 curves: 29 train, in batches of 7 the last one has a single curve, so that one of two processes has none."""
    return t1_table.take(np.arange(37))


def last(run: Path) -> Checkpoint:
    return load_checkpoint(run / "last", with_optimizer=True)


def largest_difference(a: Checkpoint, b: Checkpoint) -> float:
    floats = [name for name, tensor in a.model.items() if tensor.is_floating_point() and tensor.numel()]
    return max(float((a.model[name] - b.model[name]).abs().max()) for name in floats)


def same_bytes(a: Path, b: Path) -> bool:
    files = [f"{c}/{f}.safetensors" for c in ("best", "last") for f in ("model", "optimizer")]
    return all((a / file).read_bytes() == (b / file).read_bytes() for file in files)


# -- the same result ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "precision", "limit"),
    [
        ("mlp", "64", 1e-10),
        ("flux", "64", 1e-10),
        ("recurrent", "64", 1e-10),
        ("mlp", "32", 1e-5),
        ("flux", "32", 1e-5),
    ],
)
def test_two_processes_are_one_with_the_joint_batch(
    model: str, precision: str, limit: float, uneven: CurveTable, config: MakeConfig, tmp_path: Path, lines: Any
) -> None:
    """200 steps, 5 an epoch, with averaging of weights and clipping."""
    training = {"epochs": 40, "batch_size": 7, "precision": precision, "ema_decay": 0.9, "validate_every_epochs": 10}
    c = config(model, NO_DROPOUT, training=training, optimizer={"clip": 0.5})
    train(uneven, c, tmp_path / "one")
    run_ranks(2, lambda _: train(uneven, c, tmp_path / "two"))
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    assert one.state.progress.step == two.state.progress.step == 200
    assert (one.state.processes, two.state.processes) == (1, 2)
    assert largest_difference(one, two) < limit
    assert any(not torch.equal(one.model[n], t) for n, t in two.model.items())  # they did add in another order
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        for key in ("train_loss", "val_loss", "grad_norm"):
            assert b[key] == pytest.approx(a[key], rel=max(limit, 1e-9))


def test_micro_batches_of_three_processes_are_the_joint_batch(
    uneven: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    """Batches of two leave one of three processes without a curve in every micro-batch."""
    training = {"epochs": 6, "batch_size": 2, "accumulate": 4, "precision": "64"}
    c = config("lstm", NO_DROPOUT, training=training)
    train(uneven, c, tmp_path / "one")
    run_ranks(3, lambda _: train(uneven, c, tmp_path / "three"))
    assert largest_difference(last(tmp_path / "one"), last(tmp_path / "three")) < 1e-10


def test_a_fit_before_the_first_step_is_made_once_and_shared(
    uneven: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    c = config("loglinear-rates", {"start": "gauss-newton"}, training={"epochs": 1, "precision": "64"})
    train(uneven, c, tmp_path / "one")
    run_ranks(2, lambda _: train(uneven, c, tmp_path / "two"))
    one, two = (load_checkpoint(tmp_path / name / "best") for name in ("one", "two"))
    assert one.state.progress.step == two.state.progress.step == 0
    assert two.state.validation["val_loss"] < 1e-8
    assert all(torch.equal(two.model[name], tensor) for name, tensor in one.model.items())


def test_every_curve_is_seen_once_by_one_process(
    uneven: CurveTable, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training and validation alike: no curve twice to even out the processes, none dropped."""
    from perfuse.training.loss import CurveLoss

    seen: list[float] = []
    weigh = CurveLoss.__call__

    def record(self: CurveLoss, pred: Any, batch: Any, *rest: Any) -> Any:
        seen.extend([-1.0 if torch.is_grad_enabled() else 1.0] * len(batch))
        seen.extend(batch.doses.amount_mg[:, 0].tolist())
        return weigh(self, pred, batch, *rest)

    def work(rank: int) -> None:
        monkeypatch.setattr(CurveLoss, "__call__", record)
        train(uneven, config("mlp", training={"epochs": 1, "batch_size": 7}), tmp_path / "run")
        (tmp_path / f"{rank}.json").write_text(json.dumps(seen))

    run_ranks(2, work)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    doses = sorted(value for one in told for value in one if abs(value) != 1.0)
    state = last(tmp_path / "run").state
    trained = {**state.split.model_dump()}["train"]["compound_ids"] + state.split.validation.compound_ids
    rows = np.isin(uneven.compound_id, trained)
    assert doses == sorted(uneven.dose_mg[rows, 0].tolist())
    assert sum(one.count(-1.0) for one in told) == state.split.train.n_curves
    assert sum(one.count(1.0) for one in told) == state.split.validation.n_curves
    assert told[0]
    assert told[1]


# -- stopping and going on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("model", ["flux", "mlp"])
def test_two_processes_resume_bit_for_bit_mid_epoch(
    model: str, precision: str, uneven: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any, lines: Any
) -> None:
    """Mixed precision, clipping, accumulation, averaging, plateau and dropout together; the signal reaches one only."""
    c = config(
        model, schedule={"kind": "plateau", "patience": 0, "warmup_steps": 4}, optimizer={"clip": 0.3},
        training={"epochs": 4, "batch_size": 5, "accumulate": 2, "ema_decay": 0.8, "precision": precision},
    )  # fmt: skip

    def interrupted(rank: int) -> None:
        if rank == 1:
            stop_at(4, lambda: os.kill(os.getpid(), signal.SIGTERM))  # heard by all in the step after
        train(uneven, c, tmp_path / "broken")

    run_ranks(2, lambda _: train(uneven, c, tmp_path / "straight"))
    stopped = wait(start_ranks(2, interrupted))
    assert [r.code for r in stopped] == [143, 143], stopped[0].said
    assert "saved after step" in stopped[0].said
    step = last(tmp_path / "broken").state.progress
    assert step.batch % 6 > 0
    assert step.step % 3 > 0
    run_ranks(2, lambda _: train(uneven, c, tmp_path / "broken", resume=True))
    assert same_bytes(tmp_path / "straight", tmp_path / "broken")
    assert lines(tmp_path / "straight") == lines(tmp_path / "broken")


def test_a_run_goes_on_with_another_number_of_processes(
    uneven: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any
) -> None:
    c = config("recurrent", NO_DROPOUT, training={"epochs": 6, "batch_size": 7, "precision": "64"})
    train(uneven, c, tmp_path / "straight")

    def interrupted(_: int) -> None:
        stop_at(13, lambda: os.kill(os.getpid(), signal.SIGINT))
        train(uneven, c, tmp_path / "broken")

    assert [r.code for r in wait(start_ranks(2, interrupted))] == [130, 130]
    train(uneven, c, tmp_path / "broken", resume=True)
    assert largest_difference(last(tmp_path / "straight"), last(tmp_path / "broken")) < 1e-10


def test_only_the_first_process_writes(uneven: CurveTable, config: MakeConfig, tmp_path: Path) -> None:
    c = config("mlp", training={"epochs": 2, "tensorboard": True})
    results: list[TrainResult] = []

    def work(rank: int) -> None:
        results.append(train(uneven, c, tmp_path / "run" if rank == 0 else tmp_path / "other"))
        assert results[0].is_main == (rank == 0)

    run_ranks(2, work)
    assert not (tmp_path / "other").exists()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


# -- faults --------------------------------------------------------------------------------------------------------


def until_training(run: Path, deadline_s: float = 60.0) -> None:
    """Wait until a run has validated once."""
    ends = time.monotonic() + deadline_s
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text()):
        assert time.monotonic() < ends, "no step in time"
        time.sleep(0.02)


LONG = {"epochs": 1_000_000, "batch_size": 7, "checkpoint_every_minutes": 60.0, "validate_every_epochs": 5}


@pytest.mark.parametrize(("number", "timeout_s"), [(signal.SIGKILL, 45.0), (signal.SIGSTOP, 3.0)])
def test_a_process_that_dies_or_freezes_ends_the_run_resumably(
    number: int, timeout_s: float, uneven: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    steady = {"kind": "constant", "warmup_steps": 0}  # whose rate does not depend on how long the run was to be
    c = config("mlp", NO_DROPOUT, schedule=steady, training=LONG | {"process_timeout_s": timeout_s})
    ranks = start_ranks(2, lambda _: train(uneven, c, run))
    until_training(run)
    began = time.monotonic()
    os.kill(ranks[1].pid, number)
    wait(ranks[:1])
    assert time.monotonic() - began < 20
    os.kill(ranks[1].pid, signal.SIGKILL)
    wait(ranks[1:])
    assert ranks[0].code == 1
    assert "another process of this run has ended, or did not answer within" in ranks[0].said
    step = last(run).state.progress.step
    assert f"saved after step {step}; the same command with --resume continues from there" in ranks[0].said
    assert step > 5  # not the save from the start
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "rank_lost"
    epochs = last(run).state.progress.epoch + 2
    c = config("mlp", NO_DROPOUT, schedule=steady, training=LONG | {"epochs": epochs})
    again = train(uneven, c, run, resume=True)
    straight = train(uneven, c, tmp_path / "straight")
    assert again.steps == straight.steps
    assert largest_difference(last(run), last(tmp_path / "straight")) < 1e-3


def test_when_the_first_process_dies_its_last_save_is_left(
    uneven: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ranks = start_ranks(2, lambda _: train(uneven, config("mlp", training=LONG), run))
    until_training(run)
    os.kill(ranks[0].pid, signal.SIGKILL)
    wait(ranks, 30.0)
    assert ranks[1].code == 1
    assert "another process of this run has ended" in ranks[1].said
    assert train(uneven, config("mlp", training=LONG | {"epochs": 400}), run, resume=True).ending == "completed"


def test_data_that_one_process_cannot_read_end_the_run_resumably(
    uneven: CurveTable, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perfuse.data.loader import CurveLoader

    batches = CurveLoader._batches

    def damaged(self: CurveLoader, epoch: int, start: int) -> Any:
        for i, loaded in enumerate(batches(self, epoch, start)):
            if epoch == 1 and i == 2 and self.shuffle:
                raise InputError("shard", "is missing", where="shard-00007.arrow")
            yield loaded

    def work(rank: int) -> None:
        if rank == 1:
            monkeypatch.setattr(CurveLoader, "_batches", damaged)
        train(uneven, config("mlp", training=LONG), tmp_path / "run")

    ranks = wait(start_ranks(2, work))
    assert [r.code for r in ranks] == [1, 2]
    assert ranks[1].said == "shard-00007.arrow: shard is missing"
    assert "saved after step 7" in ranks[0].said
    assert last(tmp_path / "run").state.progress.step == 7


def test_different_data_are_refused_by_all(uneven: CurveTable, config: MakeConfig, tmp_path: Path) -> None:
    ranks = wait(start_ranks(2, lambda r: train(uneven.take(np.arange(30 + r)), config("mlp"), tmp_path / "run")))
    assert [r.code for r in ranks] == [2, 2]
    assert all("have different data, configurations, checkpoints or versions" in r.said for r in ranks)
    assert not (tmp_path / "run").exists()


def test_a_best_that_one_process_does_not_see_is_refused_by_all(
    uneven: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    """It would take another validation for the best, and stop early in another epoch."""
    runs = tmp_path / "0", tmp_path / "1"
    train(uneven, config("mlp", training={"epochs": 1}), runs[0])
    state = load_checkpoint(runs[0] / "last", with_optimizer=True)
    going_on = state.state.progress.model_copy(update={"stopped": ""})
    save_checkpoint(
        runs[0] / "last", state.state.model_copy(update={"progress": going_on}), state.model, state.optimizer
    )
    shutil.copytree(runs[0], runs[1])
    shutil.rmtree(runs[1] / "best")
    more = config("mlp", training={"epochs": 2})
    ranks = wait(start_ranks(2, lambda r: train(uneven, more, runs[r], resume=True)))
    assert [r.code for r in ranks] == [2, 2]
    assert all("have different data, configurations, checkpoints or versions" in r.said for r in ranks)


def test_a_loss_that_is_not_finite_names_the_curve_whoever_had_it(
    uneven: CurveTable, config: MakeConfig, tmp_path: Path, models: dict[str, Any], use_model: Any
) -> None:
    row = int(np.argmax(uneven.dose_mg[:, 0]))
    use_model(lambda topology: models["nan_for_dose"](topology, float(uneven.dose_mg[row, 0])))
    c = config("mlp", split={"validation_fraction": 0.05, "test_fraction": 0.0}, training={"batch_size": 7})
    ranks = wait(start_ranks(2, lambda _: train(uneven, c, tmp_path / "run")))
    assert [r.code for r in ranks] == [1, 1]
    assert all(f"1 curve: {uneven.curve_id[row]};" in r.said for r in ranks)


def test_a_full_disk_in_the_first_process_ends_all(
    uneven: CurveTable, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perfuse.errors import PerfuseError
    from perfuse.training.keeper import Keeper

    def full(self: Keeper) -> None:
        raise PerfuseError("cannot save the checkpoint: No space left on device")

    monkeypatch.setattr(Keeper, "save_last", full)
    ranks = wait(start_ranks(2, lambda _: train(uneven, config("mlp"), tmp_path / "run")))
    assert [r.code for r in ranks] == [1, 1]
    assert ranks[0].said == "cannot save the checkpoint: No space left on device"
    assert "the first process of this run has failed" in ranks[1].said


def test_weights_that_have_come_apart_are_not_saved(
    uneven: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any, use_model: Any, models: dict[str, Any]
) -> None:
    def work(rank: int) -> None:
        built = use_model(models["scaled"])
        if rank == 1:
            stop_at(3, lambda: built[0].log_scale.data.add_(1e-6))
        train(uneven, config("mlp", training={"epochs": 1, "batch_size": 7}), tmp_path / "run")

    ranks = wait(start_ranks(2, work))
    assert [r.code for r in ranks] == [1, 1]
    assert "weights have come apart before step 5" in ranks[0].said


def test_several_devices_without_a_launcher_are_refused(uneven: CurveTable, config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training.devices is not the number of processes .* \(got 2 processes\)"):
        train(uneven, config("mlp", training={"devices": 2}), tmp_path / "run")
    assert not (tmp_path / "run").exists()

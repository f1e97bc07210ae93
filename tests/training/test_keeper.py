"""Which checkpoints stay: the last K, the best, and a whole one whatever happens to the newest."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perfuse.config import RunConfig
from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.training.checkpoint import Checkpoint, is_whole, load_checkpoint, previous_of
from perfuse.training.interrupt import Interrupted
from perfuse.training.keeper import Keeper
from perfuse.training.load import load_model
from perfuse.training.retention import history, read_newest, save_last
from perfuse.training.run import train

MakeConfig = Callable[..., RunConfig]
EVERY_STEP = {"checkpoint_every_minutes": 1e-9}


@pytest.fixture(scope="module")
def start(small_table: CurveTable, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The end of a tiny run, to be saved under other steps."""
    model = {"name": "mlp", "hidden": 4, "layers": 1, "knots": 4}
    training = {"epochs": 1, "tensorboard": False, "device": "cpu"}
    run = tmp_path_factory.mktemp("start") / "run"
    train(small_table, RunConfig.model_validate({"model": model, "training": training}), run)
    return load_checkpoint(run / "last", with_optimizer=True)


def save(run: Path, start: Checkpoint, step: int, keep: int) -> None:
    training = start.state.config.training.model_copy(update={"keep_last": keep})
    config = start.state.config.model_copy(update={"training": training})
    progress = start.state.progress.model_copy(update={"step": step, "stopped": ""})
    state = start.state.model_copy(update={"config": config, "progress": progress})
    save_last(run, state, start.model, start.optimizer)


def steps(run: Path) -> list[int]:
    """Of ``last``, then of the history, each loaded whole from the folder that is named after it."""
    found = [load_checkpoint(run / "last", with_optimizer=True).state.progress.step]
    for step, folder in history(run):
        assert load_checkpoint(folder, with_optimizer=True).state.progress.step == step
        found.append(step)
    return found


def damage(folder: Path, name: str = "model.safetensors") -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)


def names(run: Path) -> set[str]:
    return {str(p.relative_to(run)) for p in run.rglob("*") if p.is_dir()}


def test_the_last_k_saves_are_kept(start: Checkpoint, tmp_path: Path) -> None:
    for step in (1, 2, 3, 5, 8, 13):
        save(tmp_path, start, step, keep=3)
    assert steps(tmp_path) == [13, 8, 5]
    assert names(tmp_path) == {"last", "history", "history/step-00000008", "history/step-00000005"}
    save(tmp_path, start, 14, keep=2)
    assert steps(tmp_path) == [14, 13]
    save(tmp_path, start, 15, keep=1)
    assert names(tmp_path) == {"last"}


def test_a_step_saved_twice_counts_once(start: Checkpoint, tmp_path: Path) -> None:
    for step in (1, 2, 2, 2, 3):
        save(tmp_path, start, step, keep=3)
    assert steps(tmp_path) == [3, 2, 1]


def test_a_damaged_save_takes_no_place_in_the_history(start: Checkpoint, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, start, step, keep=3)
    damage(tmp_path / "last")
    save(tmp_path, start, 4, keep=3)
    assert steps(tmp_path) == [4, 2, 1]


def test_the_history_ahead_of_a_run_that_went_back_is_dropped(start: Checkpoint, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, start, step, keep=4)
    shutil.rmtree(tmp_path / "last")
    shutil.copytree(tmp_path / "history" / "step-00000001", tmp_path / "last")  # as a user would go back
    save(tmp_path, start, 2, keep=4)
    assert steps(tmp_path) == [2, 1]


def test_nothing_is_deleted_before_the_new_one_is_written(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, start, step, keep=2)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(PerfuseError, match="last: No space left on device; what was saved before is kept"):
            save(tmp_path, start, 4, keep=1)
    assert steps(tmp_path) == [3, 2]
    assert names(tmp_path) == {"last", "history", "history/step-00000002"}


def test_a_history_that_cannot_be_written_does_not_stop_a_save(start: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "history").write_text("in the way")
    for step in (1, 2):
        save(tmp_path, start, step, keep=3)
    assert load_checkpoint(tmp_path / "last").state.progress.step == 2
    assert {p.name for p in tmp_path.iterdir()} == {"last", "history"}


def test_a_leftover_of_a_swap_never_displaces_a_whole_one(start: Checkpoint, tmp_path: Path) -> None:
    save(tmp_path, start, 1, keep=1)
    shutil.copytree(tmp_path / "last", previous_of(tmp_path / "last"))  # killed before it was taken away
    save(tmp_path, start, 2, keep=2)
    assert steps(tmp_path) == [2, 1]
    shutil.copytree(tmp_path / "last", previous_of(tmp_path / "last"))
    damage(tmp_path / "last")  # now the leftover is the newest whole one
    assert read_newest(tmp_path).folder == previous_of(tmp_path / "last")
    save(tmp_path, start, 3, keep=3)
    assert steps(tmp_path) == [3, 2, 1]


# -- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["optimizer.safetensors", "state.json"])
def test_a_damaged_last_falls_back_to_the_newest_whole_one(
    what: str, small_table: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any, lines: Any
) -> None:
    import os
    import signal

    c = config("mlp", training={"epochs": 4, "keep_last": 3, **EVERY_STEP})
    train(small_table, c, tmp_path / "straight")
    stop_at(11, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(small_table, c, tmp_path / "run")
    stop_at(None)
    assert steps(tmp_path / "run") == [11, 10, 9]
    if what == "state.json":
        (tmp_path / "run" / "last" / what).write_text("{")
    else:
        damage(tmp_path / "run" / "last", what)
    found = read_newest(tmp_path / "run")
    assert found.state.progress.step == 10
    assert f"{what}" in found.note and "going on from history/step-00000010, step 10" in found.note
    train(small_table, c, tmp_path / "run", resume=True)
    for name in ("best", "last"):
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (tmp_path / "run" / name / file).read_bytes() == (tmp_path / "straight" / name / file).read_bytes()
    assert lines(tmp_path / "run") == lines(tmp_path / "straight")
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [e["level"] for e in events if e["event"] == "fell_back"] == ["warning"]


def test_the_best_serves_where_no_history_is_kept(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Any
) -> None:
    """``best`` is as complete as ``last``: the epochs after it are trained again, to the same bits."""
    c = config("mlp", optimizer={"lr": 0.3}, schedule={"kind": "constant"}, training={"epochs": 12})
    train(small_table, c, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "run")
    best = load_checkpoint(tmp_path / "run" / "best").state.progress.step
    assert best < load_checkpoint(tmp_path / "run" / "last").state.progress.step
    damage(tmp_path / "run" / "last")
    assert f"going on from best, step {best}" in read_newest(tmp_path / "run").note
    train(small_table, c, tmp_path / "run", resume=True)
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "run" / "last" / file).read_bytes() == (tmp_path / "straight" / "last" / file).read_bytes()
    assert lines(tmp_path / "run") == lines(tmp_path / "straight")


def test_a_best_that_is_gone_is_made_anew(small_table: CurveTable, config: MakeConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    c = config("mlp", training={"epochs": 2})
    train(small_table, c, run)
    state = json.loads((run / "last" / "state.json").read_text())
    state["progress"]["stopped"] = ""
    (run / "last" / "state.json").write_text(json.dumps(state))
    damage(run / "best")
    found = read_newest(run)
    assert "best is gone or damaged: the next validation makes a new one" in found.note
    assert found.state.progress.best_val_loss == math.inf
    longer = config("mlp", optimizer={"lr": 0.005}, training={"epochs": 3})
    train(small_table, longer, run, resume=True)
    assert is_whole(run / "best")
    assert load_model(run).folder == run / "best"
    assert load_checkpoint(run / "best").state.progress.step > found.state.progress.step


def test_nothing_whole_left_is_said_of_the_last(start: Checkpoint, tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, start, step, keep=2)
    for folder in (tmp_path / "last", tmp_path / "history" / "step-00000001"):
        damage(folder)
    with pytest.raises(InputError, match=r"last: model.safetensors is damaged"):
        read_newest(tmp_path)


def test_a_last_of_a_newer_version_is_no_damage(start: Checkpoint, tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, start, step, keep=2)
    path = tmp_path / "last" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(InputError, match="newer than this version"):
        read_newest(tmp_path)


# -- when -----------------------------------------------------------------------------------------------------------


class FakeLearner:
    def __init__(self, start: Checkpoint) -> None:
        self.start = start

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return dict(self.start.model), dict(self.start.optimizer)


def test_a_run_whose_folder_is_gone_is_saved_again_and_ends(start: Checkpoint, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keeper = Keeper(run, FakeLearner(start), lambda: start.state, 60.0)  # type: ignore[arg-type]
    run.mkdir()
    keeper.save_last()
    shutil.rmtree(run)
    with pytest.raises(PerfuseError, match=r"run disappeared .* step 1 is saved there again, and --resume continues"):
        keeper.save_last()
    assert is_whole(run / "last")


def test_the_best_and_the_metrics_are_on_the_disk_before_the_last(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    order: list[str] = []
    keeper = Keeper(tmp_path, FakeLearner(start), lambda: start.state, 60.0)  # type: ignore[arg-type]
    keeper.take_best()
    monkeypatch.setattr("perfuse.training.keeper._sync", lambda path: order.append(path.name))
    monkeypatch.setattr("perfuse.training.keeper.save_checkpoint", lambda folder, *rest: order.append(folder.name))
    monkeypatch.setattr("perfuse.training.keeper.save_last", lambda *rest: order.append("last"))
    keeper.save_last()
    assert order == ["best", "metrics.jsonl", "last"]

"""Killed at any moment, between any two system calls: a whole checkpoint is there, and the run goes on from it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfuse.config import RunConfig
from perfuse.data.table import CurveTable
from perfuse.training import checkpoint as module
from perfuse.training.checkpoint import Checkpoint, is_whole, load_checkpoint, previous_of
from perfuse.training.retention import history, read_newest, save_last
from perfuse.training.run import train

REPOSITORY = Path(__file__).resolve().parents[2]
CALLS = ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir")
"""Of ``os``: all that a save does to names, and every moment at which content reaches the disk."""


@pytest.fixture(scope="module")
def start(small_table: CurveTable, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The end of a tiny run, to be saved under other steps."""
    model = {"name": "mlp", "hidden": 4, "layers": 1, "knots": 4}
    training = {"epochs": 1, "tensorboard": False, "device": "cpu"}
    run = tmp_path_factory.mktemp("start") / "run"
    train(small_table, RunConfig.model_validate({"model": model, "training": training}), run)
    return load_checkpoint(run / "last", with_optimizer=True)


class Killed(BaseException):
    """Nothing more happens to the disk."""


class Killer:
    """Lets so many calls through, and none after that: what a kill leaves, cleaning up included."""

    def __init__(self, patch: pytest.MonkeyPatch, after: int) -> None:
        self.left = after
        for name in CALLS:
            patch.setattr(os, name, self.counted(getattr(os, name)))
        write = module._write_durably

        def torn(path: Path, data: bytes) -> None:
            if self.left == 0:
                self.left = -1
                path.write_bytes(data[: len(data) // 2])
                raise Killed
            if self.left < 0:
                raise Killed
            self.left -= 1
            write(path, data)

        patch.setattr(module, "_write_durably", torn)

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self.left <= 0:
                self.left = -1
                raise Killed
            self.left -= 1
            return call(*args, **kwargs)

        return wrapper


def save(run: Path, start: Checkpoint, step: int, keep: int) -> None:
    training = start.state.config.training.model_copy(update={"keep_last": keep})
    config = start.state.config.model_copy(update={"training": training})
    progress = start.state.progress.model_copy(update={"step": step, "best_step": -1, "stopped": ""})
    state = start.state.model_copy(update={"config": config, "progress": progress})
    save_last(run, state, start.model, start.optimizer)


def leave_the_previous(run: Path) -> None:
    """As a kill between the sync and the deletion would."""
    shutil.copytree(run / "last", previous_of(run / "last"))


def leave_the_previous_and_damage_the_last(run: Path) -> None:
    leave_the_previous(run)
    (run / "last" / "model.safetensors").write_bytes(b"")


def leave_only_the_previous(run: Path) -> None:
    """As a kill between the two renames would."""
    (run / "last").rename(previous_of(run / "last"))


@pytest.mark.parametrize(
    ("prepare", "keep"),
    [
        (lambda run: None, 1), (lambda run: None, 2), (leave_the_previous, 1), (leave_the_previous, 2),
        (leave_the_previous_and_damage_the_last, 1), (leave_only_the_previous, 2),
    ],
    ids=["clean", "clean, 2", "previous", "previous, 2", "previous and damaged", "only previous, 2"],
)  # fmt: skip
def test_a_kill_between_any_two_calls_of_a_save_loses_nothing(
    prepare: Callable[[Path], None], keep: int, start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = tmp_path / "ready"
    for step in (1, 2, 3):
        save(ready, start, step, keep)
    prepare(ready)
    for moment in itertools.count():
        run = tmp_path / str(moment)
        shutil.copytree(ready, run)
        with monkeypatch.context() as patch:
            Killer(patch, moment)
            try:
                save(run, start, 4, keep)
                break
            except Killed:
                pass
        found = read_newest(run)
        assert found.state.progress.step in (3, 4), moment
        assert all(is_whole(folder) for _, folder in history(run)), moment
        save(run, start, 5, keep)
        steps = [5] + [step for step, _ in history(run)]
        assert steps in ([5, 4, 3, 2][:keep], [5, 3, 2][:keep]), moment
        assert not [p for p in run.rglob("*") if p.name.startswith(".") or "previous" in p.name], moment
        shutil.rmtree(run)
    assert moment > 12


def test_a_first_save_that_is_killed_leaves_nothing_or_a_whole_one(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in itertools.count():
        run = tmp_path / str(moment)
        run.mkdir()
        with monkeypatch.context() as patch:
            Killer(patch, moment)
            try:
                save(run, start, 1, 2)
                break
            except Killed:
                pass
        assert is_whole(run / "last") or {p.name for p in run.iterdir()} <= {".last.new"}, moment
    assert moment > 5


def kills(tmp_path: Path, *options: str) -> dict[str, Any]:
    report = tmp_path / "kills.json"
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "kills.py"), "--json", str(report), *options]
    path = os.pathsep.join([str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (tally,) = json.loads(report.read_text())
    assert (tally["lost"], tally["differing"], tally["problems"]) == (0, 0, [])
    assert tally["finished"] >= 1
    return dict(tally)


def test_killed_trainings_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    tally = kills(tmp_path, "--what", "train", "--kills", "4", "--epochs", "2")
    assert tally["exit_codes"] == {"-9": 4}


@pytest.mark.slow
@pytest.mark.skipif("PERFUSE_LONG" not in os.environ, reason="takes 10 minutes: set PERFUSE_LONG=1 to run it")
@pytest.mark.parametrize("what", ["train", "terminate", "simulate", "workers"])
def test_fifty_kills(what: str, tmp_path: Path) -> None:
    assert kills(tmp_path, "--what", what, "--kills", "50")["kills"] == 50

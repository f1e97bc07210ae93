"""Two trainings never share a folder, and a lock outlives nobody."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import start_ranks, wait

from perfuse.config import RunConfig
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.training.run import train
from perfuse.training.run_lock import LOCK_FILE, RunLock

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_that_is_trained_in_is_refused(
    resume: bool, small_table: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(small_table, config("mlp", training={"epochs": 1}), run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert run / LOCK_FILE not in before
    held = RunLock(run)
    held.take()
    with pytest.raises(InputError, match="--out is in use by another training that has not ended"):
        train(small_table, config("mlp", training={"epochs": 2}), run, resume=resume)
    held.release()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert train(small_table, config("mlp", training={"epochs": 2}), run, resume=True).ending == "completed"


def test_a_killed_training_leaves_no_lock(
    small_table: CurveTable,
    config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: Callable[..., None],
) -> None:
    def killed(_: int) -> None:
        monkeypatch.delenv("RANK", raising=False)
        stop_at(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
        train(small_table, config("mlp"), tmp_path / "run")

    ranks = wait(start_ranks(1, killed))
    assert [r.code for r in ranks] == [-signal.SIGKILL] and not ranks[0].words.parent.exists()
    assert (tmp_path / "run" / LOCK_FILE).exists()  # the file; its lock has gone
    assert train(small_table, config("mlp"), tmp_path / "run", resume=True).ending == "completed"
    assert not (tmp_path / "run" / LOCK_FILE).exists()

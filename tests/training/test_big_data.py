"""Training on more data than is kept: windows of shards, a URL behind a small cache, data that go bad on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.config import RunConfig
from perfuse.data import loader, order, remote, streamed
from perfuse.data.sources import open_source
from perfuse.data.store import CurveStore, write_dataset
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.training.checkpoint import load_checkpoint
from perfuse.training.interrupt import Interrupted
from perfuse.training.run import train
from perfuse.training.step import Stepper

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def place(small_table: CurveTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 curves in 15 shards, read in windows of two shards, no tensors kept."""
    monkeypatch.setattr(order, "WINDOW_SHARDS", 2)
    monkeypatch.setattr(order, "WINDOW_CURVES", 8)
    monkeypatch.setattr(loader, "CACHE_BYTES", 0)
    monkeypatch.setattr(streamed, "_TRY_AGAIN_AFTER_S", 0.01)
    wide = small_table.take(np.arange(60) % 20)
    names = np.asarray([f"c{i}" for i in range(60)])
    wide = replace(wide, curve_id=names, compound_id=names, group_id=names, dose_mg=wide.dose_mg)
    parts = (wide.take(np.arange(i, i + 4)) for i in range(0, 60, 4))
    return write_dataset(parts, tmp_path / "data", generator={}, seed=0)


@pytest.fixture
def far(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same at a URL, behind a cache with room for six of its shards."""
    monkeypatch.setenv(remote.CACHE_DIR_VARIABLE, str(tmp_path / "cache"))
    manifest = CurveStore.open(place).manifest
    limit = 6 * manifest.shards[0].bytes + remote.index_bytes(manifest) + 1000
    monkeypatch.setenv(remote.CACHE_GB_VARIABLE, f"{limit / 1e9:.9f}")
    return place.as_uri()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "last").model


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_url_behind_a_small_cache_trains_the_same_model(
    place: Path, far: str, config: MakeConfig, tmp_path: Path
) -> None:
    train(open_source(place), config("mlp"), tmp_path / "local")
    train(open_source(far), config("mlp"), tmp_path / "far")
    assert same(weights(tmp_path / "local"), weights(tmp_path / "far"))
    assert len(list((tmp_path / "cache").rglob("shard-*.arrow"))) <= 6


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_run_stopped_in_the_middle_of_a_window_goes_on_exactly(
    place: Path, far: str, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    where = str(place) if kind == "folder" else far
    train(open_source(where), config("mlp"), tmp_path / "whole")
    real, steps = Stepper.__call__, [0]

    def stopping(*arguments: Any, **options: Any) -> Any:
        steps[0] += 1
        if steps[0] == 18:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(Stepper, "__call__", stopping)
    with pytest.raises(Interrupted):
        train(open_source(where), config("mlp"), tmp_path / "run")
    progress = load_checkpoint(tmp_path / "run" / "last").state.progress
    assert progress.epoch == 1
    assert 0 < progress.batch < 12
    train(open_source(where), config("mlp"), tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_shard_that_disappears_in_mid_epoch_costs_no_step(
    place: Path, far: str, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(open_source(far), config("mlp"), tmp_path / "whole")
    real, steps = Stepper.__call__, [0]
    hidden = tmp_path / "hidden"
    hidden.mkdir()

    def hiding(*arguments: Any, **options: Any) -> Any:
        steps[0] += 1
        if steps[0] == 15:
            for shard in place.glob("shard-*.arrow"):
                shard.rename(hidden / shard.name)
        return real(*arguments, **options)

    monkeypatch.setattr(Stepper, "__call__", hiding)
    with pytest.raises(InputError, match=r"shard is missing .got shard-000\d\d\.arrow") as raised:
        train(open_source(far), config("mlp"), tmp_path / "run")
    assert "\n" not in str(raised.value)
    saved = load_checkpoint(tmp_path / "run" / "last").state.progress.step
    assert saved == steps[0] >= 15
    for shard in hidden.iterdir():
        shard.rename(place / shard.name)
    train(open_source(far), config("mlp"), tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_data_that_become_unreadable_in_a_validation_cost_no_step(
    place: Path, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema_decay: float
) -> None:
    """What is saved then are the weights, not their average, which the model carries while it is scored."""
    from perfuse.data.loader import CurveLoader

    real, validations = CurveLoader._batches, [0]

    def damaged(self: CurveLoader, epoch: int, start: int) -> Any:
        validations[0] += not self.shuffle
        if validations[0] == 3 and not self.shuffle:  # the first looks for a value that counts
            raise InputError("shard", "is missing", where="shard-00003.arrow")
        yield from real(self, epoch, start)

    c = config("mlp", training={"ema_decay": ema_decay, "checkpoint_every_minutes": 60.0})
    train(open_source(place), c, tmp_path / "whole")
    monkeypatch.setattr(CurveLoader, "_batches", damaged)
    with pytest.raises(InputError, match="shard is missing"):
        train(open_source(place), c, tmp_path / "run")
    monkeypatch.setattr(CurveLoader, "_batches", real)
    progress = load_checkpoint(tmp_path / "run" / "last").state.progress
    assert (progress.epoch, progress.validated_step) == (1, progress.step // 2)
    train(open_source(place), c, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))

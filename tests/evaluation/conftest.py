"""Small runs, made without the training loop: a fitted model, a split, a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from perfuse.config import LoglinearRatesConfig, MlpConfig, RunConfig, SplitConfig
from perfuse.data.sources import source_hash
from perfuse.data.split import split_curves
from perfuse.data.table import CurveSource, CurveTable, to_batch
from perfuse.evaluation.rates_baseline import fit_rates
from perfuse.models import build_model
from perfuse.pk.physiology import ORGANS
from perfuse.training.checkpoint import save_checkpoint
from perfuse.training.record import (
    UNITS,
    CheckpointState,
    DataRecord,
    PlanRecord,
    PlateauRecord,
    ProgressRecord,
    split_record,
)
from perfuse.training.rng import capture_rng


@pytest.fixture(scope="session")
def t2_table() -> CurveTable:
    """40 curves of task T2 (circulation)."""
    from perfuse.data.simulate import simulate_task

    return simulate_task("T2", 40, seed=0)


def make_run(folder: Path, source: CurveSource, data_path: Path, model: str, test_fraction: float = 0.2) -> Path:
    """A run folder. ``loglinear-rates`` is fitted (all but perfect); ``mlp`` is not trained at all."""
    model_config = LoglinearRatesConfig() if model == "loglinear-rates" else MlpConfig(hidden=8, layers=1, knots=8)
    config = RunConfig(model=model_config, split=SplitConfig(validation_fraction=0.1, test_fraction=test_fraction))
    split = split_curves(source, config.split, config.seed)
    training = source.take(split.train)
    if model == "loglinear-rates":
        fitted = fit_rates(training).model  # type: ignore[union-attr]
    else:
        torch.manual_seed(0)
        fitted = build_model(model_config, source.topology)
        fitted.fit_normalisation(to_batch(training))
    state = CheckpointState(
        run_id="0" * 32, code_version="test", torch_version=torch.__version__, config=config,
        topology=source.topology.name,
        elimination_names=source.topology.elimination_names, organs=ORGANS, units=UNITS,
        data=DataRecord(path=str(data_path), content_hash=source_hash(source), n_curves=len(source)),
        split=split_record(source, split),
        plan=PlanRecord(total_steps=1, warmup_steps=0, cosine_start=0, validate_every_epochs=1),
        progress=ProgressRecord(epoch=1, step=1), plateau=PlateauRecord(best=1.0, bad_validations=0, scale=1.0),
        rng=capture_rng(),
    )  # fmt: skip
    folder.mkdir(parents=True)
    save_checkpoint(folder / "best", state, fitted.state_dict(), {})
    (folder / "config.toml").write_text('seed = 0\n[model]\nname = "' + model + '"\n', encoding="utf-8")
    lines = [
        {"epoch": i, "step": 10 * i, "train_loss": 1 / i, "val_loss": 1.2 / i, "lr": 1e-3 / i, "grad_norm": 0.5 / i,
         "train_curves_per_s": 1000.0, "time_s": 1.0 * i}
        for i in range(1, 21)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def run_maker() -> Callable[..., Path]:
    """``make_run``, for tests that need a run of their own."""
    return make_run


@pytest.fixture(scope="session")
def rates_run(tmp_path_factory: pytest.TempPathFactory, t1_dataset: Path) -> Path:
    """A fitted ``loglinear-rates`` run on the T1 data set (8 test curves)."""
    from perfuse.data.sources import open_source

    return make_run(tmp_path_factory.mktemp("runs") / "rates", open_source(t1_dataset), t1_dataset, "loglinear-rates")


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory: pytest.TempPathFactory, t1_dataset: Path) -> Path:
    """An ``mlp`` that never saw a step, on the same data."""
    from perfuse.data.sources import open_source

    return make_run(tmp_path_factory.mktemp("runs") / "untrained", open_source(t1_dataset), t1_dataset, "mlp")


@pytest.fixture
def rng() -> np.random.Generator:
    """A fixed generator."""
    return np.random.default_rng(0)

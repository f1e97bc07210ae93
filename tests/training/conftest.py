"""Small tables, configurations and broken models for the training tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perfuse.config import RunConfig, parse_config
from perfuse.data.batch import CurveBatch
from perfuse.data.table import CurveTable, to_batch
from perfuse.models.base import CurveModel
from perfuse.pk.topology import Topology

SMALL = {
    "flux": {"hidden": 8, "layers": 1, "dropout": 0.1, "start": "zero"},
    "loglinear-rates": {"start": "zero"},
    "recurrent": {"hidden": 8, "heads": 2, "steps": 2, "knots": 8, "dropout": 0.1},
    "lstm": {"hidden": 8, "knots": 8, "dropout": 0.1},
    "mlp": {"hidden": 8, "layers": 2, "knots": 8, "dropout": 0.1},
}


@pytest.fixture(scope="session")
def small_table(t1_table: CurveTable) -> CurveTable:
    """20 curves at 12 of their times: 16 train, 2 validate, 2 test. Some values are missing, so weights differ."""
    from dataclasses import replace

    table = t1_table.take(np.arange(20))
    times = np.r_[0, 1, 2, 3, 5, 8, 12, 20, 35, 50, 75, 99]
    conc = table.conc_mg_l[:, :, times].copy()
    conc[::3, 4:9] = np.nan
    conc[1::5, :, 6:] = np.nan
    return replace(
        table, time_h=table.time_h[:, times], conc_mg_l=conc, censored=np.zeros(conc.shape, dtype=bool)
    ).validate()


@pytest.fixture
def small_batch(small_table: CurveTable) -> CurveBatch:
    return to_batch(small_table.take(np.arange(6)))


@pytest.fixture
def config() -> Callable[..., RunConfig]:
    """``config("mlp", training={...}, ...)``: a small model and a short run."""

    def make(model: str = "mlp", model_options: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
        training = {"epochs": 3, "batch_size": 4, "device": "cpu", "tensorboard": False}
        options = {"name": model, **SMALL[model], **(model_options or {})}
        return parse_config({**sections, "model": options, "training": training | sections.get("training", {})})

    return make


@pytest.fixture
def metric_of() -> Callable[[Callable[[], dict[str, float]]], Any]:
    """``metric_of(f)``: a validation metric that is what ``f()`` returns."""

    class Metric:
        def __init__(self, finish: Callable[[], dict[str, float]]) -> None:
            self._finish = finish

        def sums(self, loaded: Any, pred_mg_l: Tensor) -> Tensor:
            return torch.ones(1, dtype=torch.float64)

        def finish(self, sums: Tensor) -> dict[str, float]:
            return self._finish()

    return Metric


class Scaled(CurveModel):
    """One trainable scale per organ on a made-up curve: small enough to break on purpose."""

    def __init__(self, topology: Topology) -> None:
        super().__init__(topology)
        self.log_scale = nn.Parameter(torch.zeros(14, 1))

    def _fit(self, batch: CurveBatch) -> None:
        pass

    def _predict(self, batch: CurveBatch) -> Tensor:
        decay = (-0.1 * batch.time_h).exp()[:, None, :]
        return (self.log_scale.exp() * batch.doses.amount_mg[:, :1, None] * decay).float()


class Steep(Scaled):
    """Gradients a hundred times larger, which overflow under a large loss scale."""

    def _predict(self, batch: CurveBatch) -> Tensor:
        return super()._predict(batch) * (99 * self.log_scale).exp()


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.inf


class InfiniteGradient(Scaled):
    """A finite loss whose gradient is not."""

    def _predict(self, batch: CurveBatch) -> Tensor:
        out: Tensor = _InfiniteGradient.apply(super()._predict(batch))
        return out


class NanForDose(Scaled):
    """NaN for curves of one dose."""

    def __init__(self, topology: Topology, dose_mg: float) -> None:
        super().__init__(topology)
        self.dose_mg = dose_mg

    def _predict(self, batch: CurveBatch) -> Tensor:
        out = super()._predict(batch)
        guilty = (batch.doses.amount_mg[:, 0] == self.dose_mg)[:, None, None]
        return torch.where(guilty, torch.nan, out)


@pytest.fixture
def use_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Topology], CurveModel]], list[CurveModel]]:
    """Make ``train`` build this model; returns the list of models that it has built."""

    def use(make: Callable[[Topology], CurveModel]) -> list[CurveModel]:
        built: list[CurveModel] = []

        def build(_: object, topology: Topology) -> CurveModel:
            built.append(make(topology))
            return built[-1]

        monkeypatch.setattr("perfuse.training.shadow.build_model", build)
        return built

    return use


@pytest.fixture
def models() -> dict[str, Any]:
    """The made-up models by name (test modules cannot import a conftest)."""
    return {"scaled": Scaled, "steep": Steep, "infinite_gradient": InfiniteGradient, "nan_for_dose": NanForDose}


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``stop_at(k, action)``: call ``action`` during update k (as a signal would arrive); None undoes it."""
    from perfuse.training.step import Stepper

    before = Stepper.__call__

    def stop(step: int | None, action: Callable[[], None] = lambda: None) -> None:
        def update(self: Stepper, micros: Any) -> Any:
            sums = before(self, micros)
            if self._progress.step + 1 == step:
                action()
            return sums

        monkeypatch.setattr(Stepper, "__call__", update)

    return stop


@pytest.fixture
def lines() -> Callable[[Path], list[dict[str, Any]]]:
    """The lines of a run's ``metrics.jsonl`` without the values that depend on the clock."""
    import json

    ignored = ("time_s", "train_curves_per_s", "run_id")

    def read(run: Path) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in ignored} for row in rows]

    return read

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perfuse.config import LossConfig
from perfuse.data.loader import CurveLoader, LoadedBatch
from perfuse.data.table import CurveTable, to_batch
from perfuse.errors import PerfuseError
from perfuse.models.base import CurveModel
from perfuse.training.loss import CurveLoss
from perfuse.training.validation import Validator

LOSS = CurveLoss(LossConfig())


@pytest.fixture
def validator(small_table: CurveTable) -> Callable[..., Validator]:
    def make(metrics: Any = None, batch_size: int = 2) -> Validator:
        loader = CurveLoader(small_table, np.arange(5), batch_size, 0, shuffle=False)
        return Validator(loader, LOSS, torch.device("cpu"), nullcontext, metrics)

    return make


@pytest.fixture
def scaled(models: dict[str, Any], small_table: CurveTable) -> CurveModel:
    model: CurveModel = models["scaled"](small_table.topology)
    model.fit_normalisation(to_batch(small_table))
    return model


def test_it_is_the_training_loss_of_the_joint_set(
    validator: Callable[..., Validator], scaled: CurveModel, small_table: CurveTable
) -> None:
    batch = to_batch(small_table.take(np.arange(5)))
    with torch.no_grad():
        expected = LOSS(scaled(batch), batch).total / LOSS.weight(batch).total
    for size in (1, 2, 5):
        result = validator(batch_size=size)(scaled)
        assert result is not None
        assert result.loss == pytest.approx(float(expected), rel=1e-5)
    assert result.per_organ.keys() == {"blood", "liver", "kidney", "brain", "heart", "lung", "muscle", "adipose", "gut",
                                       "skin", "bone", "spleen", "pancreas", "other"}  # fmt: skip


def test_modes_are_restored_module_by_module(validator: Callable[..., Validator], scaled: CurveModel) -> None:
    scaled.part = nn.Dropout(0.5)
    scaled.frozen = nn.Dropout(0.5)
    scaled.train()
    scaled.frozen.eval()
    validator()(scaled)
    assert scaled.training
    assert scaled.part.training
    assert not scaled.frozen.training


def test_no_gradient_is_recorded_and_none_is_touched(validator: Callable[..., Validator], scaled: CurveModel) -> None:
    seen = []
    scaled.register_forward_hook(lambda *args: seen.append(args[2].requires_grad))
    scaled.log_scale.grad = torch.full((14, 1), 3.0)  # type: ignore[union-attr]
    validator()(scaled)
    assert seen == [False, False, False]
    assert (scaled.log_scale.grad == 3).all()  # type: ignore[union-attr]


def test_dropout_is_off_and_no_random_number_is_drawn(
    validator: Callable[..., Validator], scaled: CurveModel, small_table: CurveTable
) -> None:
    class WithDropout(type(scaled)):  # type: ignore[misc]
        def _predict(self, batch: Any) -> Tensor:
            return nn.functional.dropout(super()._predict(batch), 0.5, self.training) + 1e-3

    model = WithDropout(small_table.topology)
    model.fit_normalisation(to_batch(small_table))
    before = torch.get_rng_state()
    first, second = validator()(model), validator()(model)
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


def test_a_module_stuck_in_training_mode_is_refused(validator: Callable[..., Validator], scaled: CurveModel) -> None:
    class Stuck(nn.Dropout):
        def train(self, mode: bool = True) -> Stuck:
            return super().train(True)

    scaled.part = Stuck(0.5)
    with pytest.raises(PerfuseError, match="module part is in training mode during validation"):
        validator()(scaled)


def test_a_norm_layer_that_goes_on_learning_is_refused(
    validator: Callable[..., Validator], scaled: CurveModel, small_table: CurveTable
) -> None:
    class Learning(type(scaled)):  # type: ignore[misc]
        def __init__(self, topology: Any) -> None:
            super().__init__(topology)
            self.register_buffer("running_mean", torch.zeros(1))

        def _predict(self, batch: Any) -> Tensor:
            self.running_mean += 1
            return super()._predict(batch)  # type: ignore[no-any-return]

    model = Learning(small_table.topology)
    model.fit_normalisation(to_batch(small_table))
    model.train()
    with pytest.raises(PerfuseError, match="validation changed the buffer running_mean"):
        validator()(model)
    assert model.training


def test_metrics_see_every_curve_once_in_mg_l(validator: Callable[..., Validator], scaled: CurveModel) -> None:
    sizes = []

    class Rows:
        def sums(self, loaded: LoadedBatch, pred_mg_l: Tensor) -> Tensor:
            sizes.append(len(loaded.rows))
            assert pred_mg_l.shape == loaded.batch.conc_mg_l.shape
            return torch.tensor([loaded.rows.sum(), 1.0], dtype=torch.float64)

        def finish(self, sums: Tensor) -> Mapping[str, float]:
            return {"rows": np.float64(sums[0]), "batches": float(sums[1])}

    result = validator(Rows())(scaled)
    assert sizes == [2, 2, 1]
    assert result is not None
    assert result.metrics["rows"] == 10.0
    assert type(result.metrics["rows"]) is float
    assert result.metrics["batches"] == 3.0


def test_a_curve_that_is_not_finite_is_named(
    validator: Callable[..., Validator], models: dict[str, Any], small_table: CurveTable
) -> None:
    model = models["nan_for_dose"](small_table.topology, float(small_table.dose_mg[3, 0]))
    model.fit_normalisation(to_batch(small_table))
    result = validator()(model)
    assert result is not None
    assert math.isnan(result.loss)
    assert result.bad_curves == (str(small_table.curve_id[3]),)


def test_it_can_be_stopped_between_batches(validator: Callable[..., Validator], scaled: CurveModel) -> None:
    scaled.train()
    assert validator()(scaled, lambda: True) is None
    assert scaled.training

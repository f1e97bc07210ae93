"""Validation: eval mode, no gradients, nothing in the model changed by it, and that is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from perfuse.data.loader import CurveLoader, LoadedBatch
from perfuse.errors import PerfuseError
from perfuse.pk.physiology import ORGANS
from perfuse.training.loss import CurveLoss, organ_means

MetricFunction: TypeAlias = Callable[[Sequence[LoadedBatch], Sequence[Tensor]], Mapping[str, float]]
"""Metrics of the whole validation split from its batches and the predictions, mg/L, ``(B, O, T)``, on the CPU."""

Autocast: TypeAlias = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class ValidationResult:
    """One validation.

    Attributes:
        loss: The training loss on the validation split.
        per_organ: Mean unweighted loss of each organ that has values.
        metrics: What the metric function returned.
        bad_curves: Curves whose loss is not finite.
    """

    loss: float
    per_organ: dict[str, float]
    metrics: dict[str, float] = field(default_factory=dict)
    bad_curves: tuple[str, ...] = ()


class Validator:
    """Scores a model on a fixed set of curves.

    Args:
        loader: The validation curves, not shuffled.
        loss: The training loss.
        device: Where the model is.
        autocast: Gives the context in which the model runs.
        metrics: Optional metrics beside the loss.
    """

    def __init__(
        self,
        loader: CurveLoader,
        loss: CurveLoss,
        device: torch.device,
        autocast: Autocast,
        metrics: MetricFunction | None = None,
    ) -> None:
        self._loader = loader
        self._loss = loss
        self._device = device
        self._autocast = autocast
        self._metrics = metrics

    def __call__(self, model: nn.Module, should_stop: Callable[[], bool] = lambda: False) -> ValidationResult | None:
        """Score ``model`` and leave it as it was; None if ``should_stop`` said so between batches.

        Raises:
            PerfuseError: if a module stayed in training mode or a buffer changed.
        """
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            _assert_frozen(model)
            before = {name: buffer.clone() for name, buffer in model.named_buffers()}
            result = self._score(model, should_stop)
            _assert_unchanged(model, before)
        finally:
            for module, training in modes.items():
                module.training = training
        return result

    @torch.no_grad()  # not inference_mode: constants that models cache on first use must stay fit for training
    def _score(self, model: nn.Module, should_stop: Callable[[], bool]) -> ValidationResult | None:
        total, weight = 0.0, 0.0
        organ_total = torch.zeros(len(ORGANS), dtype=torch.float64)
        organ_count = torch.zeros(len(ORGANS), dtype=torch.int64)
        bad: list[str] = []
        batches: list[LoadedBatch] = []
        predictions: list[Tensor] = []
        for loaded in self._loader.epoch(0):
            if should_stop():
                return None
            known = self._loss.weight(loaded.batch)
            batch = loaded.batch.to(self._device)
            with self._autocast():
                pred = model(batch)
            part = self._loss(pred, batch, known.has_censored)
            batch_total = float(part.total)
            if not math.isfinite(batch_total):
                bad += bad_curves(self._loss, pred, loaded)
            total, weight = total + batch_total, weight + known.total
            organ_total += part.organ_total.to("cpu", torch.float64)
            organ_count += known.organ_count
            if self._metrics is not None:
                batches.append(loaded)
                predictions.append(pred.cpu())
        metrics = (
            {k: float(v) for k, v in self._metrics(batches, predictions).items()} if self._metrics is not None else {}
        )
        return ValidationResult(total / weight, organ_means(organ_total, organ_count), metrics, tuple(bad))


def bad_curves(loss: CurveLoss, pred: Tensor, loaded: LoadedBatch) -> list[str]:
    """Names of the curves of a batch whose own loss is not finite."""
    batch = loaded.batch.to(pred.device)
    value = loss.per_curve(pred.detach(), batch)
    return [str(loaded.curve_id[i]) for i in torch.nonzero(~value.isfinite()).flatten().tolist()]


def _assert_frozen(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module.training:
            raise PerfuseError(f"module {name or type(model).__name__} is in training mode during validation")


def _assert_unchanged(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, before[name]):
            raise PerfuseError(f"validation changed the buffer {name}: a layer still learns from what it sees")

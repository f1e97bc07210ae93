"""Validation: eval mode, no gradients, nothing in the model changed by it, and that is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from perfuse.data.loader import CurveLoader, LoadedBatch
from perfuse.errors import PerfuseError
from perfuse.pk.physiology import ORGANS
from perfuse.training.loss import CurveLoss, organ_means
from perfuse.training.world import World


class Metric(Protocol):
    """Metrics of the validation split as sums: they add up over batches and processes, and nothing is kept."""

    def sums(self, loaded: LoadedBatch, pred_mg_l: Tensor) -> Tensor:
        """Of one batch with predictions ``(B, O, T)``, both on the CPU: always equally many numbers, float64."""

    def finish(self, sums: Tensor) -> Mapping[str, float]:
        """The metrics, from the sums over all batches."""


Autocast: TypeAlias = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class ValidationResult:
    """One validation.

    Attributes:
        loss: The training loss on the validation split.
        per_organ: Mean unweighted loss of each organ that has values.
        metrics: What ``Metric.finish`` returned.
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
        metric: Optional metrics beside the loss.
        world: The processes; each scores its share of every batch, and all get the result.
    """

    def __init__(
        self,
        loader: CurveLoader,
        loss: CurveLoss,
        device: torch.device,
        autocast: Autocast,
        metric: Metric | None = None,
        world: World | None = None,
    ) -> None:
        self._loader = loader
        self._loss = loss
        self._device = device
        self._autocast = autocast
        self._metric = metric
        self._world = world or World()

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
        total = torch.zeros(2, dtype=torch.float64)  # loss, weight
        organs = torch.zeros(2, len(ORGANS), dtype=torch.float64)  # loss, count
        sums: Tensor | None = None
        bad: list[str] = []
        for loaded in self._loader.epoch(0):
            if self._world.any(should_stop()):
                return None
            if not len(loaded.rows):
                continue
            known = self._loss.weight(loaded.batch)
            batch = loaded.batch.to(self._device)
            with self._autocast():
                pred = model(batch)
            part = self._loss(pred, batch, known.has_censored)
            batch_total = float(part.total)
            if not math.isfinite(batch_total):
                bad += bad_curves(self._loss, pred, loaded)
            total += torch.tensor([batch_total, known.total], dtype=torch.float64)
            organs += torch.stack((part.organ_total.to("cpu", torch.float64), known.organ_count.to(torch.float64)))
            if self._metric is not None:
                found = self._metric.sums(loaded, pred.cpu())
                sums = found if sums is None else sums + found
        total, organs, metrics, bad = self._joined(total, organs, sums, bad)
        per_organ = organ_means(organs[0], organs[1].to(torch.int64))
        return ValidationResult(float(total[0] / total[1]), per_organ, metrics, tuple(bad))

    def _joined(
        self, total: Tensor, organs: Tensor, sums: Tensor | None, bad: list[str]
    ) -> tuple[Tensor, Tensor, dict[str, float], list[str]]:
        """Everything over all processes."""
        world = self._world
        if not world.is_alone:
            longest = max(int(n) for n in world.gather_bytes(str(0 if sums is None else len(sums)).encode()))
            sums = world.sum(torch.zeros(longest, dtype=torch.float64) if sums is None else sums)
            total, organs = world.sum(total), world.sum(organs)
            bad = [n for names in world.gather_bytes("\n".join(bad).encode()) for n in names.decode().split("\n") if n]
        if self._metric is None or sums is None:
            return total, organs, {}, bad
        return total, organs, {k: float(v) for k, v in self._metric.finish(sums).items()}, bad


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

"""What training minimises: masked, organ-weighted errors as a pair (weighted sum, weight).

The loss of any set of curves is sum / weight, where the sum runs over the values that count and the weight is the
sum of their organ weights. Both parts add up over micro-batches and processes, so dividing each micro-batch's sum
by the joint weight gives the gradient of the joint batch; and the weight depends on masks alone, so it is known
before any prediction is made.

Per value, with r = ln pred - ln true:
    log_mse    r^2
    log_huber  r^2 where |r| <= delta, else delta (2 |r| - delta)    (Huber PJ. Ann Math Stat 1964;35:73-101, times 2)
    mse        (pred - true)^2, (mg/L)^2
    log1p      (ln(1 + pred) - ln(1 + true))^2, concentrations in mg/L
A value known only to be below the LLOQ ("m3") adds -2 s^2 ln Phi((ln LLOQ - ln pred) / s) under the log losses: minus
the log-likelihood of "below LLOQ" (Beal SL. J Pharmacokinet Pharmacodyn 2001;28:481-504), on the scale on which a
Gaussian residual of standard deviation s contributes r^2. Under ``mse`` and ``log1p`` it adds the square of what
the prediction exceeds the LLOQ by, and nothing below. "exclude" drops such values.

Axis legend: B batch, O the 14 reported organs, T times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from perfuse.config import LossConfig
from perfuse.data.batch import CurveBatch
from perfuse.errors import InputError
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS

FLOOR_MG_L = 1e-30
"""Predictions are raised to this before the logarithm; below it they have no gradient."""


@dataclass(frozen=True)
class LossSum:
    """Sums over the values that count; ``total / weight`` is the loss.

    Attributes:
        total: Weighted sum of the values' losses, ``()``, with a gradient.
        organ_total: Unweighted sums per organ, ``(O,)``, detached.
    """

    total: Tensor
    organ_total: Tensor


@dataclass(frozen=True)
class LossWeight:
    """What a batch's mask alone decides, on the host.

    Attributes:
        total: Sum of the organ weights of all values that count.
        organ_count: Number of values that count, ``(O,)`` int64, CPU.
        has_censored: Whether any of them is censored.
    """

    total: float
    organ_count: Tensor
    has_censored: bool


def organ_weights(weight: Mapping[str, float]) -> Tensor:
    """Organ weights ``(O,)``, float64, mean 1; organs not named weigh 1 before the normalisation.

    Raises:
        InputError: for an unknown organ, a negative or non-finite weight, or weights that are all zero.
    """
    values = torch.ones(len(ORGANS), dtype=torch.float64)
    for organ, value in weight.items():
        if organ not in ORGAN_INDEX:
            raise InputError("organ_weight", "names an unknown organ", value=organ, allowed=", ".join(ORGANS))
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"organ_weight.{organ}", value=float(value), allowed=">= 0 and finite")
        values[ORGAN_INDEX[organ]] = value
    if not bool(values.sum() > 0):
        raise InputError("organ_weight", "is zero for every organ", allowed="at least one weight > 0")
    return values / values.mean()


class _LogSquares(torch.autograd.Function):
    """(ln pred - ln true)^2 where a value counts, else 0, with its slope made on the way: one pass instead of ten."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, true: Tensor, counts: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.pred_dtype = pred.dtype
        pred = pred.to(dtype)
        residual = pred.clamp_min(FLOOR_MG_L).log_().sub_(true.to(dtype).clamp_min(FLOOR_MG_L).log_())
        if ctx.needs_input_grad[0]:
            # Where the prediction is below the floor, or none, it has no gradient.
            slope = torch.where(counts & (pred >= FLOOR_MG_L), (2 * residual).div_(pred), 0.0)
            ctx.save_for_backward(slope)
        return torch.where(counts, residual.square_(), 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * grads[0]).to(ctx.pred_dtype), None, None, None


class CurveLoss:
    """The configured loss.

    Args:
        config: Kind, organ weights, treatment of censored values.
        dtype: What errors are computed in: float32 in training; float64 for checks of exactness.

    Raises:
        InputError: as ``organ_weights``.
    """

    def __init__(self, config: LossConfig, dtype: torch.dtype = torch.float32) -> None:
        self.config = config
        self.dtype = dtype
        self._weights = organ_weights(config.organ_weight)
        self._on_device: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def _counts(self, batch: CurveBatch) -> Tensor:
        """``(B, O, T)`` bool: the values that count."""
        return batch.mask & ~batch.censored if self.config.censored == "exclude" else batch.mask

    def weight(self, batch: CurveBatch) -> LossWeight:
        """What the mask decides. Call it while the batch is on the CPU: no device has to be waited for."""
        count = self._counts(batch).sum((0, 2)).cpu()
        censored = self.config.censored == "m3" and bool(batch.censored.any())
        return LossWeight(float(count.to(torch.float64) @ self._weights), count, censored)

    def __call__(self, pred_mg_l: Tensor, batch: CurveBatch, has_censored: bool | None = None) -> LossSum:
        """Sums over a batch, outside autocast.

        Args:
            pred_mg_l: Predictions, mg/L, ``(B, O, T)``.
            batch: The batch with its targets, on the same device.
            has_censored: ``LossWeight.has_censored`` when it is known; else looked up (a device sync).
        """
        if pred_mg_l.shape != batch.conc_mg_l.shape:
            raise InputError(
                "prediction", "has a wrong shape", value=tuple(pred_mg_l.shape), allowed=str(tuple(batch.mask.shape))
            )
        if has_censored is None:
            has_censored = self.config.censored == "m3" and bool(batch.censored.any())
        with torch.autocast(pred_mg_l.device.type, enabled=False):
            value = self._values(pred_mg_l, batch, has_censored)
            organ_total = value.sum((0, 2))
            return LossSum((organ_total * self._weights_for(organ_total)).sum(), organ_total.detach())

    def per_curve(self, pred_mg_l: Tensor, batch: CurveBatch) -> Tensor:
        """Unweighted sum of each curve's losses, ``(B,)``: tells which curve is to blame."""
        return self._values(pred_mg_l, batch, self.weight(batch).has_censored).sum((1, 2))

    def _values(self, pred: Tensor, batch: CurveBatch, has_censored: bool) -> Tensor:
        """Loss of each value, ``(B, O, T)``; 0, with a gradient of 0, where it does not count."""
        counts = self._counts(batch)
        if self.config.kind == "log_mse" and not has_censored:
            return _LogSquares.apply(pred, batch.conc_mg_l, counts, self.dtype)
        # Blank both sides before the arithmetic: a masked infinity would otherwise give a gradient of 0 * inf.
        one = torch.ones((), dtype=self.dtype, device=pred.device)
        pred = torch.where(counts, pred.to(self.dtype), one)
        true = torch.where(counts, batch.conc_mg_l.to(self.dtype), one)
        if self.config.kind in ("log_mse", "log_huber"):
            residual = pred.clamp_min(FLOOR_MG_L).log() - true.clamp_min(FLOOR_MG_L).log()
        elif self.config.kind == "log1p":
            residual = pred.clamp_min(0).log1p() - true.log1p()
        else:
            residual = pred - true
        value = self._huber(residual) if self.config.kind == "log_huber" else residual * residual
        if has_censored:
            value = torch.where(batch.censored & counts, self._below_lloq(residual), value)
        return value

    def _huber(self, residual: Tensor) -> Tensor:
        delta = self.config.huber_delta
        size = residual.abs()
        inside = size.clamp_max(delta)
        return inside * (2 * size - inside)

    def _below_lloq(self, residual: Tensor) -> Tensor:
        """Loss of a censored value whose LLOQ was ``residual`` below the prediction (on the loss's own scale)."""
        if self.config.kind in ("mse", "log1p"):
            return residual.clamp_min(0).square()
        sd = self.config.residual_sd_log
        return -2 * sd * sd * torch.special.log_ndtr(-residual / sd)

    def _weights_for(self, like: Tensor) -> Tensor:
        key = (like.device, like.dtype)
        if key not in self._on_device:
            self._on_device[key] = self._weights.to(like.device, like.dtype)
        return self._on_device[key]


def organ_means(organ_total: Tensor, organ_count: Tensor) -> dict[str, float]:
    """Mean loss of each organ that has values, by name; a diagnostic."""
    pairs = zip(ORGANS, organ_total.tolist(), organ_count.tolist(), strict=True)
    return {organ: total / count for organ, total, count in pairs if count}

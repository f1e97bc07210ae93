"""What the processes of a run exchange in one step: gradients, the loss and its weight, and a few words besides.

The loss of a step is the sum over the values of all processes, divided by the number of values of all processes (each
with its organ's weight). So process r, which has differentiated its own mean, contributes w_r times its gradient, and
the sum is divided by the sum of the w_r: what one process would find for the joint batch, to rounding. Sums are made
in float64. A process without a curve, or without a gradient for some parameter, contributes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perfuse.training.clock import Clock
from perfuse.training.world import World

_LOSS, _WEIGHT, _CURVES, _INTERRUPTED, _SAVE_DUE, _NOW = range(6)


@dataclass(frozen=True)
class StepSums:
    """One step over all processes.

    Attributes:
        loss: Weighted sum of the values' losses, ``()``, float64.
        weight: Sum of their weights.
        curves: How many there were.
        is_interrupted: Whether any process has been asked to stop.
        is_save_due: Whether the first process finds it time to save.
    """

    loss: Tensor
    weight: float
    curves: int
    is_interrupted: bool
    is_save_due: bool


class Exchange:
    """Adds up a step over processes.

    Args:
        world: The processes.
        clock: Is set to the first process's time with every step.
        parameters: Those that are trained, in the same order everywhere.
    """

    def __init__(self, world: World, clock: Clock, parameters: Sequence[nn.Parameter]) -> None:
        self._world, self._clock = world, clock
        self._parameters = list(parameters)

    def __call__(self, mine: StepSums) -> StepSums:
        """Replace every gradient by that of the joint batch, and return the joint sums.

        Raises:
            LostProcess: if a process has ended or does not answer; gradients are not to be used then.
        """
        if self._world.is_alone:
            return mine
        told = torch.zeros(6 + len(self._parameters), dtype=torch.float64)
        told[_LOSS], told[_WEIGHT], told[_CURVES] = mine.loss.detach().to("cpu"), mine.weight, mine.curves
        told[_INTERRUPTED] = mine.is_interrupted
        if self._world.is_main:
            told[_SAVE_DUE], told[_NOW] = mine.is_save_due, time.monotonic()
        told[6:] = torch.tensor([p.grad is not None for p in self._parameters])
        flat = self._flat(mine.weight)
        if flat.device.type == "cpu":  # one message in place of two
            both = self._world.sum(torch.cat((told, flat)))
            told, flat = both[: len(told)], both[len(told) :]
        else:
            self._world.sum(told)  # first what is on the host: it notices an ended process at once
            self._world.sum_gradients(flat)
        weight, curves, interrupted, save_due, now = told[1:6].tolist()
        self._give_back(flat / (weight or 1.0), told[6:].tolist())
        self._clock.set(now)
        return StepSums(told[_LOSS].to(mine.loss.device), weight, round(curves), interrupted > 0, save_due > 0)

    def _flat(self, weight: float) -> Tensor:
        """All gradients times the weight of this process's values, one after the other; 0 where there is none."""
        grads = (torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters)
        return torch.cat([g.reshape(-1).to(torch.float64) for g in grads]) * (weight or 1.0)

    def _give_back(self, flat: Tensor, present: list[float]) -> None:
        parts = flat.split([p.numel() for p in self._parameters])
        for parameter, part, n in zip(self._parameters, parts, present, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if n else None

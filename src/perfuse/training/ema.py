"""Exponential moving average of weights (Polyak BT, Juditsky AB. SIAM J Control Optim 1992;30:838-855)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def ema_decay_at(updates: int, decay: float) -> float:
    """Decay of update number ``updates`` (from 1): min(decay, (1 + n) / (10 + n)).

    The ramp lets the average forget the random start long before 1 / (1 - decay) updates have passed.
    """
    return min(decay, (1 + updates) / (10 + updates))


class Ema:
    """The average of a model's trainable parameters; buffers are not averaged.

    Args:
        model: Its parameters now are where the average starts.
        decay: Weight of the past, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._average = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def restart(self) -> None:
        """Start again from the parameters as they are now."""
        self.updates = 0
        self._average = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters; call after every optimiser step."""
        self.updates += 1
        weight = 1 - ema_decay_at(self.updates, self.decay)
        torch._foreach_lerp_(self._average, [p.detach() for p in self._parameters], weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model carries the averaged weights; afterwards its own again, whatever happens."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for i, parameter in enumerate(self._parameters):
            parameter.data, self._average[i] = self._average[i], parameter.data

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights by parameter name."""
        return dict(zip(self._names, self._average, strict=True))

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Continue from a saved average."""
        self.updates = updates
        for name, average in zip(self._names, self._average, strict=True):
            average.copy_(tensors[name])

"""Learning rates: functions of the step alone, and the plateau rule that looks at validation losses.

Steps count from 0. During warm-up, step i uses (i + 1) / warmup_steps of the base rate, so the last warm-up step
uses all of it. The cosine runs from the first step after warm-up to ``final_fraction`` at the last step
(Loshchilov I, Hutter F. ICLR 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perfuse.config import ScheduleConfig
from perfuse.errors import InputError

_PLATEAU_THRESHOLD = 1e-4
"""A loss is better when it is this fraction below the best one (PyTorch's default)."""


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Fraction of the base rate at ``step``: rises linearly to 1 at step ``warmup_steps - 1``."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def cosine_factor(step: int, start: int, total_steps: int, final_fraction: float) -> float:
    """1 at ``start`` and before, ``final_fraction`` at step ``total_steps - 1`` and after."""
    span = total_steps - 1 - start
    if span <= 0:
        return final_fraction if step > start else 1.0
    progress = min(1.0, max(0.0, (step - start) / span))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass
class Plateau:
    """Multiplies the rate by ``factor`` after more than ``patience`` validations without a better loss.

    The same rule as ``torch.optim.lr_scheduler.ReduceLROnPlateau`` (relative threshold 1e-4, no cooldown), kept as
    three numbers so that warm-up composes with it and a checkpoint holds it in plain JSON.
    """

    factor: float
    patience: int
    best: float = math.inf
    bad_validations: int = 0
    scale: float = 1.0

    def update(self, val_loss: float) -> None:
        """Take note of one validation loss; NaN counts as not better."""
        if val_loss < self.best * (1 - _PLATEAU_THRESHOLD):
            self.best, self.bad_validations = val_loss, 0
        else:
            self.bad_validations += 1
        if self.bad_validations > self.patience:
            self.scale, self.bad_validations = self.scale * self.factor, 0


class Schedule:
    """The configured learning rate.

    Args:
        config: Kind and numbers.
        base_lr: Learning rate that the factors multiply.
        warmup_steps: Warm-up length in force (see ``effective_warmup``).
        cosine_start: First step at which the cosine may fall (never inside the warm-up).
        total_steps: Length of the run; None while a wall-clock budget has not fixed it yet.
    """

    def __init__(
        self,
        config: ScheduleConfig,
        base_lr: float,
        warmup_steps: int,
        cosine_start: int = 0,
        total_steps: int | None = None,
    ) -> None:
        self.config = config
        self.base_lr = base_lr
        self.warmup_steps = warmup_steps
        self.set_length(total_steps, cosine_start)
        self.plateau = Plateau(config.factor, config.patience)

    def set_length(self, total_steps: int | None, cosine_start: int) -> None:
        """Fix the length of the run, and where the cosine begins."""
        self.total_steps = total_steps
        self.cosine_start = max(cosine_start, self.warmup_steps - 1, 0)

    def lr(self, step: int) -> float:
        """Learning rate of update number ``step`` (counted from 0)."""
        lr = self.base_lr * warmup_factor(step, self.warmup_steps)
        if self.config.kind == "cosine":
            if self.total_steps is not None:
                lr *= cosine_factor(step, self.cosine_start, self.total_steps, self.config.final_fraction)
        elif self.config.kind == "plateau":
            reduced = self.base_lr * self.plateau.scale
            # min_lr bounds what the plateau rule takes away, not the warm-up.
            lr *= max(reduced, min(self.config.min_lr, self.base_lr)) / self.base_lr
        return lr

    def after_validation(self, val_loss: float) -> None:
        """Tell the plateau rule (other kinds ignore it)."""
        if self.config.kind == "plateau":
            self.plateau.update(val_loss)


def effective_warmup(config: ScheduleConfig, total_steps: int | None) -> int:
    """Warm-up steps in force: those configured, or for a short run with the default, at most a fifth of it.

    Raises:
        InputError: when warm-up steps that were asked for would fill the whole run.
    """
    default = ScheduleConfig.model_fields["warmup_steps"].default
    warmup: int = config.warmup_steps
    if total_steps is None or warmup == 0:
        return warmup
    if warmup == default:
        return min(warmup, total_steps // 5)
    if warmup >= total_steps:
        raise InputError(
            "schedule.warmup_steps", "leaves no step after the warm-up", value=warmup,
            allowed=f"< {total_steps} (the run's optimiser steps)", hint="shorten the warm-up or train for more epochs",
        )  # fmt: skip
    return warmup

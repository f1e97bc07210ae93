"""When and what a run saves: ``last`` to go on from, ``best`` to use.

A better model is copied in memory at once and written at most every few seconds, since tiny runs improve many
times a second. ``last`` is never written before the ``best`` and the lines of ``metrics.jsonl`` it speaks of are on
the disk, so a crash leaves what belongs together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from perfuse.errors import InputError, PerfuseError
from perfuse.models.base import CurveModel
from perfuse.training.checkpoint import Checkpoint, save_checkpoint
from perfuse.training.ema import Ema
from perfuse.training.load import check_featuriser, load_weights
from perfuse.training.logs import METRICS_FILE
from perfuse.training.optimizer import load_optimizer_tensors, optimizer_tensors
from perfuse.training.record import CheckpointState
from perfuse.training.retention import BEST, save_last

SAVE_INTERVAL_S = 10.0
"""At most this much of a run's time passes between saves at the ends of its epochs."""
_RAW = "/raw"


@dataclass(frozen=True)
class Learner:
    """What has tensors that change: the model, its optimiser and the average of its weights."""

    model: CurveModel
    optimizer: torch.optim.Optimizer
    ema: Ema | None

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Contents of ``model.safetensors`` and ``optimizer.safetensors`` (not copied)."""
        model = {name: t.detach() for name, t in self.model.state_dict().items()}
        optimizer = optimizer_tensors(self.model, self.optimizer)
        if self.ema is not None:
            average = self.ema.tensors()
            optimizer |= {name + _RAW: model[name] for name in average}
            model |= average
        return model, optimizer

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            InputError: if its tensors do not belong to this model.
        """
        where = str(checkpoint.folder)
        load_weights(self.model, checkpoint.model, where)
        check_featuriser(checkpoint.state.featuriser, self.model, where)
        raw = {k.removesuffix(_RAW): t for k, t in checkpoint.optimizer.items() if k.endswith(_RAW)}
        moments = {k: t for k, t in checkpoint.optimizer.items() if not k.endswith(_RAW)}
        if self.ema is not None:
            missing = sorted(set(self.ema.tensors()) - set(raw))
            if missing or checkpoint.state.ema_updates is None:
                raise InputError("checkpoint", "lacks the raw weights beside the average", where=where)
            self.ema.load(checkpoint.model, checkpoint.state.ema_updates)
            load_weights(self.model, checkpoint.model | {k: raw[k] for k in self.ema.tensors()}, where)
        load_optimizer_tensors(self.model, self.optimizer, moments)


class Keeper:
    """Saves a run.

    Args:
        run: Folder of the run.
        learner: Whose tensors are saved.
        state_of: Gives the rest of the checkpoint, as of now.
        every_s: ``last`` is saved mid-epoch this often.
    """

    def __init__(self, run: Path, learner: Learner, state_of: Callable[[], CheckpointState], every_s: float) -> None:
        self._run = run
        self._learner = learner
        self._state_of = state_of
        self._every_s = every_s
        self._saved = time.monotonic()
        self._best: tuple[CheckpointState, dict[str, Tensor], dict[str, Tensor]] | None = None

    def take_best(self) -> None:
        """Copy the model, which has just been found to be the best."""
        model, optimizer = self._learner.tensors()
        copies = ({k: t.clone() for k, t in tensors.items()} for tensors in (model, optimizer))
        self._best = (self._state_of(), next(copies), next(copies))

    def save_best(self) -> None:
        """Write the best model if it is not on the disk yet."""
        if self._best is not None:
            save_checkpoint(self._run / BEST, *self._best)
            self._best = None

    def save_last(self) -> None:
        """Write ``best`` if need be, then ``last``.

        Raises:
            PerfuseError: when the disk refuses; or when the run's folder has been deleted or moved. What has been
                learnt is saved in a new one then.
        """
        is_gone = not self._run.is_dir()
        self.save_best()
        with suppress(OSError):  # a log on a dying disk is no reason to lose the checkpoint too
            _sync(self._run / METRICS_FILE)
        state = self._state_of()
        save_last(self._run, state, *self._learner.tensors())
        self._saved = time.monotonic()
        if is_gone:
            raise PerfuseError(
                f"the folder {self._run} disappeared while the run was writing to it; "
                f"step {state.progress.step} is saved there again, and --resume continues from it"
            )

    def is_due(self, end_of_epoch: bool) -> bool:
        """Whether it is time to save; mid-epoch that is seldom."""
        interval = min(SAVE_INTERVAL_S, self._every_s) if end_of_epoch else self._every_s
        return time.monotonic() - self._saved >= interval


def _sync(path: Path) -> None:
    """Have a file's content on the disk, whoever wrote it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

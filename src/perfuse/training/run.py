"""``train``: split -> model -> normalisation from the training split only -> loop, in a folder of its own.

A run's folder holds ``best/``, ``last/``, ``config.toml``, ``metrics.jsonl``, ``tensorboard/`` and
``training_distance.safetensors``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perfuse.config import RunConfig, resolve
from perfuse.data.sources import source_hash
from perfuse.data.split import check_leakage, split_curves
from perfuse.data.table import CurveSource, to_batch
from perfuse.errors import InputError, PerfuseError
from perfuse.files import write_atomic
from perfuse.models import build_model
from perfuse.models.base import check_source_modelled
from perfuse.models.flux import LoglinearRates
from perfuse.training.budget import Budget
from perfuse.training.checkpoint import Checkpoint, find_checkpoint
from perfuse.training.config_file import CONFIG_FILE, config_toml
from perfuse.training.distance import fit_distance
from perfuse.training.distance_file import DISTANCE_FILE, save_distance, training_key
from perfuse.training.ema import Ema
from perfuse.training.gauss_newton import fits_exponents, start_exponents
from perfuse.training.interrupt import Interrupted, Interruption
from perfuse.training.keeper import Keeper, Learner
from perfuse.training.logs import RunLogs
from perfuse.training.loop import Parts, Trainer
from perfuse.training.loss import CurveLoss
from perfuse.training.memory import keep_freed_memory
from perfuse.training.optimizer import make_optimizer
from perfuse.training.precision import LossScaler, make_fabric
from perfuse.training.preparation import first_plan, loaders, normalisation_rows, run_template
from perfuse.training.progress import ProgressDisplay
from perfuse.training.record import (
    DataRecord,
    ProgressRecord,
)
from perfuse.training.resume import continued_plan, read_last, refuse_changes
from perfuse.training.rng import deterministic, restore_rng, seed_generators
from perfuse.training.schedule import Schedule
from perfuse.training.validation import MetricFunction

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run: Its folder.
        ending: ``completed``, ``early`` (early stopping) or ``deadline`` (the wall-clock budget ran out first).
        epochs: Whole passes over the training split.
        steps: Optimiser steps.
        best_val_loss, best_epoch, best_step: The best validation (epochs count from 1).
        validation: Metrics of the last validation.
        seconds: Wall-clock time of all sessions.
        n_train, n_validation, n_test, n_calibration: Curves in each part.
    """

    run: Path
    ending: str
    epochs: int
    steps: int
    best_val_loss: float
    best_epoch: int
    best_step: int
    validation: dict[str, float]
    seconds: float
    n_train: int
    n_validation: int
    n_test: int
    n_calibration: int = 0


def train(
    source: CurveSource,
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    validate: MetricFunction | None = None,
    console: Console | None = None,
    data_path: str = "",
) -> TrainResult:
    """Train a model and leave a run folder.

    Args:
        source: The curves; split here.
        config: The run's configuration; defaults that depend on the model are filled in.
        out: Folder of the run; must hold no run unless ``resume``.
        resume: Continue from ``out/last``. On a CPU the result equals an uninterrupted run's bit for bit
            (same machine type, threads and versions).
        validate: Optional metrics of the validation split, logged beside the losses.
        console: Where to show progress; None is silent.
        data_path: What the data was called, for the record.

    Raises:
        InputError: for data, options or folders that cannot be used; nothing has been written then.
        Interrupted: after Ctrl-C or SIGTERM, with everything saved.
        PerfuseError: when training cannot go on.
    """
    started = time.monotonic()
    keep_freed_memory()
    out = Path(out)
    checkpoint = read_last(out) if resume else None
    if checkpoint is None:
        _refuse_existing_run(out)
    session = _Session(source, config, out, checkpoint, validate, data_path, started)
    return session.run(console)


class _Session:
    """One call of ``train``: everything is made and checked here before anything is written."""

    def __init__(
        self, source: CurveSource, config: RunConfig, out: Path, checkpoint: Checkpoint | None,
        validate: MetricFunction | None, data_path: str, started: float,
    ) -> None:  # fmt: skip
        self.source = source
        self.split = split_curves(source, config.split, config.seed)
        self.config = config = resolve(config, len(self.split.train))
        self.out = out
        self.checkpoint = checkpoint
        loss = CurveLoss(config.loss)
        self.fabric = make_fabric(config.training)
        check_leakage(source, self.split)
        data = DataRecord(path=data_path, content_hash=source_hash(source), n_curves=len(source))
        saved = checkpoint.state if checkpoint is not None else None
        if saved is not None:
            refuse_changes(saved, config, data, source.topology.name)
        loader, validator = loaders(
            source, self.split, config, loss, self.fabric.device, self.fabric.autocast, validate
        )
        seed_generators(config.seed)
        model = build_model(config.model, source.topology)
        check_source_modelled(source, config.model.name, type(model))
        if checkpoint is None:
            model.fit_normalisation(to_batch(source.take(normalisation_rows(self.split.train, config.seed))))
        model.to(self.fabric.device)
        if isinstance(model, LoglinearRates):
            model.gauss_newton = fits_exponents(config, model)
        ema = Ema(model, config.training.ema_decay) if config.training.ema_decay > 0 else None
        learner = Learner(model, make_optimizer(model, config.optimizer), ema)
        steps_per_epoch = math.ceil(len(loader) / config.training.accumulate)
        self.plan = (
            first_plan(config, steps_per_epoch) if saved is None else continued_plan(saved, config, steps_per_epoch)
        )
        assert config.optimizer.lr is not None
        schedule = Schedule(
            config.schedule, config.optimizer.lr, self.plan.warmup_steps, self.plan.cosine_start, self.plan.total_steps
        )
        scaler = LossScaler(self.fabric.device.type, enabled=config.training.precision == "16")
        self.parts = Parts(learner, loss, schedule, scaler, loader, validator, self.fabric.device, self.fabric.autocast)
        self.progress = ProgressRecord() if saved is None else saved.progress.model_copy(deep=True)
        limit = config.training.max_minutes
        self.budget = Budget(None if limit is None else 60 * limit, self.progress.elapsed_s, started)
        if checkpoint is not None:
            self._restore(checkpoint)
        self.template = run_template(source, config, data, self.split, self.plan, saved)
        if saved is not None and saved.split != self.template.split:
            raise InputError("--resume: split", "comes out differently now", hint="the run is of another version")

    def _restore(self, checkpoint: Checkpoint) -> None:
        parts, saved = self.parts, checkpoint.state
        parts.learner.load(checkpoint)
        plateau = parts.schedule.plateau
        plateau.best, plateau.bad_validations = saved.plateau.best, saved.plateau.bad_validations
        plateau.scale = saved.plateau.scale
        parts.scaler.load(saved.scaler)
        restore_rng(saved.rng)

    def run(self, console: Console | None) -> TrainResult:
        """Write the folder, train, close everything."""
        if self.progress.stopped and self._has_nothing_to_do():
            if console is not None:
                console.print(
                    f"{self.out}: nothing left to do after {self.progress.step} steps; allow more epochs or minutes",
                    highlight=False, markup=False,
                )  # fmt: skip
            return self._result(self.progress.stopped)
        self.progress.stopped = ""
        with _writable(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomic(self.out / CONFIG_FILE, config_toml(self.config).encode())
            resume_after = None if self.checkpoint is None else self.progress.validated_step
            logs = RunLogs(self.out, self.config.training.tensorboard, resume_after)
        display = ProgressDisplay(console)
        try:
            with Interruption(display.note) as interruption, deterministic(self.parts.device):
                trainer = Trainer(
                    self.parts, self.config, self.template, self.plan, self.progress, self.budget, logs, display,
                    interruption,
                )  # fmt: skip
                every_s = 60 * self.config.training.checkpoint_every_minutes
                keeper = Keeper(self.out, self.parts.learner, trainer.state, every_s)
                if self.checkpoint is None:
                    self._start_exponents(interruption, display)
                    keeper.save_last()  # from here on the run can be resumed
                if self._starts_fitted and self.progress.step == 0 and self.progress.validated_step < 0:
                    trainer.validate_start(keeper)
                    keeper.save_last()
                ending = trainer.run(keeper)
                self._keep_distance()
                return self._result(ending, trainer.validation)
        finally:
            display.close()
            logs.close()

    @property
    def _starts_fitted(self) -> bool:
        """Whether the model's exponents are fitted before the first step, so that its start is worth a validation."""
        model = self.parts.learner.model
        return isinstance(model, LoglinearRates) and model.gauss_newton

    def _start_exponents(self, interruption: Interruption, display: ProgressDisplay) -> None:
        """What a fresh ``flux`` or ``loglinear-rates`` does before its first step.

        Raises:
            Interrupted: after a signal. Nothing is saved then, and the same command may be given again.
        """
        learner, left_s = self.parts.learner, self.budget.left_s()
        if not self._starts_fitted:
            return
        assert isinstance(learner.model, LoglinearRates)
        report = start_exponents(
            learner.model, self.source, self.split.train, self.config, self.parts.device,
            left_s if math.isfinite(left_s) else None, lambda: interruption.received is not None,
        )  # fmt: skip
        if interruption.received is not None:
            raise Interrupted(interruption.received, "the run had not begun: nothing is saved, start it again")
        if learner.ema is not None:
            learner.ema.restart()
        display.note(report.line())

    def _keep_distance(self) -> None:
        """What a prediction's distance to the training drugs is measured from, once a run."""
        if self.checkpoint is not None and (self.out / DISTANCE_FILE).is_file():
            return
        distance = fit_distance(self.source, self.split.train, self.config.seed)
        if distance is not None:
            save_distance(self.out, distance, training_key(self.template))

    def _has_nothing_to_do(self) -> bool:
        """Whether a finished run is asked to go on with no more epochs, time or patience than it had."""
        progress, training = self.progress, self.config.training
        if progress.stopped == "early":
            patience = training.early_stopping_patience
            return 0 < patience <= progress.epoch - 1 - max(progress.best_epoch, 0)
        if progress.stopped == "deadline":
            return self.budget.is_over(self.plan)
        return self.plan.total_steps is not None and progress.step >= self.plan.total_steps

    def _result(self, ending: str, validation: dict[str, float] | None = None) -> TrainResult:
        progress = self.progress
        return TrainResult(
            run=self.out, ending=ending, epochs=progress.epoch, steps=progress.step,
            best_val_loss=progress.best_val_loss, best_epoch=progress.best_epoch + 1, best_step=progress.best_step,
            validation=dict(self.template.validation if validation is None else validation),
            seconds=progress.elapsed_s, n_train=len(self.split.train), n_validation=len(self.split.validation),
            n_test=len(self.split.test), n_calibration=len(self.split.calibration),
        )  # fmt: skip


def _refuse_existing_run(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("--out", "is not a folder", value=str(out))
    # Without a checkpoint there is nothing to lose: a start that a full disk cut short may be tried again.
    for name in ("last", "best"):
        if (out / name).exists() or find_checkpoint(out / name) is not None:
            raise InputError(
                "--out", "already holds a run", value=str(out), hint="use --resume to continue it, or another folder"
            )


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PerfuseError(f"cannot write the run {out}: {error.strerror or error}") from None

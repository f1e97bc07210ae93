"""One session of a run: everything is made and checked before anything is written, then it trains.

Every process of the run goes through the same, in the same order; the first one alone writes and speaks.
"""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch

import perfuse
from perfuse.config import RunConfig, resolve
from perfuse.data.sources import source_hash
from perfuse.data.split import split_curves
from perfuse.data.table import CurveSource, to_batch
from perfuse.errors import InputError, PerfuseError
from perfuse.files import making_parents, write_atomic
from perfuse.models.base import check_source_modelled
from perfuse.models.flux import LoglinearRates
from perfuse.training.budget import Budget
from perfuse.training.checkpoint import Checkpoint
from perfuse.training.clock import Clock
from perfuse.training.config_file import CONFIG_FILE, config_toml
from perfuse.training.distance import fit_distance
from perfuse.training.distance_file import DISTANCE_FILE, save_distance, training_key
from perfuse.training.ema import Ema
from perfuse.training.gauss_newton import FitReport, fits_exponents, start_exponents
from perfuse.training.interrupt import Interrupted, Interruption, LeftOff
from perfuse.training.keeper import Keeper, Learner
from perfuse.training.load import built
from perfuse.training.logs import NoLogs, RunLogs
from perfuse.training.loop import Trainer
from perfuse.training.loss import CurveLoss
from perfuse.training.optimizer import make_optimizer
from perfuse.training.precision import LossScaler
from perfuse.training.preparation import first_plan, loaders, normalisation_rows, run_template
from perfuse.training.processes import Place
from perfuse.training.progress import ProgressDisplay
from perfuse.training.provenance import begin_session
from perfuse.training.record import (
    DataRecord,
    ProgressRecord,
)
from perfuse.training.resume import continued_plan, refuse_changes
from perfuse.training.rng import deterministic, restore_rng, seed_generators
from perfuse.training.run_lock import RunLock
from perfuse.training.schedule import Schedule
from perfuse.training.step import Parts
from perfuse.training.validation import Metric
from perfuse.training.world import LostProcess

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
    is_main: bool = True
    """Whether this process is the one of the run that writes and speaks."""


class Session:
    """One call of ``train``: everything is made and checked here before anything is written."""

    def __init__(
        self, source: CurveSource, config: RunConfig, out: Path, checkpoint: Checkpoint | None,
        validate: Metric | None, data_path: str, started: float, place: Place, lock: RunLock,
    ) -> None:  # fmt: skip
        self.source = source
        self.log_stream: TextIO | None = None
        self.lock = lock
        self.split = split_curves(source, config.split, config.seed)
        self.config = config = resolve(config, len(self.split.train))
        self.out = out
        self.checkpoint = checkpoint
        self.world, device = place.world, place.device
        loss = CurveLoss(config.loss, torch.float64 if config.training.precision == "64" else torch.float32)
        data = DataRecord(path=data_path, content_hash=source_hash(source), n_curves=len(source))
        saved = checkpoint.state if checkpoint is not None else None
        if saved is not None:
            refuse_changes(saved, config, data, source.topology.name)
        self._refuse_different_processes(data)
        loader, validator = loaders(source, self.split, config, loss, place, validate)
        seed_generators(config.seed)
        model = built(config, source.topology)
        check_source_modelled(source, config.model.name, type(model))
        if checkpoint is None:
            model.fit_normalisation(to_batch(source.take(normalisation_rows(self.split.train, config.seed))))
        model.to(device)
        self.world.agree_tensors(model.state_dict().values())  # machines of different types round differently
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
        scaler = LossScaler(device.type, enabled=config.training.precision == "16")
        clock = Clock(self.world)
        self.parts = Parts(
            learner, loss, schedule, scaler, loader, validator, device, place.autocast, self.world, clock
        )  # fmt: skip
        self.progress = ProgressRecord() if saved is None else saved.progress.model_copy(deep=True)
        limit = config.training.max_minutes
        (already_s,) = self.world.agree([time.monotonic() - started])
        self.budget = Budget(None if limit is None else 60 * limit, self.progress.elapsed_s + already_s, clock)
        if checkpoint is not None:
            self._restore(checkpoint)
        self.template = run_template(source, config, data, self.split, self.plan, saved, self.world, model.featuriser())
        if saved is not None and saved.split != self.template.split:
            raise InputError("--resume: split", "comes out differently now", hint="the run is of another version")

    def _refuse_different_processes(self, data: DataRecord) -> None:
        """Every machine may have its own copy of data, configuration and program: they must agree.

        Raises:
            InputError: if they do not.
        """
        rows = [part.tobytes() for part in self.split.parts().values()]
        state = None if self.checkpoint is None else self.checkpoint.state
        saved = b"" if state is None else repr((sorted(state.files.items()), state.progress)).encode()
        said = [perfuse.__version__, data.content_hash, self.config.model_dump_json()]
        mine = [saved, *(text.encode() for text in said), *rows]
        if self.world.differs(b"".join(hashlib.sha256(part).digest() for part in mine)):
            raise InputError(
                "processes of the run", "have different data, configurations, checkpoints or versions of Perfuse",
                hint="give all of them the same; with --resume all must see the run's folder",
            )  # fmt: skip

    def _restore(self, checkpoint: Checkpoint) -> None:
        parts, saved = self.parts, checkpoint.state
        parts.learner.load(checkpoint)
        plateau = parts.schedule.plateau
        plateau.best, plateau.bad_validations = saved.plateau.best, saved.plateau.bad_validations
        plateau.scale = saved.plateau.scale
        parts.scaler.load(saved.scaler)
        restore_rng(saved.rng)

    def run(self, console: Console | None, on_validation: Callable[[Mapping[str, object]], None] | None) -> TrainResult:
        """Write the folder, train, close everything."""
        if self.progress.stopped and self._has_nothing_to_do():
            if console is not None:
                console.print(
                    f"{self.out}: nothing left to do after {self.progress.step} steps; allow more epochs or minutes",
                    highlight=False, markup=False,
                )  # fmt: skip
            return self._result(self.progress.stopped)
        self.progress.stopped = ""
        logs = self.world.on_main(self._open_folder) or NoLogs()
        display = ProgressDisplay(console)
        try:
            with Interruption(display.note) as interruption, deterministic(self.parts.device):
                trainer = Trainer(
                    self.parts, self.config, self.template, self.plan, self.progress, self.budget, logs, display,
                    interruption, on_validation,
                )  # fmt: skip
                return self._train(trainer, interruption, display, logs)
        except Exception as error:
            if isinstance(error, LeftOff):
                logs.event("interrupted", reason=str(error), step=self.progress.step)
            elif not isinstance(error, Interrupted | LostProcess):  # those have a line of their own
                logs.event("failed", error=f"{type(error).__name__}: {error}", step=self.progress.step)
            raise
        finally:
            display.close()
            logs.close()

    def _open_folder(self) -> RunLogs:
        """Make the run's folder and what is in it from the start."""
        with writable(self.out), making_parents(self.out / CONFIG_FILE), self._locked():
            write_atomic(self.out / CONFIG_FILE, config_toml(self.config).encode())
            resume_after = None if self.checkpoint is None else self.progress.validated_step
            session = begin_session(
                self.out, run_id=self.template.run_id, config=self.config, device=self.parts.device.type,
                processes=self.world.size, data_sha256=self.template.data.content_hash,
                resumed_at_step=None if self.checkpoint is None else self.progress.step,
                resumed_after="" if self.checkpoint is None else self.checkpoint.state.progress.stopped,
            )  # fmt: skip
            return RunLogs(
                self.out, self.config.training.tensorboard, resume_after, run_id=self.template.run_id, session=session,
                clock=self.budget.elapsed_s, echo=self.log_stream,
            )  # fmt: skip

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The folder, which is there now, as this run's alone; until the end, unless the block fails."""
        self.lock.take()
        try:
            yield
        except BaseException:
            self.lock.release()
            raise

    def _train(
        self, trainer: Trainer, interruption: Interruption, display: ProgressDisplay, logs: RunLogs
    ) -> TrainResult:
        every_s = 60 * self.config.training.checkpoint_every_minutes
        keeper = Keeper(self.out, self.parts.learner, trainer.state, every_s)
        logs.event("run_started" if self.checkpoint is None else "resumed", step=self.progress.step,
                   processes=self.world.size)  # fmt: skip
        if self.checkpoint is not None and self.checkpoint.note:
            display.note(self.checkpoint.note)
            logs.event("fell_back", note=self.checkpoint.note, level="warning")
        if self.checkpoint is None:
            if self._start_exponents(interruption, display, logs):
                trainer.plan = trainer.plan.model_copy(update={"start_was_cut": True})
            self.world.on_main(keeper.save_last)  # from here on the run can be resumed
        if self._starts_fitted and self.progress.step == 0 and self.progress.validated_step < 0:
            trainer.validate_start(keeper)
            self.world.on_main(keeper.save_last)
        ending = trainer.run(keeper)
        self.world.on_main(self._keep_distance)
        logs.event("ended", ending=ending, step=self.progress.step)
        return self._result(ending, trainer.validation)

    @property
    def _starts_fitted(self) -> bool:
        """Whether the model's exponents are fitted before the first step, so that its start is worth a validation."""
        model = self.parts.learner.model
        return isinstance(model, LoglinearRates) and model.gauss_newton

    def _start_exponents(self, interruption: Interruption, display: ProgressDisplay, logs: RunLogs) -> bool:
        """What a fresh ``flux`` or ``loglinear-rates`` does before its first step: one process fits, all get it.

        Returns:
            Whether the clock cut it short, as far as this process knows.

        Raises:
            Interrupted: after a signal. Nothing is saved then, and the same command may be given again.
        """
        if not self._starts_fitted:
            return False
        learner = self.parts.learner
        report = self.world.on_main(lambda: self._fitted(interruption))
        if self.world.any(interruption.received is not None):
            number = interruption.received or signal.SIGTERM
            logs.event("interrupted", step=0, signal=number)
            raise Interrupted(number, "the run had not begun: nothing is saved, start it again")
        self.world.agree_tensors(learner.model.state_dict().values())
        if learner.ema is not None:
            learner.ema.restart()
        self.parts.clock.meet()
        if report is not None:
            display.note(report.line())
            logs.event("gauss_newton", **vars(report))
        return report is not None and report.was_cut

    def _fitted(self, interruption: Interruption) -> FitReport:
        model, left_s = self.parts.learner.model, self.budget.left_s()
        assert isinstance(model, LoglinearRates)
        return start_exponents(
            model, self.source, self.split.train, self.config, self.parts.device,
            left_s if math.isfinite(left_s) else None, lambda: interruption.received is not None,
        )  # fmt: skip

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
            n_test=len(self.split.test), n_calibration=len(self.split.calibration), is_main=self.world.is_main,
        )  # fmt: skip


@contextmanager
def writable(out: Path) -> Iterator[None]:
    """One line for what a disk refuses.

    Raises:
        PerfuseError: naming the run's folder.
    """
    try:
        yield
    except OSError as error:
        raise PerfuseError(f"cannot write the run {out}: {error.strerror or error}") from None

"""What `speed.py` measures: one arm per model and batch size, the plain loop, and the solvers.

A training arm is a real run of ``perfuse.training.run.train`` that is resumed for a few epochs at every turn: its
rate is what the run itself logs (``train_curves_per_s``: loader, forward, loss, backward, gradient norm, clipping,
optimiser, schedule and bookkeeping; validation and saving are not training steps and the plain loop has neither).
Every arm is trained for a while before it is measured, because the cost of `flux` grows with the rate constants
that it learns: an untrained one is faster than it will ever be in use.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import rate
from benchmarks.ode_reference import OdeReference, Solver
from benchmarks.plain_loop import PlainLoop
from perfuse.config import (
    MODEL_CONFIGS,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SplitConfig,
    TrainingConfig,
    resolve,
)
from perfuse.data.table import CurveTable, to_batch
from perfuse.evaluation.evaluate import model_predictor
from perfuse.evaluation.export import runner, write_model
from perfuse.models.exported import BolusCurves, tensors_of
from perfuse.models.flux import LoglinearRates
from perfuse.pk.mechanistic import uniform_grid
from perfuse.training.load import load_model
from perfuse.training.run import train

VALIDATION_CURVES = 16
EPOCHS_PER_TURN = 3
"""The first epoch of a turn warms caches again and is not counted."""


@dataclass
class Arm:
    """Something with a speed.

    Attributes:
        name: What it is called in the table.
        batch_size: Curves at a time.
        threads: Threads that PyTorch may use in it.
        measure: Gives curves/s of one turn.
    """

    name: str
    batch_size: int
    threads: int
    measure: Callable[[], float]

    def turn(self) -> float:
        """Curves/s of one turn at this arm's thread count."""
        torch.set_num_threads(self.threads)
        return self.measure()


def default_batch_size(model: str) -> int:
    """The batch size that ``perfuse train`` uses for a model."""
    size = resolve(RunConfig(model=MODEL_CONFIGS[model]())).training.batch_size
    assert size is not None
    return size


class EngineRun:
    """A run of the training engine that can be continued for a few epochs at a time.

    Args:
        model: Name of the model; its own default configuration.
        batch_size: Curves per step, if the table has as many.
        table: Curves to train on; a part of them makes epochs of about a third of ``turn_s``.
        work: Folder for runs.
        turn_s: Seconds that a turn should take.
        warm_s: Seconds of training before the first turn.
    """

    def __init__(
        self, model: str, batch_size: int, table: CurveTable, work: Path, turn_s: float, warm_s: float
    ) -> None:
        self.model, self.batch_size = model, min(batch_size, len(table) - VALIDATION_CURVES)
        self.epochs = 0
        self._open(table, 4, work / f"{model}-{batch_size}-trial")
        per_s = self.train(EPOCHS_PER_TURN)
        batches = max(2, round(per_s * turn_s / EPOCHS_PER_TURN / self.batch_size))
        self._open(table, batches, work / f"{model}-{batch_size}")
        self.train(max(EPOCHS_PER_TURN, round(warm_s * per_s / (self.batches * batch_size))))

    def _open(self, table: CurveTable, batches: int, folder: Path) -> None:
        """Start anew on whole batches of curves in another folder."""
        self.batches = min(batches, (len(table) - VALIDATION_CURVES) // self.batch_size)
        self.source = table.take(range(self.batches * self.batch_size + VALIDATION_CURVES))
        self.folder, self.epochs = folder, 0

    def _config(self) -> RunConfig:
        split = SplitConfig(validation_fraction=VALIDATION_CURVES / len(self.source), test_fraction=0.0)
        training = TrainingConfig(
            epochs=self.epochs, batch_size=self.batch_size, validate_every_epochs=1, tensorboard=False, device="cpu"
        )
        model = MODEL_CONFIGS[self.model]()
        # A constant learning rate does not depend on the run's length, so the run can always go on.
        return RunConfig(
            model=model, split=split, optimizer=OptimizerConfig(), schedule=ScheduleConfig(kind="constant"),
            training=training,
        )  # fmt: skip

    def train(self, epochs: int = EPOCHS_PER_TURN) -> float:
        """Train for more epochs; training curves/s over all of them but the first."""
        resume = self.epochs > 0
        self.epochs += epochs
        train(self.source, self._config(), self.folder, resume=resume, data_path="benchmark")
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-(epochs - 1) :]
        rates = [json.loads(line)["train_curves_per_s"] for line in lines]
        return len(rates) / sum(1 / r for r in rates)  # epochs are equally long


def training_arm(run: EngineRun, threads: int) -> Arm:
    """The arm of a run of the engine."""
    return Arm(run.model, run.batch_size, threads, run.train)


def plain_training_arm(loop: PlainLoop, batch_size: int, threads: int, seconds: float) -> Arm:
    """The plain loop's training."""
    return Arm("plain loop", batch_size, threads, lambda: loop.train_for(batch_size, seconds))


def prediction_arm(name: str, folder: Path, table: CurveTable, threads: int, seconds: float) -> Arm:
    """Prediction by a trained model: from the table's columns to an array in mg/L."""
    predict = model_predictor(load_model(folder).model)
    predict(table)
    return Arm(name, len(table), threads, lambda: rate(lambda: predict(table), len(table), seconds))


def onnx_arm(name: str, folder: Path, table: CurveTable, threads: int, seconds: float) -> Arm:
    """The same prediction by ONNX Runtime from the exported model."""
    batch = to_batch(table)
    grid = uniform_grid(batch.time_h)
    loaded = load_model(folder).model
    assert grid is not None
    assert isinstance(loaded, LoglinearRates)
    curves = BolusCurves(loaded, batch.system.topology, *grid, batch.time_h.shape[1]).eval()
    path = folder / "model.onnx"
    write_model(curves, tensors_of(batch), path, "onnx")
    run = runner(path, "onnx", threads)
    return Arm(
        f"{name} in ONNX Runtime", len(table), threads,
        lambda: rate(lambda: run(tensors_of(to_batch(table))), len(table), seconds),
    )  # fmt: skip


def plain_prediction_arm(loop: PlainLoop, batch_size: int, threads: int, seconds: float) -> Arm:
    """The plain loop's prediction, graph building included."""
    return Arm("plain loop", batch_size, threads, lambda: loop.predict_for(batch_size, seconds))


def solver_arm(name: str, reference: OdeReference, solver: Solver, seconds: float) -> Arm:
    """A scipy solver, one curve at a time, one thread."""
    return Arm(name, 1, 1, lambda: reference.solve_for(solver, seconds))

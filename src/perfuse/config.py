"""The typed configuration of a training run: one TOML file, frozen pydantic models, every field checked.

Imports nothing of ours but errors and files. A run's folder keeps the resolved configuration as ``config.toml``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from perfuse.errors import InputError
from perfuse.files import read_toml

ModelName = Literal["flux", "loglinear-rates", "recurrent", "lstm", "mlp"]
Precision = Literal["64", "32", "bf16", "16"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FluxConfig(_Frozen):
    """Message passing that yields the rate constants of a compartmental generator."""

    name: Literal["flux"] = "flux"
    prior: Literal["none", "dimensional", "mechanistic"] = "none"
    """What the rates start from: nothing (single log features), Q/V, or the textbook's rates."""
    hidden: int = Field(32, ge=4, le=1024)
    layers: int = Field(2, ge=1, le=8)
    """Message-passing layers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    drug_hidden: int = Field(128, ge=4, le=1024)
    """Width of the messages from the drug to tissues (used where Kp and clearances are not given)."""
    start: Literal["gauss-newton", "zero"] = "gauss-newton"
    """How exponents find their place: by Gauss-Newton on a sample of training curves before the first step, or by
    gradient descent from zero."""
    state_dependent: bool = True
    """Saturable pathways as edges whose rate depends on the amount; off, as a fixed rate per curve."""
    conserve: bool = True
    """Off (an ablation): what arrives at a node need not be what left the other."""
    messages: bool = True
    """Off (an ablation): no messages, neither along blood flow nor from the drug; a rate sees its own ends alone."""
    log_features: bool = True
    """Off (an ablation): features are the quantities themselves, standardised, in place of their logs."""


class LoglinearRatesConfig(_Frozen):
    """Flux with one exponent per feature and no network: the baseline flux must be held against."""

    name: Literal["loglinear-rates"] = "loglinear-rates"
    start: Literal["gauss-newton", "zero"] = "gauss-newton"
    """As for ``flux``."""
    state_dependent: bool = False
    """As for ``flux``; off, one rate per curve: then the model is one exponent per feature throughout."""


class RecurrentConfig(_Frozen):
    """Dynamic GNN: message passing, attention over organs and a GRU per organ, unrolled over time."""

    name: Literal["recurrent"] = "recurrent"
    hidden: int = Field(64, ge=4, le=1024)
    layers: int = Field(1, ge=1, le=8)
    steps: int = Field(3, ge=1, le=1000)
    """Recurrent steps across the time range; each decodes ``knots / steps`` times."""
    heads: int = Field(4, ge=1, le=64)
    dropout: float = Field(0.0, ge=0, lt=1)
    knots: int = Field(24, ge=4, le=1000)
    """Fixed log-spaced times that the outputs sit on; other times are interpolated in log C."""

    @model_validator(mode="after")
    def _divisible(self) -> RecurrentConfig:
        if self.knots % self.steps:
            raise ValueError(f"knots ({self.knots}) must be a multiple of steps ({self.steps})")
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class LstmConfig(_Frozen):
    """LSTM over the knots, fed the flat log features at every step."""

    name: Literal["lstm"] = "lstm"
    hidden: int = Field(128, ge=4, le=4096)
    layers: int = Field(1, ge=1, le=8)
    dropout: float = Field(0.0, ge=0, lt=1)
    knots: int = Field(24, ge=4, le=1000)


class MlpConfig(_Frozen):
    """Plain multilayer perceptron, log features to log concentrations on the knots."""

    name: Literal["mlp"] = "mlp"
    hidden: int = Field(256, ge=4, le=8192)
    layers: int = Field(3, ge=1, le=16)
    dropout: float = Field(0.0, ge=0, lt=1)
    knots: int = Field(24, ge=4, le=1000)


ModelConfig = Annotated[
    FluxConfig | LoglinearRatesConfig | RecurrentConfig | LstmConfig | MlpConfig, Field(discriminator="name")
]
MODEL_CONFIGS: dict[str, type[_Frozen]] = {
    "flux": FluxConfig,
    "loglinear-rates": LoglinearRatesConfig,
    "recurrent": RecurrentConfig,
    "lstm": LstmConfig,
    "mlp": MlpConfig,
}


class SplitConfig(_Frozen):
    """How curves are divided; compounds and parameter groups are never shared between parts."""

    kind: Literal["compound", "group", "scaffold", "random"] = "compound"
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.1, ge=0, lt=1)
    calibration_fraction: float = Field(0.0, ge=0, lt=1)
    """Kept for calibrating intervals (``perfuse calibrate``): neither trained, selected nor judged on."""

    @model_validator(mode="after")
    def _leaves_training(self) -> SplitConfig:
        if self.validation_fraction + self.test_fraction + self.calibration_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction + calibration_fraction must be below 1")
        return self


class LossConfig(_Frozen):
    """What training minimises, always in float32 and over observed values only."""

    kind: Literal["log_mse", "log_huber", "mse", "log1p"] = "log_mse"
    huber_delta: float = Field(0.5, gt=0)
    """Transition of ``log_huber``, in units of ln concentration."""
    censored: Literal["m3", "exclude"] = "m3"
    """Values below the LLOQ: likelihood of "below LLOQ" (M3: Beal SL. J Pharmacokinet Pharmacodyn 2001;28:481-504)."""
    residual_sd_log: float = Field(0.3, gt=0)
    """Residual standard deviation of ln C that the M3 likelihood assumes."""
    organ_weight: dict[str, float] = Field(
        default_factory=lambda: {"blood": 2.0, "liver": 2.0, "kidney": 2.0, "brain": 2.0}
    )
    """Relative weights; organs not named weigh 1; normalised to mean 1."""


class OptimizerConfig(_Frozen):
    """AdamW (Loshchilov I, Hutter F. ICLR 2019)."""

    lr: float | None = Field(None, gt=0, le=10)
    """Learning rate; unset means the model's own default."""
    weight_decay: float = Field(1e-4, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    clip: float = Field(1.0, ge=0)
    """Largest gradient norm, applied before the step; 0 switches clipping off (the norm is logged anyway)."""


class ScheduleConfig(_Frozen):
    """Learning-rate schedule; a function of the step (cosine) or of validation loss (plateau)."""

    kind: Literal["plateau", "cosine", "constant"] = "cosine"
    warmup_steps: int = Field(20, ge=0)
    cosine_start: int = Field(0, ge=0)
    """Cosine: steps before it may begin (the warm-up at least); a run with a wall-clock budget sets it by itself."""
    final_fraction: float = Field(0.01, ge=0, le=1)
    """Cosine: last learning rate as a fraction of the first."""
    factor: float = Field(0.5, gt=0, lt=1)
    patience: int = Field(5, ge=0)
    min_lr: float = Field(1e-7, ge=0)


class TrainingConfig(_Frozen):
    """The loop: length, batches, precision, device, stopping."""

    epochs: int | None = Field(None, ge=1)
    """Passes over the training split; unset means the model's own default."""
    batch_size: int | None = Field(None, ge=1)
    """Curves per micro-batch, all processes together; unset means the model's own default (never above the training
    split)."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches per optimiser step (gradient accumulation)."""
    precision: Precision = "32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int | None = Field(None, ge=1, le=4096)
    """Processes on each machine, each with a device of its own; they share every batch. Unset: one, or as many as
    torchrun or SLURM has started."""
    process_timeout_s: float = Field(45.0, ge=1, le=86400)
    """Several processes: one that has not answered for so long in a step counts as lost, and the run saves and ends."""
    early_stopping_patience: int = Field(0, ge=0)
    """Epochs without a better validation loss before stopping; 0 never stops early."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Exponential moving average of weights used for validation and `best`; 0 is off."""
    max_minutes: float | None = Field(None, gt=0)
    """Wall-clock budget: 20 steps are timed, the number of steps is fixed from it and stored."""
    max_steps: int | None = Field(None, ge=1)
    """Most optimiser steps; the schedule spans them. Without ``epochs`` and ``max_minutes`` they alone end the run."""
    checkpoint_every_minutes: float = Field(5.0, gt=0)
    """`last` is also saved mid-epoch this often (monotonic time)."""
    keep_last: int = Field(1, ge=1, le=1000)
    """Saves of `last` that are kept: the newest is `last`, older ones lie in `history/`."""
    validate_every_epochs: int = Field(1, ge=1)
    tensorboard: bool = True
    max_skipped_steps: int = Field(20, ge=1)
    """fp16: stop after this many overflow-skipped steps in a row."""


class RunConfig(_Frozen):
    """Everything that defines a run besides its data."""

    seed: int = Field(0, ge=0, lt=2**63)
    model: ModelConfig = Field(default_factory=FluxConfig)
    split: SplitConfig = Field(default_factory=SplitConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)


# Defaults that depend on the model: learning rate, curves per batch, epochs, and the steps that a small data set gets
# at least.
_MODEL_DEFAULTS: dict[str, tuple[float, int, int, int]] = {
    "flux": (1e-2, 256, 50, 2000),
    "loglinear-rates": (3e-2, 256, 50, 1000),
    "recurrent": (1e-2, 64, 20, 1000),
    "lstm": (6e-3, 128, 50, 1000),
    "mlp": (5e-3, 128, 100, 2000),
}
_SMALL_BATCH = 64
_BATCHES = {"flux": 32}
"""Batches that few curves are divided into, 8 unless named: what ``flux`` has to learn after its fit takes steps."""


def resolve(config: RunConfig, n_train: int | None = None) -> RunConfig:
    """The configuration with every model-dependent default filled in.

    What is not set depends on the size of the training split, ``n_train``: few curves come in smaller batches (an
    eighth of them, of ``flux`` a thirty-second, between 64 and the model's own default) and are passed over more often,
    so that the run has steps enough to learn anything. With a wall-clock budget or a number of steps, which then
    decide alone, and without ``n_train``, epochs stay unset.
    """
    lr, batch_size, epochs, least_steps = _MODEL_DEFAULTS[config.model.name]
    if n_train is not None:
        batch_size = min(batch_size, max(_SMALL_BATCH, n_train // _BATCHES.get(config.model.name, 8)))
    batch_size = config.training.batch_size or batch_size
    chosen = config.training.epochs
    other_length = config.training.max_minutes is not None or config.training.max_steps is not None
    if chosen is None and n_train is not None and not other_length:
        steps_per_epoch = math.ceil(math.ceil(n_train / batch_size) / config.training.accumulate)
        chosen = max(epochs, math.ceil(least_steps / steps_per_epoch))
    optimizer = config.optimizer.model_copy(update={"lr": config.optimizer.lr or lr})
    training = config.training.model_copy(update={"batch_size": batch_size, "epochs": chosen})
    return config.model_copy(update={"optimizer": optimizer, "training": training})


def parse_config(data: dict[str, Any], where: str = "configuration") -> RunConfig:
    """A ``RunConfig`` from nested plain data.

    Raises:
        InputError: one line naming the first bad key, its value and what is allowed.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        problem = "is no known key" if first["type"] == "extra_forbidden" else "is not allowed"
        value = None if isinstance(first.get("input"), dict) else first.get("input")
        raise InputError(key or "configuration", problem, value=value, allowed=first["msg"], where=where) from None


def load_config(path: Path) -> RunConfig:
    """Read a TOML file into a ``RunConfig``.

    Raises:
        InputError: if the file is missing, is no TOML, or holds a bad key or value.
    """
    return parse_config(read_toml(path, "--config"), where=str(path))

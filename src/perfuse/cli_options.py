"""The flags of ``perfuse train`` and ``perfuse simulate``, and how they override a configuration file.

A flag that is not given leaves the file's value, or the default, alone. Every flag names one key of ``RunConfig``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, Token

from perfuse.errors import InputError
from perfuse.files import read_toml

if TYPE_CHECKING:
    from perfuse.config import RunConfig

_MODEL_KEYS = ("prior", "hidden", "layers", "dropout", "knots", "steps", "heads")

FLAG_KEYS: dict[str, str] = {
    "split": "split.kind",
    "validation_fraction": "split.validation_fraction",
    "test_fraction": "split.test_fraction",
    "calibration_fraction": "split.calibration_fraction",
    "loss": "loss.kind",
    "censored": "loss.censored",
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "clip": "optimizer.clip",
    "schedule": "schedule.kind",
    "warmup_steps": "schedule.warmup_steps",
    "cosine_start": "schedule.cosine_start",
    "plateau_patience": "schedule.patience",
    "plateau_factor": "schedule.factor",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "accumulate": "training.accumulate",
    "precision": "training.precision",
    "device": "training.device",
    "devices": "training.devices",
    "early_stopping": "training.early_stopping_patience",
    "ema": "training.ema_decay",
    "max_minutes": "training.max_minutes",
    "max_steps": "training.max_steps",
    "checkpoint_every": "training.checkpoint_every_minutes",
    "keep_last": "training.keep_last",
    "validate_every": "training.validate_every_epochs",
    "tensorboard": "training.tensorboard",
    "seed": "seed",
}
"""Field of ``TrainOptions`` -> key of ``RunConfig``."""


def whole_number(_type: object, tokens: Sequence[Token]) -> int:
    """An integer as typed; 1.5 is an error here, where the parser would round it."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None


WholeNumber = Annotated[int | None, Parameter(converter=whole_number)]
Flag = Parameter(negative="")
"""A switch without its --no- form."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Flags that override the configuration; None means not given."""

    model: Literal["flux", "loglinear-rates", "recurrent", "lstm", "mlp"] | None = None
    """Which model to train (flux when neither flag nor file says)."""
    epochs: WholeNumber = None
    """Passes over the training curves."""
    batch_size: WholeNumber = None
    """Curves per micro-batch."""
    accumulate: WholeNumber = None
    """Micro-batches per optimiser step."""
    lr: float | None = None
    """Learning rate."""
    weight_decay: float | None = None
    """Weight decay of AdamW."""
    clip: float | None = None
    """Largest gradient norm; 0 switches clipping off."""
    schedule: Literal["plateau", "cosine", "constant"] | None = None
    """Learning-rate schedule."""
    warmup_steps: WholeNumber = None
    """Steps of linear warm-up."""
    cosine_start: WholeNumber = None
    """cosine: steps before it may begin."""
    plateau_patience: WholeNumber = None
    """plateau: epochs without improvement before the learning rate falls."""
    plateau_factor: float | None = None
    """plateau: what the learning rate is multiplied by."""
    precision: Literal["64", "32", "bf16", "16"] | None = None
    """Precision of the hidden layers."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """Where to compute."""
    devices: WholeNumber = None
    """Processes on this machine, each with its own GPU (or CPU share); they share every batch."""
    loss: Literal["log_mse", "log_huber", "mse", "log1p"] | None = None
    """What training minimises."""
    censored: Literal["m3", "exclude"] | None = None
    """What to do with values below the limit of quantification."""
    organ_weight: Annotated[list[str] | None, Parameter(negative_iterable="", metavar="ORGAN=WEIGHT")] = None
    """Weight of an organ in the loss, for example liver=2; may be repeated."""
    split: Literal["compound", "group", "scaffold", "random"] | None = None
    """What stays together when curves are divided."""
    validation_fraction: float | None = None
    """Share of compounds (or groups) for validation."""
    test_fraction: float | None = None
    """Share of compounds (or groups) kept for testing."""
    calibration_fraction: float | None = None
    """Share of compounds (or groups) kept for perfuse calibrate; 0 keeps none."""
    max_minutes: float | None = None
    """Wall-clock budget; the number of steps is fixed from it once."""
    max_steps: WholeNumber = None
    """Most optimiser steps; given without --max-minutes, it takes the place of a budget in the file."""
    early_stopping: WholeNumber = None
    """Stop after this many epochs without a better validation loss; 0 never."""
    ema: float | None = None
    """Decay of the moving average of weights; 0 is off."""
    validate_every: WholeNumber = None
    """Epochs between validations."""
    checkpoint_every: float | None = None
    """Minutes between mid-epoch saves of RUN/last."""
    keep_last: WholeNumber = None
    """Saves of RUN/last that are kept; older ones lie in RUN/history."""
    tensorboard: bool | None = None
    """Write TensorBoard events."""
    seed: WholeNumber = None
    """Seed of split, order of curves and first weights."""
    prior: Literal["none", "dimensional", "mechanistic"] | None = None
    """flux: what the rates start from."""
    hidden: WholeNumber = None
    """Width of the model."""
    layers: WholeNumber = None
    """Depth of the model."""
    dropout: float | None = None
    """Dropout of the model."""
    knots: WholeNumber = None
    """recurrent, lstm, mlp: times that the output sits on."""
    steps: WholeNumber = None
    """recurrent: steps across the time range."""
    heads: WholeNumber = None
    """recurrent: attention heads."""


@dataclass(frozen=True)
class _Merge:
    """Nested plain data under construction, with a memory of which flag set which key."""

    data: dict[str, Any]
    flags: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: object, flag: str) -> None:
        *parents, last = key.split(".")
        node = self.data
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
        self.flags[key] = flag


def flag_of(name: str) -> str:
    """``batch_size`` -> ``--batch-size``."""
    return "--" + name.replace("_", "-")


def parse_organ_weights(items: list[str]) -> dict[str, float]:
    """``["liver=2", ...]`` as a dictionary.

    Raises:
        InputError: if an item is not ORGAN=WEIGHT, names no organ, or its weight is no finite number >= 0.
    """
    from perfuse.pk.physiology import ORGANS

    weights: dict[str, float] = {}
    for item in items:
        organ, equals, text = item.partition("=")
        if not equals:
            raise InputError("--organ-weight", "is not ORGAN=WEIGHT", value=item, hint="write --organ-weight liver=2")
        if organ not in ORGANS:
            raise InputError("--organ-weight", "names an unknown organ", value=organ, allowed=", ".join(ORGANS))
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"--organ-weight {organ}", "is not a weight", value=text, allowed="a finite number >= 0")
        weights[organ] = weight
    return weights


def parse_times(text: str) -> list[float]:
    """``"0, 0.5, 1"`` as numbers.

    Raises:
        InputError: naming the piece that is no number.
    """
    times = []
    for piece in text.split(","):
        try:
            times.append(float(piece))
        except ValueError:
            raise InputError(
                "--times", "holds something that is no number", value=piece or "nothing", hint="write --times 0,0.5,1"
            ) from None
    return times


def _merge_model(merge: _Merge, options: TrainOptions) -> None:
    from perfuse.config import MODEL_CONFIGS

    stored = merge.data.get("model", {}).get("name", "flux")
    name = options.model or stored
    if name != stored:
        merge.data["model"] = {}  # settings of another model do not carry over
    merge.set("model.name", name, "--model")
    for key in _MODEL_KEYS:
        value = getattr(options, key)
        if value is None:
            continue
        if key not in MODEL_CONFIGS[name].model_fields:
            having = [n for n, c in MODEL_CONFIGS.items() if key in c.model_fields]
            raise InputError(
                flag_of(key), "does not apply to this model", value=name, allowed="--model " + " or ".join(having)
            )
        merge.set(f"model.{key}", value, flag_of(key))
        merge.flags[f"model.{name}.{key}"] = flag_of(key)


def build_config(options: TrainOptions, config_path: Path | None = None) -> RunConfig:
    """The run's configuration: defaults, then the TOML file, then the flags. What nobody set stays unset.

    Raises:
        InputError: naming the file's key, or the flag, that is wrong.
    """
    from perfuse.config import RunConfig, load_config, parse_config

    base = load_config(config_path) if config_path else RunConfig()
    merge = _Merge(base.model_dump(mode="json", exclude_unset=True))
    if options.max_steps is not None and options.max_minutes is None:
        merge.data.get("training", {}).pop("max_minutes", None)
    _merge_model(merge, options)
    for name, key in FLAG_KEYS.items():
        value = getattr(options, name)
        if value is not None:
            merge.set(key, value, flag_of(name))
    if options.organ_weight:
        weights = base.loss.organ_weight | parse_organ_weights(options.organ_weight)
        merge.set("loss.organ_weight", weights, "--organ-weight")
    try:
        return parse_config(merge.data, where="options")
    except InputError as error:
        rest = str(error).removeprefix(f"options: {error.field} ")
        raise InputError(merge.flags.get(error.field, error.field), rest) from None


@dataclass(frozen=True)
class SimulationOptions:
    """What ``perfuse simulate`` draws."""

    n: int
    task: str = "T1"
    seed: int = 0
    shard_size: int = 4096
    workers: int = 1
    ray: str | None = None
    max_failed: float = 0.001


def location(text: str) -> str | Path:
    """A path, or an fsspec URL as it stands (a Path would lose one of its slashes)."""
    return text if "://" in text else Path(text)


def local_copy(text: str) -> Path:
    """A path, or the local copy of the dataset at a URL."""
    place = location(text)
    if isinstance(place, Path):
        return place
    from perfuse.data.remote import fetch_dataset

    return fetch_dataset(place)


def simulation_options(flags: dict[str, int | float | str | None], config_path: Path | None) -> SimulationOptions:
    """Options from a TOML file (keys as the fields of ``SimulationOptions``) and the flags that were given, which win.

    Raises:
        InputError: for an unreadable file, an unknown key, a wrong type or a missing number of curves.
    """
    values = read_toml(config_path, "--config") if config_path else {}
    values |= {key: value for key, value in flags.items() if value is not None}
    allowed = {
        "n": int, "task": str, "seed": int, "shard_size": int, "workers": int, "ray": str, "max_failed": float,
    }  # fmt: skip
    if type(values.get("max_failed")) is int:
        values["max_failed"] = float(values["max_failed"])
    for key, value in values.items():
        if key not in allowed:
            raise InputError(key, "is no known key", allowed=", ".join(allowed), where=str(config_path))
        if type(value) is not allowed[key]:
            raise InputError(key, "is of a wrong type", value=value, allowed=allowed[key].__name__)
    if "n" not in values:
        raise InputError("--n", "is missing", hint="say how many curves: --n 1000")
    for key, least in (("n", 1), ("seed", 0), ("shard_size", 1), ("workers", 1)):
        if values.get(key, least) < least:
            raise InputError(flag_of(key), value=values[key], allowed=f">= {least}")
    return SimulationOptions(**values)

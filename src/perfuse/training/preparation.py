"""What a run needs before its first step: loaders, statistics' curves, its plan, and the state of its checkpoints."""

from __future__ import annotations

import math

import numpy as np
import torch

import perfuse
from perfuse.config import RunConfig
from perfuse.data.loader import CurveLoader
from perfuse.data.split import Split
from perfuse.data.table import CurveSource
from perfuse.errors import InputError
from perfuse.pk.physiology import ORGANS
from perfuse.training.budget import TIMED_STEPS
from perfuse.training.loss import CurveLoss
from perfuse.training.record import (
    UNITS,
    CheckpointState,
    DataRecord,
    PlanRecord,
    PlateauRecord,
    ProgressRecord,
    split_record,
)
from perfuse.training.rng import capture_rng
from perfuse.training.schedule import effective_warmup
from perfuse.training.validation import MetricFunction, Validator

_NORMALISATION_CURVES = 4096
"""Statistics are taken from at most this many training curves, drawn by the run's seed."""
_VALIDATION_BATCH = 256


def first_plan(config: RunConfig, steps_per_epoch: int) -> PlanRecord:
    """The plan of a fresh run; a wall-clock budget leaves its length open until steps have been timed.

    Raises:
        InputError: if the warm-up fills the run.
    """
    training = config.training
    if training.max_minutes is not None:
        # The cosine must not have begun while the length is unknown: it starts after the timed steps.
        warmup = config.schedule.warmup_steps
        return PlanRecord(
            total_steps=None, warmup_steps=warmup, cosine_start=max(warmup, TIMED_STEPS),
            validate_every_epochs=training.validate_every_epochs,
        )  # fmt: skip
    assert training.epochs is not None
    total = training.epochs * steps_per_epoch
    warmup = effective_warmup(config.schedule, total)
    return PlanRecord(
        total_steps=total, warmup_steps=warmup, cosine_start=0, validate_every_epochs=training.validate_every_epochs
    )


def normalisation_rows(rows: np.ndarray, seed: int) -> np.ndarray:
    """At most ``_NORMALISATION_CURVES`` of the training rows, without replacement."""
    if len(rows) <= _NORMALISATION_CURVES:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, _NORMALISATION_CURVES, replace=False))


def loaders(
    source: CurveSource, split: Split, config: RunConfig, loss: CurveLoss, device: torch.device,
    autocast: object, validate: MetricFunction | None,
) -> tuple[CurveLoader, Validator]:  # fmt: skip
    """Training and validation curves.

    Raises:
        InputError: for a part without a value that counts.
    """
    assert config.training.batch_size is not None
    batch_size = min(config.training.batch_size, len(split.train))
    loader = CurveLoader(source, split.train, batch_size, config.seed)
    n_validation = len(split.validation)
    calm = CurveLoader(
        source, split.validation, min(max(batch_size, _VALIDATION_BATCH), n_validation), 0, shuffle=False
    )
    for name, part in (("training", loader), ("validation", calm)):
        if not any(loss.weight(loaded.batch).total > 0 for loaded in part.epoch(0)):
            raise InputError(
                f"{name} split", "has no value that counts",
                allowed="observed at t > 0 and >= LOQ, in an organ with a weight > 0",
            )  # fmt: skip
    return loader, Validator(calm, loss, device, autocast, validate)  # type: ignore[arg-type]


def run_template(
    source: CurveSource, config: RunConfig, data: DataRecord, split: Split, plan: PlanRecord,
    saved: CheckpointState | None,
) -> CheckpointState:  # fmt: skip
    """The state that a run's checkpoints start from; what moves on is replaced when saving."""
    return CheckpointState(
        code_version=perfuse.__version__,
        torch_version=torch.__version__,
        config=config,
        topology=source.topology.name,
        elimination_names=source.topology.elimination_names,
        organs=ORGANS,
        units=UNITS,
        data=data,
        split=split_record(source, split),
        plan=plan,
        progress=ProgressRecord(),
        plateau=PlateauRecord(best=math.inf, bad_validations=0, scale=1.0),
        rng=capture_rng(),
        validation=saved.validation if saved is not None else {},
    )

"""What a run needs before its first step: loaders, statistics' curves, its plan, and the state of its checkpoints."""

from __future__ import annotations

import math
import uuid
from collections.abc import Generator

import numpy as np
import torch

import perfuse
from perfuse.config import RunConfig
from perfuse.data.loader import CurveLoader
from perfuse.data.split import Split
from perfuse.data.table import CurveSource
from perfuse.errors import InputError
from perfuse.models.featuriser import Featuriser
from perfuse.pk.physiology import ORGANS
from perfuse.training.budget import TIMED_STEPS, configured_steps
from perfuse.training.loss import CurveLoss
from perfuse.training.processes import Place
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
from perfuse.training.validation import Metric, Validator
from perfuse.training.world import World

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
            total_steps=None, warmup_steps=warmup,
            cosine_start=max(warmup, TIMED_STEPS, config.schedule.cosine_start),
            validate_every_epochs=training.validate_every_epochs,
        )  # fmt: skip
    total = configured_steps(config, steps_per_epoch)
    assert total is not None
    return PlanRecord(
        total_steps=total, warmup_steps=effective_warmup(config.schedule, total),
        cosine_start=config.schedule.cosine_start, validate_every_epochs=training.validate_every_epochs,
    )  # fmt: skip


def normalisation_rows(rows: np.ndarray, seed: int) -> np.ndarray:
    """At most ``_NORMALISATION_CURVES`` of the training rows, without replacement."""
    if len(rows) <= _NORMALISATION_CURVES:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, _NORMALISATION_CURVES, replace=False))


def loaders(
    source: CurveSource, split: Split, config: RunConfig, loss: CurveLoss, place: Place, metric: Metric | None
) -> tuple[CurveLoader, Validator]:
    """Training and validation curves; every process gets its share of each batch.

    Raises:
        InputError: for a part without a value that counts.
    """
    assert config.training.batch_size is not None
    world = place.world
    batch_size = min(config.training.batch_size, len(split.train))
    loader = CurveLoader(source, split.train, batch_size, config.seed, rank=world.rank, world_size=world.size)
    calm_size = min(max(batch_size, _VALIDATION_BATCH), len(split.validation))
    calm = CurveLoader(
        source, split.validation, calm_size, 0, shuffle=False, rank=world.rank, world_size=world.size
    )  # fmt: skip
    for name, part in (("training", loader), ("validation", calm)):
        if not _counts(part, loss, world):
            raise InputError(
                f"{name} split", "has no value that counts",
                allowed="observed at t > 0 and >= LOQ, in an organ with a weight > 0",
            )  # fmt: skip
    return loader, Validator(calm, loss, place.device, place.autocast, metric, world)


def _counts(part: CurveLoader, loss: CurveLoss, world: World) -> bool:
    """Whether any value counts, in any process's share."""
    batches = part.epoch(0)
    try:
        return any(world.any(loss.weight(loaded.batch).total > 0, is_patient=True) for loaded in batches)
    finally:
        if isinstance(batches, Generator):  # ends its thread
            batches.close()


def run_template(
    source: CurveSource, config: RunConfig, data: DataRecord, split: Split, plan: PlanRecord,
    saved: CheckpointState | None, world: World, featuriser: Featuriser,
) -> CheckpointState:  # fmt: skip
    """The state that a run's checkpoints start from; what moves on is replaced when saving."""
    run_id = uuid.uuid4().hex if saved is None else saved.run_id
    return CheckpointState(
        run_id=world.agree_bytes(run_id.encode()).decode(),
        processes=world.size,
        code_version=perfuse.__version__,
        torch_version=torch.__version__,
        config=config,
        topology=source.topology.name,
        elimination_names=source.topology.elimination_names,
        organs=ORGANS,
        units=UNITS,
        featuriser=featuriser,
        data=data,
        split=split_record(source, split),
        plan=plan,
        progress=ProgressRecord(),
        plateau=PlateauRecord(best=math.inf, bad_validations=0, scale=1.0),
        rng=capture_rng(),
        validation=saved.validation if saved is not None else {},
    )

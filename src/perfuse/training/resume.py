"""Continuing a run: what must be the same, what may change, and how long the run then is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from perfuse.config import RunConfig
from perfuse.errors import InputError
from perfuse.training.budget import Costs, configured_steps, planned
from perfuse.training.checkpoint import Checkpoint
from perfuse.training.config_file import CONFIG_FILE
from perfuse.training.record import CheckpointState, DataRecord, PlanRecord
from perfuse.training.retention import holds_checkpoint, read_newest

MAY_CHANGE = frozenset(
    "training." + name
    for name in (
        "epochs", "max_steps", "max_minutes", "device", "devices", "process_timeout_s", "early_stopping_patience",
        "checkpoint_every_minutes", "keep_last", "validate_every_epochs", "tensorboard", "max_skipped_steps",
    )
)  # fmt: skip
"""Keys that do not touch what has been learnt; all others must be as they were."""


def was_cut_short(run: Path) -> bool:
    """Whether a run was begun here and ended before its first save: the same command, or ``--resume``, starts it."""
    return (run / CONFIG_FILE).is_file() and not holds_checkpoint(run)


def read_last(run: Path, with_optimizer: bool = True) -> Checkpoint:
    """The checkpoint to go on from: ``last``, or the newest whole one where that is damaged (``note`` says so).

    Raises:
        InputError: if there is none or none can be read.
    """
    if not holds_checkpoint(run):
        raise InputError(
            "--resume", "found no run to continue", value=str(run), allowed="a folder with last/",
            hint="leave --resume out to start one",
        )  # fmt: skip
    return read_newest(run, with_optimizer)


def stored_config(run: Path) -> RunConfig:
    """The configuration of a run, as ``--resume`` without other flags should use it.

    Raises:
        InputError: as ``read_last``.
    """
    return read_last(run, with_optimizer=False).state.config


def _leaves(record: BaseModel, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name in type(record).model_fields:
        value = getattr(record, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def refuse_changes(saved: CheckpointState, config: RunConfig, data: DataRecord, topology: str) -> None:
    """Refuse to continue a run with other data or another configuration.

    Raises:
        InputError: naming the first difference.
    """
    if saved.data.content_hash != data.content_hash or saved.topology != topology:
        raise InputError(
            "--resume: data", "is not what the run was trained on", value=f"sha256 {data.content_hash[:12]}",
            allowed=f"{saved.data.path or 'the same data'}, sha256 {saved.data.content_hash[:12]}",
        )  # fmt: skip
    if saved.config.model.name != config.model.name:
        raise InputError(
            "--resume: model.name", "has changed", value=config.model.name, allowed=saved.config.model.name
        )
    before = dict(_leaves(saved.config))
    for key, value in _leaves(config):
        if key not in MAY_CHANGE and before[key] != value:
            raise InputError(f"--resume: {key}", "has changed", value=value, allowed=str(before[key]))


def continued_plan(saved: CheckpointState, config: RunConfig, steps_per_epoch: int) -> PlanRecord:
    """The plan of a run that goes on: as stored, but for epochs, minutes and cadence that have changed."""
    plan, old, new = saved.plan, saved.config.training, config.training
    if "validate_every_epochs" in new.model_fields_set and new.validate_every_epochs != old.validate_every_epochs:
        plan = plan.model_copy(update={"validate_every_epochs": new.validate_every_epochs})
    if (new.epochs, new.max_steps, new.max_minutes) == (old.epochs, old.max_steps, old.max_minutes):
        return plan
    if new.max_minutes is None:
        total = configured_steps(config, steps_per_epoch)
        assert total is not None
        return plan.model_copy(update={"total_steps": total})
    if not plan.step_s:  # nothing measured yet: the loop will
        return plan.model_copy(update={"total_steps": None})
    costs = Costs(plan.step_s, plan.validation_s, plan.save_s)
    left_s = 60 * new.max_minutes - saved.progress.elapsed_s
    return planned(plan, costs, config, left_s, saved.progress.step, steps_per_epoch)

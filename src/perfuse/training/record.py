"""What ``state.json`` of a checkpoint holds: frozen, strictly typed records, and how older schemas are upgraded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perfuse.config import RunConfig
from perfuse.data.names import NameCodes, name_codes
from perfuse.data.split import Split
from perfuse.data.table import CurveSource
from perfuse.errors import InputError
from perfuse.models.featuriser import Featuriser

SCHEMA_VERSION = 2
UNITS = {"concentration": "mg/L", "time": "h", "dose": "mg", "volume": "L", "flow": "L/h", "clearance": "L/h"}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataRecord(_Record):
    """The data of a run."""

    path: str
    content_hash: str
    n_curves: int = Field(ge=1)


class PartRecord(_Record):
    """One part of the split: who was in it."""

    n_curves: int = Field(ge=0)
    compound_ids: tuple[str, ...]
    """Distinct, sorted."""
    group_hash: str
    """sha256 of the distinct, sorted parameter groups."""
    rows_hash: str
    """sha256 of the row numbers."""


class SplitRecord(_Record):
    """Which curves trained the model; the others did not. ``calibration`` is None where nothing was kept for it."""

    train: PartRecord
    validation: PartRecord
    test: PartRecord
    calibration: PartRecord | None = None


class IntervalRecord(_Record):
    """Sums since the last line of ``metrics.jsonl``, so that a resumed run writes the same next line.

    The loop counts in it, so it is not frozen.
    """

    model_config = ConfigDict(frozen=False)

    loss_total: float = 0.0
    loss_weight: float = 0.0
    norm_total: float = 0.0
    norm_max: float = 0.0
    updates: int = 0
    curves: int = 0
    train_s: float = 0.0


class PlanRecord(_Record):
    """How long the run is; fixed once and stored, so that the schedule depends on the step alone.

    ``total_steps`` is None until a wall-clock budget has been measured.
    """

    total_steps: int | None
    warmup_steps: int
    cosine_start: int
    validate_every_epochs: int = Field(ge=1)
    step_s: float = 0.0
    """Seconds per training step, as measured for a budget."""
    validation_s: float = 0.0
    """Seconds for one validation, as measured for a budget."""
    save_s: float = 0.0
    changes: int = Field(0, ge=0)
    """How often the clock has changed ``total_steps`` after it was fixed."""
    start_was_cut: bool = False
    """Whether a budget ended the fit before the first step."""


class ProgressRecord(_Record):
    """Where the run is: ``batch`` micro-batches of ``epoch`` (from 0) are done, ``step`` updates in all.

    The loop counts in it, so it is not frozen; a checkpoint holds a copy.
    """

    model_config = ConfigDict(frozen=False)

    epoch: int = Field(0, ge=0)
    batch: int = Field(0, ge=0)
    step: int = Field(0, ge=0)
    validated_step: int = -1
    """Step of the last validation."""
    elapsed_s: float = Field(0.0, ge=0)
    best_val_loss: float = math.inf
    best_epoch: int = -1
    best_step: int = -1
    skipped_in_row: int = Field(0, ge=0)
    skipped_steps: int = Field(0, ge=0)
    stopped: Literal["", "completed", "early", "deadline"] = ""
    interval: IntervalRecord = Field(default_factory=IntervalRecord)


class PlateauRecord(_Record):
    """State of the plateau rule."""

    best: float
    bad_validations: int
    scale: float


class RngRecord(_Record):
    """States of every random generator that a model may use."""

    torch: bytes
    cuda: tuple[bytes, ...] = ()
    python: tuple[object, ...]
    numpy: tuple[object, ...]


class CheckpointState(_Record):
    """Everything about a checkpoint but its tensors."""

    schema_version: Literal[2] = 2
    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Of the run, the same in all of its sessions, logs and checkpoints."""
    processes: int = Field(1, ge=1)
    """That trained together when this was saved; the result does not depend on it but for rounding."""
    code_version: str
    torch_version: str
    config: RunConfig
    topology: str
    elimination_names: tuple[str, ...]
    organs: tuple[str, ...]
    units: dict[str, str]
    featuriser: Featuriser | None = None
    """What the model reads, in order; None where that was not recorded (schema 1)."""
    data: DataRecord
    split: SplitRecord
    plan: PlanRecord
    progress: ProgressRecord
    plateau: PlateauRecord
    scaler: dict[str, float] = {}
    ema_updates: int | None = None
    """Updates of the weight average; None when it is off."""
    rng: RngRecord
    validation: dict[str, float] = {}
    """Metrics of the last validation."""
    files: dict[str, str] = {}
    """sha256 of each file beside ``state.json``."""


_Upgrade: TypeAlias = Callable[[dict[str, object]], dict[str, object]]


def _from_1(raw: dict[str, object]) -> dict[str, object]:
    """Version 1 had no run id: one is made of what all checkpoints of a run share."""
    config = raw.get("config")
    told = [config.get(key) for key in ("seed", "model", "optimizer")] if isinstance(config, dict) else []
    shared = [raw.get("data"), raw.get("split"), *told]
    return {"run_id": sha256(repr(shared).encode()).hexdigest()[:32], **raw}


UPGRADES: dict[int, _Upgrade] = {1: _from_1}
"""Schema version -> function that gives the state of the next version. Version 1 is the first."""


def parse_state(raw: object, where: str) -> CheckpointState:
    """A checkpoint's state from decoded JSON, upgraded to this version's schema.

    Raises:
        InputError: naming the first key that is wrong, or the version that is too new or too old.
    """
    if not isinstance(raw, dict):
        raise InputError("state.json", "holds no object", where=where)
    version = raw.get("schema_version")
    if type(version) is not int:
        raise InputError("state.json: schema_version", "is missing or no integer", value=version, where=where)
    while version in UPGRADES:
        raw = UPGRADES[version](raw)
        version += 1
        raw["schema_version"] = version
    if version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        raise InputError(
            "checkpoint schema", "is newer than this version of Perfuse" if newer else "is too old to be upgraded",
            value=version, allowed=f"<= {SCHEMA_VERSION}",
            hint="install a newer Perfuse" if newer else "train again", where=where,
        )  # fmt: skip
    try:
        return CheckpointState.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        value = first.get("input")
        shown = None if isinstance(value, dict | list | tuple | bytes) else value
        raise InputError(
            f"state.json: {key}", "is not allowed", value=shown, allowed=first["msg"], where=where
        ) from None


def _digest(values: Iterable[str]) -> str:
    return sha256("\n".join(values).encode()).hexdigest()


def _part_record(compounds: NameCodes, groups: NameCodes, rows: np.ndarray) -> PartRecord:
    return PartRecord(
        n_curves=len(rows),
        compound_ids=tuple(compounds.of(rows)),
        group_hash=_digest(groups.of(rows)),
        rows_hash=sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest(),
    )


def split_record(source: CurveSource, split: Split) -> SplitRecord:
    """Who is in each part of a split."""
    names = name_codes(source, "compound_id"), name_codes(source, "group_id")
    return SplitRecord(
        train=_part_record(*names, split.train),
        validation=_part_record(*names, split.validation),
        test=_part_record(*names, split.test),
        calibration=_part_record(*names, split.calibration) if len(split.calibration) else None,
    )

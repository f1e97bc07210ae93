"""What a sweep leaves to go on from, in JSON: ``sweep.json``, what was asked, and ``trials.jsonl``, what happened.

Ray Tune would keep pickled state, which runs code when it is read; none of that is kept or read here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from perfuse.config import RunConfig
from perfuse.errors import InputError, PerfuseError
from perfuse.files import write_atomic
from perfuse.tuning.halving import RUNGS
from perfuse.tuning.space import Space, Value, parse_space

SWEEP_FILE = "sweep.json"
TRIALS_FILE = "trials.jsonl"
BEST_FILE = "best.toml"
PAGE_FILE = "tune.html"
TRIALS_FOLDER = "trials"
_MOST_BYTES = 256 * 2**20
MOST_TRIALS = 9999

Status: TypeAlias = Literal["completed", "terminated", "failed", "lost"]
"""How a trial ended: at its end; early, by comparison with others; on its configuration; or for no fault of its own
(its process or the disk), and then a resumed sweep takes it up again."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SweepRecord(_Line):
    """What was asked; a resumed sweep may change the number of trials, minutes and concurrency alone."""

    schema_version: Literal[1] = 1
    seed: int = Field(ge=0, lt=2**63)
    config: RunConfig
    """The base configuration, as given: what nobody set is unset."""
    space: dict[str, dict[str, Any]]
    early_termination: bool = True
    data: str
    data_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    n_train: int = Field(ge=1)
    n_validation: int = Field(ge=1)
    n_test: int = Field(ge=0)
    code_version: str


class Started(_Line):
    """A trial was given its values."""

    event: Literal["started"] = "started"
    number: int = Field(ge=0, le=MOST_TRIALS)
    values: dict[str, Value]


class AtRung(_Line):
    """A trial came to a rung; ``val_loss`` is its best so far, None when it was never finite."""

    event: Literal["rung"] = "rung"
    number: int = Field(ge=0, le=MOST_TRIALS)
    rung: int = Field(ge=0, lt=len(RUNGS))
    val_loss: Annotated[float, Field(allow_inf_nan=False)] | None
    goes_on: bool


class Ended(_Line):
    """A trial ended."""

    event: Literal["ended"] = "ended"
    number: int = Field(ge=0, le=MOST_TRIALS)
    status: Status
    val_loss: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Best validation loss."""
    progress: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Fraction of its own length that it was trained for."""
    best_epoch: int = 0
    epochs: int = 0
    steps: int = 0
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Wall-clock time of its training, all sessions together."""
    reason: str = ""


Event: TypeAlias = Annotated[Started | AtRung | Ended, Field(discriminator="event")]
_EVENT: TypeAdapter[Started | AtRung | Ended] = TypeAdapter(Event)


@dataclass
class TrialRecord:
    """All that is known of one trial."""

    number: int
    values: dict[str, Value]
    rungs: dict[int, AtRung] = field(default_factory=dict)
    ended: Ended | None = None

    @property
    def is_open(self) -> bool:
        """Whether a resumed sweep takes it up again."""
        return self.ended is None or self.ended.status == "lost"


def trial_folder(folder: Path, number: int) -> Path:
    """Run folder of a trial."""
    return folder / TRIALS_FOLDER / f"{number:04d}"


def holds_sweep(folder: Path) -> bool:
    """Whether a sweep was begun here."""
    return (folder / SWEEP_FILE).is_file()


def write_sweep(folder: Path, record: SweepRecord) -> None:
    """Write ``sweep.json``, whole or not at all."""
    data = record.model_dump(mode="json") | {"config": record.config.model_dump(mode="json", exclude_unset=True)}
    data["config"].setdefault("model", {})["name"] = record.config.model.name
    write_atomic(folder / SWEEP_FILE, (json.dumps(data, indent=2) + "\n").encode())


def read_sweep(folder: Path) -> tuple[SweepRecord, Space]:
    """What was asked, with its space checked against the configuration.

    Raises:
        InputError: if there is no sweep, or its record is damaged.
    """
    path = folder / SWEEP_FILE
    if not path.is_file():
        raise InputError(
            "--resume", "found no sweep to continue", value=str(folder), allowed="a folder with sweep.json"
        )
    try:
        record = SweepRecord.model_validate_json(_read(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(key or SWEEP_FILE, "is not allowed", allowed=first["msg"], where=str(path)) from None
    return record, parse_space(record.space, record.config, str(path))


def read_trials(folder: Path, space: Space) -> list[TrialRecord]:
    """Every trial of ``trials.jsonl``, numbered from 0 without a gap; a line that a crash cut short is left out.

    Raises:
        InputError: naming the line that is no event, or does not fit those before it.
    """
    path = folder / TRIALS_FILE
    trials: list[TrialRecord] = []
    if not path.is_file():
        return trials
    for number, event in _events(path):
        where = f"{path}: line {number}"
        if isinstance(event, Started):
            if event.number != len(trials) or not space.contains(event.values):
                raise InputError("started", "does not fit the sweep", value=event.values, where=where)
            trials.append(TrialRecord(event.number, dict(event.values)))
        elif event.number >= len(trials):
            raise InputError(event.event, "is of a trial that was not started", value=event.number, where=where)
        elif isinstance(event, AtRung):
            trials[event.number].rungs[event.rung] = event
        else:
            trials[event.number].ended = event
    return trials


def _events(path: Path) -> Iterator[tuple[int, Started | AtRung | Ended]]:
    lines = _read(path).decode("utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline was cut short
        try:
            yield number, _EVENT.validate_json(line)
        except ValidationError as error:
            raise InputError(
                "event", "is not allowed", allowed=error.errors()[0]["msg"], where=f"{path}: line {number}"
            ) from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError("--resume", "cannot be read", value=str(path), hint=error.strerror or "") from None
    if len(content) > _MOST_BYTES:
        raise InputError("--resume", "is too large for a sweep's record", value=str(path), allowed="256 MiB")
    return content


class Journal:
    """``trials.jsonl``, open for appending; each line is on the disk before the sweep goes on.

    Raises:
        PerfuseError: if the disk is full or gone.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TRIALS_FILE
        if self._path.is_file():  # a line that was cut short would spoil the next
            content = self._path.read_bytes()
            if not content.endswith(b"\n") and content:
                write_atomic(self._path, content[: content.rfind(b"\n") + 1])
        try:
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from None

    def write(self, event: Started | AtRung | Ended) -> None:
        """Append one event."""
        try:
            self._file.write(event.model_dump_json() + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failure(error) from None

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()

    def _failure(self, error: OSError) -> PerfuseError:
        return PerfuseError(f"cannot write {self._path}: {error.strerror or error}")

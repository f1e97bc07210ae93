"""What a run's checkpoints say about it, read as plain data: no tensors, no PyTorch, any schema version.

Files are not trusted: what is missing or of a wrong type counts as not recorded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perfuse.errors import InputError
from perfuse.files import check_file
from perfuse.training import state as typed_json

STATE_NAME = "state.json"
PARTS = ("train", "validation", "test", "calibration")
Plain = Mapping[str, object]
_MAX_BYTES = 2**28
_ATTEMPTS, _WAIT_S = 3, 0.05
"""Reads of a folder that a running training replaces at the same time."""


def table(parent: Plain, key: str) -> dict[str, object]:
    """The object at a key; empty when there is none."""
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def text(parent: Plain, key: str) -> str:
    """The text at a key; empty when there is none."""
    value = parent.get(key)
    return value if isinstance(value, str) else ""


def whole(parent: Plain, key: str) -> int | None:
    """The whole number at a key."""
    value = parent.get(key)
    return value if type(value) is int and abs(value) < 2**63 else None


def number(parent: Plain, key: str) -> float | None:
    """The finite number at a key."""
    value = parent.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if abs(value) < float("inf") else None


@dataclass(frozen=True)
class RunFacts:
    """A checkpoint's ``state.json``.

    Attributes:
        folder: The checkpoint's folder.
        state: All of it, as plain data.
    """

    folder: Path
    state: dict[str, object]

    @property
    def run_id(self) -> str:
        """Id of the run; '' in checkpoints from before there was one."""
        return text(self.state, "run_id")

    @property
    def config(self) -> dict[str, object]:
        """The run's resolved configuration."""
        return table(self.state, "config")

    @property
    def model(self) -> str:
        """The model, with flux's prior."""
        model = table(self.config, "model")
        name, prior = text(model, "name") or "unknown", text(model, "prior")
        return f"{name} (prior {prior})" if prior else name

    @property
    def data_path(self) -> str:
        """Where the data was; '' when that is not recorded."""
        return text(table(self.state, "data"), "path")

    @property
    def data_sha256(self) -> str:
        """Content hash of the data."""
        return text(table(self.state, "data"), "content_hash")

    @property
    def weights_sha256(self) -> str:
        """sha256 of the weights' file."""
        return text(table(self.state, "files"), "model.safetensors")

    @property
    def plan(self) -> dict[str, object]:
        """How long the run is."""
        return table(self.state, "plan")

    @property
    def progress(self) -> dict[str, object]:
        """Where the run is."""
        return table(self.state, "progress")

    def part(self, name: str) -> dict[str, object]:
        """One part of the split."""
        return table(table(self.state, "split"), name)

    @property
    def split_key(self) -> str:
        """Names the split: equal for runs whose every part holds the same curves; '' when that is not recorded."""
        hashes = [text(self.part(name), "rows_hash") for name in PARTS]
        return "/".join(hashes) if all(hashes[:3]) else ""


def read_facts(folder: Path) -> RunFacts:
    """The facts of a checkpoint folder (or of ``<folder>.previous``, which a swap may have left).

    Raises:
        InputError: if there is none, or its ``state.json`` is unreadable.
    """
    problem: InputError | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_WAIT_S)
        places = (folder, folder.with_name(f"{folder.name}.previous"))
        found = next((f for f in places if (f / STATE_NAME).is_file()), None)
        if found is None:
            problem = InputError("checkpoint", "was not found", value=str(folder))
            continue
        try:
            return RunFacts(found, _read(found / STATE_NAME))
        except InputError as error:
            problem = error
    assert problem is not None
    raise problem


def _read(path: Path) -> dict[str, object]:
    try:
        check_file(path, STATE_NAME, _MAX_BYTES)
        state = typed_json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(STATE_NAME, "cannot be read", value=str(path), hint=error.strerror or "") from None
    except (typed_json.StateError, UnicodeDecodeError) as error:
        raise InputError(STATE_NAME, str(error)[:200], where=str(path.parent)) from None
    if not isinstance(state, dict):
        raise InputError(STATE_NAME, "holds no object", where=str(path.parent))
    return state

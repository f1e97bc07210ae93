"""Checkpoints: folders of safetensors and typed JSON, written atomically, read without running anything.

    model.safetensors      weights and statistics (the averaged weights when EMA is on)
    optimizer.safetensors  AdamW moments, and the raw weights when EMA is on
    state.json             everything else (``record.CheckpointState``), with the sha256 of the two files

Writing goes to a hidden sibling, is flushed to the disk, and then changes places with the old folder, which is
called ``<name>.previous`` for the instant between two renames. So at every moment a whole checkpoint exists, and
the reader looks for it in both places. What becomes of the old one is the caller's choice (``retention``).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from perfuse.errors import InputError, PerfuseError
from perfuse.files import own_file, sync_folder
from perfuse.training import state as typed_json
from perfuse.training.record import CheckpointState, parse_state
from perfuse.training.shadow import shadow_of
from perfuse.training.tensor_file import file_limit, read_tensors, tensor_bytes

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
Tensors: TypeAlias = Mapping[str, Tensor]
_MAX_STATE_BYTES = 2**28
_ATTEMPTS = 3
"""Reads of a folder that a running training replaces at the same time."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        folder: Where it was read from.
        state: The contents of ``state.json``.
        model: Tensors by the names of the model's ``state_dict``.
        optimizer: Moments and raw weights; empty when they were not asked for.
        note: What a user should know of how it was found; mostly nothing.
    """

    folder: Path
    state: CheckpointState
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    note: str = ""


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def save_checkpoint(
    folder: Path, state: CheckpointState, model: Tensors, optimizer: Tensors,
    put_away: Callable[[Path], None] = _delete,
) -> None:  # fmt: skip
    """Write a checkpoint, replacing the one in ``folder`` at once or not at all.

    Args:
        folder: Where to.
        state: All but the tensors.
        model, optimizer: The tensors.
        put_away: Takes the old checkpoint away, once the new one is on the disk.

    Raises:
        PerfuseError: if the disk is full or the folder cannot be written; the old checkpoint is then untouched.
    """
    new = folder.with_name(f".{folder.name}.new")
    with _named_failures(folder):
        shutil.rmtree(new, ignore_errors=True)  # what a crash may have left
        try:
            new.mkdir(parents=True)
            contents = {MODEL_FILE: _tensor_bytes(model), OPTIMIZER_FILE: _tensor_bytes(optimizer)}
            hashes = {name: sha256(data).hexdigest() for name, data in contents.items()}
            record = state.model_copy(update={"files": hashes})
            contents[STATE_FILE] = typed_json.dumps(record.model_dump()).encode()
            for name, data in contents.items():
                _write_durably(new / name, data)
            sync_folder(new)
            _swap(new, folder, put_away)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise


@contextmanager
def _named_failures(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = any(find_checkpoint(place) is not None for place in (folder, folder.with_name("last")))
        rest = "what was saved before is kept" if kept else "nothing has been saved yet"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            rest += " (free some space and use --resume)"
        raise PerfuseError(f"cannot save the checkpoint {folder}: {error.strerror or error}; {rest}") from None


def _tensor_bytes(tensors: Tensors) -> bytes:
    from safetensors.torch import save

    return save({name: _owned(t) for name, t in tensors.items()})


def _owned(tensor: Tensor) -> Tensor:
    """The tensor on the CPU with a storage of its own (safetensors refuses views of a shared one)."""
    out = tensor.detach().cpu().contiguous()
    return out.clone() if out.untyped_storage().nbytes() != out.nbytes else out


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def previous_of(folder: Path) -> Path:
    """Where the old checkpoint is between the two renames of a swap."""
    return folder.with_name(f"{folder.name}.previous")


def _swap(new: Path, folder: Path, put_away: Callable[[Path], None]) -> None:
    """Let ``new`` become ``folder``; at every moment one of ``folder`` and its ``previous_of`` is whole."""
    previous = previous_of(folder)
    if folder.exists() and previous.exists():  # an earlier swap was cut short: keep the newer one that is whole
        if is_whole(folder):
            put_away(previous)
        else:
            _delete(folder)
    if folder.exists():
        folder.rename(previous)
    try:
        new.rename(folder)
    except OSError:
        if previous.exists() and not folder.exists():
            previous.rename(folder)
        raise
    sync_folder(folder.parent)
    if previous.exists():
        put_away(previous)


def find_checkpoint(folder: Path) -> Path | None:
    """The folder that holds the checkpoint called ``folder``: itself, or what an interrupted swap left; else None."""
    return next((f for f in (folder, previous_of(folder)) if (f / STATE_FILE).is_file()), None)


def is_whole(folder: Path | None) -> bool:
    """Whether every file of this very folder can be read and has the sha256 that its ``state.json`` says."""
    try:
        return folder is not None and bool(_read(folder, with_optimizer=True).state.files)
    except (InputError, OSError):
        return False


def saved_step(folder: Path) -> int | None:
    """The step that a checkpoint was saved after, from its ``state.json`` alone; None where that cannot be read."""
    try:
        return _read_state(folder).progress.step
    except (InputError, OSError):
        return None


def load_checkpoint(folder: Path, with_optimizer: bool = False) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: if there is none, or it is damaged, forged, cut short or of a newer schema: one line that says so.
    """
    for attempt in range(_ATTEMPTS):
        found = find_checkpoint(folder)
        if found is None:
            raise InputError("checkpoint", "was not found", value=str(folder), allowed=f"a folder with {STATE_FILE}")
        identity = found.stat().st_ino
        try:
            return _read(found, with_optimizer)
        except (InputError, OSError) as error:
            replaced = (find_checkpoint(folder) or found) != found or not found.exists()
            replaced = replaced or found.stat().st_ino != identity
            if replaced and attempt < _ATTEMPTS - 1:
                continue
            if isinstance(error, OSError):
                raise InputError("checkpoint", "cannot be read", value=str(found), hint=error.strerror or "") from None
            raise
    raise AssertionError("unreachable")


def _read_state(folder: Path) -> CheckpointState:
    path = own_file(folder, STATE_FILE)
    size = path.stat().st_size
    if size > _MAX_STATE_BYTES:
        raise InputError(STATE_FILE, "is too large", value=size, unit="bytes", allowed=f"<= {_MAX_STATE_BYTES}")
    try:
        raw = typed_json.loads(path.read_bytes().decode("utf-8"))
    except (typed_json.StateError, UnicodeDecodeError) as error:
        raise InputError(STATE_FILE, str(error)[:200], where=str(folder)) from None
    return parse_state(raw, str(folder))


def _read(folder: Path, with_optimizer: bool) -> Checkpoint:
    state = _read_state(folder)
    model = _read_tensors(folder, MODEL_FILE, state)
    optimizer = _read_tensors(folder, OPTIMIZER_FILE, state) if with_optimizer else {}
    return Checkpoint(folder, state, model, optimizer)


def _read_tensors(folder: Path, name: str, state: CheckpointState) -> dict[str, Tensor]:
    """Tensors of a file that may be as large as the configuration's model needs: the optimiser's, thrice that."""
    payload = tensor_bytes(shadow_of(state)) * (1 if name == MODEL_FILE else 3)
    return read_tensors(folder, name, state.files.get(name), file_limit(payload))

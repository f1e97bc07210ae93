"""Which checkpoints of a run are kept, and which one a run goes on from.

    RUN/last                     the newest save
    RUN/history/step-00000123    the ``training.keep_last - 1`` saves before it
    RUN/best                     the best validation

A save costs one write: what it replaces is renamed into ``history/``. Nothing is deleted before the new checkpoint
is on the disk. A run whose ``last`` is damaged goes on from the newest checkpoint that is whole, and says so.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from perfuse.errors import InputError
from perfuse.files import sync_folder
from perfuse.training.checkpoint import (
    Checkpoint,
    Tensors,
    find_checkpoint,
    is_whole,
    load_checkpoint,
    previous_of,
    save_checkpoint,
    saved_step,
)
from perfuse.training.record import CheckpointState

LAST, BEST, HISTORY = "last", "best", "history"
_STEP_FOLDER = re.compile(r"step-(\d{8,})")


def history(run: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the kept saves before ``last``, newest first."""
    folder = run / HISTORY
    names = ((_STEP_FOLDER.fullmatch(path.name), path) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(((int(match[1]), path) for match, path in names if match), reverse=True)


def save_last(run: Path, state: CheckpointState, model: Tensors, optimizer: Tensors) -> None:
    """Write ``run/last`` and keep as many of those before it as the configuration says.

    Raises:
        PerfuseError: as ``save_checkpoint``; nothing has been deleted then.
    """
    kept = state.config.training.keep_last - 1
    step = state.progress.step

    def put_away(superseded: Path) -> None:
        _put_away(run, superseded, kept, step)

    save_checkpoint(run / LAST, state, model, optimizer, put_away)
    _prune(run, kept, step)


def _put_away(run: Path, superseded: Path, kept: int, step: int) -> None:
    """Move a whole checkpoint of an earlier step into the history; delete any other."""
    older = saved_step(superseded) if kept else None
    if older is None or older >= step or not is_whole(superseded):
        shutil.rmtree(superseded, ignore_errors=True)
        return
    target = run / HISTORY / f"step-{older:08d}"
    try:
        target.parent.mkdir(exist_ok=True)
        _remove(target)  # of the same step: left by a run that went on from further back
        superseded.rename(target)
        sync_folder(target.parent)
        sync_folder(run)
    except OSError:  # no room for a name: the new checkpoint is safe, and the old one must not stand in the way
        shutil.rmtree(superseded, ignore_errors=True)


def _prune(run: Path, kept: int, step: int) -> None:
    """Delete all but the newest of the history, and what is ahead of a run that went on from further back."""
    older = [(at, path) for at, path in history(run) if at < step]
    keep = {path for _, path in older[:kept]}
    for _, path in history(run):
        if path not in keep:
            _remove(path)
    for half_gone in (run / HISTORY).glob(".step-*"):
        shutil.rmtree(half_gone, ignore_errors=True)
    if not keep:
        with suppress(OSError):  # it is not there, or holds what is not ours
            (run / HISTORY).rmdir()


def _remove(folder: Path) -> None:
    """Delete a checkpoint; killed on the way, it leaves nothing that looks like one."""
    hidden = folder.with_name(f".{folder.name}")
    with suppress(OSError):
        shutil.rmtree(hidden, ignore_errors=True)
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def holds_checkpoint(run: Path) -> bool:
    """Whether anything has been saved in a run's folder, whole or not."""
    return bool(history(run)) or any(
        (run / name).exists() or find_checkpoint(run / name) is not None for name in (LAST, BEST)
    )


def read_newest(run: Path, with_optimizer: bool = True) -> Checkpoint:
    """The checkpoint to go on from: ``last``, or the newest other one when ``last`` is damaged; ``note`` says which.

    If ``best`` is gone or damaged, the run forgets how good it was, so that its next validation makes a new one.

    Raises:
        InputError: if nothing whole is left (naming what is wrong with ``last``), or ``last`` is of another version.
    """
    try:
        found = load_checkpoint(run / LAST, with_optimizer)
    except InputError as error:
        if error.field == "checkpoint schema":  # another version's: not damage
            raise
        older = next(_other_whole(run, with_optimizer), None)
        if older is None:
            raise
        place = older.folder.relative_to(run)
        note = f"{run / LAST}: {_reason(error)}; going on from {place}, step {older.state.progress.step}"
        found = replace(older, note=note)
    progress = found.state.progress
    lacks_best = progress.best_step >= 0 and not progress.stopped and not is_whole(find_checkpoint(run / BEST))
    if not lacks_best:
        return found
    forgetful = progress.model_copy(update={"best_val_loss": math.inf, "best_step": -1})
    note = f"{run / BEST} is gone or damaged: the next validation makes a new one"
    return replace(
        found, state=found.state.model_copy(update={"progress": forgetful}),
        note=f"{found.note}; {note}" if found.note else note,
    )  # fmt: skip


def _reason(error: InputError) -> str:
    text = str(error)
    return text if len(text) <= 160 else text[:157] + "..."


def _other_whole(run: Path, with_optimizer: bool) -> Iterator[Checkpoint]:
    """Whole checkpoints beside ``last``, newest first."""
    places = [previous_of(run / LAST), run / BEST, previous_of(run / BEST), *(path for _, path in history(run))]
    steps = [(step, place) for place in places if (step := saved_step(place)) is not None]
    for _, place in sorted(steps, key=lambda pair: -pair[0]):
        try:
            yield load_checkpoint(place, with_optimizer)
        except InputError:
            continue

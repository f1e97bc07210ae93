"""``train``: split -> model -> normalisation from the training split only -> loop, in a folder of its own.

A run's folder holds ``best/``, ``last/``, ``config.toml``, ``metrics.jsonl``, ``tensorboard/`` and
``training_distance.safetensors``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from perfuse.config import RunConfig
from perfuse.data.manifest import MANIFEST
from perfuse.data.table import CurveSource
from perfuse.errors import InputError
from perfuse.launch import is_first_process
from perfuse.training.checkpoint import find_checkpoint
from perfuse.training.memory import keep_freed_memory
from perfuse.training.processes import join
from perfuse.training.resume import read_last, was_cut_short
from perfuse.training.run_lock import RunLock
from perfuse.training.session import Session, TrainResult, writable
from perfuse.training.validation import Metric

if TYPE_CHECKING:
    from rich.console import Console


def train(
    source: CurveSource,
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    validate: Metric | None = None,
    console: Console | None = None,
    data_path: str = "",
    on_validation: Callable[[Mapping[str, object]], None] | None = None,
    log_stream: TextIO | None = None,
) -> TrainResult:
    """Train a model and leave a run folder.

    Started by ``perfuse train --devices N``, torchrun or SLURM, every process calls this; the first one writes.

    Args:
        source: The curves; split here.
        config: The run's configuration; defaults that depend on the model are filled in.
        out: Folder of the run; must hold no run unless ``resume``.
        resume: Continue from ``out/last``. On a CPU the result equals an uninterrupted run's bit for bit
            (same machine type, threads and versions).
        validate: Optional metrics of the validation split, logged beside the losses.
        console: Where to show progress; None is silent.
        data_path: What the data was called, for the record.
        on_validation: Called in the first process with every line of ``metrics.jsonl``; what it raises ends the run.
        log_stream: Where the first process prints the lines of ``log.jsonl`` too.

    Raises:
        InputError: for data, options or folders that cannot be used; nothing has been written then.
        Interrupted: after Ctrl-C or SIGTERM, with everything saved.
        LostProcess: when another process of the run has ended, with everything saved.
        PerfuseError: when training cannot go on.
    """
    started = time.monotonic()
    keep_freed_memory()
    out = Path(out)
    lock = RunLock(out)
    try:
        if is_first_process() and out.is_dir():
            with writable(out):
                lock.take()  # before the checkpoint is read: another training might replace it meanwhile
        checkpoint = read_last(out) if resume and not was_cut_short(out) else None
        if checkpoint is None:
            _refuse_existing_run(out)
        place = join(config.training)
        try:
            session = Session(source, config, out, checkpoint, validate, data_path, started, place, lock)
            session.log_stream = log_stream
            return session.run(console if place.world.is_main else None, on_validation)
        finally:
            place.world.close()
    finally:
        lock.release()


def _refuse_existing_run(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("--out", "is not a folder", value=str(out))
    if (out / MANIFEST).exists():
        raise InputError("--out", "holds a dataset", value=str(out), hint="give the run a folder of its own")
    # Without a checkpoint there is nothing to lose: a start that a full disk cut short may be tried again.
    for name in ("last", "best"):
        if (out / name).exists() or find_checkpoint(out / name) is not None:
            raise InputError(
                "--out", "already holds a run", value=str(out), hint="use --resume to continue it, or another folder"
            )

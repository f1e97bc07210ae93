"""Simulated datasets of any size: shards made by one process, several, or a Ray cluster; continued after a kill.

A shard's bytes depend on task, seed and its own curve numbers alone: solver batches are the fixed blocks of 256, one
thread each, and nothing in a shard tells when or by whom it was made. So the number of workers changes nothing.

Axis legend: C curves.
"""

from __future__ import annotations

import csv
import io
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import perfuse
from perfuse.data.manifest import SCHEMA_VERSION, ShardInfo
from perfuse.data.simulate import check_request, generator_config, simulate_block_checked
from perfuse.data.simulation_target import Note, Target, target_for
from perfuse.data.stacking import stack_tables
from perfuse.data.store import manifest_bytes, manifest_for
from perfuse.data.table import CurveTable
from perfuse.data.tasks import BLOCK_CURVES, draw_block
from perfuse.errors import InputError, PerfuseError

SHARD_CURVES = 4096
MAX_FAILED = 0.001
"""Fraction of curves that may fail before the run does."""
MAX_WORKERS = 4096


@cache
def software() -> str:
    """Versions that shards' bytes may depend on."""
    others = (f"{name} {version(name)}" for name in ("numpy", "pyarrow", "torch"))
    return ", ".join((f"perfuse {perfuse.__version__}", *others, platform.machine()))


@dataclass(frozen=True)
class Request:
    """What is simulated, and by which versions; equal requests give equal bytes on one CPU type."""

    task: str
    n: int
    seed: int
    shard_size: int
    schema_version: int = SCHEMA_VERSION
    software: str = field(default_factory=software)

    @property
    def n_shards(self) -> int:
        return -(-self.n // self.shard_size)

    def rows(self, index: int) -> range:
        """Numbers of the curves of a shard."""
        return range(index * self.shard_size, min((index + 1) * self.shard_size, self.n))


@dataclass(frozen=True)
class SimulationReport:
    """What a simulation did.

    Attributes:
        location: Folder or URL of the dataset.
        n_curves: Curves in it.
        failures: Curves that could not be solved: ``curve_id``, ``reason``, ``parameters``.
        n_shards, n_continued: Shards, and those that an earlier run had finished.
        n_bytes: Size of the shards.
        seconds: Of this run.
        rate_curves_s: Curves made a second, in this run.
    """

    location: str
    n_curves: int
    failures: list[dict[str, Any]]
    n_shards: int
    n_continued: int
    n_bytes: int
    seconds: float
    rate_curves_s: float

    @property
    def path(self) -> Path:
        """The dataset's folder (for a local one)."""
        return Path(self.location)

    def lines(self) -> list[str]:
        """What to tell on the console."""
        size = f"{self.n_bytes / 1e6:,.1f} MB in {self.n_shards} shards"
        again = f", {self.n_continued} of them from an earlier run" if self.n_continued else ""
        failed = f"; {len(self.failures)} curves could not be solved (failures.csv)" if self.failures else ""
        return [f"{size}{again}; {self.seconds:.1f} s, {self.rate_curves_s:,.0f} curves/s{failed}"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: shards get the same bits on every worker, and workers do not crowd each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_shard(request: Request, target: Target, index: int) -> Note:
    """Simulate one shard and store it; what a worker does.

    Raises:
        PerfuseError: on a machine with other versions than the one that asked; or when the shard cannot be stored.
    """
    if request.software != software():
        raise PerfuseError(f"a worker has other versions ({software()}) than asked for ({request.software})")
    rows = request.rows(index)
    pieces: list[CurveTable] = []
    failures: list[dict[str, Any]] = []
    with one_thread():
        for block in range(rows.start // BLOCK_CURVES, (rows.stop - 1) // BLOCK_CURVES + 1):
            wanted = range(max(rows.start, block * BLOCK_CURVES), min(rows.stop, (block + 1) * BLOCK_CURVES))
            names = {f"{request.task}-{request.seed}-{i}" for i in wanted}
            table, failed = simulate_block_checked(request.task, request.seed, block)
            failures += [asdict(subject) for subject in failed if subject.curve_id in names]
            if table is None:
                continue
            keep = [row for row, name in enumerate(table.curve_id.tolist()) if name in names]
            if keep:
                pieces.append(table if len(keep) == len(table) else table.take(keep))
    table = stack_tables(pieces) if pieces else None
    pieces.clear()  # half of what a worker holds
    return target.put(index, table, failures)


def simulate_dataset(
    task: str,
    n: int,
    seed: int,
    out: str | Path,
    shard_size: int = SHARD_CURVES,
    *,
    workers: int = 1,
    ray: str | None = None,
    max_failed: float = MAX_FAILED,
    progress: Callable[[int, int], None] | None = None,
) -> SimulationReport:
    """Write ``n`` curves of a task as a dataset; the same call continues where a killed one was.

    A script that asks for several workers needs the usual ``if __name__ == "__main__":`` guard.

    Args:
        task: A name in ``TASKS``.
        n: How many curves.
        seed: Seed.
        out: The folder to make (must not exist, or be empty), or any fsspec URL.
        shard_size: Curves per file.
        workers: Processes on this machine.
        ray: Address of a Ray cluster, or "local" for an embedded one; then ``workers`` is not used, and ``out`` must be
            reachable from every node.
        max_failed: Fraction of curves that may be unsolvable; they are left out and named in ``failures.csv``.
        progress: Called with the curves done so far, and how many of them failed: at the start (with those of an
            earlier run), and after each shard.

    Raises:
        InputError: for a bad request, an ``out`` that is in use, or another request's unfinished shards.
        PerfuseError: when too many curves fail, a worker dies, or the disk refuses; finished shards stay.
    """
    check_request(task, n, seed, 0)
    for name, value, high in (("--shard-size", shard_size, 2**31), ("--workers", workers, MAX_WORKERS)):
        if not 1 <= value <= high:
            raise InputError(name, value=value, allowed=f"1 to {high}")
    if not 0 <= max_failed <= 1:
        raise InputError("--max-failed", value=max_failed, allowed="[0, 1]")
    request, target = Request(task, n, seed, shard_size), target_for(out)
    began = time.monotonic()
    with target.claimed(asdict(request)):
        notes = {i: note for i in target.noted() if (note := target.note(i)) is not None}
        continued = len(notes)
        done = before = sum(len(request.rows(i)) for i in notes)
        n_failed = sum(len(note.failures) for note in notes.values())
        if progress:
            progress(done, n_failed)
        _check_failures(notes, n_failed, max_failed * n, target)
        for index, note in _made(request, target, [i for i in range(request.n_shards) if i not in notes], workers, ray):
            notes[index] = note
            done += len(request.rows(index))
            n_failed += len(note.failures)
            _check_failures(notes, n_failed, max_failed * n, target)
            if progress:
                progress(done, n_failed)
        seconds = time.monotonic() - began
        return _finished(request, target, notes, str(out), continued, seconds, done - before)


def _made(
    request: Request, target: Target, indices: list[int], workers: int, ray: str | None
) -> Iterator[tuple[int, Note]]:
    """Make shards, by whichever means; yields each as it is finished."""
    if ray is not None and indices:
        from perfuse.data.simulation_ray import made_by_ray

        yield from made_by_ray(request, target, indices, ray)
    elif workers > 1 and len(indices) > 1:
        from perfuse.data.simulation_pool import made_by_processes

        yield from made_by_processes(request, target, indices, min(workers, len(indices)))
    else:
        for index in indices:
            yield index, make_shard(request, target, index)


def _failures(notes: dict[int, Note]) -> list[dict[str, Any]]:
    """Of all shards, in the order of their curves."""
    return [failure for index in sorted(notes) for failure in notes[index].failures]


def _check_failures(notes: dict[int, Note], n_failed: int, limit: float, target: Target) -> None:
    if n_failed > limit:
        failures = _failures(notes)
        raise PerfuseError(
            f"{n_failed} curves cannot be solved, more than --max-failed allows; "
            f"the first is {failures[0]['curve_id']}: {failures[0]['reason']}; "
            f"all with their parameters: {target.give_up(failure_csv(failures))}"
        )


def _finished(
    request: Request, target: Target, notes: dict[int, Note], out: str, continued: int, seconds: float, made: int
) -> SimulationReport:
    ordered = [notes[i] for i in range(request.n_shards)]
    shards: list[ShardInfo] = [note.shard for note in ordered if note.shard is not None]
    failures = _failures(notes)
    if not shards:
        raise PerfuseError(f"not one curve could be solved; see {target.give_up(failure_csv(failures))}")
    shape = draw_block(request.task, request.seed, 0)
    manifest = manifest_for(shape, shards, generator_config(request.task, request.n), request.seed, len(failures))
    target.finish(manifest_bytes(manifest), failure_csv(failures) if failures else None)
    return SimulationReport(
        out, manifest.n_curves, failures, len(shards), continued, sum(s.bytes for s in shards), seconds,
        made / seconds if seconds else 0.0,
    )  # fmt: skip


def failure_csv(failures: list[dict[str, Any]]) -> bytes:
    """A row for every curve that could not be solved: its name, why, and all its parameters."""
    text = io.StringIO()
    names = list(failures[0]["parameters"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["curve_id", "reason", *names])
    for failure in failures:
        values = (" ".join(f"{v:.17g}" for v in np.ravel(failure["parameters"][name])) for name in names)
        writer.writerow([failure["curve_id"], failure["reason"], *values])
    return text.getvalue().encode()


THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def single_threaded_children() -> Iterator[None]:
    """Processes started meanwhile use one BLAS thread."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

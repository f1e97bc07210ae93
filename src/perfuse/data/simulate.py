"""Simulating the task suite: blocks of curves are drawn (``data.tasks``), solved, and written as a dataset.

Curve i of a task and seed is one and the same, to the last bit, whatever is asked for beside it: fixed blocks of 256
are drawn and solved as a whole. Equality of bits holds for one machine type and set of library versions.

Axis legend: C curves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from perfuse.data.stacking import stack_tables
from perfuse.data.store import write_dataset
from perfuse.data.table import LOQ_FRACTION, CurveTable, dose_events, system_parameters
from perfuse.data.tasks import BLOCK_CURVES, TASKS, draw_block
from perfuse.errors import InputError
from perfuse.pk.mechanistic import organ_concentrations, solve


def solved(table: CurveTable) -> CurveTable:
    """The table with ``conc_mg_l`` (venous blood in its first row) computed by the exact solver."""
    system = system_parameters(table)
    amounts = solve(system, dose_events(table), torch.as_tensor(np.ascontiguousarray(table.time_h)))
    return replace(table, conc_mg_l=organ_concentrations(system, amounts).numpy())


def simulate_block(task: str, seed: int, block: int) -> CurveTable:
    """Curves ``256 block .. 256 block + 255`` of a task, solved."""
    return TASKS[task].finish(solved(draw_block(task, seed, block)))


def _check_request(task: str, n: int, seed: int, start: int) -> None:
    if task not in TASKS:
        raise InputError("--task", "cannot be simulated", value=task, allowed=", ".join(TASKS))
    if n < 1:
        raise InputError("--n", value=n, unit="curves", allowed=">= 1")
    if not 0 <= seed < 2**63:
        raise InputError("--seed", value=seed, allowed="[0, 2**63)")
    if start < 0 or start + n > 2**40:
        raise InputError("start", value=start, allowed=">= 0 and start + n <= 2**40")


def simulate_task(task: str, n: int, seed: int, start: int = 0) -> CurveTable:
    """Curves ``start .. start + n - 1`` of a task: 100 times, all 14 organs, venous blood.

    Args:
        task: A name in ``TASKS``.
        n: How many curves.
        seed: Seed of the task's random streams.
        start: Number of the first curve; different ranges of one seed are disjoint samples.

    Raises:
        InputError: for an unknown task, or a number out of range.
    """
    _check_request(task, n, seed, start)
    first, last = start // BLOCK_CURVES, (start + n - 1) // BLOCK_CURVES
    pieces = []
    for block in range(first, last + 1):
        lo = max(start - block * BLOCK_CURVES, 0)
        hi = min(start + n - block * BLOCK_CURVES, BLOCK_CURVES)
        table = simulate_block(task, seed, block)
        pieces.append(table if hi - lo == BLOCK_CURVES else table.take(np.arange(lo, hi)))
    return pieces[0] if len(pieces) == 1 else stack_tables(pieces)


def generator_config(task: str, n: int) -> dict[str, object]:
    """What a manifest tells about a simulated dataset: the task, its size and its distributions."""
    about = {
        "task": task,
        "about": TASKS[task].about,
        "n": n,
        "block_curves": BLOCK_CURVES,
        "loq_fraction": LOQ_FRACTION,
    }
    return {**about, **TASKS[task].distributions}


def simulate_dataset(
    task: str, n: int, seed: int, out: Path, shard_size: int = 4096, progress: Callable[[int], None] | None = None
) -> Path:
    """Write ``n`` curves of a task as a dataset folder (see ``data.store``).

    Args:
        task: A name in ``TASKS``.
        n: How many curves.
        seed: Seed.
        out: The folder to make; must not exist, or be empty.
        shard_size: Curves per file.
        progress: Called with the number of curves done so far after each shard.

    Raises:
        InputError: for a bad request or an ``out`` that is in use.
        PerfuseError: when the disk refuses.
    """
    _check_request(task, n, seed, 0)
    if shard_size < 1:
        raise InputError("shard_size", value=shard_size, unit="curves", allowed=">= 1")

    def shards() -> Iterator[CurveTable]:
        for start in range(0, n, shard_size):
            size = min(shard_size, n - start)
            yield simulate_task(task, size, seed, start)
            if progress:
                progress(start + size)

    return write_dataset(shards(), out, generator=generator_config(task, n), seed=seed)

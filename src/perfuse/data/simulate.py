"""Simulating the task suite in memory: blocks of curves are drawn (``data.tasks``) and solved.

Curve i of a task and seed is one and the same, to the last bit, whatever is asked for beside it: fixed blocks of 256
are drawn and solved as a whole. Equality of bits holds for one machine type and set of library versions.

Axis legend: C curves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from perfuse.data.stacking import stack_tables
from perfuse.data.table import LOQ_FRACTION, CurveTable, dose_events, system_parameters
from perfuse.data.tasks import BLOCK_CURVES, TASKS, draw_block
from perfuse.errors import InputError, PerfuseError
from perfuse.pk.mechanistic import organ_concentrations, solve


def solved(table: CurveTable) -> CurveTable:
    """The table with ``conc_mg_l`` (venous blood in its first row) computed by the exact solver."""
    system = system_parameters(table)
    amounts = solve(system, dose_events(table), torch.as_tensor(np.ascontiguousarray(table.time_h)))
    return replace(table, conc_mg_l=organ_concentrations(system, amounts).numpy())


def simulate_block(task: str, seed: int, block: int) -> CurveTable:
    """Curves ``256 block .. 256 block + 255`` of a task, solved."""
    return TASKS[task].finish(solved(draw_block(task, seed, block)))


@dataclass(frozen=True)
class FailedSubject:
    """A curve that could not be solved: its name, why, and everything that made it."""

    curve_id: str
    reason: str
    parameters: dict[str, list[float]]


_SUBJECT_COLUMNS = (
    "body_weight_kg", "volume_l", "flow_l_h", "kp", "elimination_l_h", "fup", "bp_ratio", "ps_l_h", "vmax_mg_h",
    "km_u_mg_l", "dose_time_h", "dose_mg", "dose_duration_h", "dose_route", "ka_1_h", "lag_h", "f_abs",
)  # fmt: skip


def _impossible(table: CurveTable) -> np.ndarray:
    """Curves ``(C,)`` with a concentration that is negative or not finite."""
    return ~(np.isfinite(table.conc_mg_l) & (table.conc_mg_l >= 0)).all((1, 2))


def _solved_alone(table: CurveTable, row: int) -> CurveTable | FailedSubject:
    one = table.take([row])
    try:
        out = solved(one)
        if not _impossible(out).any():
            return out
        reason = "a concentration is negative or not finite"
    except (PerfuseError, FloatingPointError, RuntimeError) as error:
        reason = " ".join(str(error).split())
    parameters = {name: np.ravel(one.column(name)).astype(float).tolist() for name in _SUBJECT_COLUMNS}
    return FailedSubject(str(one.curve_id[0]), reason, parameters)


def simulate_block_checked(task: str, seed: int, block: int) -> tuple[CurveTable | None, list[FailedSubject]]:
    """A solved block without the curves that cannot be solved, and those by name; None when none can.

    The block is solved as a whole; only where that fails, or gives what cannot be, is each curve solved by itself.
    """
    drawn = draw_block(task, seed, block)
    try:
        whole = solved(drawn)
        suspect = np.flatnonzero(_impossible(whole))
    except (PerfuseError, FloatingPointError, RuntimeError):
        whole, suspect = drawn, np.arange(len(drawn))
    if not len(suspect):
        return TASKS[task].finish(whole), []
    conc, failed = whole.conc_mg_l.copy(), []
    for row in suspect.tolist():
        alone = _solved_alone(drawn, row)
        if isinstance(alone, FailedSubject):
            failed.append(alone)
        else:
            conc[row] = alone.conc_mg_l[0]
    names = {subject.curve_id for subject in failed}
    good = [row for row, name in enumerate(drawn.curve_id.tolist()) if name not in names]
    table = TASKS[task].finish(replace(whole, conc_mg_l=conc).take(good)) if good else None
    return table, failed


def check_request(task: str, n: int, seed: int, start: int) -> None:
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
    check_request(task, n, seed, start)
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

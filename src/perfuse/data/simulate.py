"""Simulated curves of the task suite: T1 (origin's hub) and T2 (population on the circulation).

Curve i of a task and seed is one and the same, to the last bit, whatever is asked for beside it: curves come in
fixed blocks of 256, each drawn from its own counter-based stream (Philox, key = seed and block number) and solved
as a whole. Equality of bits holds for one machine type, thread count and set of library versions.

Axis legend: C curves, O reported organs, M eliminations, T times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from perfuse.data.stacking import stack_tables
from perfuse.data.store import write_dataset
from perfuse.data.table import LOQ_FRACTION, CurveTable, dose_events, parameter_group, system_parameters
from perfuse.errors import InputError
from perfuse.pk.mechanistic import organ_concentrations, solve
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, hub_reference, human_reference
from perfuse.pk.population import sample_adults
from perfuse.pk.topology import get_topology

BLOCK_CURVES = 256
TASKS = {"T1": 1, "T2": 2}
"""Tasks that can be simulated, with the number that keys their random streams."""

T_MAX_H = 24.0
N_TIMES = 100
DOSE_RANGE_MG = (10.0, 1000.0)

# LogN(mu, s) here is exp(N(mu, s)): in the origin's own file ln CL_hepatic has mean 1.84 and sd 1.02 over 100
# curves, which fits N(2, 1) within its standard error of 0.1 and excludes a median of 2 (mean of logs 0.69).
CL_HEPATIC_LOG = (2.0, 1.0)
CL_RENAL_LOG = (1.5, 0.8)
KP_LOG = {"brain": (-0.5, 0.5), "adipose": (1.0, 0.8), "liver": (0.5, 0.6)}
KP_LOG_OTHERS = (0.0, 0.5)

# T2's drug, beyond T1's. CLint's median, 200 L/h for the reference liver, gives at fup 0.1 an extraction of 0.17.
FUP_RANGE = (0.01, 1.0)
BP_RANGE = (0.55, 2.0)
CLINT_LOG = (5.3, 1.3)
MAX_RENAL_EXTRACTION = 0.9


def _draw_kp(random: np.random.Generator, n: int) -> np.ndarray:
    """Partition coefficients ``(C, O)``; 1 for blood."""
    mean_sd = np.asarray([KP_LOG.get(organ, KP_LOG_OTHERS) for organ in ORGANS])
    kp = np.exp(mean_sd[:, 0] + mean_sd[:, 1] * random.standard_normal((n, len(ORGANS))))
    kp[:, ORGAN_INDEX["blood"]] = 1.0
    return kp


def _log_normal(random: np.random.Generator, mean_sd: tuple[float, float], n: int) -> np.ndarray:
    return np.exp(mean_sd[0] + mean_sd[1] * random.standard_normal(n))


def _draw_t1(random: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """T1: the origin's fixed body and its parameter distributions; clearances are blood clearances."""
    body = hub_reference()
    return {
        "body_weight_kg": np.full(n, body.body_weight_kg),
        "volume_l": np.tile(body.volume_l, (n, 1)),
        "flow_l_h": np.tile(body.flow_l_h, (n, 1)),
        "elimination_l_h": np.column_stack(
            (_log_normal(random, CL_HEPATIC_LOG, n), _log_normal(random, CL_RENAL_LOG, n))
        ),
        "kp": _draw_kp(random, n),
        "fup": np.ones(n),
        "bp_ratio": np.ones(n),
    }


def _draw_t2(random: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """T2: people of 40-120 kg (``sample_adults``) and drugs like T1's, with binding and intrinsic clearance.

    Kp (tissue:plasma) as in T1; fup log-uniform in 0.01-1; B:P uniform in 0.55-2; unbound CLint LogN(5.3, 1.3)
    L/h for the reference liver, times the person's liver volume over it; renal plasma clearance LogN(1.5, 0.8)
    L/h at 70 kg, times (weight / 70)^0.75, limited to a renal blood extraction of 0.9 (which is rare).
    """
    weight_kg, volume_l, flow_l_h = sample_adults(random, n)
    fup = np.exp(random.uniform(math.log(FUP_RANGE[0]), math.log(FUP_RANGE[1]), n))
    bp_ratio = random.uniform(*BP_RANGE, n)
    liver_l = volume_l[:, ORGAN_INDEX["liver"]] / human_reference(70.0).volume_l[ORGAN_INDEX["liver"]]
    clint = _log_normal(random, CLINT_LOG, n) * liver_l
    cl_renal = _log_normal(random, CL_RENAL_LOG, n) * (weight_kg / 70.0) ** 0.75
    cl_renal = np.minimum(cl_renal, MAX_RENAL_EXTRACTION * flow_l_h[:, ORGAN_INDEX["kidney"]] * bp_ratio)
    return {
        "body_weight_kg": weight_kg,
        "volume_l": volume_l,
        "flow_l_h": flow_l_h,
        "elimination_l_h": np.column_stack((clint, cl_renal)),
        "kp": _draw_kp(random, n),
        "fup": fup,
        "bp_ratio": bp_ratio,
    }


def solved(table: CurveTable) -> CurveTable:
    """The table with ``conc_mg_l`` (venous blood in its first row) computed by the exact solver."""
    system = system_parameters(table)
    amounts = solve(system, dose_events(table), torch.as_tensor(np.ascontiguousarray(table.time_h)))
    return replace(table, conc_mg_l=organ_concentrations(system, amounts).numpy())


def _simulate_block(task: str, seed: int, block: int) -> CurveTable:
    """Curves ``256 block .. 256 block + 255`` of a task."""
    key = np.asarray([seed, TASKS[task] << 48 | block], dtype=np.uint64)
    random = np.random.Generator(np.random.Philox(key=key))
    n = BLOCK_CURVES
    dose_mg = random.uniform(*DOSE_RANGE_MG, n)
    drawn = (_draw_t1 if task == "T1" else _draw_t2)(random, n)
    names = np.asarray([f"{task}-{seed}-{i}" for i in range(block * n, (block + 1) * n)], dtype=str)
    shape = (n, len(ORGANS), N_TIMES)
    table = CurveTable(
        topology=get_topology("hub" if task == "T1" else "circulation"),
        curve_id=names,
        compound_id=names,
        group_id=parameter_group(drawn["kp"], drawn["elimination_l_h"], drawn["fup"], drawn["bp_ratio"]),
        dose_time_h=np.zeros((n, 1)),
        dose_mg=dose_mg[:, None],
        dose_duration_h=np.zeros((n, 1)),
        time_h=np.tile(np.linspace(0.0, T_MAX_H, N_TIMES), (n, 1)),
        conc_mg_l=np.full(shape, np.nan),
        censored=np.zeros(shape, dtype=bool),
        loq_mg_l=LOQ_FRACTION * dose_mg / drawn["volume_l"][:, ORGAN_INDEX["blood"]],
        matrix=np.full(n, "blood_venous"),
        **drawn,
    )
    return solved(table)


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
    """Curves ``start .. start + n - 1`` of a task: IV bolus, 100 times in 24 h, all 14 organs, venous blood.

    Args:
        task: ``T1`` or ``T2``.
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
        table = _simulate_block(task, seed, block)
        pieces.append(table if hi - lo == BLOCK_CURVES else table.take(np.arange(lo, hi)))
    return pieces[0] if len(pieces) == 1 else stack_tables(pieces)


def generator_config(task: str, n: int) -> dict[str, object]:
    """What a manifest tells about a simulated dataset: the task, its size and its distributions."""
    config: dict[str, object] = {
        "task": task,
        "n": n,
        "block_curves": BLOCK_CURVES,
        "t_max_h": T_MAX_H,
        "n_times": N_TIMES,
        "dose_mg_uniform": list(DOSE_RANGE_MG),
        "cl_renal_l_h_log_normal": list(CL_RENAL_LOG),
        "kp_log_normal": {organ: list(KP_LOG.get(organ, KP_LOG_OTHERS)) for organ in ORGANS[1:]},
        "loq_fraction": LOQ_FRACTION,
    }
    if task == "T1":
        return config | {"cl_hepatic_l_h_log_normal": list(CL_HEPATIC_LOG)}
    return config | {
        "fup_log_uniform": list(FUP_RANGE),
        "bp_ratio_uniform": list(BP_RANGE),
        "clint_l_h_log_normal": list(CLINT_LOG),
        "max_renal_extraction": MAX_RENAL_EXTRACTION,
    }


def simulate_dataset(
    task: str, n: int, seed: int, out: Path, shard_size: int = 4096, progress: Callable[[int], None] | None = None
) -> Path:
    """Write ``n`` curves of a task as a dataset folder (see ``data.store``).

    Args:
        task: ``T1`` or ``T2``.
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

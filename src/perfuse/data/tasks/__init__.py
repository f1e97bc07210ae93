"""The task suite T1-T7: what is drawn for each, block by block. Solving is ``data.simulate``'s.

Curve i of a task and seed is one and the same whatever is asked for beside it: curves come in fixed blocks of 256, each
drawn from its own counter-based stream (Philox, key = seed, task and block number).

Axis legend: C curves, O reported organs, T times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from perfuse.data.table import LOQ_FRACTION, CurveTable, parameter_group
from perfuse.data.tasks import bodies_and_drugs as drawn
from perfuse.data.tasks import regimens
from perfuse.data.tasks.bodies_and_drugs import Columns
from perfuse.data.tasks.descriptors import draw_descriptors, hide_derived
from perfuse.data.tasks.shift import draw_children, draw_rats
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS
from perfuse.pk.topology import get_topology

BLOCK_CURVES = 256


@dataclass(frozen=True)
class Task:
    """One task of the suite.

    Attributes:
        name: As the command line writes it.
        key: Keys its random streams; never reused.
        topology: Its organ graph.
        draw: ``n`` rows from a generator: every column that the solver needs.
        about: What it is, one line.
        distributions: What a manifest tells of it.
        finish: What is done to a solved table (T7 hides what was derived from descriptors).
    """

    name: str
    key: int
    topology: str
    draw: Callable[[np.random.Generator, int], Columns]
    about: str
    distributions: Mapping[str, object] = field(default_factory=dict)
    finish: Callable[[CurveTable], CurveTable] = lambda table: table


def _t1(random: np.random.Generator, n: int) -> Columns:
    dose_mg = random.uniform(*regimens.DOSE_RANGE_MG, n)
    return regimens.single_bolus(dose_mg) | drawn.draw_origin(random, n)


def _t2(random: np.random.Generator, n: int) -> Columns:
    dose_mg = random.uniform(*regimens.DOSE_RANGE_MG, n)
    people = drawn.draw_people(random, n)
    return regimens.single_bolus(dose_mg) | people | drawn.draw_drugs(random, people)


def _t3(random: np.random.Generator, n: int) -> Columns:
    people = drawn.draw_people(random, n)
    drugs = drawn.draw_drugs(random, people)
    return people | drugs | regimens.draw_regimens(random, n)


def _t4(random: np.random.Generator, n: int) -> Columns:
    columns = _t2(random, n)
    return drawn.make_saturable(random, columns, columns["dose_mg"][:, 0])


def _t5_children(random: np.random.Generator, n: int) -> Columns:
    people = draw_children(random, n)
    dose_mg = random.uniform(*regimens.DOSE_RANGE_MG, n) * people["body_weight_kg"] / 70.0
    return regimens.single_bolus(dose_mg) | people | drawn.draw_drugs(random, people)


def _t5_rat(random: np.random.Generator, n: int) -> Columns:
    rats = draw_rats(random, n)
    dose_mg = random.uniform(*regimens.DOSE_RANGE_MG, n) * rats["body_weight_kg"] / 70.0
    return regimens.single_bolus(dose_mg) | rats | drawn.draw_drugs(random, rats)


def _t5_wide(random: np.random.Generator, n: int) -> Columns:
    dose_mg = random.uniform(*regimens.DOSE_RANGE_MG, n)
    people = drawn.draw_people(random, n)
    return regimens.single_bolus(dose_mg) | people | drawn.draw_drugs(random, people, widen=2.0)


def _t7(random: np.random.Generator, n: int) -> Columns:
    dose_mg = random.uniform(*regimens.DOSE_RANGE_MG, n)
    people = drawn.draw_people(random, n)
    return regimens.single_bolus(dose_mg) | people | draw_descriptors(random, people)


_ORIGIN = {
    "cl_hepatic_l_h_log_normal": list(drawn.CL_HEPATIC_LOG),
    "cl_renal_l_h_log_normal": list(drawn.CL_RENAL_LOG),
    "kp_log_normal": {organ: list(drawn.KP_LOG.get(organ, drawn.KP_LOG_OTHERS)) for organ in ORGANS[1:]},
}
_DRUGS = {
    "cl_renal_l_h_log_normal": list(drawn.CL_RENAL_LOG),
    "kp_log_normal": _ORIGIN["kp_log_normal"],
    "fup_log_uniform": list(drawn.FUP_RANGE),
    "bp_ratio_uniform": list(drawn.BP_RANGE),
    "clint_l_h_log_normal": list(drawn.CLINT_LOG),
    "max_renal_extraction": drawn.MAX_RENAL_EXTRACTION,
}
_REGIMENS = {
    "t_max_h": regimens.REGIMEN_T_MAX_H,
    "infusion_h_uniform": list(regimens.INFUSION_RANGE_H),
    "interval_h": list(regimens.INTERVALS_H),
    "max_doses": regimens.MAX_DOSES,
    "ka_1_h_log_normal": list(regimens.KA_LOG),
    "lag_h_max": regimens.MAX_LAG_H,
    "f_abs_uniform": list(regimens.F_ABS_RANGE),
}
_SATURABLE = {
    "saturable_share_of_clint": drawn.SATURABLE_SHARE,
    "fup_dose_over_vss_km_u_log_uniform": list(drawn.SATURATION_RANGE),
}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("T1", 1, "hub", _t1, "the origin's fixed body and distributions, IV bolus", _ORIGIN),
        Task("T2", 2, "circulation", _t2, "people of 40-120 kg, IV bolus", _DRUGS),
        Task("T3", 3, "circulation", _t3, "infusions, oral, repeated and mixed doses, irregular times",
             _DRUGS | _REGIMENS),
        Task("T4", 4, "circulation", _t4, "saturable hepatic metabolism", _DRUGS | _SATURABLE),
        Task("T5", 5, "circulation", _t2, "adults to train on, for the three shifted test sets", _DRUGS),
        Task("T5-children", 51, "circulation", _t5_children, "children of 2-18 years", _DRUGS),
        Task("T5-rat", 52, "circulation", _t5_rat, "rats", _DRUGS),
        Task("T5-wide", 53, "circulation", _t5_wide, "Kp and clearances twice as wide (in the log) as in training",
             _DRUGS | {"widen": 2.0}),
        Task("T6", 6, "circulation", _t2, "T2 with few curves to train on (80)", _DRUGS),
        Task("T7", 7, "circulation-ps", _t7, "descriptors only: no Kp, no organ clearance", {}, hide_derived),
    )
}  # fmt: skip
"""Every task that can be simulated, by name."""


def task_generator(task: str, seed: int, block: int) -> np.random.Generator:
    """The random stream of one block of a task: Philox, keyed by seed, task and block number."""
    key = np.asarray([seed, TASKS[task].key << 48 | block], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def draw_block(task: str, seed: int, block: int) -> CurveTable:
    """Curves ``256 block .. 256 block + 255`` of a task, not yet solved (concentrations NaN)."""
    n = BLOCK_CURVES
    columns = TASKS[task].draw(task_generator(task, seed, block), n)
    names = np.asarray([f"{task}-{seed}-{i}" for i in range(block * n, (block + 1) * n)], dtype=str)
    shape = (n, len(ORGANS), columns["time_h"].shape[1])
    total_mg = columns["dose_mg"].sum(1)
    table = CurveTable(
        topology=get_topology(TASKS[task].topology),
        curve_id=names,
        compound_id=names,
        group_id=np.empty(0),
        conc_mg_l=np.full(shape, np.nan),
        censored=np.zeros(shape, dtype=bool),
        loq_mg_l=LOQ_FRACTION * total_mg / columns["volume_l"][:, ORGAN_INDEX["blood"]],
        matrix=np.full(n, "blood_venous"),
        **columns,
    )
    return replace(table, group_id=_groups(table))


def _groups(table: CurveTable) -> np.ndarray:
    """Parameter groups; saturable pathways are part of the drug."""
    columns = [table.kp, table.elimination_l_h, table.fup, table.bp_ratio]
    if (table.vmax_mg_h > 0).any():
        columns += [table.vmax_mg_h, table.km_u_mg_l]
    return parameter_group(*columns)

"""The solvers beside SUNDIALS CVODE and scipy's LSODA: error, order of convergence, mass balance and speed.

Speed is per curve of 14 organs x 100 times (topology ``circulation``), at equal measured error: LSODA (``solve_ivp``,
analytic Jacobian, a right-hand side of one matrix product and a few scalars) and the saturable solver each run at the
loosest tolerance whose largest error against CVODE at rtol 1e-11 is at most 1e-5, over organ concentrations above the
LOQ (1e-5 dose / V_blood). Arms take turns, forwards and backwards by turns; ratios are taken within rounds.
As in ``speed.py`` the targets count against one LSODA process, which cannot use a second core for a curve, while the
package solves on both cores (two processes of one thread); "core for core" is one process each.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each process is one core

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.special import lambertw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/solvers.py

from benchmarks.common import Spread, machine, machine_line, markdown_table, rate, write_results
from perfuse.data.loader import select_curves
from perfuse.data.table import dose_events, system_parameters
from perfuse.data.tasks import BLOCK_CURVES, draw_block
from perfuse.pk import mechanistic
from perfuse.pk.mechanistic import half_saturation_mg, organ_concentrations, saturable_sink, solve
from perfuse.pk.reference import CurveEquations, curve_equations, solve_cvode
from perfuse.pk.saturable import solve_saturable
from perfuse.pk.system import DoseEvents, SystemParameters

TARGET_ERROR = 1e-5
TARGETS = {"linear, uniform times": 150.0, "linear, irregular times": 30.0, "saturable, uniform times": 20.0,
           "saturable, irregular times": 20.0}  # fmt: skip
LINEAR_BATCH = 128
"""Curves that the linear solver gets at once: their matrices stay in the cache. The saturable one cuts them itself."""
LSODA_RTOL = (3e-6, 1e-6, 3e-7, 1e-7, 3e-8, 1e-8)
TOLERANCES = (1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7)


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    curves: int = 512
    checked: int = 128
    rounds: int = 5
    turn_s: float = 1.5
    draws: int = 10_000
    seed: int = 0


QUICK = Settings(curves=512, checked=16, rounds=2, turn_s=0.4, draws=512)


@dataclass(frozen=True)
class Case:
    """Curves to solve: systems, doses and times, ``(B, ...)``."""

    system: SystemParameters
    doses: DoseEvents
    time_h: torch.Tensor

    def first(self, n: int) -> Case:
        """Its first curves."""
        return self.rows(torch.arange(n))

    def rows(self, rows: torch.Tensor) -> Case:
        """Some of its curves."""
        return Case(select_curves(self.system, rows), select_curves(self.doses, rows), self.time_h[rows])


def drawn(task: str, n: int, seed: int) -> Case:
    """Curves of a task, in float64."""
    parts = [draw_block(task, seed, block) for block in range(-(-n // BLOCK_CURVES))]
    cases = [
        Case(system_parameters(t).to(torch.float64), dose_events(t).to(torch.float64),
             torch.as_tensor(np.ascontiguousarray(t.time_h)))
        for t in parts
    ]  # fmt: skip
    if len(cases) == 1:
        return cases[0].first(n)
    width = max(c.doses.time_h.shape[1] for c in cases)
    return Case(_joined([c.system for c in cases]), _joined([_padded(c.doses, width) for c in cases]),
                torch.cat([c.time_h for c in cases])).first(n)  # fmt: skip


def _padded(doses: DoseEvents, width: int) -> DoseEvents:
    more = width - doses.time_h.shape[1]
    wide = {
        k: torch.nn.functional.pad(getattr(doses, k), (0, more)) for k in ("time_h", "amount_mg", "duration_h", "route")
    }
    return replace(doses, **wide)


def _joined(records: Sequence[Any]) -> Any:
    first = records[0]
    return replace(first, **{k: torch.cat([getattr(r, k) for r in records]) for k, v in vars(first).items()
                             if isinstance(v, torch.Tensor)})  # fmt: skip


@cache
def case_named(name: str, n: int, seed: int) -> Case:
    """The cases whose speed is measured."""
    case = drawn("T4" if name.startswith("saturable") else "T2", n, seed)
    if name.endswith("irregular times"):
        random = np.random.default_rng(seed)
        times = np.sort(random.uniform(0, 24, case.time_h.shape), 1)
        case = replace(case, time_h=torch.as_tensor(times))
    return case


def saturable_regimens(n: int, seed: int, pathways: int = 2) -> Case:
    """Task T3's regimens and irregular times with saturable pathways, each with T4's range of saturation."""
    case = drawn("T3", n, seed)
    random = np.random.default_rng(seed)
    system = case.system
    exposure = system.fup * case.doses.amount_mg.amax(1) / (system.volume_l * system.kp).sum(1)
    km = exposure[:, None] / torch.as_tensor(10 ** random.uniform(-2, 2, (n, pathways)))
    share = torch.as_tensor(random.dirichlet(np.ones(pathways), n))
    clint = system.elimination_l_h[:, :1]
    linear = torch.cat((0.1 * clint, system.elimination_l_h[:, 1:]), 1)
    return replace(
        case, system=replace(system, elimination_l_h=linear, vmax_mg_h=0.9 * km * clint * share, km_u_mg_l=km)
    )


def solved(case: Case, tolerance: float, with_sinks: bool = False) -> torch.Tensor:
    """Amounts by the package's solvers; the tolerance counts where kinetics are saturable."""
    if case.system.is_linear:
        pieces = [case.rows(rows) for rows in torch.arange(len(case.time_h)).split(LINEAR_BATCH)]
        return torch.cat([solve(c.system, c.doses, c.time_h, with_sinks) for c in pieces])
    topology = case.system.topology
    generator = mechanistic.generator_matrix(topology, mechanistic.mechanistic_rates(case.system), with_sinks)
    assert topology.saturable_node is not None
    return solve_saturable(
        generator, topology.saturable_node, topology.n_nodes + saturable_sink(topology) if with_sinks else None,
        case.system.vmax_mg_h, half_saturation_mg(case.system), topology.dose_node, topology.absorption_node,
        case.doses, case.time_h, tolerance=tolerance,
    )  # fmt: skip


def lsoda(equations: CurveEquations, dose_mg: float, time_h: np.ndarray, rtol: float) -> np.ndarray:
    """Amounts ``(N, T)`` after a bolus at time 0; the absolute tolerance is 1e-5 of the dose times the relative one."""
    matrix, node = equations.matrix[:-1, :-1], equations.node
    vmax, half = (float(x[0]) if len(x) else 0.0 for x in (equations.vmax_mg_h, equations.half_mg))
    half = half or 1.0

    def derivative(t: float, amount: np.ndarray) -> np.ndarray:
        out = matrix @ amount
        out[node] -= vmax * amount[node] / (half + amount[node])
        return out

    def jacobian(t: float, amount: np.ndarray) -> np.ndarray:
        out = matrix.copy()
        out[node, node] -= vmax * half / (half + amount[node]) ** 2
        return out

    start = np.zeros(len(matrix))
    start[equations.dose_node] = dose_mg
    solution = solve_ivp(derivative, (0.0, time_h[-1]), start, "LSODA", time_h, rtol=rtol, atol=rtol * 1e-5 * dose_mg,
                         jac=jacobian)  # fmt: skip
    if not solution.success:
        raise RuntimeError(f"LSODA failed: {solution.message}")
    return solution.y


def errors(case: Case, amounts: torch.Tensor, reference: torch.Tensor) -> np.ndarray:
    """Each curve's largest relative error of an organ concentration above the LOQ."""
    n = case.system.topology.n_nodes
    ours, exact = (organ_concentrations(case.system, a[:, :n]) for a in (amounts, reference))
    blood = torch.as_tensor([x in ("venous", "arterial") for x in case.system.topology.nodes])
    loq = 1e-5 * case.doses.amount_mg.sum(1) / case.system.volume_l[:, blood].sum(1)
    off = torch.where(exact > loq[:, None, None], (ours - exact).abs() / exact, 0.0)
    return off.amax((1, 2)).numpy()


def quantiles(e: np.ndarray) -> tuple[str, ...]:
    """Median, 99 % and largest."""
    return tuple(f"{x:.1e}" for x in (*np.quantile(e, [0.5, 0.99]), e.max()))


@cache
def _equations(name: str, n: int, seed: int) -> list[CurveEquations]:
    case = case_named(name, n, seed)
    return curve_equations(case.system, case.doses)


def solver_turn(name: str, solver: str, tolerance: float, s: Settings) -> float:
    """Curves/s of one arm in this process."""
    torch.set_num_threads(1)
    case = case_named(name, s.curves, s.seed)
    if solver == "perfuse":
        return rate(lambda: solved(case, tolerance), s.curves, s.turn_s)
    equations, next_row = _equations(name, s.curves, s.seed), 0

    def one() -> None:
        nonlocal next_row
        row = next_row % s.curves
        lsoda(equations[row], float(case.doses.amount_mg[row, 0]), case.time_h[row].numpy(), tolerance)
        next_row += 1

    return rate(one, 1, s.turn_s)


def loosest(case: Case, reference: torch.Tensor, solver: str) -> tuple[float, np.ndarray]:
    """The loosest tolerance whose largest error is within the target (or the tightest there is), and its errors."""
    if case.system.is_linear and solver == "perfuse":
        return 0.0, errors(case, solved(case, 0.0), reference)
    equations = curve_equations(case.system, case.doses)
    off = np.array([np.inf])
    tolerance = np.nan
    for tolerance in TOLERANCES if solver == "perfuse" else LSODA_RTOL:
        if solver == "perfuse":
            amounts = solved(case, tolerance)
        else:
            curves = [
                lsoda(own, float(case.doses.amount_mg[i, 0]), case.time_h[i].numpy(), tolerance)
                for i, own in enumerate(equations)
            ]
            amounts = torch.as_tensor(np.stack(curves))
        off = errors(case, amounts, reference)
        if off.max() <= TARGET_ERROR:
            break
    return tolerance, off


@dataclass(frozen=True)
class SpeedRow:
    """A case with both solvers at equal error."""

    name: str
    tolerances: dict[str, float]
    largest_error: dict[str, float]
    curves_per_s: dict[str, list[float]]
    core_for_core: list[float]
    two_cores: list[float]
    target: float

    @property
    def met(self) -> bool:
        return Spread.of(self.two_cores).median >= self.target


def _turns(
    pools: Sequence[ProcessPoolExecutor], name: str, tolerances: dict[str, float], s: Settings
) -> dict[str, Callable[[], float]]:
    """Arms: the package in one process and in two, LSODA in one."""

    def turn(solver: str, processes: int) -> float:
        jobs = [pool.submit(solver_turn, name, solver, tolerances[solver], s) for pool in pools[:processes]]
        return sum(job.result() for job in jobs)

    return {
        "perfuse, 2 processes": lambda: turn("perfuse", 2),
        "perfuse, 1 process": lambda: turn("perfuse", 1),
        "LSODA, 1 process": lambda: turn("LSODA", 1),
    }


def speed(s: Settings) -> list[SpeedRow]:
    """All cases; three arms each, in turns."""
    rows = []
    # One pool a process: a pool of two may run two jobs one after the other, each at full speed.
    pool = lambda: ProcessPoolExecutor(1, mp_context=get_context("spawn"))  # noqa: E731
    with pool() as first, pool() as second:
        for name, target in TARGETS.items():
            checked = case_named(name, s.curves, s.seed).first(s.checked)
            reference = solve_cvode(checked.system, checked.doses, checked.time_h, rtol=1e-11)
            chosen = {solver: loosest(checked, reference, solver) for solver in ("perfuse", "LSODA")}
            turns = _turns((first, second), name, {k: v[0] for k, v in chosen.items()}, s)
            rates: dict[str, list[float]] = {arm: [] for arm in turns}
            for turn in turns.values():  # every process draws its curves once before anything counts
                turn()
            for number in range(s.rounds):
                for arm in list(turns) if number % 2 == 0 else list(reversed(turns)):
                    rates[arm].append(turns[arm]())
            two, one_each = ([a / b for a, b in zip(rates[f"perfuse, {p}"], rates["LSODA, 1 process"], strict=True)]
                             for p in ("2 processes", "1 process"))  # fmt: skip
            tolerances = {k: v[0] for k, v in chosen.items()}
            largest = {k: float(v[1].max()) for k, v in chosen.items()}
            rows.append(SpeedRow(name, tolerances, largest, rates, one_each, two, target))
            print(f"speed: {name} done", file=sys.stderr, flush=True)
    return rows


def speed_table(rows: Sequence[SpeedRow]) -> str:
    """Markdown."""
    lines = []
    for row in rows:
        spread = {arm: str(Spread.of(rates)) for arm, rates in row.curves_per_s.items()}
        tolerance = row.tolerances["perfuse"]
        error = row.largest_error
        lines.append((
            row.name, f"{tolerance:g}" if tolerance else "exact", f"{error['perfuse']:.1e}",
            spread["perfuse, 1 process"], spread["perfuse, 2 processes"], f"{row.tolerances['LSODA']:g}",
            f"{error['LSODA']:.1e}", spread["LSODA, 1 process"], str(Spread.of(row.core_for_core)),
            str(Spread.of(row.two_cores)), f">= {row.target:g}: {'met' if row.met else 'MISSED'}",
        ))  # fmt: skip
    header = ("curves", "tolerance", "largest error", "curves/s, 1 process", "2 processes", "LSODA rtol", "its error",
              "its curves/s", "ratio, core for core", "ratio, 2 cores", "target")  # fmt: skip
    return markdown_table(header, lines)


def convergence() -> tuple[str, list[dict[str, float]]]:
    """Error against a fixed step: one compartment (closed form), and a stiff body (against itself, tight)."""
    vmax, half, dose = 8.0, 2.0, 20.0
    times = torch.linspace(0, 4, 9, dtype=torch.float64)[None]
    one = lambda value: torch.tensor([[value]], dtype=torch.float64)  # noqa: E731
    x = dose / half
    exact = torch.as_tensor(half * np.real(lambertw(x * np.exp(x - vmax / half * times[0].numpy()))))
    case = drawn("T4", 32, 0)
    body_times = torch.linspace(0, 24, 7, dtype=torch.float64).expand(32, -1)[:, 3:]
    topology = case.system.topology
    generator = mechanistic.generator_matrix(topology, mechanistic.mechanistic_rates(case.system))
    # An infusion, so that the fast passage of a bolus does not decide the error.
    doses = replace(case.doses, duration_h=torch.full_like(case.doses.duration_h, 24.0))

    def body(**options: float) -> torch.Tensor:
        assert topology.saturable_node is not None
        return solve_saturable(
            generator, topology.saturable_node, None, case.system.vmax_mg_h, half_saturation_mg(case.system),
            topology.dose_node, None, doses, body_times, **options,
        )  # fmt: skip

    tight = body(tolerance=1e-12)
    rows: list[dict[str, float]] = []
    for step in (0.5, 0.25, 0.125, 0.0625):
        bolus = DoseEvents.bolus(torch.tensor([dose], dtype=torch.float64))
        out = solve_saturable(one(0.0)[None], 0, None, one(vmax), one(half), 0, None, bolus, times, step_h=step)
        row = {"step_h": step, "one": float((out[0, 0] / exact - 1).abs().max()),
               "body": float((body(step_h=2 * step) / tight - 1).abs().amax((1, 2)).median())}  # fmt: skip
        for name in ("one", "body"):
            row[f"{name}_order"] = float(np.log2(rows[-1][name] / row[name])) if rows else float("nan")
        rows.append(row)
    order = lambda value: "" if value != value else f"{value:.1f}"  # noqa: E731
    table = markdown_table(
        ("step, h", "one compartment: error", "order", "step, h", "15 nodes, infusion: median error", "order"),
        [(f"{r['step_h']:g}", f"{r['one']:.1e}", order(r["one_order"]), f"{2 * r['step_h']:g}", f"{r['body']:.1e}",
          order(r["body_order"])) for r in rows],
    )  # fmt: skip
    return table, [{k: v for k, v in r.items() if v == v} for r in rows]


def accuracy(s: Settings) -> tuple[str, list[dict[str, Any]]]:
    """Errors against CVODE by tolerance: single boluses of task T4, and T3's regimens with two pathways."""
    lines, rows = [], []
    cases = {"T4: bolus, one pathway": drawn("T4", s.checked, s.seed + 1),
             "T3 regimens, two pathways": saturable_regimens(max(8, s.checked // 2), s.seed + 1)}  # fmt: skip
    for name, case in cases.items():
        reference = solve_cvode(case.system, case.doses, case.time_h, rtol=1e-11)
        for tolerance in (1e-5, 1e-6, 1e-7, 1e-8, 1e-9):
            off = errors(case, solved(case, tolerance), reference)
            lines.append((name, f"{tolerance:g}", *quantiles(off)))
            rows.append(
                {"case": name, "tolerance": tolerance, "median": float(np.median(off)), "max": float(off.max())}
            )
    return markdown_table(("curves", "tolerance", "median error", "99 %", "largest"), lines), rows


def balance(s: Settings) -> dict[str, float]:
    """Worst mass balance and least amount over random drug x person x regimen draws, saturable and linear."""
    worst, worst_linear, least, start = 0.0, 0.0, np.inf, time.perf_counter()
    for block in range(-(-s.draws // BLOCK_CURVES)):
        case = saturable_regimens(BLOCK_CURVES, s.seed + 10 + block, pathways=1 + block % 3)
        total = case.doses.amount_mg.sum(1)[:, None]
        late = torch.full_like(case.time_h[:, :1], float(case.time_h.max() + 100))
        early = case.time_h[:, ::10]
        case = replace(case, time_h=torch.cat((early, late), 1))
        out = solve(case.system, case.doses, case.time_h, with_sinks=True)
        linear = replace(case.system, vmax_mg_h=torch.zeros_like(case.system.vmax_mg_h))
        exact = solve(linear, case.doses, case.time_h, with_sinks=True)
        # What was given by any time is the same, whatever becomes of it; at the end it is everything.
        worst = max(worst, float(((out.sum(1) - exact.sum(1)).abs() / total).max()),
                    float((out[..., -1].sum(1) / total[:, 0] - 1).abs().max()))  # fmt: skip
        worst_linear = max(worst_linear, float((exact[..., -1].sum(1) / total[:, 0] - 1).abs().max()))
        least = min(least, float(out.min()), float(exact.min()))
    draws = BLOCK_CURVES * -(-s.draws // BLOCK_CURVES)
    return {"draws": draws, "saturable": worst, "linear": worst_linear, "least_amount_mg": least,
            "seconds": time.perf_counter() - start}  # fmt: skip


def compare(s: Settings) -> tuple[str, dict[str, Any]]:
    """Measure everything; Markdown and plain data."""
    torch.set_num_threads(1)
    facts = machine()
    order_text, order_rows = convergence()
    error_text, error_rows = accuracy(s)
    print("errors done", file=sys.stderr, flush=True)
    held = balance(s)
    print("mass balance done", file=sys.stderr, flush=True)
    rows = speed(s)
    text = (
        f"# Solvers\n\n{machine_line(facts)}\n\n## Speed at equal error\n\nMedian (least-greatest) of {s.rounds} "
        f"interleaved rounds; errors against CVODE over {s.checked} curves.\n\n{speed_table(rows)}\n\n"
        f"## Order of convergence\n\n{order_text}\n\n## Error against CVODE\n\n{error_text}\n\n"
        f"## Mass balance\n\n{held['draws']} draws: largest imbalance {held['saturable']:.1e} of the dose (saturable), "
        f"{held['linear']:.1e} (linear); least amount {held['least_amount_mg']:g} mg."
    )
    missed = [row.name for row in rows if not row.met]
    result = {"machine": facts, "settings": asdict(s), "speed": [asdict(r) for r in rows], "order": order_rows,
              "errors": error_rows, "balance": held, "missed": missed}  # fmt: skip
    return text, result


def main() -> int:
    """Measure, print and write; exit code 1 with ``--check`` when a target is missed."""
    parser = argparse.ArgumentParser(description="Solvers beside CVODE and LSODA: error, order, mass balance, speed.")
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer curves and rounds, rough figures")
    parser.add_argument("--rounds", type=int, default=None, help="interleaved rounds (default 5; quick 2)")
    parser.add_argument("--draws", type=int, default=None, help="draws of the mass balance (default 10000; quick 512)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="folder of solvers.md and .json")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a target is missed")
    args = parser.parse_args()
    base = QUICK if args.quick else Settings()
    settings = replace(base, rounds=args.rounds or base.rounds, draws=args.draws or base.draws, seed=args.seed)
    text, result = compare(settings)
    print(text)
    write_results(args.out, "solvers", text, result)
    return 1 if args.check and result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())

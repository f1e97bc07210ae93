"""The mechanistic model: rate constants from physiology and drug, the generator, exact curves.

Equations: DESIGN of this project after Jones HM, Rowland-Yeo K. CPT Pharmacometrics Syst Pharmacol 2013;2:e63
(whole-body PBPK, perfusion- and permeability-limited organs, well-stirred liver).

Axis legend: B batch, N nodes, E flow edges, M eliminations, X exchanges, P saturable pathways, R rate constants
(E + M + 2 X), D dose events, T times, O reported organs.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from perfuse.errors import InputError
from perfuse.pk.events import dose_events_in_order, solve_events
from perfuse.pk.mode_events import Course, solve_course
from perfuse.pk.modes import Basis, general_basis, solve_bolus, tree_basis
from perfuse.pk.propagate import closed, propagate_times, propagate_uniform
from perfuse.pk.system import DoseEvents, SystemParameters
from perfuse.pk.topology import Topology, get_topology


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # the first caller may be in inference mode; a later one may train
def _incidence(topology: Topology, with_sinks: bool, device: str) -> Tensor:
    incidence = torch.as_tensor(topology.incidence)
    if with_sinks:
        n, m = topology.n_nodes, topology.n_eliminations
        wide = torch.zeros(incidence.shape[0], n + m, n + m, dtype=torch.float64)
        wide[:, :n, :n] = incidence.view(-1, n, n)
        for i, elimination in enumerate(topology.eliminations):
            wide[topology.n_edges + i, n + i, elimination.source] = 1
        incidence = wide.flatten(1)
    return incidence.to(device)


def generator_matrix(topology: Topology, rates: Tensor, with_sinks: bool = False) -> Tensor:
    """K, 1/h, ``(B, N, N)`` from rate constants ``(B, R)``, 1/h, in the topology's order.

    With sinks, one state per elimination follows the nodes and every column sums to zero.
    """
    size = topology.n_nodes + (topology.n_eliminations if with_sinks else 0)
    incidence = _incidence(topology, with_sinks, str(rates.device))
    return (rates.to(torch.float64) @ incidence).unflatten(-1, (size, size))


def limit_diverted(topology: Topology, rates: Tensor, largest_fraction: float = 0.99) -> Tensor:
    """Rates ``(B, R)`` with each diverted elimination at most that fraction of the stream it is drawn from.

    The stream never runs dry, so that the organ behind it keeps a concentration (and its logarithm a gradient).
    """
    columns = list(rates.unbind(-1))
    for m, elimination in enumerate(topology.eliminations):
        if elimination.diverted_edge >= 0:
            i = topology.n_edges + m
            columns[i] = torch.minimum(columns[i], largest_fraction * columns[elimination.diverted_edge])
    return torch.stack(columns, -1)


def _elimination_rate(system: SystemParameters, m: int) -> Tensor:
    """Rate constant of elimination ``m``, 1/h, ``(B,)``."""
    elimination = system.topology.eliminations[m]
    clearance, volume = system.elimination_l_h[:, m], system.volume_l[:, elimination.source]
    if elimination.kind == "blood_clearance":
        return clearance / volume
    if elimination.kind == "intrinsic":
        return clearance * system.fup / (volume * system.kp[:, elimination.source])
    flow = system.flow_l_h[:, elimination.diverted_edge]
    excess = (clearance / system.bp_ratio - flow).detach()
    if not torch.compiler.is_exporting() and bool((excess > 0).any()):
        i = int(excess.argmax())
        raise InputError(
            elimination.name, "exceeds kidney blood flow", value=float(clearance[i]), unit="L/h plasma",
            allowed=f"<= {float(flow[i] * system.bp_ratio[i]):.4g} L/h",
            hint="renal blood clearance CLr/(B:P) cannot exceed kidney blood flow", where=f"curve {i}",
        )  # fmt: skip
    return clearance / (system.bp_ratio * volume)


def _exchange_rates(system: SystemParameters) -> list[Tensor]:
    """Vascular to tissue, PS fu_b / V_vascular, and back, PS fup / (V_tissue Kp), 1/h, ``(B, X)`` each."""
    topology = system.topology
    into, out = [], []
    for x, exchange in enumerate(topology.exchanges):
        unbound = system.ps_l_h[:, x] * system.fup
        blood = torch.ones_like(unbound) if topology.kp_is_blood else system.bp_ratio
        into.append(unbound / (blood * system.volume_l[:, exchange.vascular]))
        out.append(unbound / (system.volume_l[:, exchange.tissue] * system.kp[:, exchange.tissue]))
    return [torch.stack(into, -1), torch.stack(out, -1)] if into else []


def mechanistic_rates(system: SystemParameters) -> Tensor:
    """Rate constants of the linear processes, 1/h, ``(B, R)``.

    A flow edge empties its source at Q / (V Kpb), Kpb = Kp / (B:P) (Kp itself on ``hub``; 1 in blood). A
    permeability-limited tissue exchanges at PS fup (C_plasma - C_tissue / Kp) with its vascular space.
    ``hub`` eliminates blood clearances from blood: CL / V_blood. ``circulation`` eliminates
    CLint fup / (V_liver Kp_liver) from the liver, and CLr_plasma / ((B:P) V_arterial) from the kidney's inflow.

    Raises:
        InputError: when renal blood clearance exceeds kidney blood flow.
    """
    topology = system.topology
    is_blood = torch.as_tensor(topology.is_blood, device=system.kp.device)
    kpb = system.kp
    if not topology.kp_is_blood:
        kpb = torch.where(is_blood, torch.ones_like(system.kp), system.kp / system.bp_ratio[:, None])
    source = torch.as_tensor(topology.edge_index[0], device=system.kp.device)
    flow_rates = system.flow_l_h / (system.volume_l * kpb)[:, source]
    parts = [flow_rates]
    if topology.n_eliminations:
        parts.append(torch.stack([_elimination_rate(system, m) for m in range(topology.n_eliminations)], -1))
    return torch.cat(parts + _exchange_rates(system), -1)


def uniform_grid(time_h: Tensor) -> tuple[float, float] | None:
    """(start, step) in h when all rows of ``time_h`` ``(B, T)`` are one evenly spaced grid, else None."""
    if time_h.shape[1] < 2:
        return None
    row = time_h[0]
    step = float(row[-1] - row[0]) / (len(row) - 1)
    even = row[0] + step * torch.arange(len(row), dtype=row.dtype, device=row.device)
    close = step > 0 and bool(((row - even).abs() <= 1e-9 * row[-1].abs()).all()) and bool((time_h == row).all())
    return (float(row[0]), step) if close else None


def solve_amounts(
    generator: Tensor, topology: Topology, doses: DoseEvents, time_h: Tensor, conserve: bool = False
) -> Tensor:
    """Amounts ``(B, S, T)``, mg, of a linear system after any doses.

    At a dose time the value is the one before the dose, except C(0+) for the curve's first bolus.

    Args:
        generator: K, 1/h, ``(B, S, S)``, float64; the topology's nodes, then sinks where wanted.
        topology: Says where doses go.
        doses: Dose events.
        time_h: Observation times, h, ``(B, T)``, float64.
        conserve: Whether the columns of K sum to zero and every amount is to be held to rounding of its own. Without
            it, amounts may only be exact to rounding of the dose: several times faster where rates allow it
            (``modes``).

    Raises:
        InputError: for an oral dose on a topology without a gut to absorb it.
    """
    time_h = time_h.to(torch.float64)
    if conserve or generator.shape[-1] != topology.n_nodes or generator.device.type != "cpu":
        return _solve_stepwise(generator, topology, doses, time_h, conserve)
    given = generator.detach()
    if not bool(torch.isfinite(given).all()):
        return _solve_stepwise(generator, topology, doses, time_h, conserve)
    levels = _tree(topology)
    is_bolus = doses.is_single_initial_bolus
    if levels is None and is_bolus and uniform_grid(time_h):  # repeated squaring is as fast, and all of it is real
        return _solve_stepwise(generator, topology, doses, time_h, conserve)
    with torch.no_grad():
        longest = float(time_h.amax())
        basis = general_basis(given, longest) if levels is None else tree_basis(given, levels, longest)
    if is_bolus:
        course, good = None, basis.good
    else:
        course = _course(topology, doses, time_h)
        good = basis.good & course.resolved(basis.values)
    if not bool(good.all()):
        return _solve_mixed(generator, topology, doses, time_h, basis, good)
    return _solve_by_modes(generator, topology, doses, time_h, basis, course)


def _solve_by_modes(
    generator: Tensor, topology: Topology, doses: DoseEvents, time_h: Tensor, basis: Basis, course: Course | None
) -> Tensor:
    """A course of events, or else one bolus."""
    if course is None:
        amount = doses.amount_mg[:, 0].to(generator.dtype)
        return solve_bolus(generator, basis, amount, topology.dose_node, time_h, uniform_grid(time_h))
    return solve_course(generator, basis, course)


def _solve_stepwise(
    generator: Tensor, topology: Topology, doses: DoseEvents, time_h: Tensor, conserve: bool = False
) -> Tensor:
    """By powers of the matrix exponential: ``solve_amounts`` for any rates on any device."""
    amount = doses.amount_mg.to(generator.dtype)
    if doses.is_single_initial_bolus:
        start = torch.zeros(generator.shape[:2], dtype=generator.dtype, device=generator.device)
        start[:, topology.dose_node] = amount[:, 0]
        grid = uniform_grid(time_h)
        if grid:
            return propagate_uniform(generator, start, *grid, time_h.shape[1], conserve)
        return propagate_times(generator, start, time_h, conserve)
    doses = doses.to(generator.dtype)
    _check_gut(topology, doses)
    return solve_events(generator, topology.dose_node, topology.absorption_node, doses, time_h, conserve)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # as for ``_incidence``
def _tree(topology: Topology) -> tuple[tuple[Tensor, Tensor], ...] | None:
    """For each depth below the dose node, the nodes there and their parents; None where flows go round."""
    edges = set(topology.edges)
    if topology.exchanges or len(edges) != 2 * (topology.n_nodes - 1) or {(b, a) for a, b in edges} != edges:
        return None
    levels, reached = [], {topology.dose_node}
    while pairs := sorted((b, a) for a, b in edges if a in reached and b not in reached):
        levels.append((torch.tensor([b for b, _ in pairs]), torch.tensor([a for _, a in pairs])))
        reached |= {b for b, _ in pairs}
    return tuple(levels) if len(reached) == topology.n_nodes else None


def _solve_mixed(
    generator: Tensor, topology: Topology, doses: DoseEvents, time_h: Tensor, basis: Basis, good: Tensor
) -> Tensor:
    """Each curve the way that suits its rates."""
    rows, others = good.nonzero()[:, 0], (~good).nonzero()[:, 0]
    rest = _solve_stepwise(generator[others], topology, doses.of(others), time_h[others])
    if not len(rows):
        return rest
    doses, time_h = doses.of(rows), time_h[rows]
    course = None if doses.is_single_initial_bolus else _course(topology, doses, time_h)
    part = _solve_by_modes(generator[rows], topology, doses, time_h, basis.of(rows), course)
    return torch.cat((part, rest))[torch.cat((rows, others)).argsort()]


def _course(topology: Topology, doses: DoseEvents, time_h: Tensor) -> Course:
    """Doses in order and where they are looked at, for ``mode_events``."""
    _check_gut(topology, doses)
    doses = doses.to(torch.float64)
    events = dose_events_in_order(doses, float(time_h.max()))
    return Course.of(events, time_h, topology.dose_node, topology.absorption_node, doses.ka_1_h)


def _check_gut(topology: Topology, doses: DoseEvents) -> None:
    if topology.absorption_node is None and bool(doses.is_oral.any()):
        raise InputError("route", "has no gut to be absorbed in", value="oral", where=f"topology {topology.name}")


def not_in_body(doses: DoseEvents, time_h: Tensor) -> Tensor:
    """Oral drug that is in the gut lumen, and that is never absorbed, mg, ``(B, 2, T)``; from the dose time on."""
    doses = doses.to(torch.float64)
    oral = doses.is_oral[..., None]
    elapsed, _ = doses.elapsed(time_h)
    dose = torch.where(oral, doses.amount_mg[..., None], 0.0)
    first = doses.time_h == torch.where(doses.amount_mg > 0, doses.time_h, torch.inf).amin(1, keepdim=True)
    since = time_h[:, None] - doses.time_h[..., None]
    given = (since > 0) | ((since == 0) & first[..., None])
    f_abs, ka = doses.f_abs[:, None, None], doses.ka_1_h[:, None, None]
    lumen = torch.where(given, dose * f_abs * torch.exp(-ka * elapsed.clamp_min(0)), 0.0)
    lost = torch.where(given, dose * (1 - f_abs), 0.0)
    return torch.stack((lumen.sum(1), lost.sum(1)), 1)


def solve(system: SystemParameters, doses: DoseEvents, time_h: Tensor, with_sinks: bool = False) -> Tensor:
    """Amounts, mg, of the mechanistic model: exact for linear kinetics, to 1e-7 or better for saturable ones.

    Args:
        system: Physical parameters.
        doses: Dose events.
        time_h: Observation times, h, ``(B, T)``.
        with_sinks: Whether to return also where the drug went.

    Returns:
        ``(B, N, T)``; with sinks ``(B, N + M + 2, T)``: nodes, eliminated on each way (saturable metabolism counts to
        the intrinsic clearance of its node), in the gut lumen, never absorbed. They sum to the dose given so far (an
        infusion counts as it runs).

    Raises:
        InputError: when renal blood clearance exceeds kidney blood flow, rates are too fast to solve, saturable
            pathways have no node to act in, or an oral dose has no gut.
    """
    system, doses, time_h = system.to(torch.float64), doses.to(torch.float64), time_h.to(torch.float64)
    topology = system.topology
    generator = generator_matrix(topology, mechanistic_rates(system), with_sinks)
    if system.is_linear:
        whole = generator if with_sinks else closed(generator)
        amounts = _solve_linear(whole, topology, doses, time_h)[:, : generator.shape[-1]]
    else:
        amounts = _solve_saturable(system, generator, doses, time_h, with_sinks)
    return torch.cat((amounts, not_in_body(doses, time_h)), 1) if with_sinks else amounts


_CACHED_CURVES = 128
"""Curves whose ladders of matrices fit a core's cache."""


def _solve_linear(generator: Tensor, topology: Topology, doses: DoseEvents, time_h: Tensor) -> Tensor:
    """``solve_amounts`` of a closed system; where times are irregular, a cacheful of curves at a time."""
    if len(generator) <= _CACHED_CURVES or (doses.is_single_initial_bolus and uniform_grid(time_h)):
        return solve_amounts(generator, topology, doses, time_h, conserve=True)
    parts = []
    for start in range(0, len(generator), _CACHED_CURVES):
        rows = slice(start, start + _CACHED_CURVES)
        parts.append(solve_amounts(generator[rows], topology, doses.of(rows), time_h[rows], conserve=True))
    return torch.cat(parts)


def saturable_sink(topology: Topology) -> int:
    """Index of the elimination that saturable metabolism counts to.

    Raises:
        InputError: when the topology has no node for it.
    """
    node = topology.saturable_node
    if node is not None:
        for m, elimination in enumerate(topology.eliminations):
            if elimination.kind == "intrinsic" and elimination.source == node:
                return m
    raise InputError(
        "vmax_mg_h", "has no organ to act in", where=f"topology {topology.name}",
        hint="saturable metabolism needs an organ with an intrinsic clearance (which may be 0)",
    )  # fmt: skip


def half_saturation_mg(system: SystemParameters) -> Tensor:
    """Amount in the saturable node at which each pathway runs at half its Vmax, mg, ``(B, P)``: Km,u V Kp / fup."""
    node = system.topology.saturable_node
    per_unbound = system.volume_l[:, node] * system.kp[:, node] / system.fup
    return system.km_u_mg_l * per_unbound[:, None]


def _solve_saturable(
    system: SystemParameters, generator: Tensor, doses: DoseEvents, time_h: Tensor, with_sinks: bool
) -> Tensor:
    from perfuse.pk.saturable import solve_saturable  # uses this module's building blocks

    topology = system.topology
    sink = topology.n_nodes + saturable_sink(topology)
    node = topology.saturable_node
    assert node is not None
    return solve_saturable(
        generator, node, sink if with_sinks else None, system.vmax_mg_h, half_saturation_mg(system),
        topology.dose_node, topology.absorption_node, doses, time_h,
    )  # fmt: skip


def organ_concentrations(system: SystemParameters, amounts: Tensor, blood_factor: Tensor | None = None) -> Tensor:
    """Concentrations of the reported organs, mg/L, ``(B, O, T)``, from node amounts ``(B, >=N, T)``.

    A permeability-limited organ is reported whole: both its spaces' drug over both its spaces' volume.

    Args:
        system: Gives the volumes.
        amounts: Amounts, mg.
        blood_factor: What the blood row is multiplied by, ``(B,)`` (1 / (B:P) where plasma is wanted); None is 1.
    """
    topology = system.topology
    nodes = topology.organ_node
    volume = system.volume_l.to(amounts.dtype)
    if topology.exchanges:
        report = torch.as_tensor(topology.report_map, dtype=amounts.dtype, device=amounts.device)
        amounts, volume = report @ amounts[:, : topology.n_nodes], volume @ report.T
        select: slice | Tensor = slice(None)
    elif bool((nodes == range(len(nodes))).all()):
        select = slice(len(nodes))  # a slice costs nothing; a gather copies, and its gradient scatters
    else:
        select = torch.as_tensor(nodes, device=amounts.device)
    per_volume = 1 / volume[:, select]
    if blood_factor is not None:
        per_volume = torch.cat((per_volume[:, :1] * blood_factor.to(amounts.dtype)[:, None], per_volume[:, 1:]), 1)
    return amounts[:, select] * per_volume[..., None]


__all__ = [
    "generator_matrix", "get_topology", "half_saturation_mg", "limit_diverted", "mechanistic_rates", "not_in_body",
    "organ_concentrations", "saturable_sink", "solve", "solve_amounts", "uniform_grid",
]  # fmt: skip

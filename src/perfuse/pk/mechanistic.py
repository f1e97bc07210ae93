"""The mechanistic model: rate constants from physiology and drug, the generator, exact curves.

Equations: DESIGN of this project after Jones HM, Rowland-Yeo K. CPT Pharmacometrics Syst Pharmacol 2013;2:e63
(perfusion-limited whole-body PBPK with a well-stirred liver).

Axis legend: B batch, N nodes, E flow edges, M eliminations, T times, D dose events, O reported organs.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from perfuse.errors import InputError
from perfuse.pk.propagate import propagate_times, propagate_uniform, unit_infusion
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
    """K, 1/h, ``(B, N, N)`` from rate constants ``(B, E + M)``, 1/h: flow edges first, then eliminations.

    With sinks, one state per elimination follows the nodes and every column sums to zero.
    """
    size = topology.n_nodes + (topology.n_eliminations if with_sinks else 0)
    incidence = _incidence(topology, with_sinks, str(rates.device))
    return (rates.to(torch.float64) @ incidence).unflatten(-1, (size, size))


def limit_diverted(topology: Topology, rates: Tensor, largest_fraction: float = 0.99) -> Tensor:
    """Rates ``(B, E + M)`` with each diverted elimination at most that fraction of the stream it is drawn from.

    The stream never runs dry, so that the organ behind it keeps a concentration (and its logarithm a gradient).
    """
    columns = list(rates.unbind(-1))
    for m, elimination in enumerate(topology.eliminations):
        if elimination.diverted_edge >= 0:
            i = topology.n_edges + m
            columns[i] = torch.minimum(columns[i], largest_fraction * columns[elimination.diverted_edge])
    return torch.stack(columns, -1)


def mechanistic_rates(system: SystemParameters) -> Tensor:
    """Rate constants, 1/h, ``(B, E + M)``.

    A flow edge empties its source at Q / (V Kpb), Kpb = Kp / (B:P) (Kp itself on ``hub``; 1 in blood).
    ``hub`` eliminates blood clearances from blood: CL / V_blood. ``circulation`` eliminates
    CLint fup / (V_liver Kp_liver) from the liver, and CLr_plasma / ((B:P) V_arterial) from the kidney's inflow.

    Raises:
        InputError: when renal blood clearance exceeds kidney blood flow.
    """
    topology = system.topology
    is_blood = torch.as_tensor(topology.is_blood, device=system.kp.device)
    bp = system.bp_ratio[:, None]
    hub = topology.name == "hub"
    kpb = system.kp if hub else torch.where(is_blood, torch.ones_like(system.kp), system.kp / bp)
    source = torch.as_tensor(topology.edge_index[0], device=system.kp.device)
    flow_rates = system.flow_l_h / (system.volume_l * kpb)[:, source]
    eliminations = []
    for m, elimination in enumerate(topology.eliminations):
        clearance, volume = system.elimination_l_h[:, m], system.volume_l[:, elimination.source]
        if hub:
            rate = clearance / volume
        elif elimination.name == "clint_l_h":
            rate = clearance * system.fup / (volume * system.kp[:, elimination.source])
        else:
            rate = clearance / (system.bp_ratio * volume)
            excess = clearance / system.bp_ratio - system.flow_l_h[:, elimination.diverted_edge]
            if bool((excess > 0).any()):
                i = int(excess.argmax())
                raise InputError(
                    "cl_renal_l_h", "exceeds kidney blood flow", value=float(clearance[i]), unit="L/h plasma",
                    allowed=f"<= {float(system.flow_l_h[i, elimination.diverted_edge] * system.bp_ratio[i]):.4g} L/h",
                    hint="renal blood clearance CLr/(B:P) cannot exceed kidney blood flow", where=f"curve {i}",
                )  # fmt: skip
        eliminations.append(rate)
    return torch.cat((flow_rates, torch.stack(eliminations, -1)), -1)


def uniform_grid(time_h: Tensor) -> tuple[float, float] | None:
    """(start, step) in h when all rows of ``time_h`` ``(B, T)`` are one evenly spaced grid, else None."""
    if time_h.shape[1] < 2:
        return None
    row = time_h[0]
    step = float(row[-1] - row[0]) / (len(row) - 1)
    even = row[0] + step * torch.arange(len(row), dtype=row.dtype, device=row.device)
    close = step > 0 and bool(((row - even).abs() <= 1e-9 * row[-1].abs()).all()) and bool((time_h == row).all())
    return (float(row[0]), step) if close else None


def solve_amounts(generator: Tensor, dose_node: int, doses: DoseEvents, time_h: Tensor) -> Tensor:
    """Amounts ``(B, N, T)``, mg, after intravenous doses; exact, by superposing unit responses.

    At a dose time the value is the one before the dose, except C(0+) for the curve's first bolus.

    Args:
        generator: K, 1/h, ``(B, N, N)``, float64.
        dose_node: Index of the dosed compartment.
        doses: Dose events.
        time_h: Observation times, h, ``(B, T)``, float64.
    """
    batch, n = generator.shape[:2]
    unit = torch.zeros(batch, n, dtype=generator.dtype, device=generator.device)
    unit[:, dose_node] = 1
    amount = doses.amount_mg.to(generator.dtype)
    if doses.is_single_initial_bolus:
        grid = uniform_grid(time_h)
        if grid:
            return propagate_uniform(generator, unit * amount, *grid, time_h.shape[1])
        return propagate_times(generator, unit * amount, time_h)
    doses = doses.to(generator.dtype)
    elapsed, counts = doses.elapsed(time_h)
    shape = (elapsed.shape[1], elapsed.shape[2])
    out = propagate_times(generator, unit, elapsed.clamp_min(0).flatten(1)).unflatten(-1, shape)
    infused = doses.duration_h > 0
    if bool(infused.any()):
        response = unit_infusion(generator, dose_node, elapsed, torch.where(infused, doses.duration_h, 1.0))
        out = torch.where(infused[:, None, :, None], response, out)
    weight = torch.where(counts, amount[..., None], 0.0)  # (B, D, T)
    return (out * weight[:, None]).sum(2)


def solve(system: SystemParameters, doses: DoseEvents, time_h: Tensor, with_sinks: bool = False) -> Tensor:
    """Exact amounts, mg, ``(B, N, T)`` (with sinks ``(B, N + M, T)``) of the mechanistic model."""
    system = system.to(torch.float64)
    rates = mechanistic_rates(system)
    generator = generator_matrix(system.topology, rates, with_sinks)
    return solve_amounts(generator, system.topology.dose_node, doses, time_h.to(torch.float64))


def organ_concentrations(system: SystemParameters, amounts: Tensor, blood_factor: Tensor | None = None) -> Tensor:
    """Concentrations of the 14 reported organs, mg/L, ``(B, O, T)``, from node amounts ``(B, >=N, T)``.

    Args:
        system: Gives the volumes.
        amounts: Amounts, mg.
        blood_factor: What the blood row is multiplied by, ``(B,)`` (1 / (B:P) where plasma is wanted); None is 1.
    """
    nodes = system.topology.organ_node
    in_order = bool((nodes == range(len(nodes))).all())
    # A slice costs nothing; a gather copies, and its gradient scatters.
    select = slice(len(nodes)) if in_order else torch.as_tensor(nodes, device=amounts.device)
    per_volume = 1 / system.volume_l.to(amounts.dtype)[:, select]
    if blood_factor is not None:
        per_volume = torch.cat((per_volume[:, :1] * blood_factor.to(amounts.dtype)[:, None], per_volume[:, 1:]), 1)
    return amounts[:, select] * per_volume[..., None]


__all__ = [
    "generator_matrix", "get_topology", "limit_diverted", "mechanistic_rates", "organ_concentrations",
    "solve", "solve_amounts", "uniform_grid",
]  # fmt: skip

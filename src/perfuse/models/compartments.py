"""From ln rate constants to amounts: the compartmental system that the rates of ``flux`` define, solved exactly.

Linear systems are solved to rounding, saturable pathways to ``_TOLERANCE``.

Axis legend: B batch, E flow edges, M eliminations, N nodes, P saturable pathways, T times.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from perfuse.data.batch import CurveBatch
from perfuse.models.rate_classes import LogRates
from perfuse.pk.mechanistic import generator_matrix, limit_diverted, saturable_sink, solve_amounts
from perfuse.pk.saturable import solve_saturable
from perfuse.pk.topology import Topology

LOG_RATE_RANGE = (-25.0, 12.0)
"""ln(1/h): from once in 10^10 h to 160,000 per h; keeps an untrained network's generator computable."""
_LOG_AMOUNT_RANGE = (-60.0, 60.0)
_TOLERANCE = 1e-3
"""Of saturable kinetics: on T4 it leaves a mean error of ln C of 7e-8, far below any model's."""


def compartment_amounts(
    log_rates: LogRates, batch: CurveBatch, with_sinks: bool = False, frozen_share: float | None = None
) -> Tensor:
    """Amounts in every node, mg, ``(B, N, T)``, float64; with sinks also the drug eliminated on each way, ``N + M``.

    Args:
        log_rates: Of each curve.
        batch: Volumes, doses and times; given Kp, clearances and pathways' numbers do not enter.
        with_sinks: Whether to return also where the drug went.
        frozen_share: If given, saturable pathways run at the rate constant that they have at this share of the dose,
            whatever the amount: a linear stand-in, ten times faster, for a first fit.
    """
    system, topology = batch.system, batch.system.topology
    generator = rates_generator(log_rates, topology, with_sinks)
    if system.is_linear:
        return solve_amounts(generator, topology, batch.doses, batch.time_h)
    sink = topology.n_nodes + saturable_sink(topology)
    node = topology.saturable_node
    assert node is not None  # else there is no such sink
    has_pathway = system.vmax_mg_h > 0
    rate = torch.where(has_pathway, log_rates.pathways[..., 0].clamp(*LOG_RATE_RANGE).exp(), 0.0)  # (B, P), 1/h
    if log_rates.pathways.shape[-1] == 1:
        generator = _with_loss(generator, node, sink if with_sinks else None, rate.sum(1))
        return solve_amounts(generator, topology, batch.doses, batch.time_h)
    half_mg = log_rates.pathways[..., 1].clamp(*_LOG_AMOUNT_RANGE).exp()
    if frozen_share is not None:
        typical_mg = frozen_share * batch.doses.amount_mg.to(half_mg.dtype).sum(1, keepdim=True)
        frozen = (rate * half_mg / (half_mg + typical_mg)).sum(1)
        generator = _with_loss(generator, node, sink if with_sinks else None, frozen)
        return solve_amounts(generator, topology, batch.doses, batch.time_h)
    return solve_saturable(
        generator, node, sink if with_sinks else None, rate * half_mg, half_mg, topology.dose_node,
        topology.absorption_node, batch.doses, batch.time_h, tolerance=_TOLERANCE,
    )  # fmt: skip


def rates_generator(log_rates: LogRates, topology: Topology, with_sinks: bool = False) -> Tensor:
    """K of the linear processes, 1/h, ``(B, N, N)``; with sinks, one more state per elimination."""
    rates = log_rates.linear.clamp(*LOG_RATE_RANGE).exp()
    if log_rates.arrivals is None:
        return generator_matrix(topology, limit_diverted(topology, rates), with_sinks)
    arriving = log_rates.arrivals.clamp(*LOG_RATE_RANGE).exp()
    e = topology.n_edges
    limited = limit_diverted(topology, torch.cat((arriving, rates[:, e:]), 1))  # of what arrives, a share is diverted
    generator = generator_matrix(topology, torch.cat((rates[:, :e], limited[:, e:]), 1), with_sinks)
    size = generator.shape[-1]
    more = (arriving - rates[:, :e]) @ _arrivals(topology, size, str(rates.device))
    return generator + more.unflatten(-1, (size, size))


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # the first caller may be in inference mode; a later one may train
def _arrivals(topology: Topology, size: int, device: str) -> Tensor:
    """``(E, size * size)``: where in the generator each flow edge arrives."""
    out = torch.zeros(topology.n_edges, size, size, dtype=torch.float64)
    for e, (source, target) in enumerate(topology.edges):
        out[e, target, source] = 1
    return out.flatten(1).to(device)


def _with_loss(generator: Tensor, node: int, sink: int | None, rate: Tensor) -> Tensor:
    """The generator with a further loss from one node, ``rate`` ``(B,)``."""
    move = torch.zeros_like(generator[0])
    move[node, node] = -1
    if sink is not None:
        move[sink, node] = 1
    return generator + rate[:, None, None] * move

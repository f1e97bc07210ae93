"""Steady state of a repeated regimen, directly: the state that repeats itself after one dosing interval.

Linear kinetics: x = P x + b, P = exp(K tau), b what one interval's doses leave at its end; so x = b + P b + P^2 b +
..., summed by doubling, x <- x + P x and P <- P P, in which nothing is subtracted. Saturable kinetics:
``saturable_steady_state``.

Axis legend: B batch, N nodes, M eliminations, S states, W = S + 2 states with source and lumen, D dose events, T times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perfuse.errors import InputError
from perfuse.pk.events import solve_events
from perfuse.pk.mechanistic import generator_matrix, mechanistic_rates
from perfuse.pk.propagate import closed, matrix_exponential
from perfuse.pk.system import DoseEvents, SystemParameters

_MAX_DOUBLINGS = 60
_SETTLED = 1e-16


def within_one_interval(doses: DoseEvents, tau_h: float) -> DoseEvents:
    """The doses of one interval, with what runs past its end - infusions, lags - continued at its start.

    An infusion of several intervals overlaps itself: it becomes a constant one of as many times its rate, and the rest.

    Raises:
        InputError: for an interval that is not positive, or a dose that is not given within it.
    """
    if not tau_h > 0:
        raise InputError("tau_h", value=float(tau_h), unit="h", allowed="> 0")
    given = doses.amount_mg > 0
    outside = given & ~((doses.time_h >= 0) & (doses.time_h < tau_h))
    if bool(outside.any()):
        raise InputError("dose time_h", "does not lie in the dosing interval", value=float(doses.time_h[outside][0]),
                         unit="h", allowed=f"[0, {tau_h:g})")  # fmt: skip
    waited = torch.where(given, torch.floor(doses.start_h / tau_h) * tau_h, 0.0)  # a lag may end in a later interval
    zero = torch.zeros_like(doses.time_h)
    infused = given & (doses.duration_h > 0)
    rate = torch.where(infused, doses.amount_mg / torch.where(infused, doses.duration_h, 1.0), zero)
    constant = torch.floor(doses.duration_h / tau_h) * tau_h
    rest = doses.duration_h - constant
    late = torch.where(infused, (doses.start_h + rest - tau_h).clamp_min(0), zero)
    if not bool((late > 0).any() | (constant > 0).any()):
        return DoseEvents(doses.time_h - waited, doses.amount_mg, doses.duration_h, doses.route, doses.ka_1_h,
                          doses.lag_h, doses.f_abs)  # fmt: skip
    early = torch.where(infused, rest - late, doses.duration_h)
    return DoseEvents(
        torch.cat((doses.time_h - waited, zero, zero), 1),
        torch.cat((torch.where(infused, rate * early, doses.amount_mg), rate * late, rate * constant), 1),
        torch.cat((early, late, torch.where(constant > 0, tau_h, 0.0)), 1),
        torch.cat((doses.route, *[torch.zeros_like(doses.route)] * 2), 1),
        doses.ka_1_h, doses.lag_h, doses.f_abs,
    )  # fmt: skip


def lumen_at_start(doses: DoseEvents, tau_h: float) -> Tensor:
    """What earlier intervals' oral doses hold in the gut lumen at the start of one, mg, ``(B, 1)``."""
    left = doses.amount_mg * doses.f_abs[:, None] * torch.exp(-doses.ka_1_h[:, None] * (tau_h - doses.start_h))
    left = torch.where(doses.is_oral, left, 0.0).sum(1, keepdim=True)
    return left / -torch.expm1(-doses.ka_1_h[:, None] * tau_h)


def linear_start(generator: Tensor, places: tuple[int, int | None], doses: DoseEvents, tau_h: float) -> Tensor:
    """Amounts at the start of an interval at steady state, mg, ``(B, S + 1)``: the states and, last, the gut lumen.

    Args:
        generator: K, ``(B, S, S)``.
        places: Nodes of intravenous doses and of absorption.
        doses: One interval's, see ``within_one_interval``.
        tau_h: Its length, h.

    Raises:
        InputError: when amounts grow for ever.
    """
    size = generator.shape[-1]
    whole = closed(generator)
    lumen = lumen_at_start(doses, tau_h)
    nothing = torch.cat((lumen.new_zeros(len(lumen), size + 1), lumen), 1)
    end = torch.full_like(lumen, tau_h)
    state = solve_events(whole, *places, doses, end, conserve=True, start_mg=nothing)[:, :size]
    power = matrix_exponential(whole, tau_h, conserve=True)[:, :size, :size]
    for _ in range(_MAX_DOUBLINGS):
        if float(power.detach().sum(-2).amax()) < _SETTLED:
            return torch.cat((state[..., 0], lumen), 1)
        state = state + power @ state
        power = power @ power
    raise InputError("doses", "never reach a steady state: nothing, or next to nothing, is eliminated",
                     hint="give a clearance, or simulate a fixed number of doses")  # fmt: skip


def steady_state(system: SystemParameters, doses: DoseEvents, tau_h: float, time_h: Tensor) -> Tensor:
    """Amounts in every node, mg, ``(B, N, T)``, during an interval long after the first.

    Gradients flow for linear kinetics only.

    Args:
        system: Physical parameters.
        doses: The doses of one interval: times within [0, tau); what lasts longer than it overlaps with the next.
        tau_h: Dosing interval, h.
        time_h: Times within [0, tau], h, ``(B, T)``; time 0 shows the state after a bolus at 0, time tau the one
            before; at the time of a later dose the value is the one before it.

    Raises:
        InputError: when there is no steady state, or see ``within_one_interval`` and ``mechanistic.solve``.
    """
    system, doses, time_h = system.to(torch.float64), doses.to(torch.float64), time_h.to(torch.float64)
    doses = within_one_interval(doses, tau_h)
    if not bool(((time_h >= 0) & (time_h <= tau_h * (1 + 1e-12))).all()):
        raise InputError("time_h", "lies outside the dosing interval", unit="h", allowed=f"[0, {tau_h:g}]")
    topology = system.topology
    places = (topology.dose_node, topology.absorption_node)
    if topology.absorption_node is None and bool(doses.is_oral.any()):
        raise InputError("route", "has no gut to be absorbed in", value="oral", where=f"topology {topology.name}")
    if not system.is_linear:
        from perfuse.pk.saturable_steady_state import saturable_steady_state  # it needs this module

        return saturable_steady_state(system, doses, tau_h, time_h)
    generator = generator_matrix(topology, mechanistic_rates(system))
    start = linear_start(generator, places, doses, tau_h)
    start = torch.cat((start[:, :-1], torch.zeros_like(start[:, :1]), start[:, -1:]), 1)  # nothing is out yet
    return solve_events(closed(generator), *places, doses, time_h, conserve=True, start_mg=start)[:, :-1]

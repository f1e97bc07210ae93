"""Steady state of a repeated regimen, directly: the state that repeats itself after one dosing interval.

Linear kinetics: x = P x + b, P = exp(K tau), b what one interval's doses leave at its end; so x = b + P b + P^2 b +
..., summed by doubling, x <- x + P x and P <- P P, in which nothing is subtracted. Saturable kinetics: intervals are
added until the last two agree.

Axis legend: B batch, N nodes, M eliminations, S states, W = S + 2 states with source and lumen, D dose events, T times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perfuse.errors import InputError
from perfuse.pk.events import extended_generator, solve_events
from perfuse.pk.mechanistic import generator_matrix, mechanistic_rates, solve
from perfuse.pk.propagate import Ladder, closed
from perfuse.pk.system import DoseEvents, SystemParameters

_MAX_DOUBLINGS = 60
_MAX_INTERVALS = 512
_SETTLED = 1e-16
_AGREEMENT = 1e-6


def within_one_interval(doses: DoseEvents, tau_h: float) -> DoseEvents:
    """The doses of one interval, with infusions that run past its end continued at its start.

    Raises:
        InputError: for an interval that is not positive, a dose that does not start within it, or an infusion that is
            longer than it.
    """
    if not tau_h > 0:
        raise InputError("tau_h", value=float(tau_h), unit="h", allowed="> 0")
    given = doses.amount_mg > 0
    start = doses.start_h
    outside = given & ~((start >= 0) & (start < tau_h))
    if bool(outside.any()):
        raise InputError("dose time_h", "does not lie in the dosing interval", value=float(start[outside][0]), unit="h",
                         allowed=f"[0, {tau_h:g})", hint="a lag counts to the start")  # fmt: skip
    if bool((given & (doses.duration_h > tau_h)).any()):
        raise InputError("dose duration_h", value=float(doses.duration_h.max()), unit="h", allowed=f"<= {tau_h:g}",
                         hint="a longer infusion at steady state is a constant one: sum the rates")  # fmt: skip
    over = torch.where(given, (start + doses.duration_h - tau_h).clamp_min(0), 0.0)
    crossing = over > 0
    if not bool(crossing.any()):
        return doses
    length = torch.where(crossing, doses.duration_h, 1.0)
    zero = torch.zeros_like(doses.time_h)
    late = torch.where(crossing, doses.amount_mg * over / length, 0.0)
    return DoseEvents(
        torch.cat((doses.time_h, zero), 1),
        torch.cat((doses.amount_mg - late, late), 1),
        torch.cat((doses.duration_h - over, torch.where(crossing, over, 0.0)), 1),
        torch.cat((doses.route, torch.zeros_like(doses.route)), 1),
        doses.ka_1_h, doses.lag_h, doses.f_abs,
    )  # fmt: skip


def _start_state(ladder: Ladder, left: Tensor, passing: list[int], tau_h: float) -> Tensor:
    """x = sum_k P^k b, ``(B, W)``, from what an interval leaves, ``(B, W)``; ``passing`` states do not persist."""
    batch, size = left.shape
    eye = torch.eye(size, dtype=left.dtype, device=left.device).expand(batch, -1, -1)
    power = ladder.advance(eye, torch.full((batch, size), tau_h, dtype=left.dtype, device=left.device))
    keep = torch.ones(size, dtype=left.dtype, device=left.device)
    keep[passing] = 0
    power, state = power * keep[:, None] * keep, (left * keep)[..., None]
    for _ in range(_MAX_DOUBLINGS):
        if float(power.detach().sum(-2).amax()) < _SETTLED:
            return state[..., 0]
        state = state + power @ state
        power = power @ power
    raise InputError("doses", "never reach a steady state: nothing, or next to nothing, is eliminated",
                     hint="give a clearance, or simulate a fixed number of doses")  # fmt: skip


def steady_state(system: SystemParameters, doses: DoseEvents, tau_h: float, time_h: Tensor) -> Tensor:
    """Amounts in every node, mg, ``(B, N, T)``, during an interval long after the first.

    Args:
        system: Physical parameters.
        doses: The doses of one interval: times within [0, tau).
        tau_h: Dosing interval, h.
        time_h: Times within [0, tau], h, ``(B, T)``; time 0 shows the state after a bolus at 0, time tau the one
        before.

    Raises:
        InputError: when there is no steady state, or see ``within_one_interval`` and ``mechanistic.solve``.
    """
    system, doses, time_h = system.to(torch.float64), doses.to(torch.float64), time_h.to(torch.float64)
    doses = within_one_interval(doses, tau_h)
    if not bool(((time_h >= 0) & (time_h <= tau_h * (1 + 1e-12))).all()):
        raise InputError("time_h", "lies outside the dosing interval", unit="h", allowed=f"[0, {tau_h:g}]")
    if not system.is_linear:
        return _saturable_steady_state(system, doses, tau_h, time_h)
    topology = system.topology
    generator = closed(generator_matrix(topology, mechanistic_rates(system)))
    places = (topology.dose_node, topology.absorption_node)
    wide, source = extended_generator(generator, *places, doses.ka_1_h)
    size = generator.shape[-1]
    ladder = Ladder(wide, tau_h, torch.nn.functional.pad(source[:, None], (size, 1)))
    end = torch.full_like(time_h[:, :1], tau_h)
    body = solve_events(generator, *places, doses, end, conserve=True)[..., 0]
    lumen = _lumen_at(doses, tau_h)
    left = torch.cat((body, torch.zeros_like(lumen), lumen), 1)
    start = _start_state(ladder, left, [size - 1, size], tau_h)  # what has left the body, and the source
    carried = ladder.advance_all(start, time_h)
    return (carried[:, :size] + solve_events(generator, *places, doses, time_h, conserve=True))[:, : size - 1]


def _lumen_at(doses: DoseEvents, tau_h: float) -> Tensor:
    """What one interval's oral doses leave in the gut lumen at its end, mg, ``(B, 1)``."""
    since = tau_h - doses.start_h
    left = doses.amount_mg * doses.f_abs[:, None] * torch.exp(-doses.ka_1_h[:, None] * since)
    return torch.where(doses.is_oral, left, 0.0).sum(1, keepdim=True)


def _repeated(doses: DoseEvents, tau_h: float, intervals: int) -> DoseEvents:
    """The doses of one interval, given in that many."""
    shift = torch.arange(intervals, dtype=torch.float64) * tau_h
    amount, duration, route = (x.repeat(1, intervals) for x in (doses.amount_mg, doses.duration_h, doses.route))
    start = (doses.time_h[:, None] + shift[None, :, None]).flatten(1)
    return DoseEvents(start, amount, duration, route, doses.ka_1_h, doses.lag_h, doses.f_abs)


def _saturable_steady_state(system: SystemParameters, doses: DoseEvents, tau_h: float, time_h: Tensor) -> Tensor:
    """Intervals are doubled in number until the last one's end equals the one before's within 1e-6."""
    _check_capacity(system, doses, tau_h)
    intervals = 8
    while intervals <= _MAX_INTERVALS:
        many = _repeated(doses, tau_h, intervals)
        last = torch.tensor((intervals - 1) * tau_h, dtype=torch.float64)
        ends = torch.stack((last, last + tau_h)).expand(len(time_h), -1)
        out = solve(system, many, torch.cat((ends, time_h + last), 1))
        before, after = out[..., 0], out[..., 1]
        if bool(((after - before).abs() <= _AGREEMENT * after.amax(1, keepdim=True)).all()):
            return out[..., 2:]
        intervals *= 4
    raise InputError("doses", f"do not reach a steady state within {_MAX_INTERVALS} intervals",
                     hint="the input comes close to what saturable metabolism can remove")  # fmt: skip


def _check_capacity(system: SystemParameters, doses: DoseEvents, tau_h: float) -> None:
    """Refuse an average input that saturable metabolism, alone, cannot remove."""
    absorbed = torch.where(doses.is_oral, doses.amount_mg * doses.f_abs[:, None], doses.amount_mg).sum(1) / tau_h
    capacity = system.vmax_mg_h.sum(1)
    linear = (system.elimination_l_h > 0).any(1)
    beyond = ~linear & (absorbed >= capacity)
    if bool(beyond.any()):
        i = int(beyond.nonzero()[0])
        raise InputError("doses", "bring in more than saturable metabolism removes: there is no steady state",
                         value=float(absorbed[i]), unit="mg/h", allowed=f"< {float(capacity[i]):g} mg/h",
                         where=f"curve {i}")  # fmt: skip

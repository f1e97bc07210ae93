"""Any regimen by modes: from event to event, then from the latest event to each time.

Between two events a mode decays by itself, and an input (an infusion, or the gut lumen) drives it along a particular
solution: level x response. What is left, the free part, jumps at events so that the amounts do what the doses say. One
exponential per mode and observation, and one per mode and event, is all that a curve costs.

The gradient is the integral of adjoint times state (see ``modes``), event by event: the adjoint at the end of an
event's time counts like an observation there.

Axis legend: B batch, N states (and modes), K events, T times, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from perfuse.pk.events import Events
from perfuse.pk.modes import Basis, divided_differences, gradient_from_modes, ties

_CLOSEST_INPUT = 1e-4
"""A mode this close to the rate of an input (0 for an infusion, -ka for the gut lumen), relatively, is not resolved."""


@dataclass(frozen=True)
class Course:
    """What happens to a batch of curves, and where they are looked at.

    Attributes:
        events: In order of time.
        since_h: Time since the latest event before each observation, h, ``(B, T)``; 0 before the first.
        latest: Which event that is, ``(B, T)``; -1 before the first.
        dose_node, absorption_node: States that intravenous doses enter and that the gut lumen empties into.
        ka_1_h: Absorption rate constant, 1/h, ``(B,)``.
        infused, absorbed: Whether any curve has an infusion; an oral dose.
    """

    events: Events
    since_h: Tensor
    latest: Tensor
    dose_node: int
    absorption_node: int | None
    ka_1_h: Tensor
    infused: bool
    absorbed: bool

    @staticmethod
    def of(events: Events, time_h: Tensor, dose_node: int, absorption_node: int | None, ka_1_h: Tensor) -> Course:
        """The course of observations at ``time_h`` ``(B, T)``, in any order."""
        elapsed = time_h[:, None] - events.time_h[..., None]  # (B, K, T)
        begun = (elapsed > 0) | ((elapsed == 0) & events.counts_at_once[..., None])
        latest = begun.sum(1) - 1  # events are in order, so those that have begun come first
        since = elapsed.gather(1, latest.clamp_min(0)[:, None])[:, 0].clamp_min(0)
        infused, absorbed = bool(events.rate_mg_h.any()), bool(events.lumen_mg.any())
        return Course(events, since, latest, dose_node, absorption_node, ka_1_h, infused, absorbed)

    @property
    def n_events(self) -> int:
        return self.events.time_h.shape[1]

    @property
    def gaps_h(self) -> Tensor:
        """Time between events, ``(B, K - 1)``."""
        return self.events.time_h.diff(dim=1)

    @property
    def longest_h(self) -> float:
        """No exponential of a longer time is taken."""
        longest = float(self.since_h.amax()) if self.since_h.numel() else 0.0
        return max(longest, float(self.gaps_h.amax())) if self.n_events > 1 else longest

    def at_times(self, per_event: Tensor) -> Tensor:
        """What holds at each observation, ``(B, .., T)`` from ``(B, .., K)``; 0 before the first event."""
        index = self.latest.clamp_min(0)
        if per_event.dim() == 3:
            index = index[:, None].expand(-1, per_event.shape[1], -1)
        out = per_event.gather(-1, index)
        started = self.latest >= 0
        return out if bool(started.all()) else torch.where(started[:, None] if out.dim() == 3 else started, out, 0)

    def lumen_mg(self) -> Tensor:
        """Drug in the gut lumen right after each event, ``(B, K)``."""
        level = self.events.lumen_mg.clone()
        decay = torch.exp(-self.ka_1_h[:, None] * self.gaps_h)
        for k in range(1, self.n_events):
            level[:, k] += level[:, k - 1] * decay[:, k - 1]
        return level

    def resolved(self, values: Tensor) -> Tensor:
        """Whether all modes ``(B, N)`` are far enough from the rates of the curve's inputs, ``(B,)`` bool."""
        good = torch.ones(len(values), dtype=torch.bool, device=values.device)
        least = _CLOSEST_INPUT / max(self.longest_h, 1e-300)
        for is_used, rate in self._input_rates():
            near = (_CLOSEST_INPUT * (values.abs() + rate.abs()[:, None])).clamp_min(least)
            good &= ((values - rate[:, None]).abs() > near).all(1) | ~is_used
        return good

    def _input_rates(self) -> list[tuple[Tensor, Tensor]]:
        """Which curves have an input of each kind, and its own rate constant, ``(B,)`` each."""
        rates = [(self.events.rate_mg_h.any(1), torch.zeros_like(self.ka_1_h))] if self.infused else []
        return [*rates, (self.events.lumen_mg.any(1), -self.ka_1_h)] if self.absorbed else rates

    def at_start(self, amounts: Tensor) -> Tensor:
        """The amounts ``(B, N, T)``, changed in place to hold at the first event's own time exactly what it puts in."""
        events = self.events
        is_start = (self.since_h == 0) & (self.latest >= 0)
        if self.n_events > 1:
            is_start &= self.at_times(events.time_h) == events.time_h[:, :1]
        if not bool(is_start.any()):
            return amounts
        curve, at = is_start.nonzero(as_tuple=True)
        amounts[curve, :, at] = 0.0
        amounts[curve, self.dose_node, at] = events.bolus_mg.cumsum(1)[curve, self.latest[curve, at]]
        return amounts


@dataclass(frozen=True)
class _Input:
    """Something that feeds the body at a rate of its own, and the particular solution that follows it.

    Attributes:
        rate: Its own rate constant, ``(B,)``: 0 for a steady infusion, -ka for the gut lumen.
        level: How strong it is right after each event, ``(B, K)``.
        seen: How strong it is at each observation, ``(B, T)``.
        ended: How strong it is at the end of each event's time, ``(B, K - 1)``.
        response: Modes that follow a level of 1, ``(B, N)``: -w / (lambda - rate).
    """

    rate: Tensor
    level: Tensor
    seen: Tensor
    ended: Tensor
    response: Tensor


def _inputs(course: Course, basis: Basis) -> list[_Input]:
    found = []
    if course.infused:
        level = course.events.rate_mg_h
        response = _response(level, -basis.inverse[..., course.dose_node] / basis.values)
        found.append(_Input(torch.zeros_like(level[:, 0]), level, course.at_times(level), level[:, :-1], response))
    if course.absorbed:
        assert course.absorption_node is not None
        ka, level = course.ka_1_h, course.lumen_mg()
        fed = ka[:, None] * basis.inverse[..., course.absorption_node]
        response = _response(level, -fed / (basis.values + ka[:, None]))
        seen = course.at_times(level) * torch.exp(-ka[:, None] * course.since_h)
        found.append(_Input(-ka, level, seen, level[:, :-1] * torch.exp(-ka[:, None] * course.gaps_h), response))
    return found


def _response(level: Tensor, response: Tensor) -> Tensor:
    """No response of curves without the input, whose modes need not be resolved."""
    return torch.where(level.any(1)[:, None], response, 0.0)


class _CourseModes(torch.autograd.Function):
    """Amounts ``(B, N, T)`` of a course from K; only K has a gradient."""

    @staticmethod
    def forward(ctx: Any, generator: Tensor, basis: Basis, course: Course) -> Tensor:
        inputs = _inputs(course, basis)
        # Modes of what moves freely, right after each event: what came before, decayed, and what the event adds. An
        # input's particular solution jumps with its level, so the free part jumps the other way.
        start = basis.inverse[..., course.dose_node, None] * course.events.bolus_mg[:, None]
        for source in inputs:
            jump = torch.cat((source.level[:, :1], source.level[:, 1:] - source.ended), 1)
            start = start - source.response[..., None] * jump[:, None]
        between = torch.exp(basis.values[..., None] * course.gaps_h[:, None])
        for k in range(1, course.n_events):
            start[..., k] += start[..., k - 1] * between[..., k - 1]
        decay = torch.exp_(basis.values[..., None] * course.since_h[:, None])
        free = decay * (start if course.n_events == 1 else course.at_times(start))
        amounts = basis.vectors @ free
        amounts = amounts.real if amounts.is_complex() else amounts
        if inputs:
            driven = basis.vectors @ torch.stack([source.response for source in inputs], -1)  # (B, N, I)
            driven = driven.real if driven.is_complex() else driven
            amounts = torch.baddbmm(amounts, driven, torch.stack([source.seen for source in inputs], 1))
        ctx.course, ctx.inputs, ctx.basis = course, inputs, basis
        ctx.save_for_backward(start, between, decay, free)
        return course.at_start(amounts.clamp_min(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        start, between, decay, free = ctx.saved_tensors
        course, basis = ctx.course, ctx.basis
        # Modes of the adjoint: at each observation, and carried back to right after each event.
        seen = basis.vectors.mT @ grads[0].to(basis.vectors.dtype)
        after = _per_event(seen * decay, course)
        for k in range(course.n_events - 2, -1, -1):
            after[..., k] += after[..., k + 1] * between[..., k]
        ends = after[..., 1:]  # the adjoint at the end of each event's time but the last
        ended = start[..., :-1] * between
        since, gaps = course.since_h, course.gaps_h
        far = seen @ free.mT + ends @ ended.mT
        tied = ties(basis.values, course.longest_h)
        integral = divided_differences(after @ start.mT, far, basis.values, tied)
        if tied is not None:
            equal = seen @ (free * since[:, None]).mT + ends @ (ended * gaps[:, None]).mT
            integral = torch.where(tied, equal, integral)
        own = _times_vector(seen * free, since) + _times_vector(ends * ended, gaps)
        integral.diagonal(dim1=-2, dim2=-1).copy_(own)
        for source in ctx.inputs:
            carried = _times_vector(after, source.level) - _times_vector(seen, source.seen)
            carried = carried - _times_vector(ends, source.ended)
            # Curves without such an input carry nothing, though their placeholder rate may equal a mode.
            used = (source.level != 0).any(1)[:, None]
            forced = torch.where(used, carried, 0) / torch.where(used, basis.values - source.rate[:, None], 1)
            integral = torch.addcmul(integral, forced[..., None], source.response[:, None])
        return gradient_from_modes(integral, basis), None, None


def _times_vector(modes: Tensor, weight: Tensor) -> Tensor:
    """Sum over the last axis, ``(B, N)`` from ``(B, N, .)`` and real ``(B, .)``."""
    return (modes @ weight.to(modes.dtype)[..., None])[..., 0]


def _per_event(modes: Tensor, course: Course) -> Tensor:
    """Sums over the observations that follow each event, ``(B, N, K)`` from ``(B, N, T)``."""
    if course.n_events == 1:
        started = course.latest >= 0
        return (modes if bool(started.all()) else modes * started[:, None]).sum(-1, keepdim=True)
    number = torch.arange(course.n_events, device=modes.device)
    belongs = course.latest[..., None] == number  # (B, T, K)
    return modes @ belongs.to(modes.dtype)


def solve_course(generator: Tensor, basis: Basis, course: Course) -> Tensor:
    """Amounts ``(B, N, T)``, mg, with a gradient to K ``(B, N, N)``; rounding below zero is cut off.

    At the time of a bolus into an empty body the value is the bolus itself, exactly.
    """
    return _CourseModes.apply(generator, basis, course)

"""Linear systems under any regimen: from event to event, then from the latest event to each time.

An event is the start of a dose or the end of an infusion. The states are extended by a constant source, whose level is
the infusion rate, and by the gut lumen, so that one matrix moves everything between two events. Nothing is subtracted:
the rate after an event is the sum of the infusions that run, and amounts stay non-negative.

Axis legend: B batch, S states of the generator, W = S + 2 with source and lumen, D dose events, K events, T times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from perfuse.pk.propagate import Ladder
from perfuse.pk.system import DoseEvents


@dataclass(frozen=True)
class Events:
    """What happens when, per curve, in order of time; rows are padded with events that change nothing.

    Attributes:
        time_h: ``(B, K)``.
        bolus_mg: Into venous blood, ``(B, K)``.
        lumen_mg: Into the gut lumen, ``(B, K)``: what will be absorbed of an oral dose.
        rate_mg_h: Infusion rate from this event on, ``(B, K)``.
        counts_at_once: Whether a time equal to the event's shows the state after it (the first event), ``(B, K)``.
    """

    time_h: Tensor
    bolus_mg: Tensor
    lumen_mg: Tensor
    rate_mg_h: Tensor
    counts_at_once: Tensor

    def from_time_zero(self) -> Events:
        """The same with an event at time 0 before all others, which changes nothing: where a given state begins."""
        before = lambda x: functional.pad(x, (1, 0))  # noqa: E731
        at_once = self.counts_at_once & (self.time_h == 0)
        return Events(
            before(self.time_h), before(self.bolus_mg), before(self.lumen_mg), before(self.rate_mg_h),
            torch.cat((torch.ones_like(at_once[:, :1]), at_once), 1),
        )  # fmt: skip


def dose_events_in_order(doses: DoseEvents, until_h: float) -> Events:
    """Starts of doses and ends of infusions up to a time, sorted; what comes later changes nothing before it."""
    start, given, oral = doses.start_h, doses.amount_mg > 0, doses.is_oral
    infused = given & (doses.duration_h > 0) & ~oral
    end = start + doses.duration_h
    none = torch.zeros_like(doses.amount_mg)
    times, order = torch.sort(
        torch.cat((torch.where(given, start, torch.inf), torch.where(infused, end, torch.inf)), 1), dim=1, stable=True
    )
    bolus = torch.where(given & ~infused & ~oral, doses.amount_mg, none)
    lumen = torch.where(oral, doses.amount_mg * doses.f_abs[:, None], none)
    bolus, lumen = (torch.cat((x, none), 1).gather(1, order) for x in (bolus, lumen))
    n_events = max(1, int((times <= until_h).sum(1).max()))
    times, bolus, lumen = times[:, :n_events], bolus[:, :n_events], lumen[:, :n_events]
    runs = infused[:, None] & (start[:, None] <= times[..., None]) & (end[:, None] > times[..., None])  # (B, K, D)
    rate = torch.where(infused, doses.amount_mg / torch.where(infused, doses.duration_h, 1.0), none)
    first = times == times[:, :1]
    last = torch.where(torch.isfinite(times), times, 0.0).amax(1, keepdim=True)
    padded = torch.isinf(times)
    return Events(
        time_h=torch.where(padded, last, times),
        bolus_mg=bolus,
        lumen_mg=lumen,
        rate_mg_h=torch.where(runs, rate[:, None], 0.0).sum(-1),
        counts_at_once=first & ~padded,
    )


def extended_generator(
    generator: Tensor, dose_node: int, absorption_node: int | None, ka_1_h: Tensor
) -> tuple[Tensor, Tensor]:
    """K with a constant source into ``dose_node`` and the gut lumen, ``(B, W, W)``; and the source's rate q, ``(B,)``.

    The source's strength is the fastest rate, so that the matrix norm, hence the step, stays its own. Without a gut the
    lumen feeds nothing.
    """
    size = generator.shape[-1]
    one = lambda i: functional.one_hot(torch.tensor(i, device=generator.device), size + 2).to(generator.dtype)  # noqa: E731
    q = (-torch.diagonal(generator, dim1=-2, dim2=-1)).amax(-1).clamp_min(1e-6)  # a system at rest still needs a source
    source = q.detach()[:, None] * one(dose_node)
    lumen = torch.zeros_like(source)
    if absorption_node is not None:
        lumen = ka_1_h.to(generator.dtype)[:, None] * (one(absorption_node) - one(size + 1))
    columns = torch.stack((source, lumen), -1)  # (B, W, 2)
    return functional.pad(generator, (0, 2, 0, 2)) + functional.pad(columns, (size, 0)), q.detach()


def solve_events(
    generator: Tensor,
    dose_node: int,
    absorption_node: int | None,
    doses: DoseEvents,
    time_h: Tensor,
    conserve: bool = False,
    start_mg: Tensor | None = None,
) -> Tensor:
    """Amounts ``(B, S, T)``, mg, after any doses.

    At the time of an event the value is the one before it, but for the curve's first.

    Args:
        generator: K, 1/h, ``(B, S, S)``, float64.
        dose_node: State that intravenous doses enter.
        absorption_node: State that the gut lumen empties into; None where no dose is oral.
        doses: Dose events, float64.
        time_h: Observation times, h, ``(B, T)``, in any order.
        conserve: Whether the columns of K sum to zero and the total amount is to be held to rounding.
        start_mg: Amounts at time 0 in the states and, last, in the gut lumen, ``(B, S + 1)``; None: nothing. No dose is
            earlier then.
    """
    size = generator.shape[-1]
    until_h = float(time_h.max())
    events = dose_events_in_order(doses, until_h)
    if start_mg is not None:
        events = events.from_time_zero()
    wide, q = extended_generator(generator, dose_node, absorption_node, doses.ka_1_h)
    elapsed = time_h[:, None] - events.time_h[..., None]  # (B, K, T)
    begun = (elapsed > 0) | ((elapsed == 0) & events.counts_at_once[..., None])
    latest = begun.sum(1) - 1  # (B, T): events are in order, so those that have begun come first
    index = latest.clamp_min(0)
    since = elapsed.gather(1, index[:, None]).squeeze(1).clamp_min(0)
    gaps = events.time_h.diff(dim=1)
    gaps = gaps.clamp_max(max(until_h - float(events.time_h.min()), 0.0))  # an event after the last time is never seen
    # The longest time depends on the first dose and the last time alone: a later dose changes no earlier bit.
    growth = functional.pad(q[:, None], (size, 1)) if conserve else None
    ladder = Ladder(wide, max(until_h - float(events.time_h.min()), 0.0), growth)
    states, state = [], wide.new_zeros(*wide.shape[:2])
    if start_mg is not None:
        state = torch.cat((start_mg[:, :size], state[:, :1], start_mg[:, size:]), 1)
    for k in range(events.time_h.shape[1]):
        if k:
            state = ladder.advance(state[..., None], gaps[:, k - 1 : k])[..., 0]
        added = functional.pad((events.bolus_mg[:, k])[:, None], (dose_node, size + 1 - dose_node))
        level = (events.rate_mg_h[:, k] / q)[:, None]
        lumen = state[:, size + 1 :] + events.lumen_mg[:, k : k + 1]
        state = torch.cat(((state + added)[:, :size], level, lumen), 1)
        states.append(state)
    start = torch.stack(states, -1).gather(2, index[:, None].expand(-1, size + 2, -1))
    start = torch.where((latest >= 0)[:, None], start, 0.0)
    return ladder.advance(start, since)[:, :size]

"""Time between events, cut so that a solver with dyadic steps meets every event, and if it can every sample.

Each segment, from one event to the next, is a whole number of units of its curve, and each unit is 2^J base steps. When
all events and samples of a batch lie on one grid per curve, the unit is that grid's step. Otherwise the unit is the
segment itself, and samples fall anywhere in it.

Axis legend: B batch, K segments (events), U units (distinct ones of each curve), T times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from perfuse.pk.events import Events

_ALIGNED = 1e-9
"""Events and samples within this share of a grid step from the grid are on it, relative to their number of steps."""
_SAME = 1e-12
_LARGEST_COUNT = 4096


@dataclass(frozen=True)
class Segments:
    """Where segments begin and what they are made of.

    Attributes:
        unit_h: Units, ``(U,)``, and whose they are, ``curve`` ``(U,)``.
        unit: Which unit each segment is made of, ``(B, K)``.
        units: How many of them, ``(B, K)``; 0 for segments of no length.
        sample_segment: ``(B, T)``; -1 before the first event.
        sample_units: Time from the segment's start, in units, ``(B, T)``.
        on_grid: Whether all samples are whole numbers of units.
    """

    unit_h: Tensor
    curve: Tensor
    unit: Tensor
    units: Tensor
    sample_segment: Tensor
    sample_units: Tensor
    on_grid: bool

    @staticmethod
    def of(events: Events, time_h: Tensor) -> Segments:
        """Segments of the events up to each curve's last time."""
        start = events.time_h
        elapsed = time_h[:, None] - start[..., None]
        begun = (elapsed > 0) | ((elapsed == 0) & events.counts_at_once[..., None])
        segment = begun.sum(1) - 1
        since = elapsed.gather(1, segment.clamp_min(0)[:, None])[:, 0].clamp_min(0)
        until = torch.where(segment >= 0, time_h, start[:, :1]).amax(1, keepdim=True)
        length = (torch.cat((start[:, 1:], until), 1).minimum(until) - start).clamp_min(0)
        curve = torch.arange(len(start), device=start.device)
        grid = _grid(length, torch.where(segment >= 0, since, 0.0))
        if grid is not None:
            unit_h, units, sample_units = grid
            return Segments(unit_h, curve, curve[:, None].expand_as(units), units, segment, sample_units, True)
        distinct, slot = _distinct(length)
        exists = distinct > 0
        exists[:, 0] = True
        number = (exists.flatten().cumsum(0) - 1).unflatten(0, exists.shape)
        own = distinct.gather(1, slot.gather(1, segment.clamp_min(0)))
        sample_units = torch.where(own > 0, since / own.clamp_min(torch.finfo(own.dtype).tiny), 0.0).clamp_max(1.0)
        return Segments(
            distinct[exists], exists.nonzero()[:, 0], number.gather(1, slot), (length > 0).to(torch.int64), segment,
            sample_units, False,
        )  # fmt: skip


def _grid(length: Tensor, since: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """(unit ``(B,)``, units per segment, units per sample) when each curve has a grid, else None."""
    values = torch.cat((length, since), 1)
    scale = values.amax(1, keepdim=True)
    ordered = torch.cat((torch.zeros_like(scale), values), 1).sort(1).values
    gaps = ordered.diff(dim=1)
    step = torch.where(gaps > _ALIGNED * scale, gaps, torch.inf).amin(1)
    step = torch.where(torch.isfinite(step), step, 1.0)
    # The smallest gap carries the rounding of two times; the longest value over a whole number of them does not.
    count = (scale[:, 0] / step).round()
    if bool((count > _LARGEST_COUNT).any()):
        return None
    step = torch.where(count > 0, scale[:, 0] / count.clamp_min(1), step)
    multiples = values / step[:, None]
    whole = multiples.round()
    if bool(((multiples - whole).abs() > _ALIGNED * whole.clamp_min(1)).any()):
        return None
    k = length.shape[1]
    return step, whole[:, :k].to(torch.int64), whole[:, k:]


def _distinct(length: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct lengths per curve, ``(B, U)``, and each segment's, ``(B, K)``."""
    rows = torch.arange(len(length), device=length.device)
    found = length.new_zeros(len(length), 1)
    count = torch.zeros_like(rows)
    slots = []
    for own in length.unbind(1):
        same = ((found - own[:, None]).abs() <= _SAME * own[:, None]) & (found > 0)
        new = ~same.any(1) & (own > 0)
        slot = torch.where(new, count, same.to(torch.int8).argmax(1))
        if bool((new & (count == found.shape[1])).any()):
            found = torch.nn.functional.pad(found, (0, 1))
        found[rows[new], slot[new]] = own[new]
        count = count + new
        slots.append(slot)
    return found, torch.stack(slots, 1)

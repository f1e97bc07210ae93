"""Amounts at any times from the steps of a saturable solution.

Samples on the grid of the steps are reached exactly, by the binary digits of their time within a step. Others are
interpolated between states at eleven dyadic parts of their step, where the states are smooth enough for that; where
they are not (the solver's steps follow the node alone), they too are reached exactly.

Axis legend: B batch, W states, U units (distinct ones of each curve), I records of a curve, T times, S steps with
samples, H times in a unit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from perfuse.pk import bernstein
from perfuse.pk.bernstein import LEFT, N_COEFFICIENTS, RIGHT, TO_MONOMIAL
from perfuse.pk.collocation import StepLadder
from perfuse.pk.saturable_steps import Steps
from perfuse.pk.segments import Segments

_PIECE = 128
"""Units whose samples are advanced together: they stay in the processor's cache."""
_STEPS = 2048
"""Steps whose samples are interpolated together."""
_REST_DEGREE = 7
"""Taylor degree of the last fraction of a base step: remainder (1/16)^8 / 8! = 6e-15."""
_PARTS = np.array([0, 1, 2, 4, 6, 8, 10, 12, 14, 15, 16]) / 16
"""Parts of a step whose states are interpolated between."""
_LEFT_OUT = ((np.array([0, 2, 3, 5, 7, 8, 10]), np.array([1, 4, 6, 9])),
             (np.array([0, 2, 3, 4, 5, 6, 7, 8, 10]), np.array([1, 9])))  # fmt: skip
"""Parts that polynomials of degree 6 and 8 go through, and parts that they are compared at."""
_SHARE = 0.1
"""Interpolation may take this share of the tolerance."""
_FLOOR = 1e-6
"""Share of the largest amount below which a state is not interpolated to its own relative accuracy."""
_STARTS = ((0.0,), (0.0, 0.5), (0.0, 0.25, 0.5, 0.75), (0.0, 0.875))
"""Where a half, a quarter, an eighth and a sixteenth of a step are taken from."""


def sample(
    ladder: StepLadder,
    plan: Steps,
    states: Tensor,
    coefficients: Tensor,
    segments: Segments,
    units_log2: int,
    tolerance: float,
) -> Tensor:
    """Amounts ``(B, W, T)`` at the segments' samples.

    Args:
        ladder: Step matrices of every unit.
        plan: Where steps begin.
        states: State at the start of each, ``(B, I, W)``.
        coefficients: Of w on each, ``(B, I, 7)``.
        segments: Say where samples are.
        units_log2: J: a unit is 2^J base steps.
        tolerance: Relative error that interpolation stays below.
    """
    segment = segments.sample_segment.clamp_min(0)
    position = segments.sample_units * 2.0**units_log2
    index = _record(plan, segments, segment, position, units_log2)
    level = plan.level.gather(1, index)
    longest = torch.where(level >= 0, torch.exp2(level.to(position.dtype)), 0.0)
    offset = (position - plan.position.gather(1, index)).clamp_min(0).minimum(longest)
    unit = segments.unit.gather(1, segment)
    rows = torch.arange(len(index), device=index.device)[:, None]
    if segments.on_grid:
        out = _advance_in_pieces(ladder, states[rows, index], coefficients[rows, index], level, offset, units_log2)
    else:
        out = states[rows, index]
        inside = (offset > 0) & (segments.sample_segment >= 0)
        at = _Where(*(x[inside] for x in (rows.expand_as(index), index, unit, level, offset)))
        if len(at.row):
            out = out.index_put((inside,), _inside(ladder, at, states, coefficients, tolerance))
    return torch.where((segments.sample_segment >= 0)[..., None], out, 0.0).clamp_min(0).mT


class _Where:
    """Samples in a row: curve, record, unit, level of the step, and base steps from its start."""

    def __init__(self, row: Tensor, record: Tensor, unit: Tensor, level: Tensor, offset: Tensor) -> None:
        self.row, self.record, self.unit, self.level, self.offset = row, record, unit, level, offset

    def only(self, which: Tensor) -> _Where:
        return _Where(*(x[which] for x in (self.row, self.record, self.unit, self.level, self.offset)))


def _record(plan: Steps, segments: Segments, segment: Tensor, position: Tensor, units_log2: int) -> Tensor:
    """Which record each sample follows, ``(B, T)``."""
    total = (segments.units << units_log2).to(position.dtype).clamp_min(1)

    def key(segment: Tensor, position: Tensor) -> Tensor:  # ends of segments come before the starts of the next
        return 2 * segment + position / total.gather(1, segment)

    number = torch.arange(plan.level.shape[1], device=position.device)
    begins = torch.where(number < plan.count[:, None], key(plan.segment, plan.position.to(position.dtype)), torch.inf)
    return torch.searchsorted(begins, key(segment, position), right=True) - 1


def _inside(ladder: StepLadder, at: _Where, states: Tensor, coefficients: Tensor, tolerance: float) -> Tensor:
    """States ``(n, W)`` at samples inside steps."""
    n_records = states.shape[1]
    step, which = torch.unique(at.row * n_records + at.record, return_inverse=True)
    row, record = step // n_records, step % n_records
    first = torch.empty_like(step).index_put((which,), torch.arange(len(which), device=step.device))
    nodes = _nodes(ladder, at.unit[first], at.level[first], states[row, record], states[row, record + 1],
                   coefficients[row, record])  # fmt: skip
    rough = ~(_interpolation_error(nodes.detach()) <= _SHARE * tolerance)
    part = at.offset / torch.exp2(at.level.to(at.offset.dtype))
    weights = _interpolation(part)
    out = nodes.new_zeros(len(which), ladder.size)
    for steps, mine, cell, width in _groups(which, len(step), _STEPS):
        table = weights.new_zeros(len(steps), width, weights.shape[1]).index_put(cell, weights[mine])
        out = out.index_put((mine,), (table @ nodes[steps])[cell])
    exact = rough[which]
    if bool(exact.any()):
        out = out.index_put((exact,), _advance_by_unit(ladder, at.only(exact), states, coefficients))
    return out


def _nodes(ladder: StepLadder, unit: Tensor, level: Tensor, start: Tensor, end: Tensor, coefficients: Tensor) -> Tensor:
    """States at ``_PARTS`` of steps, ``(S, 11, W)``, by half, quarter, eighth and sixteenth steps."""
    size, n_units = ladder.size, len(ladder.base_h)
    rungs = ladder.rungs.flatten(0, 1)
    found = {0.0: start, 1.0: end}
    for depth, begins in enumerate(_STARTS, start=1):
        length = 2.0**-depth
        rung = rungs.index_select(0, (level - depth) * n_units + unit)
        pieces = torch.stack([bernstein.restriction(begin, length) for begin in begins]).to(start.device)
        own = torch.einsum("kij,sj->ski", pieces, coefficients)
        both = torch.cat((torch.stack([found[begin] for begin in begins], 1), own), -1)  # (S, k, W + 7)
        for begin, state in zip(begins, (both @ rung.mT).unbind(1), strict=True):
            found[begin + length] = state
    assert size == start.shape[-1]
    return torch.stack([found[part] for part in _PARTS], 1)


def _interpolation_error(nodes: Tensor) -> Tensor:
    """Estimated relative error of interpolation between the states of a step, ``(S,)``.

    Polynomials through seven and nine of the states miss those left out by e_7 and e_9; through all eleven, the error
    is taken to fall once more by the same factor, to e_9^2 / e_7.
    """
    missed = []
    for kept, left_out in _LEFT_OUT:
        weights = torch.as_tensor(bernstein.lagrange(_PARTS[left_out], _PARTS[kept]), device=nodes.device)
        missed.append((nodes[:, left_out] - weights @ nodes[:, kept]).abs().amax(1))
    tiny = torch.finfo(nodes.dtype).tiny
    error = missed[1] * (missed[1] / missed[0].clamp_min(tiny)).clamp_max(1)
    held = nodes[:, 1:].amin(1)
    floor = _FLOOR * nodes.amax((1, 2))[:, None]
    return (error / torch.maximum(held, floor).clamp_min(tiny)).amax(1)


def _interpolation(part: Tensor) -> Tensor:
    """Lagrange weights of the eleven states, ``(n, 11)``."""
    parts = torch.as_tensor(_PARTS, device=part.device)
    distance = part[:, None] - parts
    one = torch.ones_like(distance[:, :1])
    below = torch.cat((one, distance[:, :-1].cumprod(1)), 1)
    above = torch.cat((distance[:, 1:].flip(1).cumprod(1).flip(1), one), 1)
    scale = [float(np.prod(_PARTS[j] - np.delete(_PARTS, j))) for j in range(len(_PARTS))]
    return below * above / torch.tensor(scale, dtype=part.dtype, device=part.device)


def _rank(unit: Tensor) -> Tensor:
    """Number of each sample among those of the same unit, ``(n,)``."""
    ordered, order = unit.sort(stable=True)
    number = torch.arange(len(unit), device=unit.device)
    new = torch.cat((torch.ones_like(ordered[:1], dtype=torch.bool), ordered.diff() != 0))
    begins = torch.where(new, number, 0).cummax(0).values
    return torch.zeros_like(unit).index_put((order,), number - begins)


def _groups(group: Tensor, n_groups: int, size: int) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, Tensor], int]]:
    """Samples by group, ``size`` groups at a time, those with as many samples together.

    Yields:
        The groups; which samples are theirs; those samples' cells in a table of groups x samples; the table's width.
    """
    count = torch.bincount(group, minlength=n_groups)
    order = count.argsort(stable=True)[int((count == 0).sum()) :]
    place = torch.zeros_like(count).index_put((order,), torch.arange(len(order), device=order.device))[group]
    rank = _rank(group)
    for i, groups in enumerate(order.split(size)):
        mine = ((place >= size * i) & (place < size * i + len(groups))).nonzero()[:, 0]
        yield groups, mine, (place[mine] - size * i, rank[mine]), int(count[groups[-1]])


def _advance_by_unit(ladder: StepLadder, at: _Where, states: Tensor, coefficients: Tensor) -> Tensor:
    """States ``(n, W)`` reached exactly."""
    columns = (states[at.row, at.record], coefficients[at.row, at.record], at.level, at.offset)
    out = columns[0]
    for units, mine, cell, width in _groups(at.unit, len(ladder.base_h), _PIECE):
        state, own, level, offset = (
            x.new_zeros(len(units), width, *x.shape[1:]).index_put(cell, x[mine]) for x in columns
        )
        out = out.index_put((mine,), _advance(ladder, units, state, own, level, offset, 0)[cell])
    return out


def _advance_in_pieces(
    ladder: StepLadder, state: Tensor, coefficients: Tensor, level: Tensor, offset: Tensor, lowest: int
) -> Tensor:
    """``_advance`` on curves few enough for the processor's cache; curve i is made of unit i."""
    out = []
    for start in range(0, len(state), _PIECE):
        rows = slice(start, min(start + _PIECE, len(state)))
        out.append(_advance(ladder, rows, state[rows], coefficients[rows], level[rows], offset[rows], lowest))
    return torch.cat(out)


def _advance(
    ladder: StepLadder,
    rows: slice | Tensor,
    state: Tensor,
    coefficients: Tensor,
    level: Tensor,
    offset: Tensor,
    lowest: int,
) -> Tensor:
    """States ``(U, H, W)`` after ``offset`` base steps of the step that begins there; ``rows`` are their units.

    Args:
        lowest: Times have no binary digits below this one.
    """
    halves = torch.cat((LEFT, RIGHT)).T.to(state.device)
    size = ladder.size
    whole = torch.floor(offset)
    count = whole.to(torch.int64)
    for j in range(int(level.max()) - 1, lowest - 1, -1):
        bit = ((count >> j) & 1).bool()[..., None]
        rung = ladder.rungs[j, rows]
        left, right = (coefficients @ halves).split(N_COEFFICIENTS, -1)
        moved = torch.baddbmm(left @ rung[..., size:].mT, state, rung[..., :size].mT)
        state = torch.where(bit, moved, state)
        coefficients = torch.where((level > j)[..., None], torch.where(bit, right, left), coefficients)
    rest = offset - whole
    if lowest > 0 or not bool((rest > 0).any()):
        return state
    return _rest(ladder, rows, state, coefficients, rest)


def _rest(ladder: StepLadder, rows: slice | Tensor, state: Tensor, coefficients: Tensor, rest: Tensor) -> Tensor:
    """The last fraction of a base step, by Taylor's series of the state."""
    rest = rest[..., None]
    monomial = coefficients @ TO_MONOMIAL.T.to(state.device)  # (U, H, 7)
    step = ladder.base_h[rows, None, None] * rest
    enters = torch.zeros(ladder.size, dtype=state.dtype, device=state.device)
    enters[ladder.node] = 1
    if ladder.sink is not None:
        enters[ladder.sink] = -1
    generator = ladder.generator[rows].mT
    term = out = state
    for m in range(_REST_DEGREE):
        term = term @ generator
        if m < N_COEFFICIENTS:
            term = term + enters * (monomial[..., m : m + 1] * rest**m)
        term = term * (step / (m + 1))
        out = out + term
    return out

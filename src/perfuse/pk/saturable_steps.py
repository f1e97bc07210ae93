"""Steps of a system with saturable kinetics in one node: chosen from its curvature, each curve at its own pace.

Axis legend: B batch, W states, K segments (events), I records of a curve (steps, and ends of segments), n curves at
work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from perfuse.errors import PerfuseError
from perfuse.pk import bernstein
from perfuse.pk.bernstein import N_COEFFICIENTS
from perfuse.pk.collocation import LOWEST_LEVEL, N_UNKNOWN, Saturation, StepLadder, nodal_residual_solve
from perfuse.pk.segments import Segments

_NEWTON_STEPS = 2
_NO_LEVEL = 62
_SAFETY = 0.9
_ORDER = 7
_AMOUNT_FLOOR = 1e-6
"""Share of the drug in the body below which an amount in the node is not followed to its own relative accuracy."""
_TINY = torch.finfo(torch.float64).tiny
_MAX_ITERATIONS = 1_000_000
_WAITING_SHARE = 8
"""Curves at the end of a segment wait until they are an eighth of those at work, so that few rounds go into events."""
_RESTART_LEVELS = 4
"""A step after an event is this many halvings shorter than the one before it."""


@dataclass(frozen=True)
class Jumps:
    """What each event adds to the state, ``(B, K, W)``, and the level it sets the infusions' source to."""

    added: Tensor
    level: Tensor | None
    source: int | None

    def apply(self, state: Tensor, rows: Tensor, k: Tensor) -> Tensor:
        """States after event ``k`` of curves ``rows``."""
        out = state + self.added[rows, k]
        if self.source is None or self.level is None:
            return out
        before, after = out[:, : self.source], out[:, self.source + 1 :]
        return torch.cat((before, self.level[rows, k][:, None], after), 1)


@dataclass(frozen=True)
class Steps:
    """Records in the order of each curve's time, ``(B, I, ...)``; a record of level -1 is the end of a segment.

    Attributes:
        count: Records per curve, ``(B,)``.
        segment, position, level: Which segment, base steps from its start, length as a level, ``(B, I)``.
        inner: Node amounts at the nodes of each step but its start, mg, ``(B, I, 6)``.
        state: State at the start of each step, ``(B, I, W)``.
        coefficients: Bernstein coefficients of w on each step, ``(B, I, 7)``.
        rejected: Trial steps that were too long, all curves together.
    """

    count: Tensor
    segment: Tensor
    position: Tensor
    level: Tensor
    inner: Tensor
    state: Tensor
    coefficients: Tensor
    rejected: int


class _Trial:
    """One trial step of some curves, by collocation: w interpolates at the nodes, exactly propagated in between."""

    def __init__(self, rung: Tensor, inner: Tensor, state: Tensor, node: int, saturation: Saturation) -> None:
        size = state.shape[-1]
        self.rung, self.state, self.saturation = rung, state, saturation
        self.moments = inner[..., size:]  # (n, 8, 7)
        self.first = saturation.kept(state[:, node : node + 1])
        self.known = (inner[..., :size] * state[:, None]).sum(-1) + self.moments[..., 0] * self.first
        self.unknown = self.moments[:, :N_UNKNOWN, 1:]

    def from_kept(self, kept: Tensor) -> Tensor:
        """Node amounts at the nodes but the first, mg, ``(n, 6)``, were w there ``kept``, mg/h."""
        return self.known[:, :N_UNKNOWN] + (self.unknown * kept[:, None]).sum(-1)

    def newton(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """One Newton step from ``y`` and its size (the matrix needs no gradient: at the root its own vanishes)."""
        kept, slope = self.saturation.kept_and_slope(y)
        self.steepest = slope.detach().amax(-1)
        change = nodal_residual_solve(self.unknown.detach(), slope.detach(), y - self.from_kept(kept))
        return y - change, change.detach()

    def finish(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """State after the step, Bernstein coefficients of w (>= 0) and w at the nodes."""
        nodal = torch.cat((self.first, self.saturation.kept(y)), 1)
        coefficients = (nodal @ bernstein.TO_BERNSTEIN.to(nodal.device).T).clamp_min(0)
        after = (self.rung * torch.cat((self.state, coefficients), 1)[:, None]).sum(-1)
        return after, coefficients, nodal

    def defect(self, y: Tensor, nodal: Tensor, least_mg: Tensor) -> Tensor:
        """Largest |w - its polynomial| at the held-out points over the node's amount there, 1/h, ``(n,)``.

        The later point stands for the rest of the step, so it counts against what is left at the end, if less.
        """
        held_out = self.known[:, N_UNKNOWN:] + (self.moments[:, N_UNKNOWN:, 1:] * nodal[:, None, 1:]).sum(-1)
        off = self.saturation.kept(held_out) - nodal @ bernstein.HELD_OUT_WEIGHTS.to(y.device).T
        amount = torch.stack((held_out[:, 0], torch.minimum(held_out[:, 1], y[:, -1])), 1)
        return (off.abs() / torch.maximum(amount, least_mg[:, None])).amax(-1)


def _exponent(x: Tensor) -> Tensor:
    """floor(log2 x) of whole numbers; -1 for 0."""
    return torch.frexp(x.to(torch.float64)).exponent.to(torch.int64) - 1


def _trailing_zeros(x: Tensor) -> Tensor:
    return torch.where(x == 0, _NO_LEVEL, _exponent(x & -x))


@dataclass(frozen=True)
class _AtWork:
    """The curves that are being solved, ``(n, ...)``: where they are and how they got there."""

    rows: Tensor
    k: Tensor
    position: Tensor
    number: Tensor
    wanted: Tensor
    before_level: Tensor
    state: Tensor
    before: Tensor
    saturation: Saturation
    body: Tensor
    leaving: Tensor
    unit: Tensor
    unit_h: Tensor
    total: Tensor

    def only(self, keep: Tensor) -> _AtWork:
        parts = {name: value[keep] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, saturation=self.saturation.rows(keep), **parts)


class March:
    """Solves every curve from event to event, each with steps of its own.

    Args:
        ladder: Step matrices of every unit.
        segments: Segments between events.
        units_log2: J: a unit is 2^J base steps.
        jumps: What events add.
        tolerance: Relative error aimed at per step.
        step_h: Takes steps of about this length instead, where they fit.
    """

    def __init__(
        self, ladder: StepLadder, segments: Segments, units_log2: int, jumps: Jumps, tolerance: float,
        step_h: float | None = None,
    ) -> None:  # fmt: skip
        self.ladder, self.jumps, self.tolerance = ladder, jumps, tolerance
        self.fixed_level: Tensor | None = None
        if step_h is not None:
            exponent = torch.log2(step_h / ladder.base_h.clamp_min(_TINY)).round().to(torch.int64)
            self.fixed_level = exponent.clamp(LOWEST_LEVEL, ladder.levels - 1)
        self.n_curves, self.n_segments = segments.unit.shape
        # Nothing is looked at after the last segment that has a length or a sample.
        long = torch.where(segments.units > 0, torch.arange(self.n_segments, device=segments.units.device), 0)
        self.last = torch.maximum(long.amax(1), segments.sample_segment.amax(1))
        self.unit, self.total = segments.unit, segments.units << units_log2
        self.rungs, self.inner = ladder.rungs[LOWEST_LEVEL:].flatten(0, 1), ladder.inner.flatten(0, 1)
        self.first_level = max(LOWEST_LEVEL, units_log2 // 2)
        self.parts: list[tuple[Tensor, ...]] = []
        self.rejected = 0

    @torch.no_grad()
    def run(self, saturation: Saturation, in_body: Tensor) -> Steps:
        """All steps.

        Args:
            saturation: Saturable pathways.
            in_body: States whose drug is in the body, ``(B, W)`` bool.

        Raises:
            PerfuseError: when the steps do not come to an end.
        """
        w = self._begin(saturation, in_body)
        for _ in range(_MAX_ITERATIONS):
            left = w.total - w.position
            waiting = left == 0
            if int(waiting.sum()) * _WAITING_SHARE >= len(w.rows):
                w = self._next_segment(w, waiting)
                if not len(w.rows):
                    return self._lined_up()
            else:
                w = self._step(w, left)
        raise PerfuseError(f"the saturable system of {len(w.rows)} curves needs more than {_MAX_ITERATIONS} steps")

    def _begin(self, saturation: Saturation, in_body: Tensor) -> _AtWork:
        rows = torch.arange(self.n_curves, device=self.rungs.device)
        none = torch.zeros_like(rows)
        state = self.jumps.apply(self.rungs.new_zeros(self.n_curves, self.ladder.size), rows, none)
        node = self.ladder.node
        first = saturation.kept(state[:, node : node + 1]).expand(-1, N_COEFFICIENTS)
        leaving = -self.ladder.generator[self.unit[:, 0], node, node]
        wanted = torch.full_like(rows, self.first_level)
        if self.fixed_level is not None:
            wanted = self.fixed_level[self.unit[rows, none]]
        return _AtWork(rows, none, none, none, wanted, wanted, state, first, saturation, in_body.to(state.dtype),
                       leaving, *self._units(rows, none))  # fmt: skip

    def _units(self, rows: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the ladder has the unit of segment ``k``, its base step, h, and the segment's base steps."""
        unit = self.unit[rows, k]
        return unit, self.ladder.base_h[unit], self.total[rows, k]

    def _record(self, w: _AtWork, which: Tensor, level: Tensor, inner: Tensor, coefficients: Tensor) -> _AtWork:
        self.parts.append((which, w.rows, w.number, w.k, w.position, level, inner, w.state, coefficients))
        return replace(w, number=w.number + which)

    def _next_segment(self, w: _AtWork, at_end: Tensor) -> _AtWork:
        """Curves at the end of a segment note their state and meet the next event, or are done."""
        none = w.before.new_zeros(len(w.rows), N_COEFFICIENTS)
        w = self._record(w, at_end, torch.full_like(w.k, -1), none[:, 1:], none)
        more = ~at_end | (w.k < self.last[w.rows])
        if not bool(more.all()):
            w, at_end = w.only(more), at_end[more]
        k = w.k + at_end
        unit, unit_h, total = self._units(w.rows, k)
        jumped = self.jumps.apply(w.state, w.rows, k)
        jumped = torch.where(at_end[:, None], jumped, w.state)
        node = self.ladder.node
        first = w.saturation.kept(jumped[:, node : node + 1]).expand(-1, N_COEFFICIENTS)
        if self.fixed_level is None:
            changed = at_end & (jumped != w.state).any(1)
            # Levels count from the base step of the segment's unit, which may be another one now.
            scale = torch.log2(w.unit_h.clamp_min(_TINY) / unit_h.clamp_min(_TINY)).round().to(torch.int64)
            wanted = w.wanted - torch.where(changed, _RESTART_LEVELS, 0)
            wanted = wanted + torch.where((w.unit_h > 0) & (unit_h > 0), scale, 0)
            wanted = torch.where(at_end, wanted.clamp(LOWEST_LEVEL, self.ladder.levels - 1), w.wanted)
        else:
            wanted = self.fixed_level[unit]
        return replace(
            w, k=k, position=torch.where(at_end, 0, w.position), state=jumped, wanted=wanted,
            before=torch.where(at_end[:, None], first, w.before),
            before_level=torch.where(at_end, wanted, w.before_level), unit=unit, unit_h=unit_h, total=total,
        )  # fmt: skip

    def _step(self, w: _AtWork, left: Tensor) -> _AtWork:
        """One trial step of every curve at work; those that are good enough are taken."""
        level = torch.minimum(torch.minimum(w.wanted, _exponent(left)), _trailing_zeros(w.position))
        level = level.clamp(LOWEST_LEVEL, self.ladder.levels - 1)
        index = (level - LOWEST_LEVEL) * len(self.ladder.base_h) + w.unit
        node = self.ladder.node
        trial = _Trial(
            self.rungs.index_select(0, index), self.inner.index_select(0, index), w.state, node, w.saturation
        )
        growth = (level - w.before_level).clamp(-bernstein.MAX_CUT, bernstein.MAX_GROWTH) + bernstein.MAX_CUT
        guess = (bernstein.EXTRAPOLATION.to(level.device)[growth] * w.before[:, None]).sum(-1).clamp_min(0)
        y = trial.from_kept(guess)
        for _ in range(_NEWTON_STEPS):
            y, change = trial.newton(y)
        after, coefficients, nodal = trial.finish(y)
        step_h = w.unit_h * torch.exp2(level.to(y.dtype))
        least = (_AMOUNT_FLOOR * (after * w.body).sum(-1)).clamp_min(_TINY)
        # An error stays as long as the node takes to lose it: by what saturation leaves of its clearance, or by flow.
        losing = (w.leaving - trial.steepest).clamp_min(0)
        wrong = trial.defect(y, nodal, least) * torch.minimum(step_h, 1 / losing)
        unsolved = change.abs().amax(-1) / torch.maximum(y[:, -1], least)
        # A rate that is not a number goes through, in few steps: training names the curves behind it.
        wrong = torch.nan_to_num(torch.maximum(wrong, unsolved**2) / self.tolerance)
        good = left > 0
        wanted = w.wanted
        if self.fixed_level is None:
            good = good & (~(wrong > 1) | (level <= LOWEST_LEVEL))
            gain = torch.floor(torch.log2(_SAFETY / wrong.clamp(1e-30, 1e30)) / _ORDER).to(torch.int64)
            gain = torch.where(good, gain.clamp(-1, bernstein.MAX_GROWTH), gain.clamp(-bernstein.MAX_CUT, -1))
            wanted = torch.where(left > 0, (level + gain).clamp_min(LOWEST_LEVEL), wanted)
        self.rejected += int(((left > 0) & ~good).sum())
        w = self._record(w, good, level, y, coefficients)
        return replace(
            w, position=w.position + torch.where(good, torch.ones_like(level) << level, 0), wanted=wanted,
            state=torch.where(good[:, None], after, w.state), before=torch.where(good[:, None], nodal, w.before),
            before_level=torch.where(good, level, w.before_level),
        )  # fmt: skip

    def _lined_up(self) -> Steps:
        which, rows, number, *values = (torch.cat(column) for column in zip(*self.parts, strict=True))
        taken = which.nonzero()[:, 0]
        rows, number = rows[taken], number[taken]
        count = torch.bincount(rows, minlength=self.n_curves)
        tables = []
        for value in values:
            table = value.new_zeros(self.n_curves, int(count.max()), *value.shape[1:])
            table[rows, number] = value[taken]
            tables.append(table)
        segment, position, level, inner, state, coefficients = tables
        return Steps(count, segment, position, level, inner, state, coefficients, self.rejected)


def replay(
    plan: Steps, ladder: StepLadder, saturation: Saturation, segments: Segments, jumps: Jumps
) -> tuple[Tensor, Tensor]:
    """The steps of a plan once more, with gradients: states ``(B, I, W)`` and coefficients ``(B, I, 7)``.

    The nodal equations were solved without gradient; one Newton step at their root has the gradient of the root
    (implicit function theorem).
    """
    n_curves, n_records = plan.level.shape
    rows = torch.arange(n_curves, device=plan.level.device)
    unit = segments.unit.gather(1, plan.segment)
    index = ((plan.level.clamp_min(LOWEST_LEVEL) - LOWEST_LEVEL) * len(ladder.base_h) + unit).T.flatten()
    pick = lambda table: table.flatten(0, 1).index_select(0, index).unflatten(0, (n_records, n_curves))  # noqa: E731
    rungs, inner = pick(ladder.rungs[LOWEST_LEVEL:]), pick(ladder.inner)
    state = jumps.apply(ladder.rungs.new_zeros(n_curves, ladder.size), rows, torch.zeros_like(rows))
    last = segments.unit.shape[1] - 1
    states, coefficients = [], []
    for i in range(n_records):
        states.append(state)
        is_step = (plan.level[:, i] >= 0)[:, None]
        trial = _Trial(rungs[i], inner[i], state, ladder.node, saturation)
        root = torch.where(is_step, plan.inner[:, i], trial.known[:, :N_UNKNOWN].detach())
        after, own, _ = trial.finish(trial.newton(root)[0])
        coefficients.append(torch.where(is_step, own, 0.0))
        jumped = jumps.apply(state, rows, (plan.segment[:, i] + 1).clamp_max(last))
        state = torch.where(is_step, after, jumped)
    return torch.stack(states, 1), torch.stack(coefficients, 1)

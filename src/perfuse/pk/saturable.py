"""Saturable metabolism in one node: a fast batched solver that keeps amounts non-negative.

The nonlinearity is a scalar in one state. With k_max = g'(0) the rate constant of the unsaturated pathways,

    dA/dt = K_1 A + (e_node - e_sink) w(y),    K_1 = K with k_max from node to sink,    w(y) = k_max y - g(y) >= 0

so that the linear part, stiff as it may be, is exact, and only w is approximated: by a polynomial of degree 4 per step
that interpolates w at five nodes (exponential collocation: Hochbruck M, Ostermann A. Acta Numerica 2010;19:209-286),
held non-negative through its Bernstein coefficients. Steps follow the smoothness of w alone.

Axis legend: B batch, S states of the generator, W states with source and lumen, P pathways, D dose events, T times,
I records of a curve.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from perfuse.errors import InputError
from perfuse.pk.collocation import Saturation, StepLadder, halvings
from perfuse.pk.events import Events, dose_events_in_order, extended_generator
from perfuse.pk.saturable_samples import sample
from perfuse.pk.saturable_steps import Jumps, March, replay
from perfuse.pk.segments import Segments
from perfuse.pk.system import DoseEvents

_CHUNK = 512
"""Curves (times distinct units) solved together: enough to be worth a call, few enough for memory."""
_T = TypeVar("_T")


def _rows(record: _T, rows: slice) -> _T:
    """Some curves of a record of tensors."""
    cut = {f.name: v[rows] for f in fields(record) if isinstance(v := getattr(record, f.name), Tensor)}  # type: ignore[arg-type]
    return replace(record, **cut)  # type: ignore[type-var]


@dataclass(frozen=True)
class _System:
    """K_1 with the states that the regimen needs, and what events add to them."""

    generator: Tensor
    node: int
    sink: int | None
    saturation: Saturation
    jumps: Jumps
    in_body: Tensor

    @staticmethod
    def of(
        generator: Tensor, node: int, sink: int | None, saturation: Saturation, dose_node: int,
        absorption_node: int | None, ka_1_h: Tensor, events: Events, start_mg: Tensor | None = None,
    ) -> _System:  # fmt: skip
        """A source and a lumen are added when an infusion or an oral dose needs them."""
        size = generator.shape[-1]
        move = generator.new_zeros(size, size)
        move[node, node] = -1
        if sink is not None:
            move[sink, node] = 1
        generator = generator + saturation.rate.sum(-1)[:, None, None] * move
        in_body = torch.diagonal(generator.detach(), dim1=1, dim2=2) < 0
        added = functional.pad(events.bolus_mg[..., None], (dose_node, size - 1 - dose_node))
        lumen = events.lumen_mg
        if start_mg is not None:  # it comes with the first event
            later = lumen.shape[1] - 1
            added = added + functional.pad(start_mg[:, None, :size], (0, 0, 0, later))
            lumen = lumen + functional.pad(start_mg[:, size:], (0, later))
        if not bool((events.rate_mg_h > 0).any() | (lumen > 0).any()):
            return _System(generator, node, sink, saturation, Jumps(added, None, None), in_body)
        generator, q = extended_generator(generator, dose_node, absorption_node, ka_1_h)
        added = torch.cat((added, torch.zeros_like(lumen)[..., None], lumen[..., None]), -1)
        jumps = Jumps(added, events.rate_mg_h / q[:, None], size)
        in_body = torch.cat((functional.pad(in_body, (0, 1)), in_body.new_ones(len(in_body), 1)), 1)
        return _System(generator, node, sink, saturation, jumps, in_body)

    def solve(self, segments: Segments, tolerance: float, step_h: float | None = None) -> Tensor:
        """Amounts of all states at the samples, ``(B, W, T)``."""
        same = len(segments.unit_h) == len(self.generator)
        generator = self.generator if same else self.generator[segments.curve]
        units_log2 = halvings(generator, segments.unit_h, tolerance)
        # No step is longer than a quarter of the longest segment, in units of which there may be many.
        levels = units_log2 + max(0, int(segments.units.max()).bit_length() - 2)
        ladder = StepLadder(generator, self.node, self.sink, segments.unit_h / 2**units_log2, levels)
        march = March(ladder, segments, units_log2, self.jumps, tolerance, step_h)
        plan = march.run(self.saturation.detach(), self.in_body)
        states, coefficients = plan.state, plan.coefficients
        if torch.is_grad_enabled() and (ladder.rungs.requires_grad or self.jumps.added.requires_grad):
            states, coefficients = replay(plan, ladder, self.saturation, segments, self.jumps)
        return sample(ladder, plan, states, coefficients, segments, units_log2, tolerance)


def solve_saturable(
    generator: Tensor,
    node: int,
    sink: int | None,
    vmax_mg_h: Tensor,
    half_amount_mg: Tensor,
    dose_node: int,
    absorption_node: int | None,
    doses: DoseEvents,
    time_h: Tensor,
    *,
    tolerance: float = 1e-7,
    step_h: float | None = None,
    start_mg: Tensor | None = None,
) -> Tensor:
    """Amounts ``(B, S, T)``, mg, of a linear system with saturable loss from one node, after any doses.

    Differentiable with respect to the generator, the pathways, doses' amounts and absorption.

    Args:
        generator: Linear part K, 1/h, ``(B, S, S)``, float64.
        node: State that saturable pathways empty, at sum_p Vmax_p y / (half_p + y) mg/h.
        sink: State that collects what they take, which nothing flows out of; None to drop it.
        vmax_mg_h, half_amount_mg: ``(B, P)``; a Vmax of 0 is no pathway.
        dose_node, absorption_node: Where intravenous doses, and the gut lumen, go.
        doses: Dose events, float64.
        time_h: Observation times, h, ``(B, T)``, in any order. At a dose time the value is the one before it, but for
            the curve's first.
        tolerance: Relative error aimed at in each step.
        step_h: Steps of about this length, h, in place of adaptive ones (to measure the order of convergence).
        start_mg: As for ``events.solve_events``.

    Raises:
        InputError: for an oral dose without an absorption node, rates too fast to solve, a tolerance outside
            1e-13 to 1e-2, or a step_h that is not positive.
    """
    if absorption_node is None and bool(doses.is_oral.any()):
        raise InputError("route", "has no gut to be absorbed in", value="oral")
    if not 1e-13 <= tolerance <= 1e-2:
        raise InputError("tolerance", value=tolerance, allowed="1e-13 to 1e-2")
    if step_h is not None and not step_h > 0:
        raise InputError("step_h", value=step_h, unit="h", allowed="> 0")
    if time_h.numel() == 0:
        return generator.new_zeros(*generator.shape[:2], time_h.shape[1])
    events = dose_events_in_order(doses, float(time_h.max()))
    if start_mg is not None:
        events = events.from_time_zero()
    saturation = Saturation.of(vmax_mg_h, half_amount_mg)
    size = max(1, _CHUNK * len(generator) // len(Segments.of(events, time_h).unit_h))
    out = []
    for start in range(0, len(generator), size):
        rows = slice(start, start + size)
        own = _rows(events, rows)
        system = _System.of(generator[rows], node, sink, _rows(saturation, rows), dose_node, absorption_node,
                            doses.ka_1_h[rows], own, None if start_mg is None else start_mg[rows])  # fmt: skip
        out.append(system.solve(Segments.of(own, time_h[rows]), tolerance, step_h)[:, : generator.shape[-1]])
    return torch.cat(out)

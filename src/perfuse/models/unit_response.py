"""Doses superposed from unit responses: boluses by shifting time, infusions and doses by mouth by exact integrals.

A unit response is ln C after 1 mg given at once, into blood or into the gut wall, at knots. Boluses read its spline.
For the rest it is sampled on a fine grid (even in the knots' u = ln(1 + s / t0), from 0 on) and taken as
C_m exp(k_m (s - s_m)) between grid points, with the terminal slope after the last. Then, with nothing left to
approximate,

    infusion over d:        (G(t) - G(t - d)) / d,   G(t) = integral of C
    first-order absorption: integral over s of ka exp(-ka (t - s)) C(s)

come from one running integral W with W' = C - ka W (ka = 0 for an infusion), known at the grid points and carried from
there to any time in closed form. Only what counts is computed: dose events and times are listed, not padded.

Axis legend: B batch, R responses, O reported organs, K knots, M grid points, D dose events, T times, Q queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from perfuse.data.batch import CurveBatch
from perfuse.models.knot_grid import KnotGrid
from perfuse.pk.system import DoseEvents

POINTS_PER_KNOT = 4
"""Grid points per knot: with 4 the task of regimens (T3) costs a GMFE of 1.0004, 1.0003 of it without them."""
LOG_RANGE = (-80.0, 40.0)
"""Bounds of ln C per mg: keep concentrations positive and finite far outside the training range."""
_SMALL = 1e-3
"""Below this (exp(a) - 1) / a and its derivative are four terms of their series, to 3e-14."""


@dataclass(frozen=True)
class Responses:
    """The unit responses that a batch needs: at most two a curve, by where the dose goes.

    Attributes:
        curve: Curve of each response, ``(R,)``.
        is_oral: ``(R,)`` bool: the dose goes into the gut wall rather than into blood.
        row: Response of each curve for a dose into blood and into the gut wall, ``(B, 2)``; -1 where not needed.
    """

    curve: Tensor
    is_oral: Tensor
    row: Tensor

    @staticmethod
    def of(doses: DoseEvents) -> Responses:
        """Responses to the doses above 0 mg, those into blood first."""
        oral = doses.is_oral
        into_blood = ((doses.amount_mg > 0) & ~oral).any(1) | ~oral.any(1)  # a curve without doses has one, too
        blood, gut = into_blood.nonzero()[:, 0], oral.any(1).nonzero()[:, 0]
        row = torch.full((len(oral), 2), -1, device=oral.device)
        row[blood, 0] = torch.arange(len(blood), device=oral.device)
        row[gut, 1] = torch.arange(len(blood), len(blood) + len(gut), device=oral.device)
        is_oral = torch.arange(len(blood) + len(gut), device=oral.device) >= len(blood)
        return Responses(torch.cat((blood, gut)), is_oral, row)


@dataclass(frozen=True)
class StartedResponse:
    """Unit responses with what is known of their start: ``log_knots`` ``(R, O, K)``, and 1 mg over the dosed volume.

    Before the first knot, where training data say nothing, ln C runs straight on in u and is blended with the start:
    1 / V in the dosed organ, 0 elsewhere. The blend decays with ``mixing_h`` and is 0 from the first knot on.

    Attributes:
        grid: The knots.
        log_knots: ln (mg/L per mg), ``(R, O, K)``.
        start_mg_l: Concentration of 1 mg in each organ at s = 0, ``(R, O)``.
        mixing: Time constant of mixing over the first knot's time.
    """

    grid: KnotGrid
    log_knots: Tensor
    start_mg_l: Tensor
    mixing: float

    def _blend(self, since_h: Tensor) -> Tensor:
        """1 at 0, 0 from the first knot on."""
        last = torch.exp(torch.tensor(-1 / self.mixing, dtype=since_h.dtype, device=since_h.device))
        return ((torch.exp(-since_h / (self.mixing * self.grid.first_h)) - last) / (1 - last)).clamp_min(0)

    def at(self, since_h: Tensor, log_factor: Tensor) -> Tensor:
        """mg/L, ``(R, O, T)``, at ``(R, T)`` or, for one grid that all share, ``(1, T)``.

        Args:
            since_h: Times since the dose, h, >= 0.
            log_factor: What each curve is multiplied by, as a logarithm, ``(R, O, 1)``: adding to knots is cheaper.
        """
        conc = self.grid(self.log_knots + log_factor, since_h).clamp(*LOG_RANGE).exp()
        early = (since_h < self.grid.first_h).any(0).nonzero()[:, 0]
        if not len(early):
            return conc
        start = self._blend(since_h[:, early])[:, None]
        known = (self.start_mg_l[..., None] * log_factor.exp()) * start
        return conc.index_copy(-1, early, (1 - start) * conc[..., early] + known)

    def listed(self, which: Tensor, since_h: Tensor) -> Tensor:
        """mg/L per mg, ``(Q, O)``, of responses ``which`` ``(Q,)`` at ``since_h`` ``(Q,)``."""
        start = self._blend(since_h)[:, None]
        conc = (1 - start) * self.grid.listed(self.log_knots, which, since_h).clamp(*LOG_RANGE).exp()
        return conc + start * self.start_mg_l[which]

    def sampled(self, which: Tensor, time_h: Tensor) -> tuple[Tensor, Tensor]:
        """ln C of some responses at the grid points ``(M,)``, ``(R', O, M)``, and their terminal slopes.

        Organs that the dose does not enter start from the straight continuation: 0 has no logarithm.
        """
        log_knots, start = self.log_knots[which], self.start_mg_l[which]
        straight = self.grid(log_knots, time_h[None]).clamp(*LOG_RANGE)
        blend, dosed = self._blend(time_h), (start > 0)[..., None]
        mixed = torch.logaddexp(
            straight + torch.log1p(-blend.clamp_max(1 - 1e-12)),
            torch.where(dosed, start[..., None], 1.0).log() + blend.clamp_min(1e-300).log(),
        )
        return torch.where(dosed, mixed, straight), self.grid.terminal_slope(log_knots)


def superpose(response: StartedResponse, responses: Responses, batch: CurveBatch) -> Tensor:
    """Sum over doses, mg/L, ``(B, O, T)``, blood as blood.

    At a dose time: the value before it, but C(0+) for a first bolus.
    """
    doses = batch.doses
    n_times, n_organs = batch.time_h.shape[1], response.log_knots.shape[1]
    elapsed, counts = doses.elapsed(batch.time_h)
    oral, infused = doses.is_oral, doses.duration_h > 0
    total = response.log_knots.new_zeros(len(batch) * n_times, n_organs)
    entering = counts & (elapsed > 0)  # at its very start only a bolus shows
    for kind, shown in ((~oral & ~infused, counts), (~oral & infused, entering), (oral, entering)):
        curve, dose, time = (shown & kind[..., None]).nonzero(as_tuple=True)
        if not len(curve):
            continue
        since, amount = elapsed[curve, dose, time], doses.amount_mg[curve, dose]
        if kind is oral:
            which = responses.row[curve, 1]
            ka = doses.ka_1_h[responses.curve]
            conc = _absorbed(response, which, since, ka) * (amount * ka[which] * doses.f_abs[curve])[:, None]
        else:
            which = responses.row[curve, 0]
            if bool(infused[curve[0], dose[0]]):
                conc = _infused(response, which, since, doses.duration_h[curve, dose]) * amount[:, None]
            else:
                conc = response.listed(which, since) * amount[:, None]
        total = total.index_add(0, curve * n_times + time, conc)
    return total.view(len(batch), n_times, n_organs).mT


def _absorbed(response: StartedResponse, which: Tensor, since_h: Tensor, ka_1_h: Tensor) -> Tensor:
    """Integral of exp(-ka (t - s)) C(s), h mg/L per mg, ``(Q, O)``; ``ka_1_h`` is each response's, ``(R,)``."""
    used, which = which.unique(return_inverse=True)
    return RunningIntegral.of(response, used, ka_1_h[used]).at(which, since_h)


def _infused(response: StartedResponse, which: Tensor, since_h: Tensor, duration_h: Tensor) -> Tensor:
    """mg/L per mg infused at a constant rate, ``(Q, O)``: the mean unit response over the infusion."""
    used, which = which.unique(return_inverse=True)
    integral = RunningIntegral.of(response, used, since_h.new_zeros(len(used)))
    ended = (since_h > duration_h).nonzero()[:, 0]
    area = integral.at(which, since_h)
    area = area.index_add(0, ended, integral.at(which[ended], (since_h - duration_h)[ended]), alpha=-1)
    return area.clamp_min(math.exp(LOG_RANGE[0])) / duration_h[:, None]  # far out, rounding may leave nothing


class _Carried(torch.autograd.Function):
    """Integral from 0 to tau of exp(-ka (tau - s)) exp(slope s) ds, h, with its derivative by ``slope`` at once.

    With a = (slope + ka) tau it is tau exp(-ka tau) (exp(a) - 1) / a; only ``slope``, which has the result's shape, may
    need a gradient.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, tau_h: Tensor, slope_1_h: Tensor, ka_1_h: Tensor) -> Tensor:
        a = (slope_1_h + ka_1_h) * tau_h
        start, end = torch.exp(-ka_1_h * tau_h), torch.exp(slope_1_h * tau_h)
        small = a.abs() < _SMALL
        divisor = torch.where(small, 1.0, a)
        mean = torch.where(small, start * (1 + a * (1 / 2 + a * (1 / 6 + a / 24))), (end - start) / divisor)
        by_a = torch.where(small, start * (1 / 2 + a * (1 / 3 + a * (1 / 8 + a / 30))), (end - mean) / divisor)
        ctx.save_for_backward(by_a * tau_h.square())
        return mean * tau_h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (by_slope,) = ctx.saved_tensors
        return None, grad * by_slope, None


def _carried(tau_h: Tensor, slope_1_h: Tensor, ka_1_h: Tensor) -> Tensor:
    carried: Tensor = _Carried.apply(tau_h, slope_1_h, ka_1_h)
    return carried


def _decaying_sum(added: Tensor, decay: Tensor) -> Tensor:
    """W_m = decay_m W_(m-1) + added_m along the last axis, by doubling: log2 M passes, nothing that could overflow."""
    span = 1
    while span < added.shape[-1]:
        added = torch.cat((added[..., :span], added[..., span:] + decay[..., span:] * added[..., :-span]), -1)
        decay = torch.cat((decay[..., :span], decay[..., span:] * decay[..., :-span]), -1)
        span *= 2
    return added


def response_times(grid: KnotGrid) -> Tensor:
    """Grid points, h, ``(M,)``, from 0 to the last knot."""
    n = POINTS_PER_KNOT * grid.n_knots
    u = torch.linspace(0, 1, n, dtype=torch.float64, device=grid.last_h.device) * torch.log1p(grid.last_h / grid.t0_h)
    return grid.t0_h * torch.expm1(u)


@dataclass(frozen=True)
class RunningIntegral:
    """Responses in log-linear pieces, with W.

    Attributes:
        time_h: Grid points, h, ``(M,)``.
        t0_h: Scale of the grid, h.
        ka_1_h: ``(R,)``; 0 for an infusion.
        pieces: ``(R M, 3, O)``: C_m (mg/L per mg), k_m (1/h) and W_m (h mg/L per mg).
    """

    time_h: Tensor
    t0_h: Tensor
    ka_1_h: Tensor
    pieces: Tensor

    @staticmethod
    def of(response: StartedResponse, which: Tensor, ka_1_h: Tensor) -> RunningIntegral:
        """Of the responses ``which``, with their ``ka_1_h``, both ``(R,)``."""
        time_h = response_times(response.grid)
        log_conc, tail = response.sampled(which, time_h)
        gap = time_h.diff()
        slope = torch.cat((log_conc.diff(dim=-1) / gap, tail), -1)
        conc, ka = log_conc.exp(), ka_1_h[:, None, None]
        added = conc[..., :-1] * _carried(gap, slope[..., :-1], ka)
        is_infusion = bool((ka_1_h == 0).all())
        total = added.cumsum(-1) if is_infusion else _decaying_sum(added, torch.exp(-ka * gap))
        total = torch.cat((torch.zeros_like(conc[..., :1]), total), -1)
        pieces = torch.stack((conc, slope, total), 1).permute(0, 3, 1, 2)
        return RunningIntegral(time_h, response.grid.t0_h, ka_1_h, pieces.flatten(0, 1))

    def at(self, which: Tensor, time_h: Tensor) -> Tensor:
        """W at times >= 0 h, ``(Q, O)``, of responses ``which`` ``(Q,)`` at ``time_h`` ``(Q,)``."""
        n = len(self.time_h)
        place = torch.log1p(time_h / self.t0_h) / torch.log1p(self.time_h[-1] / self.t0_h) * (n - 1)
        left = place.floor().long().clamp(0, n - 1)
        tau = (time_h - self.time_h[left]).clamp_min(0)[:, None]  # rounding may put a time before its piece
        conc, slope, total = self.pieces.index_select(0, which * n + left).unbind(1)
        ka = self.ka_1_h[which][:, None]
        return torch.exp(-ka * tau) * total + conc * _carried(tau, slope, ka)

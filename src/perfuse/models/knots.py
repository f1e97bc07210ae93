"""``KnotModel``: models whose network gives ln C at fixed knots; everything after the network lives here.

The network predicts, for 1 mg given as a bolus into venous blood at t = 0, how far ln C lies from the training
mean of its organ and knot, in standard deviations. Other times are interpolated (``knot_grid``), doses are
superposed (linear kinetics): boluses by shifting time, infusions by integrating the unit response.

Before the first knot, where training data say nothing, ln C is continued straight in u, and blended with what a
bolus starts from: 1 / V in blood, 0 in tissues. The blend decays with a tenth of the first knot's time (mixing is
faster than the first sample) and is 0 from the first knot on.

Axis legend: B batch, O reported organs (0 is blood), K knots, T times, D dose events, P quadrature points, Q queries.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from perfuse.data.batch import CurveBatch, in_matrix
from perfuse.errors import InputError
from perfuse.models.base import CurveModel
from perfuse.models.knot_grid import KnotGrid
from perfuse.pk.physiology import ORGANS
from perfuse.pk.system import DoseEvents, SystemParameters
from perfuse.pk.topology import Topology

N_ORGANS = len(ORGANS)
_LOG_RANGE = (-80.0, 40.0)
"""Bounds of ln C per mg: keeps float32 concentrations positive and finite far outside the training range."""
_MIXING_FRACTION = 0.1
"""Time constant of mixing before the first knot, over the first knot's time."""
_QUADRATURE_POINTS = 16
_FIT_CURVES = 1024
"""Curves used for output means and standard deviations; more do not change them visibly."""
_SMOOTHING = 1e-4
"""Weight of the squared step between neighbouring knots, relative to an organ's observations per knot."""
_MIN_SD = 0.1
"""Smallest standard deviation of ln C per organ and knot: below it there is nothing to scale."""


class KnotModel(CurveModel):
    """Base of ``mlp``, ``lstm`` and ``recurrent``.

    A subclass implements ``_standardised_knots`` and ``_fit_features``.
    """

    log_mean: Tensor
    log_sd: Tensor
    points: Tensor
    point_weights: Tensor

    def __init__(self, topology: Topology, n_knots: int) -> None:
        super().__init__(topology)
        self.grid = KnotGrid(n_knots)
        self.register_buffer("log_mean", torch.zeros(N_ORGANS, n_knots, dtype=torch.float64))
        self.register_buffer("log_sd", torch.ones(N_ORGANS, n_knots, dtype=torch.float64))
        nodes, weights = np.polynomial.legendre.leggauss(_QUADRATURE_POINTS)
        self.register_buffer("points", torch.as_tensor((nodes + 1) / 2), persistent=False)
        self.register_buffer("point_weights", torch.as_tensor(weights / 2), persistent=False)

    @abstractmethod
    def _standardised_knots(self, batch: CurveBatch) -> Tensor:
        """Deviations from the training mean in standard deviations, ``(B, O, K)``, never in half precision."""

    @abstractmethod
    def _fit_features(self, system: SystemParameters) -> None:
        """Statistics of the input features."""

    def log_knots(self, batch: CurveBatch) -> Tensor:
        """Logs, ln (mg/L per mg) at the knots after a unit bolus at t = 0, blood as blood, ``(B, O, K)``, float64.

        Float64 from here on: rounding ln C = -10 to float32 alone would cost 5e-7 of a concentration.
        """
        return self.log_mean + self.log_sd * self._standardised_knots(batch).to(torch.float64)

    def _fit(self, batch: CurveBatch) -> None:
        self._fit_features(batch.system)
        step = max(1, len(batch) // _FIT_CURVES)
        fit_outputs(self, batch, torch.arange(0, len(batch), step, device=batch.time_h.device))

    def _predict(self, batch: CurveBatch) -> Tensor:
        log_knots = self.log_knots(batch)
        with torch.autocast(log_knots.device.type, enabled=False):
            if batch.doses.is_single_initial_bolus:
                amount = batch.doses.amount_mg[:, :, None].to(log_knots.dtype)
                conc = amount * self._unit_bolus(log_knots, batch.system, _shared_rows(batch.time_h))
            else:
                conc = self._superpose(log_knots, batch)
            return in_matrix(batch, conc)

    def _unit_bolus(self, log_knots: Tensor, system: SystemParameters, time_h: Tensor) -> Tensor:
        """mg/L per mg, ``(B, O, Q)``, at times >= 0 h, ``(B, Q)`` or ``(1, Q)``, after a bolus at 0."""
        dtype, first_h = log_knots.dtype, self.grid.first_h
        last_blend = math.exp(-1 / _MIXING_FRACTION)
        blend = (torch.exp(-time_h / (_MIXING_FRACTION * first_h)) - last_blend) / (1 - last_blend)
        start = blend.clamp_min(0).to(dtype)[:, None]  # 1 at 0, 0 from the first knot on
        conc = (1 - start) * self.grid(log_knots, time_h).clamp(*_LOG_RANGE).exp()
        volume = system.volume_l[:, system.topology.dose_node].to(dtype)[:, None, None]
        return torch.cat((conc[:, :1] + start / volume, conc[:, 1:]), 1)

    def _unit_infusion(
        self, log_knots: Tensor, system: SystemParameters, elapsed_h: Tensor, duration_h: Tensor
    ) -> Tensor:
        """mg/L per mg infused at a constant rate, ``(B, O, D, T)``: the mean unit response over the infusion.

        Gauss-Legendre in v = ln(1 + s / s0), s the time since each small part was given, so that points
        crowd where the response is steep.

        Args:
            log_knots: As ``log_knots`` returns them, ``(B, O, K)``.
            system: Physical parameters.
            elapsed_h: Time since each infusion began, h, ``(B, D, T)``.
            duration_h: ``(B, D)``, h, > 0.
        """
        s0 = self.grid.first_h / 2
        newest = torch.log1p((elapsed_h - duration_h[..., None]).clamp_min(0) / s0)[..., None]
        oldest = torch.log1p(elapsed_h.clamp_min(0) / s0)[..., None]
        since = s0 * torch.expm1(newest + (oldest - newest) * self.points)  # (B, D, T, P)
        weight = self.point_weights * (oldest - newest) * (s0 + since) / duration_h[..., None, None]
        response = self._unit_bolus(log_knots, system, _shared_rows(since.flatten(1))).unflatten(-1, since.shape[1:])
        return (response * weight.to(response.dtype)[:, None]).sum(-1)

    def _superpose(self, log_knots: Tensor, batch: CurveBatch) -> Tensor:
        """Sum over doses, mg/L, ``(B, O, T)``. At a dose time: the value before it, but C(0+) for a first bolus."""
        doses, system = batch.doses, batch.system
        elapsed, counts = doses.elapsed(batch.time_h)
        given, infused = doses.amount_mg > 0, doses.duration_h > 0
        amount = torch.where(counts, doses.amount_mg[..., None], 0.0).to(log_knots.dtype)  # (B, D, T)
        total = log_knots.new_zeros(len(batch), N_ORGANS, batch.time_h.shape[1])
        for kind in (~infused, infused):
            columns = (given & kind).any(0).nonzero()[:, 0]  # dose events that are of this kind in some curve
            if not len(columns):
                continue
            since = elapsed[:, columns]
            if kind is infused:
                duration = torch.where(infused, doses.duration_h, 1.0)[:, columns]
                response = self._unit_infusion(log_knots, system, since, duration)
            else:
                response = self._unit_bolus(log_knots, system, _shared_rows(since.clamp_min(0).flatten(1)))
                response = response.unflatten(-1, since.shape[1:])
            weight = amount[:, columns] * kind[:, columns, None]
            total = total + (response * weight[:, None]).sum(2)
        return total


def _shared_rows(time_h: Tensor) -> Tensor:
    """``(1, T)`` when all curves share their times, else the times as they are, ``(B, T)``."""
    return time_h[:1] if bool((time_h == time_h[:1]).all()) else time_h


def _since_latest_dose(doses: DoseEvents, time_h: Tensor) -> tuple[Tensor, Tensor]:
    """Time since the latest dose began, h, and its amount, mg, both ``(B, T)``; amount 0 before any dose."""
    elapsed = time_h[:, None] - doses.time_h[..., None]  # (B, D, T)
    begun = (elapsed >= 0) & (doses.amount_mg > 0)[..., None]
    since, which = torch.where(begun, elapsed, torch.inf).min(1)
    amount = torch.where(torch.isfinite(since), doses.amount_mg.gather(1, which), 0.0)
    return torch.where(torch.isfinite(since), since, 0.0), amount


def fit_outputs(model: KnotModel, batch: CurveBatch, rows: Tensor) -> None:
    """Knot times, and the mean and standard deviation of ln (C / dose) per organ and knot.

    Times span the 1 % quantile of the curves' first to the largest observed time (since the latest, or the
    first dose). Means are least-squares fits of ln (C / latest dose) by linear interpolation between knots, with
    a small penalty on steps that fills knots without data; an organ without data takes the other organs' mean.

    Raises:
        InputError: if no observed value follows a dose.
    """
    since, amount = _since_latest_dose(batch.doses, batch.time_h)
    usable = batch.mask & ((amount > 0) & (since > 0))[:, None] & (batch.conc_mg_l > 0)
    counts = usable & ~batch.censored
    counts = counts if bool(counts.any()) else usable  # all censored: their LLOQs at least give a scale
    if not bool(counts.any()):
        raise InputError(
            "concentrations", "hold no value above 0 after a dose", hint="the model's outputs cannot be scaled"
        )
    seen = counts.any(1)
    firsts = torch.where(seen, since, torch.inf).amin(1)
    first_dose = torch.where(batch.doses.amount_mg > 0, batch.doses.time_h, torch.inf).amin(1, keepdim=True)
    last_h = (batch.time_h - first_dose)[batch.mask.any(1)].amax()
    first_h = np.quantile(firsts[torch.isfinite(firsts)].cpu().numpy(), 0.01, method="lower")
    model.grid.fit(float(first_h), float(last_h))

    conc, counts, since, amount = (x[rows] for x in (batch.conc_mg_l, counts, since, amount))
    factor = torch.where(batch.is_plasma, batch.system.bp_ratio, 1.0)[rows, None]
    blood = torch.cat((conc[:, :1] * factor[..., None], conc[:, 1:]), 1)
    log_conc = torch.where(counts, blood.clamp_min(1e-300), 1.0).log()
    log_unit = torch.where(counts, log_conc - amount.clamp_min(1e-300).log()[:, None], 0.0)
    weights = model.grid.hat_weights(since).flatten(0, 1)  # (B T, K)
    observed = counts.any(2).any(0)
    for organ in observed.nonzero()[:, 0].tolist():
        w = weights * counts[:, organ].flatten()[:, None]
        y = log_unit[:, organ].flatten()
        mean = _penalised_fit(w, y)
        variance = _penalised_fit(w, (y - weights @ mean) ** 2)
        model.log_mean[organ], model.log_sd[organ] = mean, variance.clamp_min(_MIN_SD**2).sqrt()
    model.log_mean[~observed] = model.log_mean[observed].mean(0)
    model.log_sd[~observed] = model.log_sd[observed].mean(0)


def _penalised_fit(weights: Tensor, values: Tensor) -> Tensor:
    """Knot values ``(K,)`` that minimise |weights @ knots - values|^2 plus a small penalty on their steps."""
    gram = weights.T @ weights
    step = torch.diff(torch.eye(len(gram), dtype=gram.dtype, device=gram.device), dim=0)  # (K - 1, K)
    penalty = _SMOOTHING * gram.diagonal().sum() / len(gram)
    return torch.linalg.solve(gram + penalty * (step.T @ step), weights.T @ values)

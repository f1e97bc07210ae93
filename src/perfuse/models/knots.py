"""``KnotModel``: models whose network gives ln C at fixed knots; everything after the network lives here.

The network predicts, for 1 mg given at once at t = 0 into venous blood or (a dose by mouth, once absorbed) into the gut
wall, how far ln C lies from the training mean of its organ and knot, in standard deviations. Other times are
interpolated (``knot_grid``) and doses superposed (``unit_response``).

Superposition is right for linear kinetics alone. A saturable drug's network reads its dose, and predicts its one
intravenous bolus; anything else is refused.

Axis legend: B batch, R unit responses, O reported organs (0 is blood), K knots, T times, D dose events.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from perfuse.data.batch import CurveBatch, blood_factor, in_matrix
from perfuse.errors import InputError
from perfuse.models.base import CurveModel
from perfuse.models.knot_grid import KnotGrid
from perfuse.models.unit_response import Responses, StartedResponse, superpose
from perfuse.pk.physiology import ORGANS
from perfuse.pk.system import DoseEvents, SystemParameters
from perfuse.pk.topology import Topology

N_ORGANS = len(ORGANS)
_MIXING_FRACTION = 0.1
"""Time constant of mixing before the first knot, over the first knot's time: faster than the first sample."""
_FIT_CURVES = 1024
"""Curves used for output means and standard deviations; more do not change them visibly."""
_SMOOTHING = 1e-4
"""Weight of the squared step between neighbouring knots, relative to an organ's observations per knot."""
_EARLY_FRACTION = 1e-4
"""First knot over the last, at most, where infusions or doses by mouth are given: they integrate from the start on."""
_ENOUGH_CURVES = 16
"""As many curves must show the response to a single bolus for the outputs' statistics to come from those alone."""
_MIN_SD = 0.1
"""Smallest standard deviation of ln C per organ and knot: below it there is nothing to scale."""
KINDS = (
    ("route", "into blood"),
    ("route", "oral"),
    ("vmax_mg_h", "no saturable pathway"),
    ("vmax_mg_h", "a saturable pathway"),
    ("kp and clearances", "given"),
    ("kp and clearances", "not given"),
)
"""What curves may hold, as field and value; a network knows only what it was trained on."""


def kinds_of(batch: CurveBatch) -> Tensor:
    """Which of ``KINDS`` some curve of a batch is, ``(6,)`` bool."""
    oral = batch.doses.is_oral
    saturable = (batch.system.vmax_mg_h > 0).any(1)
    hidden = torch.isnan(batch.system.kp).any(1) | torch.isnan(batch.system.elimination_l_h).any(1)
    into_blood = (batch.doses.amount_mg > 0) & ~oral
    return torch.stack([kind.any() for kind in (into_blood, oral, ~saturable, saturable, ~hidden, hidden)])


def check_single_bolus(batch: CurveBatch) -> None:
    """Refuse regimens that superposition would get wrong.

    Raises:
        InputError: for a saturable drug that is given otherwise than as one intravenous bolus.
    """
    if batch.system.is_linear:
        return
    doses = batch.doses
    given = doses.amount_mg > 0
    other = (given.sum(1) > 1) | (given & ((doses.duration_h > 0) | doses.is_oral)).any(1)
    if bool((other & (batch.system.vmax_mg_h > 0).any(1)).any()):
        raise InputError(
            "doses", "of a saturable drug do not superpose", allowed="one intravenous bolus",
            hint="flux and the solver model any regimen",
        )  # fmt: skip


class KnotModel(CurveModel):
    """Base of ``mlp``, ``lstm`` and ``recurrent``.

    A subclass implements ``_standardised_knots`` and ``_fit_features``.
    """

    models_oral: ClassVar[bool] = True
    models_saturable: ClassVar[bool] = True
    models_descriptors: ClassVar[bool] = True
    log_mean: Tensor
    log_sd: Tensor
    trained_on: Tensor

    def __init__(self, topology: Topology, n_knots: int) -> None:
        super().__init__(topology)
        self.grid = KnotGrid(n_knots)
        self.register_buffer("log_mean", torch.zeros(N_ORGANS, n_knots, dtype=torch.float64))
        self.register_buffer("log_sd", torch.ones(N_ORGANS, n_knots, dtype=torch.float64))
        self.register_buffer("trained_on", torch.zeros(len(KINDS), dtype=torch.bool))

    @abstractmethod
    def _standardised_knots(self, batch: CurveBatch, responses: Responses | None = None) -> Tensor:
        """Deviations from the training mean in standard deviations, ``(R, O, K)``, never in half precision.

        Without ``responses``: each curve's to a dose into blood, ``(B, O, K)``.
        """

    @abstractmethod
    def _fit_features(self, batch: CurveBatch) -> None:
        """Statistics of the input features."""

    def log_knots(self, batch: CurveBatch, responses: Responses | None = None) -> Tensor:
        """Logs, ln (mg/L per mg) at the knots after 1 mg at t = 0, blood as blood, ``(R, O, K)``, float64.

        Float64 from here on: rounding ln C = -10 to float32 alone would cost 5e-7 of a concentration.
        """
        return self.log_mean + self.log_sd * self._standardised_knots(batch, responses).to(torch.float64)

    def _fit(self, batch: CurveBatch) -> None:
        check_single_bolus(batch)
        self._fit_features(batch)
        self.trained_on.copy_(kinds_of(batch))
        step = max(1, len(batch) // _FIT_CURVES)
        fit_outputs(self, batch, torch.arange(0, len(batch), step, device=batch.time_h.device))

    def _predict(self, batch: CurveBatch) -> Tensor:
        if not self.training:
            self._check_trained_on(batch)
        check_single_bolus(batch)
        single = batch.doses.is_single_initial_bolus and bool((batch.doses.amount_mg > 0).all())
        responses = None if single else Responses.of(batch.doses)
        log_knots = self.log_knots(batch, responses)
        with torch.autocast(log_knots.device.type, enabled=False):
            response = StartedResponse(self.grid, log_knots, start_mg_l(batch.system, responses), _MIXING_FRACTION)
            if responses is not None:
                return in_matrix(batch, superpose(response, responses, batch))
            log_factor = batch.doses.amount_mg[:, :, None].log().repeat(1, N_ORGANS, 1)
            log_factor[:, 0, 0] += blood_factor(batch).log()
            return response.at(_shared_rows(batch.time_h), log_factor)

    def _check_trained_on(self, batch: CurveBatch) -> None:
        unknown = (kinds_of(batch) & ~self.trained_on).nonzero()[:, 0].tolist()
        if unknown:
            field, value = KINDS[unknown[0]]
            name = type(self).__name__.lower()
            raise InputError(field, f"is of a kind that this {name} was not trained on", value=value)


def start_mg_l(system: SystemParameters, responses: Responses | None) -> Tensor:
    """Concentration of each organ just after 1 mg, ``(R, O)``: 1 / V of venous blood, or of the gut, else 0."""
    topology = system.topology
    at_organ = torch.zeros(2, N_ORGANS, dtype=torch.float64, device=system.volume_l.device)
    at_organ[0, 0] = 1.0
    into_blood = 1 / system.volume_l[:, topology.dose_node, None]
    if responses is None or topology.absorption_node is None:
        return into_blood * at_organ[0]
    at_organ[1, int(topology.node_identity[topology.absorption_node])] = 1.0
    volume = system.volume_l[:, [topology.dose_node, topology.absorption_node]]  # (B, 2)
    route = responses.is_oral.long()
    return at_organ[route] / volume[responses.curve, route][:, None]


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


def _after_first_bolus(doses: DoseEvents, time_h: Tensor, counts: Tensor) -> Tensor:
    """Of ``counts`` ``(B, O, T)`` those that show the response to a single bolus, if enough curves have them."""
    given = doses.amount_mg > 0
    begun = given[..., None] & (time_h[:, None] >= doses.time_h[..., None])  # (B, D, T)
    other = begun & ((doses.duration_h > 0) | doses.is_oral)[..., None]
    clean = counts & ((begun.sum(1) == 1) & ~other.any(1))[:, None]
    return clean if int(clean.flatten(1).any(1).sum()) >= _ENOUGH_CURVES else counts


def fit_outputs(model: KnotModel, batch: CurveBatch, rows: Tensor) -> None:
    """Knot times, and the mean and standard deviation of ln (C / dose) per organ and knot.

    Times span the 1 % quantile of the curves' first to the largest observed time (since the latest, or the first
    dose), and begin early where responses are integrated. Means are least-squares fits of ln (C / latest dose) by
    linear interpolation between knots, of what follows a single bolus where enough curves have that, with a small
    penalty on steps that fills knots without data; an organ without data takes the other organs' mean.

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
    first_h = float(np.quantile(firsts[torch.isfinite(firsts)].cpu().numpy(), 0.01, method="lower"))
    if bool((batch.doses.is_oral | (batch.doses.duration_h > 0)).any()):
        first_h = min(first_h, _EARLY_FRACTION * float(last_h))
    model.grid.fit(first_h, float(last_h))
    counts = _after_first_bolus(batch.doses, batch.time_h, counts)

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

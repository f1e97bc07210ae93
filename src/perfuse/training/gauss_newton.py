"""Gauss-Newton for the exponents of rate constants: a least-squares fit of ln C in the few parameters that are linear
in ln k, before (or in place of) gradient descent.

With r = ln C_pred - ln C_observed over the values that count and J = dr / dtheta, each iteration solves

    (J'WJ + mu G) step = -J'W r          (Levenberg K. Q Appl Math 1944;2:164-168;
                                          Marquardt DW. J Soc Ind Appl Math 1963;11:431-441)

with G measuring a step by how far it moves ln k, so that what data hardly see stays where it is. J is the product of
d ln C / d ln k, by forward differences (one solution per rate constant, no matter how many parameters), and of
d ln k / d theta, which is constant. Some tens of solutions of a few hundred curves take it to where gradient descent
arrives after many thousands of steps.

Axis legend: B curves, O organs, T times, R logs of rates and half amounts, P parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perfuse.config import RunConfig
from perfuse.data.batch import CurveBatch
from perfuse.data.loader import select_curves
from perfuse.data.table import CurveSource, to_batch
from perfuse.models.base import CurveModel
from perfuse.models.flux import LoglinearRates
from perfuse.models.rate_classes import LogRates
from perfuse.training.loss import organ_weights

_MAX_CURVES, _MAX_SATURABLE_CURVES, _MAX_DESCRIPTOR_CURVES = 256, 96, 96
_MOST_OF_BUDGET = 0.5
_MAX_TIMES = 17
_SCOUTS = 40
_MAX_ITERATIONS = 60
_MAX_DESCRIPTOR_ITERATIONS = 6
"""Where latents are read from descriptors, a log-linear model is not the truth: a rough fit will do to start from."""
_STEP_LINEAR, _STEP_SATURABLE = 1e-5, 1e-3
"""Of the forward differences in ln k: saturable kinetics are solved to 1e-7, linear ones to rounding."""
_FLOOR_MG_L = 1e-30
_ENOUGH = 1e-10
"""Mean squared error of ln C at which nothing is left to fit."""
_NOTHING, _LITTLE, _PATIENCE = 1e-5, 2e-2, 5
"""Relative gain of one iteration, or of each of so many in a row, that ends the fit (there are plateaus on the way)."""
_REACHES = (1.0, 3.0, 2.0)
"""Greatest change of any ln k in one iteration, by attempt: far away the linearisation holds no further."""
_SOLVED = 1e-3
"""Mean squared error that needs no second attempt: noise-free data go far below, the rest is for the network."""
_SHIFTS = tuple(range(-5, 6))
"""Tried on ln half amounts when pathways are let go: what amount was typical is known roughly."""
_TOGETHER = 512
"""Curves solved in one call."""
_DENSE = 0.8
"""Share of times observed above which every so many of the grid stand for all."""
_SAMPLE_STREAM = 0x6A55


@dataclass(frozen=True)
class FitReport:
    """How a fit went: mean squared error of ln C before and after, iterations, curves, seconds, and whether the clock
    ended it.
    """

    before: float
    after: float
    iterations: int
    curves: int
    seconds: float
    was_cut: bool = False

    def line(self) -> str:
        """For the console."""
        before, after = self.before**0.5, self.after**0.5
        return (
            f"Gauss-Newton on {self.curves} curves: root mean squared error of ln C {before:.3g} -> {after:.3g} "
            f"in {self.iterations} iterations, {self.seconds:.1f} s"
        )


def fits_exponents(config: RunConfig, model: CurveModel) -> bool:
    """Whether a run is to begin with this fit: the model asks for it, and its loss is one of ln C."""
    return isinstance(model, LoglinearRates) and model.gauss_newton and config.loss.kind in ("log_mse", "log_huber")


def start_exponents(
    model: LoglinearRates, source: CurveSource, rows: np.ndarray, config: RunConfig, device: torch.device,
    left_s: float | None, stopped: Callable[[], bool] = lambda: False,
) -> FitReport:  # fmt: skip
    """Fit a fresh model's exponents on a sample of training curves, drawn by the run's seed.

    Without a wall-clock budget the result depends on data, configuration and seed alone.
    """
    random = np.random.default_rng([config.seed, _SAMPLE_STREAM])
    most = _MAX_DESCRIPTOR_CURVES if model.reads_descriptors else _MAX_CURVES
    if bool((source.column("vmax_mg_h") > 0).any()):
        most = _MAX_SATURABLE_CURVES
    drawn = random.permutation(rows)[:most]
    batch = thinned(to_batch(source.take(drawn))).to(device)
    max_seconds = None if left_s is None else _MOST_OF_BUDGET * left_s
    return fit_exponents(
        model, batch, organ_weights(config.loss.organ_weight), max_seconds=max_seconds, stopped=stopped,
        max_iterations=_MAX_DESCRIPTOR_ITERATIONS if model.reads_descriptors else _MAX_ITERATIONS,
    )  # fmt: skip


def thinned(batch: CurveBatch, most: int = _MAX_TIMES) -> CurveBatch:
    """The batch at no more than ``most`` times a curve: even grids stay even, sparse curves keep what they have."""
    step = -(-batch.time_h.shape[1] // most)
    if step == 1:
        return batch
    names = ("time_h", "conc_mg_l", "mask", "censored")
    observed = batch.mask.any(1)  # (B, T)
    if bool(observed[:, 1:].any(0).all()) and float(observed[:, 1:].double().mean()) > _DENSE:
        keep = slice(step - 1, None, step)  # t = 0, which does not count, goes first
        return replace(batch, **{name: getattr(batch, name)[..., keep] for name in names})
    place = torch.linspace(0, 1, most, dtype=torch.float64, device=observed.device)
    last = (observed.sum(1, keepdim=True) - 1).clamp_min(0)
    rank = (place * last).round().long()  # (B, most): which of a curve's observed times
    column = (~observed).to(torch.int8).argsort(dim=1, stable=True).gather(1, rank)
    repeated = torch.cat((torch.zeros_like(rank[:, :1], dtype=torch.bool), rank[:, 1:] == rank[:, :-1]), 1)
    cut: dict[str, Any] = {"time_h": batch.time_h.gather(1, column)}
    for name in names[1:]:
        values = getattr(batch, name)
        cut[name] = values.gather(2, column[:, None].expand(-1, values.shape[1], -1))
    cut["mask"] = cut["mask"] & ~repeated[:, None]
    return replace(batch, **cut)


@torch.no_grad()
def fit_exponents(
    model: LoglinearRates, batch: CurveBatch, organ_weight: Tensor | None = None, *,
    max_iterations: int = _MAX_ITERATIONS, max_seconds: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> FitReport:  # fmt: skip
    """Fit ``model.linear_parameters()`` in place; they end at the best point seen.

    Args:
        model: A model whose statistics are fitted.
        batch: Training curves, in random order: the first ``_SCOUTS`` find the way, all of them the end.
        organ_weight: ``(O,)``; None weighs all alike.
        max_iterations: Most iterations of each minimisation.
        max_seconds: Starts no iteration after that; None leaves the result independent of the machine's speed.
        stopped: Asked before every iteration; True ends the fit where it is.
    """
    began = time.monotonic()

    def over() -> bool:
        return stopped() or (max_seconds is not None and time.monotonic() - began > max_seconds)

    whole = _Problem(model, batch, organ_weight)
    first, start, iterations = whole.loss(), whole.parameters(), 0
    best, best_loss = whole.parameters(), first
    for attempt, reach in enumerate(_REACHES[: 1 if model.reads_descriptors else None]):
        whole.set(start)
        iterations += _scout(whole, attempt, reach, max_iterations, over)
        if (loss := whole.loss()) < best_loss:
            best, best_loss = whole.parameters(), loss
        if best_loss < _SOLVED or over():
            break
    whole.set(best)
    iterations += _minimise(whole, max_iterations, over)
    seconds = time.monotonic() - began
    was_cut = max_seconds is not None and seconds > max_seconds
    return FitReport(first, whole.loss(), iterations, len(batch), seconds, was_cut)


def _scout(whole: _Problem, attempt: int, reach: float, max_iterations: int, over: Callable[[], bool]) -> int:
    """Fit some of the curves, others in each attempt where there are more; returns the iterations that it took."""
    n = len(whole.batch)
    rows = (torch.arange(min(_SCOUTS, n), device=whole.batch.time_h.device) + attempt * _SCOUTS) % n
    few = select_curves(whole.batch, rows)
    iterations = 0
    if not few.system.is_linear:
        frozen = _Problem(whole.model, few, whole.organ_weight, frozen=True)
        iterations += _minimise(frozen, max_iterations, over, reach)
    problem = _Problem(whole.model, few, whole.organ_weight)
    if not few.system.is_linear:
        _let_go(problem)
    return iterations + _minimise(problem, max_iterations, over, reach)


def _let_go(problem: _Problem) -> None:
    """Shift half amounts that a frozen fit has left to where the pathways' own kinetics fit best."""
    names = [c.name for c in problem.model.classes.classes]
    if "saturable_half_amount" not in names:
        return
    intercept, i = problem.model.classes.intercept, names.index("saturable_half_amount")
    start = float(intercept[i])
    losses = []
    for shift in _SHIFTS:
        intercept[i] = start + shift
        losses.append(problem.loss())
    intercept[i] = start + _SHIFTS[int(np.argmin(losses))]


def _minimise(
    problem: _Problem, max_iterations: int, over: Callable[[], bool] = lambda: False, reach: float = _REACHES[0]
) -> int:
    """Iterate to the end of what a problem has to give; returns how many iterations that took."""
    best, mu, slow = problem.loss(), 1e-2, 0
    for iteration in range(max_iterations):
        if best <= _ENOUGH or over():
            return iteration
        normal, gradient = problem.normal_equations()
        start, before = problem.parameters(), best
        while mu < 1e6:
            step = -torch.linalg.solve(normal + mu * problem.metric, gradient)
            if problem.reach(step) <= reach:
                problem.set(start + step)
                if (loss := problem.loss()) < best:
                    best, mu = loss, max(mu / 10, 1e-12)
                    break
            mu = 5 * mu
        else:
            problem.set(start)
            return iteration + 1
        gain = 1 - best / before
        slow = slow + 1 if gain < _LITTLE else 0
        if gain < _NOTHING or slow >= _PATIENCE:
            return iteration + 1
    return max_iterations


class _Problem:
    """Residuals, and their derivatives, as functions of the model's linear parameters.

    Frozen, saturable pathways are taken as linear (see ``LoglinearRates.concentrations``): it finds the way from afar.
    """

    def __init__(
        self, model: LoglinearRates, batch: CurveBatch, organ_weight: Tensor | None, frozen: bool = False
    ) -> None:
        self.model, self.batch, self.frozen, self.organ_weight = model, batch, frozen, organ_weight
        self.theta: list[nn.Parameter] = model.linear_parameters()
        counts = batch.mask & ~batch.censored
        weight = torch.ones(batch.conc_mg_l.shape[1], dtype=torch.float64) if organ_weight is None else organ_weight
        weight = torch.where(counts, weight.to(batch.time_h.device)[:, None], 0.0)
        self.weight = weight / weight.sum().clamp_min(1)
        self.true = torch.where(counts, batch.conc_mg_l, 1.0).log()
        self.counts = counts
        self.step = _STEP_LINEAR if batch.system.is_linear else _STEP_SATURABLE
        # As many copies of the curves, each with another rate moved, as are solved together.
        self.group = max(1, _TOGETHER // len(batch))
        self.rows = torch.arange(len(batch), device=batch.time_h.device).repeat(self.group)
        self.wide = select_curves(batch, self.rows)
        self.design = model.design(batch)
        rows = self.design.flatten(0, 1)
        self.metric = rows.T @ rows / len(batch)
        # A parameter that nothing depends on stays where it is.
        self.metric.diagonal().add_(1e-9 * self.metric.diagonal().max())

    def parameters(self) -> Tensor:
        """``(P,)``."""
        return torch.cat([p.flatten() for p in self.theta])

    def set(self, values: Tensor) -> None:
        """Put ``(P,)`` into the model."""
        for p, part in zip(self.theta, values.split([p.numel() for p in self.theta]), strict=True):
            p.copy_(part.view_as(p))

    def _log_conc(self, rates: LogRates, batch: CurveBatch | None = None) -> Tensor:
        conc = self.model.concentrations(rates, self.batch if batch is None else batch, self.frozen)
        return conc.to(torch.float64).clamp_min(_FLOOR_MG_L).log()

    def reach(self, step: Tensor) -> float:
        """The greatest change of a ln k."""
        return float((self.design @ step).abs().max())

    def loss(self) -> float:
        """Weighted mean squared error of ln C; infinite where it cannot be computed."""
        error = torch.where(self.counts, self._log_conc(self.model.log_rates(self.batch)) - self.true, 0.0)
        value = float((self.weight * error * error).sum())
        return value if value == value else float("inf")

    def normal_equations(self) -> tuple[Tensor, Tensor]:
        """J'WJ ``(P, P)`` and J'W r ``(P,)``."""
        rates = self.model.log_rates(self.batch)
        flat, here = rates.flat(), self._log_conc(rates)
        root = self.weight.sqrt()
        columns = []
        for some in torch.arange(flat.shape[1], device=flat.device).split(self.group):
            rows = self.rows[: len(some) * len(flat)]
            moved = flat.repeat(len(some), 1)
            moved[torch.arange(len(moved), device=flat.device), some.repeat_interleave(len(flat))] += self.step
            wide = self.wide if len(rows) == len(self.rows) else select_curves(self.batch, rows)
            there = self._log_conc(rates.like(moved), wide).unflatten(0, (len(some), len(flat)))
            change = torch.where(self.counts, (there - here) / self.step, 0.0) * root
            columns += list(change.flatten(2))
        by_rate = torch.stack(columns, -1).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # (B, O T, R)
        error = (torch.where(self.counts, here - self.true, 0.0) * root).flatten(1)[..., None]
        # Curve by curve the products over values come first: there are far more of them than rates or parameters.
        curvature, pull = by_rate.mT @ by_rate, by_rate.mT @ error
        normal = torch.einsum("brp,brq->pq", self.design, curvature @ self.design)
        return normal, torch.einsum("brp,br->p", self.design, pull[..., 0])

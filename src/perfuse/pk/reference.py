"""SUNDIALS CVODE as the reference solver: one curve at a time, adaptive backward differentiation, analytic Jacobian.

It shares the equations with the other solvers (the generator and the pathways) and nothing of how they are solved:
Hindmarsh AC, Brown PN, Grant KE, et al. ACM Trans Math Softw 2005;31:363-396. The integration restarts at every event.
Amounts are not held non-negative: they may be off by the tolerance below zero.

Axis legend: B batch, N nodes, M eliminations, W states, P pathways, T times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perfuse.errors import InputError, PerfuseError
from perfuse.pk.events import Events, dose_events_in_order
from perfuse.pk.mechanistic import (
    generator_matrix,
    half_saturation_mg,
    mechanistic_rates,
    not_in_body,
    saturable_sink,
)
from perfuse.pk.system import DoseEvents, SystemParameters

_MAX_STEPS = 200_000
_RTOL_RANGE = (1e-14, 1e-2)


@dataclass(frozen=True)
class CurveEquations:
    """dA/dt = K A + input - (e_node - e_sink) g(A_node) of one curve, in NumPy.

    Attributes:
        matrix: K with the gut lumen as the last state, 1/h, ``(W, W)``.
        node, sink: State that saturable pathways empty, and the one that collects it (None: dropped).
        vmax_mg_h, half_mg: Pathways, ``(P,)``; empty for a linear system.
        dose_node: Where infusions go.
    """

    matrix: np.ndarray
    node: int
    sink: int | None
    vmax_mg_h: np.ndarray
    half_mg: np.ndarray
    dose_node: int

    def derivative(self, amount_mg: np.ndarray, rate_mg_h: float) -> np.ndarray:
        """dA/dt, mg/h."""
        out = self.matrix @ amount_mg
        out[self.dose_node] += rate_mg_h
        lost = float((self.vmax_mg_h * amount_mg[self.node] / (self.half_mg + amount_mg[self.node])).sum())
        out[self.node] -= lost
        if self.sink is not None:
            out[self.sink] += lost
        return out

    def jacobian(self, amount_mg: np.ndarray) -> np.ndarray:
        """d(dA/dt)/dA, 1/h."""
        out = self.matrix.copy()
        slope = float((self.vmax_mg_h * self.half_mg / (self.half_mg + amount_mg[self.node]) ** 2).sum())
        out[self.node, self.node] -= slope
        if self.sink is not None:
            out[self.sink, self.node] += slope
        return out


def curve_equations(system: SystemParameters, doses: DoseEvents, with_sinks: bool = False) -> list[CurveEquations]:
    """The equations of every curve.

    Raises:
        InputError: for saturable pathways or oral doses on a topology that has no place for them.
    """
    system, doses = system.to(torch.float64), doses.to(torch.float64)
    topology = system.topology
    generator = generator_matrix(topology, mechanistic_rates(system), with_sinks)
    if topology.absorption_node is None and bool(doses.is_oral.any()):
        raise InputError("route", "has no gut to be absorbed in", value="oral", where=f"topology {topology.name}")
    size = generator.shape[-1]
    vmax = half = generator.new_zeros(len(system), 0)
    node: int = 0
    sink: int | None = None  # a linear system has no pathway, so neither is used
    if not system.is_linear:
        sink = topology.n_nodes + saturable_sink(topology)
        assert topology.saturable_node is not None
        node, vmax = topology.saturable_node, system.vmax_mg_h
        sink = sink if with_sinks else None
        half = torch.where(vmax > 0, half_saturation_mg(system), 1.0)
    wide = torch.nn.functional.pad(generator, (0, 1, 0, 1))
    if topology.absorption_node is not None:
        wide[:, topology.absorption_node, size] = doses.ka_1_h
        wide[:, size, size] = -doses.ka_1_h
    return [
        CurveEquations(k.numpy(), node, sink, v.numpy(), h.numpy(), topology.dose_node)
        for k, v, h in zip(wide.detach().cpu(), vmax.detach().cpu(), half.detach().cpu(), strict=True)
    ]


def _cvode() -> Any:
    try:
        from sksundae.cvode import CVODE
    except ImportError as e:
        raise PerfuseError("the reference solver needs scikit-sundae: pip install scikit-sundae") from e
    return CVODE


class _Cvode:
    """CVODE on one curve's equations between two events."""

    def __init__(self, equations: CurveEquations, rtol: float, atol_mg: float) -> None:
        self.equations, self.rate_mg_h = equations, 0.0
        self.options = {"rtol": rtol, "atol": atol_mg, "method": "BDF", "max_num_steps": _MAX_STEPS}
        self.solver = _cvode()

    def _derivative(self, t: float, amount: np.ndarray, out: np.ndarray) -> None:
        out[:] = self.equations.derivative(amount, self.rate_mg_h)

    def _jacobian(self, t: float, amount: np.ndarray, derivative: np.ndarray, out: np.ndarray) -> None:
        out[:] = self.equations.jacobian(amount)

    def advance(self, amount: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Amounts ``(W, n)`` at increasing times from ``times[0]``, where they are ``amount``.

        Raises:
            RuntimeError: when CVODE gives up.
        """
        solver = self.solver(self._derivative, jacfn=self._jacobian, **self.options)
        # With two times CVODE would return its own steps.
        asked = times if len(times) > 2 else np.array([times[0], (times[0] + times[1]) / 2, times[1]])
        solution = solver.solve(asked, amount)
        if not solution.success:
            raise RuntimeError(solution.message)
        y = np.asarray(solution.y).T
        return y if len(times) > 2 else y[:, [0, 2]]


def _curve(equations: CurveEquations, events: Events, row: int, time_h: np.ndarray, solver: _Cvode) -> np.ndarray:
    """Amounts ``(W, T)`` of one curve at times in any order."""
    out = np.zeros((len(equations.matrix), len(time_h)))
    start = events.time_h[row].numpy()
    at_once = events.counts_at_once[row].numpy()
    begun = (time_h[:, None] > start) | ((time_h[:, None] == start) & at_once)
    segment = begun.sum(1) - 1
    amount = np.zeros(len(equations.matrix))
    until = time_h.max()
    for k in range(len(start)):
        amount[equations.dose_node] += float(events.bolus_mg[row, k])
        amount[-1] += float(events.lumen_mg[row, k])
        solver.rate_mg_h = float(events.rate_mg_h[row, k])
        end = min(start[k + 1], until) if k + 1 < len(start) else until
        mine = segment == k
        if end <= start[k]:
            out[:, mine] = amount[:, None]
            continue
        asked = np.unique(np.concatenate(([start[k], end], time_h[mine])))
        solved = solver.advance(amount, asked)
        out[:, mine] = solved[:, np.searchsorted(asked, time_h[mine])]
        amount = solved[:, -1].copy()
    return out


def solve_cvode(
    system: SystemParameters,
    doses: DoseEvents,
    time_h: Tensor,
    *,
    rtol: float = 1e-10,
    atol_mg: float = 1e-14,
    with_sinks: bool = False,
) -> Tensor:
    """Amounts, mg, in the layout of ``mechanistic.solve``; linear or saturable kinetics.

    Args:
        system: Physical parameters.
        doses: Dose events.
        time_h: Observation times, h, ``(B, T)``.
        rtol, atol_mg: Tolerances of a step, relative and mg.
        with_sinks: Whether to return also where the drug went.

    Returns:
        ``(B, N, T)``; with sinks ``(B, N + M + 2, T)``.

    Raises:
        InputError: for a tolerance out of range, or a system that ``mechanistic.solve`` refuses.
        PerfuseError: when scikit-sundae is not installed, or CVODE fails; the message names the curve.
    """
    if not _RTOL_RANGE[0] <= rtol <= _RTOL_RANGE[1]:
        raise InputError("rtol", value=rtol, allowed=f"{_RTOL_RANGE[0]:g} to {_RTOL_RANGE[1]:g}")
    if not atol_mg > 0:
        raise InputError("atol_mg", value=atol_mg, unit="mg", allowed="> 0")
    doses, time_h = doses.to(torch.float64), time_h.to(torch.float64)
    equations = curve_equations(system, doses, with_sinks)
    events = dose_events_in_order(doses, float(time_h.max()))
    curves = []
    for row, own in enumerate(equations):
        try:
            curves.append(_curve(own, events, row, time_h[row].numpy(), _Cvode(own, rtol, atol_mg)))
        except RuntimeError as e:
            raise PerfuseError(f"CVODE failed on curve {row} at rtol {rtol:g}: {e}") from e
    amounts = torch.as_tensor(np.stack(curves))[:, :-1]
    return torch.cat((amounts, not_in_body(doses, time_h)), 1) if with_sinks else amounts

"""Single numbers that a system and its doses yield, differentiable: what sensitivities are of.

Axis legend: B batch, T times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from perfuse.errors import InputError
from perfuse.pk.mechanistic import generator_matrix, mechanistic_rates, organ_concentrations, solve
from perfuse.pk.system import DoseEvents, SystemParameters

Output = Callable[[SystemParameters, DoseEvents], Tensor]
"""From a system and its doses to one number a curve, ``(B,)``."""


def concentration(organ: str, time_h: float) -> Output:
    """Concentration of an organ at a time, mg/L."""

    def output(system: SystemParameters, doses: DoseEvents) -> Tensor:
        time = torch.full((len(system), 1), float(time_h), dtype=torch.float64)
        return organ_concentrations(system, solve(system, doses, time))[:, _organ(system, organ), 0]

    return output


def cmax(organ: str, time_h: Sequence[float] | np.ndarray) -> Output:
    """Largest concentration of an organ over the given times, mg/L."""

    def output(system: SystemParameters, doses: DoseEvents) -> Tensor:
        time = torch.as_tensor(np.asarray(time_h, dtype=np.float64)).expand(len(system), -1)
        return organ_concentrations(system, solve(system, doses, time))[:, _organ(system, organ)].amax(1)

    return output


def auc_inf(organ: str) -> Output:
    """Area under an organ's curve from the first dose to infinity, mg h/L; exact, -K^-1 times what enters the body.

    Raises (when called):
        InputError: for saturable kinetics, where it depends on the whole curve.
    """

    def output(system: SystemParameters, doses: DoseEvents) -> Tensor:
        _need_linear(system, "auc_inf")
        topology = system.topology
        generator = generator_matrix(topology, mechanistic_rates(system))
        entering = torch.zeros(len(system), topology.n_nodes, dtype=torch.float64)
        by_vein = torch.where(doses.is_oral, 0.0, doses.amount_mg).sum(1)
        orally = (torch.where(doses.is_oral, doses.amount_mg, 0.0)).sum(1) * doses.f_abs
        columns = list(entering.unbind(1))
        columns[topology.dose_node] = columns[topology.dose_node] + by_vein
        if topology.absorption_node is not None:
            columns[topology.absorption_node] = columns[topology.absorption_node] + orally
        area = torch.linalg.solve(generator, -torch.stack(columns, 1)[..., None])
        return organ_concentrations(system, area)[:, _organ(system, organ), 0]

    return output


def auc_last(organ: str, time_h: Sequence[float] | np.ndarray) -> Output:
    """Area under an organ's curve between the first and the last of the given times, mg h/L, by linear trapezoids.

    As exact as the times are dense; for any kinetics.
    """

    def output(system: SystemParameters, doses: DoseEvents) -> Tensor:
        time = torch.as_tensor(np.asarray(time_h, dtype=np.float64)).expand(len(system), -1)
        conc = organ_concentrations(system, solve(system, doses, time))[:, _organ(system, organ)]
        return torch.trapezoid(conc, time, dim=1)

    return output


def clearance(system: SystemParameters, _doses: DoseEvents) -> Tensor:
    """Total clearance from the blood that intravenous doses enter, L/h: dose over AUC_inf, exact.

    Raises:
        InputError: for saturable kinetics.
    """
    _need_linear(system, "clearance")
    return system.volume_l[:, system.topology.dose_node] / _bolus_moments(system, 1)[:, system.topology.dose_node]


def vss(system: SystemParameters, _doses: DoseEvents) -> Tensor:
    """Volume of distribution at steady state, L, on the blood that intravenous doses enter: CL x MRT of a bolus, exact.

    Only where all elimination takes place there would it be the amount in the body over that concentration.

    Raises:
        InputError: for saturable kinetics.
    """
    _need_linear(system, "vss")
    blood = system.topology.dose_node
    area, moment = (_bolus_moments(system, order)[:, blood] for order in (1, 2))
    return system.volume_l[:, blood] * moment / area**2


def _bolus_moments(system: SystemParameters, order: int) -> Tensor:
    """(-K)^-order times a unit bolus, ``(B, N)``: area (1) or first moment (2) of the amounts."""
    generator = generator_matrix(system.topology, mechanistic_rates(system))
    out = torch.zeros_like(system.volume_l)
    out[:, system.topology.dose_node] = 1
    for _ in range(order):
        out = torch.linalg.solve(-generator, out)
    return out


def half_life(system: SystemParameters, doses: DoseEvents) -> Tensor:
    """Terminal half-life, h: ln 2 over the slowest rate of the whole system, absorption of oral doses included.

    The eigenvalue's derivative is w dK v / (w v), of its left and right vectors, where that of an eigendecomposition
    would not survive equal rates.

    Raises:
        InputError: for saturable kinetics.
    """
    _need_linear(system, "half_life")
    generator = generator_matrix(system.topology, mechanistic_rates(system))
    with torch.no_grad():
        values, right = torch.linalg.eig(generator)
        slowest = values.real.argmax(1)
        v = right.real.gather(2, slowest[:, None, None].expand(-1, right.shape[1], 1))
        values, left = torch.linalg.eig(generator.mT)
        slowest = values.real.argmax(1)
        w = left.real.gather(2, slowest[:, None, None].expand(-1, left.shape[1], 1))
    rate = -(w.mT @ generator @ v)[:, 0, 0] / (w.mT @ v)[:, 0, 0]  # first-order exact: d lambda = w dK v / (w v)
    slow_absorption = doses.is_oral.any(1) & (doses.ka_1_h < rate)  # flip-flop: what is left comes from the gut
    return np.log(2) / torch.where(slow_absorption, doses.ka_1_h, rate)


def _need_linear(system: SystemParameters, what: str) -> None:
    if not system.is_linear:
        raise InputError("output", "needs linear kinetics", value=what, hint="use concentration or cmax")


def _organ(system: SystemParameters, organ: str) -> int:
    if organ not in system.topology.organs:
        raise InputError("organ", "is unknown", value=organ, allowed=", ".join(system.topology.organs))
    return system.topology.organs.index(organ)

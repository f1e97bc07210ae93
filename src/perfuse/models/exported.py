"""``flux`` and ``loglinear-rates`` as plain functions of tensors, for ``torch.export`` and ONNX.

What is fixed when a model is exported: the topology, and an even grid of times after one bolus at time 0. No branch
depends on a value, so that the matrix exponential takes as many squarings as the fastest rates that the model can
give need, whatever a curve's own rates are (``propagate`` takes as few as a batch needs).

Axis legend: B batch, N nodes, E flow edges, M eliminations, O the 14 reported organs, T times.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from perfuse.data.batch import CurveBatch, blood_factor
from perfuse.models.compartments import LOG_RATE_RANGE, rates_generator
from perfuse.models.features import log_features
from perfuse.models.flux import LoglinearRates
from perfuse.pk.mechanistic import organ_concentrations
from perfuse.pk.propagate import taylor_exponential
from perfuse.pk.system import DoseEvents, SystemParameters
from perfuse.pk.topology import Topology

INPUTS = ("volume_l", "kp", "flow_l_h", "elimination_l_h", "fup", "bp_ratio", "dose_mg", "is_plasma")
"""What ``BolusCurves`` is given, in order: (B, N), (B, N), (B, E), (B, M), then (B,) each; float64, the last bool."""
OUTPUT = "conc_mg_l"


class BolusCurves(nn.Module):
    """Concentrations, mg/L, ``(B, O, T)``, float64, after one intravenous bolus at time 0.

    Args:
        model: A fitted model whose curves give Kp and clearances.
        topology: The one it was trained on.
        start_h, step_h, n_times: The grid of times.
    """

    def __init__(self, model: LoglinearRates, topology: Topology, start_h: float, step_h: float, n_times: int) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        # What the model reads was settled by training: no value to branch on.
        del self.model._buffers["reads_descriptors"]
        self.model.reads_descriptors = False  # type: ignore[assignment]
        self.model._logs = lambda batch: log_features(batch.system, batch.doses)  # type: ignore[method-assign]
        self.topology = topology
        self.start_h, self.step_h, self.n_times = start_h, step_h, n_times
        busiest = max(sum(a == node for a, _ in topology.edges) for node in range(topology.n_nodes))
        self.fastest_1_h = 2 * (busiest + topology.n_eliminations + 2) * math.exp(LOG_RATE_RANGE[1])

    def forward(
        self, volume_l: Tensor, kp: Tensor, flow_l_h: Tensor, elimination_l_h: Tensor, fup: Tensor, bp_ratio: Tensor,
        dose_mg: Tensor, is_plasma: Tensor,
    ) -> Tensor:  # fmt: skip
        """See ``INPUTS``."""
        system = SystemParameters(self.topology, volume_l, kp, flow_l_h, elimination_l_h, fup, bp_ratio)
        blank = volume_l[:, :1, None]
        time_h = blank[:, 0] * 0
        batch = CurveBatch(system, DoseEvents.bolus(dose_mg), time_h, is_plasma, blank, blank > 0, blank > 0, fup)
        generator = rates_generator(self.model._log_rates(batch, autocast=False), self.topology)
        place = torch.zeros(self.topology.n_nodes, dtype=generator.dtype)
        place[self.topology.dose_node] = 1
        return organ_concentrations(system, self._amounts(generator, dose_mg[:, None] * place), blood_factor(batch))

    def _amounts(self, generator: Tensor, state: Tensor) -> Tensor:
        """``(B, N, T)`` by repeated squaring."""
        q = -torch.diagonal(generator, dim1=-2, dim2=-1).amin(-1)[..., None, None]
        eye = torch.eye(self.topology.n_nodes, dtype=generator.dtype)
        shifted = (generator + q * eye).clamp_min(0)
        out = state[..., None]
        if self.start_h > 0:
            out = self._power(shifted, q, self.start_h) @ out
        power, have = self._power(shifted, q, self.step_h), 1
        while have < self.n_times:
            out = torch.cat((out, power @ out[..., : self.n_times - have]), -1)
            have = out.shape[-1]
            if have < self.n_times:
                power = power @ power
        return out

    def _power(self, shifted: Tensor, q: Tensor, time_h: float) -> Tensor:
        """exp(K t), ``(B, N, N)``."""
        squarings = max(0, math.ceil(math.log2(self.fastest_1_h * time_h)))
        h = time_h / 2**squarings
        power = taylor_exponential(shifted * h)[0] * torch.exp(-q * h)
        for _ in range(squarings):
            power = power @ power
        return power


def tensors_of(batch: CurveBatch) -> tuple[Tensor, ...]:
    """The inputs of ``BolusCurves`` for a batch, in the order of ``INPUTS``."""
    s = batch.system
    doubles = (s.volume_l, s.kp, s.flow_l_h, s.elimination_l_h, s.fup, s.bp_ratio, batch.doses.amount_mg[:, 0])
    return (*(x.to(torch.float64) for x in doubles), batch.is_plasma)

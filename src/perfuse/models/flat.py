"""Flat features: single logs of every input of a curve in one vector, standardised by the training split.

Axis legend: B batch, F features, N nodes, E flow edges, M eliminations.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from perfuse.models.features import MIN_CLEARANCE_L_H
from perfuse.pk.system import SystemParameters
from perfuse.pk.topology import Topology

_MIN_SD = 1e-6
"""A log that varies less than this in the training split is a constant."""


class FlatFeatures(nn.Module):
    """ln of volumes, Kp, flows, clearances, fup and B:P, ``F = 2 N + E + M + 2`` of them.

    A feature that is constant in the training split weighs zero, then and later: nothing can be learned from it.
    Nodes are read in the order of their identity, so listing them in another order changes nothing.
    """

    mean: Tensor
    weight: Tensor

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.n_features = 2 * topology.n_nodes + topology.n_edges + topology.n_eliminations + 2
        self.register_buffer("mean", torch.zeros(self.n_features, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(self.n_features, dtype=torch.float64))

    @staticmethod
    def logs(system: SystemParameters) -> Tensor:
        """Unscaled features, ``(B, F)``, float64."""
        order = np.argsort(system.topology.node_identity)
        columns = (
            system.volume_l[:, order],
            system.kp[:, order],
            system.flow_l_h,
            system.elimination_l_h.clamp_min(MIN_CLEARANCE_L_H),
            system.fup[:, None],
            system.bp_ratio[:, None],
        )
        return torch.cat(columns, 1).to(torch.float64).log()

    def fit(self, system: SystemParameters) -> None:
        """Mean and 1 / standard deviation of each feature; weight 0 where it is constant."""
        logs = self.logs(system)
        sd = logs.std(0, correction=0)
        self.mean.copy_(logs.mean(0))
        self.weight.copy_(torch.where(sd > _MIN_SD, 1 / sd, 0.0))

    def forward(self, system: SystemParameters) -> Tensor:
        """Standardised features, ``(B, F)``, float64."""
        return (self.logs(system) - self.mean) * self.weight

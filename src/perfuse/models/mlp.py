"""``mlp``: a plain multilayer perceptron from log features to ln C at the knots, a published baseline.

Axis legend: B batch, F features, H hidden, O reported organs, K knots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perfuse.config import MlpConfig
from perfuse.data.batch import CurveBatch
from perfuse.models.featuriser import Featuriser
from perfuse.models.flat import FlatFeatures
from perfuse.models.knots import N_ORGANS, KnotModel
from perfuse.models.unit_response import Responses
from perfuse.pk.topology import Topology


class Mlp(KnotModel):
    """Hidden layers with SiLU; the output layer stays in full precision under autocast."""

    def __init__(self, config: MlpConfig, topology: Topology) -> None:
        super().__init__(topology, config.knots)
        self.features = FlatFeatures(topology)
        layers: list[nn.Module] = []
        width = self.features.n_features
        for _ in range(config.layers):
            layers += [nn.Linear(width, config.hidden), nn.SiLU(), nn.Dropout(config.dropout)]
            width = config.hidden
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, N_ORGANS * config.knots)

    def featuriser(self) -> Featuriser:
        return self.features.reads(super().featuriser())

    def _fit_features(self, batch: CurveBatch) -> None:
        self.features.fit(batch)

    def _standardised_knots(self, batch: CurveBatch, responses: Responses | None = None) -> Tensor:
        dtype = self.head.weight.dtype
        hidden = self.body(self.features(batch, responses).to(dtype))  # (B, H)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(dtype)).unflatten(-1, (N_ORGANS, -1))

"""``lstm``: a long short-term memory network that walks over the knots, a published baseline.

Axis legend: B batch, F features, H hidden, O reported organs, K knots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perfuse.config import LstmConfig
from perfuse.data.batch import CurveBatch
from perfuse.models.featuriser import Featuriser
from perfuse.models.flat import FlatFeatures
from perfuse.models.knots import N_ORGANS, KnotModel
from perfuse.models.unit_response import Responses
from perfuse.pk.topology import Topology


class Lstm(KnotModel):
    """The curve's features set the first state and enter every step, beside the knot's place in time."""

    def __init__(self, config: LstmConfig, topology: Topology) -> None:
        super().__init__(topology, config.knots)
        hidden = config.hidden
        self.layers = config.layers
        self.features = FlatFeatures(topology)
        self.encoder = nn.Sequential(nn.Linear(self.features.n_features, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.start = nn.Linear(hidden, 2 * config.layers * hidden)
        self.lstm = nn.LSTM(
            hidden + 2, hidden, config.layers, batch_first=True, dropout=config.dropout if config.layers > 1 else 0.0
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(hidden, N_ORGANS)

    def featuriser(self) -> Featuriser:
        return self.features.reads(super().featuriser())

    def _fit_features(self, batch: CurveBatch) -> None:
        self.features.fit(batch)

    def _standardised_knots(self, batch: CurveBatch, responses: Responses | None = None) -> Tensor:
        dtype = self.head.weight.dtype
        curve = self.encoder(self.features(batch, responses).to(dtype))  # (B, H)
        h, c = self.start(nn.functional.silu(curve)).unflatten(-1, (2, self.layers, -1)).permute(1, 2, 0, 3)
        place = self.grid.place_in_time(dtype)  # (K, 2)
        b, k = curve.shape[0], place.shape[0]
        steps = torch.cat((curve[:, None].expand(b, k, -1), place.to(curve.dtype).expand(b, k, -1)), -1)
        hidden, _ = self.lstm(steps, (h.contiguous(), c.contiguous()))  # (B, K, H)
        hidden = self.dropout(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(dtype)).mT

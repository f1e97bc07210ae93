"""Kp, PS and clearances that are not given: one latent log each, read from the molecule's descriptors.

    ln k_w = (what volumes, flows, fup and B:P say) + sum over latents of sign(w, l) D_l

A tissue's latent ln Kp slows what leaves it, an exchange's latent ln PS quickens it both ways, an elimination's latent
ln CL quickens that elimination. D is linear in the descriptors (``loglinear-rates``), plus messages from the drug to
every tissue (``flux``): each tissue answers to the drug's features according to its own composition.

Axis legend: B batch, O organs, X exchanges, M eliminations, L = O + X + M latents, W rate constants, F features,
C columns of composition, H hidden.
"""

from __future__ import annotations

from dataclasses import astuple
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfuse.data.batch import CurveBatch
from perfuse.models.descriptor_features import N_DESCRIPTOR_FEATURES, descriptor_features
from perfuse.models.features import Whitener
from perfuse.pk.composition import CELLULAR_COMPOSITION
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import Topology

_TRUNK_LAYERS = 3


def n_latents(topology: Topology) -> int:
    """ln Kp of each reported organ, ln PS of each exchange, ln of each clearance."""
    return len(ORGANS) + topology.n_exchanges + topology.n_eliminations


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # the first caller may be in inference mode; a later one may train
def _latent_signs(topology: Topology, device: str) -> Tensor:
    signs = torch.zeros(topology.n_rates, n_latents(topology), dtype=torch.float64)
    organ, is_blood = topology.node_identity, topology.is_blood
    for row, (source, _) in enumerate(topology.edges):
        if not is_blood[source]:
            signs[row, organ[source]] = -1
    for m, elimination in enumerate(topology.eliminations):
        row = topology.n_edges + m
        signs[row, len(ORGANS) + topology.n_exchanges + m] = 1
        if elimination.kind == "intrinsic":
            signs[row, organ[elimination.source]] = -1
    for x, exchange in enumerate(topology.exchanges):
        into = topology.n_edges + topology.n_eliminations + x
        out = into + topology.n_exchanges
        signs[[into, out], len(ORGANS) + x] = 1
        signs[out, organ[exchange.tissue]] = -1
    return signs.to(device)


def latent_signs(topology: Topology, device: torch.device) -> Tensor:
    """``(W, L)``, -1, 0 or 1: how each latent enters each linear ln rate constant."""
    return _latent_signs(topology, str(device))


class LinearLatents(nn.Module):
    """D linear in the descriptors' features, per latent; starts at zero."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.whiten = Whitener(N_DESCRIPTOR_FEATURES)
        self.weight = nn.Parameter(torch.zeros(n_latents(topology), N_DESCRIPTOR_FEATURES, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(n_latents(topology), dtype=torch.float64))

    def fit(self, batch: CurveBatch) -> None:
        """Statistics of the training curves' features."""
        self.whiten.fit(descriptor_features(batch))

    def whitened(self, batch: CurveBatch) -> Tensor:
        """Whitened features of the descriptors, ``(B, F)``, float64."""
        out: Tensor = self.whiten(descriptor_features(batch))
        return out

    def forward(self, batch: CurveBatch) -> Tensor:
        """``(B, L)``, float64."""
        return self.whitened(batch) @ self.weight.T + self.bias


class DrugMessages(nn.Module):
    """Messages from the drug to every tissue: h(drug) times t(tissue), summed; their sum starts at zero.

    t comes from the tissue's composition (water, lipids, acidic phospholipids, proteins: Rodgers T, Rowland M. J Pharm
    Sci 2006;95:1238-1257) and from what the tissue is.
    """

    composition: Tensor

    def __init__(self, topology: Topology, hidden: int, dropout: float) -> None:
        super().__init__()
        widths = [N_DESCRIPTOR_FEATURES] + [hidden] * _TRUNK_LAYERS
        self.trunk = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("composition", _composition(n_latents(topology)), persistent=False)
        self.from_composition = nn.Linear(self.composition.shape[1], hidden, bias=False)
        self.of_latent = nn.Parameter(torch.zeros(n_latents(topology), hidden))
        self.bias = nn.Parameter(torch.zeros(n_latents(topology)))
        nn.init.zeros_(self.from_composition.weight)

    def forward(self, whitened: Tensor) -> Tensor:
        """``(B, L)``, float64, from whitened features of the descriptors, ``(B, F)``."""
        h = whitened.to(self.bias.dtype)
        for layer in self.trunk:
            h = functional.silu(layer(h))
        tissue = self.of_latent + self.from_composition(self.composition)
        return functional.linear(self.dropout(h), tissue, self.bias).to(torch.float64)


def _composition(rows: int) -> Tensor:
    """Standardised logs of what tissues are made of, ``(L, C)``; 0 (the mean) for a latent without a composition."""
    known = torch.tensor([astuple(CELLULAR_COMPOSITION[o]) for o in ORGANS if o in CELLULAR_COMPOSITION]).log()
    out = torch.zeros(rows, known.shape[1])
    where = [i for i, organ in enumerate(ORGANS) if organ in CELLULAR_COMPOSITION]
    out[where] = (known - known.mean(0)) / known.std(0)
    return out

"""Graph features: single logs of volume, flow, Kp, clearance, fup and B:P, standardised by the training split.

No ratio and no textbook constant enters here: what flow divided by volume means is for a model to learn.

Axis legend: B batch, N nodes, E flow edges, M eliminations, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfuse.pk.system import SystemParameters
from perfuse.pk.topology import Topology

N_IDENTITIES = 15
"""The 14 reported organs and arterial blood."""
MIN_CLEARANCE_L_H = 1e-6
"""Floor for the logarithm of a clearance of zero."""


@dataclass(frozen=True)
class GraphIndex:
    """A topology's static indices as tensors.

    Attributes:
        source, target: Nodes of each flow edge, ``(E,)``.
        ends: ``(E, 2 N)``: adds what source and target nodes send to each edge (products with constant matrices are
            faster than gathers, whose gradients scatter).
        inflow: ``(N, E)``: sums edges into their target nodes.
        edge_class: ``(E,)``: 2 x source is blood + target is blood.
        organ_node: ``(14,)`` node of each reported organ.
        identity: ``(N,)`` node identities (organ index; 14 is arterial blood).
        is_blood: ``(N,)`` bool.
        elimination_source: ``(M,)``.
        from_blood, from_tissue: Flow edges by what they drain, in edge order.
        edge_order: ``(E + M,)`` puts values listed as (from_blood, from_tissue, eliminations) in edge order.
    """

    source: Tensor
    target: Tensor
    ends: Tensor
    inflow: Tensor
    edge_class: Tensor
    organ_node: Tensor
    identity: Tensor
    is_blood: Tensor
    elimination_source: Tensor
    from_blood: Tensor
    from_tissue: Tensor
    edge_order: Tensor


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # the first caller may be in inference mode; a later one may train
def _graph_index(topology: Topology, device: str) -> GraphIndex:
    edge_index = torch.as_tensor(topology.edge_index)
    source_of, target_of = (functional.one_hot(end, topology.n_nodes).float() for end in edge_index)
    is_blood = torch.as_tensor(topology.is_blood)
    drains_blood, fills_blood = is_blood[edge_index]
    from_blood, from_tissue = drains_blood.nonzero()[:, 0], (~drains_blood).nonzero()[:, 0]
    eliminations = topology.n_edges + torch.arange(topology.n_eliminations)
    return GraphIndex(
        source=edge_index[0].to(device),
        target=edge_index[1].to(device),
        ends=torch.cat((source_of, target_of), 1).to(device),
        inflow=target_of.T.contiguous().to(device),
        edge_class=(2 * drains_blood.long() + fills_blood.long()).to(device),
        organ_node=torch.as_tensor(topology.organ_node).to(device),
        identity=torch.as_tensor(topology.node_identity).to(device),
        is_blood=is_blood.to(device),
        elimination_source=torch.tensor([e.source for e in topology.eliminations]).to(device),
        from_blood=from_blood.to(device),
        from_tissue=from_tissue.to(device),
        edge_order=torch.cat((from_blood, from_tissue, eliminations)).argsort().to(device),
    )


def at_edges(sent: Tensor, graph: GraphIndex) -> Tensor:
    """Source's part plus target's part of what nodes send, ``(E, B, H)`` from ``(N, B, 2 H)``."""
    n, b, _ = sent.shape
    both = torch.cat(sent.chunk(2, -1)).reshape(2 * n, -1)
    return (graph.ends.to(sent.dtype) @ both).view(len(graph.ends), b, -1)


def into_nodes(message: Tensor, graph: GraphIndex) -> Tensor:
    """Sum of the messages into each node, ``(N, B, H)`` from ``(E, B, H)``."""
    summed = graph.inflow.to(message.dtype) @ message.flatten(1)
    return summed.view(len(graph.inflow), *message.shape[1:])


def graph_index(topology: Topology, device: torch.device) -> GraphIndex:
    """Static indices of a topology on a device (made once)."""
    return _graph_index(topology, str(device))


@dataclass(frozen=True)
class LogFeatures:
    """Logs (raw, or standardised), float64.

    Attributes:
        volume, kp: ``(B, N)``; ln Kp of blood nodes is 0.
        flow: ``(B, E)``.
        elimination: ``(B, M)``.
        fup, bp_ratio: ``(B,)``.
    """

    volume: Tensor
    kp: Tensor
    flow: Tensor
    elimination: Tensor
    fup: Tensor
    bp_ratio: Tensor

    def float(self) -> LogFeatures:
        """The same in float32, for networks."""
        return LogFeatures(**{kind: value.float() for kind, value in vars(self).items()})

    def on_flow_edges(self, graph: GraphIndex) -> Tensor:
        """``(B, E, 7)``: flow; volume and Kp at source and target; fup; B:P."""
        source, target = graph.source, graph.target
        fup, bp = (x[:, None].expand(-1, len(source)) for x in (self.fup, self.bp_ratio))
        ends = (self.volume[:, source], self.volume[:, target], self.kp[:, source], self.kp[:, target])
        return torch.stack((self.flow, *ends, fup, bp), -1)

    def on_eliminations(self, graph: GraphIndex) -> Tensor:
        """``(B, M, 5)``: clearance; volume and Kp of the source; fup; B:P."""
        source = graph.elimination_source
        fup, bp = (x[:, None].expand(-1, len(source)) for x in (self.fup, self.bp_ratio))
        return torch.stack((self.elimination, self.volume[:, source], self.kp[:, source], fup, bp), -1)

    def on_nodes(self, graph: GraphIndex) -> Tensor:
        """``(B, N, 5 + M)``: volume, Kp, blood flag, fup, B:P, and each elimination at its source node."""
        n = self.volume.shape[1]
        blood = graph.is_blood.to(self.volume.dtype).expand_as(self.volume)
        fup, bp = (x[:, None].expand(-1, n) for x in (self.fup, self.bp_ratio))
        at_node = functional.one_hot(graph.elimination_source, n).to(self.volume.dtype)  # (M, N)
        eliminations = (self.elimination[:, :, None] * at_node).transpose(1, 2)
        return torch.cat((torch.stack((self.volume, self.kp, blood, fup, bp), -1), eliminations), -1)


FLOW_FEATURES = ("flow", "volume_source", "volume_target", "kp_source", "kp_target", "fup", "bp_ratio")
"""Columns of ``LogFeatures.on_flow_edges``."""
ELIMINATION_FEATURES = ("clearance", "volume_source", "kp_source", "fup", "bp_ratio")
"""Columns of ``LogFeatures.on_eliminations``."""


def log_features(system: SystemParameters) -> LogFeatures:
    """Raw natural logs; a clearance of zero is floored at ``MIN_CLEARANCE_L_H``."""
    return LogFeatures(
        volume=system.volume_l.log(),
        kp=system.kp.log(),
        flow=system.flow_l_h.log(),
        elimination=system.elimination_l_h.clamp_min(MIN_CLEARANCE_L_H).log(),
        fup=system.fup.log(),
        bp_ratio=system.bp_ratio.log(),
    )


class LogStandardiser(nn.Module):
    """ln x minus its mean, over its standard deviation, one pair per kind of quantity (per column for clearances).

    A quantity that never varies in the training split gets an infinite standard deviation: it reads 0 always, since
    nothing could be learned about it.
    """

    KINDS = ("volume", "kp", "flow", "fup", "bp_ratio")

    def __init__(self, n_eliminations: int) -> None:
        super().__init__()
        for kind in self.KINDS:
            self.register_buffer(f"{kind}_mean", torch.zeros((), dtype=torch.float64))
            self.register_buffer(f"{kind}_sd", torch.ones((), dtype=torch.float64))
        self.register_buffer("elimination_mean", torch.zeros(n_eliminations, dtype=torch.float64))
        self.register_buffer("elimination_sd", torch.ones(n_eliminations, dtype=torch.float64))

    def fit(self, system: SystemParameters) -> None:
        """Means and standard deviations of these curves; Kp over tissues only (blood is 1 by definition)."""
        tissue = ~torch.as_tensor(system.topology.is_blood, device=system.kp.device)
        for kind, value in vars(log_features(system)).items():
            if kind == "elimination":
                mean, sd = value.mean(0), value.std(0, correction=0)
            else:
                value = value[:, tissue] if kind == "kp" else value
                mean, sd = value.mean(), value.std(correction=0)
            self.get_buffer(f"{kind}_mean").copy_(mean)
            self.get_buffer(f"{kind}_sd").copy_(torch.where(sd > 1e-6, sd, torch.inf))

    def forward(self, logs: LogFeatures, graph: GraphIndex) -> LogFeatures:
        """Standardised features of a batch; Kp of blood nodes reads 0."""
        z = {
            kind: (value - self.get_buffer(f"{kind}_mean")) / self.get_buffer(f"{kind}_sd")
            for kind, value in vars(logs).items()
        }
        z["kp"] = torch.where(graph.is_blood, 0.0, z["kp"])
        return LogFeatures(**z)


class Whitener(nn.Module):
    """Centres features and decorrelates them to unit variance; directions that never vary read 0.

    A linear change of coordinates: exponents fitted on whitened features are exponents of the features themselves
    (``exponents``), but gradient descent no longer crawls along correlated ones, such as volume and flow.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("matrix", torch.eye(features, dtype=torch.float64))

    def fit(self, x: Tensor) -> None:
        """Statistics of ``(.., F)`` features."""
        x = x.reshape(-1, x.shape[-1]).to(torch.float64)
        mean = x.mean(0)
        variance, axes = torch.linalg.eigh((x - mean).mT @ (x - mean) / len(x))
        scale = torch.where(variance > 1e-8, variance.clamp_min(1e-8).rsqrt(), 0.0)
        self.mean.copy_(mean)
        self.matrix.copy_((axes * scale) @ axes.mT)

    def forward(self, x: Tensor) -> Tensor:
        """Whitened features, the same shape."""
        return (x - self.mean) @ self.matrix

    def weighted(self, x: Tensor, weight: Tensor) -> Tensor:
        """Weighted sum of the whitened features, ``(..)`` from ``(.., F)``, without making them."""
        return (x - self.mean) @ (self.matrix @ weight)

    def exponents(self, weight: Tensor) -> Tensor:
        """Exponents of the raw features, given the weights ``(F,)`` of the whitened ones."""
        return self.matrix @ weight

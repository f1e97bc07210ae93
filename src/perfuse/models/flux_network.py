"""The network of ``flux``: messages along blood flow and across tissue membranes, then one number per rate constant.

Inside, nodes and edges come first, ``(N, B, H)``, so that wiring is plain matrix products. Messages run along "ways":
flow edges, then exchanges into tissue, then out of it.

Axis legend: B batch, N nodes, E flow edges, X exchanges, W = E + 2 X ways, M eliminations, P saturable pathways,
H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfuse.config import FluxConfig
from perfuse.models import featuriser as reads
from perfuse.models.features import (
    ELIMINATION_FEATURES,
    FLOW_FEATURES,
    N_IDENTITIES,
    PATHWAY_FEATURES,
    GraphIndex,
    LogFeatures,
    at_ways,
    mean_inflow,
)
from perfuse.pk.topology import Topology

_RESIDUAL_SCALE = 0.1
"""The network's last layer starts at zero, and its output moves slowly beside the exponents."""


@dataclass(frozen=True)
class Residuals:
    """What the network adds to logs, float64.

    Attributes:
        linear: ``(B, E + M + 2 X)``, in the topology's order.
        pathways: ``(B, P, 2)``: rate constant and half amount; ``(B, 0, 2)`` without a pathway.
    """

    linear: Tensor
    pathways: Tensor


@dataclass(frozen=True)
class _Inputs:
    """What messages are made of besides hidden features, in the network's precision.

    Attributes:
        at_nodes: Volume, Kp, fup, B:P, ``(N, B, 4)``.
        speed: Flow of a flow edge, PS of an exchange, ``(W, B)``.
    """

    at_nodes: Tensor
    speed: Tensor

    @staticmethod
    def of(z: LogFeatures) -> _Inputs:
        """From standardised features."""
        volume, kp = z.volume.T, z.kp.T
        shared = (x.expand_as(volume) for x in (z.fup, z.bp_ratio))
        speed = torch.cat((z.flow, z.ps, z.ps), 1) if z.ps.shape[1] else z.flow
        return _Inputs(torch.stack((volume, kp, *shared), -1), speed.T.contiguous())


class _FromEnds(nn.Module):
    """What a way hears: a linear map of both its ends' hidden features, volumes and Kp, of its speed, fup and B:P.

    Nearly all of it is linear in what the ends know by themselves, so it is computed per node and then sent.
    """

    def __init__(self, hidden: int, way_features: int) -> None:
        super().__init__()
        self.ends = nn.Linear(hidden, 2 * hidden, bias=False)
        self.edge = nn.Linear(way_features, hidden)

    def forward(self, nodes: Tensor, inputs: _Inputs, graph: GraphIndex) -> Tensor:
        """``(W, B, H)``, after the activation."""
        x = torch.cat((nodes, inputs.at_nodes.to(nodes.dtype)), -1)
        speed, v_source, v_target, kp_source, kp_target, fup, bp, *flags = self.edge.weight.unbind(1)
        to_way, to_way_back = self.ends.weight.chunk(2)
        silent = torch.zeros_like(fup)
        by_source = torch.cat((to_way, torch.stack((v_source, kp_source, fup, bp), 1)), 1)
        by_target = torch.cat((to_way_back, torch.stack((v_target, kp_target, silent, silent), 1)), 1)
        sent = functional.linear(x, by_source, self.edge.bias), functional.linear(x, by_target)
        heard = at_ways(*sent, inputs.speed, speed, graph)
        if flags:
            heard = heard + (graph.way_flags @ torch.stack(flags))[:, None].to(heard.dtype)
        return _silu(heard)


class _MessageLayer(_FromEnds):
    """h_i <- h_i + update(h_i, mean over inflows of message(h_source, h_target, way))."""

    def __init__(self, hidden: int, way_features: int, dropout: float) -> None:
        super().__init__(hidden, way_features)
        self.keep = nn.Linear(hidden, hidden)
        self.inflow = nn.Linear(hidden, hidden, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes: Tensor, inputs: _Inputs, graph: GraphIndex) -> Tensor:
        """``(N, B, H)`` from nodes ``(N, B, H)``."""
        inflow = mean_inflow(super().forward(nodes, inputs, graph), graph)
        update = _silu(self.keep(nodes) + self.inflow(inflow))
        return nodes + self.dropout(update)


class _WayHead(_FromEnds):
    """Hidden features of each way from both its ends and its own features."""

    def __init__(self, hidden: int, way_features: int) -> None:
        super().__init__(hidden, way_features)
        self.mix = nn.Linear(hidden, hidden)

    def forward(self, nodes: Tensor, inputs: _Inputs, graph: GraphIndex) -> Tensor:
        """``(W, B, H)``."""
        return _silu(self.mix(super().forward(nodes, inputs, graph)))


def _silu(fresh: Tensor) -> Tensor:
    """SiLU of a tensor that nothing else needs; without gradients, in its place."""
    return functional.silu(fresh, inplace=not torch.is_grad_enabled())


def _node_head(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())


class FluxNetwork(nn.Module):
    """Message passing over the organ graph; its output starts at zero.

    With ``config.messages`` off there are no message layers: every rate sees its own ends alone.
    """

    def __init__(self, config: FluxConfig, topology: Topology) -> None:
        super().__init__()
        hidden, m = config.hidden, topology.n_eliminations
        self.n_flows, self.saturable_node = topology.n_edges, topology.saturable_node
        way_features = len(FLOW_FEATURES) + 2 * bool(topology.exchanges)
        self.identity = nn.Embedding(N_IDENTITIES, hidden)
        self.encode = nn.Linear(5 + m, hidden)
        self.layers = nn.ModuleList(
            _MessageLayer(hidden, way_features, config.dropout) for _ in range(config.layers if config.messages else 0)
        )
        self.flow_hidden = _WayHead(hidden, way_features)
        self.elimination_hidden = _node_head(hidden + len(ELIMINATION_FEATURES) + m, hidden)
        self.flow_out = nn.Linear(hidden, 1)
        self.elimination_out = nn.Linear(hidden, 1)
        last = [self.flow_out, self.elimination_out]
        # An edge whose rate depends on the amount must not depend on the dose as well.
        self.pathway_columns = len(PATHWAY_FEATURES) - config.state_dependent
        if self.saturable_node is not None:
            self.pathway_hidden = _node_head(hidden + self.pathway_columns, hidden)
            self.pathway_out = nn.Linear(hidden, 2)
            last.append(self.pathway_out)
        for layer in last:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self._eliminations = topology.elimination_names
        self._way_flags = ("is_exchange_in", "is_exchange_out") if topology.exchanges else ()

    def columns(self, transform: reads.Transform) -> dict[str, tuple[reads.Feature, ...]]:
        """What nodes, ways (flow edges and exchanges), eliminations and pathways read, in order."""
        on_nodes = (*reads.columns(("volume", "kp"), transform=transform), *reads.flags(("is_blood",)))
        on_nodes += reads.columns(("fup", "bp_ratio"), transform=transform)
        on_nodes += tuple(c for name in self._eliminations for c in reads.columns(["clearance"], name, transform))
        pathways = PATHWAY_FEATURES[: self.pathway_columns] if self.saturable_node is not None else ()
        return {
            "nodes": on_nodes,
            "ways": reads.columns(FLOW_FEATURES, transform=transform) + reads.flags(self._way_flags),
            "eliminations": reads.columns(ELIMINATION_FEATURES, transform=transform) + reads.flags(self._eliminations),
            "pathways": reads.columns(pathways, transform=transform),
        }

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of what does not run under autocast."""
        return self.flow_out.weight.dtype

    def forward(self, z: LogFeatures, graph: GraphIndex, autocast: bool) -> Residuals:
        """What to add to the logs; hidden layers run under autocast when it is on."""
        device = z.volume.device.type
        per_node, eliminations = (x.transpose(0, 1).contiguous() for x in (z.on_nodes(graph), z.on_eliminations(graph)))
        inputs = _Inputs.of(z)
        m, b = eliminations.shape[:2]
        which = torch.eye(m, device=eliminations.device)[:, None].expand(m, b, m)
        has_pathways = self.saturable_node is not None and z.vmax.shape[1] > 0
        with torch.autocast(device, dtype=torch.get_autocast_dtype(device), enabled=autocast):
            nodes = self.encode(per_node) + self.identity(graph.identity)[:, None]
            for layer in self.layers:
                nodes = layer(nodes, inputs, graph)
            flow = self.flow_hidden(nodes, inputs, graph)
            source = nodes.index_select(0, graph.elimination_source).to(self.dtype)
            removal = self.elimination_hidden(torch.cat((source, eliminations, which), -1))
            pathways = self._pathways(nodes, z) if has_pathways else None
        by_way = self.flow_out(flow.to(self.dtype))[..., 0]
        removed = self.elimination_out(removal.to(self.dtype))[..., 0]
        linear = torch.cat((by_way[: self.n_flows], removed, by_way[self.n_flows :])).T
        out = z.volume.new_zeros(b, 0, 2) if pathways is None else self.pathway_out(pathways.to(self.dtype))
        return Residuals(*(_RESIDUAL_SCALE * x.to(torch.float64) for x in (linear, out)))

    def _pathways(self, nodes: Tensor, z: LogFeatures) -> Tensor:
        """Hidden features of each saturable pathway, ``(B, P, H)``."""
        assert self.saturable_node is not None
        features = z.on_pathways(self.saturable_node)[..., : self.pathway_columns]
        node = nodes[self.saturable_node].to(self.dtype)[:, None].expand(-1, features.shape[1], -1)
        hidden: Tensor = self.pathway_hidden(torch.cat((node, features), -1))
        return hidden

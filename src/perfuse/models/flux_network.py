"""The network of ``flux``: messages along blood flow, then one number per rate constant.

Inside, nodes and edges come first, ``(N, B, H)``, so that wiring is plain matrix products.

Axis legend: B batch, N nodes, E flow edges, M eliminations, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfuse.config import FluxConfig
from perfuse.models.features import (
    ELIMINATION_FEATURES,
    FLOW_FEATURES,
    N_IDENTITIES,
    GraphIndex,
    LogFeatures,
    at_edges,
    into_nodes,
)
from perfuse.pk.topology import Topology

_RESIDUAL_SCALE = 0.1
"""The network's last layer starts at zero and its output moves ten times slower than the exponents."""


class _MessageLayer(nn.Module):
    """h_i <- h_i + update(h_i, mean over inflows of message(h_source, h_target, edge))."""

    def __init__(self, hidden: int, edge_features: int, dropout: float) -> None:
        super().__init__()
        self.ends = nn.Linear(hidden, 2 * hidden, bias=False)
        self.edge = nn.Linear(edge_features, hidden)
        self.keep = nn.Linear(hidden, hidden)
        self.inflow = nn.Linear(hidden, hidden, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes: Tensor, edges: Tensor, graph: GraphIndex) -> Tensor:
        """``(N, B, H)`` from nodes ``(N, B, H)`` and edge features ``(E, B, F)``."""
        message = functional.silu(at_edges(self.ends(nodes), graph) + self.edge(edges))
        inflow = into_nodes(message, graph) / graph.inflow.sum(1).clamp_min(1)[:, None, None].to(message.dtype)
        update = functional.silu(self.keep(nodes) + self.inflow(inflow))
        return nodes + self.dropout(update)


class _FlowHead(nn.Module):
    """Hidden features of each flow edge from both its ends and its own features."""

    def __init__(self, hidden: int, edge_features: int) -> None:
        super().__init__()
        self.ends = nn.Linear(hidden, 2 * hidden, bias=False)
        self.edge = nn.Linear(edge_features, hidden)
        self.mix = nn.Linear(hidden, hidden)

    def forward(self, nodes: Tensor, edges: Tensor, graph: GraphIndex) -> Tensor:
        """``(E, B, H)``."""
        joint = functional.silu(at_edges(self.ends(nodes), graph) + self.edge(edges))
        return functional.silu(self.mix(joint))


class FluxNetwork(nn.Module):
    """Message passing over the organ graph; its output starts at zero."""

    def __init__(self, config: FluxConfig, topology: Topology) -> None:
        super().__init__()
        hidden = config.hidden
        self.identity = nn.Embedding(N_IDENTITIES, hidden)
        self.encode = nn.Linear(5 + topology.n_eliminations, hidden)
        self.layers = nn.ModuleList(
            _MessageLayer(hidden, len(FLOW_FEATURES), config.dropout) for _ in range(config.layers)
        )
        self.flow_hidden = _FlowHead(hidden, len(FLOW_FEATURES))
        self.elimination_hidden = nn.Sequential(
            nn.Linear(hidden + len(ELIMINATION_FEATURES) + topology.n_eliminations, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
        )
        self.flow_out = nn.Linear(hidden, 1)
        self.elimination_out = nn.Linear(hidden, 1)
        for layer in (self.flow_out, self.elimination_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: LogFeatures, graph: GraphIndex, autocast: bool) -> Tensor:
        """``(B, E + M)``, float64: what the network adds to ln k; hidden layers run under autocast when it is on."""
        device = z.volume.device.type
        per_node, edges, eliminations = (
            x.transpose(0, 1).contiguous()
            for x in (z.on_nodes(graph), z.on_flow_edges(graph), z.on_eliminations(graph))
        )
        m, b = eliminations.shape[:2]
        which = torch.eye(m, device=edges.device)[:, None].expand(m, b, m)
        with torch.autocast(device, dtype=torch.get_autocast_dtype(device), enabled=autocast):
            nodes = self.encode(per_node) + self.identity(graph.identity)[:, None]
            for layer in self.layers:
                nodes = layer(nodes, edges, graph)
            flow = self.flow_hidden(nodes, edges, graph)
            source = nodes.index_select(0, graph.elimination_source).float()
            removal = self.elimination_hidden(torch.cat((source, eliminations, which), -1))
        out = torch.cat((self.flow_out(flow.float()), self.elimination_out(removal.float())))[..., 0].T
        return _RESIDUAL_SCALE * out.to(torch.float64)

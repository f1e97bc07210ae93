"""``recurrent``: a dynamic graph neural network, organs as nodes, blood flows as edges, unrolled over time.

Each step passes gated messages along the flow edges, lets every organ attend to all others, and updates the
state of each organ by its own GRU step; then it decodes the next few knots of ln C from that state.

Tensors put nodes first, ``(N, B, H)``, so that gathering from and summing into nodes are plain matrix products
with constant matrices. The first message layer acts on [source, target, edge]; it is split into one product per
node and one per edge, and the edge part is computed once per curve.

Axis legend: N nodes, E flow edges, M eliminations, B batch, H hidden, A attention heads, K knots, S knots per step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfuse.config import RecurrentConfig
from perfuse.data.batch import CurveBatch
from perfuse.models.features import (
    N_IDENTITIES,
    GraphIndex,
    LogStandardiser,
    at_edges,
    graph_index,
    into_nodes,
    log_features,
)
from perfuse.models.knots import KnotModel
from perfuse.pk.system import SystemParameters
from perfuse.pk.topology import Topology

_NODE_INPUTS = 5
"""Numbers per node: log volume, log Kp, blood or tissue, log fup, log B:P; each elimination adds one at its source."""
_EDGE_CLASSES = 4
"""Tissue or blood at either end."""


class _MessageLayer(nn.Module):
    """Gated sum of messages over incoming flow edges."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.ends = nn.Linear(hidden, 4 * hidden, bias=False)

    def forward(self, state: Tensor, edge_part: Tensor, graph: GraphIndex) -> Tensor:
        """Messages into every node, ``(N, B, H)``; ``edge_part``, ``(E, B, 2 H)``, is the edges' own."""
        return into_nodes(functional.glu(at_edges(self.ends(state), graph) + edge_part), graph)


class _OrganAttention(nn.Module):
    """Multi-head attention of every node to all nodes of its curve."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)

    def forward(self, state: Tensor) -> Tensor:
        n, b, h = state.shape
        q, k, v = self.qkv(state).view(n, b, 3, self.heads, -1).permute(2, 1, 3, 0, 4)  # (B, A, N, H / A)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return mixed.permute(2, 0, 1, 3).reshape(n, b, h)


class Recurrent(KnotModel):
    """See the module's docstring. Node order does not matter: nodes are known by features and identity alone."""

    def __init__(self, config: RecurrentConfig, topology: Topology) -> None:
        super().__init__(topology, config.knots)
        hidden, self.steps = config.hidden, config.steps
        self.features = LogStandardiser(topology.n_eliminations)
        self.identity = nn.Embedding(N_IDENTITIES, hidden)
        self.edge_class = nn.Embedding(_EDGE_CLASSES, hidden)
        self.node_encoder = nn.Linear(_NODE_INPUTS + topology.n_eliminations, hidden)
        self.drug_encoder = nn.Linear(2 + topology.n_eliminations, hidden)
        self.edge_encoder = nn.Linear(1, hidden)
        self.start = nn.Linear(hidden, hidden)
        self.messages = nn.ModuleList(_MessageLayer(hidden) for _ in range(config.layers))
        self.between = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(config.layers - 1))
        self.edge_parts = nn.ModuleList(nn.Linear(hidden, 2 * hidden) for _ in range(config.layers))
        self.attention = _OrganAttention(hidden, config.heads)
        self.dropout = nn.Dropout(config.dropout)
        self.update_input = nn.Linear(hidden, 3 * hidden, bias=False)
        self.update_node = nn.Linear(hidden, 3 * hidden)
        self.update_time = nn.Linear(4, 3 * hidden, bias=False)
        self.update_state = nn.Linear(hidden, 3 * hidden)
        self.decoder = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, config.knots // config.steps)

    def _fit_features(self, system: SystemParameters) -> None:
        self.features.fit(system)

    def _encode(self, system: SystemParameters, graph: GraphIndex) -> tuple[Tensor, Tensor]:
        """Nodes ``(N, B, H)`` and edges ``(E, B, H)``."""
        dtype = self.head.weight.dtype
        logs = self.features(log_features(system), graph)
        drug = torch.stack((logs.fup, logs.bp_ratio, *logs.elimination.unbind(-1)), -1)  # (B, 2 + M)
        nodes = self.node_encoder(logs.on_nodes(graph).transpose(0, 1).to(dtype))
        nodes = nodes + self.identity(graph.identity)[:, None] + self.drug_encoder(drug.to(dtype))
        edges = self.edge_encoder(logs.flow.T[..., None].to(dtype)) + self.edge_class(graph.edge_class)[:, None]
        return functional.silu(nodes), functional.silu(edges)

    def _step_times(self, dtype: torch.dtype) -> Tensor:
        """What each step is told of time, ``(steps, 4)``: place on the knot axis and in h; length in u and ln h."""
        time_h = self.grid.knot_time_h
        per_step = len(time_h) // self.steps
        end = time_h[per_step - 1 :: per_step]
        start = torch.cat((time_h.new_zeros(1), end[:-1]))
        place = torch.arange(1, self.steps + 1, dtype=time_h.dtype, device=time_h.device) / self.steps
        length_u = torch.log1p(end / time_h[0]) - torch.log1p(start / time_h[0])
        return torch.stack((place, end / time_h[-1], length_u, ((end - start) / time_h[-1]).log()), -1).to(dtype)

    def _standardised_knots(self, batch: CurveBatch) -> Tensor:
        dtype = self.head.weight.dtype
        graph = graph_index(batch.system.topology, batch.time_h.device)
        nodes, edges = self._encode(batch.system, graph)
        edge_parts = [edge(edges) for edge in self.edge_parts]  # (E, B, 2 H), once per curve
        constant = self.update_node(nodes)  # (N, B, 3 H)
        state = torch.tanh(self.start(nodes))
        states = []
        for from_time in self.update_time(self._step_times(dtype)).unbind(0):
            state = self._step(state, constant + from_time, edge_parts, graph)
            states.append(state)
        organs = torch.stack(states, 2)[graph.organ_node]  # (O, B, steps, H)
        with torch.autocast(organs.device.type, enabled=False):
            deviations = self.head(functional.silu(self.decoder(self.dropout(organs.to(dtype)))))  # (O, B, steps, S)
        return deviations.flatten(2).transpose(0, 1)

    def _step(self, state: Tensor, constant: Tensor, edge_parts: list[Tensor], graph: GraphIndex) -> Tensor:
        """One GRU update per organ from messages and attention (Cho K et al. EMNLP 2014)."""
        heard = self.messages[0](state, edge_parts[0], graph)
        for layer, mix, edge_part in zip(self.messages[1:], self.between, edge_parts[1:], strict=True):
            heard = layer(state + mix(heard), edge_part, graph)
        heard = self.dropout(heard + self.attention(state))
        from_input = self.update_input(heard) + constant
        from_state = self.update_state(state)
        h = state.shape[-1]
        reset, update = torch.sigmoid(from_input[..., : 2 * h] + from_state[..., : 2 * h]).chunk(2, -1)
        new = torch.tanh(torch.addcmul(from_input[..., 2 * h :], reset, from_state[..., 2 * h :]))
        return torch.lerp(new, state.to(new.dtype), update)

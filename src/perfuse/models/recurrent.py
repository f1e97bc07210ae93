"""``recurrent``: a dynamic graph neural network, organs as nodes, blood flows as edges, unrolled over time.

Each step passes gated messages along the flow edges (and between the two spaces of a permeability-limited organ), tells
every organ what attention picks out of all of them, and updates the state of each organ by its own GRU step; then it
decodes the next knots of ln C from that state.

Tensors put nodes first, ``(N, R, H)``, so that gathering from and summing into nodes are plain matrix products with
constant matrices. A message acts on [source, target, edge] and is half as wide as a state; the edges' part, and what
the GRU is told of node and time, are computed once per curve, outside the loop; the knots of all steps are decoded
together. Few, long steps: 3 of 8 knots cost half of 6 of 4 and are as accurate in as many optimiser steps.

Axis legend: N nodes, E message edges, M eliminations, R unit responses (curves), H hidden, W message width (H / 2),
A attention heads, K knots, S knots per step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from perfuse.config import RecurrentConfig
from perfuse.data.batch import CurveBatch
from perfuse.models.featuriser import Featuriser
from perfuse.models.flat import FlatFeatures, node_order
from perfuse.models.knots import KnotModel
from perfuse.models.unit_response import Responses
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import Topology

_N_IDENTITIES = len(ORGANS) + 1
"""The 14 reported organs and arterial blood."""
_EXCHANGE_CLASS = 4
"""Edge classes: 2 x source is blood + target is blood for flows; 4 and 5 into and out of a tissue space."""
_N_CLASSES = 6
_OF_THE_DRUG = ("elimination", "drug", "saturation", "descriptors", "route")
"""Kinds of flat features that belong to the curve as a whole."""


@dataclass(frozen=True)
class MessageGraph:
    """A topology's edges as constant matrices, exchanges included.

    Attributes:
        source, target: ``(E, N)`` 0/1: the nodes that each edge comes from and goes to.
        edge_class: ``(E,)``.
        identity: ``(N,)``: organ of each node; 14 is arterial blood.
        organ_node: ``(14,)`` node of each reported organ.
        column: ``(N,)``: each node's column among the flat features.
        is_blood: ``(N,)`` 0/1.
        dosed: ``(2, N)`` 0/1: where a dose into blood and a dose by mouth go.
        eliminates: ``(M, N)`` 0/1: the source of each elimination.
        saturates: ``(N,)`` 0/1: where saturable metabolism takes place.
    """

    source: Tensor
    target: Tensor
    edge_class: Tensor
    identity: Tensor
    organ_node: Tensor
    column: Tensor
    is_blood: Tensor
    dosed: Tensor
    eliminates: Tensor
    saturates: Tensor


def _one_hot(columns: list[int], n: int) -> Tensor:
    return functional.one_hot(torch.tensor(columns, dtype=torch.long), n).float()


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # the first caller may be in inference mode; a later one may train
def _message_graph(topology: Topology, device: str) -> MessageGraph:
    n, is_blood = topology.n_nodes, torch.as_tensor(topology.is_blood)
    flows = topology.edge_index
    source = [*flows[0], *(end for x in topology.exchanges for end in (x.vascular, x.tissue))]
    target = [*flows[1], *(end for x in topology.exchanges for end in (x.tissue, x.vascular))]
    drains_blood, fills_blood = is_blood[torch.as_tensor(flows)].long()
    exchange_class = _EXCHANGE_CLASS + torch.arange(2 * topology.n_exchanges) % 2
    gut = topology.dose_node if topology.absorption_node is None else topology.absorption_node
    saturable = torch.zeros(n)
    if topology.saturable_node is not None:
        saturable[topology.saturable_node] = 1
    return MessageGraph(
        source=_one_hot(source, n).to(device),
        target=_one_hot(target, n).to(device),
        edge_class=torch.cat((2 * drains_blood + fills_blood, exchange_class)).to(device),
        identity=torch.as_tensor(topology.node_identity).to(device),
        organ_node=torch.as_tensor(topology.organ_node).to(device),
        column=torch.as_tensor(np.argsort(node_order(topology))).to(device),
        is_blood=is_blood.float().to(device),
        dosed=_one_hot([topology.dose_node, gut], n).to(device),
        eliminates=_one_hot([e.source for e in topology.eliminations], n).to(device),
        saturates=saturable.to(device),
    )


def message_graph(topology: Topology, device: torch.device) -> MessageGraph:
    """A topology's constant matrices on a device (made once)."""
    return _message_graph(topology, str(device))


class _Encoder(nn.Module):
    """Nodes ``(N, R, H)`` and edges ``(E, R, H)`` from the flat features."""

    def __init__(self, features: FlatFeatures, n_eliminations: int, hidden: int) -> None:
        super().__init__()
        self.columns = features.columns
        at_node = 4 + n_eliminations + _width(features.columns["saturation"])
        self.node = nn.Linear(at_node, hidden)
        self.drug = nn.Linear(sum(_width(features.columns[kind]) for kind in _OF_THE_DRUG), hidden, bias=False)
        self.identity = nn.Embedding(_N_IDENTITIES, hidden)
        self.gain = nn.Embedding(_N_IDENTITIES, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.edge = nn.Linear(1, hidden)
        self.edge_class = nn.Embedding(_N_CLASSES, hidden)

    def forward(self, z: Tensor, graph: MessageGraph) -> tuple[Tensor, Tensor]:
        part = {kind: z[:, columns] for kind, columns in self.columns.items()}
        is_blood = graph.is_blood.to(z.dtype).expand(len(z), -1)
        dosed = graph.dosed.to(z.dtype)[part["route"][:, 0].long()]
        local = torch.cat(
            (
                torch.stack((part["volume"][:, graph.column], part["kp"][:, graph.column], is_blood, dosed)),
                (part["elimination"][:, :, None] * graph.eliminates.to(z.dtype)).transpose(0, 1),
                (part["saturation"][:, :, None] * graph.saturates.to(z.dtype)).transpose(0, 1),
            )
        )  # (4 + M + 3, R, N)
        drug = self.drug(torch.cat([part[kind] for kind in _OF_THE_DRUG], 1))
        nodes = self.node(local.permute(2, 1, 0)) + self.identity(graph.identity)[:, None]
        nodes = nodes + drug * self.gain(graph.identity)[:, None]  # what a drug is to an organ depends on the organ
        nodes = functional.silu(self.mix(functional.silu(nodes)))
        along = torch.cat((part["flow"], part["ps"].repeat_interleave(2, 1)), 1).T[..., None]  # (E, R, 1)
        edges = self.edge(along) + self.edge_class(graph.edge_class)[:, None]
        return nodes, functional.silu(edges)


def _width(columns: slice) -> int:
    return int(columns.stop - columns.start)


def messages(from_source: Tensor, to_target: Tensor, edge_part: Tensor, graph: MessageGraph) -> Tensor:
    """Gated sum over incoming edges, ``(N, R, W)``, of what source, target and edge add, each ``(.., R, 2 W)``."""
    r = from_source.shape[1]
    source = graph.source.to(from_source.dtype) @ from_source.flatten(1)
    along = torch.addmm(source, graph.target.to(source.dtype), to_target.flatten(1)).view(-1, r, to_target.shape[-1])
    return (graph.target.T.to(along.dtype) @ functional.glu(along + edge_part).flatten(1)).view(len(to_target), r, -1)


def attention(score: Tensor, value: Tensor) -> Tensor:
    """Values ``(N, R, H)`` of all organs weighted by a softmax of their scores ``(N, R, A)``: ``(R, H)``, A heads.

    Every organ hears the same; what it makes of that is its own GRU step's matter. Attention of every organ to every
    other, by queries of its own, made training steps half as long again and gained nothing (T1, 4,000 curves, 16
    epochs, messages of half width here: GMFE 1.037 with either).
    """
    n, r, a = score.shape
    weight = torch.softmax(score, 0)
    return (weight[..., None] * value.view(n, r, a, -1)).sum(0).flatten(1)


class Recurrent(KnotModel):
    """See the module's docstring. Node order does not matter: nodes are known by features and identity alone."""

    def __init__(self, config: RecurrentConfig, topology: Topology) -> None:
        super().__init__(topology, config.knots)
        hidden, self.steps, self.heads = config.hidden, config.steps, config.heads
        self.features = FlatFeatures(topology)
        self.encoder = _Encoder(self.features, topology.n_eliminations, hidden)
        self.start = nn.Linear(hidden, hidden)
        width = hidden // 2
        self.to_edges = nn.ModuleList(nn.Linear(hidden, 2 * width, bias=False) for _ in range(2))
        self.parts = (2 * hidden, hidden, hidden)
        self.from_state = nn.Linear(hidden, sum(self.parts), bias=False)
        self.score = nn.Linear(hidden, config.heads, bias=False)
        self.edge_parts = nn.ModuleList(nn.Linear(hidden, 2 * width) for _ in range(config.layers))
        self.deeper = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(config.layers - 1))
        self.update_pool = nn.Linear(hidden, 3 * hidden, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.update_input = nn.Linear(width, 3 * hidden, bias=False)
        self.update_node = nn.Linear(hidden, 3 * hidden, bias=False)
        self.update_time = nn.Linear(4, 3 * hidden, bias=False)
        self.decoder = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, config.knots // config.steps)

    def featuriser(self) -> Featuriser:
        return self.features.reads(super().featuriser())

    def _fit_features(self, batch: CurveBatch) -> None:
        self.features.fit(batch)

    def _step_times(self, dtype: torch.dtype) -> Tensor:
        """What each step is told of time, ``(steps, 4)``: place on the knot axis and in h; length in u and ln h."""
        time_h = self.grid.knot_time_h
        per_step = len(time_h) // self.steps
        end = time_h[per_step - 1 :: per_step]
        start = torch.cat((time_h.new_zeros(1), end[:-1]))
        place = torch.arange(1, self.steps + 1, dtype=time_h.dtype, device=time_h.device) / self.steps
        length_u = torch.log1p(end / time_h[0]) - torch.log1p(start / time_h[0])
        return torch.stack((place, end / time_h[-1], length_u, ((end - start) / time_h[-1]).log()), -1).to(dtype)

    def _standardised_knots(self, batch: CurveBatch, responses: Responses | None = None) -> Tensor:
        dtype = self.head.weight.dtype
        graph = message_graph(batch.system.topology, batch.time_h.device)
        nodes, edges = self.encoder(self.features(batch, responses).to(dtype), graph)
        edge_parts = [edge(edges) for edge in self.edge_parts]  # (E, R, 2 H)
        constant = self.update_node(nodes)  # (N, R, 3 H)
        state = torch.tanh(self.start(nodes))
        states = []
        for from_time in self.update_time(self._step_times(dtype)).unbind(0):
            state = self._step(state, constant + from_time, edge_parts, graph)
            states.append(state)
        every = torch.stack(states)  # (steps, N, R, H)
        with torch.autocast(every.device.type, enabled=False):
            knots = self.head(functional.silu(self.decoder(self.dropout(every.to(dtype)))))  # (steps, N, R, S)
        return knots[:, graph.organ_node].permute(2, 1, 0, 3).flatten(2)

    def _step(self, state: Tensor, constant: Tensor, edge_parts: list[Tensor], graph: MessageGraph) -> Tensor:
        """One GRU update per organ from messages and attention (Cho K et al. EMNLP 2014)."""
        gates, memory, value = self.from_state(state).split(self.parts, -1)
        source, target = (to_edge(state) for to_edge in self.to_edges)
        heard = messages(source, target, edge_parts[0], graph)
        for layer, edge_part in zip(self.deeper, edge_parts[1:], strict=True):
            heard = messages(source + layer(heard), target, edge_part, graph)
        pooled = self.update_pool(self.dropout(attention(self.score(state), value)))
        from_input = self.update_input(self.dropout(heard)) + (constant + pooled)
        input_gates, input_new = from_input.split(self.parts[:2], -1)
        reset, update = torch.sigmoid(input_gates + gates).chunk(2, -1)
        new = torch.tanh(torch.addcmul(input_new, reset, memory))
        return torch.lerp(new, state.to(new.dtype), update)

"""Graph features: single logs of volume, flow, Kp, clearance, fup and B:P, standardised by the training split.

No ratio and no textbook constant enters here: what flow divided by volume means is for a model to learn. What a curve
does not give (Kp, clearances and PS of a drug known by its descriptors) reads 0.

Axis legend: B batch, N nodes, E flow edges, M eliminations, X exchanges, P saturable pathways, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from perfuse.pk.system import DoseEvents, SystemParameters
from perfuse.pk.topology import Topology

N_IDENTITIES = 15
"""The 14 reported organs and arterial blood."""
MIN_CLEARANCE_L_H = 1e-6
"""Floor for the logarithm of a clearance of zero."""
MIN_PS_L_H = 1e-6
"""Floor for the logarithm of a permeability-surface product of zero."""


@dataclass(frozen=True)
class GraphIndex:
    """A topology's static indices as tensors.

    Attributes:
        source, target: Nodes of each flow edge, ``(E,)``.
        way_source, way_target: Nodes of each way, ``(W,)``, W = E + 2 X: flow edges come first, then exchanges into
            tissue, then out of it.
        way_flags: ``(W, 2)``: whether a way is an exchange into tissue, and out of it.
        ends: ``(W, 2 N)``: adds what source and target nodes send to each way.
        inflow: ``(N, W)``: sums ways into their target nodes.
        inflow_share: ``(N, 1, 1)``: 1 over the number of ways into each node (at least 1).
        identity: ``(N,)`` node identities (organ index; 14 is arterial blood).
        is_blood: ``(N,)`` bool.
        elimination_source: ``(M,)``.
        from_blood, from_tissue: Flow edges by what they drain, in edge order.
        edge_order: ``(E,)`` puts values listed as (from_blood, from_tissue) in edge order.
        vascular, tissue: Ends of each exchange, ``(X,)``.
    """

    source: Tensor
    target: Tensor
    way_source: Tensor
    way_target: Tensor
    way_flags: Tensor
    ends: Tensor
    inflow: Tensor
    inflow_share: Tensor
    identity: Tensor
    is_blood: Tensor
    elimination_source: Tensor
    from_blood: Tensor
    from_tissue: Tensor
    edge_order: Tensor
    vascular: Tensor
    tissue: Tensor


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # the first caller may be in inference mode; a later one may train
def _graph_index(topology: Topology, device: str) -> GraphIndex:
    edge_index = torch.as_tensor(topology.edge_index)
    both_ways = torch.tensor([(x.vascular, x.tissue) for x in topology.exchanges], dtype=torch.long).view(-1, 2).T
    ways = torch.cat((edge_index, both_ways, both_ways.flip(0)), 1)
    source_of, target_of = (functional.one_hot(end, topology.n_nodes).float() for end in ways)
    x = len(topology.exchanges)
    kind = torch.tensor([0] * topology.n_edges + [1] * x + [2] * x)
    is_blood = torch.as_tensor(topology.is_blood)
    drains_blood = is_blood[edge_index[0]]
    from_blood, from_tissue = drains_blood.nonzero()[:, 0], (~drains_blood).nonzero()[:, 0]
    return GraphIndex(
        source=edge_index[0].to(device),
        target=edge_index[1].to(device),
        way_source=ways[0].to(device),
        way_target=ways[1].to(device),
        way_flags=functional.one_hot(kind, 3)[:, 1:].float().to(device),
        ends=torch.cat((source_of, target_of), 1).to(device),
        inflow=target_of.T.contiguous().to(device),
        inflow_share=(1 / target_of.sum(0).clamp_min(1))[:, None, None].to(device),
        identity=torch.as_tensor(topology.node_identity).to(device),
        is_blood=is_blood.to(device),
        elimination_source=torch.tensor([e.source for e in topology.eliminations]).to(device),
        from_blood=from_blood.to(device),
        from_tissue=from_tissue.to(device),
        edge_order=torch.cat((from_blood, from_tissue)).argsort().to(device),
        vascular=torch.tensor([x.vascular for x in topology.exchanges], dtype=torch.long).to(device),
        tissue=torch.tensor([x.tissue for x in topology.exchanges], dtype=torch.long).to(device),
    )


class _AtWays(torch.autograd.Function):
    """source[way] + target[way] + speed x weight: copies of rows, and sums of rows on the way back."""

    @staticmethod
    def forward(
        ctx: Any, by_source: Tensor, by_target: Tensor, speed: Tensor, weight: Tensor, source: Tensor, target: Tensor
    ) -> Tensor:
        ctx.save_for_backward(speed, weight, source, target)
        ctx.n = len(by_source)
        out = by_source.index_select(0, source).add_(by_target.index_select(0, target))
        out.flatten(0, 1).addmm_(speed.reshape(-1, 1), weight[None])  # faster than a broadcast product
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        speed, weight, source, target = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_source, to_target = (
            grad.new_zeros(ctx.n, *grad.shape[1:]).index_add_(0, end, grad) for end in (source, target)
        )
        of_speed = grad @ weight if ctx.needs_input_grad[2] else None
        of_weight = speed.flatten() @ grad.flatten(0, 1)
        return to_source, to_target, of_speed, of_weight, None, None


class _MeanInflow(torch.autograd.Function):
    """Mean of rows by target."""

    @staticmethod
    def forward(ctx: Any, message: Tensor, target: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(target, share)
        return message.new_zeros(len(share), *message.shape[1:]).index_add_(0, target, message).mul_(share)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        target, share = ctx.saved_tensors
        return (grads[0] * share).index_select(0, target), None, None


def _copies_rows(x: Tensor) -> bool:
    """Whether rows are copied and added one by one: fastest on a CPU; elsewhere products with constant matrices are."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_exporting()


def at_ways(by_source: Tensor, by_target: Tensor, speed: Tensor, weight: Tensor, graph: GraphIndex) -> Tensor:
    """What both ends send to each way, and its speed times a weight, ``(W, B, H)``.

    Args:
        by_source, by_target: What each node sends as a source and as a target, ``(N, B, H)``.
        speed: ``(W, B)``.
        weight: ``(H,)``.
    """
    if _copies_rows(by_source):
        return _AtWays.apply(by_source, by_target, speed, weight, graph.way_source, graph.way_target)
    both = torch.cat((by_source, by_target)).flatten(1)
    sent = (graph.ends.to(both.dtype) @ both).view(len(graph.ends), *by_source.shape[1:])
    return sent + (speed[..., None] * weight).to(sent.dtype)


def mean_inflow(message: Tensor, graph: GraphIndex) -> Tensor:
    """Mean of the messages into each node, ``(N, B, H)`` from ``(W, B, H)``; 0 where none arrives."""
    if _copies_rows(message):
        return _MeanInflow.apply(message, graph.way_target, graph.inflow_share.to(message.dtype))
    mean = (graph.inflow * graph.inflow_share[:, 0]).to(message.dtype)
    return (mean @ message.flatten(1)).view(len(mean), *message.shape[1:])


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
        ps: ``(B, X)``.
        vmax, km_u: ``(B, P)``; 0 where there is no pathway.
        dose: ``(B,)``, the curve's first, so that nothing depends on what comes later.
    """

    volume: Tensor
    kp: Tensor
    flow: Tensor
    elimination: Tensor
    fup: Tensor
    bp_ratio: Tensor
    ps: Tensor
    vmax: Tensor
    km_u: Tensor
    dose: Tensor

    def to(self, dtype: torch.dtype) -> LogFeatures:
        """The same in a network's own precision."""
        return LogFeatures(**{kind: value.to(dtype) for kind, value in vars(self).items()})

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

    def on_exchanges(self, graph: GraphIndex) -> Tensor:
        """``(B, X, 6)``: PS; volumes of the vascular and the tissue space; Kp of the tissue; fup; B:P."""
        vascular, tissue = graph.vascular, graph.tissue
        fup, bp = (x[:, None].expand(-1, len(tissue)) for x in (self.fup, self.bp_ratio))
        ends = (self.volume[:, vascular], self.volume[:, tissue], self.kp[:, tissue])
        return torch.stack((self.ps, *ends, fup, bp), -1)

    def on_pathways(self, node: int) -> Tensor:
        """``(B, P, 7)``: Vmax; Km,u; volume and Kp of the node where they act; fup; B:P; dose."""
        shared = (self.volume[:, node], self.kp[:, node], self.fup, self.bp_ratio, self.dose)
        return torch.stack((self.vmax, self.km_u, *(x[:, None].expand_as(self.vmax) for x in shared)), -1)

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
EXCHANGE_FEATURES = ("ps", "volume_vascular", "volume_tissue", "kp_tissue", "fup", "bp_ratio")
"""Columns of ``LogFeatures.on_exchanges``."""
PATHWAY_FEATURES = ("vmax", "km_u", "volume", "kp", "fup", "bp_ratio", "dose")
"""Columns of ``LogFeatures.on_pathways``."""


def log_features(
    system: SystemParameters, doses: DoseEvents | None = None, *, hide_derived: bool = False
) -> LogFeatures:
    """Natural logs; a clearance of zero is floored at ``MIN_CLEARANCE_L_H``.

    Args:
        system: Physical parameters.
        doses: Dose events, for ``dose``; None reads 0.
        hide_derived: Whether what follows from descriptors (Kp, clearances, PS) reads 0 although it may be given.
    """
    kp, elimination, ps = system.kp, system.elimination_l_h.clamp_min(MIN_CLEARANCE_L_H), system.ps_l_h
    if hide_derived:
        kp, elimination, ps = (torch.ones_like(x) for x in (kp, elimination, ps))
    has_pathway = system.vmax_mg_h > 0
    return LogFeatures(
        volume=system.volume_l.log(),
        kp=kp.log(),
        flow=system.flow_l_h.log(),
        elimination=elimination.log(),
        fup=system.fup.log(),
        bp_ratio=system.bp_ratio.log(),
        ps=ps.to(system.volume_l.dtype).clamp_min(MIN_PS_L_H).log(),
        vmax=torch.where(has_pathway, system.vmax_mg_h, 1.0).log(),
        km_u=torch.where(has_pathway, system.km_u_mg_l, 1.0).log(),
        dose=torch.zeros_like(system.fup) if doses is None else _first_dose_mg(doses).to(system.fup.dtype).log(),
    )


def _first_dose_mg(doses: DoseEvents) -> Tensor:
    """Amount of each curve's first dose, mg, ``(B,)``."""
    start = torch.where(doses.amount_mg > 0, doses.start_h, torch.inf)
    return doses.amount_mg.gather(1, start.argmin(1, keepdim=True))[:, 0]


def raw_features(logs: LogFeatures) -> LogFeatures:
    """The quantities themselves in place of their logs: what the ablation "raw instead of log features" reads."""
    return LogFeatures(**{kind: value.exp() for kind, value in vars(logs).items()})


class LogStandardiser(nn.Module):
    """ln x minus its mean, over its standard deviation, one pair per kind of quantity (per column for clearances).

    A quantity that never varies in the training split gets an infinite standard deviation: it reads 0 always, since
    nothing could be learned about it.
    """

    KINDS = ("volume", "kp", "flow", "fup", "bp_ratio", "ps", "vmax", "km_u", "dose")

    def __init__(self, n_eliminations: int) -> None:
        super().__init__()
        for kind in self.KINDS:
            self.register_buffer(f"{kind}_mean", torch.zeros((), dtype=torch.float64))
            self.register_buffer(f"{kind}_sd", torch.ones((), dtype=torch.float64))
        self.register_buffer("elimination_mean", torch.zeros(n_eliminations, dtype=torch.float64))
        self.register_buffer("elimination_sd", torch.ones(n_eliminations, dtype=torch.float64))

    def fit(self, logs: LogFeatures, graph: GraphIndex) -> None:
        """Means and standard deviations of these curves; Kp over tissues only (blood is 1 by definition)."""
        tissue = ~graph.is_blood
        for kind, value in vars(logs).items():
            if value.numel() == 0:  # no such thing here
                continue
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

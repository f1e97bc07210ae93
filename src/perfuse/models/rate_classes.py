"""One exponent per feature and class of rate constant: the log-linear part of ``flux``, all of ``loglinear-rates``.

    ln k_w = a_class(w) + sum_f b_class(w),f x_f

Classes: flow edges out of blood, flow edges out of tissue, each elimination, exchanges into and out of tissue, and a
saturable pathway's rate constant and half amount (or its one fixed rate). Edges out of tissue are written relative to
the blood class seen from the other end, and exchanges out relative to those in, because data fix the ratio of an
organ's two rates far better than their speed: a coordinate for each lets an optimiser move along both.

Axis legend: B batch, E flow edges, M eliminations, X exchanges, W = E + M + 2 X rate constants, P saturable pathways,
S logs per pathway, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perfuse.models.features import (
    ELIMINATION_FEATURES,
    EXCHANGE_FEATURES,
    FLOW_FEATURES,
    PATHWAY_FEATURES,
    GraphIndex,
    LogFeatures,
    Whitener,
)
from perfuse.pk.topology import Topology

_START_LOG_FLOW, _START_LOG_ELIMINATION = 2.0, 0.0
"""ln(1/h): every flow starts at 7 per h and every elimination slower, so that no organ starts without drug. From here
Gauss-Newton finds its way; from slower rates it more often ends beside it."""
TYPICAL_SHARE = 0.05
"""Of the dose, in the node where saturable pathways act: about where half amounts start, so that data can move them."""
_OTHER_END = [0, 2, 1, 4, 3, 5, 6]
"""``FLOW_FEATURES`` with source and target exchanged."""


@dataclass(frozen=True)
class LogRates:
    """Logs of everything that decides a curve, float64.

    Attributes:
        linear: ln rate constants, 1/h, ``(B, W)``, in the topology's order.
        pathways: ``(B, P, S)``: S = 2: ln rate constant far below saturation, 1/h, and ln half amount, mg; S = 1: ln of
            a fixed rate constant. Rows without a pathway mean nothing.
        arrivals: ln of what arrives over flow edges, 1/h, ``(B, E)``, where that need not be what leaves; else None.
    """

    linear: Tensor
    pathways: Tensor
    arrivals: Tensor | None = None

    def flat(self) -> Tensor:
        """All of them, ``(B, R)``."""
        parts = [self.linear, self.pathways.flatten(1)]
        return torch.cat(parts + ([] if self.arrivals is None else [self.arrivals]), 1)

    def like(self, flat: Tensor) -> LogRates:
        """The same parts out of another ``flat``."""
        w, p = self.linear.shape[1], self.pathways[0].numel()
        linear, pathways, arrivals = flat[:, :w], flat[:, w : w + p], flat[:, w + p :]
        return LogRates(linear, pathways.unflatten(1, self.pathways.shape[1:]),
                        None if self.arrivals is None else arrivals)  # fmt: skip


@dataclass(frozen=True)
class _Class:
    name: str
    features: tuple[str, ...]
    start: float = 0.0


class RateClasses(nn.Module):
    """Weights of whitened features, one row of them per class; all start at zero.

    Args:
        topology: Says which classes there are.
        state_dependent: Whether a saturable pathway has a rate constant and a half amount, or one fixed rate.
        conserve: Whether what arrives over a flow edge is what left; if not, arrivals have classes of their own,
            which start from the departures.
        has_prior: Whether rates start from a prior, so that eliminations need not start slower than flows.
    """

    def __init__(self, topology: Topology, *, state_dependent: bool, conserve: bool, has_prior: bool) -> None:
        super().__init__()
        fast, slow = (0.0, 0.0) if has_prior else (_START_LOG_FLOW, _START_LOG_ELIMINATION)
        # Relative to the blood class, edges out of tissue start alike.
        classes = [_Class("flow_from_blood", FLOW_FEATURES, fast), _Class("flow_from_tissue", FLOW_FEATURES)]
        classes += [_Class(name, ELIMINATION_FEATURES, slow) for name in topology.elimination_names]
        if topology.exchanges:
            classes += [_Class("exchange_in", EXCHANGE_FEATURES, fast), _Class("exchange_out", EXCHANGE_FEATURES)]
        self.n_pathway_logs = 0
        if topology.saturable_node is not None:
            self.n_pathway_logs = 2 if state_dependent else 1
            kinds = ("saturable_rate", "saturable_half_amount") if state_dependent else ("saturable_fixed",)
            # An edge whose rate depends on the amount must not depend on the dose as well.
            columns = PATHWAY_FEATURES[:-1] if state_dependent else PATHWAY_FEATURES
            classes += [_Class(kind, columns, slow if kind != "saturable_half_amount" else 0.0) for kind in kinds]
        if not conserve:
            classes += [_Class(f"arrival_{c.name}", FLOW_FEATURES) for c in classes[:2]]
        self.conserve, self.has_prior = conserve, has_prior
        self.n_eliminations, self.n_exchanges = topology.n_eliminations, topology.n_exchanges
        self.saturable_node = topology.saturable_node
        self.classes = tuple(classes)
        self.whiten = nn.ModuleList(Whitener(len(c.features)) for c in classes)
        self.weight = nn.ParameterList(nn.Parameter(torch.zeros(len(c.features), dtype=torch.float64)) for c in classes)
        self.intercept = nn.Parameter(torch.tensor([c.start for c in classes], dtype=torch.float64))

    def fit(self, features: LogFeatures, graph: GraphIndex, mean_ln_dose: float) -> None:
        """Whitening from the training curves; half amounts start at a typical amount."""
        for whiten, x in zip(self.whiten, self._by_class(features, graph), strict=True):
            assert isinstance(whiten, Whitener)
            if x.numel():
                whiten.fit(x)
        for i, c in enumerate(self.classes):
            if c.name == "saturable_half_amount" and not self.has_prior:
                with torch.no_grad():
                    self.intercept[i] = mean_ln_dose + math.log(TYPICAL_SHARE)

    def forward(self, features: LogFeatures, graph: GraphIndex) -> LogRates:
        """ln rate constants of a batch."""
        x = self._by_class(features, graph)
        parts = [self._evaluate(i, x[i]) for i in range(len(self.classes))]
        parts[1] = parts[1] + self._evaluate(0, x[1][..., _OTHER_END])
        m = 2 + self.n_eliminations
        exchanges = []
        if self.n_exchanges:
            exchanges = [parts[m], parts[m] + parts[m + 1]]
            m += 2
        flow = torch.cat(parts[:2], -1)[:, graph.edge_order]
        linear = torch.cat((flow, *parts[2 : 2 + self.n_eliminations], *exchanges), -1)
        pathways = parts[m : m + self.n_pathway_logs]
        arrivals = None
        if not self.conserve:
            arrivals = flow + torch.cat(parts[-2:], -1)[:, graph.edge_order]
        return LogRates(
            linear, torch.stack(pathways, -1) if pathways else linear.new_zeros(linear.shape[0], 0, 1), arrivals
        )

    def _by_class(self, logs: LogFeatures, graph: GraphIndex) -> list[Tensor]:
        """Features of each class, ``(B, members of the class, F)``."""
        flow, elimination = logs.on_flow_edges(graph), logs.on_eliminations(graph)
        flows = [flow[:, graph.from_blood], flow[:, graph.from_tissue]]
        out = flows + [elimination[:, m : m + 1] for m in range(self.n_eliminations)]
        if self.n_exchanges:
            out += [logs.on_exchanges(graph)] * 2
        if self.saturable_node is not None:
            pathway = logs.on_pathways(self.saturable_node)
            out += [pathway[..., :-1]] * 2 if self.n_pathway_logs == 2 else [pathway]
        return out + ([] if self.conserve else flows)

    def _evaluate(self, i: int, x: Tensor) -> Tensor:
        whiten = self.whiten[i]
        assert isinstance(whiten, Whitener)
        return whiten.weighted(x, self.weight[i]) + self.intercept[i]

    def exponents(self) -> dict[str, dict[str, float]]:
        """Fitted exponent of every feature in every class (the textbook's are 1 and -1)."""
        raw = [
            whiten.exponents(weight.detach())  # type: ignore[operator]
            for whiten, weight in zip(self.whiten, self.weight, strict=True)
        ]
        names = [c.name for c in self.classes]
        raw[1] = raw[1] + raw[0][_OTHER_END]
        if self.n_exchanges:
            into = names.index("exchange_in")
            raw[into + 1] = raw[into + 1] + raw[into]
        if not self.conserve:
            raw[-2], raw[-1] = raw[-2] + raw[0], raw[-1] + raw[1]
        return {
            c.name: dict(zip(c.features, values.tolist(), strict=True))
            for c, values in zip(self.classes, raw, strict=True)
        }

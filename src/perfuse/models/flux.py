"""``flux`` and ``loglinear-rates``: messages are fluxes of drug.

A graph network yields non-negative rate constants on flow edges and eliminations; they form a compartmental
generator K whose columns sum to minus the elimination, and curves follow from dA/dt = K A exactly. Mass balance,
positivity, linearity in dose and superposition of doses hold by construction, whatever the weights.

    ln k_e = a_class(e) + sum_f b_class(e),f x_f + r_e(messages)

x_f are single logs (volumes and Kp at both ends, flow or clearance, fup, B:P). ``loglinear-rates`` is
the same without r. With a prior, ln k_e starts from ln(Q/V) ("dimensional") or from the textbook ("mechanistic").

Axis legend: B batch, N nodes, E flow edges, M eliminations, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perfuse.config import FluxConfig, LoglinearRatesConfig
from perfuse.data.batch import CurveBatch, blood_factor
from perfuse.errors import InputError
from perfuse.models.base import CurveModel, ParameterRole
from perfuse.models.features import (
    ELIMINATION_FEATURES,
    FLOW_FEATURES,
    GraphIndex,
    LogFeatures,
    LogStandardiser,
    Whitener,
    graph_index,
    log_features,
)
from perfuse.models.flux_network import FluxNetwork
from perfuse.pk.mechanistic import (
    generator_matrix,
    limit_diverted,
    mechanistic_rates,
    organ_concentrations,
    solve_amounts,
)
from perfuse.pk.system import SystemParameters
from perfuse.pk.topology import Topology

_LOG_RATE_RANGE = (-25.0, 12.0)
"""ln(1/h): from once in 10^10 h to 160,000 per h; keeps an untrained network's generator computable."""
_NETWORK_START = 0.4
_NETWORK_EPS = 1e-3
"""The network acts where data demand it: it starts at zero, moves ten times slower than the exponents, rests for the
first 40 % of a run while they find their place, and then follows only gradients (of ln C squared) above 1e-3.
Without this, on data that exponents alone explain, it takes over part of them (flow 0.6, Kp -0.76 instead of 1, -1)."""

_START_LOG_ELIMINATION = -2.0
_OTHER_END = [0, 2, 1, 4, 3, 5, 6]
"""``FLOW_FEATURES`` with source and target exchanged."""


class LoglinearRates(CurveModel):
    """One exponent per feature and edge class, no network, no messages.

    Classes: flow edges out of blood, flow edges out of tissue, and each elimination. Edges out of tissue are written
    relative to the blood class seen from the other end, because data fix the ratio of an organ's two rates far
    better than their speed: a coordinate for each lets gradient descent move along both.
    """

    models_oral = True

    def __init__(self, config: LoglinearRatesConfig | FluxConfig, topology: Topology) -> None:
        super().__init__(topology)
        if topology.exchanges:
            raise InputError("topology", "has permeability-limited organs, which no network models yet",
                             value=topology.name, allowed="hub, circulation")  # fmt: skip
        widths = [len(FLOW_FEATURES)] * 2 + [len(ELIMINATION_FEATURES)] * topology.n_eliminations
        self.class_names = ("flow_from_blood", "flow_from_tissue", *topology.elimination_names)
        self.whiten = nn.ModuleList(Whitener(width) for width in widths)
        self.weight = nn.ParameterList(nn.Parameter(torch.zeros(width, dtype=torch.float64)) for width in widths)
        # Every flow starts at 1 per h and every elimination slower, so that no organ starts without drug.
        slow = _START_LOG_ELIMINATION if getattr(config, "prior", "none") == "none" else 0.0
        start = [0.0] * 2 + [slow] * topology.n_eliminations
        self.intercept = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def parameter_roles(self) -> tuple[ParameterRole, ...]:
        """Exponents first and fast; whatever else there is rests, then moves only where gradients are not noise."""
        return (
            ParameterRole(("weight.", "intercept"), lr_scale=3.0),
            ParameterRole(("",), eps=_NETWORK_EPS, start_fraction=_NETWORK_START),
        )

    def _fit(self, batch: CurveBatch) -> None:
        graph = graph_index(batch.system.topology, batch.system.kp.device)
        for whiten, x in zip(self.whiten, self._by_class(log_features(batch.system), graph), strict=True):
            assert isinstance(whiten, Whitener)
            whiten.fit(x)

    @staticmethod
    def _by_class(logs: LogFeatures, graph: GraphIndex) -> list[Tensor]:
        """Raw features of each class, ``(B, edges of the class, F)``."""
        flow, elimination = logs.on_flow_edges(graph), logs.on_eliminations(graph)
        by_origin = [flow[:, graph.from_blood], flow[:, graph.from_tissue]]
        return by_origin + [elimination[:, m : m + 1] for m in range(elimination.shape[1])]

    def _loglinear(self, logs: LogFeatures, graph: GraphIndex) -> Tensor:
        """``(B, E + M)`` ln rate constants."""
        by_class = self._by_class(logs, graph)
        parts = [self._evaluate(i, x) for i, x in enumerate(by_class)]
        parts[1] = parts[1] + self._evaluate(0, by_class[1][..., _OTHER_END])
        return torch.cat(parts, -1)[:, graph.edge_order]

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
        raw[1] = raw[1] + raw[0][_OTHER_END]
        names = [FLOW_FEATURES] * 2 + [ELIMINATION_FEATURES] * (len(raw) - 2)
        return {
            kind: dict(zip(columns, values.tolist(), strict=True))
            for kind, columns, values in zip(self.class_names, names, raw, strict=True)
        }

    def _log_rates(self, system: SystemParameters, autocast: bool) -> Tensor:
        return self._loglinear(log_features(system), graph_index(system.topology, system.kp.device))

    def rates(self, system: SystemParameters) -> Tensor:
        """Rate constants, 1/h, ``(B, E + M)``, float64; flow edges first, then eliminations."""
        device = system.kp.device.type
        autocast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False):
            log_rates = self._log_rates(system, autocast).clamp(*_LOG_RATE_RANGE)
            return limit_diverted(system.topology, log_rates.exp())

    def amounts(self, batch: CurveBatch, with_sinks: bool = False) -> Tensor:
        """Amounts in every node, mg, ``(B, N, T)``; with sinks also the drug eliminated on each way."""
        topology = batch.system.topology
        generator = generator_matrix(topology, self.rates(batch.system), with_sinks)
        return solve_amounts(generator, topology, batch.doses, batch.time_h)

    def _predict(self, batch: CurveBatch) -> Tensor:
        return organ_concentrations(batch.system, self.amounts(batch), blood_factor(batch))


class Flux(LoglinearRates):
    """Message passing over blood flow whose outputs are rate constants."""

    def __init__(self, config: FluxConfig, topology: Topology) -> None:
        super().__init__(config, topology)
        self.prior = config.prior
        self.standardise = LogStandardiser(topology.n_eliminations)
        self.network = FluxNetwork(config, topology)

    def _fit(self, batch: CurveBatch) -> None:
        super()._fit(batch)
        self.standardise.fit(batch.system)

    def _log_rates(self, system: SystemParameters, autocast: bool) -> Tensor:
        graph = graph_index(system.topology, system.kp.device)
        logs = log_features(system)
        z = self.standardise(logs, graph).float()
        log_rates = self._loglinear(logs, graph) + self.network(z, graph, autocast)
        if self.prior == "mechanistic":
            return log_rates + mechanistic_rates(system).clamp_min(1e-12).log()
        if self.prior == "dimensional":
            flow = logs.flow - logs.volume[:, graph.source]
            return log_rates + torch.cat((flow, logs.elimination - logs.volume[:, graph.elimination_source]), -1)
        return log_rates

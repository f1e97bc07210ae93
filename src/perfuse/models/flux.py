"""``flux`` and ``loglinear-rates``: messages are fluxes of drug.

A graph network yields non-negative rate constants on flow edges, eliminations, exchanges and saturable pathways; they
form a compartmental system whose columns sum to minus the elimination, and curves follow from it exactly. Mass balance,
positivity, and (without saturable pathways) linearity in dose and superposition hold by construction, whatever the
weights.

    ln k_w = a_class(w) + sum_f b_class(w),f x_f + sum_l sign(w, l) D_l(drug) + r_w(messages)

x_f are single logs (volumes and Kp at both ends, flow or clearance, fup, B:P). D_l are latent ln Kp, ln PS and
ln clearances, used where those are not given (``drug_latents``). ``loglinear-rates`` is the same without r and with D
linear in the descriptors. With a prior, ln k_w starts from ln(Q/V) ("dimensional") or the textbook ("mechanistic").

Axis legend: B batch, N nodes, E flow edges, M eliminations, X exchanges, W = E + M + 2 X rate constants, P pathways.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from perfuse.config import FluxConfig, LoglinearRatesConfig
from perfuse.data.batch import CurveBatch, blood_factor
from perfuse.errors import InputError
from perfuse.models import featuriser as reads
from perfuse.models.base import CurveModel, ParameterRole
from perfuse.models.compartments import compartment_amounts
from perfuse.models.descriptor_features import has_descriptors
from perfuse.models.drug_latents import DrugMessages, LinearLatents, latent_signs
from perfuse.models.features import GraphIndex, LogFeatures, LogStandardiser, graph_index, log_features, raw_features
from perfuse.models.flux_network import FluxNetwork
from perfuse.models.rate_classes import TYPICAL_SHARE, LogRates, RateClasses
from perfuse.pk.mechanistic import half_saturation_mg, mechanistic_rates, organ_concentrations
from perfuse.pk.system import SystemParameters
from perfuse.pk.topology import Topology

_NETWORK_START = 0.4
_CALM_EPS = 1e-3
"""The network acts where data demand it: it starts at zero, moves slowly beside the exponents, waits until they have
found their place (by Gauss-Newton, or for the first 40 % of a run), and then follows only gradients (of ln C
squared) above 1e-3. So do the exponents after Gauss-Newton. Without this, on data that exponents alone explain, the
network takes over part of them (flow 0.6, Kp -0.76 instead of 1, -1)."""

_CLEARANCE_SHARE = 0.01
"""Of the greatest blood flow: where a prior starts an unknown clearance, in a body of any size."""
_DRUG_DECAY = 300.0
"""Times the weight decay: messages from the drug have 40,000 weights for some thousand drugs. On T7 a decay of 0.03
ended at a validation loss of 0.019 where 1e-4 and 0.3 ended at 0.025."""


class LoglinearRates(CurveModel):
    """One exponent per feature and class of rate constant, no network, no messages.

    Attributes:
        gauss_newton: Whether exponents are to be fitted by Gauss-Newton before the first step of training.
    """

    models_oral = True
    models_saturable = True
    models_descriptors = True
    reads_logs = True
    reads_descriptors: Tensor
    trained_on_saturable: Tensor

    def __init__(self, config: LoglinearRatesConfig | FluxConfig, topology: Topology) -> None:
        super().__init__(topology)
        self.gauss_newton = config.start == "gauss-newton"
        self.has_prior = getattr(config, "prior", "none") != "none"
        self.register_buffer("reads_descriptors", torch.zeros((), dtype=torch.bool))
        self.register_buffer("trained_on_saturable", torch.zeros((), dtype=torch.bool))
        self.classes = RateClasses(
            topology, state_dependent=config.state_dependent, conserve=getattr(config, "conserve", True),
            has_prior=self.has_prior,
        )  # fmt: skip
        self.latents = LinearLatents(topology)
        self._latent_names = reads.latents(topology)

    def featuriser(self) -> reads.Featuriser:
        transform: reads.Transform = "ln" if self.reads_logs else "none"
        rates = {f"rate {c.name}": reads.columns(c.features, transform=transform) for c in self.classes.classes}
        parts = {**rates, "descriptors": reads.descriptors(), "latents": self._latent_names}
        return super().featuriser().with_parts(parts, {**reads.GRAPH_CONSTANTS, **reads.DESCRIPTOR_CONSTANTS})

    def parameter_roles(self) -> tuple[ParameterRole, ...]:
        """Exponents first and fast; whatever else there is waits, then moves only where gradients are not noise."""
        exponents = ("classes.", "latents.")
        drug = ParameterRole(("drug_messages.",), lr_scale=0.3, decay_scale=_DRUG_DECAY)
        if self.gauss_newton:
            return (ParameterRole(exponents, lr_scale=0.3, eps=_CALM_EPS), drug, ParameterRole(("",), eps=_CALM_EPS))
        calm = ParameterRole(("",), eps=_CALM_EPS, start_fraction=_NETWORK_START)
        return (ParameterRole(exponents, lr_scale=3.0), drug, calm)

    def linear_parameters(self) -> list[nn.Parameter]:
        """The parameters in which ``log_rates`` is linear: those that Gauss-Newton fits."""
        return [*self.classes.parameters(), *(self.latents.parameters() if self.reads_descriptors else ())]

    @torch.no_grad()
    def design(self, batch: CurveBatch) -> Tensor:
        """d ln k / d theta, ``(B, R, P)``, for theta the ``linear_parameters`` in turn: the same whatever they are."""
        features, graph = self._features(batch)
        origin = self.classes(features, graph).flat()
        columns = []
        for parameter in self.classes.parameters():
            flat = parameter.view(-1)
            for i in range(len(flat)):
                before = flat[i].clone()
                flat[i] = before + 1
                columns.append(self.classes(features, graph).flat() - origin)
                flat[i] = before
        design = torch.stack(columns, -1)
        if not self.reads_descriptors:
            return design
        topology = batch.system.topology
        whitened = self.latents.whitened(batch)
        whitened = torch.cat((whitened, torch.ones_like(whitened[:, :1])), 1)
        signs = torch.zeros(origin.shape[1], self.latents.bias.numel(), dtype=origin.dtype, device=origin.device)
        signs[: topology.n_rates] = latent_signs(topology, origin.device)
        if not self.classes.conserve:
            signs[-topology.n_edges :] = signs[: topology.n_edges]
        of_latents = torch.einsum("rl,bf->brlf", signs, whitened)
        return torch.cat((design, of_latents[..., :-1].flatten(2), of_latents[..., -1]), -1)

    def _fit(self, batch: CurveBatch) -> None:
        self.reads_descriptors.fill_(has_descriptors(batch))
        self.trained_on_saturable.fill_(not batch.system.is_linear)
        features, graph = self._features(batch)
        self.classes.fit(features, graph, float(self._logs(batch).dose.mean()))
        if self.reads_descriptors:
            self.latents.fit(batch)

    def _logs(self, batch: CurveBatch) -> LogFeatures:
        """Logs of what is given; what descriptors stand for reads 0.

        Raises:
            InputError: for curves that lack what the training curves had (Kp, clearances, PS; or descriptors).
        """
        if self.reads_descriptors and bool(torch.isnan(batch.descriptors[:, :2]).any()):
            raise InputError("logp and mw_g_mol", "are not given", hint="the model was trained on descriptors")
        if not self.reads_descriptors and bool(torch.isnan(batch.system.ps_l_h).any()) and not has_descriptors(batch):
            raise InputError("ps_l_h", "is not given", hint="permeability-limited organs need it beside Kp")
        if not self.reads_descriptors and has_descriptors(batch):
            raise InputError(
                "kp and clearances", "are not given", hint="the model was trained on curves that give them"
            )
        return log_features(batch.system, batch.doses, hide_derived=bool(self.reads_descriptors))

    def _features(self, batch: CurveBatch) -> tuple[LogFeatures, GraphIndex]:
        return self._logs(batch), graph_index(batch.system.topology, batch.time_h.device)

    def exponents(self) -> dict[str, dict[str, float]]:
        """Fitted exponent of every feature in every class (the textbook's are 1 and -1)."""
        return self.classes.exponents()

    def _with_latents(self, rates: LogRates, latents: Tensor, topology: Topology) -> LogRates:
        shift = latents @ latent_signs(topology, latents.device).T
        arrivals = None if rates.arrivals is None else rates.arrivals + shift[:, : topology.n_edges]
        return LogRates(rates.linear + shift, rates.pathways, arrivals)

    def _log_rates(self, batch: CurveBatch, autocast: bool) -> LogRates:
        rates = self.classes(*self._features(batch))
        if self.reads_descriptors:
            return self._with_latents(rates, self.latents(batch), batch.system.topology)
        return rates

    def log_rates(self, batch: CurveBatch) -> LogRates:
        """ln rate constants of each curve, before they are limited to a computable range."""
        device = batch.time_h.device.type
        autocast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False):
            return self._log_rates(batch, autocast)

    def amounts(self, batch: CurveBatch, with_sinks: bool = False) -> Tensor:
        """Amounts in every node, mg, ``(B, N, T)``; with sinks also the drug eliminated on each way."""
        rates = self.log_rates(batch)
        with torch.autocast(batch.time_h.device.type, enabled=False):
            return compartment_amounts(rates, batch, with_sinks)

    def concentrations(self, rates: LogRates, batch: CurveBatch, frozen: bool = False) -> Tensor:
        """Concentrations, mg/L, ``(B, O, T)``, in each curve's matrix, that given rates lead to.

        Frozen, saturable pathways run at the rate constant of a typical amount (see ``compartment_amounts``).
        """
        with torch.autocast(batch.time_h.device.type, enabled=False):
            amounts = compartment_amounts(rates, batch, frozen_share=TYPICAL_SHARE if frozen else None)
            return organ_concentrations(batch.system, amounts, blood_factor(batch))

    def _predict(self, batch: CurveBatch) -> Tensor:
        if not (batch.system.is_linear or self.trained_on_saturable or self.has_prior):
            raise InputError("vmax_mg_h", "is not 0, and the model was not trained on saturable drugs",
                             hint="train it on some, or with a prior")  # fmt: skip
        return self.concentrations(self.log_rates(batch), batch)


class Flux(LoglinearRates):
    """Message passing over blood flow, and from the drug to tissues, whose outputs are rate constants."""

    def __init__(self, config: FluxConfig, topology: Topology) -> None:
        super().__init__(config, topology)
        self.prior = config.prior
        self.reads_logs = config.log_features
        self.standardise = LogStandardiser(topology.n_eliminations)
        self.network = FluxNetwork(config, topology)
        self.drug_messages = DrugMessages(topology, config.drug_hidden, config.dropout) if config.messages else None

    def featuriser(self) -> reads.Featuriser:
        out = super().featuriser().with_parts(self.network.columns("ln" if self.reads_logs else "none"), {})
        if self.drug_messages is None:
            return out
        columns, values = reads.composition()
        return out.with_parts({"composition": columns}, values)

    def _features(self, batch: CurveBatch) -> tuple[LogFeatures, GraphIndex]:
        features, graph = super()._features(batch)
        return (features if self.reads_logs else raw_features(features)), graph

    def _fit(self, batch: CurveBatch) -> None:
        super()._fit(batch)
        self.standardise.fit(*self._features(batch))

    def _log_rates(self, batch: CurveBatch, autocast: bool) -> LogRates:
        features, graph = self._features(batch)
        topology = batch.system.topology
        rates = self.classes(features, graph)
        if self.reads_descriptors:
            latents = self.latents(batch)
            if self.drug_messages is not None:
                latents = latents + self.drug_messages(self.latents.whitened(batch))
            rates = self._with_latents(rates, latents, topology)
        added = self.network(self.standardise(features, graph).to(self.network.dtype), graph, autocast)
        linear, pathways = added.linear, added.pathways
        if self.prior != "none":
            linear, pathways = linear + self._prior(batch), pathways + self._pathway_prior(batch.system)
        if rates.pathways.shape[-1] == 1:
            pathways = pathways[..., :1]
        arrivals = None if rates.arrivals is None else rates.arrivals + linear[:, : topology.n_edges]
        return LogRates(rates.linear + linear, rates.pathways + pathways, arrivals)

    def _prior(self, batch: CurveBatch) -> Tensor:
        """What ln rate constants start from, ``(B, W)``."""
        system = batch.system
        if self.reads_descriptors:  # Kp and PS that are not known count as 1, clearances as a share of the flow
            cl = _CLEARANCE_SHARE * system.flow_l_h.amax(1, keepdim=True).expand_as(system.elimination_l_h)
            ones = torch.ones_like(system.ps_l_h, dtype=system.kp.dtype)
            system = replace(system, kp=torch.ones_like(system.kp), elimination_l_h=cl, ps_l_h=ones)
        if self.prior == "mechanistic":
            return mechanistic_rates(system).clamp_min(1e-12).log()
        logs, graph = log_features(system), graph_index(system.topology, system.kp.device)
        volume, x = logs.volume, graph
        parts = (
            logs.flow - volume[:, x.source], logs.elimination - volume[:, x.elimination_source],
            logs.ps - volume[:, x.vascular], logs.ps - volume[:, x.tissue],
        )  # fmt: skip
        return torch.cat(parts, -1)

    def _pathway_prior(self, system: SystemParameters) -> Tensor:
        """What logs of saturable pathways start from, ``(B, P, 2)``."""
        node = system.topology.saturable_node
        if node is None:
            return system.volume_l.new_zeros(system.volume_l.shape[0], 0, 2)
        has_pathway = system.vmax_mg_h > 0
        vmax, km = (torch.where(has_pathway, x, 1.0) for x in (system.vmax_mg_h, system.km_u_mg_l))
        if self.prior == "mechanistic":
            half_mg = torch.where(has_pathway, half_saturation_mg(system), 1.0)
        else:
            half_mg = km * system.volume_l[:, node, None]
        return torch.stack((vmax.log() - half_mg.log(), half_mg.log()), -1)

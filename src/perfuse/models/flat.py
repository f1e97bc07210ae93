"""Flat features: single logs of every input of a curve in one vector, standardised by the training split.

Axis legend: B batch, F features, N nodes, E flow edges, M eliminations, X exchanges.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from perfuse.data.batch import CurveBatch
from perfuse.models import featuriser as reads
from perfuse.models.descriptor_features import N_DESCRIPTOR_FEATURES, descriptor_features
from perfuse.models.features import MIN_CLEARANCE_L_H
from perfuse.models.unit_response import Responses
from perfuse.pk.system import SystemParameters
from perfuse.pk.topology import Topology

_MIN_SD = 1e-6
"""A log that varies less than this in the training split is a constant."""
SATURATION_FEATURES = ("ln_vmax_over_km_u", "ln_dose_over_km_u", "ln_fup_dose_over_vss_km_u")
"""Columns of ``saturation_features``."""


def node_order(topology: Topology) -> np.ndarray:
    """Nodes sorted by what they are (organ, then tissue before vessel), ``(N,)``: the same however they are listed."""
    return np.lexsort((np.asarray(topology.is_blood), topology.node_identity))


def saturation_features(batch: CurveBatch) -> Tensor:
    """``(B, 3)``: what a saturable pathway adds; without one the first is that of no clearance, the others are NaN.

    Amounts enter as ratios alone: multiplying dose, Vmax and Km,u by one number multiplies the curve by it, exactly,
    so three logs are two. The last is the degree of saturation, with Vss = V_blood B:P + sum V_tissue Kp (Oie S,
    Tozer TN. J Pharm Sci 1979;68:1203-1205). Several pathways count as the one that has their joint Vmax and their
    joint Vmax / Km,u: right at concentrations far below and far above all Km,u.
    """
    system = batch.system
    vmax = system.vmax_mg_h.sum(1)
    clint = (system.vmax_mg_h / system.km_u_mg_l).sum(1)  # L/h, unbound, far below Km,u
    absent = vmax <= 0
    km_u = torch.where(absent, torch.nan, vmax / clint)
    blood = torch.as_tensor(system.topology.is_blood, device=vmax.device)
    partition = torch.where(blood, system.bp_ratio[:, None], system.kp)
    vss_l = (system.volume_l * partition).sum(1)
    dose_over_km = batch.doses.amount_mg.sum(1) / km_u  # L
    logs = (clint.clamp_min(MIN_CLEARANCE_L_H), dose_over_km, system.fup * dose_over_km / vss_l)
    return torch.stack(logs, 1).log()


def _column_names(topology: Topology) -> tuple[reads.Feature, ...]:
    """All columns of ``FlatFeatures``, in order."""
    graph = reads.of_graph(topology)
    nodes = [graph.nodes[i] for i in node_order(topology)]
    kinds = (
        ("volume", nodes), ("kp", nodes), ("flow", graph.edges), ("clearance", graph.eliminations),
        ("ps", graph.exchanges),
    )  # fmt: skip
    of_graph = tuple(c for kind, members in kinds for member in members for c in reads.columns([kind], member))
    drug = reads.columns(("fup", "bp_ratio")) + reads.given(SATURATION_FEATURES) + reads.descriptors()
    return of_graph + drug + reads.flags(["is_oral"])


class FlatFeatures(nn.Module):
    """ln of volumes, Kp, flows, clearances, PS, fup and B:P; saturation; descriptors where Kp is not given.

    What is constant or not given in the training split weighs zero, then and later: nothing can be learned from it.
    What one curve lacks reads as the training mean, 0. Nodes are read in ``node_order``, so listing them in another
    order changes nothing. ``columns`` says where each kind of feature stands.
    """

    mean: Tensor
    weight: Tensor

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        widths = {
            "volume": topology.n_nodes,
            "kp": topology.n_nodes,
            "flow": topology.n_edges,
            "elimination": topology.n_eliminations,
            "ps": topology.n_exchanges,
            "drug": 2,  # fup and B:P
            "saturation": len(SATURATION_FEATURES),
            "descriptors": N_DESCRIPTOR_FEATURES,
            "route": 1,  # 1 for a dose by mouth
        }
        ends = np.cumsum(list(widths.values())).tolist()
        self.columns = {name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)}
        self.n_features = ends[-1]
        self._names = _column_names(topology)
        self.register_buffer("mean", torch.zeros(self.n_features - 1, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(self.n_features - 1, dtype=torch.float64))

    def reads(self, graph: reads.Featuriser) -> reads.Featuriser:
        """The record of a model that reads these columns of an organ graph."""
        return graph.with_parts({"flat": self._names}, {**reads.GRAPH_CONSTANTS, **reads.DESCRIPTOR_CONSTANTS})

    @staticmethod
    def logs(batch: CurveBatch) -> Tensor:
        """Unscaled features but the route, ``(B, F - 1)``, float64; NaN where not given."""
        system: SystemParameters = batch.system
        order = node_order(system.topology)
        columns = (
            system.volume_l[:, order],
            system.kp[:, order],
            system.flow_l_h,
            system.elimination_l_h.clamp_min(MIN_CLEARANCE_L_H),
            system.ps_l_h,
            system.fup[:, None],
            system.bp_ratio[:, None],
        )
        logs = torch.cat(columns, 1).to(torch.float64).log()
        # Descriptors of a drug whose Kp and clearances are given would tell nothing more.
        not_given = (torch.isnan(system.kp).any(1) | torch.isnan(system.elimination_l_h).any(1))[:, None]
        if bool(not_given.any()):
            of_molecule = torch.where(not_given, descriptor_features(batch), torch.nan)
        else:
            of_molecule = logs.new_full((len(batch), N_DESCRIPTOR_FEATURES), torch.nan)
        return torch.cat((logs, saturation_features(batch), of_molecule), 1)

    def fit(self, batch: CurveBatch) -> None:
        """Mean and 1 / standard deviation of each feature where given; weight 0 where it is constant."""
        logs = self.logs(batch)
        given = ~torch.isnan(logs)
        count = given.sum(0).clamp_min(1)
        mean = logs.nan_to_num(nan=0.0).sum(0) / count
        sd = (torch.where(given, logs - mean, 0.0).square().sum(0) / count).sqrt()
        self.mean.copy_(mean)
        self.weight.copy_(torch.where(sd > _MIN_SD, 1 / sd, 0.0))

    def forward(self, batch: CurveBatch, responses: Responses | None = None) -> Tensor:
        """Standardised features, float64, ``(R, F)`` of each response; without ``responses`` ``(B, F)``."""
        z = ((self.logs(batch) - self.mean) * self.weight).nan_to_num(nan=0.0)
        if responses is None:
            return torch.cat((z, z.new_zeros(len(batch), 1)), 1)
        return torch.cat((z[responses.curve], responses.is_oral[:, None].to(z.dtype)), 1)

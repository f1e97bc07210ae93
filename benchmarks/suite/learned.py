"""What a flux model learned: how the rate of drug leaving a tissue depends on flow, volume and Kp.

The textbook's rate is Q / (V Kp): exponents 1, -1, -1. A model's are its elasticities, network and messages included:

    e_f = d ln k / d ln f,    k the rate out of a tissue, f its own flow, volume or Kp alone

by central differences, for every tissue by itself, on curves that the model has not seen.

Axis legend: C curves, N nodes, E flow edges, S tissues.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from perfuse.data.batch import CurveBatch
from perfuse.data.table import CurveTable, to_batch
from perfuse.models.base import CurveModel
from perfuse.models.flux import LoglinearRates

TEXTBOOK = {"flow": 1.0, "volume": -1.0, "kp": -1.0}
N_CURVES = 64
_STEP = 0.05
"""Of ln f: far above rounding in float32 layers, far below what curves anything."""


def _scaled(batch: CurveBatch, feature: str, node: int, factor: float) -> CurveBatch:
    """The batch with one node's volume or Kp, or the flow on all edges that leave it, times a factor."""
    system = batch.system
    if feature == "flow":
        edges = [i for i, (source, _) in enumerate(system.topology.edges) if source == node]
        flow = system.flow_l_h.clone()
        flow[:, edges] *= factor
        return replace(batch, system=replace(system, flow_l_h=flow))
    if feature == "volume":
        volume = system.volume_l.clone()
        volume[:, node] *= factor
        return replace(batch, system=replace(system, volume_l=volume))
    kp = system.kp.clone()
    kp[:, node] *= factor
    return replace(batch, system=replace(system, kp=kp))


def tissue_elasticities(model: CurveModel, table: CurveTable) -> dict[str, dict[str, float]]:
    """Mean, least and greatest (over tissues) elasticity of the rate out of a tissue, by feature.

    Features that are not given (Kp in T7) are left out; empty for a model without rates.
    """
    if not isinstance(model, LoglinearRates):
        return {}
    batch = to_batch(table.take(np.arange(min(N_CURVES, len(table)), dtype=np.int64)))
    topology = batch.system.topology
    tissues = [n for n in range(topology.n_nodes) if not topology.is_blood[n]]
    out: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for feature in TEXTBOOK:
            if feature == "kp" and bool(torch.isnan(batch.system.kp).any()):
                continue
            means = []
            for node in tissues:
                edges = [i for i, (source, _) in enumerate(topology.edges) if source == node]
                if not edges:
                    continue
                up, down = (
                    model.log_rates(_scaled(batch, feature, node, float(np.exp(sign * _STEP)))).linear
                    for sign in (1, -1)
                )
                means.append(float(((up - down)[:, edges] / (2 * _STEP)).mean()))
            out[feature] = {"mean": float(np.mean(means)), "least": min(means), "greatest": max(means)}
    return out

"""What tells one drug in one body from another: the features that a distance to the training drugs is taken in.

Logs of volumes, flows, Kp, clearances, fup and B:P; and what only some data have: permeabilities, saturable pathways
(with the dose, which then matters), absorption, descriptors. Whether such a quantity is given is a feature of its own.

Axis legend: C curves, F features.
"""

from __future__ import annotations

import numpy as np

from perfuse.data.batch import DESCRIPTORS
from perfuse.data.table import CurveTable, descriptor_columns
from perfuse.pk.physiology import ORGANS
from perfuse.pk.system import ORAL
from perfuse.pk.topology import Topology

_LEAST_CLEARANCE_L_H = 1e-6
"""Floor for the logarithm of a clearance of zero."""


def feature_names(topology: Topology) -> tuple[str, ...]:
    """Names of the columns of ``drug_features``, in order."""
    organs = [f"{kind}_{organ}" for kind in ("volume", "flow") for organ in ORGANS]
    kp = [f"kp_{organ}" for organ in ORGANS[1:]]
    exchanges = [f"ps_{i}" for i in range(topology.n_exchanges)]
    optional = ["saturable_clearance", "km_u", "dose_if_saturable", "ka", "lag", "f_abs"]
    given = ["kp", "elimination", "ps", "saturable", "oral", *DESCRIPTORS]
    return (
        *organs, *kp, *topology.elimination_names, *exchanges, "fup", "bp_ratio", *optional, *DESCRIPTORS,
        *(f"{name}_given" for name in given),
    )  # fmt: skip


def drug_features(table: CurveTable, with_descriptors: bool) -> np.ndarray:
    """``(C, F)`` features; NaN where a quantity is not given or plays no part.

    Args:
        table: The curves; observations do not count.
        with_descriptors: Whether descriptors are inputs of the model; else they read NaN, whatever is known.
    """
    n = len(table)
    with np.errstate(divide="ignore", invalid="ignore"):
        volume, flow = np.log(table.volume_l), np.log(table.flow_l_h)
        kp, ps = np.log(table.kp[:, 1:]), np.log(table.ps_l_h)
    flow = np.where(np.isfinite(flow), flow, np.nan)  # blood, or an organ without a flow of its own
    elimination = np.log(np.maximum(table.elimination_l_h, _LEAST_CLEARANCE_L_H))  # NaN stays NaN
    descriptors = descriptor_columns(table) if with_descriptors else np.full((n, len(DESCRIPTORS)), np.nan)
    ps = np.where(np.isfinite(ps), ps, np.nan)
    saturable, is_saturable = _saturable(table)
    oral, is_oral = _absorption(table)
    given = [kp, elimination, ps]
    whole = [~np.isnan(part).any(axis=1) if part.shape[1] else np.ones(n, dtype=bool) for part in given]
    flags = np.column_stack((*whole, is_saturable, is_oral, ~np.isnan(descriptors))).astype(float)
    ratios = np.log(np.column_stack((table.fup, table.bp_ratio)))
    return np.column_stack((volume, flow, kp, elimination, ps, ratios, saturable, oral, descriptors, flags))


def _saturable(table: CurveTable) -> tuple[np.ndarray, np.ndarray]:
    """ln of the saturable clearance at low concentration, of its mean Km and of the dose, ``(C, 3)``; and whether."""
    vmax = table.vmax_mg_h
    is_saturable: np.ndarray = np.any(vmax > 0, axis=1)
    clearance = np.where(vmax > 0, vmax / table.km_u_mg_l, 0.0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.column_stack((clearance, vmax.sum(axis=1) / clearance, table.dose_mg.sum(axis=1))))
    return np.where(is_saturable[:, None], logs, np.nan), is_saturable


def _absorption(table: CurveTable) -> tuple[np.ndarray, np.ndarray]:
    """ln ka, lag (h) and ln Fa Fg, ``(C, 3)``; and whether a dose is by mouth."""
    is_oral: np.ndarray = ((table.dose_route == ORAL) & (table.dose_mg > 0)).any(axis=1)
    with np.errstate(divide="ignore"):
        values = np.column_stack((np.log(table.ka_1_h), table.lag_h, np.log(table.f_abs)))
    return np.where(is_oral[:, None] & np.isfinite(values), values, np.nan), is_oral

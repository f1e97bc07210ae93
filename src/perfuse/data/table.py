"""``CurveTable``: many curves in memory, one NumPy column per quantity; and how they become a batch.

Axis legend: C curves, O reported organs, M eliminations, X exchanges, P saturable pathways, D dose events, T times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import numpy as np
import torch

from perfuse.data.batch import CurveBatch
from perfuse.errors import InputError
from perfuse.pk.matrix import PLASMA_MATRICES
from perfuse.pk.physiology import ORGANS
from perfuse.pk.system import DoseEvents, SystemParameters
from perfuse.pk.topology import Topology

LOQ_FRACTION = 1e-5
"""Limit of quantification where none is stated: this fraction of dose / blood volume, per curve."""
_LN_NO_CLINT = -9.0
"""Stands for ln of an intrinsic clearance of 0: a thousandth of what assays can measure."""
N_PKA = 2
"""Acidic, and basic, pKa values that a table keeps per drug: the most that matter at body pH."""


def _absent() -> np.ndarray:
    """Stands for a column left out; replaced by its neutral value in ``CurveTable.__post_init__``."""
    return np.empty(0)


class CurveSource(Protocol):
    """Where curves come from: a ``CurveTable`` in memory or a memory-mapped store on disk."""

    @property
    def topology(self) -> Topology: ...

    def __len__(self) -> int: ...

    def column(self, name: str) -> np.ndarray:
        """One column of all curves, by its ``CurveTable`` field name."""

    def take(self, rows: Sequence[int] | np.ndarray) -> CurveTable:
        """The named rows, in that order, in memory."""


@dataclass(frozen=True, eq=False)
class CurveTable:
    """Curves with everything that made them. NaN pads ``time_h`` and marks absent observations.

    Attributes:
        topology: Organ graph of all curves.
        curve_id, compound_id, group_id: Names, ``(C,)`` str. ``group_id`` is the parameter group: equal drug
            parameters share it (see ``parameter_group``); splits never separate a compound or a group.
        body_weight_kg: kg, ``(C,)``.
        volume_l, flow_l_h: Organ volumes (L) and flows (L/h), ``(C, O)``, as in ``Physiology``.
        kp: Partition coefficients, ``(C, O)``; 1 for blood. All NaN but blood: not given (descriptors are).
        elimination_l_h: ``(C, M)``, L/h, columns ``topology.elimination_names``. All NaN: not given.
        fup, bp_ratio: ``(C,)``.
        dose_time_h, dose_mg, dose_duration_h: ``(C, D)``; rows padded with 0 mg.
        time_h: ``(C, T)``, h, increasing, NaN-padded.
        conc_mg_l: ``(C, O, T)``, mg/L, in the curve's matrix for blood; NaN where not observed.
            A censored value holds its LLOQ.
        censored: ``(C, O, T)`` bool, True where only "below LLOQ" is known.
        loq_mg_l: ``(C,)`` limit of quantification, mg/L (simulated: 1e-5 x dose / blood volume).
        matrix: ``(C,)`` str, one of ``BLOOD_MATRICES``: what the blood row was measured in.
        dose_route: ``(C, D)`` int8, codes of ``pk.system.ROUTES``; left out: all intravenous.
        ka_1_h, lag_h, f_abs: Absorption of oral doses, ``(C,)``: 1/h (NaN where no dose is oral), h, and Fa x Fg.
        ps_l_h: Permeability-surface products, L/h, ``(C, X)``, as the topology's exchanges; NaN: not given.
        vmax_mg_h, km_u_mg_l: Saturable pathways, ``(C, P)``; a Vmax of 0 is none.
        mw_g_mol, logp, pka_acid, pka_base, clint_ul_min_million_cells: Descriptors of the drug, ``(C,)`` or
            ``(C, 2)`` for pKa; NaN where not known or absent.
    """

    topology: Topology
    curve_id: np.ndarray
    compound_id: np.ndarray
    group_id: np.ndarray
    body_weight_kg: np.ndarray
    volume_l: np.ndarray
    flow_l_h: np.ndarray
    kp: np.ndarray
    elimination_l_h: np.ndarray
    fup: np.ndarray
    bp_ratio: np.ndarray
    dose_time_h: np.ndarray
    dose_mg: np.ndarray
    dose_duration_h: np.ndarray
    time_h: np.ndarray
    conc_mg_l: np.ndarray
    censored: np.ndarray
    loq_mg_l: np.ndarray
    matrix: np.ndarray
    dose_route: np.ndarray = field(default_factory=_absent)
    ka_1_h: np.ndarray = field(default_factory=_absent)
    lag_h: np.ndarray = field(default_factory=_absent)
    f_abs: np.ndarray = field(default_factory=_absent)
    ps_l_h: np.ndarray = field(default_factory=_absent)
    vmax_mg_h: np.ndarray = field(default_factory=_absent)
    km_u_mg_l: np.ndarray = field(default_factory=_absent)
    mw_g_mol: np.ndarray = field(default_factory=_absent)
    logp: np.ndarray = field(default_factory=_absent)
    pka_acid: np.ndarray = field(default_factory=_absent)
    pka_base: np.ndarray = field(default_factory=_absent)
    clint_ul_min_million_cells: np.ndarray = field(default_factory=_absent)

    def __post_init__(self) -> None:
        c, p = len(self.curve_id), max(self.vmax_mg_h.shape[-1], self.km_u_mg_l.shape[-1], 1)
        neutral: dict[str, tuple[tuple[int, ...], float]] = {
            "dose_route": (self.dose_mg.shape, 0), "ka_1_h": ((c,), np.nan), "lag_h": ((c,), 0.0), "f_abs": ((c,), 1.0),
            "ps_l_h": ((c, self.topology.n_exchanges), np.nan),
            "vmax_mg_h": ((c, p), 0.0), "km_u_mg_l": ((c, p), 1.0),
            "mw_g_mol": ((c,), np.nan), "logp": ((c,), np.nan), "clint_ul_min_million_cells": ((c,), np.nan),
            "pka_acid": ((c, N_PKA), np.nan), "pka_base": ((c, N_PKA), np.nan),
        }  # fmt: skip
        for name, (shape, value) in neutral.items():
            if getattr(self, name).size == 0:
                kind = np.int8 if name == "dose_route" else np.float64
                object.__setattr__(self, name, np.full(shape, value, dtype=kind))

    def __len__(self) -> int:
        return len(self.curve_id)

    def column(self, name: str) -> np.ndarray:
        """One column by field name."""
        return getattr(self, name)

    def take(self, rows: Sequence[int] | np.ndarray) -> CurveTable:
        """The named rows, in that order."""
        index = np.asarray(rows, dtype=np.int64)
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "topology"})

    def validate(self, where: str = "") -> CurveTable:
        """Return self, or refuse the first value that cannot be (see ``data.table_checks``).

        Raises:
            InputError: naming the curve, the column, the value and what is allowed.
        """
        from perfuse.data.table_checks import check_columns  # it needs this class

        check_columns(self, where)
        return self


def parameter_group(*columns: np.ndarray) -> np.ndarray:
    """``(C,)`` hex names of equal drug parameters (to 9 significant digits); doses and people do not count.

    Args:
        columns: What makes the drug, each ``(C,)`` or ``(C, any)``: Kp, eliminations, fup, B:P, ...
    """
    rows = np.column_stack(columns)
    layout = ",".join(["%.8e"] * rows.shape[1])
    return np.asarray(
        [hashlib.sha256((layout % tuple(row)).encode()).hexdigest()[:16] for row in rows.tolist()], dtype=str
    )


def system_parameters(table: CurveTable) -> SystemParameters:
    """The mechanistic parameters of every curve, float64, on the topology's nodes and edges."""
    topology = table.topology
    volume = table.volume_l @ topology.volume_map
    kp = np.ones_like(volume)
    tissue = ~np.asarray(topology.is_blood)
    node_organ = np.minimum(topology.node_identity, len(ORGANS) - 1)
    kp[:, tissue] = table.kp[:, node_organ[tissue]]
    flow = table.flow_l_h @ topology.flow_map
    if not (flow > 0).all():
        c, e = np.argwhere(~(flow > 0))[0]
        src, dst = topology.edges[e]
        raise InputError(
            f"flow {topology.nodes[src]} -> {topology.nodes[dst]}", value=float(flow[c, e]), unit="L/h",
            allowed="> 0", where=f"curve {table.curve_id[c]}",
        )  # fmt: skip
    pathways = table.vmax_mg_h, table.km_u_mg_l
    if not (table.vmax_mg_h > 0).any():  # a linear batch has no pathway axis, so that nothing need look at it
        pathways = (np.empty((len(table), 0)), np.empty((len(table), 0)))
    arrays = (volume, kp, flow, table.elimination_l_h, table.fup, table.bp_ratio, table.ps_l_h, *pathways)
    return SystemParameters(topology, *(torch.as_tensor(np.ascontiguousarray(a, dtype=np.float64)) for a in arrays))


def dose_events(table: CurveTable) -> DoseEvents:
    """The doses of every curve, float64."""
    columns = ("dose_time_h", "dose_mg", "dose_duration_h", "dose_route", "ka_1_h", "lag_h", "f_abs")
    arrays = {name: np.ascontiguousarray(table.column(name)) for name in columns}
    arrays["ka_1_h"] = np.nan_to_num(arrays["ka_1_h"], nan=1.0)  # unused there, but NaN spreads in a batched product
    return DoseEvents(*(torch.as_tensor(a) for a in arrays.values()))


def to_batch(table: CurveTable) -> CurveBatch:
    """Tensors for models and loss. ``mask`` is where a value counts: observed, t > 0, and >= LOQ or censored."""
    time = table.time_h
    valid = time == time  # False where NaN
    if not valid.all():
        time = np.where(valid, time, np.fmax.reduce(time, axis=1, keepdims=True, initial=0.0))
    conc, censored = table.conc_mg_l, table.censored
    scored = conc >= table.loq_mg_l[:, None, None]  # False where NaN
    observed = conc == conc
    if censored.any():
        scored |= censored & observed
    scored &= (valid & (time > 0))[:, None]
    if not observed.all():
        conc = np.where(observed, conc, 0.0)
    as_f64 = lambda a: torch.as_tensor(np.ascontiguousarray(a, dtype=np.float64))  # noqa: E731
    return CurveBatch(
        system=system_parameters(table),
        doses=dose_events(table),
        time_h=as_f64(time),
        is_plasma=torch.as_tensor(np.isin(table.matrix, PLASMA_MATRICES)),
        conc_mg_l=as_f64(conc),
        mask=torch.as_tensor(scored),
        censored=torch.as_tensor(censored & scored),
        loq_mg_l=as_f64(table.loq_mg_l),
        descriptors=as_f64(descriptor_columns(table)),
    )


def descriptor_columns(table: CurveTable) -> np.ndarray:
    """``(C, len(DESCRIPTORS))``, in that order, as a batch holds them."""
    with np.errstate(divide="ignore"):
        clint = np.log(table.clint_ul_min_million_cells)  # 0 becomes -inf: the enzymes were measured and found idle
    clint = np.where(np.isneginf(clint), _LN_NO_CLINT, clint)
    return np.column_stack((np.log(table.mw_g_mol), table.logp, table.pka_acid, table.pka_base, clint))

"""``CurveTable``: many curves in memory, one NumPy column per quantity; and how they become a batch.

Axis legend: C curves, O reported organs, M eliminations, D dose events, T times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import torch

from perfuse.data.batch import CurveBatch
from perfuse.errors import InputError
from perfuse.pk.matrix import PLASMA_MATRICES, TISSUE_MATRIX, check_blood_matrix
from perfuse.pk.partition import KP_ALLOWED, KP_RANGE
from perfuse.pk.physiology import ORGANS
from perfuse.pk.system import DoseEvents, SystemParameters
from perfuse.pk.topology import Topology

LOQ_FRACTION = 1e-5
"""Limit of quantification where none is stated: this fraction of dose / blood volume, per curve."""
SHORTEST_INFUSION_H = 1e-6


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
        kp: Partition coefficients, ``(C, O)``; 1 for blood.
        elimination_l_h: ``(C, M)``, L/h, columns ``topology.elimination_names``.
        fup, bp_ratio: ``(C,)``.
        dose_time_h, dose_mg, dose_duration_h: ``(C, D)``; rows padded with 0 mg.
        time_h: ``(C, T)``, h, increasing, NaN-padded.
        conc_mg_l: ``(C, O, T)``, mg/L, in the curve's matrix for blood; NaN where not observed.
            A censored value holds its LLOQ.
        censored: ``(C, O, T)`` bool, True where only "below LLOQ" is known.
        loq_mg_l: ``(C,)`` limit of quantification, mg/L (simulated: 1e-5 x dose / blood volume).
        matrix: ``(C,)`` str, one of ``BLOOD_MATRICES``: what the blood row was measured in.
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
        """Return self, or refuse the first value that cannot be: see ``_check_columns``."""
        _check_columns(self, where)
        return self


def _refuse(table: CurveTable, bad: np.ndarray, field: str, values: np.ndarray, where: str, **text: str) -> None:
    """Raise for the first True of ``bad`` (leading axis: curves)."""
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        name = f"curve {table.curve_id[at[0]]}"
        organ = f"[{ORGANS[at[1]]}]" if len(at) > 1 and values.shape[1] == len(ORGANS) else ""
        raise InputError(field + organ, value=float(values[at]), where=f"{where}: {name}" if where else name, **text)


def _check_columns(t: CurveTable, where: str) -> None:
    c, o, m, d, n = len(t), len(ORGANS), t.topology.n_eliminations, t.dose_mg.shape[-1], t.time_h.shape[-1]
    if c == 0:
        raise InputError("curves", "are missing: there is not one", allowed=">= 1", where=where)
    shapes = {
        "curve_id": (c,), "compound_id": (c,), "group_id": (c,), "body_weight_kg": (c,), "volume_l": (c, o),
        "flow_l_h": (c, o), "kp": (c, o), "elimination_l_h": (c, m), "fup": (c,), "bp_ratio": (c,),
        "dose_time_h": (c, d), "dose_mg": (c, d), "dose_duration_h": (c, d), "time_h": (c, n),
        "conc_mg_l": (c, o, n), "censored": (c, o, n), "loq_mg_l": (c,), "matrix": (c,),
    }  # fmt: skip
    for name, shape in shapes.items():
        if t.column(name).shape != shape:
            raise InputError(name, "has a wrong shape", value=t.column(name).shape, allowed=str(shape), where=where)
    _refuse(t, ~((t.kp >= KP_RANGE[0]) & (t.kp <= KP_RANGE[1])), "kp", t.kp, where, allowed=KP_ALLOWED)
    for name, unit in (("volume_l", "L"), ("bp_ratio", ""), ("body_weight_kg", "kg"), ("loq_mg_l", "mg/L")):
        v = t.column(name)
        _refuse(t, ~((v > 0) & np.isfinite(v)), name, v, where, unit=unit, allowed="> 0 and finite")
    _refuse(t, ~((t.fup > 0) & (t.fup <= 1)), "fup", t.fup, where, allowed="(0, 1]")
    for name, unit in (("flow_l_h", "L/h"), ("elimination_l_h", "L/h"), ("dose_mg", "mg"), ("dose_duration_h", "h")):
        v = t.column(name)
        _refuse(t, ~((v >= 0) & np.isfinite(v)), name, v, where, unit=unit, allowed=">= 0 and finite")
    short = (t.dose_duration_h > 0) & (t.dose_duration_h < SHORTEST_INFUSION_H)
    _refuse(t, short, "dose_duration_h", t.dose_duration_h, where, unit="h", allowed="0 (bolus) or >= 1e-6")
    _refuse(t, ~np.isfinite(t.dose_time_h), "dose_time_h", t.dose_time_h, where, unit="h", allowed="finite")
    total = t.dose_mg.sum(-1)
    _refuse(t, ~(total > 0), "dose_mg", total, where, unit="mg", allowed="> 0 in total")
    time = t.time_h
    _refuse(t, ~((time >= 0) | np.isnan(time)) | np.isinf(time), "time_h", time, where, unit="h", allowed=">= 0")
    unsorted = np.zeros(time.shape, dtype=bool)
    unsorted[:, 1:] = ~(np.diff(time, axis=1) > 0) & ~np.isnan(time[:, 1:])
    _refuse(t, unsorted, "time_h", time, where, unit="h", allowed="strictly increasing", hint="sort the rows by time")
    conc = t.conc_mg_l
    bad = ~((conc >= 0) | np.isnan(conc)) | np.isinf(conc)
    _refuse(t, bad, "conc_mg_l", conc, where, unit="mg/L", allowed=">= 0 and finite")
    has_blood = ~np.isnan(t.conc_mg_l[:, 0]).all(-1)
    for matrix, measured in sorted({(str(m), bool(b)) for m, b in zip(t.matrix, has_blood, strict=True)}):
        if measured or matrix != TISSUE_MATRIX:  # a curve of tissues alone has no blood row to speak of
            first = t.curve_id[int(np.argmax(t.matrix == matrix))]
            check_blood_matrix(matrix, f"{where}: curve {first}" if where else f"curve {first}")


def parameter_group(kp: np.ndarray, elimination_l_h: np.ndarray, fup: np.ndarray, bp_ratio: np.ndarray) -> np.ndarray:
    """``(C,)`` hex names of equal drug parameters (to 9 significant digits); doses and people do not count."""
    rows = np.column_stack((kp, elimination_l_h, fup, bp_ratio))
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
    arrays = (volume, kp, flow, table.elimination_l_h, table.fup, table.bp_ratio)
    return SystemParameters(topology, *(torch.as_tensor(np.ascontiguousarray(a, dtype=np.float64)) for a in arrays))


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
        doses=DoseEvents(as_f64(table.dose_time_h), as_f64(table.dose_mg), as_f64(table.dose_duration_h)),
        time_h=as_f64(time),
        is_plasma=torch.as_tensor(np.isin(table.matrix, PLASMA_MATRICES)),
        conc_mg_l=as_f64(conc),
        mask=torch.as_tensor(scored),
        censored=torch.as_tensor(censored & scored),
        loq_mg_l=as_f64(table.loq_mg_l),
    )

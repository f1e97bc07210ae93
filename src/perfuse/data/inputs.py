"""From a drug, a body and doses to the inputs of a topology, by the simplest published scaling.

Axis legend: C curves, O reported organs, M eliminations, D dose events, T times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfuse.data.table import LOQ_FRACTION, CurveTable, parameter_group
from perfuse.errors import InputError
from perfuse.pk.clearance import (
    clint_from_hepatic_clearance,
    hepatic_clearance_well_stirred,
    hepatic_from_total,
    renal_clearance_filtration,
    scale_hepatocyte_clint,
)
from perfuse.pk.drug import HEPATIC_FIELDS, Drug, number
from perfuse.pk.matrix import check_blood_matrix
from perfuse.pk.partition import tissue_plasma_kp
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, Physiology, hub_reference, human_reference
from perfuse.pk.topology import Topology

DEFAULT_KP_METHOD = "berezhkovskiy"


@dataclass(frozen=True)
class Dose:
    """One intravenous dose into venous blood.

    Attributes:
        time_h: Start, h, >= 0.
        amount_mg: Amount, mg, > 0.
        duration_h: Infusion duration, h; 0 for a bolus.
        route: ``iv_bolus`` or ``iv_infusion``; left empty it follows from the duration.

    Raises:
        InputError: for a value out of range, a route that contradicts the duration, or a route that is not modelled.
    """

    time_h: float
    amount_mg: float
    duration_h: float = 0.0
    route: str = ""

    def __post_init__(self) -> None:
        for name, unit, allow_zero in (("time_h", "h", True), ("amount_mg", "mg", False), ("duration_h", "h", True)):
            value = number(f"dose {name}", getattr(self, name))
            if value < 0 or (value == 0 and not allow_zero):
                raise InputError(f"dose {name}", value=value, unit=unit, allowed=">= 0" if allow_zero else "> 0")
        route = self.route or ("iv_infusion" if self.duration_h > 0 else "iv_bolus")
        if route not in ("iv_bolus", "iv_infusion"):
            raise InputError(
                "route", "is not modelled", value=route, allowed="iv_bolus, iv_infusion",
                hint="this version models intravenous doses",
            )  # fmt: skip
        if (route == "iv_infusion") != (self.duration_h > 0):
            raise InputError(
                "dose duration_h", "contradicts the route", value=float(self.duration_h), unit="h",
                allowed="0 for iv_bolus, > 0 for iv_infusion",
            )  # fmt: skip
        object.__setattr__(self, "route", route)


def reference_body(topology: Topology, body_weight_kg: float) -> Physiology:
    """The body of a topology: the fixed 70 kg body of ``hub``, or the reference man scaled to a body weight.

    Raises:
        InputError: if the body weight is not in (0, 300] kg.
    """
    scaled = human_reference(body_weight_kg)  # checks the weight for either topology
    return hub_reference() if topology.name == "hub" else scaled


def _renal_plasma_l_h(drug: Drug, body: Physiology) -> float:
    if drug.cl_renal_l_h is not None:
        return drug.cl_renal_l_h
    return renal_clearance_filtration(drug.fup, body.body_weight_kg)


def _hepatic_plasma_l_h(drug: Drug, renal_l_h: float) -> float | None:
    """Hepatic plasma clearance that the drug states, L/h; None when it states an intrinsic clearance."""
    if drug.cl_total_l_h is not None:
        return hepatic_from_total(drug.cl_total_l_h, renal_l_h)
    return drug.cl_hepatic_l_h


def _clint_l_h(drug: Drug, body: Physiology) -> float:
    if drug.clint_l_h is not None:
        return drug.clint_l_h
    if drug.clint_ul_min_million_cells is not None:
        return scale_hepatocyte_clint(drug.clint_ul_min_million_cells, float(body.volume_l[ORGAN_INDEX["liver"]]))
    hint = f"give one of {', '.join(HEPATIC_FIELDS)}"
    raise InputError("clearance", "of the liver is missing", where=f"drug {drug.name}", hint=hint)


def elimination_parameters(drug: Drug, topology: Topology, body: Physiology) -> np.ndarray:
    """Elimination parameters, L/h, ``(M,)``, in the order of ``topology.elimination_names``.

    ``hub``: blood clearances, hepatic by the well-stirred liver and renal plasma clearance / (B:P).
    ``circulation``: unbound CL_int of the whole liver, and renal plasma clearance. Renal clearance that is not given is
    GFR x fup.

    Raises:
        InputError: when nothing says what the liver does, when a stated hepatic clearance reaches hepatic blood flow,
            or when renal blood clearance exceeds kidney blood flow (both: ``circulation``).
    """
    bp, liver_flow = drug.bp_ratio_or_default, float(body.flow_l_h[ORGAN_INDEX["liver"]])
    renal = _renal_plasma_l_h(drug, body)
    stated = _hepatic_plasma_l_h(drug, renal)
    if topology.name == "hub":
        if stated is None:
            hepatic = hepatic_clearance_well_stirred(_clint_l_h(drug, body), drug.fup, bp, liver_flow)
        else:
            hepatic = stated / bp
        values = {"cl_hepatic_l_h": hepatic, "cl_renal_l_h": renal / bp}
    else:
        kidney_flow = float(body.flow_l_h[ORGAN_INDEX["kidney"]])
        if renal / bp > kidney_flow:
            raise InputError(
                "cl_renal_l_h", "exceeds kidney blood flow", value=renal, unit="L/h plasma",
                allowed=f"<= {kidney_flow * bp:.4g} L/h", where=f"drug {drug.name}",
            )  # fmt: skip
        if stated is None:
            clint = _clint_l_h(drug, body)
        else:
            clint = clint_from_hepatic_clearance(stated / bp, drug.fup, bp, liver_flow)
        values = {"clint_l_h": clint, "cl_renal_l_h": renal}
    return np.asarray([values[name] for name in topology.elimination_names])


def partition_parameters(drug: Drug, topology: Topology, kp_method: str = DEFAULT_KP_METHOD) -> np.ndarray:
    """Kp ``(O,)`` as the topology takes it: tissue:plasma, on ``hub`` tissue:blood = Kp / (B:P); blood 1."""
    kp = tissue_plasma_kp(drug.partition_inputs(), kp_method, drug.kp)
    if topology.name == "hub":
        kp[1:] /= drug.bp_ratio_or_default
    return kp


def _check_times(time_h: np.ndarray) -> np.ndarray:
    time = np.asarray(time_h, dtype=np.float64)
    if time.ndim != 1 or len(time) == 0:
        raise InputError("time_h", "is no row of times", value=time.shape, allowed="(T,) with T >= 1")
    if not (np.isfinite(time).all() and (time >= 0).all()):
        raise InputError("time_h", "holds a time that is negative or not finite", unit="h", allowed=">= 0")
    if (np.diff(time) <= 0).any():
        raise InputError("time_h", "is not increasing", allowed="strictly increasing", hint="sort the times")
    return time


def curve_table_for(
    drug: Drug,
    topology: Topology,
    body_weight_kg: float,
    doses: Sequence[Dose],
    time_h: np.ndarray,
    matrix: str = "plasma",
    *,
    curve_id: str | None = None,
    compound_id: str | None = None,
    kp_method: str = DEFAULT_KP_METHOD,
) -> CurveTable:
    """One curve without observations, ready for a model or the mechanistic solver.

    Plasma is reported as blood / (B:P), so fup and B:P travel with the curve on both topologies. ``hub`` keeps its
    fixed 70 kg body; its body weight is only carried.

    Args:
        drug: The compound (see ``elimination_parameters`` and ``partition_parameters``).
        topology: ``hub`` or ``circulation``.
        body_weight_kg: Body weight, kg, in (0, 300].
        doses: At least one dose.
        time_h: Times wanted, h, ``(T,)``, >= 0 and increasing.
        matrix: What the blood row means, one of ``BLOOD_MATRICES``.
        curve_id: Name of the curve; the drug's when not given.
        compound_id: Name that splits keep together; the drug's when not given.
        kp_method: A key of ``pk.partition.KP_METHODS``.

    Returns:
        One row, concentrations NaN, ``loq_mg_l`` 1e-5 x total dose / blood volume. Raises InputError for bad input.
    """
    if not doses:
        raise InputError("doses", "are missing: there is not one", allowed=">= 1")
    check_blood_matrix(matrix)
    body = reference_body(topology, body_weight_kg)
    time = _check_times(time_h)
    kp = partition_parameters(drug, topology, kp_method)[None]
    elimination = elimination_parameters(drug, topology, body)[None]
    fup, bp = np.asarray([drug.fup]), np.asarray([drug.bp_ratio_or_default])
    dose = np.asarray([[d.time_h, d.amount_mg, d.duration_h] for d in doses], dtype=np.float64)
    shape = (1, len(ORGANS), len(time))
    return CurveTable(
        topology=topology,
        curve_id=np.asarray([curve_id or drug.name]),
        compound_id=np.asarray([compound_id or drug.name]),
        group_id=parameter_group(kp, elimination, fup, bp),
        body_weight_kg=np.asarray([float(body_weight_kg)]),
        volume_l=body.volume_l[None].copy(),
        flow_l_h=body.flow_l_h[None].copy(),
        kp=kp,
        elimination_l_h=elimination,
        fup=fup,
        bp_ratio=bp,
        dose_time_h=dose[None, :, 0],
        dose_mg=dose[None, :, 1],
        dose_duration_h=dose[None, :, 2],
        time_h=time[None].copy(),
        conc_mg_l=np.full(shape, np.nan),
        censored=np.zeros(shape, dtype=bool),
        loq_mg_l=LOQ_FRACTION * dose[None, :, 1].sum(1) / body.volume_l[ORGAN_INDEX["blood"]],
        matrix=np.asarray([matrix]),
    ).validate()

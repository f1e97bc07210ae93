"""A drug's parameters in one body, as a topology takes them: clearances, Kp, saturable pathways, permeability.

Axis legend: O reported organs, M eliminations, X exchanges, P saturable pathways.
"""

from __future__ import annotations

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.blood_binding import HAEMATOCRIT
from perfuse.pk.clearance import (
    check_renal_clearance,
    clint_from_hepatic_clearance,
    glomerular_filtration_l_h,
    hepatic_clearance,
    hepatic_from_total,
    renal_clearance,
    well_stirred_equivalent_clint,
)
from perfuse.pk.drug import HEPATIC_FIELDS, Drug
from perfuse.pk.partition import tissue_plasma_kp
from perfuse.pk.partition_inputs import Species
from perfuse.pk.physiology import ORGAN_INDEX, Physiology, hub_reference, human_reference
from perfuse.pk.topology import Topology

DEFAULT_KP_METHOD = "berezhkovskiy"


def reference_body(topology: Topology, body_weight_kg: float) -> Physiology:
    """The body of a topology: the fixed 70 kg body of ``hub``, or the reference man scaled to a body weight.

    Raises:
        InputError: if the body weight is not in (0, 300] kg.
    """
    scaled = human_reference(body_weight_kg)  # checks the weight for either topology
    return hub_reference() if topology.name == "hub" else scaled


def haematocrit_of(body: Physiology) -> float:
    """The body's haematocrit, or the reference one where the body does not state it."""
    return float(getattr(body, "haematocrit", HAEMATOCRIT))


def _gfr_l_h(body: Physiology) -> float:
    gfr = getattr(body, "gfr_l_h", None)
    return glomerular_filtration_l_h(body.body_weight_kg) if gfr is None else float(gfr)


def _renal_plasma_l_h(drug: Drug, body: Physiology) -> float:
    if drug.cl_renal_l_h is not None:
        return drug.cl_renal_l_h
    return renal_clearance(drug.fup, _gfr_l_h(body), drug.cl_secretion_l_h or 0.0)


def _hepatic_plasma_l_h(drug: Drug, renal_l_h: float) -> float | None:
    """Hepatic plasma clearance that the drug states, L/h; None when it states an intrinsic clearance."""
    if drug.cl_total_l_h is not None:
        return hepatic_from_total(drug.cl_total_l_h, renal_l_h)
    return drug.cl_hepatic_l_h


def _clint_l_h(drug: Drug, body: Physiology) -> float:
    clint = drug.clint_in(float(body.volume_l[ORGAN_INDEX["liver"]]))
    if clint is None:
        hint = f"give one of {', '.join(HEPATIC_FIELDS)}"
        raise InputError("clearance", "of the liver is missing", where=f"drug {drug.name}", hint=hint)
    return clint


def elimination_parameters(drug: Drug, topology: Topology, body: Physiology) -> np.ndarray:
    """Elimination parameters, L/h, ``(M,)``, in the order of ``topology.elimination_names``.

    ``hub``: blood clearances, hepatic by the drug's liver model and renal plasma clearance / (B:P).
    ``circulation``: unbound CL_int of the whole liver, and renal plasma clearance. The liver there is one well-stirred
    compartment, so the CL_int of another liver model becomes the well-stirred one of equal hepatic clearance at this
    body's liver flow. Renal clearance that is not given is GFR x fup + net secretion.

    Raises:
        InputError: when nothing says what the liver does, when a stated hepatic clearance reaches hepatic blood flow,
            when renal blood clearance exceeds kidney blood flow (both: ``circulation``), or when a topology has an
            elimination that is neither.
    """
    bp, liver_flow = drug.bp_ratio_for(haematocrit_of(body)), float(body.flow_l_h[ORGAN_INDEX["liver"]])
    liver = (drug.liver_model, drug.dispersion_number)
    renal = _renal_plasma_l_h(drug, body)
    stated = _hepatic_plasma_l_h(drug, renal)
    if topology.kp_is_blood:
        if stated is None:
            hepatic = hepatic_clearance(_clint_l_h(drug, body), drug.fup, bp, liver_flow, *liver)
        else:
            hepatic = stated / bp
        values = {"cl_hepatic_l_h": hepatic, "cl_renal_l_h": renal / bp}
    else:
        check_renal_clearance(renal, bp, float(body.flow_l_h[ORGAN_INDEX["kidney"]]), f"drug {drug.name}")
        if stated is None:
            clint = well_stirred_equivalent_clint(_clint_l_h(drug, body), drug.fup, bp, liver_flow, *liver)
        else:
            clint = clint_from_hepatic_clearance(stated / bp, drug.fup, bp, liver_flow)
        values = {"clint_l_h": clint, "cl_renal_l_h": renal}
    for name in topology.elimination_names:
        if name not in values:
            problem = f"of topology {topology.name} is nothing that a drug states"
            raise InputError(name, problem, where=f"drug {drug.name}", allowed=", ".join(values))
    return np.asarray([values[name] for name in topology.elimination_names])


def saturable_parameters(drug: Drug, topology: Topology, body: Physiology) -> tuple[np.ndarray, np.ndarray]:
    """Vmax, mg/h, of this body's liver and Km,u, mg/L, each ``(P,)``; one pathway of Vmax 0 when there is none.

    Raises:
        InputError: on a topology without a liver that metabolises (``hub``).
    """
    if not drug.saturable:
        return np.zeros(1), np.ones(1)
    if topology.saturable_node is None:
        raise InputError("saturable", f"cannot be modelled on topology {topology.name}", where=f"drug {drug.name}",
                         allowed="topologies with a liver of their own, such as circulation")  # fmt: skip
    liver_l = float(body.volume_l[ORGAN_INDEX["liver"]])
    vmax = [pathway.vmax_in(liver_l) for pathway in drug.saturable]
    return np.asarray(vmax), np.asarray([pathway.km_u_mg_l for pathway in drug.saturable])


def permeability_parameters(drug: Drug, topology: Topology) -> np.ndarray:
    """Permeability-surface products, L/h, ``(X,)``, of the topology's permeability-limited organs.

    Those of organs that the topology treats as perfusion-limited are not used.

    Raises:
        InputError: naming the organ whose product the drug does not give.
    """
    for exchange in topology.exchanges:
        if exchange.name not in drug.ps_l_h:
            raise InputError(
                f"ps_l_h.{exchange.name}", "is missing", where=f"drug {drug.name}",
                hint=f"give it in L/h, or use a topology on which {exchange.name} is perfusion-limited",
            )  # fmt: skip
    return np.asarray([drug.ps_l_h[exchange.name] for exchange in topology.exchanges])


def partition_parameters(
    drug: Drug,
    topology: Topology,
    kp_method: str = DEFAULT_KP_METHOD,
    haematocrit: float = HAEMATOCRIT,
    species: Species = "human",
) -> np.ndarray:
    """Kp ``(O,)`` as the topology takes it: tissue:plasma, on ``hub`` tissue:blood = Kp / (B:P); blood 1."""
    kp = tissue_plasma_kp(drug.partition_inputs(haematocrit, species), kp_method, drug.kp)
    if topology.kp_is_blood:
        kp[1:] /= drug.bp_ratio_for(haematocrit)
    return kp

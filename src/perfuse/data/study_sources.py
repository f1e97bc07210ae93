"""Where each number that a study's solver is given comes from, in a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from perfuse.data.study_people import People
from perfuse.data.study_structure import Structure
from perfuse.pk.drug import IN_VITRO_FIELDS, Drug
from perfuse.pk.system import SystemParameters

GIVEN = "given"
_ORGAN = "[[organ]]"
_GRAPH = "structure file"


_VARIED_PLACES = {
    "clint": (("elimination_l_h", "clint_l_h"), ("elimination_l_h", "cl_hepatic_l_h"), ("vmax_mg_h", "0")),
    "fup": (("fup", ""),), "cl_renal_l_h": (("elimination_l_h", "cl_renal_l_h"),), "ka_1_h": (("ka_1_h", ""),),
    "lag_h": (("lag_h", ""),),
}  # fmt: skip
Derived = tuple[np.ndarray, str, str]
"""Values ``(C,)``, unit and source."""


def derived_numbers(people: People, drugs: Sequence[Drug]) -> dict[str, Derived]:
    """What stands between the study's numbers and the solver's: of each body, and of the drug in its assay."""
    bodies = people.bodies
    whose = "virtual person" if people.is_population else "body"
    out: dict[str, Derived] = {
        "haematocrit": (np.asarray([b.haematocrit for b in bodies]), "1", whose),
        "gfr_l_h": (np.asarray([b.gfr_or_default for b in bodies]), "L/h", whose),
        "cardiac_output_l_h": (np.asarray([b.cardiac_output_l_h for b in bodies]), "L/h", whose),
    }
    if any(getattr(drugs[0], name) is not None for name in IN_VITRO_FIELDS):
        source = GIVEN if drugs[0].fu_inc is not None else "predicted from log P and pKa"
        out["fu_inc"] = (np.asarray([drug.fu_inc_or_default for drug in drugs]), "1", source)
    return out


def parameter_sources(
    drug: Drug, given_drug: Drug, people: People, structure: Structure, system: SystemParameters, kp_method: str
) -> Mapping[tuple[str, str], str]:
    """By parameter and place, as ``parameters.csv`` names them.

    Args:
        drug: In the person.
        given_drug: As the study states it, before a condition changed it.
        people: Whose bodies they are.
        structure: Which structure.
        system: What will be solved.
        kp_method: How Kp were predicted.
    """
    topology = system.topology
    fup = GIVEN if people.drug_in(given_drug).fup == given_drug.fup else f"{GIVEN}, changed by the condition"
    out = {("fup", ""): fup}
    measured = drug.bp_ratio is not None
    out["bp_ratio", ""] = GIVEN if measured else "predicted from fup, ionisation and haematocrit"
    for p, pathway in enumerate(drug.saturable):
        out["vmax_mg_h", str(p)] = f"{pathway.name}: {GIVEN}, by liver volume"
        out["km_u_mg_l", str(p)] = f"{pathway.name}: {GIVEN}"
    out |= {("ka_1_h", ""): GIVEN, ("lag_h", ""): GIVEN, ("f_abs", ""): "fa x fg"}
    edges = [f"{topology.nodes[s]} -> {topology.nodes[d]}" for s, d in topology.edges]
    if structure.graph is not None:
        out["body_weight_kg", ""] = GIVEN
        out |= {("volume_l", node): _GRAPH for node in topology.nodes}
        out |= {("kp", node): _GRAPH for node in topology.nodes}
        out |= {("flow_l_h", edge): _GRAPH for edge in edges}
        out |= {("elimination_l_h", name): _GRAPH for name in topology.elimination_names}
        return out | {("ps_l_h", x.name): _GRAPH for x in topology.exchanges}
    body = "virtual person around ICRP 89's" if people.is_population else people.bodies[0].name
    out["body_weight_kg", ""] = body
    own = {organ.name for organ in structure.extra_organs}
    givers = {organ.take_from for organ in structure.extra_organs}
    for node, blood in zip(topology.nodes, topology.is_blood, strict=True):
        organ = node.removesuffix("_vascular")
        less = f", less {_ORGAN}" if organ in givers else ""
        out["volume_l", node] = _ORGAN if organ in own else body + less
        out["kp", node] = _ORGAN if node in own else "blood" if blood else _kp_source(drug, node, kp_method)
    for edge, (source, target) in zip(edges, topology.edges, strict=True):
        touched = {topology.nodes[i].removesuffix("_vascular") for i in (source, target)}
        out["flow_l_h", edge] = _ORGAN if touched & own else body + (f", less {_ORGAN}" if touched & givers else "")
    out |= {("elimination_l_h", name): _ORGAN for name in topology.elimination_names}
    hepatic, renal = _hepatic_source(people.drug_in(given_drug), given_drug), _renal_source(drug)
    for name, text in (("clint_l_h", hepatic), ("cl_hepatic_l_h", hepatic), ("cl_renal_l_h", renal)):
        if name in topology.elimination_names:
            out["elimination_l_h", name] = text
    out |= {("ps_l_h", x.name): _ORGAN if x.name in own else GIVEN for x in topology.exchanges}
    for name, keys in _VARIED_PLACES.items():
        if name in people.drug_cv:
            out |= {key: f"{out[key]}, CV {people.drug_cv[name]:.0%} between people" for key in keys if key in out}
    return out


def _kp_source(drug: Drug, organ: str, kp_method: str) -> str:
    return GIVEN if organ in drug.kp else kp_method


def _hepatic_source(drug: Drug, given_drug: Drug) -> str:
    """Which of the drug's numbers the liver's clearance comes from, and how."""
    model = "" if drug.liver_model == "well-stirred" else f", {drug.liver_model}"
    for name in IN_VITRO_FIELDS:
        value = getattr(drug, name)
        if value is not None:
            binding = f"fu_inc {drug.fu_inc_or_default:.3g}{'' if drug.fu_inc is not None else ' predicted'}"
            changed = "" if value == getattr(given_drug, name) else ", changed by the condition"
            return f"{name}, by liver volume, {binding}{model}{changed}"
    if drug.clint_l_h is not None:
        return f"{GIVEN}{model}"
    if drug.cl_hepatic_l_h is not None:
        return "cl_hepatic_l_h, liver blood flow"
    if drug.cl_total_l_h is not None:
        return "cl_total_l_h less renal, liver blood flow"
    return "none beside saturable pathways"


def _renal_source(drug: Drug) -> str:
    if drug.cl_renal_l_h is not None:
        return GIVEN
    return "GFR x fup" + ("" if drug.cl_secretion_l_h is None else " + cl_secretion_l_h")

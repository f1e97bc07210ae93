"""SBML Level 3 Version 2 of one curve: its organs, its drug and its doses, for any other simulator.

Kinetic laws are written from the parameters (flows, Kp, fup, B:P, clearances, PS, Vmax, Km), which keep their names
and may be changed by the reader. They are not made from the rate constants of ``pk.mechanistic``, so that simulating
the file elsewhere is an independent reading of the same physics. Units: mg, L, h, declared and checked.

Identifiers (``<n>`` a node, ``<o>`` an organ, ``<i>`` a number): compartment ``V_<n>``, species ``C_<n>`` (in formulas
its concentration), ``A_lag``, ``A_lumen``, ``A_not_absorbed``, ``A_<elimination>`` (amounts); parameters ``Q_<o>``
(``Q_<n>_to_<n>`` where edge flows are not sums of organ flows), ``Kp_<n>``, ``fup``, ``BP``, the eliminations' own
names, ``PS_<o>``, ``Vmax_<i>``, ``Km_u_<i>``; rules ``Cu_<n>``, ``C_plasma`` and, for an organ of two spaces,
``C_whole_<o>``; those of the doses are told in ``pk.sbml_doses``. Characters that SBML does not allow become
underscores; a name in use gets a number.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from torch import Tensor

from perfuse.errors import InputError
from perfuse.files import write_atomic
from perfuse.pk.mechanistic import mechanistic_rates, saturable_sink
from perfuse.pk.sbml_doses import add_doses, doses_to_write
from perfuse.pk.sbml_model import SbmlModel
from perfuse.pk.system import DoseEvents, SystemParameters, _map_tensors
from perfuse.pk.topology import Topology

_FLOW_TOLERANCE = 1e-9


def write_sbml(
    system: SystemParameters, doses: DoseEvents, row: int, path: Path, *, name: str = "", horizon_h: float | None = None
) -> Path:
    """Write one curve's model and regimen as an SBML file, whole or not at all.

    Args:
        system: Physical parameters of a batch.
        doses: Its doses.
        row: Which curve of the batch.
        path: The file to write.
        name: Name of the model; the topology's when empty.
        horizon_h: Doses that begin after this time, h, are left out; None keeps all.

    Raises:
        InputError: for a row that is not there, a parameter that is not given (NaN), a dose before time 0, or what
            ``pk.mechanistic.solve`` refuses.
        PerfuseError: when python-libsbml is not installed, or the disk refuses.
    """
    text = sbml_text(system, doses, row, name=name, horizon_h=horizon_h)
    write_atomic(Path(path), text.encode())
    return Path(path)


def sbml_text(
    system: SystemParameters, doses: DoseEvents, row: int, *, name: str = "", horizon_h: float | None = None
) -> str:
    """The SBML document of one curve as text; arguments and errors as ``write_sbml``."""
    if not 0 <= row < len(system):
        raise InputError("row", "is no curve", value=row, allowed=f"0 to {len(system) - 1}")
    one: SystemParameters = _map_tensors(system, lambda t: t[row : row + 1].double())
    _check_given(one)
    mechanistic_rates(one)  # refuses what cannot be
    given = doses_to_write(_map_tensors(doses, lambda t: t[row : row + 1]), one.topology, horizon_h)
    model = SbmlModel(name or one.topology.name)
    model.note(
        f"Whole-body pharmacokinetics on the organ graph {one.topology.name}. Units: mg, L, h. C_<node> is the total "
        "concentration in a node, in whole blood for blood nodes; C_plasma is venous blood / BP. Flows that are "
        "changed must stay balanced."
    )
    names = _body(model, one)
    _flows(model, one, names)
    _eliminations(model, one, names)
    _exchanges(model, one, names)
    _saturable(model, one, names)
    _reported(model, one.topology, names)
    add_doses(model, given, one.topology, names.volume, names.drug, names.outside)
    return model.to_text()


@dataclass
class _Names:
    """Identifiers in the model by the topology's numbering."""

    volume: list[str] = field(default_factory=list)
    drug: list[str] = field(default_factory=list)
    kp: dict[int, str] = field(default_factory=dict)
    clearance: list[str] = field(default_factory=list)
    sink: list[str] = field(default_factory=list)
    unbound: dict[int, str] = field(default_factory=dict)
    fup: str = ""
    bp: str = ""
    outside: str = ""

    def leaving(self, node: int, kp_is_blood: bool) -> str:
        """Concentration in the blood that leaves a node, mg/L, as a formula."""
        if node not in self.kp:
            return self.drug[node]
        return (
            f"{self.drug[node]} / {self.kp[node]}"
            if kp_is_blood
            else f"{self.drug[node]} * {self.bp} / {self.kp[node]}"
        )


def _check_given(one: SystemParameters) -> None:
    """Refuse parameters that are not given or not finite."""
    for item in fields(one):
        values = getattr(one, item.name)
        if isinstance(values, Tensor) and not bool(values.isfinite().all()):
            raise InputError(item.name, "is not given", hint="SBML holds a model whose every parameter is known")


def _body(model: SbmlModel, one: SystemParameters) -> _Names:
    """Nodes with their volumes, drug and partition coefficients; binding; the sinks of eliminations."""
    topology, names = one.topology, _Names()
    names.fup = model.parameter("fup", "fraction unbound in plasma", float(one.fup), "dimensionless")
    names.bp = model.parameter("BP", "blood:plasma ratio", float(one.bp_ratio), "dimensionless")
    for i, node in enumerate(topology.nodes):
        names.volume.append(model.compartment(f"V_{node}", node, float(one.volume_l[0, i])))
        names.drug.append(model.species(f"C_{node}", f"drug in {node}", names.volume[i], is_amount=False))
        if not topology.is_blood[i]:
            against = "blood" if topology.kp_is_blood else "plasma"
            names.kp[i] = model.parameter(
                f"Kp_{node}", f"tissue:{against} partition coefficient of {node}", float(one.kp[0, i]), "dimensionless"
            )
    names.outside = model.compartment("outside", "outside of the body; its volume means nothing", 1.0)
    for m, elimination in enumerate(topology.eliminations):
        value = float(one.elimination_l_h[0, m])
        names.clearance.append(model.parameter(elimination.name, elimination.name, value, "L_per_h"))
        sink = f"eliminated by {elimination.name}"
        names.sink.append(model.species(f"A_{elimination.name}", sink, names.outside, is_amount=True))
    return names


def _unbound(model: SbmlModel, topology: Topology, names: _Names, node: int) -> str:
    """The unbound concentration in a node, fup C / Kp, as a rule (made once)."""
    if node not in names.unbound:
        per_kp = f" / {names.kp[node]}" if node in names.kp else ""
        names.unbound[node] = model.rule(
            f"Cu_{topology.nodes[node]}", f"unbound concentration in {topology.nodes[node]}",
            f"{names.fup} * {names.drug[node]}{per_kp}", "mg_per_L",
        )  # fmt: skip
    return names.unbound[node]


def _organ_flows(one: SystemParameters) -> np.ndarray | None:
    """Organ flows, L/h, ``(O,)``, NaN where no edge needs them; None where edge flows are not sums of organ flows."""
    flow_map, edge_flow = one.topology.flow_map, one.flow_l_h[0].numpy()
    organ = np.full(len(flow_map), np.nan)
    for e in np.flatnonzero((np.count_nonzero(flow_map, axis=0) == 1) & (flow_map.sum(0) == 1)):
        organ[int(flow_map[:, e].argmax())] = edge_flow[e]
    used = (flow_map != 0).any(1)
    if np.isnan(organ[used]).any():
        return None
    told = np.where(used, organ, 0.0) @ flow_map
    return organ if np.allclose(told, edge_flow, rtol=_FLOW_TOLERANCE, atol=0) else None


def _flow_formulas(model: SbmlModel, one: SystemParameters) -> list[str]:
    """The flow of every edge, L/h, as a formula of parameters."""
    topology = one.topology
    organ = _organ_flows(one)
    if organ is None:
        return [
            model.parameter(
                f"Q_{topology.nodes[s]}_to_{topology.nodes[t]}", f"flow {topology.nodes[s]} to {topology.nodes[t]}",
                float(one.flow_l_h[0, e]), "L_per_h",
            )
            for e, (s, t) in enumerate(topology.edges)
        ]  # fmt: skip
    names = {
        o: model.parameter(f"Q_{topology.organs[o]}", f"blood flow of {topology.organs[o]}", float(q), "L_per_h")
        for o, q in enumerate(organ)
        if not np.isnan(q)
    }
    formulas = []
    for weights in topology.flow_map.T:
        terms = sorted(((float(w), names[o]) for o, w in enumerate(weights) if w), key=lambda term: -term[0])
        shares = ((w, "" if abs(w) == 1 else f"{abs(w)!r} dimensionless * ", q) for w, q in terms)
        text = "".join(f" {'-' if w < 0 else '+'} {share}{q}" for w, share, q in shares)
        formulas.append(f"({text.removeprefix(' + ')})" if len(terms) > 1 else text.removeprefix(" + "))
    return formulas


def _flows(model: SbmlModel, one: SystemParameters, names: _Names) -> None:
    """Drug that blood carries: flow times the concentration in the leaving blood, less what is diverted on the way."""
    topology = one.topology
    per_blood = "" if topology.kp_is_blood else f" / {names.bp}"
    for e, ((source, target), flow) in enumerate(zip(topology.edges, _flow_formulas(model, one), strict=True)):
        diverted = [m for m, x in enumerate(topology.eliminations) if x.diverted_edge == e]
        carried = flow + "".join(f" - {names.clearance[m]}{per_blood}" for m in diverted)
        text = f"({carried}) * {names.leaving(source, topology.kp_is_blood)}"
        pair = f"{topology.nodes[source]}_to_{topology.nodes[target]}"
        model.reaction(
            f"flow_{pair}", f"blood flow {pair.replace('_to_', ' to ')}", names.drug[source], names.drug[target], text
        )


def _eliminations(model: SbmlModel, one: SystemParameters, names: _Names) -> None:
    topology = one.topology
    for m, elimination in enumerate(topology.eliminations):
        source, clearance = elimination.source, names.clearance[m]
        if elimination.kind == "intrinsic":
            text = f"{clearance} * {_unbound(model, topology, names, source)}"
        else:
            per_blood = f" / {names.bp}" if elimination.kind == "inflow" else ""
            text = f"{clearance}{per_blood} * {names.drug[source]}"
        model.reaction(f"elimination_{elimination.name}", elimination.name, names.drug[source], names.sink[m], text)


def _exchanges(model: SbmlModel, one: SystemParameters, names: _Names) -> None:
    """PS times the difference of the unbound plasma concentrations on both sides of the membrane."""
    topology = one.topology
    per_plasma = "" if topology.kp_is_blood else f" / {names.bp}"
    for x, exchange in enumerate(topology.exchanges):
        ps = model.parameter(
            f"PS_{exchange.name}",
            f"permeability-surface product of {exchange.name}",
            float(one.ps_l_h[0, x]),
            "L_per_h",
        )
        tissue = _unbound(model, topology, names, exchange.tissue)
        text = f"{ps} * ({names.fup} * {names.drug[exchange.vascular]}{per_plasma} - {tissue})"
        model.reaction(
            f"permeation_{exchange.name}", f"permeation into {exchange.name}", names.drug[exchange.vascular],
            names.drug[exchange.tissue], text, reversible=True,
        )  # fmt: skip


def _saturable(model: SbmlModel, one: SystemParameters, names: _Names) -> None:
    """Vmax Cu / (Km,u + Cu) for every pathway that is there."""
    topology = one.topology
    present = [p for p in range(one.vmax_mg_h.shape[1]) if float(one.vmax_mg_h[0, p]) > 0]
    if not present:
        return
    sink = names.sink[saturable_sink(topology)]
    node = topology.saturable_node
    assert node is not None  # saturable_sink has refused it
    unbound = _unbound(model, topology, names, node)
    for p in present:
        vmax = model.parameter(f"Vmax_{p + 1}", f"Vmax of pathway {p + 1}", float(one.vmax_mg_h[0, p]), "mg_per_h")
        km = model.parameter(f"Km_u_{p + 1}", f"unbound Km of pathway {p + 1}", float(one.km_u_mg_l[0, p]), "mg_per_L")
        text = f"{vmax} * {unbound} / ({km} + {unbound})"
        model.reaction(f"saturable_{p + 1}", f"saturable metabolism, pathway {p + 1}", names.drug[node], sink, text)


def _reported(model: SbmlModel, topology: Topology, names: _Names) -> None:
    """Venous plasma, and the concentration of an organ of several spaces as a whole."""
    venous = names.drug[topology.dose_node]
    model.rule("C_plasma", "venous plasma concentration", f"{venous} / {names.bp}", "mg_per_L")
    for organ, spaces in zip(topology.organs, topology.report_map, strict=True):
        nodes = np.flatnonzero(spaces)
        if len(nodes) > 1:
            drug = " + ".join(f"{names.drug[n]} * {names.volume[n]}" for n in nodes)
            volume = " + ".join(names.volume[n] for n in nodes)
            model.rule(f"C_whole_{organ}", f"concentration in {organ}", f"({drug}) / ({volume})", "mg_per_L")

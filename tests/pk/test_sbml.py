"""SBML export: valid, faithful to the parameters, and simulated by libRoadRunner it agrees with our own solvers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.data.simulate import simulate_task
from perfuse.data.table import system_parameters
from perfuse.errors import InputError, PerfuseError
from perfuse.pk.custom_topology import ExtraOrgan, add_organ, own_system
from perfuse.pk.mechanistic import organ_concentrations, solve
from perfuse.pk.sbml import sbml_text, write_sbml
from perfuse.pk.system import DoseEvents, SystemParameters
from perfuse.pk.topology import Topology, get_topology

libsbml = pytest.importorskip("libsbml", reason="python-libsbml is not installed (pip install 'perfuse[export]')")

F64 = torch.float64
TIMES_H = np.asarray([0.0, 0.05, 0.2, 0.6, 1.1, 1.9, 2.7, 4.3, 5.9, 6.3, 7.1, 8.2, 9.9, 12.4, 16.1, 23.7, 31.0, 47.9])
"""Never a dose time but 0: at a dose time we report the value before, another engine may report the one after."""
ROWS = 3
REGIMENS = {
    "bolus": [(0.0, 100.0, 0.0, 0)],
    "infusion": [(0.0, 80.0, 1.5, 0), (6.0, 40.0, 0.25, 0)],
    "oral": [(0.0, 100.0, 0.0, 1)],
    "mixed": [
        (0.0, 20.0, 0.0, 0), (0.0, 100.0, 0.0, 1), (1.0, 60.0, 5.0, 0), (2.5, 100.0, 0.0, 1), (2.5, 30.0, 0.0, 0),
        (6.0, 45.0, 2.0, 0), (6.0, 15.0, 0.0, 0), (6.0, 25.0, 0.0, 0), (8.0, 100.0, 0.0, 1), (24.0, 50.0, 0.0, 1),
    ],
}  # fmt: skip
"""Doses as (time h, amount mg, duration h, route): several at once, infusions and oral doses that overlap."""


def doses_of(regimen: str, rows: int = ROWS) -> DoseEvents:
    columns = torch.tensor(REGIMENS[regimen], dtype=F64).T
    time, amount, duration = (c.expand(rows, -1).contiguous() for c in columns[:3])
    route = columns[3].to(torch.int8).expand(rows, -1).contiguous()
    ka, lag, f_abs = ([0.7, 2.0, 0.25], [0.4, 0.0, 2.0], [0.6, 1.0, 0.35])
    absorption = (torch.tensor(v, dtype=F64)[:rows] for v in (ka, lag, f_abs))
    return DoseEvents(time, amount, duration, route, *absorption)


@cache
def drawn(topology_name: str, saturable: bool = False) -> SystemParameters:
    """Random drugs in random people (tasks T1 and T2); PS and saturable pathways drawn here."""
    if topology_name == "hub":
        return system_parameters(simulate_task("T1", ROWS, seed=5))
    table = simulate_task("T2", ROWS, seed=5)
    topology = get_topology(topology_name)
    random = np.random.default_rng(5)
    ps = 10 ** random.uniform(-1, 2, (ROWS, topology.n_exchanges))
    changed: dict[str, Any] = {"topology": topology, "ps_l_h": ps}
    if saturable:
        # Two pathways that begin far above, and end far below, saturation; the third drug has one of them only.
        changed["elimination_l_h"] = table.elimination_l_h * [[0.1, 1.0]]
        changed["vmax_mg_h"] = np.asarray([[8.0, 2.0], [30.0, 1.0], [0.0, 12.0]])
        changed["km_u_mg_l"] = np.asarray([[0.01, 0.3], [0.5, 0.002], [1.0, 0.04]]) * table.fup[:, None]
    return system_parameters(replace(table, **changed))


def with_values(text: str, changes: dict[str, float]) -> str:
    """The file as a reader would have it who gave parameters and compartments other values."""
    document = libsbml.readSBMLFromString(text)
    for name, value in changes.items():
        item = document.getModel().getElementBySId(name)
        assert (item.setSize if isinstance(item, libsbml.Compartment) else item.setValue)(value) == 0
    return libsbml.writeSBMLToString(document)


def simulated(text: str, columns: tuple[str, ...] = ()) -> dict[str, Any]:
    """Amounts (species), and named quantities, ``(T,)`` each, by libRoadRunner's CVODE."""
    roadrunner = pytest.importorskip("roadrunner", reason="libroadrunner is not installed (pip install 'perfuse[dev]')")
    model = roadrunner.RoadRunner(text)
    model.integrator.relative_tolerance = 1e-12
    model.integrator.absolute_tolerance = 1e-16
    model.integrator.maximum_num_steps = 10**6
    names = [*model.model.getFloatingSpeciesIds(), *columns]
    out = np.asarray(model.simulate(times=TIMES_H.tolist(), selections=["time", *names]))
    assert np.array_equal(out[:, 0], TIMES_H)
    return dict(zip(names, out[:, 1:].T, strict=True))


def ours(system: SystemParameters, doses: DoseEvents, row: int) -> dict[str, np.ndarray]:
    """The same, by our own solver, under the names of the file."""
    topology = system.topology
    times = torch.as_tensor(TIMES_H).expand(len(system), -1)
    amounts = solve(system, doses, times, with_sinks=True)[row].numpy()
    names = [f"C_{n}" for n in topology.nodes] + [f"A_{e}" for e in topology.elimination_names]
    return dict(zip([*names, "lumen", "lost"], amounts, strict=True))


def largest_difference(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> float:
    """Largest relative difference over all nodes, sinks and the lumen, where a value is above 1e-9 of its peak."""
    theirs = dict(theirs)
    nothing = np.zeros(len(TIMES_H))
    theirs["lumen"] = theirs.pop("A_lumen", nothing) + theirs.pop("A_lag", nothing)
    theirs["lost"] = theirs.pop("A_not_absorbed", nothing)
    assert theirs.keys() == ours.keys()
    worst = 0.0
    for name, expected in ours.items():
        seen = expected > 1e-9 * expected.max()
        if name not in ("lumen", "lost"):
            assert seen.sum() >= 12, f"too little of {name} is compared"
        if seen.any():
            worst = max(worst, float(np.abs(theirs[name] / np.where(seen, expected, 1) - 1)[seen].max()))
    return worst


@pytest.mark.parametrize("regimen", REGIMENS)
@pytest.mark.parametrize(
    ("topology", "saturable"),
    [
        ("hub", False),
        ("circulation", False),
        ("circulation", True),
        ("circulation-ps", False),
        ("circulation-ps", True),
    ],
)
def test_roadrunner_agrees(topology: str, saturable: bool, regimen: str) -> None:
    system, doses = drawn(topology, saturable), doses_of(regimen)
    worst = [largest_difference(simulated(sbml_text(system, doses, r)), ours(system, doses, r)) for r in range(ROWS)]
    print(f"largest relative difference {topology} saturable={saturable} {regimen}: {max(worst):.1e}")
    assert max(worst) < 1e-6


def test_reported_organs_and_plasma_agree() -> None:
    system, doses = drawn("circulation-ps"), doses_of("mixed")
    limited = ("brain", "adipose", "muscle")
    theirs = simulated(sbml_text(system, doses, 0), columns=("C_plasma", *(f"C_whole_{o}" for o in limited)))
    amounts = solve(system, doses, torch.as_tensor(TIMES_H).expand(ROWS, -1))
    organs = organ_concentrations(system, amounts)[0].numpy()
    for organ in limited:
        expected = organs[system.topology.organs.index(organ)]
        assert np.allclose(theirs[f"C_whole_{organ}"][1:], expected[1:], rtol=1e-6, atol=0), organ
    assert np.allclose(theirs["C_plasma"][1:], organs[0, 1:] / float(system.bp_ratio[0]), rtol=1e-6, atol=0)


def test_parameters_of_the_file_are_live() -> None:
    """A reader who changes a parameter gets the model of the changed parameter: nothing is numbers baked in."""
    system, doses = drawn("circulation-ps"), doses_of("mixed")
    changes = {
        "Kp_adipose": 9.0, "Kp_liver": 0.4, "fup": 0.33, "BP": 1.7, "clint_l_h": 75.0, "cl_renal_l_h": 4.0,
        "PS_brain": 0.02, "ka": 1.3, "lag": 0.9, "f_abs": 0.8, "Dose_1": 70.0, "Dose_3": 11.0, "Duration_3": 4.0,
        "T_1": 0.5, "V_muscle": 40.0,
    }  # fmt: skip
    names = [system.topology.nodes.index(n) for n in ("adipose", "liver", "muscle")]
    kp, volume, ps = system.kp[:1].clone(), system.volume_l[:1].clone(), system.ps_l_h[:1].clone()
    kp[0, names[0]], kp[0, names[1]], volume[0, names[2]], ps[0, 0] = 9.0, 0.4, 40.0, 0.02
    one = lambda v: torch.tensor([v], dtype=F64)  # noqa: E731
    changed = SystemParameters(
        system.topology, volume, kp, system.flow_l_h[:1], torch.tensor([[75.0, 4.0]], dtype=F64), one(0.33),
        one(1.7), ps,
    )  # fmt: skip
    old = doses_of("mixed", 1)
    time, amount, duration = old.time_h.clone(), old.amount_mg.clone(), old.duration_h.clone()
    time[time == 1.0] = 0.5
    amount[0, 0], amount[0, 2] = 70.0, 11.0
    duration[0, 2] = 4.0
    new = DoseEvents(time, amount, duration, old.route, one(1.3), one(0.9), one(0.8))
    theirs = simulated(with_values(sbml_text(system, doses, 0), changes))
    assert largest_difference(theirs, ours(changed, new, 0)) < 1e-6


def test_names_become_identifiers_and_nothing_else(tmp_path: Path) -> None:
    plain = get_topology("circulation")
    nodes = list(plain.nodes)
    nodes[3], nodes[4], nodes[5] = "C_venous * 0 + 1e9", "a<b>&amp;\"'\x00]]>", "a_b__amp____]]_"
    elimination = replace(plain.eliminations[0], name="time")
    topology = replace(plain, nodes=tuple(nodes), name="</model>", eliminations=(elimination, plain.eliminations[1]))
    system, doses = replace(drawn("circulation"), topology=topology), doses_of("mixed")
    path = write_sbml(system, doses, 1, tmp_path / "m.xml", name="pi()")
    document = libsbml.readSBMLFromFile(str(path))
    assert document.getNumErrors() == 0
    model = document.getModel()
    ids = [model.getSpecies(i).getId() for i in range(topology.n_nodes)]
    assert len(set(ids)) == topology.n_nodes
    assert ids[3] == "C_C_venous___0___1e9"
    assert model.getCompartment(4).getName() == "a<b>&amp;\"']]>"
    theirs = list(simulated(path.read_text()).values())
    expected = list(ours(replace(system, topology=plain), doses, 1).values())
    for a, b in zip(theirs[: topology.n_nodes + 2], expected, strict=False):
        assert np.allclose(a[1:], b[1:], rtol=1e-6, atol=0)


def edge_flows_of_their_own() -> tuple[SystemParameters, DoseEvents]:
    """A topology whose edge flows are no sums of organ flows, with a gut and a liver of another numbering."""
    system = drawn("circulation")
    order = np.random.default_rng(0).permutation(system.topology.n_nodes)
    topology = replace(system.topology.permuted(order.tolist()), flow_map=np.zeros_like(system.topology.flow_map))
    index = torch.as_tensor(order)
    return replace(system, topology=topology, volume_l=system.volume_l[:, index], kp=system.kp[:, index]), doses_of(
        "oral"
    )


def test_flows_by_edge_where_organs_do_not_make_them() -> None:
    system, doses = edge_flows_of_their_own()
    text = sbml_text(system, doses, 0)
    assert 'id="Q_arterial_to_liver"' in text
    assert 'id="Q_liver"' not in text
    assert largest_difference(simulated(text), ours(system, doses, 0)) < 1e-6


def test_flows_that_are_shares_of_organ_flows() -> None:
    plain = get_topology("circulation")
    flow_map = plain.flow_map.copy()
    edge = plain.edges.index((plain.nodes.index("skin"), plain.nodes.index("venous")))
    flow_map[:, edge] = 0
    flow_map[plain.organs.index("bone"), edge] = 1.25
    system = drawn("circulation")
    flow = system.flow_l_h[:1].clone()
    bone = plain.edges.index((plain.nodes.index("bone"), plain.nodes.index("venous")))
    flow[0, edge] = 1.25 * flow[0, bone]
    one = SystemParameters(
        replace(plain, flow_map=flow_map), system.volume_l[:1], system.kp[:1], flow, system.elimination_l_h[:1],
        system.fup[:1], system.bp_ratio[:1],
    )  # fmt: skip
    text = sbml_text(one, doses_of("bolus", 1), 0)
    assert libsbml.readSBMLFromString(text).checkConsistency() == 0
    assert largest_difference(simulated(text), ours(one, doses_of("bolus", 1), 0)) < 1e-6


def with_a_tumour() -> SystemParameters:
    """A permeability-limited organ with a clearance of its own, added to a body that has three."""
    organ = {"name": "tumour", "volume_l": 0.05, "flow_l_h": 1.2, "kp": 1.5, "ps_l_h": 0.4, "vascular_fraction": 0.07,
             "clint_l_h": 3.0}  # fmt: skip
    return add_organ(drawn("circulation-ps"), ExtraOrgan.from_mapping(organ))


def two_spaces() -> SystemParameters:
    """A graph of one's own."""
    flow = {"from": "blood", "to": "tissue", "flow_l_h": 60.0}
    back = {"from": "tissue", "to": "blood", "flow_l_h": 60.0}
    data = {
        "name": "minimal", "dose": "blood", "flow": [flow, back],
        "node": [{"name": "blood", "volume_l": 5.0, "blood": True}, {"name": "tissue", "volume_l": 40.0, "kp": 0.8}],
        "elimination": [{"name": "cl_l_h", "kind": "blood_clearance", "organ": "blood", "clearance_l_h": 6.0}],
    }  # fmt: skip
    return own_system(data, fup=0.3, bp_ratio=1.4)


@pytest.mark.parametrize(("make", "regimen"), [(with_a_tumour, "mixed"), (two_spaces, "infusion")])
def test_organs_of_ones_own_agree(make: Callable[[], SystemParameters], regimen: str) -> None:
    system = make()
    doses = doses_of(regimen, len(system))
    assert largest_difference(simulated(sbml_text(system, doses, 0)), ours(system, doses, 0)) < 1e-6


def test_file_is_valid_and_says_what_it_holds(tmp_path: Path) -> None:
    system, doses = drawn("circulation-ps", True), doses_of("mixed")
    path = write_sbml(system, doses, 0, tmp_path / "m.xml", name="drug A")
    document = libsbml.readSBMLFromFile(str(path))
    document.setConsistencyChecks(libsbml.LIBSBML_CAT_UNITS_CONSISTENCY, True)
    assert document.checkConsistency() == 0, document.getErrorLog().toString()
    assert (document.getLevel(), document.getVersion()) == (3, 2)
    model = document.getModel()
    assert model.getName() == "drug A"
    law = {model.getReaction(i).getId(): model.getReaction(i).getKineticLaw() for i in range(model.getNumReactions())}
    formula = {name: libsbml.formulaToL3String(item.getMath()) for name, item in law.items()}
    assert formula["flow_liver_to_venous"] == "Q_liver * C_liver * BP / Kp_liver"
    assert formula["flow_arterial_to_liver"] == "(Q_liver - Q_gut - Q_spleen - Q_pancreas) * C_arterial"
    assert formula["flow_arterial_to_kidney"] == "(Q_kidney - cl_renal_l_h / BP) * C_arterial"
    assert formula["saturable_2"] == "Vmax_2 * Cu_liver / (Km_u_2 + Cu_liver)"
    assert formula["permeation_brain"] == "PS_brain * (fup * C_brain_vascular / BP - Cu_brain)"
    assert model.getParameter("fup").getValue() == pytest.approx(float(system.fup[0]), rel=1e-14)
    assert sbml_text(system, doses, 0, name="drug A") == path.read_text()


def test_doses_after_the_horizon_are_left_out() -> None:
    text = sbml_text(drawn("circulation"), doses_of("mixed"), 0, horizon_h=8.0)
    assert 'id="Dose_9"' in text
    assert 'id="Dose_10"' not in text


def test_padding_is_no_dose_and_an_absent_pathway_no_reaction() -> None:
    zero = torch.zeros(1, 2, dtype=F64)
    doses = DoseEvents(zero, torch.tensor([[5.0, 0.0]], dtype=F64), zero)
    text = sbml_text(drawn("circulation", True), replace_rows(doses, ROWS), 2)
    assert "Dose_1" in text and "Dose_2" not in text
    assert "Vmax_2" in text and "Vmax_1" not in text


def replace_rows(doses: DoseEvents, rows: int) -> DoseEvents:
    """The one row of doses for every curve."""
    return DoseEvents(*(t.expand(rows, -1) for t in (doses.time_h, doses.amount_mg, doses.duration_h)))


def changed_doses(**changes: torch.Tensor) -> DoseEvents:
    return replace(doses_of("oral"), **changes)


@pytest.mark.parametrize(
    ("change", "doses", "row", "match"),
    [
        ({}, {}, 3, r"row is no curve \(got 3\); allowed: 0 to 2"),
        ({}, {}, -1, "row is no curve"),
        ({"kp": torch.full((ROWS, 15), torch.nan)}, {}, 0, "kp is not given"),
        ({"elimination_l_h": torch.full((ROWS, 2), 1e4)}, {}, 0, "cl_renal_l_h exceeds kidney blood flow"),
        ({}, {"time_h": torch.full((ROWS, 1), -1.0)}, 0, r"dose time is not allowed \(got -1 h\)"),
        ({}, {"amount_mg": torch.full((ROWS, 1), torch.inf)}, 0, "dose amount is not allowed"),
        ({"topology": replace(get_topology("circulation"), absorption_node=None)}, {}, 0, "route has no gut"),
        (
            {"topology": replace(get_topology("circulation"), saturable_node=None), "vmax_mg_h": torch.ones(ROWS, 1),
             "km_u_mg_l": torch.ones(ROWS, 1)}, {}, 0, "vmax_mg_h has no organ to act in",
        ),
    ],
)  # fmt: skip
def test_refusals(change: dict[str, Any], doses: dict[str, Any], row: int, match: str, tmp_path: Path) -> None:
    system = replace(drawn("circulation"), **change)
    with pytest.raises(InputError, match=match):
        write_sbml(system, changed_doses(**doses), row, tmp_path / "m.xml")
    assert not list(tmp_path.iterdir())


def test_without_libsbml_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libsbml", None)
    with pytest.raises(PerfuseError, match=r"python-libsbml.*pip install 'perfuse\[export\]'"):
        sbml_text(drawn("circulation"), doses_of("bolus"), 0)


def test_a_saturable_topology_needs_no_gut() -> None:
    topology: Topology = replace(get_topology("circulation"), absorption_node=None)
    assert "Dose_1" in sbml_text(replace(drawn("circulation", True), topology=topology), doses_of("bolus"), 0)

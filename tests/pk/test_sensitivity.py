"""Elasticities against central differences and known exponents; Sobol and Morris on a product whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from perfuse.errors import InputError
from perfuse.pk.custom_topology import own_system
from perfuse.pk.mechanistic import solve
from perfuse.pk.physiology import hub_reference, human_reference
from perfuse.pk.regimen import DoseCourse, dose_events
from perfuse.pk.sensitivity import (
    auc_inf,
    auc_last,
    clearance,
    cmax,
    concentration,
    elasticities,
    global_sensitivity,
    half_life,
    parameter_names,
    vss,
    with_factors,
)
from perfuse.pk.system import SystemParameters
from perfuse.pk.topology import Topology, get_topology

DOSES = dose_events([[DoseCourse(100.0), DoseCourse(50.0, "oral", time_h=3.0)]], [0.8], [0.2], [0.6])


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def make_system(saturable: bool = False, name: str = "circulation-ps") -> SystemParameters:
    topology = get_topology(name)
    person = human_reference(70)
    kp = np.where(topology.is_blood, 1.0, np.linspace(0.6, 3, topology.n_nodes))
    return SystemParameters(
        topology, row(*(person.volume_l @ topology.volume_map)), row(*kp), row(*(person.flow_l_h @ topology.flow_map)),
        row(150.0, 4.0), row(0.3)[0], row(0.8)[0], row(5.0, 20.0, 80.0) if topology.exchanges else torch.empty(1, 0),
        row(20.0, 5.0) if saturable else torch.empty(1, 0), row(0.5, 3.0) if saturable else torch.empty(1, 0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("output", "saturable"),
    [
        (auc_inf("liver"), False), (auc_inf("brain"), False), (half_life, False),
        (concentration("adipose", 5.0), False),
        (concentration("blood", 1.0), True), (cmax("muscle", np.linspace(0.1, 8, 60)), False),
        (auc_last("brain", np.linspace(0.1, 8, 60)), False), (clearance, False), (vss, False),
    ],
)  # fmt: skip
def test_elasticities_are_central_differences(output: object, saturable: bool) -> None:
    system, h = make_system(saturable), 1e-4
    found = elasticities(system, DOSES, output)  # type: ignore[arg-type]
    assert found.names == parameter_names(system, DOSES)
    for i, name in enumerate(found.names):
        ends = [output(*with_factors(system, DOSES, {name: torch.tensor([np.exp(d)])})) for d in (h, -h)]  # type: ignore[operator]
        expected = float((ends[0].log() - ends[1].log())[0]) / (2 * h)
        assert found.value[0, i] == pytest.approx(expected, abs=2e-6 if not saturable else 2e-5), name


def test_known_exponents() -> None:
    """AUC is proportional to f_abs of an oral dose; with all clearances doubled it halves; volumes never matter."""
    oral = dose_events([[DoseCourse(50.0, "oral")]], [0.8])
    found = elasticities(make_system(), oral, auc_inf("blood"))
    value = dict(zip(found.names, found.value[0], strict=True))
    assert value["f_abs"] == pytest.approx(1, abs=1e-12)
    assert value["ka_1_h"] == 0
    assert all(abs(v) < 1e-12 for name, v in value.items() if name.startswith("volume_l."))
    assert -1 < value["clint_l_h"] < -0.5
    assert found.largest(1)[0][1] == pytest.approx(max(value.values(), key=abs))


def balance(topology: Topology, flow: torch.Tensor) -> float:
    """Largest difference between what enters and what leaves a node."""
    worst = 0.0
    for node in range(topology.n_nodes):
        entering = sum(float(flow[0, e]) for e, (_, d) in enumerate(topology.edges) if d == node)
        leaving = sum(float(flow[0, e]) for e, (s, _) in enumerate(topology.edges) if s == node)
        worst = max(worst, abs(entering - leaving))
    return worst


@pytest.mark.parametrize("name", ["circulation", "circulation-ps", "hub"])
def test_a_factor_on_a_flow_keeps_blood_balanced(name: str) -> None:
    topology = get_topology(name)
    person = hub_reference() if name == "hub" else human_reference(70)
    system = make_system() if name == "circulation-ps" else SystemParameters(
        topology, row(*(person.volume_l @ topology.volume_map)), torch.ones(1, topology.n_nodes).double(),
        row(*(person.flow_l_h @ topology.flow_map)), row(20.0, 4.0), row(0.3)[0], row(0.8)[0],
    )  # fmt: skip
    names = [n for n in parameter_names(system, DOSES) if n.startswith("flow_l_h.")]
    assert len(names) == (13 if name == "hub" else 12)
    for parameter in names:
        changed, _ = with_factors(system, DOSES, {parameter: torch.tensor([1.3]).double()})
        assert balance(topology, changed.flow_l_h) < 1e-10, parameter
        node = topology.nodes.index(parameter.split(".")[1])
        inflow = [e for e, (_, d) in enumerate(topology.edges) if d == node]
        ratio = float(changed.flow_l_h[0, inflow].sum() / system.flow_l_h[0, inflow].sum())
        assert ratio == pytest.approx(1.3), parameter


def test_the_livers_flow_comes_by_its_artery_and_cannot_turn_round() -> None:
    system = make_system()
    topology = system.topology
    more, _ = with_factors(system, DOSES, {"flow_l_h.liver": torch.tensor([1.1]).double()})
    artery = topology.edges.index((topology.nodes.index("arterial"), topology.nodes.index("liver")))
    portal = topology.edges.index((topology.nodes.index("gut"), topology.nodes.index("liver")))
    assert float(more.flow_l_h[0, artery]) > float(system.flow_l_h[0, artery])
    assert float(more.flow_l_h[0, portal]) == float(system.flow_l_h[0, portal])
    with pytest.raises(InputError, match="turns the flow from arterial to liver round"):
        with_factors(system, DOSES, {"flow_l_h.liver": torch.tensor([0.5]).double()})


def test_flows_of_a_graph_of_ones_own_stay_balanced() -> None:
    """gut -> liver in series, no arterial node: more blood through the gut goes on through the liver."""
    flow = lambda source, target, q: {"from": source, "to": target, "flow_l_h": q}  # noqa: E731
    system = own_system({
        "name": "own", "dose": "pool",
        "node": [{"name": n, "volume_l": 2.0, "blood": n == "pool"} for n in ("pool", "gut", "liver")],
        "flow": [flow("pool", "gut", 60.0), flow("gut", "liver", 60.0), flow("pool", "liver", 20.0),
                 flow("liver", "pool", 80.0)],
        "elimination": [{"name": "cl", "kind": "intrinsic", "organ": "liver", "clearance_l_h": 30.0}],
    }, fup=0.5, bp_ratio=1.0)  # fmt: skip
    changed, _ = with_factors(system, DOSES, {"flow_l_h.gut": torch.tensor([1.5]).double()})
    assert changed.flow_l_h.tolist() == [[90.0, 90.0, 20.0, 110.0]]


def test_clearance_and_vss_are_their_closed_forms_on_the_hub() -> None:
    """Elimination from blood: CL is the sum of both clearances, Vss = V_blood + sum V Kp."""
    person, topology = hub_reference(), get_topology("hub")
    kp = np.where(topology.is_blood, 1.0, np.linspace(0.6, 3, topology.n_nodes))
    system = SystemParameters(
        topology, row(*person.volume_l), row(*kp), row(*(person.flow_l_h @ topology.flow_map)), row(20.0, 4.0),
        row(0.3)[0], row(1.0)[0],
    )  # fmt: skip
    assert float(clearance(system, DOSES)) == pytest.approx(24.0, rel=1e-10)
    assert float(vss(system, DOSES)) == pytest.approx(float(person.volume_l @ kp), rel=1e-10)


def test_auc_last_tends_to_auc_inf() -> None:
    system, oral = make_system(), dose_events([[DoseCourse(50.0, "oral")]], [0.8])
    times = np.concatenate([np.linspace(0, 24, 2001), np.geomspace(24.1, 600, 2000)])
    assert float(auc_last("liver", times)(system, oral)) == pytest.approx(
        float(auc_inf("liver")(system, oral)), rel=1e-4
    )


def test_half_life_is_the_terminal_slope_of_the_curve() -> None:
    system = make_system()
    late = solve(system, dose_events([[DoseCourse(1.0)]]), row(400.0, 450.0))[0, 0]
    slope = float((late[0] / late[1]).log() / 50)
    assert float(half_life(system, DOSES)[0]) == pytest.approx(np.log(2) / slope, rel=1e-6)


def test_sobol_and_morris_rank_what_matters() -> None:
    """AUC of a low-extraction drug is close to 1 / (fup CLint): both logs weigh alike, others nothing."""
    pytest.importorskip("SALib", reason="SALib is an extra")
    system = make_system()
    ranges = {"fup": (0.5, 2.0), "clint_l_h": (0.5, 2.0), "volume_l.muscle": (0.5, 2.0)}
    output = auc_inf("lung")
    sobol = global_sensitivity(system, dose_events([[DoseCourse(1.0)]]), output, ranges, n=128)
    assert sobol["volume_l.muscle"]["st"] < 1e-6
    assert 0.3 < sobol["clint_l_h"]["st"] < 0.8
    assert sobol["fup"]["st"] == pytest.approx(sobol["clint_l_h"]["st"], abs=0.15)
    again = global_sensitivity(system, dose_events([[DoseCourse(1.0)]]), output, ranges, n=128)
    assert all(again[name][key] == sobol[name][key] for name in ranges for key in ("s1", "st"))
    morris = global_sensitivity(system, dose_events([[DoseCourse(1.0)]]), output, ranges, "morris", n=20)
    assert morris["volume_l.muscle"]["mu_star"] < 1e-9 < morris["fup"]["mu_star"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda s: elasticities(s, DOSES, auc_inf("liver"), ["kp.nose"]), "parameter is unknown"),
        (lambda s: elasticities(s, DOSES, auc_inf("nose")), "organ is unknown"),
        (lambda s: elasticities(make_system(True), DOSES, auc_inf("liver")), "needs linear kinetics"),
        (lambda s: elasticities(s, DOSES, lambda *_: torch.zeros(1)), "is not positive"),
        (lambda s: global_sensitivity(s, DOSES, half_life, {"fup": (2.0, 1.0)}), "0 < low < high"),
        (lambda s: global_sensitivity(s, DOSES, half_life, {}), "ranges are missing"),
        (lambda s: global_sensitivity(s, DOSES, half_life, {"fup": (0.5, 1.0)}, "fast"), "method is unknown"),
        (lambda s: global_sensitivity(s, DOSES, half_life, {"nose": (0.5, 1.0)}), "parameter is unknown"),
        (lambda s: global_sensitivity(s, DOSES, half_life, {"fup": (0.5, 1.0)}, n=100), "no power of 2"),
        (lambda s: global_sensitivity(s, DOSES, half_life, {"fup": (0.5, 1.0)}, "morris", n=0), "n is not allowed"),
        (lambda s: elasticities(make_system(True), DOSES, clearance), "needs linear kinetics"),
        (lambda s: elasticities(make_system(True), DOSES, vss), "needs linear kinetics"),
    ],
)
def test_bad_requests_are_refused(run: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(make_system())  # type: ignore[operator]


def test_half_life_of_a_slowly_absorbed_drug_is_its_absorptions() -> None:
    slow = dose_events([[DoseCourse(50.0, "oral")]], [0.01], [0.0], [1.0])
    assert float(half_life(make_system(), slow)[0]) == pytest.approx(np.log(2) / 0.01)
    found = elasticities(make_system(), slow, half_life, ["ka_1_h", "fup"])
    assert found.value[0].tolist() == pytest.approx([-1.0, 0.0], abs=1e-12)

"""Organs of the user's own: mass and flow balance, limits, and one line for everything that cannot be."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.errors import InputError
from perfuse.pk.custom_topology import ExtraOrgan, add_organ, own_system
from perfuse.pk.mechanistic import organ_concentrations, solve
from perfuse.pk.physiology import human_reference
from perfuse.pk.regimen import DoseCourse, dose_events
from perfuse.pk.system import SystemParameters
from perfuse.pk.topology import circulation, get_topology

DOSES = dose_events([[DoseCourse(100.0)]])
TIMES = torch.tensor([[0.3, 2.0, 9.0, 40.0]], dtype=torch.float64)
MINIMAL = """
name = "minimal"
dose = "blood"
absorption = "gut"
saturable = "liver"
[[node]]
name = "blood"
volume_l = 5.0
blood = true
[[node]]
name = "liver"
volume_l = 1.8
kp = 3.0
[[node]]
name = "gut"
volume_l = 1.2
[[node]]
name = "rest"
volume_l = 60.0
kp = 0.7
[[flow]]
from = "blood"
to = "gut"
flow_l_h = 60.0
[[flow]]
from = "gut"
to = "liver"
flow_l_h = 60.0
[[flow]]
from = "blood"
to = "liver"
flow_l_h = 25.0
[[flow]]
from = "liver"
to = "blood"
flow_l_h = 85.0
[[flow]]
from = "blood"
to = "rest"
flow_l_h = 200.0
[[flow]]
from = "rest"
to = "blood"
flow_l_h = 200.0
[[elimination]]
name = "clint_l_h"
kind = "intrinsic"
organ = "liver"
clearance_l_h = 40.0
[[elimination]]
name = "cl_renal_l_h"
kind = "blood_clearance"
organ = "blood"
clearance_l_h = 3.0
"""


def circulation_system() -> SystemParameters:
    row = lambda x: torch.as_tensor(np.asarray([x], dtype=np.float64))  # noqa: E731
    topology, person = get_topology("circulation"), human_reference(70)
    kp = np.where(topology.is_blood, 1.0, np.linspace(0.6, 3, topology.n_nodes))
    return SystemParameters(
        topology, row(person.volume_l @ topology.volume_map), row(kp), row(person.flow_l_h @ topology.flow_map),
        row([150.0, 4.0]), row(0.3)[0:1], row(0.8)[0:1],
    )  # fmt: skip


def balanced(system: SystemParameters) -> bool:
    topology = system.topology
    for node in range(topology.n_nodes):
        entering = sum(float(system.flow_l_h[0, e]) for e, (_, d) in enumerate(topology.edges) if d == node)
        leaving = sum(float(system.flow_l_h[0, e]) for e, (s, _) in enumerate(topology.edges) if s == node)
        if abs(entering - leaving) > 1e-9 * (entering + 1):
            return False
    return True


@pytest.mark.parametrize("drains_to", ["venous", "liver"])
def test_a_tumour_joins_the_circulation(drains_to: str) -> None:
    base = circulation_system()
    tumour = ExtraOrgan(
        "tumour", 0.05, 1.2, kp=1.5, drains_to=drains_to, ps_l_h=0.4, vascular_fraction=0.07, clint_l_h=2.0
    )
    system = add_organ(base, tumour)
    assert balanced(system)
    assert float(system.volume_l.sum()) == pytest.approx(float(base.volume_l.sum()))
    out = solve(system, DOSES, TIMES, with_sinks=True)
    torch.testing.assert_close(out.sum(1), torch.full((1, 4), 100.0, dtype=torch.float64), rtol=1e-11, atol=0)
    conc = organ_concentrations(system, out)
    assert conc.shape[1] == 15
    assert system.topology.organs[-1] == "tumour"
    assert (conc > 0).all()
    assert float(out[0, -3, -1]) > 0  # metabolised in the tumour


def test_a_tumour_like_its_giver_changes_nothing_else() -> None:
    """An organ cut out of ``other`` with the same flow per volume and Kp behaves as that part of it did."""
    base = circulation_system()
    other = base.topology.nodes.index("other")
    share = 0.25
    inflow = next(e for e, (_, d) in enumerate(base.topology.edges) if d == other)
    twin = ExtraOrgan(
        "twin",
        float(base.volume_l[0, other]) * share,
        float(base.flow_l_h[0, inflow]) * share,
        kp=float(base.kp[0, other]),
    )
    with_twin = add_organ(base, twin)
    before = organ_concentrations(base, solve(base, DOSES, TIMES))
    after = organ_concentrations(with_twin, solve(with_twin, DOSES, TIMES))
    torch.testing.assert_close(after[:, :14], before, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(after[:, 14], before[:, 13], rtol=1e-9, atol=1e-13)


def test_a_graph_of_ones_own_obeys_the_closed_forms() -> None:
    system = own_system(tomllib.loads(MINIMAL), fup=0.5, bp_ratio=1.25)
    assert system.topology.organs == ("blood", "liver", "gut", "rest")
    oral = dose_events([[DoseCourse(100.0, "oral")]], [1.3], [0.1], [0.8])
    out = solve(system, oral, TIMES, with_sinks=True)
    torch.testing.assert_close(out.sum(1), torch.full((1, 4), 100.0, dtype=torch.float64), rtol=1e-11, atol=0)
    x, q = 0.5 * 40.0 / 1.25, 85.0
    late = solve(system, oral, torch.tensor([[1e5]], dtype=torch.float64), with_sinks=True)[0, :, 0]
    hepatic_clearance = q * x / (q + x)
    f = 0.8 * q / (q + x)  # what reaches blood past the liver
    renal = f * 100 * 3.0 / (3.0 + hepatic_clearance)
    assert float(late[5]) == pytest.approx(renal, rel=1e-9)


def test_saturable_pathways_act_in_the_named_organ() -> None:
    system = own_system(tomllib.loads(MINIMAL), 0.5, 1.25)
    row = lambda x: torch.tensor([[x]], dtype=torch.float64)  # noqa: E731
    huge = replace(system, elimination_l_h=torch.tensor([[0.0, 3.0]]).double(), vmax_mg_h=row(40e6), km_u_mg_l=row(1e6))
    torch.testing.assert_close(solve(huge, DOSES, TIMES), solve(system, DOSES, TIMES), rtol=2e-5, atol=1e-12)


def test_inflow_eliminations_and_exchanges_of_ones_own() -> None:
    data = tomllib.loads(MINIMAL)
    data["elimination"][1] = {"name": "clr", "kind": "inflow", "organ": "rest", "from": "blood", "clearance_l_h": 3.0}
    data["node"].append({"name": "depot", "volume_l": 3.0, "kp": 2.0})
    data["node"].append({"name": "depot_vessels", "volume_l": 0.2})
    data["flow"] += [
        {"from": "blood", "to": "depot_vessels", "flow_l_h": 4.0},
        {"from": "depot_vessels", "to": "blood", "flow_l_h": 4.0},
    ]
    data["exchange"] = [{"vascular": "depot_vessels", "tissue": "depot", "ps_l_h": 1.0}]
    system = own_system(data, 0.5, 1.0)
    out = solve(system, DOSES, TIMES, with_sinks=True)
    torch.testing.assert_close(out.sum(1), torch.full((1, 4), 100.0, dtype=torch.float64), rtol=1e-11, atol=0)
    assert system.topology.organs[-1] == "depot"


def _edited(**change: Any) -> dict[str, Any]:
    data = tomllib.loads(MINIMAL)
    for path, value in change.items():
        *steps, last = [int(p) if p.isdigit() else p for p in path.split("__")]
        target: Any = data
        for step in steps:
            target = target[step]
        target[last] = value
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dose": "nose"}, "dose is no node"), ({"name": "a b"}, "name is no name"),
        ({"node__0__volume_l": -1.0}, "volume_l"),
        ({"node__0__volume_l": "big"}, "volume_l is not a number"), ({"node__1__name": "blood"}, "names one twice"),
        ({"flow__0__flow_l_h": 61.0}, "into and out of"),
        ({"flow__0__to": "nose"}, "to is no node"),
        ({"elimination__0__kind": "magic"}, "kind"), ({"elimination__1__kind": "inflow"}, "from is no node"),
        ({"elimination__0__clearance_l_h": -1.0}, "clearance_l_h"), ({"colour": "red"}, "colour is no known key"),
        ({"node__2__kp": 0.0}, "kp"), ({"node__0__blood": "true"}, "neither true nor false"),
        ({"node__0__kp": 2.0}, "is 1 in blood"), ({"kp_is_blood": "yes"}, "neither true nor false"),
        ({"elimination__0__organ": "blood"}, "is intrinsic, and in blood"),
        ({"saturable": "blood"}, "is intrinsic"), ({"node": {}}, "node is no list of tables"),
        ({"node__0__size": 1}, "size is no known key"),
    ],
)  # fmt: skip
def test_graphs_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        own_system(_edited(**change), 0.5, 1.0)


@pytest.mark.parametrize(
    ("organ", "message"),
    [
        ({"name": "tumour", "volume_l": 0.0, "flow_l_h": 1.0}, "volume_l"),
        ({"name": "../x", "volume_l": 1, "flow_l_h": 1}, "is no name"),
        ({"name": "tumour", "volume_l": 0.1}, "flow_l_h is missing"),
        ({"name": "liver", "volume_l": 0.1, "flow_l_h": 1.0}, "is taken"),
        ({"name": "tumour", "volume_l": 99.0, "flow_l_h": 1.0}, "volume_l exceeds that of other"),
        ({"name": "tumour", "volume_l": 0.1, "flow_l_h": 400.0}, "flow_l_h exceeds"),
        ({"name": "tumour", "volume_l": 0.1, "flow_l_h": 1.0, "ps_l_h": 1.0}, "vascular_fraction"),
        ({"name": "tumour", "volume_l": 0.1, "flow_l_h": 1.0, "drains_to": "brain"}, "drains_to"),
        ({"name": "tumour", "volume_l": 0.1, "flow_l_h": 1.0, "take_from": "gut"}, "take_from is no organ"),
        ({"name": "tumour", "volume_l": 0.1, "flow_l_h": 1.0, "kp": 1e9}, "kp"),
        ({"name": "t", "color": 1}, "is no known key"),
        (3, "is no table"),
    ],
)  # fmt: skip
def test_organs_that_cannot_be_are_refused(organ: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        add_organ(circulation_system(), ExtraOrgan.from_mapping(organ))


def test_an_organ_may_drain_into_a_permeability_limited_liver() -> None:
    base = circulation_system()
    topology = circulation(("liver",), "limited liver")
    person = human_reference(70)
    row = lambda x: torch.as_tensor(np.asarray([x], dtype=np.float64))  # noqa: E731
    limited = replace(
        base, topology=topology, volume_l=row(person.volume_l @ topology.volume_map), ps_l_h=row([20.0]),
        kp=torch.cat((base.kp, torch.ones(1, 1, dtype=torch.float64)), 1),
        flow_l_h=row(person.flow_l_h @ topology.flow_map),
    )  # fmt: skip
    system = add_organ(limited, ExtraOrgan("node", 0.05, 1.0, drains_to="liver"))
    assert balanced(system)

"""Reference bodies and graphs: balances, refusals, permutation."""

import numpy as np
import pytest

from perfuse.errors import InputError
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, check_flow_balance, hub_reference, human_reference
from perfuse.pk.topology import get_topology


def test_human_flows_sum_to_cardiac_output_at_any_weight() -> None:
    for weight in (10.0, 70.0, 150.0):
        person = human_reference(weight)
        check_flow_balance(person.flow_l_h)
        assert person.cardiac_output_l_h == pytest.approx(378 * (weight / 70) ** 0.75)
    assert human_reference(70).volume_l[ORGAN_INDEX["liver"]] == pytest.approx(1.726, rel=1e-3)


def test_portal_vein_and_hepatic_artery_feed_the_liver() -> None:
    man = human_reference(70)
    assert man.portal_flow_l_h + man.hepatic_artery_l_h == pytest.approx(man.flow_l_h[ORGAN_INDEX["liver"]])
    assert man.hepatic_artery_l_h / man.cardiac_output_l_h == pytest.approx(0.065)  # ICRP 89, table 2.40
    assert man.gfr_ml_min == pytest.approx(120)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), 301])
def test_impossible_body_weight_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match="body_weight_kg"):
        human_reference(weight)


def test_unbalanced_flows_are_refused() -> None:
    flow = human_reference().flow_l_h.copy()
    flow[ORGAN_INDEX["muscle"]] *= 1.1
    with pytest.raises(InputError, match="does not sum to cardiac output"):
        check_flow_balance(flow)


def test_portal_flow_above_liver_flow_is_refused() -> None:
    flow = human_reference().flow_l_h.copy()
    flow[ORGAN_INDEX["gut"]] = flow[ORGAN_INDEX["liver"]]
    with pytest.raises(InputError, match="hepatic artery"):
        check_flow_balance(flow)


@pytest.mark.parametrize("name", ["hub", "circulation"])
def test_topologies_are_closed_graphs(name: str) -> None:
    topology = get_topology(name)
    person = hub_reference() if name == "hub" else human_reference()
    flow = person.flow_l_h @ topology.flow_map
    assert (flow > 0).all()
    inflow, outflow = np.zeros(topology.n_nodes), np.zeros(topology.n_nodes)
    for (source, target), q in zip(topology.edges, flow, strict=True):
        outflow[source] += q
        inflow[target] += q
    np.testing.assert_allclose(inflow, outflow)
    assert [topology.nodes[i] for i in topology.organ_node[1:]] == list(ORGANS[1:])
    assert topology.edge_index.shape == (2, topology.n_edges)


def test_unknown_topology_is_refused() -> None:
    with pytest.raises(InputError, match=r"topology is unknown \(got star\); allowed: hub, circulation"):
        get_topology("star")


def test_permutation_must_be_one() -> None:
    topology = get_topology("hub")
    with pytest.raises(InputError, match="not a permutation"):
        topology.permuted([0] * topology.n_nodes)
    moved = topology.permuted(list(reversed(range(topology.n_nodes))))
    assert moved.nodes[0] == topology.nodes[-1]
    assert sorted(moved.node_identity) == sorted(topology.node_identity)
    assert [moved.nodes[i] for i in moved.organ_node] == [topology.nodes[i] for i in topology.organ_node]

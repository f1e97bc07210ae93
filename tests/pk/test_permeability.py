"""Permeability-limited organs: independent equations, the perfusion-limited limit, mass, and what is reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from perfuse.errors import InputError
from perfuse.pk.mechanistic import organ_concentrations, solve
from perfuse.pk.physiology import ORGANS, PORTAL_ORGANS, human_reference
from perfuse.pk.system import ORAL, DoseEvents, SystemParameters
from perfuse.pk.topology import VASCULAR_FRACTION, Topology, circulation, get_topology

LIMITED = ("brain", "adipose", "muscle")


def tensor(x: object) -> torch.Tensor:
    return torch.as_tensor(np.asarray(x, dtype=np.float64))


def make_system(topology: Topology, ps_l_h: tuple[float, ...], seed: int = 0) -> SystemParameters:
    rng = np.random.default_rng(seed)
    person = human_reference(70)
    organ_kp = rng.lognormal(0.3, 0.8, len(ORGANS))
    identity = topology.node_identity
    kp = np.where(topology.is_blood, 1.0, organ_kp[np.minimum(identity, len(ORGANS) - 1)])
    return SystemParameters(
        topology, tensor([person.volume_l @ topology.volume_map]), tensor([kp]),
        tensor([person.flow_l_h @ topology.flow_map]), tensor([[300.0, 4.0]]), tensor([0.2]), tensor([0.8]),
        tensor([ps_l_h]) if ps_l_h else torch.empty(1, 0),
    )  # fmt: skip


def right_hand_side(system: SystemParameters):
    """The equations organ by organ, from volumes, flows, Kp and PS alone."""
    nodes = system.topology.nodes
    index = {name: i for i, name in enumerate(nodes)}
    volume = dict(zip(nodes, system.volume_l[0].tolist(), strict=True))
    kp = dict(zip(nodes, system.kp[0].tolist(), strict=True))
    ps = dict(zip(LIMITED, system.ps_l_h[0].tolist(), strict=True))
    q = dict(zip(ORGANS, human_reference(70).flow_l_h.tolist(), strict=True))
    fup, bp, (clint, clr) = float(system.fup[0]), float(system.bp_ratio[0]), system.elimination_l_h[0].tolist()

    def f(_t: float, amounts: np.ndarray) -> np.ndarray:
        c = {name: amounts[i] / volume[name] for name, i in index.items()}
        d = dict.fromkeys(nodes, 0.0)
        blood = lambda o: c[f"{o}_vascular"] if o in LIMITED else c[o] * bp / kp[o]  # noqa: E731  leaving the organ
        d["lung"] += q["lung"] * (c["venous"] - blood("lung"))
        d["arterial"] += q["lung"] * blood("lung")
        d["venous"] -= q["lung"] * c["venous"]
        for organ in ORGANS:
            if organ in ("blood", "lung"):
                continue
            flow_in = q["liver"] - sum(q[p] for p in PORTAL_ORGANS) if organ == "liver" else q[organ]
            name = f"{organ}_vascular" if organ in LIMITED else organ
            d[name] += flow_in * c["arterial"] - q[organ] * blood(organ)
            d["arterial"] -= flow_in * c["arterial"]
            d["liver" if organ in PORTAL_ORGANS else "venous"] += q[organ] * blood(organ)
            if organ in LIMITED:
                crossing = ps[organ] * fup * (c[name] / bp - c[organ] / kp[organ])
                d[name] -= crossing
                d[organ] += crossing
        d["liver"] -= clint * fup * c["liver"] / kp["liver"]
        d["kidney"] -= clr * c["arterial"] / bp
        return np.asarray([d[name] for name in nodes])

    return f


def test_curves_agree_with_equations_written_organ_by_organ() -> None:
    system = make_system(get_topology("circulation-ps"), (3.0, 20.0, 60.0))
    times = np.asarray([0.05, 0.3, 1.0, 4.0, 12.0, 48.0])
    ours = solve(system, DoseEvents.bolus(tensor([100.0])), tensor([times]))[0].numpy()
    start = np.zeros(system.topology.n_nodes)
    start[system.topology.dose_node] = 100.0
    truth = solve_ivp(right_hand_side(system), (0, 48), start, "Radau", t_eval=times, rtol=2e-13, atol=1e-16).y
    np.testing.assert_allclose(ours, truth, rtol=1e-8, atol=1e-10)


def test_fast_permeation_is_perfusion_limited_blood_and_tissue_in_equilibrium() -> None:
    """PS to infinity: an organ of V_vascular blood and V_tissue at Kp is perfusion-limited at their mean."""
    limited = get_topology("circulation-ps")
    fast = make_system(limited, (1e7, 1e7, 1e7))
    plain = make_system(get_topology("circulation"), ())
    kp, bp = plain.kp.clone(), float(plain.bp_ratio[0])
    for organ in LIMITED:
        i = plain.topology.nodes.index(organ)
        share = VASCULAR_FRACTION[organ]
        kp[0, i] = share * bp + (1 - share) * kp[0, i]
    plain = replace(plain, kp=kp)
    times = tensor([[0.5, 2.0, 10.0, 40.0]])
    dose = DoseEvents.bolus(tensor([100.0]))
    one = organ_concentrations(fast, solve(fast, dose, times))
    two = organ_concentrations(plain, solve(plain, dose, times))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=0)


def test_without_permeation_tissue_stays_empty_and_its_organ_reports_its_blood() -> None:
    system = make_system(get_topology("circulation-ps"), (0.0, 5.0, 5.0))
    amounts = solve(system, DoseEvents.bolus(tensor([100.0])), tensor([[1.0, 6.0]]))
    nodes = system.topology.nodes
    assert (amounts[0, nodes.index("brain")] == 0).all()
    conc = organ_concentrations(system, amounts)[0, ORGANS.index("brain")]
    blood = amounts[0, nodes.index("brain_vascular")] / system.volume_l[0, nodes.index("brain_vascular")]
    torch.testing.assert_close(conc, VASCULAR_FRACTION["brain"] * blood)


def test_mass_balances_after_a_mixed_regimen() -> None:
    system = make_system(get_topology("circulation-ps"), (0.1, 5.0, 500.0))
    doses = DoseEvents(
        tensor([[0.0, 1.0, 3.0]]), tensor([[10.0, 20.0, 40.0]]), tensor([[0.0, 2.0, 0.0]]),
        torch.tensor([[0, 0, ORAL]], dtype=torch.int8), tensor([0.7]), tensor([0.5]), tensor([0.6]),
    )  # fmt: skip
    out = solve(system, doses, tensor([[0.0, 0.5, 2.0, 3.2, 9.0, 400.0]]), with_sinks=True)
    assert out.shape[1] == system.topology.n_nodes + 2 + 2
    torch.testing.assert_close(out.sum(1)[0], tensor([10.0, 10.0, 20.0, 70.0, 70.0, 70.0]), rtol=1e-11, atol=0)
    assert (out >= 0).all()
    # During the lag the whole absorbable dose waits in the lumen; 40 % of it is never absorbed.
    torch.testing.assert_close(out[0, -2:, 3], tensor([24.0, 16.0]))


def test_auc_does_not_depend_on_permeability() -> None:
    aucs = []
    for ps in ((0.5, 0.5, 0.5), (1e4, 1e4, 1e4)):
        system = make_system(get_topology("circulation-ps"), ps)
        out = solve(system, DoseEvents.bolus(tensor([100.0])), tensor([[1e6]]), with_sinks=True)
        aucs.append(out[0, -4:-2, 0])
    torch.testing.assert_close(aucs[0], aucs[1], rtol=1e-6, atol=0)


def test_permuting_nodes_permutes_amounts() -> None:
    system = make_system(get_topology("circulation-ps"), (2.0, 10.0, 30.0))
    order = np.random.default_rng(3).permutation(system.topology.n_nodes)
    topology = system.topology.permuted(order.tolist())
    shuffled = replace(system, topology=topology, volume_l=system.volume_l[:, order], kp=system.kp[:, order])
    doses = DoseEvents(tensor([[0.0]]), tensor([[50.0]]), tensor([[0.0]]), torch.tensor([[ORAL]], dtype=torch.int8))
    times = tensor([[0.7, 5.0]])
    a, b = (solve(s, doses, times) for s in (system, shuffled))
    torch.testing.assert_close(b, a[:, order], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(
        organ_concentrations(shuffled, b), organ_concentrations(system, a), rtol=1e-10, atol=1e-14
    )


def test_every_organ_that_has_a_vascular_fraction_may_be_limited_and_no_other() -> None:
    topology = circulation(tuple(VASCULAR_FRACTION), "all")
    assert topology.n_exchanges == len(VASCULAR_FRACTION)
    np.testing.assert_allclose(topology.volume_map.sum(1), 1.0)
    assert (topology.incidence.reshape(topology.n_rates, topology.n_nodes, -1)[: topology.n_edges].sum(1) == 0).all()
    with pytest.raises(InputError, match="permeability_limited is not allowed .*spleen"):
        circulation(("spleen",))


@pytest.mark.parametrize("limited", [("liver",), ("liver", "gut"), ("gut", "kidney"), tuple(VASCULAR_FRACTION)])
def test_blood_balances_in_every_node_and_equilibrium_is_one_unbound_concentration(limited: tuple[str, ...]) -> None:
    topology = circulation(limited, "limited")
    system = make_system(topology, tuple(np.linspace(2.0, 40.0, len(limited))))
    for node in range(topology.n_nodes):
        flow = system.flow_l_h[0]
        entering = sum(float(flow[e]) for e, (_, d) in enumerate(topology.edges) if d == node)
        leaving = sum(float(flow[e]) for e, (s, _) in enumerate(topology.edges) if s == node)
        assert entering == pytest.approx(leaving, abs=1e-9), topology.nodes[node]
    closed = replace(system, elimination_l_h=torch.zeros_like(system.elimination_l_h))
    amounts = solve(closed, DoseEvents.bolus(tensor([100.0])), tensor([[1e5]]))[0, :, 0]
    plasma = amounts / system.volume_l[0] / torch.where(
        torch.as_tensor(topology.is_blood), system.bp_ratio, system.kp[0]
    )  # fmt: skip
    torch.testing.assert_close(plasma, plasma[0].expand_as(plasma), rtol=1e-8, atol=0)


def test_a_limited_liver_clears_as_a_perfused_one_when_permeation_is_fast() -> None:
    fast = make_system(circulation(("liver",), "fast"), (1e7,))
    plain = make_system(get_topology("circulation"), ())
    times = tensor([[5000.0]])
    for system in (fast, plain):
        assert float(solve(system, DoseEvents.bolus(tensor([100.0])), times).sum()) < 1e-6
    metabolised = [solve(s, DoseEvents.bolus(tensor([100.0])), times, with_sinks=True)[0, -4, 0] for s in (fast, plain)]
    torch.testing.assert_close(metabolised[0], metabolised[1], rtol=1e-4, atol=0)

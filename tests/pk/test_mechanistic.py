"""The mechanistic model against closed forms, conservation laws and an independent stiff solver."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from perfuse.errors import InputError
from perfuse.pk.mechanistic import (
    generator_matrix,
    limit_diverted,
    mechanistic_rates,
    organ_concentrations,
    solve,
    uniform_grid,
)
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, PORTAL_ORGANS, hub_reference, human_reference
from perfuse.pk.system import DoseEvents, SystemParameters
from perfuse.pk.topology import ARTERIAL_FRACTION, get_topology


def tensor(x: object) -> torch.Tensor:
    return torch.as_tensor(np.asarray(x, dtype=np.float64))


def make_system(topology_name: str, batch: int = 4, seed: int = 0) -> SystemParameters:
    """Random drugs on the reference body of a topology."""
    rng = np.random.default_rng(seed)
    topology = get_topology(topology_name)
    person = hub_reference() if topology_name == "hub" else human_reference(70)
    kp = rng.lognormal(0, 0.8, (batch, topology.n_nodes))
    kp[:, list(np.flatnonzero(topology.is_blood))] = 1
    elimination = np.column_stack((rng.lognormal(2, 1, batch), rng.lognormal(0.5, 0.5, batch)))
    hub = topology_name == "hub"
    return SystemParameters(
        topology,
        tensor(np.tile(person.volume_l @ topology.volume_map, (batch, 1))),
        tensor(kp),
        tensor(np.tile(person.flow_l_h @ topology.flow_map, (batch, 1))),
        tensor(elimination),
        torch.ones(batch).double() if hub else tensor(rng.uniform(0.1, 1, batch)),
        torch.ones(batch).double() if hub else tensor(rng.uniform(0.6, 1.8, batch)),
    )


def grid(batch: int, *times: float) -> torch.Tensor:
    return tensor(times).expand(batch, -1)


def circulation_rhs(system: SystemParameters, i: int):
    """DESIGN's circulation equations, written out organ by organ and independent of the generator's code."""
    topology = system.topology
    volume = dict(zip(topology.nodes, system.volume_l[i].tolist(), strict=True))
    kp = dict(zip(topology.nodes, system.kp[i].tolist(), strict=True))
    q = dict(zip(ORGANS, human_reference(70).flow_l_h.tolist(), strict=True))
    clint, clr = system.elimination_l_h[i].tolist()
    fup, bp = float(system.fup[i]), float(system.bp_ratio[i])
    artery = q["liver"] - sum(q[p] for p in PORTAL_ORGANS)
    tissues = [o for o in ORGANS if o not in ("blood", "lung")]

    def rhs(_t: float, amounts: np.ndarray) -> np.ndarray:
        c = {n: a / volume[n] for n, a in zip(topology.nodes, amounts, strict=True)}
        out = {n: c[n] if n in ("venous", "arterial") else c[n] * bp / kp[n] for n in topology.nodes}
        d = dict.fromkeys(topology.nodes, 0.0)
        for organ in tissues:
            inflow = artery if organ == "liver" else q[organ]
            d[organ] += inflow * c["arterial"] - q[organ] * out[organ]
        d["liver"] += sum(q[p] * out[p] for p in PORTAL_ORGANS) - clint * fup * c["liver"] / kp["liver"]
        d["kidney"] -= clr * c["arterial"] / bp
        d["lung"] = q["lung"] * (c["venous"] - out["lung"])
        d["arterial"] = q["lung"] * (out["lung"] - c["arterial"])
        returned = sum(q[o] * out[o] for o in tissues if o not in PORTAL_ORGANS)
        d["venous"] = returned - q["lung"] * c["venous"]
        return np.asarray([d[n] for n in topology.nodes])

    return rhs


def hub_rhs(system: SystemParameters, i: int):
    """DESIGN's hub equations in concentrations."""
    v, kp = system.volume_l[i].numpy(), system.kp[i].numpy()
    q, cl = hub_reference().flow_l_h, float(system.elimination_l_h[i].sum())

    def rhs(_t: float, amounts: np.ndarray) -> np.ndarray:
        c = amounts / v
        dc = q / v * (c[0] - c / kp)
        dc[0] = (q[1:] / v[0] * (c[1:] / kp[1:] - c[0])).sum() - cl * c[0] / v[0]
        return dc * v

    return rhs


@pytest.mark.parametrize("name", ["hub", "circulation"])
def test_agrees_with_an_independent_stiff_solver(name: str) -> None:
    system = make_system(name, batch=2)
    times = np.linspace(0, 24, 25)
    rhs = {"hub": hub_rhs, "circulation": circulation_rhs}[name]
    ours = solve(system, DoseEvents.bolus(tensor([100.0, 250.0])), grid(2, *times)).numpy()
    for i, dose in enumerate((100.0, 250.0)):
        start = np.zeros(system.topology.n_nodes)
        start[system.topology.dose_node] = dose
        truth = solve_ivp(rhs(system, i), (0, 24), start, "Radau", t_eval=times, rtol=2e-13, atol=1e-18).y
        volume = system.volume_l[i].numpy()[:, None]
        scored = truth / volume > 1e-6 * (truth / volume).max()
        assert scored.sum() > 300
        assert np.abs(ours[i] / np.where(scored, truth, 1) - 1)[scored].max() < 1e-9


@pytest.mark.parametrize("name", ["hub", "circulation"])
def test_mass_is_conserved_and_nothing_is_negative(name: str) -> None:
    system = make_system(name, batch=50, seed=3)
    rng = np.random.default_rng(0)
    doses = DoseEvents(
        tensor(np.tile([0.0, 3.0, 12.0], (50, 1))), tensor(rng.uniform(1, 100, (50, 3))),
        tensor(np.tile([0.0, 2.5, 0.0], (50, 1))),
    )  # fmt: skip
    amounts = solve(system, doses, grid(50, 13.0, 48.0, 400.0), with_sinks=True)
    total = doses.amount_mg.sum(1)[:, None].expand(-1, 3)
    torch.testing.assert_close(amounts.sum(1), total, rtol=1e-8, atol=0)
    assert (amounts >= 0).all()


@pytest.mark.parametrize("name", ["hub", "circulation"])
def test_linear_in_dose_and_superposable(name: str) -> None:
    system = make_system(name)
    times = grid(4, 0.0, 0.5, 5.0, 6.0, 24.0)
    dose = tensor([10.0, 20.0, 30.0, 40.0])
    one = solve(system, DoseEvents.bolus(dose), times)
    torch.testing.assert_close(solve(system, DoseEvents.bolus(dose * 7), times), one * 7, rtol=1e-12, atol=0)
    zero = torch.zeros(4, 1).double()
    late = solve(system, DoseEvents(zero + 2, dose[:, None], zero), times)
    shifted = solve(system, DoseEvents.bolus(dose), (times - 2).clamp_min(0)) * (times > 2)[:, None]
    torch.testing.assert_close(late, shifted, rtol=1e-9, atol=0)
    both = DoseEvents(tensor([[0.0, 2.0]] * 4), dose[:, None].repeat(1, 2), zero.repeat(1, 2))
    torch.testing.assert_close(solve(system, both, times), one + late, rtol=1e-9, atol=0)


def test_later_dose_changes_no_earlier_time_and_value_at_dose_time_is_before_it() -> None:
    system = make_system("circulation", 1)
    times = grid(1, 0.0, 1.0, 4.0, 4.0001, 8.0)
    single = DoseEvents(tensor([[0.0, 4.0]]), tensor([[50.0, 0.0]]), tensor([[0.0, 0.0]]))
    double = DoseEvents(tensor([[0.0, 4.0]]), tensor([[50.0, 500.0]]), tensor([[0.0, 0.0]]))
    a, b = solve(system, single, times), solve(system, double, times)
    assert torch.equal(a[..., :3], b[..., :3])
    assert (b[..., 3:] > a[..., 3:]).all()
    assert b[0, system.topology.dose_node, 0] == 50  # C(0+) of the first bolus


def test_infusion_reaches_steady_state_rate_over_clearance() -> None:
    system = make_system("hub")
    duration, rate = 5000.0, 3.0
    doses = DoseEvents(torch.zeros(4, 1).double(), tensor([[rate * duration]] * 4), tensor([[duration]] * 4))
    conc = organ_concentrations(system, solve(system, doses, grid(4, duration)))
    torch.testing.assert_close(conc[:, 0, 0], rate / system.elimination_l_h.sum(1), rtol=1e-8, atol=0)
    ratio = conc[:, :, 0] / conc[:, :1, 0]
    torch.testing.assert_close(ratio, system.kp, rtol=1e-8, atol=0)


def test_auc_is_dose_over_clearance_in_both_topologies() -> None:
    """AUC_inf = F x dose / CL_blood, with DESIGN's CL_blood for the circulation."""
    for name in ("hub", "circulation"):
        system = make_system(name)
        generator = generator_matrix(system.topology, mechanistic_rates(system))
        unit = torch.zeros(system.topology.n_nodes, 1).double()
        unit[system.topology.dose_node] = 100.0
        auc = torch.linalg.solve(generator, -unit)[:, :, 0] / system.volume_l
        if name == "hub":
            clearance = system.elimination_l_h.sum(1)
            measured = auc[:, 0]
        else:
            # The dose enters venous blood; arterial AUC is what clears, so AUC_arterial = dose / CL_blood.
            clint, clr = system.elimination_l_h.unbind(1)
            q_h = human_reference(70).flow_l_h[ORGAN_INDEX["liver"]]
            x = system.fup * clint / system.bp_ratio
            clearance = clr / system.bp_ratio + q_h * x / (q_h + x)
            measured = auc[:, system.topology.nodes.index("arterial")]
        torch.testing.assert_close(measured, 100.0 / clearance, rtol=1e-9, atol=0)


def test_one_compartment_limit() -> None:
    """With flows so fast that the body is one well-stirred space: C = dose / V exp(-CL t / V)."""
    system = make_system("hub", 1)
    fast = SystemParameters(
        system.topology, system.volume_l, torch.ones_like(system.kp), system.flow_l_h * 1e6,
        system.elimination_l_h, system.fup, system.bp_ratio,
    )  # fmt: skip
    volume, clearance = float(system.volume_l.sum()), float(system.elimination_l_h.sum())
    times = grid(1, 1.0, 5.0, 20.0)
    conc = organ_concentrations(fast, solve(fast, DoseEvents.bolus(tensor([100.0])), times))[0, 0]
    torch.testing.assert_close(conc, 100 / volume * torch.exp(-clearance / volume * times[0]), rtol=1e-5, atol=0)


def test_batch_equals_one_by_one() -> None:
    system = make_system("circulation", 6)
    doses = DoseEvents.bolus(tensor(np.arange(1.0, 7.0)))
    together = solve(system, doses, grid(6, 0.1, 2.0, 24.0))
    for i in range(6):
        names = ("volume_l", "kp", "flow_l_h", "elimination_l_h", "fup", "bp_ratio")
        alone = SystemParameters(system.topology, *(getattr(system, n)[i : i + 1] for n in names))
        single = solve(alone, DoseEvents.bolus(tensor([i + 1.0])), grid(1, 0.1, 2.0, 24.0))
        torch.testing.assert_close(together[i : i + 1], single, rtol=1e-9, atol=0)


def test_renal_clearance_above_kidney_flow_is_refused() -> None:
    system = make_system("circulation", 2)
    system.elimination_l_h[1, 1] = 1000.0
    with pytest.raises(InputError, match=r"curve 1: cl_renal_l_h exceeds kidney blood flow \(got 1000 L/h plasma\)"):
        mechanistic_rates(system)


def test_diverted_elimination_never_exceeds_its_stream() -> None:
    topology = get_topology("circulation")
    rates = torch.ones(1, topology.n_edges + 2).double()
    rates[0, -1] = 50.0
    limited = limit_diverted(topology, rates)
    assert limited[0, -1] == 0.99
    off_diagonal = generator_matrix(topology, limited)[0] * (1 - torch.eye(topology.n_nodes))
    assert (off_diagonal >= 0).all()


def test_generator_columns_sum_to_minus_elimination() -> None:
    for name in ("hub", "circulation"):
        topology = get_topology(name)
        rates = torch.rand(3, topology.n_edges + topology.n_eliminations).double() + 1
        rates[:, topology.n_edges :] *= 0.1
        closed = generator_matrix(topology, rates, with_sinks=True)
        assert closed.sum(1).abs().max() < 1e-12
        expected = torch.zeros(3, topology.n_nodes).double()
        for m, elimination in enumerate(topology.eliminations):
            expected[:, elimination.source] -= rates[:, topology.n_edges + m]
        torch.testing.assert_close(generator_matrix(topology, rates).sum(1), expected)


def test_arterial_share_of_blood() -> None:
    topology = get_topology("circulation")
    volume = human_reference(70).volume_l @ topology.volume_map
    arterial, venous = volume[topology.nodes.index("arterial")], volume[topology.nodes.index("venous")]
    assert arterial / (arterial + venous) == pytest.approx(ARTERIAL_FRACTION)
    assert volume.sum() == pytest.approx(human_reference(70).volume_l.sum())


def test_uniform_grid_detection() -> None:
    even = torch.linspace(0, 24, 100, dtype=torch.float64).expand(3, -1)
    start, step = uniform_grid(even) or (None, None)
    assert start == 0
    assert step == pytest.approx(24 / 99)
    bent = even.clone()
    bent[1, 50] += 1e-3
    assert uniform_grid(bent) is None
    assert uniform_grid(even[:, :1]) is None
    assert uniform_grid(even**2) is None

"""Steady state directly: closed forms, many simulated intervals, and what has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from perfuse.errors import InputError
from perfuse.pk.mechanistic import half_saturation_mg, organ_concentrations, solve
from perfuse.pk.physiology import ORGANS, hub_reference, human_reference
from perfuse.pk.regimen import DoseCourse, dose_events
from perfuse.pk.steady_state import steady_state
from perfuse.pk.system import SystemParameters
from perfuse.pk.topology import Elimination, Topology, get_topology


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def make_system(name: str = "circulation", clearance: float = 20.0) -> SystemParameters:
    topology = get_topology(name)
    person = hub_reference() if name == "hub" else human_reference(70)
    kp = np.where(topology.is_blood, 1.0, np.linspace(0.5, 4, topology.n_nodes))
    return SystemParameters(
        topology, row(*(person.volume_l @ topology.volume_map)), row(*kp), row(*(person.flow_l_h @ topology.flow_map)),
        row(clearance, 3.0), torch.tensor([0.4]).double(), torch.tensor([0.9]).double(),
    )  # fmt: skip


MIXED = [
    DoseCourse(100.0), DoseCourse(50.0, "iv_infusion", time_h=3.0, duration_h=2.0),
    DoseCourse(80.0, "oral", time_h=6.0), DoseCourse(30.0, "iv_infusion", time_h=11.0, duration_h=4.0),
]  # fmt: skip


@pytest.mark.parametrize("name", ["hub", "circulation"])
def test_equals_simulating_many_intervals(name: str) -> None:
    """The last infusion runs past the end of the interval."""
    system, tau, n = make_system(name), 12.0, 60
    times = row(0.5, 3.0, 4.7, 6.1, 9.0, 11.5, 12.0)
    absorption = {"ka_1_h": [0.9], "lag_h": [0.25], "f_abs": [0.7]}
    direct = steady_state(system, dose_events([MIXED], **absorption), tau, times)
    repeated = [replace(c, interval_h=tau, n_doses=n) for c in MIXED]
    simulated = solve(system, dose_events([repeated], **absorption), times + (n - 1) * tau)
    torch.testing.assert_close(direct, simulated, rtol=1e-9, atol=0)
    assert (direct > 0).all()


def test_accumulation_is_the_closed_form_of_one_compartment() -> None:
    """R = 1 / (1 - exp(-k tau)), Rowland & Tozer, Clinical Pharmacokinetics and Pharmacodynamics, 2011."""
    one = Topology(
        "one", ("blood",), (True,), (), (Elimination("cl_l_h", 0, kind="blood_clearance"),), 0, np.eye(1),
        np.zeros((1, 0)), organs=("blood",), organ_node=np.zeros(1, dtype=int), kp_is_blood=True, absorption_node=0,
    )  # fmt: skip
    k, tau, times = 6.0 / 40.0, 8.0, row(1.0, 5.0, 8.0)
    ones = torch.ones(1).double()
    system = SystemParameters(one, row(40.0), row(1.0), torch.empty(1, 0).double(), row(6.0), ones, ones)
    doses = dose_events([[DoseCourse(100.0)]])
    single, steady = solve(system, doses, times), steady_state(system, doses, tau, times)
    torch.testing.assert_close(single[0, 0], 100 * torch.exp(-k * times[0]), rtol=1e-12, atol=0)
    torch.testing.assert_close(steady / single, torch.full_like(single, 1 / (1 - np.exp(-k * tau))), rtol=1e-11, atol=0)


def test_constant_infusion_is_rate_over_clearance() -> None:
    system = make_system("hub")
    doses = dose_events([[DoseCourse(48.0, "iv_infusion", duration_h=24.0)]])
    conc = organ_concentrations(system, steady_state(system, doses, 24.0, row(0.0, 7.0, 24.0)))
    expected = 2.0 / float(system.elimination_l_h.sum())
    torch.testing.assert_close(conc[0, 0], torch.full((3,), expected, dtype=torch.float64), rtol=1e-8, atol=0)
    torch.testing.assert_close(conc[0, :, 1], expected * system.kp[0], rtol=1e-8, atol=0)


def test_auc_over_the_interval_is_dose_over_clearance() -> None:
    system = make_system("hub")
    grid = torch.linspace(0, 12, 4001, dtype=torch.float64)
    conc = organ_concentrations(
        system, steady_state(system, dose_events([[DoseCourse(100.0, "oral", time_h=2.0)]], [1.1]), 12.0, grid[None])
    )
    auc = torch.trapezoid(conc[0, ORGANS.index("liver")] / system.kp[0, ORGANS.index("liver")], grid)
    assert float(auc) == pytest.approx(100 / float(system.elimination_l_h.sum()), rel=1e-5)


def test_what_outlasts_the_interval_overlaps_itself() -> None:
    """An infusion of two and a half intervals, and a lag that ends in the next one."""
    system, tau, n = make_system("hub"), 8.0, 60
    courses = [DoseCourse(100.0, "iv_infusion", time_h=3.0, duration_h=20.0), DoseCourse(50.0, "oral", time_h=7.0)]
    absorption = {"ka_1_h": [0.4], "lag_h": [2.5], "f_abs": [0.7]}
    times = row(0.5, 1.5, 3.0, 6.9, 8.0)
    direct = steady_state(system, dose_events([courses], **absorption), tau, times)
    repeated = [replace(c, interval_h=tau, n_doses=n) for c in courses]
    simulated = solve(system, dose_events([repeated], **absorption), times + (n - 1) * tau)
    torch.testing.assert_close(direct, simulated, rtol=1e-9, atol=0)


def test_a_later_bolus_shows_at_its_time_what_was_there_before_it() -> None:
    system, tau = make_system(), 12.0
    late = steady_state(system, dose_events([[DoseCourse(100.0, time_h=4.0)]]), tau, row(4.0))
    at_start = steady_state(system, dose_events([[DoseCourse(100.0)]]), tau, row(12.0))
    torch.testing.assert_close(late, at_start, rtol=1e-10, atol=0)


def saturable(vmax: tuple[float, ...], km: tuple[float, ...], renal_l_h: float = 0.0) -> SystemParameters:
    return replace(make_system(), elimination_l_h=row(0.0, renal_l_h), vmax_mg_h=row(*vmax), km_u_mg_l=row(*km))


def test_saturable_steady_state_equals_simulating_many_intervals() -> None:
    system, tau, n = saturable((30.0, 5.0), (0.6, 0.05), renal_l_h=3.0), 12.0, 40
    absorption = {"ka_1_h": [0.9], "lag_h": [0.25], "f_abs": [0.7]}
    times = row(0.5, 4.0, 9.0, 12.0)
    direct = steady_state(system, dose_events([MIXED], **absorption), tau, times)
    repeated = [replace(c, interval_h=tau, n_doses=n) for c in MIXED]
    simulated = solve(system, dose_events([repeated], **absorption), times + (n - 1) * tau)
    torch.testing.assert_close(direct, simulated, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("vmax", "km"), [(5.3, 0.01), (5.01, 0.6)])
def test_near_capacity_metabolism_removes_one_dose_an_interval(vmax: float, km: float) -> None:
    """Input of 5 mg/h against Vmax of 5.3 and 5.01: hundreds of doses would not settle."""
    system, tau = saturable((vmax,), (km,)), 12.0
    grid = torch.cat((torch.zeros(1), torch.logspace(-4, np.log10(tau), 400))).double().clamp_max(tau)[None]
    out = steady_state(system, dose_events([[DoseCourse(60.0)]]), tau, grid)
    y, half = out[0, system.topology.saturable_node], float(half_saturation_mg(system))
    removed = torch.trapezoid(vmax * y / (half + y), grid[0])
    assert float(removed) == pytest.approx(60.0, rel=1e-4)
    inside = out[0].sum(0)
    assert float(inside[0] - inside[-1]) == pytest.approx(60.0, rel=1e-6)  # which the next dose replaces


def test_any_input_below_capacity_has_a_steady_state_that_is_found() -> None:
    """Km over five decades, input of 1 to 99.5 % of Vmax, no other elimination: each dose is lost in its interval."""
    random, n, tau = np.random.default_rng(0), 24, 24.0
    base = saturable((1.0, 1.0), (1.0, 1.0))
    many = {k: v.expand(n, *v.shape[1:]) for k, v in vars(base).items() if isinstance(v, torch.Tensor)}
    vmax, km = (torch.as_tensor(10 ** random.uniform(*decades, (n, 2))) for decades in ((-1, 2), (-3, 2)))
    system = replace(base, **many | {"vmax_mg_h": vmax, "km_u_mg_l": km})
    dose = torch.as_tensor(random.uniform(0.01, 0.995, n)) * vmax.sum(1) * tau
    times = row(0.0, tau).expand(n, -1)
    out = steady_state(system, dose_events([[DoseCourse(float(x))] for x in dose]), tau, times).sum(1)
    assert (out >= 0).all()
    assert ((out[:, 0] - out[:, 1] - dose).abs() < 1e-6 * out[:, 0]).all()


def test_saturable_pathways_far_below_km_are_linear() -> None:
    linear = steady_state(make_system(clearance=20.0), dose_events([[DoseCourse(60.0)]]), 12.0, row(0.5, 12.0))
    same = steady_state(saturable((20e6,), (1e6,), 3.0), dose_events([[DoseCourse(60.0)]]), 12.0, row(0.5, 12.0))
    torch.testing.assert_close(same, linear, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("change", "course", "message"),
    [
        ({}, DoseCourse(1.0, time_h=12.0), "does not lie in the dosing interval"),
        ({"elimination_l_h": row(0.0, 0.0)}, DoseCourse(1.0), "never reach a steady state"),
        (
            {"elimination_l_h": row(0.0, 0.0), "vmax_mg_h": row(4.0), "km_u_mg_l": row(1.0)},
            DoseCourse(60.0),
            "more than saturable",
        ),
    ],
)
def test_what_has_no_steady_state_is_refused(change: dict, course: DoseCourse, message: str) -> None:
    with pytest.raises(InputError, match=message):
        steady_state(replace(make_system(), **change), dose_events([[course]]), 12.0, row(1.0))


def test_oral_doses_need_a_gut() -> None:
    one = Topology(
        "one", ("blood",), (True,), (), (Elimination("cl_l_h", 0, kind="blood_clearance"),), 0, np.eye(1),
        np.zeros((1, 0)), organs=("blood",), organ_node=np.zeros(1, dtype=int), kp_is_blood=True,
    )  # fmt: skip
    ones = torch.ones(1).double()
    system = SystemParameters(one, row(40.0), row(1.0), torch.empty(1, 0).double(), row(6.0), ones, ones)
    with pytest.raises(InputError, match="no gut"):
        steady_state(system, dose_events([[DoseCourse(1.0, "oral")]], [1.0]), 12.0, row(1.0))


def test_times_and_interval_are_checked() -> None:
    doses = dose_events([[DoseCourse(1.0)]])
    with pytest.raises(InputError, match="tau_h"):
        steady_state(make_system(), doses, 0.0, row(0.0))
    with pytest.raises(InputError, match="time_h lies outside"):
        steady_state(make_system(), doses, 12.0, row(13.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amount_mg": 0.0}, "dose amount_mg"), ({"amount_mg": float("inf")}, "dose amount_mg"),
        ({"route": "nasal"}, "route"),
        ({"time_h": -1.0}, "dose time_h"), ({"duration_h": 1.0}, "contradicts"),
        ({"route": "iv_infusion"}, "contradicts"),
        ({"n_doses": 0}, "n_doses"), ({"n_doses": 2}, "interval_h is missing"), ({"n_doses": True}, "n_doses"),
        ({"n_doses": 2, "interval_h": 0.0}, "interval_h"),
    ],
)  # fmt: skip
def test_bad_courses_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DoseCourse(**{"amount_mg": 10.0, **arguments})


def test_courses_become_ordered_events() -> None:
    events = dose_events(
        [
            [DoseCourse(5.0, time_h=2.0, interval_h=3.0, n_doses=3), DoseCourse(7.0, "oral", time_h=4.0)],
            [DoseCourse(9.0)],
        ],
        ka_1_h=[1.0, 1.0],
    )
    assert events.time_h.tolist() == [[2, 4, 5, 8], [0, 0, 0, 0]]
    assert events.amount_mg.tolist() == [[5, 7, 5, 5], [9, 0, 0, 0]]
    assert events.route.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    with pytest.raises(InputError, match="ka_1_h is missing"):
        dose_events([[DoseCourse(5.0, "oral")]])
    with pytest.raises(InputError, match="doses are missing"):
        dose_events([[]])

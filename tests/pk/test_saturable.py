"""The batched solver of saturable kinetics against closed forms, CVODE and the linear solver."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import lambertw

from perfuse.errors import InputError
from perfuse.pk.events import solve_events
from perfuse.pk.mechanistic import organ_concentrations, solve
from perfuse.pk.physiology import human_reference
from perfuse.pk.reference import solve_cvode
from perfuse.pk.saturable import solve_saturable
from perfuse.pk.system import ORAL, DoseEvents, SystemParameters
from perfuse.pk.topology import get_topology


def f64(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_generator(rng: np.random.Generator, batch: int, n: int, scale: float = 1.0) -> torch.Tensor:
    """Compartmental matrices: non-negative off the diagonal, columns sum to minus an elimination."""
    k = rng.lognormal(0, scale, (batch, n, n))
    for i in range(n):
        k[:, i, i] = 0
        k[:, i, i] = -k[:, :, i].sum(1) - rng.lognormal(-2, 1, batch)
    return torch.as_tensor(k)


def random_doses(rng: np.random.Generator, batch: int, until_h: float, n: int = 4) -> DoseEvents:
    """Boluses, infusions and oral doses, repeated or not, padded."""
    oral = rng.random((batch, n)) < 0.35
    infused = ~oral & (rng.random((batch, n)) < 0.4)
    amount = rng.uniform(1, 500, (batch, n)) * (rng.random((batch, n)) < 0.8)
    amount[:, 0] += 10
    return DoseEvents(
        torch.as_tensor(np.where(np.arange(n) == 0, 0.0, rng.uniform(0, until_h, (batch, n)))),
        torch.as_tensor(amount),
        torch.as_tensor(np.where(infused, rng.uniform(0.1, 3, (batch, n)), 0.0)),
        torch.as_tensor(np.where(oral, ORAL, 0).astype(np.int8)),
        torch.as_tensor(rng.lognormal(0, 0.7, batch)),
        torch.as_tensor(rng.uniform(0, 1, batch)),
        torch.as_tensor(rng.uniform(0.2, 1, batch)),
    )


def random_system(
    rng: np.random.Generator, batch: int, doses: DoseEvents, topology_name: str = "circulation", pathways: int = 1
) -> SystemParameters:
    """People-sized systems, saturation (fup dose / (Vss Km,u)) log-uniform in 0.01 to 100 per pathway."""
    topology = get_topology(topology_name)
    body = human_reference(70.0)
    volume = torch.as_tensor(body.volume_l @ topology.volume_map).expand(batch, -1)
    flow = torch.as_tensor(body.flow_l_h @ topology.flow_map).expand(batch, -1)
    kp = torch.as_tensor(np.where(topology.is_blood, 1.0, rng.lognormal(0, 0.6, (batch, topology.n_nodes))))
    fup = torch.as_tensor(10 ** rng.uniform(-2, 0, batch))
    clint = torch.as_tensor(rng.lognormal(4, 1.5, batch))
    exposure = fup * doses.amount_mg.amax(1) / (volume * kp).sum(1)
    km = exposure[:, None] / torch.as_tensor(10 ** rng.uniform(-2, 2, (batch, pathways)))
    linear = torch.stack((0.1 * clint, torch.as_tensor(rng.uniform(0, 3, batch))), 1)
    share = torch.as_tensor(rng.dirichlet(np.ones(pathways), batch))
    ps = torch.as_tensor(rng.lognormal(2, 1, (batch, topology.n_exchanges)))
    bp = torch.as_tensor(rng.uniform(0.6, 1.5, batch))
    return SystemParameters(
        topology, volume, kp, flow, linear, fup, bp, ps, vmax_mg_h=km * clint[:, None] * share, km_u_mg_l=km
    )


def relative_error(system: SystemParameters, doses: DoseEvents, out: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest over organ concentrations above the LOQ, 1e-5 of the dose over blood volume."""
    a, b = organ_concentrations(system, out), organ_concentrations(system, reference)
    loq = 1e-5 * doses.amount_mg.sum(1) / 5.0
    seen = b > loq[:, None, None]
    return float(((a - b).abs() / b)[seen].max())


def one_compartment(vmax: float, half: float, dose: float, times: torch.Tensor, **options: float) -> torch.Tensor:
    return solve_saturable(
        torch.zeros(1, 1, 1).double(), 0, None, f64([vmax]), f64([half]), 0, None, DoseEvents.bolus(f64(dose)), times,
        **options,
    )[0, 0]  # fmt: skip


def lambert(vmax: float, half: float, dose: float, times: torch.Tensor) -> torch.Tensor:
    """Closed form of dA/dt = -Vmax A / (half + A): Beal SL. J Pharmacokinet Biopharm 1982;10:109-119 (Lambert W)."""
    x = dose / half
    return torch.as_tensor(half * np.real(lambertw(x * np.exp(x - vmax / half * times[0].numpy()))))


@pytest.mark.parametrize("dose", [1e-3, 2.0, 20.0, 600.0])
def test_michaelis_menten_is_lamberts_function(dose: float) -> None:
    times = torch.linspace(0, 8, 23).double()[None]
    out = one_compartment(8.0, 2.0, dose, times, tolerance=1e-11)
    torch.testing.assert_close(out, lambert(8.0, 2.0, dose, times), rtol=1e-9, atol=1e-12)


def test_error_falls_with_the_eighth_power_of_a_fixed_step() -> None:
    """Seven nodes symmetric in the step integrate degree 7 exactly, so the order is 8 where the system is not stiff."""
    times = torch.linspace(0, 4, 9).double()[None]
    exact = lambert(8.0, 2.0, 20.0, times)
    steps = [0.5, 0.25, 0.125]
    errors = [float((one_compartment(8.0, 2.0, 20.0, times, step_h=h) / exact - 1).abs().max()) for h in steps]
    slopes = np.diff(np.log(errors)) / np.diff(np.log(steps))
    assert ((slopes > 7.5) & (slopes < 9.5)).all(), (errors, slopes)
    assert errors[-1] < 1e-10


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8, 1e-10])
def test_error_follows_the_tolerance(tolerance: float) -> None:
    times = torch.linspace(0, 9, 41).double()[None]
    out = one_compartment(8.0, 2.0, 40.0, times, tolerance=tolerance)
    assert float((out / lambert(8.0, 2.0, 40.0, times) - 1).abs().max()) < 5 * tolerance


@pytest.mark.parametrize(("name", "pathways"), [("circulation", 1), ("circulation", 3), ("circulation-ps", 2)])
def test_agrees_with_cvode_on_random_systems_and_regimens(name: str, pathways: int) -> None:
    rng = np.random.default_rng(pathways)
    doses = random_doses(rng, 5, 20.0)
    system = random_system(rng, 5, doses, name, pathways)
    times = torch.as_tensor(np.sort(rng.uniform(0, 30, (5, 20)), 1))
    reference = solve_cvode(system, doses, times, rtol=1e-11, with_sinks=True)
    out = solve(system, doses, times, with_sinks=True)
    n = system.topology.n_nodes
    assert relative_error(system, doses, out[:, :n], reference[:, :n]) < 1e-6
    total = doses.amount_mg.sum(1)[:, None, None]
    assert float(((out - reference).abs() / total).max()) < 1e-7


def test_agrees_with_cvode_at_every_degree_of_saturation_on_a_grid() -> None:
    rng = np.random.default_rng(8)
    doses = DoseEvents.bolus(torch.full((6,), 100.0).double())
    system = random_system(rng, 6, doses)
    ratio = torch.logspace(-2, 2, 6).double()[:, None]
    km = (system.fup * 100 / (system.volume_l * system.kp).sum(1))[:, None] / ratio
    system = replace(system, vmax_mg_h=km * 150.0, km_u_mg_l=km)
    times = torch.linspace(0, 24, 49).double().expand(6, -1)
    reference = solve_cvode(system, doses, times, rtol=1e-11)
    assert relative_error(system, doses, solve(system, doses, times), reference) < 1e-6


def assert_balanced(system: SystemParameters, doses: DoseEvents, times: torch.Tensor) -> None:
    """What is somewhere is what was given so far: as in the linear system, and everything in the end."""
    times = torch.cat((times, torch.full_like(times[:, :1], 100.0)), 1)
    out = solve(system, doses, times, with_sinks=True)
    assert torch.isfinite(out).all()
    assert (out >= 0).all()
    linear = solve(replace(system, vmax_mg_h=torch.zeros_like(system.vmax_mg_h)), doses, times, with_sinks=True)
    total = doses.amount_mg.sum(1)[:, None]
    assert float(((out.sum(1) - linear.sum(1)).abs() / total).max()) < 1e-6
    assert float((out[..., -1].sum(1) / total[:, 0] - 1).abs().max()) < 1e-6


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_mass_balances_and_nothing_is_negative(seed: int) -> None:
    rng = np.random.default_rng(seed)
    doses = random_doses(rng, 4, 30.0)
    system = random_system(rng, 4, doses, ["circulation", "circulation-ps"][seed % 2], 1 + seed % 3)
    assert_balanced(system, doses, torch.as_tensor(rng.uniform(1e-3, 48, (4, 15))))


def test_mass_balances_over_many_seeded_draws() -> None:
    rng = np.random.default_rng(2024)
    doses = random_doses(rng, 200, 40.0)
    system = random_system(rng, 200, doses, pathways=2)
    assert_balanced(system, doses, torch.as_tensor(rng.uniform(1e-3, 48, (200, 8))))


def test_huge_half_amount_is_linear_clearance() -> None:
    rng = np.random.default_rng(0)
    generator = random_generator(rng, 3, 5)
    doses = random_doses(rng, 3, 5.0)
    times = torch.as_tensor(rng.uniform(0, 9, (3, 14)))
    rate = torch.as_tensor(rng.lognormal(0, 1, (3, 2)))
    linear = generator.clone()
    linear[:, 2, 2] -= rate.sum(1)
    out = solve_saturable(generator, 2, None, rate * 1e15, torch.full_like(rate, 1e15), 0, 1, doses, times)
    torch.testing.assert_close(out, solve_events(linear, 0, 1, doses, times), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("pathways", [0, 1])
def test_no_pathway_is_the_linear_system(pathways: int) -> None:
    rng = np.random.default_rng(1)
    generator, doses = random_generator(rng, 2, 4), random_doses(rng, 2, 5.0)
    times = torch.as_tensor(rng.uniform(0, 9, (2, 14)))
    none = torch.zeros(2, pathways).double()
    out = solve_saturable(generator, 2, None, none, none, 0, 1, doses, times)
    torch.testing.assert_close(out, solve_events(generator, 0, 1, doses, times), rtol=1e-8, atol=1e-11)


def test_zero_order_elimination_empties_at_vmax() -> None:
    """Far above Km what leaves is Vmax per hour."""
    times = f64([0.0, 1.0, 3.0])
    out = one_compartment(2.0, 1e-6, 100.0, times)
    torch.testing.assert_close(out, f64(100.0, 98.0, 94.0), rtol=1e-7, atol=0)


def test_a_batch_is_its_curves_one_by_one() -> None:
    rng = np.random.default_rng(5)
    doses = random_doses(rng, 4, 10.0)
    system = random_system(rng, 4, doses)
    times = torch.as_tensor(rng.uniform(0, 20, (4, 12)))
    together = solve(system, doses, times)
    for i in range(4):
        own = replace(
            system,
            **{
                f: getattr(system, f)[i : i + 1]
                for f in (
                    "volume_l",
                    "kp",
                    "flow_l_h",
                    "elimination_l_h",
                    "fup",
                    "bp_ratio",
                    "ps_l_h",
                    "vmax_mg_h",
                    "km_u_mg_l",
                )
            },
        )
        own_doses = replace(doses, **{f: getattr(doses, f)[i : i + 1] for f in (
            "time_h", "amount_mg", "duration_h", "route", "ka_1_h", "lag_h", "f_abs")})  # fmt: skip
        alone = solve(own, own_doses, times[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-8)
    assert torch.equal(solve(system, doses, times), together)


def test_values_at_dose_times_are_those_before_but_for_the_first() -> None:
    generator = torch.zeros(1, 1, 1).double()
    doses = DoseEvents(f64([0.0, 2.0]), f64([10.0, 5.0]), f64([0.0, 0.0]))
    out = solve_saturable(generator, 0, None, f64([1.0]), f64([1e-7]), 0, None, doses, f64([0.0, 2.0, 3.0, 1.0]))
    torch.testing.assert_close(out[0, 0], f64(10.0, 8.0, 12.0, 9.0), rtol=1e-6, atol=0)


def test_nothing_is_there_before_the_first_dose_and_times_may_be_in_any_order() -> None:
    generator = torch.zeros(1, 1, 1).double()
    doses = DoseEvents(f64([1.5]), f64([10.0]), f64([0.0]))
    times = f64([4.0, 0.3, 1.5, 2.25, 4.0])
    out = solve_saturable(generator, 0, None, f64([1.0]), f64([2.0]), 0, None, doses, times)[0, 0]
    expected = lambert(1.0, 2.0, 10.0, (times - 1.5).clamp_min(0))
    expected[1] = 0
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-12)


def test_gradient_is_that_of_differences() -> None:
    k = f64([[-1.1, 0.5, 0.2], [0.7, -0.6, 0.1], [0.3, 0.1, -0.4]]).requires_grad_()
    vmax, half = f64([8.0, 3.0]).requires_grad_(), f64([2.0, 7.0]).requires_grad_()
    amount, ka = f64([20.0, 5.0, 6.0]).requires_grad_(), f64(1.3).requires_grad_()
    times = f64([0.3, 1.0, 2.7, 5.0])

    def amounts(*parameters: torch.Tensor) -> torch.Tensor:
        k, vmax, half, amount, ka = parameters
        doses = DoseEvents(f64([0.0, 1.0, 2.0]), amount, f64([0.0, 0.0, 1.5]),
                           torch.tensor([[0, ORAL, 0]], dtype=torch.int8), ka, f64(0.2), f64(0.8))  # fmt: skip
        return solve_saturable(k, 1, None, vmax, half, 0, 2, doses, times, tolerance=1e-10)

    assert torch.autograd.gradcheck(amounts, (k, vmax, half, amount, ka), eps=1e-5, atol=1e-6, rtol=1e-4)


def test_gradient_reaches_a_persons_parameters() -> None:
    rng = np.random.default_rng(3)
    doses = DoseEvents.bolus(torch.full((2,), 50.0).double())
    system = random_system(rng, 2, doses)
    times = torch.linspace(0, 12, 7).double().expand(2, -1)
    km = system.km_u_mg_l.clone().requires_grad_()
    solve(replace(system, km_u_mg_l=km), doses, times, with_sinks=True)[:, 0, -1].sum().backward()
    assert km.grad is not None and torch.isfinite(km.grad).all()
    step = 1e-4
    up, down = (
        solve(replace(system, km_u_mg_l=system.km_u_mg_l * (1 + s)), doses, times)[:, 0, -1] for s in (step, -step)
    )
    torch.testing.assert_close(km.grad[:, 0] * system.km_u_mg_l[:, 0], (up - down) / (2 * step), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerance": 0.5}, "tolerance"),
        ({"step_h": 0.0}, "step_h"),
        ({"route": ORAL}, "route"),
        ({"rate": 1e13}, "rate constants"),
    ],
)
def test_what_cannot_be_solved_is_refused(change: dict[str, float], message: str) -> None:
    route = torch.full((1, 1), int(change.pop("route", 0)), dtype=torch.int8)
    doses = replace(DoseEvents.bolus(f64(10.0)), route=route)
    generator = torch.full((1, 1, 1), -change.pop("rate", 1.0)).double()
    with pytest.raises(InputError, match=message):
        solve_saturable(generator, 0, None, f64([1.0]), f64([1.0]), 0, None, doses, f64([0.0, 1.0]), **change)


def test_a_rate_that_is_not_a_number_stays_with_its_curve() -> None:
    rng = np.random.default_rng(2)
    generator = random_generator(rng, 3, 4)
    broken = generator.clone()
    broken[1, 0, 0] = torch.nan
    doses, times = DoseEvents.bolus(f64(5.0, 6.0, 7.0)), torch.linspace(0, 6, 4).double().expand(3, -1)
    one = torch.ones(3, 1).double()
    out, whole = (solve_saturable(k, 1, None, one, one, 0, None, doses, times) for k in (broken, generator))
    assert torch.isnan(out[1]).any()
    torch.testing.assert_close(out[[0, 2]], whole[[0, 2]], rtol=1e-6, atol=1e-9)

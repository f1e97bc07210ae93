"""Modes: the same amounts and gradients as the ladder of powers, and finite differences, wherever they are used."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch
from perfuse.errors import InputError
from perfuse.pk.events import dose_events_in_order, solve_events
from perfuse.pk.mechanistic import _solve_stepwise, generator_matrix, mechanistic_rates, solve_amounts
from perfuse.pk.mode_events import Course, solve_course
from perfuse.pk.modes import Basis, general_basis, solve_bolus, tree_basis
from perfuse.pk.system import ORAL, DoseEvents
from perfuse.pk.topology import Topology, get_topology

BATCH, SIZE, GUT = 3, 5, 4


def cycle_generator(seed: int, turn: float = 8.0) -> torch.Tensor:
    """Compartments whose flow mostly goes round, so that some modes oscillate."""
    rng = np.random.default_rng(seed)
    k = rng.lognormal(-2, 0.5, (BATCH, SIZE, SIZE))
    for i in range(SIZE):
        k[:, (i + 1) % SIZE, i] += turn * rng.uniform(0.7, 1.3, BATCH)
        k[:, i, i] = 0
        k[:, i, i] = -k[:, :, i].sum(1) - rng.lognormal(-2, 1, BATCH)
    return torch.as_tensor(k)


def mixed_doses() -> DoseEvents:
    """Per curve: bolus, infusion and oral dose; infusions that overlap; one oral dose and padding."""
    of = lambda *rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731
    return DoseEvents(
        of([0.0, 1.0, 1.5], [0.5, 1.0, 1.0], [0.0, 0.0, 0.0]), of([3.0, 2.0, 4.0], [5.0, 1.0, 2.0], [7.0, 0.0, 0.0]),
        of([0.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 0.0]),
        torch.tensor([[0, 0, ORAL], [0, 0, 0], [ORAL, 0, 0]], dtype=torch.int8), of(0.9, 1.0, 2.1), of(0.1, 0.0, 0.3),
        of(0.5, 1.0, 0.8),
    )  # fmt: skip


TIMES = torch.tensor([[2.5, 0.2, 1.0, 1.5, 9.0], [0.0, 0.5, 0.7, 1.6, 4.0], [0.0, 0.3, 0.31, 2.0, 6.0]]).double()


def mixed_course(times: torch.Tensor = TIMES) -> Course:
    doses = mixed_doses()
    return Course.of(dose_events_in_order(doses, float(times.max())), times, 0, GUT, doses.ka_1_h)


def by_modes(generator: torch.Tensor, course: Course) -> torch.Tensor:
    basis = general_basis(generator.detach(), course.longest_h)
    assert (basis.good & course.resolved(basis.values)).all()
    return solve_course(generator, basis, course)


def test_any_regimen_agrees_with_the_ladder_in_amounts_and_gradients() -> None:
    generator = cycle_generator(0)
    assert torch.linalg.eigvals(generator).imag.any()
    weight = torch.rand(BATCH, SIZE, TIMES.shape[1], dtype=torch.float64)
    found = []
    for solver in (
        lambda k: by_modes(k, mixed_course()),
        lambda k: solve_events(k, 0, GUT, mixed_doses(), TIMES),
    ):
        k = generator.clone().requires_grad_(True)
        out = solver(k)
        (out * weight).sum().backward()
        found.append((out.detach(), k.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-11)


def test_gradients_of_a_mixed_regimen_by_finite_differences() -> None:
    generator = cycle_generator(1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda k: by_modes(k, mixed_course()), (generator,), rtol=1e-6)


def star(rates_in: list[float], rates_out: list[float], elimination: float = 0.3) -> torch.Tensor:
    n = len(rates_in) + 1
    k = torch.zeros(1, n, n, dtype=torch.float64)
    k[0, 1:, 0], k[0, 0, 1:] = torch.tensor(rates_in).double(), torch.tensor(rates_out).double()
    return k - torch.diag_embed(k.sum(1)) - torch.diag(torch.eye(n, dtype=torch.float64)[0] * elimination)


LEVELS = ((torch.arange(1, 5), torch.zeros(4, dtype=torch.int64)),)


@pytest.mark.parametrize("rates_out", [[2.0, 0.3, 5.0, 40.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1 + 1e-9, 2.0]])
def test_a_star_is_real_and_survives_equal_rates(rates_out: list[float]) -> None:
    amount = torch.tensor([5.0]).double()
    found = []
    for kind in ("modes", "ladder"):
        k = star([1.0, 1.0, 0.5, 7.0], rates_out).requires_grad_(True)
        basis = tree_basis(k.detach(), LEVELS, 9.0)
        assert basis.good.all()
        assert not basis.values.is_complex()
        if kind == "modes":
            out = solve_bolus(k, basis, amount, 0, TIMES[:1])
        else:
            out = solve_events(k, 0, None, DoseEvents.bolus(amount), TIMES[:1])
        out.square().sum().backward()
        found.append((out.detach(), k.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-7, atol=1e-9)


def test_a_star_by_finite_differences() -> None:
    k = star([1.0, 1.0, 0.5, 7.0], [1.0, 1.0, 0.2, 3.0])
    # In the rates alone: any other entry would leave the star.
    rates = torch.cat((k[0, 1:, 0], k[0, 0, 1:])).requires_grad_(True)
    amount = torch.tensor([5.0]).double()

    def run(r: torch.Tensor) -> torch.Tensor:
        into, out = r[:4], r[4:]
        corner = -(into.sum() + 0.3)[None, None]
        matrix = torch.cat((torch.cat((corner, out[None]), 1), torch.cat((into[:, None], torch.diag(-out)), 1)))[None]
        return solve_bolus(matrix, tree_basis(matrix.detach(), LEVELS, 9.0), amount, 0, TIMES[:1])

    assert torch.autograd.gradcheck(run, (rates,), rtol=1e-6)


def test_chains_of_equal_rates_are_left_to_the_ladder() -> None:
    """A defective matrix has no basis of eigenvectors; an input at the rate of a mode has no particular solution."""
    chain = torch.diag(torch.full((4,), 1.0), -1).double() - torch.eye(5).double()
    assert not general_basis(chain[None], 10.0).good.any()
    course = mixed_course()
    course = replace(course, ka_1_h=torch.ones(3).double())
    values = torch.tensor([[-1.0 - 1e-6, -3.0], [-1.0, -3.0], [-2.0, -1e-9]]).double()
    assert course.resolved(values).tolist() == [False, True, True]  # curve 1 has no oral dose, curve 2 no infusion


def solve_rates(topology: Topology, rates: torch.Tensor, doses: DoseEvents, time_h: torch.Tensor) -> torch.Tensor:
    return solve_amounts(generator_matrix(topology, rates), topology, doses, time_h)


def rates_of(task: str, n: int) -> tuple:
    batch = to_batch(simulate_task(task, n, 3))
    return batch.system.topology, mechanistic_rates(batch.system), batch.doses, batch.time_h


@pytest.mark.parametrize("task", ["T1", "T2", "T3"])
def test_rates_of_real_bodies_agree_with_the_ladder(task: str) -> None:
    topology, rates, doses, times = rates_of(task, 12)
    found = []
    for solver in (solve_rates, lambda t, r, d, h: _solve_stepwise(generator_matrix(t, r), t, d, h)):
        own = rates.clone().requires_grad_(True)
        out = solver(topology, own, doses, times)
        (out / out.detach().amax((1, 2), keepdim=True)).square().sum().backward()
        found.append((out.detach(), own.grad))
    assert (found[0][0] >= 0).all()
    scale = doses.amount_mg.sum(1)[:, None, None]
    assert ((found[0][0] - found[1][0]).abs() / scale).max() < 1e-9
    worst = (found[0][1] - found[1][1]).abs() / found[1][1].abs().amax(1, keepdim=True)
    assert worst.max() < 1e-6


def test_curves_that_modes_do_not_serve_keep_their_place_in_the_batch() -> None:
    topology, rates, doses, times = rates_of("T3", 6)
    rates = rates.clone()
    # Every rate alike, and nothing leaves venous blood: a chain of equal rates runs through the portal vein.
    rates[[1, 4]], rates[[1, 4], 0], rates[[1, 4], topology.n_edges :] = 1.0, 0.0, 0.0
    generator = generator_matrix(topology, rates)
    assert general_basis(generator, 50.0).good.tolist() == [True, False, True, True, False, True]
    mixed = solve_rates(topology, rates, doses, times)
    torch.testing.assert_close(mixed, _solve_stepwise(generator, topology, doses, times), rtol=1e-6, atol=1e-7)
    alone = solve_rates(topology, rates[[1, 4]], doses.of(torch.tensor([1, 4])), times[[1, 4]])
    torch.testing.assert_close(mixed[[1, 4]], alone, rtol=1e-9, atol=1e-12)


def test_the_bolus_itself_at_its_own_time_and_nothing_before_the_first_dose() -> None:
    topology, rates, _, _ = rates_of("T3", 1)
    times = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).double()
    zero = torch.zeros(1, 2).double()
    doses = DoseEvents(torch.tensor([[1.0, 1.0]]).double(), torch.tensor([[50.0, 7.0]]).double(), zero)
    out = solve_rates(topology, rates, doses, times)
    assert (out[..., 0] == 0).all()
    assert out[0, topology.dose_node, 1] == 57.0
    assert out[0, :, 1].count_nonzero() == 1
    later = replace(doses, time_h=torch.tensor([[1.0, 2.0]]).double())
    again = solve_rates(topology, rates, replace(later, amount_mg=torch.tensor([[50.0, 70.0]]).double()), times)
    assert torch.equal(again[..., :3], solve_rates(topology, rates, later, times)[..., :3])


def test_rates_too_fast_and_no_gut_are_refused() -> None:
    topology = get_topology("hub")
    rates = torch.ones(1, topology.n_edges + topology.n_eliminations, dtype=torch.float64)
    times = torch.tensor([[1.0, 2.0]]).double()
    bolus = DoseEvents.bolus(torch.ones(1).double())
    with pytest.raises(InputError, match="rate constants are too fast to solve"):
        solve_rates(topology, rates * 1e13, bolus, times)
    oral = replace(bolus, route=torch.tensor([[ORAL]], dtype=torch.int8))
    with pytest.raises(InputError, match="route has no gut to be absorbed in"):
        solve_rates(replace(topology, absorption_node=None), rates, oral, times)


def test_a_basis_of_some_curves() -> None:
    basis = general_basis(cycle_generator(2), 5.0)
    rows = torch.tensor([2, 0])
    part = basis.of(rows)
    assert isinstance(part, Basis)
    rebuilt = part.vectors @ (part.values[..., None] * part.inverse)
    torch.testing.assert_close(rebuilt.real, cycle_generator(2)[rows], rtol=1e-10, atol=1e-10)

"""Regimens on linear systems: infusions, oral doses, repeats and mixtures against closed forms and superposition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.pk.events import solve_events
from perfuse.pk.propagate import propagate_times
from perfuse.pk.system import ORAL, DoseEvents


def random_generator(seed: int, batch: int = 3, n: int = 5, scale: float = 1.0) -> torch.Tensor:
    """Compartmental matrices: non-negative off the diagonal, columns sum to minus an elimination."""
    rng = np.random.default_rng(seed)
    k = rng.lognormal(0, scale, (batch, n, n))
    for i in range(n):
        k[:, i, i] = 0
        k[:, i, i] = -k[:, :, i].sum(1) - rng.lognormal(-2, 1, batch)
    return torch.as_tensor(k)


def doses(
    time: list, amount: list, duration: list | None = None, route: list | None = None, **absorption: float
) -> DoseEvents:
    """One curve's doses."""
    row = lambda x: torch.tensor([x], dtype=torch.float64)  # noqa: E731
    events = DoseEvents(row(time), row(amount), row(duration or [0.0] * len(time)))
    if route:
        events = replace(events, route=torch.tensor([route], dtype=torch.int8))
    return replace(events, **{name: torch.tensor([value], dtype=torch.float64) for name, value in absorption.items()})


def row(*times: float) -> torch.Tensor:
    return torch.tensor([times], dtype=torch.float64)


def test_infusion_is_the_integral_of_the_unit_response() -> None:
    """K^-1 (exp(K a) - exp(K b)) / duration, a and b the time since its start and its end."""
    generator = random_generator(5, batch=2, n=3, scale=0.5)
    durations, times = (2.0, 0.5), torch.tensor([0.0, 0.2, 0.5, 1.7, 2.0, 6.0], dtype=torch.float64)
    events = DoseEvents(
        torch.zeros(2, 1).double(), torch.ones(2, 1).double(), torch.tensor([[d] for d in durations]).double()
    )
    out = solve_events(generator, 1, None, events, times.expand(2, -1))
    unit = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    for b, d in enumerate(durations):
        k = generator[b]
        for i, t in enumerate(times.tolist()):
            rhs = (torch.linalg.matrix_exp(k * t) - torch.linalg.matrix_exp(k * max(t - d, 0.0))) @ unit / d
            torch.testing.assert_close(out[b, :, i], torch.linalg.solve(k, rhs), rtol=1e-8, atol=1e-13)
    assert (out >= 0).all()


@pytest.mark.parametrize("duration", [1e-6, 1e-4])
def test_a_very_short_infusion_is_a_bolus(duration: float) -> None:
    generator, times = random_generator(7, batch=1, n=4, scale=0.5), row(0.37, 5.1)
    infused = solve_events(generator, 0, None, doses([0.0], [1.0], [duration]), times)
    bolus = propagate_times(generator, torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64), times)
    torch.testing.assert_close(infused, bolus, rtol=20 * duration, atol=1e-9)


def test_a_system_at_rest_keeps_its_infusion() -> None:
    out = solve_events(torch.zeros(1, 3, 3).double(), 1, None, doses([0.0], [1.0], [2.0]), row(0.5, 2.0, 9.0))[0]
    torch.testing.assert_close(out[1], torch.tensor([0.25, 1.0, 1.0], dtype=torch.float64))
    assert (out[[0, 2]] == 0).all()


@pytest.mark.parametrize("ka", [0.3, 2.0, 1.5])
def test_oral_dose_is_batemans_curve(ka: float) -> None:
    """One compartment: F D ka / (ka - k) (exp(-k t) - exp(-ka t)), also at ka = k (Bateman H 1910)."""
    k, dose, f, lag = 1.5, 80.0, 0.6, 0.4
    times = row(0.0, 0.4, 0.5, 1.0, 3.0, 9.0)
    events = doses([0.0], [dose], route=[ORAL], ka_1_h=ka, lag_h=lag, f_abs=f)
    out = solve_events(torch.tensor([[[-k]]]).double(), 0, 0, events, times)[0, 0]
    t = (times[0] - lag).clamp_min(0)
    bateman = t * torch.exp(-k * t) * k if ka == k else ka / (ka - k) * (torch.exp(-k * t) - torch.exp(-ka * t))
    torch.testing.assert_close(out, f * dose * bateman, rtol=1e-10, atol=1e-13)


def test_overlapping_infusions_boluses_and_oral_doses_superpose() -> None:
    generator, times = random_generator(3, batch=1), row(0.3, 0.9, 1.0, 1.4, 2.0, 2.6, 4.0, 11.0)
    absorption = {"ka_1_h": 0.8, "lag_h": 0.25, "f_abs": 0.7}
    time, amount = [0.0, 0.5, 0.5, 1.0, 2.0], [10.0, 4.0, 6.0, 7.0, 3.0]
    duration, route = [1.5, 0.0, 1.0, 0.0, 0.6], [0, 0, 0, ORAL, 0]
    together = solve_events(generator, 2, 4, doses(time, amount, duration, route, **absorption), times)
    alone = sum(
        solve_events(generator, 2, 4, doses([t], [a], [d], [r], **absorption), times)
        # Only a curve's first event counts at its own time.
        * ((times > t) | (t == 0)).double()[:, None]
        for t, a, d, r in zip(time, amount, duration, route, strict=True)
    )
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_and_padding_of_doses_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    generator, times = random_generator(seed, batch=1), torch.as_tensor(rng.uniform(0, 9, (1, 12)))
    n = 4
    columns = (rng.uniform(0, 5, n), rng.uniform(1, 9, n), rng.choice([0.0, 1.3], n), rng.choice([0, 0, ORAL], n))
    columns = (*columns[:2], np.where(columns[3] == ORAL, 0.0, columns[2]), columns[3])
    order = rng.permutation(n)
    absorption = {"ka_1_h": 1.1, "lag_h": 0.2, "f_abs": 0.9}
    plain = solve_events(generator, 0, 1, doses(*(c.tolist() for c in columns), **absorption), times)
    shuffled = [[*c[order].tolist(), 0] for c in columns]
    torch.testing.assert_close(solve_events(generator, 0, 1, doses(*shuffled, **absorption), times), plain)
    assert (plain >= 0).all()


def test_curves_with_different_numbers_of_events_share_a_batch() -> None:
    generator, times = random_generator(11, batch=2), row(0.5, 3.0, 7.0).expand(2, -1)
    both = DoseEvents(
        torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.0, 0.0]]).double(),
        torch.tensor([[5.0, 6.0, 7.0], [9.0, 0.0, 0.0]]).double(),
        torch.tensor([[0.0, 1.5, 0.0], [0.0, 0.0, 0.0]]).double(),
    )  # fmt: skip
    out = solve_events(generator, 0, None, both, times)
    for b in range(2):
        alone = DoseEvents(both.time_h[b : b + 1], both.amount_mg[b : b + 1], both.duration_h[b : b + 1])
        torch.testing.assert_close(out[b : b + 1], solve_events(generator[b : b + 1], 0, None, alone, times[:1]))


def test_gradients_of_a_mixed_regimen() -> None:
    generator = random_generator(2, batch=1, n=3, scale=0.3)
    off = generator.clone().requires_grad_(True)
    events = doses([0.0, 1.0, 1.5], [3.0, 2.0, 4.0], [0.0, 1.0, 0.0], [0, 0, ORAL], ka_1_h=0.9, lag_h=0.1, f_abs=0.5)
    assert torch.autograd.gradcheck(lambda k: solve_events(k, 0, 2, events, row(0.7, 1.9, 4.2)), (off,), rtol=1e-6)

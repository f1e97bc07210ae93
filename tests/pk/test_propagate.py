"""The propagator: exact, non-negative, differentiable, the same whichever path computes it."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.errors import InputError
from perfuse.pk.mechanistic import generator_matrix
from perfuse.pk.propagate import matrix_exponential, propagate_times, propagate_uniform
from perfuse.pk.topology import get_topology


def random_generator(seed: int, batch: int = 3, n: int = 5, scale: float = 2.0) -> torch.Tensor:
    """Compartmental matrices: non-negative off the diagonal, columns sum to minus an elimination."""
    rng = np.random.default_rng(seed)
    k = rng.lognormal(0, scale, (batch, n, n))
    for i in range(n):
        k[:, i, i] = 0
        k[:, i, i] = -k[:, :, i].sum(1) - rng.lognormal(-2, 1, batch)
    return torch.as_tensor(k)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), log_h=st.floats(-6, 4))
def test_matrix_exponential_agrees_with_scipy(seed: int, log_h: float) -> None:
    generator, h = random_generator(seed), float(np.exp(log_h))
    ours = matrix_exponential(generator, h).numpy()
    theirs = np.stack([scipy.linalg.expm(k * h) for k in generator.numpy()])
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-13)
    assert (ours >= 0).all()


def test_uniform_grid_equals_any_times_and_single_exponentials() -> None:
    generator = random_generator(1)
    state = torch.rand(3, 5, dtype=torch.float64)
    times = 0.3 + 0.7 * torch.arange(37, dtype=torch.float64)
    uniform = propagate_uniform(generator, state, 0.3, 0.7, 37)
    anytime = propagate_times(generator, state, times.expand(3, -1))
    truth = torch.stack([torch.linalg.matrix_exp(generator * t) @ state[..., None] for t in times], -1)[:, :, 0]
    torch.testing.assert_close(uniform, truth, rtol=1e-9, atol=1e-16)
    torch.testing.assert_close(anytime, truth, rtol=1e-9, atol=1e-16)


def test_times_may_be_unordered_repeated_and_zero() -> None:
    generator = random_generator(2)
    state = torch.rand(3, 5, dtype=torch.float64)
    times = torch.tensor([[5.0, 0.0, 1.5, 1.5], [0.1, 30.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    out = propagate_times(generator, state, times)
    for b in range(3):
        for t in range(4):
            truth = torch.linalg.matrix_exp(generator[b] * times[b, t]) @ state[b]
            torch.testing.assert_close(out[b, :, t], truth, rtol=1e-9, atol=1e-16)


def test_one_time_and_zero_horizon() -> None:
    generator, state = random_generator(3), torch.rand(3, 5, dtype=torch.float64)
    assert torch.equal(propagate_uniform(generator, state, 0.0, 1.0, 1)[..., 0], state)
    assert torch.equal(propagate_times(generator, state, torch.zeros(3, 2, dtype=torch.float64))[..., 1], state)


def test_tiny_entries_keep_relative_accuracy_and_sign() -> None:
    # A chain with rates nine orders of magnitude apart: the last state fills by a product of tiny steps.
    rates = [1e4, 1e-2, 1e-5]
    k = torch.zeros(1, 4, 4, dtype=torch.float64)
    for i, rate in enumerate(rates):
        k[0, i, i] -= rate
        k[0, i + 1, i] += rate
    state = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    time = torch.tensor([[1e-3, 1.0]], dtype=torch.float64)
    out = propagate_times(k, state, time)
    # Last state, by the leading term of its series: k2 k3 t^2 / 2 (first state empties at once), to 1 per cent.
    assert out[0, 3, 1].item() == pytest.approx(1e-2 * 1e-5 / 2, rel=1e-2)
    assert (out >= 0).all()
    assert out.sum(1).sub(1).abs().max() < 1e-10


@pytest.mark.parametrize("path", ["uniform", "times"])
def test_gradients_are_exact(path: str) -> None:
    generator = random_generator(4, batch=2, n=4, scale=0.7).requires_grad_(True)
    state = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([[0.0, 0.3, 4.0]] * 2, dtype=torch.float64)

    def run(k: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return propagate_uniform(k, x, 0.4, 0.6, 13) if path == "uniform" else propagate_times(k, x, times)

    assert torch.autograd.gradcheck(run, (generator, state))


def test_gradient_survives_equal_rates() -> None:
    # Equal rates are where an eigendecomposition's gradient is NaN, and where an untrained network starts.
    k = (torch.ones(1, 3, 3) - 4 * torch.eye(3)).double().requires_grad_(True)
    propagate_uniform(k, torch.tensor([[1.0, 0, 0]]).double(), 0.0, 0.5, 9).log1p().sum().backward()
    assert k.grad is not None
    assert torch.isfinite(k.grad).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), log_t=st.floats(-3, 8))
def test_any_horizon_and_times_agree_with_single_exponentials(seed: int, log_t: float) -> None:
    generator, state = random_generator(seed, scale=1.0), torch.rand(3, 5, dtype=torch.float64)
    times = torch.as_tensor(np.random.default_rng(seed).uniform(0, np.exp(log_t), (3, 4)))
    out = propagate_times(generator, state, times)
    for b in range(3):
        for t in range(4):
            truth = scipy.linalg.expm((generator[b] * times[b, t]).numpy()) @ state[b].numpy()
            np.testing.assert_allclose(out[b, :, t].numpy(), truth, rtol=2e-9, atol=1e-13)


@pytest.mark.parametrize("rate", [1e12, float("inf")])
def test_rates_too_fast_to_solve_are_refused(rate: float) -> None:
    generator = torch.tensor([[[-rate, 0.0], [rate, 0.0]]], dtype=torch.float64)
    state = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for run in (
        lambda: propagate_uniform(generator, state, 0.0, 1.0, 3),
        lambda: propagate_times(generator, state, torch.tensor([[1.0]], dtype=torch.float64)),
    ):
        with pytest.raises(InputError, match="rate constants are too fast to solve"):
            run()


def test_constants_made_in_inference_mode_serve_training_later() -> None:
    topology = get_topology("hub").permuted(range(14))  # an object of its own: nothing is cached for it yet
    rates = torch.ones(1, topology.n_edges + 2, dtype=torch.float64)
    with torch.inference_mode():
        generator_matrix(topology, rates)
    generator_matrix(topology, rates.requires_grad_(True)).sum().backward()
    assert rates.grad is not None

"""Gauss-Newton for exponents: it finds the truth where the truth is log-linear, and leaves nothing worse."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from perfuse.config import FluxConfig, LoglinearRatesConfig, parse_config
from perfuse.data.batch import CurveBatch
from perfuse.data.loader import select_curves
from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch
from perfuse.models import build_model
from perfuse.models.flux import LoglinearRates
from perfuse.training.gauss_newton import (
    _let_go,
    _minimise,
    _Problem,
    fit_exponents,
    fits_exponents,
    start_exponents,
    thinned,
)


def batch_of(task: str, n: int, seed: int = 1) -> CurveBatch:
    return thinned(to_batch(simulate_task(task, n, seed)), 9)


def model_for(batch: CurveBatch, **config: object) -> LoglinearRates:
    torch.manual_seed(0)
    model = build_model(LoglinearRatesConfig(**config), batch.system.topology)
    model.fit_normalisation(batch)
    assert isinstance(model, LoglinearRates)
    return model


def test_finds_the_textbook_on_people_and_carries_it_to_the_rat() -> None:
    batch = batch_of("T5", 30)
    model = model_for(batch)
    report = fit_exponents(model, batch)
    assert report.before > 1
    assert report.after < 1e-9
    exponents = model.exponents()["flow_from_tissue"]
    assert exponents["flow"] == pytest.approx(1, abs=1e-3)
    assert exponents["volume_source"] == pytest.approx(-1, abs=1e-3)
    assert exponents["kp_source"] == pytest.approx(-1, abs=1e-3)
    rat = to_batch(simulate_task("T5-rat", 10, 5))
    with torch.no_grad():
        error = (model(rat)[rat.mask].log() - rat.conc_mg_l[rat.mask].log()).abs().mean()
    assert error < 1e-3


def test_the_frozen_pathway_finds_the_way_to_the_saturable_one() -> None:
    batch = thinned(to_batch(simulate_task("T4", 24, 1)), 5)
    model = model_for(batch, state_dependent=True)
    with torch.no_grad():
        before = _Problem(model, batch, None).loss()
        _minimise(_Problem(model, batch, None, frozen=True), 40)
        problem = _Problem(model, batch, None)
        _let_go(problem)
        frozen = problem.loss()
        _minimise(problem, 2)
        after = problem.loss()
    assert before > 5
    assert frozen < 0.2 * before
    assert after < frozen


def test_finds_the_truth_of_a_saturable_drug() -> None:
    batch = batch_of("T4", 90)
    model = model_for(batch, state_dependent=True)
    report = fit_exponents(model, batch)
    assert report.after < 1e-6
    half, rate = model.exponents()["saturable_half_amount"], model.exponents()["saturable_rate"]
    assert (half["km_u"], half["kp"], half["fup"]) == pytest.approx((1, 1, -1), abs=0.01)
    assert (rate["vmax"], rate["km_u"], rate["kp"]) == pytest.approx((1, -1, -1), abs=0.01)


def test_analytic_and_differenced_gradients_agree() -> None:
    batch = batch_of("T2", 6)
    model = model_for(batch)
    with torch.no_grad():
        for p in model.linear_parameters():
            p.add_(0.05 * torch.randn_like(p))
        problem = _Problem(model, batch, None)
        _, gradient = problem.normal_equations()
    error = torch.where(batch.mask, model(batch).log() - problem.true, 0.0)
    loss = (problem.weight * error * error).sum() / 2
    exact = torch.autograd.grad(loss, model.linear_parameters(), allow_unused=True)
    flat = torch.cat([torch.zeros(p.numel()).double() if g is None else g.flatten()
                      for g, p in zip(exact, model.linear_parameters(), strict=True)])  # fmt: skip
    torch.testing.assert_close(gradient, flat, rtol=1e-3, atol=1e-4 * float(flat.abs().max()))


def test_never_ends_worse_than_it_began_and_stays_finite_on_nonsense() -> None:
    batch = batch_of("T2", 6)
    random = torch.Generator().manual_seed(0)
    noise = torch.exp(3 * torch.randn(batch.conc_mg_l.shape, generator=random, dtype=torch.float64))
    nonsense = replace(batch, conc_mg_l=batch.conc_mg_l * noise)
    model = model_for(nonsense)
    report = fit_exponents(model, nonsense, max_iterations=4)
    assert report.after <= report.before
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_time_limit_is_kept_and_one_curve_is_enough_to_run() -> None:
    batch = batch_of("T1", 3)
    one = select_curves(batch, torch.tensor([0]))
    model = model_for(batch)
    report = fit_exponents(model, batch, max_seconds=0.0)
    assert report.iterations == 0
    assert report.after == report.before
    assert fit_exponents(model_for(one), one, max_iterations=2).after < 100


def test_the_same_seed_gives_the_same_fit() -> None:
    source = simulate_task("T1", 20, 1)
    config = parse_config({"seed": 3})
    fits = []
    for _ in range(2):
        model = model_for(to_batch(source))
        start_exponents(model, source, np.arange(16), config, torch.device("cpu"), None)
        fits.append(torch.cat([p.detach().flatten() for p in model.linear_parameters()]))
    assert torch.equal(*fits)


@pytest.mark.parametrize(
    ("loss", "start", "wanted"),
    [("log_mse", "gauss-newton", True), ("log_huber", "gauss-newton", True), ("mse", "gauss-newton", False),
     ("log_mse", "zero", False)],
)  # fmt: skip
def test_only_where_the_loss_is_of_logs_and_the_model_asks(loss: str, start: str, wanted: bool) -> None:
    config = parse_config({"loss": {"kind": loss}, "model": {"name": "flux", "start": start}})
    model = build_model(FluxConfig(start=start), simulate_task("T1", 2, 1).topology)
    assert fits_exponents(config, model) is wanted


def test_sparse_curves_keep_what_they_have() -> None:
    batch = to_batch(simulate_task("T1", 8, 1))
    keep = torch.zeros_like(batch.mask)
    for i in range(8):
        keep[i, :, torch.tensor([10, 20, 40, 60, 80]) + i] = True
    sparse = replace(batch, mask=batch.mask & keep)
    few = thinned(sparse, 10)
    assert few.time_h.shape[1] == 10
    assert few.mask.sum() == sparse.mask.sum()
    for i in range(8):
        seen = sparse.mask[i].any(0)
        assert set(few.time_h[i].tolist()) == set(batch.time_h[i][seen].tolist())
    model = model_for(sparse)
    assert fit_exponents(model, few).after < 1e-4


def test_a_signal_ends_the_fit() -> None:
    batch = batch_of("T1", 6)
    asked = iter([False, False, True, True, True, True])
    report = fit_exponents(model_for(batch), batch, stopped=lambda: next(asked))
    assert report.iterations == 2


def test_thinned_grids_stay_even_and_drop_the_start() -> None:
    batch = to_batch(simulate_task("T1", 2, 1))
    few = thinned(batch, 10)
    assert few.time_h.shape[1] == 10
    gaps = few.time_h[0].diff()
    torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps))
    assert few.time_h[0, 0] > 0
    assert thinned(few, 10) is few

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from perfuse.config import LossConfig
from perfuse.data.batch import CurveBatch
from perfuse.data.loader import select_curves
from perfuse.errors import InputError
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS
from perfuse.training.loss import FLOOR_MG_L, CurveLoss, organ_means, organ_weights


def value(config: LossConfig, pred: Tensor, batch: CurveBatch) -> Tensor:
    loss = CurveLoss(config, torch.float64)
    return loss(pred, batch).total / loss.weight(batch).total


def prediction(batch: CurveBatch, seed: int = 0) -> Tensor:
    noise = torch.randn(batch.conc_mg_l.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (batch.conc_mg_l.clamp_min(1e-6) * (0.5 * noise).exp()).requires_grad_()


@pytest.fixture
def censored_batch(small_batch: CurveBatch) -> CurveBatch:
    """The late half of the values is known only to be below the LLOQ."""
    censored = small_batch.mask.clone()
    censored[:, :, :6] = False
    return replace(small_batch, censored=censored)


EQUAL = LossConfig(organ_weight={})


def test_log_mse_is_the_mean_squared_log_ratio(small_batch: CurveBatch) -> None:
    pred = prediction(small_batch)
    m = small_batch.mask
    expected = (pred[m].log() - small_batch.conc_mg_l[m].log()).square().mean()
    torch.testing.assert_close(value(EQUAL, pred, small_batch), expected)


@pytest.mark.parametrize("kind", ["mse", "log1p", "log_huber"])
def test_other_kinds_match_their_formulas(small_batch: CurveBatch, kind: str) -> None:
    pred, m = prediction(small_batch), small_batch.mask
    p, t = pred[m], small_batch.conc_mg_l[m]
    expected = {
        "mse": lambda: torch.nn.functional.mse_loss(p, t),
        "log1p": lambda: torch.nn.functional.mse_loss(p.log1p(), t.log1p()),
        "log_huber": lambda: 2 * torch.nn.functional.huber_loss(p.log(), t.log(), delta=0.5),
    }[kind]()
    got = value(LossConfig(kind=kind, organ_weight={}), pred, small_batch)  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected)


def test_masked_values_change_neither_loss_nor_gradient(small_batch: CurveBatch) -> None:
    pred = prediction(small_batch).detach()
    broken = torch.where(small_batch.mask, pred, torch.nan).requires_grad_()
    pred.requires_grad_()
    for p in (pred, broken):
        value(EQUAL, p, small_batch).backward()
    assert broken.grad is not None and pred.grad is not None
    assert broken.grad.isfinite().all()
    assert torch.equal(broken.grad, pred.grad)
    assert (broken.grad[~small_batch.mask] == 0).all()


def test_a_prediction_of_zero_is_floored_and_finite(small_batch: CurveBatch) -> None:
    pred = torch.zeros(small_batch.conc_mg_l.shape, requires_grad=True)
    loss = value(EQUAL, pred, small_batch)
    loss.backward()
    m = small_batch.mask
    expected = (math.log(FLOOR_MG_L) - small_batch.conc_mg_l[m].log()).square().mean()
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


def test_nan_in_a_value_that_counts_reaches_the_loss(small_batch: CurveBatch) -> None:
    pred = prediction(small_batch).detach()
    at = tuple(torch.nonzero(small_batch.mask)[0].tolist())
    pred[at] = torch.nan
    assert not value(EQUAL, pred, small_batch).isfinite()
    per_curve = CurveLoss(EQUAL, torch.float64).per_curve(pred, small_batch)
    assert (~per_curve.isfinite()).nonzero().flatten().tolist() == [at[0]]


def test_the_loss_is_float32_also_under_autocast_and_float64_when_asked(small_batch: CurveBatch) -> None:
    loss, exact = CurveLoss(EQUAL), CurveLoss(EQUAL, torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(prediction(small_batch).detach().bfloat16(), small_batch).total.dtype == torch.float32
    single = loss(prediction(small_batch), small_batch).total
    assert single.dtype == torch.float32
    double = exact(prediction(small_batch), small_batch).total
    assert double.dtype == torch.float64
    assert single.item() == pytest.approx(double.item(), rel=1e-5)


# -- weights -------------------------------------------------------------------------------------------------------


def test_organ_weights_have_mean_one_and_keep_their_ratios() -> None:
    w = organ_weights({"blood": 2.0, "liver": 3.0})
    assert float(w.mean()) == pytest.approx(1)
    assert float(w[0] / w[-1]) == pytest.approx(2)
    assert float(w[ORGAN_INDEX["liver"]] / w[-1]) == pytest.approx(3)


def test_equal_errors_give_the_same_loss_whatever_the_weights(small_batch: CurveBatch) -> None:
    pred = small_batch.conc_mg_l * 1.5
    one = value(EQUAL, pred, small_batch)
    other = value(LossConfig(organ_weight={"brain": 9.0, "skin": 0.0}), pred, small_batch)
    torch.testing.assert_close(one, other)
    assert float(one) == pytest.approx(math.log(1.5) ** 2)


def test_a_heavier_organ_pulls_more(small_batch: CurveBatch) -> None:
    pred = small_batch.conc_mg_l.clone()
    pred[:, 0] *= 2
    heavy = value(LossConfig(organ_weight={"blood": 4.0}), pred, small_batch)
    assert float(heavy) > 2 * float(value(EQUAL, pred, small_batch))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"thymus": 1.0}, "unknown organ (got thymus)"),
        ({"liver": -1.0}, "organ_weight.liver is not allowed (got -1)"),
        ({"liver": math.nan}, "organ_weight.liver"),
        ({organ: 0.0 for organ in ORGANS}, "zero for every organ"),
    ],
)
def test_bad_weights_are_refused(weights: dict[str, float], words: str) -> None:
    with pytest.raises(InputError) as caught:
        organ_weights(weights)
    assert words in str(caught.value)


def test_a_wrong_shape_is_refused(small_batch: CurveBatch) -> None:
    with pytest.raises(InputError, match="prediction has a wrong shape"):
        CurveLoss(EQUAL)(torch.ones(2, 14, 3), small_batch)


def test_sums_and_weights_add_up_over_parts_of_a_batch(small_batch: CurveBatch) -> None:
    loss = CurveLoss(LossConfig())
    parts = [torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([3, 4, 5])]
    whole, split = prediction(small_batch), prediction(small_batch)
    (loss(whole, small_batch).total / loss.weight(small_batch).total).backward()
    batches = [select_curves(small_batch, index) for index in parts]
    weights = [loss.weight(b).total for b in batches]
    assert len({w / len(b) for w, b in zip(weights, batches, strict=True)}) > 1  # unequal numbers of values
    for index, batch in zip(parts, batches, strict=True):
        (loss(split[index], batch).total / sum(weights)).backward()
    assert whole.grad is not None and split.grad is not None
    torch.testing.assert_close(split.grad, whole.grad, rtol=1e-12, atol=0)


def test_organ_means_are_diagnostics_without_weights(small_batch: CurveBatch) -> None:
    loss = CurveLoss(LossConfig())
    pred = small_batch.conc_mg_l.clone()
    pred[:, 1] *= math.e
    means = organ_means(loss(pred, small_batch).organ_total, loss.weight(small_batch).organ_count)
    assert means["liver"] == pytest.approx(1)
    assert means["blood"] == pytest.approx(0, abs=1e-12)


# -- censored values -----------------------------------------------------------------------------------------------


def test_m3_is_the_scaled_negative_log_likelihood(censored_batch: CurveBatch) -> None:
    from scipy.stats import norm

    sd = 0.4
    pred = prediction(censored_batch).detach()
    b = censored_batch
    residual = (pred.log() - b.conc_mg_l.clamp_min(1e-30).log()).numpy()
    gauss = residual**2
    below = -2 * sd**2 * norm.logcdf(-residual / sd)
    each = np.where(b.censored.numpy(), below, gauss)[b.mask.numpy()]
    got = value(LossConfig(residual_sd_log=sd, organ_weight={}), pred, b)
    assert float(got) == pytest.approx(each.mean(), rel=1e-9)


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1.0, 1e3, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_m3_gradients_stay_finite_and_point_down(censored_batch: CurveBatch, factor: float, dtype: torch.dtype) -> None:
    pred = (censored_batch.conc_mg_l * factor).to(dtype).requires_grad_()
    loss = value(LossConfig(), pred, censored_batch)
    loss.backward()
    assert pred.grad is not None
    assert loss.isfinite()
    assert pred.grad.isfinite().all()
    assert (pred.grad[censored_batch.censored] >= 0).all()
    if factor >= 1:
        assert (pred.grad[censored_batch.censored] > 0).any()


def test_far_above_the_lloq_m3_grows_like_the_squared_error(censored_batch: CurveBatch) -> None:
    pred = censored_batch.conc_mg_l * 1e4
    m3 = value(LossConfig(organ_weight={}), pred, censored_batch)
    assert float(m3) == pytest.approx(math.log(1e4) ** 2, rel=0.05)


def test_exclude_drops_censored_values_from_sum_and_weight(censored_batch: CurveBatch) -> None:
    config = LossConfig(censored="exclude", organ_weight={})
    pred = prediction(censored_batch).detach()
    m = censored_batch.mask & ~censored_batch.censored
    expected = (pred[m].log() - censored_batch.conc_mg_l[m].log()).square().mean()
    torch.testing.assert_close(value(config, pred, censored_batch), expected)
    assert CurveLoss(config).weight(censored_batch).total == pytest.approx(int(m.sum()))


@pytest.mark.parametrize("kind", ["mse", "log1p"])
def test_on_the_mg_l_scale_a_censored_value_costs_only_the_excess(censored_batch: CurveBatch, kind: str) -> None:
    config = LossConfig(kind=kind, organ_weight={})  # type: ignore[arg-type]
    exact = replace(censored_batch, mask=censored_batch.censored)
    assert float(value(config, exact.conc_mg_l * 0.1, exact)) == 0
    assert float(value(config, exact.conc_mg_l * 10, exact)) > 0

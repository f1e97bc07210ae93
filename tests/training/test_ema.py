from __future__ import annotations

import pytest
import torch
from torch import nn

from perfuse.training.ema import Ema, ema_decay_at


def test_the_decay_ramps_up_so_that_the_start_is_forgotten() -> None:
    assert ema_decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert ema_decay_at(10**6, 0.999) == 0.999
    assert ema_decay_at(1, 0.0) == 0


def test_update_is_the_textbook_recursion() -> None:
    model = nn.Linear(2, 1)
    ema = Ema(model, 0.9)
    expected = model.weight.detach().clone()
    for i in range(1, 30):
        with torch.no_grad():
            model.weight.copy_(torch.full((1, 2), float(i)))
        ema.update()
        d = ema_decay_at(i, 0.9)
        expected = d * expected + (1 - d) * i
    torch.testing.assert_close(ema.tensors()["weight"], expected)


def test_constant_weights_are_reached_within_a_few_updates() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 100.0)
    ema = Ema(model, 0.9999)
    nn.init.constant_(model.weight, 1.0)
    for _ in range(100):
        ema.update()
    assert abs(ema.tensors()["weight"].item() - 1) < 1e-3


def test_applied_swaps_and_restores_even_after_an_error() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.5)
    raw = {k: v.clone() for k, v in model.state_dict().items()}
    average = {k: v.fill_(7.0) for k, v in ema.tensors().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def fail_inside() -> None:
        with ema.applied():
            assert (model.weight == 7).all()
            assert optimizer.param_groups[0]["params"][0] is model.weight
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert all(torch.equal(v, raw[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, average[k]) for k, v in ema.tensors().items())


def test_buffers_and_frozen_parameters_are_left_alone() -> None:
    model = nn.BatchNorm1d(3)
    model.bias.requires_grad_(False)
    assert list(Ema(model, 0.5).tensors()) == ["weight"]

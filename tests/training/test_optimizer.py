from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from perfuse.config import OptimizerConfig
from perfuse.data.batch import CurveBatch
from perfuse.errors import PerfuseError
from perfuse.models.base import CurveModel, ParameterRole
from perfuse.pk.topology import get_topology
from perfuse.training.optimizer import (
    clip_gradients,
    gradient_norm,
    gradients,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rates,
)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))


def step(m: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    m(torch.arange(6.0).reshape(2, 3)).square().sum().backward()
    optimizer.step()


def test_only_matrices_decay() -> None:
    m = model()
    groups = make_optimizer(m, OptimizerConfig(lr=0.1, weight_decay=0.3)).param_groups
    shapes = {g["weight_decay"]: sorted(tuple(p.shape) for p in g["params"]) for g in groups}
    assert shapes == {0.3: [(1, 4), (4, 3)], 0.0: [(1,), (4,), (4,), (4,)]}


class TwoRoles(CurveModel):
    """A model whose first layer is told to go faster and whose second to wait."""

    def __init__(self) -> None:
        super().__init__(get_topology("hub"))
        self.fast, self.slow = nn.Linear(2, 2), nn.Linear(2, 1)

    def parameter_roles(self) -> tuple[ParameterRole, ...]:
        return ParameterRole(("fast",), lr_scale=3.0), ParameterRole(("",), eps=1e-3, start_fraction=0.4)

    def _fit(self, batch: CurveBatch) -> None:
        raise AssertionError

    def _predict(self, batch: CurveBatch) -> torch.Tensor:
        raise AssertionError


def test_roles_become_groups_and_a_resting_role_does_not_move() -> None:
    m = TwoRoles()
    optimizer = make_optimizer(m, OptimizerConfig(lr=0.1, weight_decay=0.3))
    seen = {tuple(p.shape): (g["eps"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert seen == {(2, 2): (1e-8, 0.3), (2,): (1e-8, 0.0), (1, 2): (1e-3, 0.3), (1,): (1e-3, 0.0)}

    def rates(step: int, total: int | None) -> list[float]:
        set_learning_rates(optimizer, 0.1, step, total)
        return [g["lr"] for g in optimizer.param_groups]

    assert rates(0, None) == rates(39, 100) == pytest.approx([0.3, 0.3, 0.0, 0.0])
    assert rates(40, 100) == pytest.approx([0.3, 0.3, 0.1, 0.1])
    before = m.slow.weight.clone(), m.fast.weight.clone()
    rates(0, 100)
    m.slow(m.fast(torch.ones(1, 2))).sum().backward()
    optimizer.step()
    assert torch.equal(m.slow.weight, before[0])
    assert not torch.equal(m.fast.weight, before[1])


def test_it_is_adamw() -> None:
    ours, theirs = model(), model()
    optimizer = make_optimizer(ours, OptimizerConfig(lr=0.01, weight_decay=0.0, beta1=0.8, beta2=0.95))
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.0, betas=(0.8, 0.95))
    for _ in range(5):
        step(ours, optimizer)
        step(theirs, reference)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_an_unresolved_rate_and_a_model_without_parameters_are_refused() -> None:
    with pytest.raises(PerfuseError, match="learning rate is not resolved"):
        make_optimizer(model(), OptimizerConfig())
    with pytest.raises(PerfuseError, match="no trainable parameter"):
        make_optimizer(nn.ReLU(), OptimizerConfig(lr=0.1))


def test_clipping_scales_to_the_limit_and_leaves_small_gradients_alone() -> None:
    m = model()
    m(torch.ones(2, 3)).sum().backward()
    grads = gradients(m)
    before = [g.clone() for g in grads]
    norm = gradient_norm(grads).item()
    assert norm == pytest.approx(math.sqrt(sum(g.square().sum().item() for g in before)))
    clip_gradients(grads, norm, 0.0)
    clip_gradients(grads, norm, 2 * norm)
    assert all(torch.equal(a, b) for a, b in zip(grads, before, strict=True))
    clip_gradients(grads, norm, norm / 4)
    assert gradient_norm(gradients(m)).item() == pytest.approx(norm / 4)
    torch.testing.assert_close(grads[0], before[0] / 4)


def test_the_norm_of_mixed_types_and_of_nothing() -> None:
    assert gradient_norm([]).item() == 0
    assert gradient_norm([torch.tensor([3.0]), torch.tensor([4.0], dtype=torch.float64)]).item() == 5
    assert gradient_norm([torch.tensor([1.0, torch.inf])]).isinf()
    assert gradient_norm([torch.tensor([1.0, torch.nan])]).isnan()


def test_state_travels_by_parameter_name() -> None:
    a, b = model(), model()
    opt_a, opt_b = (make_optimizer(m, OptimizerConfig(lr=0.1)) for m in (a, b))
    step(a, opt_a)
    saved = {k: v.clone() for k, v in optimizer_tensors(a, opt_a).items()}
    assert "0.weight/exp_avg" in saved
    b.load_state_dict(a.state_dict())
    load_optimizer_tensors(b, opt_b, saved)
    step(a, opt_a)
    step(b, opt_b)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("key", "shape"), [("9.weight/exp_avg", (4, 3)), ("0.weight/else", (4, 3)), ("0.weight/exp_avg", (3, 4))]
)
def test_foreign_state_is_refused(key: str, shape: tuple[int, ...]) -> None:
    m = model()
    with pytest.raises(PerfuseError, match="optimiser's"):
        load_optimizer_tensors(m, make_optimizer(m, OptimizerConfig(lr=0.1)), {key: torch.zeros(shape)})

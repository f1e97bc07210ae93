from __future__ import annotations

import pytest
import torch

from perfuse.config import TrainingConfig
from perfuse.errors import InputError
from perfuse.training.optimizer import gradient_norm, gradients
from perfuse.training.precision import LossScaler, check_device, pick_device
from perfuse.training.processes import join

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def test_fp16_on_a_cpu_is_refused_in_one_line() -> None:
    with pytest.raises(InputError) as caught:
        pick_device(TrainingConfig(precision="16", device="cpu"))
    assert "precision needs a CUDA device (got 16); allowed: 32 or bf16 on a CPU" in str(caught.value)


@no_cuda
def test_cuda_that_is_absent_is_refused_and_auto_takes_the_cpu() -> None:
    with pytest.raises(InputError, match="training.device is not available here"):
        pick_device(TrainingConfig(device="cuda"))
    assert pick_device(TrainingConfig(device="auto")) == "cpu"
    with pytest.raises(InputError, match="needs a CUDA device"):
        pick_device(TrainingConfig(device="auto", precision="16"))


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda", "--device is not available here (got cuda)"),
        ("cuda:1", "--device is not available here (got cuda:1)"),
        ("tpu", "--device is unknown"),
        ("cpu:0", "--device is unknown"),
        ("cuda:x", "--device is unknown"),
    ],
)
def test_devices_that_are_not_here_are_refused(device: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError) as caught:
        check_device(device, "--device")
    assert words in str(caught.value)
    check_device("cpu", "--device")


def test_a_cuda_number_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_device("cuda:0", "--device")
    with pytest.raises(InputError, match="allowed: cuda:0 to cuda:0"):
        check_device("cuda:1", "--device")


@pytest.mark.parametrize(("precision", "expected"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_fabric_gives_device_and_autocast(precision: str, expected: torch.dtype) -> None:
    place = join(TrainingConfig(device="cpu", precision=precision))  # type: ignore[arg-type]
    assert place.device == torch.device("cpu")
    with place.autocast():
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(2, 2)).dtype == expected


def scaled_step(scaler: LossScaler, factor: float) -> tuple[torch.nn.Linear, float]:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.scale((model(torch.ones(1, 1)) * factor).sum()).backward()
    scaler.unscale(optimizer)
    norm = gradient_norm(gradients(model)).item()
    scaler.update()
    return model, norm


def test_scaling_leaves_the_gradient_as_it_is() -> None:
    scaler = LossScaler("cpu", enabled=True)
    assert scaled_step(scaler, 3.0)[1] == 3.0
    assert scaler.state()["scale"] == 2.0**16


def test_an_overflow_shows_in_the_norm_and_halves_the_scale() -> None:
    scaler = LossScaler("cpu", enabled=True, init_scale=2.0**126)
    assert not torch.tensor(scaled_step(scaler, 1000.0)[1]).isfinite()
    assert scaler.state()["scale"] == 2.0**125
    assert scaled_step(scaler, 1.0)[1] == 1.0


def test_the_scale_grows_after_quiet_steps_and_its_state_travels() -> None:
    scaler = LossScaler("cpu", enabled=True, init_scale=4.0, growth_interval=3)
    for _ in range(2):
        scaled_step(scaler, 1.0)
    other = LossScaler("cpu", enabled=True, growth_interval=3)
    other.load(scaler.state())
    for s in (scaler, other):
        scaled_step(s, 1.0)
        assert s.state() == {"scale": 8.0, "growth_tracker": 0.0}


def test_gradients_that_came_from_other_processes_alone_are_unscaled() -> None:
    """fp16, and this process had no curve yet: it has scaled no loss."""
    scaler, weight = LossScaler("cpu", enabled=True), torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.full((1,), 3.0 * 2.0**16)
    scaler.unscale(torch.optim.SGD([weight], lr=0.1))
    scaler.update()
    assert weight.grad.item() == 3.0


def test_without_fp16_it_does_nothing() -> None:
    scaler = LossScaler("cpu", enabled=False)
    loss = torch.ones(())
    assert scaler.scale(loss) is loss
    assert scaler.state() == {}
    scaler.load({})
    scaler.update()

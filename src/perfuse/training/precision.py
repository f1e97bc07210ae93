"""Device and mixed precision.

Mixed precision concerns hidden layers; rate constants, propagation and loss stay in float32 or float64, which the
models and the loss see to themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perfuse.config import TrainingConfig
from perfuse.errors import InputError


def check_device(device: str, field: str) -> None:
    """Refuse a device that PyTorch cannot compute on here.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        field: What the user calls the setting: ``training.device`` or ``--device``.

    Raises:
        InputError: for CUDA where PyTorch sees no such device, or for any other kind of device.
    """
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise InputError(field, "is unknown", value=device, allowed="cpu, cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            field, "is not available here", value=device, allowed="cpu", hint="PyTorch sees no CUDA device"
        )
    if number and int(number) >= torch.cuda.device_count():
        raise InputError(
            field, "is not available here", value=device, allowed=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        )


def pick_device(config: TrainingConfig) -> str:
    """``cpu`` or ``cuda`` for what the configuration asks.

    Raises:
        InputError: if CUDA is asked for and absent, or fp16 on a CPU (Fabric would silently train in bf16).
    """
    device: str = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device, "training.device")
    if config.precision == "16" and device == "cpu":
        raise InputError("training.precision", "needs a CUDA device", value="16", allowed="32 or bf16 on a CPU")
    return device


class LossScaler:
    """Scales the loss so that fp16 gradients do not vanish; without fp16 every method passes things through.

    ``torch.amp.GradScaler`` keeps the scale. Its ``step`` is not used: it would wait for the device a second time
    to learn what the gradient norm has told already.

    Args:
        device: Device type of the gradients.
        enabled: True for fp16.
        init_scale, growth_interval: As ``torch.amp.GradScaler``.
    """

    def __init__(self, device: str, enabled: bool, init_scale: float = 2.0**16, growth_interval: int = 2000) -> None:
        self.enabled = enabled
        self._device, self._has_begun = device, False
        self._scaler = torch.amp.GradScaler(
            device=device, enabled=enabled, init_scale=init_scale, growth_interval=growth_interval
        )

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call ``backward`` on."""
        self._has_begun = True
        return self._scaler.scale(loss) if self.enabled else loss

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients back to their own scale; they may all have come from other processes."""
        if self.enabled:
            if not self._has_begun:  # the scale comes to be with the first loss, which this process may lack
                self.scale(torch.zeros((), device=self._device))
            self._scaler.unscale_(optimizer)

    def update(self) -> None:
        """Halve the scale after an overflow, double it after ``growth_interval`` steps without one."""
        if self.enabled:
            self._scaler.update()

    def state(self) -> dict[str, float]:
        """Scale and growth tracker, empty when disabled."""
        if not self.enabled:
            return {}
        state = self._scaler.state_dict()
        return {"scale": float(state["scale"]), "growth_tracker": float(state["_growth_tracker"])}

    def load(self, state: dict[str, float]) -> None:
        """Continue from ``state()``."""
        if self.enabled and state:
            full = self._scaler.state_dict()
            full |= {"scale": state["scale"], "_growth_tracker": int(state["growth_tracker"])}
            self._scaler.load_state_dict(full)

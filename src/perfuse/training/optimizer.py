"""AdamW with parameter groups, gradient norm and clipping.

Reference: Loshchilov I, Hutter F. Decoupled weight decay regularization. ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perfuse.config import OptimizerConfig
from perfuse.errors import PerfuseError
from perfuse.models.base import CurveModel, ParameterRole


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, never to biases and scales."""
    return parameter.dim() >= 2 and not name.endswith("bias")


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW on a model's trainable parameters: for each of the model's roles a group with weight decay and one without.

    Groups carry the role's ``lr_scale`` and ``start_fraction``; ``set_learning_rates`` applies them at every step.

    Raises:
        PerfuseError: if ``config.lr`` is not resolved or the model has nothing to train.
    """
    if config.lr is None:
        raise PerfuseError("the learning rate is not resolved: call perfuse.config.resolve first")
    roles = model.parameter_roles() if isinstance(model, CurveModel) else (ParameterRole(),)
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = next(i for i, r in enumerate(roles) if name.startswith(r.prefixes))
            members.setdefault((role, decays(name, parameter)), []).append(parameter)
    if not members:
        raise PerfuseError("the model has no trainable parameter")
    groups = [
        {
            "params": parameters, "eps": roles[role].eps,
            "weight_decay": config.weight_decay * roles[role].decay_scale if decay else 0.0,
            "lr_scale": roles[role].lr_scale, "start_fraction": roles[role].start_fraction,
        }
        for (role, decay), parameters in sorted(members.items(), key=lambda item: item[0])
    ]  # fmt: skip
    # The fused kernel does all parameters in one call: 0.3 ms instead of 1.7 ms for 40 small tensors on a CPU.
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, lr: float, step: int, total_steps: int | None) -> None:
    """Give every group its rate for update number ``step``; a role that still rests gets 0.

    While the length of the run is not known (the first steps of a wall-clock budget) such a role rests.
    """
    for group in optimizer.param_groups:
        start = group["start_fraction"]
        rests = start > 0 and (total_steps is None or step < start * total_steps)
        group["lr"] = 0.0 if rests else lr * group["lr_scale"]


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients that exist, in the order of the parameters."""
    return [p.grad for p in model.parameters() if p.grad is not None]


def gradient_norm(grads: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all gradients, ``()``; NaN or inf if any entry is."""
    if not grads:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.cat([g.reshape(-1) for g in grads]))


@torch.no_grad()
def clip_gradients(grads: Sequence[Tensor], norm: float, limit: float) -> None:
    """Scale gradients of a known, finite norm down to ``limit``; 0 means no limit."""
    if limit > 0 and norm > limit:
        torch._foreach_mul_(list(grads), limit / norm)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts as ``<parameter name>/<kind>`` (a parameter never updated has none)."""
    out = {}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            out[f"{name}/{kind}"] = value.detach()
    return out


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave.

    Raises:
        PerfuseError: when a name or shape does not belong to the model.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, kind = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or kind not in ("step", "exp_avg", "exp_avg_sq"):
            raise PerfuseError(f"the optimiser's state names {key!r}, which the model does not have")
        if value.shape != (torch.Size() if kind == "step" else parameter.shape):
            raise PerfuseError(f"the optimiser's {key} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
        dtype = torch.float32 if kind == "step" else parameter.dtype
        optimizer.state[parameter][kind] = value.to(parameter.device, dtype, copy=True)

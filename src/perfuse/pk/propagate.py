"""Exact propagation of linear compartmental systems, dA/dt = K A, differentiable and batched.

Everything here runs in float64 and stays non-negative: K has non-negative off-diagonal entries, so with
q >= max |K_ii| the shifted matrix K + qI is non-negative and exp(Kh) = exp(-qh) exp((K + qI) h) is a sum of
non-negative terms. No entry can come out negative and small entries keep their relative accuracy
(uniformisation: Jensen A. Skand Aktuarietidskr 1953;36:87-91; scaling and squaring: Moler C, Van Loan C.
SIAM Rev 2003;45:3-49).

Squaring doubles a relative error, so that a body with fast organs would lose 1e-9 of a dose in rounding alone. Where
``conserve`` is asked for, the columns of every power are scaled to the sum they must have (1, as nothing leaves a
closed system), the correction of Grassmann WK, Taksar MI, Heyman DP. Oper Res 1985;33:1107-1116 in matrix form.

Axis legend: B batch, N states, T times, D dose events.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from perfuse.errors import InputError

_TAYLOR_DEGREE = 16
_TAYLOR_RADIUS = 1.0
"""Degree and largest 1-norm of the Taylor step: remainder 1/17! = 3e-15."""
_COEFFICIENT = [1 / math.factorial(k) for k in range(_TAYLOR_DEGREE + 1)]
_LARGEST_THETA = 1e11
"""Largest rate x time: beyond it rounding, which grows with it, leaves fewer than four digits."""
_VECTOR_DEGREE = 10
_COARSE_DIGITS = 5
"""Leading binary digits of a time that are served from a table of states at even times, made by doubling."""
_VECTOR_RADIUS = 0.25
"""The same for the Taylor step applied to vectors: remainder 0.25^11/11! = 6e-15."""


def _shifted(generator: Tensor) -> tuple[Tensor, Tensor, float]:
    """K + qI (non-negative), q ``(B, 1, 1)`` and the largest column sum of the batch."""
    # exp(Kh) does not depend on q, so its gradient through q is zero and need not be computed.
    q = -torch.diagonal(generator.detach(), dim1=-2, dim2=-1).amin(-1)[..., None, None]
    eye = torch.eye(generator.shape[-1], dtype=generator.dtype, device=generator.device)
    shifted = (generator + q * eye).clamp_min(0)
    column_sum = float(shifted.detach().sum(-2).amax())
    return shifted, q, math.inf if math.isinf(float(q.amax())) else column_sum


def _halvings(column_sum: float, time_h: float, radius: float) -> int:
    """How often ``time_h`` is halved until (rate x time) is below ``radius``; each doubling back costs a rounding.

    Raises:
        InputError: when the fastest rate is too fast for float64 to say anything after that time. (A rate that is not
            a number passes on: training names the curves behind it.)
    """
    theta = column_sum * time_h
    if theta > _LARGEST_THETA:
        raise InputError(
            "rate constants", "are too fast to solve", value=column_sum, unit="1/h",
            allowed=f"<= {_LARGEST_THETA / time_h:.3g} 1/h over {time_h:.3g} h",
            hint="look at volumes, flows and Kp: a tiny Kp or volume empties an organ that fast",
        )  # fmt: skip
    return max(0, math.ceil(math.log2(theta / radius))) if theta > 0 else 0


def _add_transposed_products(out: Tensor, grad: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """out + grad right^T + left^T grad: the gradient of left @ right when both are the same matrix."""
    return torch.baddbmm(torch.baddbmm(out, grad, right.mT), left.mT, grad)


def taylor_exponential(a: Tensor) -> tuple[Tensor, list[Tensor]]:
    """exp(A) by its Taylor polynomial of degree 16 in Paterson-Stockmeyer form (6 products), and what it went through.

    Good to rounding while the 1-norm of A is at most 1.
    """
    a2 = a @ a
    a3 = a2 @ a
    a4 = a2 @ a2
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    out = _COEFFICIENT[_TAYLOR_DEGREE] * a4
    partial = []
    for block in range(3, -1, -1):
        if block < 3:
            partial.append(out)
            out = out @ a4
        c = _COEFFICIENT[4 * block : 4 * block + 4]
        out = out + (c[0] * eye + c[1] * a + c[2] * a2 + c[3] * a3)
    return out, [a2, a4, *partial]


class _MatrixTaylor(torch.autograd.Function):
    """``taylor_exponential`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        out, steps = taylor_exponential(a)
        ctx.save_for_backward(a, *steps)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        a, a2, a4, *partial = ctx.saved_tensors
        grad = grads[0]
        g1, g2, g3, g4 = (torch.zeros_like(a) for _ in range(4))
        for block in range(4):
            c = _COEFFICIENT[4 * block : 4 * block + 4]
            g1, g2, g3 = g1.add_(grad, alpha=c[1]), g2.add_(grad, alpha=c[2]), g3.add_(grad, alpha=c[3])
            if block < 3:
                g4 = torch.baddbmm(g4, partial[2 - block].mT, grad)
                grad = grad @ a4.mT
        g4 = g4.add_(grad, alpha=_COEFFICIENT[_TAYLOR_DEGREE])
        g2 = _add_transposed_products(g2, g4, a2, a2)
        g2, g1 = torch.baddbmm(g2, g3, a.mT), torch.baddbmm(g1, a2.mT, g3)
        return _add_transposed_products(g1, g2, a, a)


def conserved(power: Tensor, column_sum: Tensor | float = 1.0) -> Tensor:
    """The matrix with its columns scaled to the sum that they have but for rounding; no gradient takes notice."""
    return power * (column_sum / power.detach().sum(-2, keepdim=True))


def closed(generator: Tensor) -> Tensor:
    """K ``(B, N, N)`` with one more state that collects what leaves, ``(B, N + 1, N + 1)``: every column sums to 0."""
    wide = torch.nn.functional.pad(generator, (0, 1, 0, 1))
    lost = -generator.sum(-2, keepdim=True).clamp_max(0)
    return wide + torch.nn.functional.pad(lost, (0, 1, generator.shape[-1], 0))


class _Squarings(torch.autograd.Function):
    """P^(2^n) by n squarings."""

    @staticmethod
    def forward(ctx: Any, power: Tensor, n: int, conserve: bool) -> Tensor:
        powers = [power]
        for _ in range(n):
            square = powers[-1] @ powers[-1]
            powers.append(conserved(square) if conserve else square)
        ctx.save_for_backward(*powers[:-1])
        return powers[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = grads[0]
        for power in reversed(ctx.saved_tensors):
            grad = torch.baddbmm(grad @ power.mT, power.mT, grad)
        return grad, None, None


class _Doubling(torch.autograd.Function):
    """[x, P x, P^2 x, ..., P^(n-1) x] by repeated squaring: [X, P^m X] and P^m <- P^m P^m."""

    @staticmethod
    def forward(ctx: Any, power: Tensor, state: Tensor, n_times: int, conserve: bool) -> Tensor:
        out = state.new_empty(*state.shape, n_times)
        out[..., 0] = state
        powers, have = [power], 1
        while have < n_times:
            new = min(have, n_times - have)
            out[..., have : have + new] = powers[-1] @ out[..., :new]
            if 2 * have < n_times:
                square = powers[-1] @ powers[-1]
                powers.append(conserved(square) if conserve else square)
            have += new
        ctx.save_for_backward(out, *powers)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        out, *powers = ctx.saved_tensors
        n_times = out.shape[-1]
        grad = grads[0].clone()
        grad_power: Tensor | None = None
        for level in range(len(powers) - 1, -1, -1):
            have, power = 2**level, powers[level]
            new = min(have, n_times - have)
            later = grad[..., have : have + new]
            direct = later @ out[..., :new].mT
            if grad_power is not None:
                direct = _add_transposed_products(direct, grad_power, power, power)
            grad_power = direct
            grad[..., :new] += power.mT @ later
        assert grad_power is not None
        return grad_power, grad[..., 0], None, None


def matrix_exponential(generator: Tensor, step_h: float, conserve: bool = False) -> Tensor:
    """exp(K h) ``(B, N, N)`` for Metzler matrices K ``(B, N, N)``, 1/h, all entries non-negative.

    ``conserve``: the columns of K sum to zero, and those of the result are held to sum to 1.
    """
    shifted, q, column_sum = _shifted(generator)
    squarings = _halvings(column_sum, step_h, _TAYLOR_RADIUS)
    h = step_h / 2**squarings
    out = _MatrixTaylor.apply(shifted * h) * torch.exp(-q * h)
    return _Squarings.apply(conserved(out) if conserve else out, squarings, conserve)


def propagate_uniform(
    generator: Tensor, state: Tensor, start_h: float, step_h: float, n_times: int, conserve: bool = False
) -> Tensor:
    """States at ``start_h + k step_h``, k = 0..n_times-1, by one matrix exponential and repeated squaring.

    Args:
        generator: K, 1/h, ``(B, N, N)``.
        state: Amounts at time 0, mg, ``(B, N)``.
        start_h, step_h, n_times: The grid of times.
        conserve: Whether the columns of K sum to zero and the total amount is to be held to rounding.

    Returns:
        ``(B, N, n_times)`` amounts, mg.
    """
    if start_h > 0:
        state = (matrix_exponential(generator, start_h, conserve) @ state[..., None])[..., 0]
    if n_times == 1:
        return state[..., None]
    return _Doubling.apply(matrix_exponential(generator, step_h, conserve), state, n_times, conserve)


class Ladder:
    """exp(K h 2^j) for j = 0, 1, ...: advances vectors by any times, each by its binary digits.

    Args:
        generator: K, 1/h, ``(B, N, N)``.
        t_max_h: Longest time that will be asked for, h.
        growth: What the columns of K sum to, 1/h, ``(B, N)``, when the total amount is to be held to rounding: 0, and
            for a constant source, whose own level stays, its rate.
    """

    def __init__(self, generator: Tensor, t_max_h: float, growth: Tensor | None = None) -> None:
        self.t_max_h = t_max_h
        if t_max_h <= 0:
            return
        self._shifted, self._q, column_sum = _shifted(generator)
        rungs = _halvings(column_sum, t_max_h, _VECTOR_RADIUS)
        self._step_h = t_max_h / 2**rungs
        power = _MatrixTaylor.apply(self._shifted * self._step_h) * torch.exp(-self._q * self._step_h)
        self._powers: list[Tensor] = []
        for j in range(rungs + 1):
            power = self._powers[-1] @ self._powers[-1] if j else power
            if growth is not None:
                power = conserved(power, (1 + growth * (self._step_h * 2**j))[:, None])
            self._powers.append(power)

    def advance(self, state: Tensor, time_h: Tensor) -> Tensor:
        """States ``(B, N, T)`` after ``time_h`` ``(B, T)`` from one initial state each, ``(B, N, T)``."""
        if self.t_max_h <= 0:
            return state + 0
        count, rest = self._digits(time_h)
        return self._finish(state, count, rest, len(self._powers))

    def advance_all(self, state: Tensor, time_h: Tensor) -> Tensor:
        """States ``(B, N, T)`` after ``time_h`` ``(B, T)`` from one common initial state a curve, ``(B, N)``."""
        table_digits = min(_COARSE_DIGITS, len(self._powers) - 1) if self.t_max_h > 0 else 0
        if table_digits < 2 or time_h.shape[-1] < 2**table_digits:
            return self.advance(state[..., None].expand(-1, -1, time_h.shape[-1]), time_h)
        count, rest = self._digits(time_h)
        rung = len(self._powers) - 1 - table_digits
        coarse = _Doubling.apply(self._powers[rung], state, 2**table_digits + 1, False)
        leading = (count >> rung)[:, None].expand(-1, state.shape[-1], -1)
        return self._finish(coarse.gather(2, leading), count, rest, rung)

    def _digits(self, time_h: Tensor) -> tuple[Tensor, Tensor]:
        """Whole base steps in each time, ``(B, T)`` int64, and what remains, h, ``(B, 1, T)``."""
        whole = torch.floor(time_h / self._step_h)
        # In floating point: an int64 tensor times a Python float would be float32.
        return whole.to(torch.int64), (time_h - whole * self._step_h).clamp_min(0)[:, None, :]

    def _finish(self, out: Tensor, count: Tensor, rest: Tensor, rungs: int) -> Tensor:
        """Advance by the last ``rungs`` binary digits of ``count`` base steps and by ``rest``."""
        for j, power in enumerate(self._powers[:rungs]):
            bit = ((count >> j) & 1).bool()[:, None, :]
            out = torch.where(bit, power @ out, out)
        term = out
        for k in range(1, _VECTOR_DEGREE + 1):
            term = (self._shifted @ term) * (rest / k)
            out = out + term
        return out * torch.exp(-self._q * rest)


def propagate_times(generator: Tensor, state: Tensor, time_h: Tensor, conserve: bool = False) -> Tensor:
    """States at any times by a dyadic ladder: each time's binary digits select products exp(K h 2^j).

    Args:
        generator: K, 1/h, ``(B, N, N)``.
        state: Amounts at time 0, mg, ``(B, N)``.
        time_h: Times >= 0, h, ``(B, T)``, in any order.
        conserve: Whether the columns of K sum to zero and the total amount is to be held to rounding.

    Returns:
        ``(B, N, T)`` amounts, mg.
    """
    growth = torch.zeros_like(state) if conserve else None
    return Ladder(generator, float(time_h.amax()) if time_h.numel() else 0.0, growth).advance_all(state, time_h)

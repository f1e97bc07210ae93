"""Linear compartmental systems by their modes: K = V diag(lambda) W, with an exact gradient that survives equal rates.

Where a generator has well-conditioned eigenvectors, one small eigendecomposition a curve replaces a ladder of matrix
powers, and any regimen and any times (``mode_events``) cost one exponential per mode and time. That is for training and
predicting with rates that a model makes up: amounts are exact to rounding *of the dose*, where ``propagate`` keeps
every small amount to relative accuracy. Curves whose eigenvectors are ill-conditioned (equal rates along a chain) are
left to ``propagate``; ``Basis.good`` says which.

A body whose graph is a tree (``hub``) has a generator that is similar to a symmetric matrix: all is real then.

Gradients take divided differences of exp instead of differentiating eigenvectors (Daleckii-Krein; Najfeld I, Havel TF.
Adv Appl Math 1995;16:321-375). With x(s) the state and mu(s) the adjoint, whose modes are h_i exp(lambda_i (t - s)):

    dL/dK = integral of mu(s) x(s)^T ds,    integral of exp(a (t - s)) exp(b s) over s in (0, t)
                                             = (exp(a t) - exp(b t)) / (a - b), or t exp(a t) where a = b

Axis legend: B batch, N states (and modes), T times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from perfuse.pk.batched import in_threads

_LARGEST_ERROR = 1e-7
"""Largest bound on the error that a basis may bring, as a share of the dose."""
_CHUNK = 64
"""Curves whose modes at a hundred times fit a core's cache."""
TIE = 1e-8
"""Modes that differ by less than this, times the longest time, are taken for equal in gradients."""


@dataclass(frozen=True)
class Basis:
    """Modes of a batch of generators.

    Attributes:
        values: lambda, 1/h, ``(B, N)``; real, or complex in conjugate pairs.
        vectors: V, ``(B, N, N)``, of the same type.
        inverse: W = V^-1.
        good: Which curves they serve, ``(B,)`` bool.
    """

    values: Tensor
    vectors: Tensor
    inverse: Tensor
    good: Tensor

    def of(self, rows: Tensor) -> Basis:
        """The basis of some curves."""
        return Basis(self.values[rows], self.vectors[rows], self.inverse[rows], self.good[rows])


def general_basis(generator: Tensor, t_max_h: float) -> Basis:
    """Modes of any finite K ``(B, N, N)``; real where no curve of the batch has oscillating ones."""
    values, vectors = in_threads(torch.linalg.eig, generator)
    if not bool(values.imag.any()):
        values, vectors = values.real, vectors.real
    # An exactly defective matrix has singular vectors: their inverse is of no use, but must not raise.
    inverse, _ = torch.linalg.inv_ex(vectors)
    condition = torch.linalg.matrix_norm(vectors) * torch.linalg.matrix_norm(inverse)
    return Basis(values, vectors, inverse, _is_good(values, condition, t_max_h))


def tree_basis(generator: Tensor, parents: tuple[tuple[Tensor, Tensor], ...], t_max_h: float) -> Basis:
    """Modes of K ``(B, N, N)`` of a tree, by a diagonal change of units that makes it symmetric.

    Args:
        generator: Finite.
        parents: For each depth below the root, the nodes there and their parents.
        t_max_h: Longest time that will be asked for, h.
    """
    scale = torch.ones_like(generator[:, 0])
    for node, parent in parents:
        scale[:, node] = scale[:, parent] * (generator[:, node, parent] / generator[:, parent, node]).sqrt()
    symmetric = generator * (scale[:, None] / scale[..., None])
    usable = torch.isfinite(symmetric).flatten(1).all(1)
    if not bool(usable.all()):
        symmetric = torch.where(usable[:, None, None], symmetric, 0.0)
    values, vectors = in_threads(torch.linalg.eigh, symmetric)  # reads the lower half
    condition = torch.linalg.vector_norm(scale, dim=1) * torch.linalg.vector_norm(1 / scale, dim=1)
    good = _is_good(values, condition, t_max_h) & usable
    return Basis(values, scale[..., None] * vectors, vectors.mT / scale[:, None], good)


def _is_good(values: Tensor, condition: Tensor, t_max_h: float) -> Tensor:
    """Whether rounding in the decomposition moves amounts by no more than ``_LARGEST_ERROR`` of the dose."""
    growth = (values.abs().amax(1) * t_max_h).clamp_min(1.0)
    return condition * growth * torch.finfo(torch.float64).eps <= _LARGEST_ERROR  # False where NaN


def exponentials(values: Tensor, time_h: Tensor, grid: tuple[float, float] | None) -> Tensor:
    """exp(lambda t), ``(B, N, T)``, at ``time_h`` ``(B, T)``; of an even grid (start, step) few are taken."""
    n = time_h.shape[1]
    if grid is None or n < 8:
        return torch.exp_(values[..., None] * time_h[:, None])
    start_h, step_h = grid
    fine = max(4, n // 4)
    leaps = torch.arange(-(-n // fine), dtype=time_h.dtype) * (fine * step_h) + start_h
    near = torch.exp_(values[..., None] * (torch.arange(fine, dtype=time_h.dtype) * step_h))
    far = torch.exp_(values[..., None] * leaps)
    return (far[..., None] * near[:, :, None]).flatten(2)[..., :n]


def ties(values: Tensor, longest_h: float) -> Tensor | None:
    """Which pairs of different modes are equal within ``TIE``, ``(B, N, N)`` bool; None if none are."""
    tied = (values[..., None] - values[:, None]).abs() * longest_h < TIE
    tied.diagonal(dim1=-2, dim2=-1).fill_(False)
    return tied if bool(tied.any()) else None


def divided_differences(near: Tensor, far: Tensor, values: Tensor, tied: Tensor | None) -> Tensor:
    """(near - far) / (lambda_i - lambda_j), ``(B, N, N)``; it means nothing on the diagonal and where modes tie."""
    gap = values[..., None] - values[:, None]
    gap.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return (near - far) / (gap if tied is None else torch.where(tied, 1.0, gap))


class _BolusModes(torch.autograd.Function):
    """V exp(Lambda t) W x0 at all times, a cacheful of curves at a time; only K has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, generator: Tensor, basis: Basis, amount_mg: Tensor, node: int, time_h: Tensor,
        grid: tuple[float, float] | None,
    ) -> Tensor:  # fmt: skip
        start = basis.inverse[..., node] * amount_mg[:, None]
        scaled = basis.vectors * start[:, None]
        out = generator.new_empty(*generator.shape[:2], time_h.shape[1])
        decays = []
        for rows in _chunks(len(out)):
            decay = exponentials(basis.values[rows], time_h[rows], grid)
            if decay.is_complex():
                out[rows] = (scaled[rows] @ decay).real
            else:
                torch.bmm(scaled[rows], decay, out=out[rows])
            out[rows].clamp_min_(0)
            if ctx.needs_input_grad[0]:
                decays.append(decay)
        ctx.basis, ctx.longest_h = basis, float(time_h.amax())
        ctx.save_for_backward(start, time_h, *decays)
        if grid is None or grid[0] == 0:
            _put_bolus(out, amount_mg, node, time_h)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        start, time_h, *decays = ctx.saved_tensors
        basis = ctx.basis
        weight = torch.stack((torch.ones_like(time_h), time_h), -1).to(start.dtype)
        adjoint = basis.vectors.mT
        tied = ties(basis.values, ctx.longest_h)
        products, sums, timed = [], [], []
        for rows, decay in zip(_chunks(len(start)), decays, strict=True):
            seen = adjoint[rows] @ grads[0][rows].to(decay.dtype)  # modes of the adjoint at each observation
            products.append(seen @ decay.mT)
            sums.append((seen * decay) @ weight[rows])
            if tied is not None:
                timed.append((seen * time_h[rows, None]) @ decay.mT)
        after, own = torch.cat(sums).unbind(-1)
        far = torch.cat(products) * start[:, None]
        integral = divided_differences(after[..., None] * start[:, None], far, basis.values, tied)
        if tied is not None:
            integral = torch.where(tied, torch.cat(timed) * start[:, None], integral)
        integral.diagonal(dim1=-2, dim2=-1).copy_(own * start)
        return gradient_from_modes(integral, basis), None, None, None, None, None


def _chunks(n: int) -> list[slice]:
    """Rows of ``_CHUNK`` curves."""
    return [slice(first, first + _CHUNK) for first in range(0, n, _CHUNK)]


def gradient_from_modes(integral: Tensor, basis: Basis) -> Tensor:
    """dL/dK ``(B, N, N)`` from the integral of adjoint modes times modes of the state."""
    out = basis.inverse.mT @ integral @ basis.vectors.mT
    return out.real if out.is_complex() else out


def _put_bolus(amounts: Tensor, amount_mg: Tensor, node: int, time_h: Tensor) -> None:
    """At time 0 exactly what was given."""
    curve, at = (time_h == 0).nonzero(as_tuple=True)
    amounts[curve, :, at] = 0.0
    amounts[curve, node, at] = amount_mg[curve]


def solve_bolus(
    generator: Tensor, basis: Basis, amount_mg: Tensor, node: int, time_h: Tensor,
    grid: tuple[float, float] | None = None,
) -> Tensor:  # fmt: skip
    """Amounts after one bolus at time 0, mg, ``(B, N, T)``, with a gradient to K; rounding below zero is cut off.

    Args:
        generator: K, 1/h, ``(B, N, N)``.
        basis: Its modes.
        amount_mg: ``(B,)``.
        node: Where it goes.
        time_h: ``(B, T)``, >= 0.
        grid: (start, step) when all rows of ``time_h`` are one even grid.
    """
    return _BolusModes.apply(generator, basis, amount_mg, node, time_h, grid)

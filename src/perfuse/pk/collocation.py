"""Matrices of one step, for steps of h, 2h, 4h, ...: a linear system with a polynomial input into one state.

For dA/dt = K A + e w(t), with w on a step of length h a polynomial with Bernstein coefficients b,

    A(t + h) = P(h) A(t) + Phi(h) b,    P(h) = exp(K h),    Phi_j(h) = int_0^h exp(K (h - s)) e B_j(s/h) ds

(variation of constants). P and Phi are non-negative, and so is everything they are doubled with:

    P(2h) = P(h) P(h),    Phi(2h) = P(h) Phi(h) L + Phi(h) R

where L and R are the coefficients of a polynomial on the two halves of a step.

Axis legend: B batch, W states, P pathways, L levels (steps of h_0 2^l).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from perfuse.errors import InputError
from perfuse.pk import bernstein
from perfuse.pk.bernstein import LEFT, N_COEFFICIENTS, RIGHT, TO_BERNSTEIN

_DEGREE = 8
"""Degree of Taylor's polynomial of K h_0, whose norm is at most 1/16: remainder (1/16)^9 / 9! = 4e-17."""
LOWEST_LEVEL = 4
"""The shortest step is 16 h_0: a sixteenth of a step is looked at, too."""
_LEAST_HALVINGS = 7
_LARGEST_THETA = 1e11
"""Largest rate x time: beyond it rounding, which grows with it, leaves fewer than four digits."""
_PIECE = 128
"""Curves whose matrices are doubled together: they stay in the processor's cache."""
INNER = (*bernstein.NODES[1:], *bernstein.HELD_OUT)
"""Parts of a step after which the node is looked at: the nodes but the first, then the held-out points."""
N_UNKNOWN = N_COEFFICIENTS - 1


@dataclass(frozen=True)
class Saturation:
    """What saturation keeps in the node: w(y) = k_max y - g(y) >= 0, mg/h, for Michaelis-Menten pathways g.

    Written without a difference, w = sum k_p y^2 / (half_p + y) with k_p = Vmax_p / half_p.

    Attributes:
        rate: Rate constant of each unsaturated pathway, 1/h, ``(B, P)``.
        half_mg: Amount at half Vmax, mg, ``(B, P)``.
    """

    rate: Tensor
    half_mg: Tensor

    @staticmethod
    def of(vmax_mg_h: Tensor, half_amount_mg: Tensor) -> Saturation:
        """Absent pathways (Vmax 0) may have any half amount; no pathway at all is one absent one."""
        if vmax_mg_h.shape[1] == 0:
            vmax_mg_h = half_amount_mg = vmax_mg_h.new_zeros(len(vmax_mg_h), 1)
        half = torch.where(vmax_mg_h > 0, half_amount_mg, 1.0)
        return Saturation(vmax_mg_h / half, half)

    def rows(self, index: Tensor) -> Saturation:
        """Some curves' pathways."""
        return Saturation(self.rate[index], self.half_mg[index])

    def detach(self) -> Saturation:
        return Saturation(self.rate.detach(), self.half_mg.detach())

    def kept(self, amount_mg: Tensor) -> Tensor:
        """w, mg/h, at amounts ``(B, n)``."""
        y = amount_mg.clamp_min(0)
        parts = [rate * y * (y / (half + y)) for rate, half in self._pathways()]
        return sum(parts[1:], parts[0])

    def kept_and_slope(self, amount_mg: Tensor) -> tuple[Tensor, Tensor]:
        """w, mg/h, and dw/dy, 1/h, at amounts ``(B, n)``."""
        y = amount_mg.clamp_min(0)
        kept, slopes = [], []
        for rate, half in self._pathways():
            share = y / (half + y)
            scaled = rate * share
            kept.append(scaled * y)
            slopes.append(scaled * (2 - share))
        return sum(kept[1:], kept[0]), sum(slopes[1:], slopes[0])

    def _pathways(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.rate.split(1, 1), self.half_mg.split(1, 1), strict=True)


def halvings(generator: Tensor, unit_h: Tensor, tolerance: float) -> int:
    """How often the units ``(B,)`` are halved until the fastest rate of each curve is slow over a base step.

    The shortest step is fast rate x time = 1, where interpolation is off by 1.7e-4 / 7! = 3e-8; less for tighter
    tolerances.

    Raises:
        InputError: when a rate is too fast for float64 to say anything after that time.
    """
    shifted, q = _shifted(generator.detach())
    norm = torch.maximum(shifted.sum(-2).amax(-1), q[:, 0, 0])
    theta = torch.nan_to_num(norm * unit_h, posinf=math.inf)
    worst = int(theta.argmax())
    largest = float(theta[worst])
    if largest > _LARGEST_THETA:
        raise InputError(
            "rate constants", "are too fast to solve", value=float(norm[worst]), unit="1/h",
            allowed=f"<= {_LARGEST_THETA / float(unit_h[worst]):.3g} 1/h over {float(unit_h[worst]):.3g} h",
            hint="look at Vmax / Km, volumes, flows and Kp: a tiny Kp or volume empties an organ that fast",
        )  # fmt: skip
    radius = 2.0 ** -(LOWEST_LEVEL + (tolerance < 1e-8) + (tolerance < 1e-11))
    return max(_LEAST_HALVINGS, math.ceil(math.log2(largest / radius))) if largest > 0 else _LEAST_HALVINGS


def _shifted(generator: Tensor) -> tuple[Tensor, Tensor]:
    """K + qI, non-negative, and q ``(B, 1, 1)``; exp(Kh) does not depend on q, so q carries no gradient."""
    q = -torch.diagonal(generator.detach(), dim1=-2, dim2=-1).amin(-1)[..., None, None]
    eye = torch.eye(generator.shape[-1], dtype=generator.dtype, device=generator.device)
    return (generator + q * eye).clamp_min(0), q


def _base(generator: Tensor, node: int, base_h: Tensor) -> tuple[Tensor, Tensor]:
    """P(h_0) ``(B, W, W)`` and Phi(h_0) ``(B, W, 7)`` by Taylor polynomials of K + qI and Gauss' quadrature."""
    shifted, q = _shifted(generator)
    h = base_h[:, None, None]
    a = shifted * h
    a2 = a @ a
    a3, a4 = a2 @ a, a2 @ a2
    c = [1 / math.factorial(k) for k in range(_DEGREE + 1)]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    high = c[4] * eye + c[5] * a + c[6] * a2 + c[7] * a3 + c[8] * a4
    power = (torch.baddbmm(eye + a + c[2] * a2 + c[3] * a3, a4, high)) * torch.exp(-q * h)
    # exp(K u) e = exp(-q u) sum_k (u/h)^k (a^k e / k!) at the nodes u of the quadrature over s = h - u
    term = eye[node].expand(len(a), -1)[..., None]
    terms = [term]
    for k in range(1, _DEGREE + 1):
        term = (a * term.mT).sum(-1, keepdim=True) / k
        terms.append(term)
    x, weight = bernstein.gauss_legendre(8)
    left = torch.as_tensor(1 - x, device=a.device)
    by_power = left[:, None] ** torch.arange(_DEGREE + 1, device=a.device)  # (G, k)
    by_basis = torch.as_tensor(weight[:, None] * bernstein.basis(x), device=a.device)  # (G, 7)
    decay = torch.exp(-q[:, 0] * base_h[:, None] * left)  # (B, G)
    mixing = torch.einsum("bg,gk,gj->bkj", decay, by_power, by_basis)
    return power, torch.cat(terms, -1) @ mixing * h


class StepLadder:
    """Step matrices at every level.

    Attributes:
        rungs: ``(L, B, W, W + 7)``: [P | Phi] of steps of h_0 2^l. Where a sink is given, its row of Phi says what it
            loses to the node.
        inner: ``(L - 4, B, 8, W + 7)``, from ``LOWEST_LEVEL`` on: the node at the parts ``INNER`` of a step, from the
            state at its start and from w at the nodes.

    Args:
        generator: K, 1/h, ``(B, W, W)``, Metzler, float64.
        node: State that w enters.
        sink: State that w is taken from, if any: nothing flows out of it.
        base_h: h_0, h, ``(B,)``.
        levels: Number of levels.
    """

    def __init__(self, generator: Tensor, node: int, sink: int | None, base_h: Tensor, levels: int) -> None:
        self.node, self.sink, self.levels, self.base_h, self.generator = node, sink, levels, base_h, generator
        self.size = generator.shape[-1]
        pieces = zip(generator.split(_PIECE), base_h.split(_PIECE), strict=True)
        if torch.is_grad_enabled() and generator.requires_grad:
            made = [torch.stack([torch.cat(rung, -1) for rung in self._doubled(*piece)]) for piece in pieces]
            self.rungs = torch.cat(made, 1)
            self.inner = self._inner(self.rungs)
        else:
            self._fill(pieces)
        if sink is not None:  # w is taken from the sink: the integral of each basis function, h / 7
            lengths = base_h * 2.0 ** torch.arange(levels, device=base_h.device, dtype=base_h.dtype)[:, None]
            taken = (lengths / N_COEFFICIENTS)[..., None].expand(-1, -1, N_COEFFICIENTS)
            if self.rungs.requires_grad:
                self.rungs = self.rungs.clone()
            self.rungs[:, :, sink, self.size :] -= taken

    def _fill(self, pieces: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Piece by piece into one tensor: nothing leaves the cache twice."""
        shape = (self.levels, len(self.base_h), self.size, self.size + N_COEFFICIENTS)
        self.rungs = self.base_h.new_empty(shape)
        self.inner = self.base_h.new_empty(self.levels - LOWEST_LEVEL, shape[1], len(INNER), shape[3])
        start = 0
        for generator, base_h in pieces:
            rows = slice(start, start + len(base_h))
            for level, (power, moments) in enumerate(self._doubled(generator, base_h)):
                self.rungs[level, rows, :, : self.size] = power
                self.rungs[level, rows, :, self.size :] = moments
            self.inner[:, rows] = self._inner(self.rungs[:, rows])
            start = rows.stop

    def _doubled(self, generator: Tensor, base_h: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """P and Phi, level by level."""
        halves = torch.cat((LEFT, RIGHT), 1).to(generator.device)
        power, moments = _base(generator, self.node, base_h)
        yield power, moments
        for _ in range(self.levels - 1):
            left, right = (moments @ halves).split(N_COEFFICIENTS, -1)
            power, moments = power @ power, torch.baddbmm(right, power, left)
            yield power, moments

    def _inner(self, rungs: Tensor) -> Tensor:
        """The node at ``INNER``: rows carried back through the powers of a half that each part is a sum of.

        Parts that pass the same power of a half on the way go through it together.
        """
        size = self.size
        node_rows = rungs[:, :, self.node]
        linear: dict[float, Tensor] = {}
        moments: dict[float, Tensor] = {}
        waiting: dict[float, list[float]] = {}
        for part in INNER:
            pieces = bernstein.binary_parts(part)
            row = self._at(node_rows, pieces[-1])
            linear[part], moments[part] = row[..., :size], row[..., size:] @ _nodal(pieces, len(pieces) - 1, row)
            for piece in pieces[:-1]:
                waiting.setdefault(piece, []).append(part)
        for piece in sorted(waiting):  # the last piece of a part is its smallest
            parts = waiting[piece]
            rows = torch.stack([linear[p] for p in parts], -2) @ self._at(rungs, piece)
            for part, row in zip(parts, rows.unbind(-2), strict=True):
                pieces = bernstein.binary_parts(part)
                linear[part] = row[..., :size]
                moments[part] = moments[part] + row[..., size:] @ _nodal(pieces, pieces.index(piece), row)
        return torch.cat([torch.stack([x[p] for p in INNER], -2) for x in (linear, moments)], -1)

    def _at(self, rungs: Tensor, part: float) -> Tensor:
        """Rungs of that power of a half of each step."""
        depth = round(-math.log2(part))
        return rungs[LOWEST_LEVEL - depth : self.levels - depth]


def _nodal(pieces: list[float], i: int, like: Tensor) -> Tensor:
    """``(7, 7)``: nodal values on the step to coefficients on the ``i``-th of the pieces that a part is a sum of."""
    return (bernstein.restriction(sum(pieces[:i]), pieces[i]) @ TO_BERNSTEIN).to(like.device)


def nodal_residual_solve(matrix: Tensor, slope: Tensor, residual: Tensor) -> Tensor:
    """(I - M diag(w'))^-1 F: the Newton step of the nodal equations, ``(B, 6)``."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_ex(eye - matrix * slope[:, None], residual)[0]

"""Fixed log-spaced times ("knots") and the cubic interpolation of ln C between them.

Knots are evenly spaced in u = ln(1 + t / t0), t0 = 5 x the first training time, from the first to the last
training time. Between them ln C is a not-a-knot cubic spline in u, which is linear in the knot values, so a
grid of times is one matrix product. Before the first knot ln C runs straight on in u; beyond the last it is linear
in t (a terminal phase) and never rises.

Axis legend: B batch, O reported organs, K knots, Q query times.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

_SHAPE_FACTOR = 5.0
"""t0 over the first time: 20 knots on 0.24-24 h then start as densely as 100 even times, and none is idle."""
_MIN_RANGE = 2.0
"""Smallest ratio of the last knot's time to the first's."""


class KnotGrid(nn.Module):
    """Knot times (statistics of the training split) and interpolation between them.

    Args:
        n_knots: Number of knots, >= 4.
    """

    first_h: Tensor
    last_h: Tensor
    slopes: Tensor

    def __init__(self, n_knots: int) -> None:
        super().__init__()
        self.n_knots = n_knots
        self.register_buffer("first_h", torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("last_h", torch.tensor(24.0, dtype=torch.float64))
        index = np.arange(n_knots)
        slopes = CubicSpline(index, np.eye(n_knots), bc_type="not-a-knot")(index, 1)  # (K, K): d y / d index
        self.register_buffer("slopes", torch.as_tensor(slopes), persistent=False)

    def fit(self, first_h: float, last_h: float) -> None:
        """Span ``first_h`` to ``last_h``, h; a range below a factor of 2 is widened downwards."""
        self.first_h.fill_(min(first_h, last_h / _MIN_RANGE))
        self.last_h.fill_(last_h)

    @property
    def t0_h(self) -> Tensor:
        """Scale of u = ln(1 + t / t0), h."""
        return _SHAPE_FACTOR * self.first_h

    def _position(self, time_h: Tensor) -> Tensor:
        """Place of times on the knot axis, in knots: 0 at the first, K - 1 at the last (float64)."""
        t0 = self.t0_h
        start, end = torch.log1p(self.first_h / t0), torch.log1p(self.last_h / t0)
        return (torch.log1p(time_h.to(torch.float64) / t0) - start) / (end - start) * (self.n_knots - 1)

    @property
    def knot_time_h(self) -> Tensor:
        """Knot times, h, ``(K,)``, float64."""
        t0 = self.t0_h
        start, end = torch.log1p(self.first_h / t0), torch.log1p(self.last_h / t0)
        fraction = torch.linspace(0, 1, self.n_knots, dtype=torch.float64, device=t0.device)
        return t0 * torch.expm1(start + (end - start) * fraction)

    def place_in_time(self, dtype: torch.dtype) -> Tensor:
        """Each knot's place in (-1, 1) on the knot axis and in hours, ``(K, 2)``: a network's sense of time."""
        even = torch.linspace(-1, 1, self.n_knots, dtype=torch.float64, device=self.last_h.device)
        return torch.stack((even, 2 * self.knot_time_h / self.last_h - 1), -1).to(dtype)

    def hat_weights(self, time_h: Tensor) -> Tensor:
        """Linear interpolation weights ``(.., K)`` of times ``(..)``; constant beyond either end."""
        x = self._position(time_h).clamp(0, self.n_knots - 1)
        index = torch.arange(self.n_knots, dtype=x.dtype, device=x.device)
        return (1 - (x[..., None] - index).abs()).clamp_min(0)

    def forward(self, log_knots: Tensor, time_h: Tensor) -> Tensor:
        """Logs of concentration at any times.

        Args:
            log_knots: ln C at the knots, ``(B, O, K)``.
            time_h: Times, h, ``(B, Q)``, or ``(1, Q)`` for one grid that all curves share (faster).

        Returns:
            ``(B, O, Q)``, in the dtype of ``log_knots``.
        """
        weights = self._weights(time_h, log_knots.dtype)
        inside = log_knots @ (weights[0].T if len(weights) == 1 else weights.mT)
        beyond_h = (time_h - self.last_h).clamp_min(0).to(log_knots.dtype)
        if bool((beyond_h > 0).any()):
            inside = inside + self.terminal_slope(log_knots) * beyond_h[:, None]
        return inside

    def _weights(self, time_h: Tensor, dtype: torch.dtype) -> Tensor:
        """What each knot weighs at times up to the last knot, ``(B or 1, Q, K)``; later ones are held at the last."""
        k = self.n_knots
        position = self._position(time_h)
        columns, weight = self._hermite(position)
        basis = torch.zeros(*position.shape, 2 * k, dtype=dtype, device=position.device)
        basis = basis.scatter(-1, columns, weight.to(dtype))  # of values, then of slopes
        basis[..., k] += position.clamp_max(0).to(dtype)  # before the first knot: straight on in u
        return basis[..., :k] + basis[..., k:] @ self.slopes.to(dtype)

    def listed(self, log_knots: Tensor, which: Tensor, time_h: Tensor) -> Tensor:
        """Logs of concentration at a list of times, ``(Q, O)``: of row ``which`` ``(Q,)`` at ``time_h`` ``(Q,)``."""
        k = self.n_knots
        position = self._position(time_h)
        columns, weight = self._hermite(position)
        both = self._values_and_slopes(log_knots).transpose(1, 2)  # (B, 2 K, O)
        picked = both.flatten(0, 1).index_select(0, (which[:, None] * 2 * k + columns).flatten())
        inside = (picked.unflatten(0, (-1, 4)) * weight.to(log_knots.dtype)[..., None]).sum(1)
        before = position.clamp_max(0).to(log_knots.dtype)[:, None]
        beyond_h = (time_h - self.last_h).clamp_min(0).to(log_knots.dtype)[:, None]
        tail = self.terminal_slope(log_knots)[..., 0]
        return inside + both[:, k][which] * before + tail[which] * beyond_h

    def _hermite(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of ``_values_and_slopes`` and their weights, ``(.., 4)``, in the cubic Hermite basis."""
        k = self.n_knots
        x = position.clamp(0, k - 1)
        left = x.floor().clamp_max(k - 2)
        f = x - left
        weight = torch.stack(((1 + 2 * f) * (1 - f) ** 2, f * f * (3 - 2 * f), f * (1 - f) ** 2, f * f * (f - 1)), -1)
        return left.long()[..., None] + torch.tensor([0, 1, k, k + 1], device=x.device), weight

    def _values_and_slopes(self, log_knots: Tensor) -> Tensor:
        """ln C and its slope per knot at each knot, ``(B, O, 2 K)``."""
        return torch.cat((log_knots, log_knots @ self.slopes.to(log_knots.dtype).T), -1)

    def terminal_slope(self, log_knots: Tensor) -> Tensor:
        """Slope d ln C / dt, 1/h, ``(B, O, 1)``, <= 0: the secant of the last two knots."""
        gap_h = (self.knot_time_h[-1] - self.knot_time_h[-2]).to(log_knots.dtype)
        return ((log_knots[..., -1:] - log_knots[..., -2:-1]) / gap_h).clamp_max(0)


def interpolation_gmfe(grid: KnotGrid, log_knots: Tensor, time_h: Tensor, log_true: Tensor, counts: Tensor) -> float:
    """Geometric mean fold error that interpolation alone adds: exact knots in, exact values as the truth.

    Args:
        grid: A fitted grid.
        log_knots: Exact ln C at ``grid.knot_time_h``, ``(B, O, K)``.
        time_h: Times to judge at, h, ``(B, Q)`` or ``(1, Q)``.
        log_true: Exact ln C there, ``(B, O, Q)``.
        counts: ``(B, O, Q)`` bool, the values that count.

    Returns:
        exp(mean |error of ln C|); 1 is perfect.
    """
    error = (grid(log_knots, time_h) - log_true).abs()
    return float(error[counts].mean().exp())

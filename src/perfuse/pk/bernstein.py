"""Polynomials of degree 6 on a step: nodal values, Bernstein coefficients, halves of a step.

A polynomial in Bernstein form with non-negative coefficients is non-negative, and on both halves of the step its
coefficients are non-negative too (de Casteljau; Farouki RT. Comput Aided Geom Des 2012;29:379-419). The nodes 0, 1/8,
1/4, 1/2, 3/4, 7/8 and 1 are dyadic, so that a solver whose steps halve and double meets them with matrices it has, and
they crowd towards the ends, as interpolation wants them.
"""

from __future__ import annotations

from math import comb

import numpy as np
import torch

NODES = np.array([0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1.0])
N_COEFFICIENTS = len(NODES)
DEGREE = N_COEFFICIENTS - 1
HELD_OUT = np.array([0.0625, 0.625])
"""Where the polynomial is compared with what it interpolates: the interpolation error is largest near there."""
MAX_GROWTH, MAX_CUT = 1, 3
"""A step is extrapolated to when it is at most 2 times as long as the one before, and no shorter than an eighth."""


def basis(x: np.ndarray) -> np.ndarray:
    """Bernstein basis at ``x``, ``(..., 7)``."""
    x = np.asarray(x)[..., None]
    j = np.arange(N_COEFFICIENTS)
    return np.array([comb(DEGREE, k) for k in j]) * x**j * (1 - x) ** (DEGREE - j)


def lagrange(x: np.ndarray, nodes: np.ndarray = NODES) -> np.ndarray:
    """Weights of the values at the nodes in the value at ``x``, ``(..., n)``."""
    others = [np.delete(nodes, j) for j in range(len(nodes))]
    weights = [np.prod((np.asarray(x)[..., None] - o) / (nodes[j] - o), axis=-1) for j, o in enumerate(others)]
    return np.stack(weights, -1)


def gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and (positive) weights on 0..1."""
    x, weight = np.polynomial.legendre.leggauss(n)
    return (x + 1) / 2, weight / 2


def _monomial() -> np.ndarray:
    return np.array(
        [
            [(-1) ** (m - j) * comb(DEGREE, m) * comb(m, j) if m >= j else 0 for j in range(N_COEFFICIENTS)]
            for m in range(N_COEFFICIENTS)
        ],
        dtype=float,
    )


def _left() -> np.ndarray:
    rows = range(N_COEFFICIENTS)
    return np.array([[comb(i, j) / 2**i if j <= i else 0.0 for j in rows] for i in rows])


def _tensor(a: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(a), dtype=torch.float64)


TO_BERNSTEIN = _tensor(np.linalg.inv(basis(NODES)))
"""``(7, 7)``: coefficients from nodal values."""
TO_MONOMIAL = _tensor(_monomial())
"""``(7, 7)``: monomial coefficients from Bernstein coefficients."""
LEFT = _tensor(_left())
"""``(7, 7)``: coefficients on the first half of the step."""
RIGHT = LEFT.flip(0, 1)
"""``(7, 7)``: coefficients on the second half."""
HELD_OUT_WEIGHTS = _tensor(lagrange(HELD_OUT))
"""``(2, 7)``: the polynomial at the held-out points from its nodal values."""
EXTRAPOLATION = torch.stack([_tensor(lagrange(1 + 2.0**d * NODES[1:])) for d in range(-MAX_CUT, MAX_GROWTH + 1)])
"""``(5, 6, 7)``: nodal values of one step to those (but the first) of the next, 2^-3 to 2 times as long."""


def binary_parts(x: float) -> list[float]:
    """``x`` in 0..1 as a falling sum of powers of a half."""
    parts, size = [], 1.0
    while x > 0:
        if x >= size:
            parts.append(size)
            x -= size
        size /= 2
    return parts


def restriction(start: float, length: float) -> torch.Tensor:
    """``(7, 7)``: coefficients on the dyadic piece ``start .. start + length`` of the step, by repeated halving."""
    out, low, size = torch.eye(N_COEFFICIENTS, dtype=torch.float64), 0.0, 1.0
    while size > length:
        size /= 2
        out = (RIGHT if start >= low + size else LEFT) @ out
        low += size if start >= low + size else 0.0
    return out

"""Steady state of a repeated regimen with saturable metabolism: the pre-dose state that one interval maps on itself.

Newton's method on F(x) - x, where F carries a state over one interval. It starts at the linear steady state whose rate
constant removes, on average, what saturable metabolism does; its matrix is the product of exponentials of K with the
slope of metabolism along the interval. So it takes a handful of intervals where simulation would need hundreds: the
closer the input comes to Vmax, the slower a simulation settles.

Axis legend: B batch, N nodes, P pathways, T times.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from perfuse.errors import InputError
from perfuse.pk.mechanistic import generator_matrix, half_saturation_mg, mechanistic_rates, saturable_sink
from perfuse.pk.propagate import matrix_exponential
from perfuse.pk.saturable import solve_saturable
from perfuse.pk.steady_state import linear_start, lumen_at_start
from perfuse.pk.system import DoseEvents, SystemParameters

_TOLERANCE = 1e-9
"""Of each step of the solver."""
_AGREEMENT = 1e-7
"""Largest Newton step, relative to the largest amount, at which a state counts as found."""
_MAX_ITERATIONS = 40
_PIECES = 16
"""Pieces of the interval on which metabolism has one slope each."""
_BISECTIONS = 200
_LARGEST_SATURATION = 1e12
"""Amount over half-saturation beyond which there is no steady state worth the name."""


def _rate(vmax: Tensor, half: Tensor, y: Tensor) -> Tensor:
    """What metabolism removes at an amount y, over y, 1/h, ``(B,)``."""
    return (vmax / (half + y[:, None])).sum(1)


def _average_rate(generator: Tensor, node: int, vmax: Tensor, half: Tensor, input_mg_h: Tensor) -> Tensor:
    """Rate constant of metabolism at the stationary amount under constant input ``(B, N)``, 1/h, ``(B,)``.

    With M = -K + k_max e e', u = M^-1 input and v = M^-1 e the amount y in the node obeys
    y (1 - k_max v) + v g(y) = u, whose left side grows with y.

    Raises:
        InputError: naming the curve that metabolism, and whatever else eliminates, cannot clear.
    """
    highest = _rate(vmax, half, torch.zeros_like(vmax[:, 0]))
    unit = functional.one_hot(torch.tensor(node), generator.shape[-1]).to(generator)
    matrix = -generator + highest[:, None, None] * torch.outer(unit, unit)
    u, v = (torch.linalg.solve(matrix, b)[:, node] for b in (input_mg_h, unit.expand(len(matrix), -1)))
    otherwise = (1 - highest * v).clamp_min(0)
    otherwise = torch.where(otherwise < 1e-12, 0.0, otherwise)  # rounding: nothing but metabolism eliminates
    capacity = vmax.sum(1)
    beyond = (otherwise == 0) & (u >= v * capacity)
    if bool(beyond.any()):
        i = int(beyond.nonzero()[0])
        raise InputError("doses", "bring in more than saturable metabolism removes: there is no steady state",
                         value=float(input_mg_h[i].sum()), unit="mg/h", allowed=f"< {float(capacity[i]):g} mg/h",
                         where=f"curve {i}")  # fmt: skip
    low = torch.full_like(u, -700.0)
    high = torch.log(half.amax(1) * _LARGEST_SATURATION)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        y = middle.exp()
        above = y * (otherwise + v * _rate(vmax, half, y)) > u
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return _rate(vmax, half, low.exp())


def _monodromy(generator: Tensor, node: int, vmax: Tensor, half: Tensor, y: Tensor, tau_h: float) -> Tensor:
    """dF/dx, ``(B, N, N)``, from the amounts in the node in the middle of each piece, ``(B, pieces)``."""
    batch, pieces = y.shape
    slope = (vmax[:, None] * half[:, None] / (half[:, None] + y.clamp_min(0)[..., None]) ** 2).sum(-1)
    size = generator.shape[-1]
    unit = functional.one_hot(torch.tensor(node), size).to(generator)
    local = generator[:, None] - slope[..., None, None] * torch.outer(unit, unit)
    each = matrix_exponential(local.reshape(-1, size, size), tau_h / pieces).reshape(batch, pieces, size, size)
    out = each[:, 0]
    for piece in range(1, pieces):
        out = each[:, piece] @ out
    return out


@torch.no_grad()
def saturable_steady_state(system: SystemParameters, doses: DoseEvents, tau_h: float, time_h: Tensor) -> Tensor:
    """Amounts in every node, mg, ``(B, N, T)``; ``steady_state.steady_state`` checks and prepares the arguments.

    Raises:
        InputError: when there is no steady state, or none is found.
    """
    topology = system.topology
    saturable_sink(topology)  # refuses a topology without an organ for it
    node, places = topology.saturable_node, (topology.dose_node, topology.absorption_node)
    assert node is not None
    generator = generator_matrix(topology, mechanistic_rates(system))
    vmax = system.vmax_mg_h
    half = torch.where(vmax > 0, half_saturation_mg(system), 1.0)
    lumen = lumen_at_start(doses, tau_h)
    middles = (torch.arange(_PIECES, dtype=torch.float64) + 0.5) * (tau_h / _PIECES)
    grid = torch.cat((middles, torch.tensor([tau_h], dtype=torch.float64))).expand(len(vmax), -1)

    def carried(start: Tensor, times: Tensor, rows: Tensor) -> Tensor:
        return solve_saturable(
            generator[rows], node, None, vmax[rows], half[rows], *places, doses.of(rows), times[rows],
            tolerance=_TOLERANCE, start_mg=torch.cat((start[rows], lumen[rows]), 1),
        )  # fmt: skip

    rate = _average_rate(generator, node, vmax, half, _average_input(generator, places, doses, tau_h))
    unit = functional.one_hot(torch.tensor(node), generator.shape[-1]).to(generator)
    state = linear_start(generator - rate[:, None, None] * torch.outer(unit, unit), places, doses, tau_h)[:, :-1]
    eye = torch.eye(generator.shape[-1], dtype=torch.float64)
    everyone = torch.arange(len(vmax))
    sought = everyone
    for _ in range(_MAX_ITERATIONS):
        out, before = carried(state, grid, sought), state[sought]
        matrix = eye - _monodromy(generator[sought], node, vmax[sought], half[sought], out[:, node, :-1], tau_h)
        change = torch.linalg.solve(matrix, out[..., -1] - before)
        state[sought] = torch.maximum(before + change, before * 0.1)  # a step never empties a node
        # What is found stays found: where amounts are huge, rounding would move it again.
        sought = sought[change.abs().amax(1) > _AGREEMENT * out.amax((1, 2))]
        if len(sought) == 0:
            return carried(state, time_h, everyone)
    raise InputError("doses", "have a steady state that was not found", where=f"curve {int(sought[0])}",
                     hint="the input comes close to what saturable metabolism can remove")  # fmt: skip


def _average_input(generator: Tensor, places: tuple[int, int | None], doses: DoseEvents, tau_h: float) -> Tensor:
    """Input to each node averaged over the interval, mg/h, ``(B, N)``."""
    columns = list(torch.zeros(len(generator), generator.shape[-1], dtype=torch.float64).unbind(1))
    columns[places[0]] = columns[places[0]] + torch.where(doses.is_oral, 0.0, doses.amount_mg).sum(1) / tau_h
    if places[1] is not None:
        oral = torch.where(doses.is_oral, doses.amount_mg, 0.0).sum(1) * doses.f_abs / tau_h
        columns[places[1]] = columns[places[1]] + oral
    return torch.stack(columns, 1)

"""What prediction speed is measured against: scipy's stiff solvers on the hub equations of task T1.

Two comparators, both at rtol 1e-8 and atol 1e-12 with the right-hand side as one matrix product in Python and the
analytic Jacobian (the matrix itself): ``solve_ivp(method="LSODA")`` and ``odeint``. ``solve_ivp`` is also measured
without the Jacobian, because it is sometimes faster so; targets count against the faster of the two.
One process; the products are of 14 x 14 matrices, which no BLAS splits over threads: a single-thread figure.

The equations are written out here once more, in concentrations, so that they are independent of ``perfuse.pk``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.integrate import odeint, solve_ivp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/ode_reference.py

from benchmarks.common import Spread, markdown_table, rate
from perfuse.data.simulate import simulate_task
from perfuse.data.table import CurveTable
from perfuse.pk.physiology import ORGANS

RTOL, ATOL = 1e-8, 1e-12
MAX_STEPS = 10_000
"""Steps per output interval; odeint's own limit of 500 stops it early on about one T1 curve in 250."""
Solver = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def hub_matrix(volume_l: np.ndarray, flow_l_h: np.ndarray, kp: np.ndarray, clearance_l_h: float) -> np.ndarray:
    """J, 1/h, ``(14, 14)``, of dC/dt = J C for the hub.

        dC_b/dt = sum_t Q_t/V_b (C_t/Kp_t - C_b) - CL C_b / V_b;    dC_t/dt = Q_t/V_t (C_b - C_t/Kp_t)

    Args:
        volume_l, flow_l_h, kp: Organ volumes (L), flows (L/h) and partition coefficients, blood first, ``(14,)``.
        clearance_l_h: Hepatic + renal blood clearance, L/h.
    """
    matrix = np.zeros((len(ORGANS), len(ORGANS)))
    matrix[0, 1:] = flow_l_h[1:] / (volume_l[0] * kp[1:])
    matrix[0, 0] = -(flow_l_h[1:].sum() + clearance_l_h) / volume_l[0]
    matrix[1:, 0] = flow_l_h[1:] / volume_l[1:]
    matrix[range(1, len(ORGANS)), range(1, len(ORGANS))] = -flow_l_h[1:] / (volume_l[1:] * kp[1:])
    return matrix


def solve_lsoda(matrix: np.ndarray, initial_mg_l: np.ndarray, time_h: np.ndarray) -> np.ndarray:
    """Concentrations, mg/L, ``(14, T)``, by ``solve_ivp`` LSODA with the analytic Jacobian."""
    return _solve_ivp(matrix, initial_mg_l, time_h, jac=lambda t, c: matrix)


def solve_lsoda_numeric(matrix: np.ndarray, initial_mg_l: np.ndarray, time_h: np.ndarray) -> np.ndarray:
    """The same with LSODA's own difference quotients as Jacobian."""
    return _solve_ivp(matrix, initial_mg_l, time_h)


def _solve_ivp(matrix: np.ndarray, initial_mg_l: np.ndarray, time_h: np.ndarray, **options: object) -> np.ndarray:
    solution = solve_ivp(
        lambda t, c: matrix @ c, (time_h[0], time_h[-1]), initial_mg_l, "LSODA", time_h, rtol=RTOL, atol=ATOL, **options
    )  # fmt: skip
    if not solution.success:
        raise RuntimeError(f"LSODA failed: {solution.message}")
    return solution.y


def solve_odeint(matrix: np.ndarray, initial_mg_l: np.ndarray, time_h: np.ndarray) -> np.ndarray:
    """Concentrations, mg/L, ``(14, T)``, by ``odeint`` with the analytic Jacobian."""
    result, info = odeint(
        lambda c, t: matrix @ c, initial_mg_l, time_h, Dfun=lambda c, t: matrix, rtol=RTOL, atol=ATOL,
        mxstep=MAX_STEPS, full_output=True,
    )  # fmt: skip
    if info["message"] != "Integration successful.":
        raise RuntimeError(f"odeint failed: {info['message']}")
    return result.T


SOLVERS: dict[str, Solver] = {
    "solve_ivp LSODA, analytic Jacobian": solve_lsoda,
    "solve_ivp LSODA, no Jacobian": solve_lsoda_numeric,
    "odeint, analytic Jacobian": solve_odeint,
}


class OdeReference:
    """Curves of a T1 table solved one by one, as a script would."""

    def __init__(self, table: CurveTable) -> None:
        self.table = table
        self.next_row = 0

    def curve(self, row: int, solver: Solver) -> np.ndarray:
        """One curve, mg/L, ``(14, T)``, matrix building included."""
        t = self.table
        matrix = hub_matrix(t.volume_l[row], t.flow_l_h[row], t.kp[row], t.elimination_l_h[row].sum())
        initial = np.zeros(len(ORGANS))
        initial[0] = t.dose_mg[row, 0] / t.volume_l[row, 0]
        return solver(matrix, initial, t.time_h[row])

    def solve_for(self, solver: Solver, seconds: float) -> float:
        """Curves/s over at least ``seconds`` and one curve, going round the table."""
        return rate(lambda: self._solve_next(solver), 1, seconds)

    def _solve_next(self, solver: Solver) -> None:
        self.curve(self.next_row, solver)
        self.next_row = (self.next_row + 1) % len(self.table)


def main() -> None:
    """Print curves/s of every solver."""
    parser = argparse.ArgumentParser(description="Curves/s of scipy's stiff solvers on task T1 (14 organs, 100 times).")
    parser.add_argument("--curves", type=int, default=256, help="simulated curves to go round (default 256)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per solver and round (default 3)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    reference = OdeReference(simulate_task("T1", args.curves, args.seed))
    rates: dict[str, list[float]] = {name: [] for name in SOLVERS}
    for _ in range(args.rounds):
        for name, solver in SOLVERS.items():
            rates[name].append(reference.solve_for(solver, args.seconds))
    print(f"rtol {RTOL:g}, atol {ATOL:g}, one thread")
    rows = [(name, str(Spread.of(values))) for name, values in rates.items()]
    print(markdown_table(("solver", "curves/s, median (min-max)"), rows))


if __name__ == "__main__":
    main()

"""Early termination of bad trials by asynchronous successive halving.

At each rung (a fraction of a trial's own length) a trial goes on if it is among the best ``1 / REDUCTION`` of those
that have got there, the first few always. Asynchronous: nobody waits for others (Li L, Jamieson K, Rostamizadeh A, et
al. A system for massively parallel hyperparameter tuning. MLSys 2020; the stopping variant, as in Ray Tune and Optuna).
Decisions are remembered, so that a trial that comes to a rung again, after a kill, hears the same.
"""

from __future__ import annotations

import math

REDUCTION = 3
RUNGS = (0.1, 0.3)
"""Fractions of a trial's steps (of its minutes, where it has a wall-clock budget) at which it is judged."""


class Halving:
    """Decides at rungs.

    Args:
        enabled: Off, every trial goes on.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._losses: dict[int, dict[int, float]] = {rung: {} for rung in range(len(RUNGS))}
        self._decided: dict[tuple[int, int], bool] = {}

    def goes_on(self, number: int, rung: int, loss: float) -> bool:
        """Whether a trial that has come to a rung goes on.

        Args:
            number: The trial.
            rung: Index into ``RUNGS``.
            loss: Its best validation loss so far; lower is better, not finite is worst.
        """
        known = self._decided.get((number, rung))
        if known is not None:
            return known
        mine = loss if math.isfinite(loss) else math.inf
        others = self._losses[rung]
        others[number] = mine
        place = sum(other < mine for other in others.values())
        enough = len(others) >= REDUCTION
        decision = not self.enabled or not enough or place < math.ceil(len(others) / REDUCTION)
        self._decided[number, rung] = decision
        return decision

    def replay(self, number: int, rung: int, loss: float, went_on: bool) -> None:
        """Take over a decision of an earlier session."""
        self._losses[rung][number] = loss if math.isfinite(loss) else math.inf
        self._decided[number, rung] = went_on

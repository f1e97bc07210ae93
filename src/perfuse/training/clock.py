"""Time that all processes of a run agree on: monotonic, so that setting the system's clock changes nothing."""

from __future__ import annotations

import time

from perfuse.training.world import World


class Clock:
    """Seconds of the first process's monotonic clock.

    A process that is alone reads its own. With several, what depends on time (the length of a run with a budget, when
    to save) must come out alike everywhere: then all go by what the first one read when they last met.

    Args:
        world: The processes.
    """

    def __init__(self, world: World) -> None:
        self._is_alone = world.is_alone
        self._world = world
        self._agreed = 0.0
        self.meet()

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic() if self._is_alone else self._agreed

    def meet(self) -> None:
        """Have all processes go by the first one's reading of this moment."""
        if not self._is_alone:
            (self._agreed,) = self._world.agree([time.monotonic()])

    def set(self, now_s: float) -> None:
        """Go by a reading of the first process that has come with other numbers."""
        self._agreed = now_s

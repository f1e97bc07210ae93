"""What would make another run of the same command equal, and how equal.

Two things decide: whether arithmetic repeats, and whether the number of steps does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Code: TypeAlias = Literal["bitwise", "bitwise-per-process-count", "rounding", "approximate"]

_TEXT: dict[Code, str] = {
    "bitwise": "every byte of the weights comes out again on a CPU of the same type, with the same number of threads "
    "and the same versions",
    "bitwise-per-process-count": "every byte of the weights comes out again with the same number of processes, threads "
    "each, CPU type and versions; another number of processes adds in another order, and differs by rounding",
    "rounding": "another run differs by rounding: deterministic CUDA algorithms are used where they exist, and an "
    "operation without one only warns",
    "approximate": "another run has the same data, configuration and number of steps, but not the same learning rates",
}
_MEASURED = "; the number of steps was fixed from measured time, so only a run with that number is equal"


@dataclass(frozen=True)
class Determinism:
    """The level.

    Attributes:
        code: ``bitwise``, ``bitwise-per-process-count``, ``rounding`` or ``approximate``.
        text: The same in words.
        is_length_fixed: Whether the number of steps follows from the configuration; a wall-clock budget measures it.
    """

    code: Code
    text: str
    is_length_fixed: bool = True

    def line(self) -> str:
        """Code and words."""
        return f"{self.code}: {self.text}"


def determinism(
    device: str, processes: int, has_budget: bool, threads: int | None = None, *, has_dropout: bool = False
) -> Determinism:
    """The level of a run.

    Args:
        device: ``cpu`` or ``cuda``.
        processes: How many work on it together.
        has_budget: Whether a wall-clock budget fixes the number of steps.
        threads: Of each process, for the words.
        has_dropout: Whether the model draws dropout masks.
    """
    code: Code = "rounding" if device != "cpu" else "bitwise" if processes == 1 else "bitwise-per-process-count"
    text = _TEXT[code]
    if has_dropout and code == "bitwise-per-process-count":
        text += ", and draws other dropout masks"
    if threads is not None and device == "cpu":
        each = f"{threads} thread{'s' if threads != 1 else ''}"
        text += f" (here {each}{f', {processes} processes' if processes > 1 else ''})"
    return Determinism(code, text + (_MEASURED if has_budget else ""), not has_budget)


def weaker(code: Code) -> str:
    """The words of a level, for a run that reaches no more than that."""
    return _TEXT[code]

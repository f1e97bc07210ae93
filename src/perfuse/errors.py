"""Errors a user can act on: one line that names field, value, unit, allowed range and hint."""

from __future__ import annotations


class PerfuseError(Exception):
    """A failure that Perfuse foresaw; the command line prints it in one line and exits with ``exit_code``."""

    exit_code = 1


class InputError(PerfuseError, ValueError):
    """Bad input: a file, an option or a value that cannot be used (exit code 2).

    Args:
        field: What is wrong: a column, a key, an option or a file.
        problem: What is the matter with it, in a few words.
        value: The offending value, when there is one.
        unit: Its unit.
        allowed: The allowed range or choices.
        hint: What to do about it.
        where: File, row or curve where it was found.
    """

    exit_code = 2

    def __init__(
        self,
        field: str,
        problem: str = "is not allowed",
        *,
        value: object = None,
        unit: str = "",
        allowed: str = "",
        hint: str = "",
        where: str = "",
    ) -> None:
        self.field = field
        text = f"{where}: " if where else ""
        text += f"{field} {problem}"
        if value is not None:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            text += f" (got {shown[:200]}{' ' + unit if unit else ''})"
        if allowed:
            text += f"; allowed: {allowed}"
        if hint:
            text += f"; hint: {hint}"
        super().__init__(" ".join(text.split()))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled by its text, which is whole already: worker processes send errors to their parent."""
        return _rebuilt, (type(self), self.field, str(self))


def _rebuilt(kind: type[InputError], field: str, text: str) -> InputError:
    error = kind.__new__(kind, text)
    error.field = field
    return error

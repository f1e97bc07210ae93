"""Errors a user can act on: one line that names field, value, unit, allowed range and hint."""

from __future__ import annotations

_MAX_VALUE = 200
_MAX_PART = 800
_MAX_LINE = 1900


def one_line(text: str, limit: int = _MAX_LINE) -> str:
    """Text as one line that a terminal shows as it is: white space as blanks, control characters escaped, the middle
    of a long one left out. What a file holds ends up in messages.
    """
    text = " ".join(text.split())
    if len(text) > limit:
        text = f"{text[: limit * 3 // 4 - 5]} ... {text[len(text) - limit // 4 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    try:
        return str(value)[:_MAX_VALUE]
    except (ValueError, RecursionError):  # Python writes no whole number of more than 4,300 digits, nor endless nests
        return f"a {type(value).__name__} too long to show"


class PerfuseError(Exception):
    """A failure that Perfuse foresaw; the command line prints it in one line and exits with ``exit_code``."""

    exit_code = 1
    is_told = False
    """Whether the user has been told already, by another process."""

    def __init__(self, text: str = "") -> None:
        super().__init__(one_line(text))


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
            text += f" (got {_shown(value)}{' ' + unit if unit else ''})"
        if allowed:
            text += f"; allowed: {one_line(allowed, _MAX_PART)}"
        if hint:
            text += f"; hint: {one_line(hint, _MAX_PART)}"
        super().__init__(text)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled by its text, which is whole already: worker processes send errors to their parent."""
        return _rebuilt, (type(self), self.field, str(self))


def _rebuilt(kind: type[InputError], field: str, text: str) -> InputError:
    error = kind.__new__(kind, text)
    error.field = field
    return error

"""Reading the tables of a study: sections with known keys, lists of tables, files beside the study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse.errors import InputError


def section(data: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    """A table of the study, with known keys only.

    Raises:
        InputError: for what is no table, or a key that is unknown.
    """
    table = data.get(name, {})
    if not isinstance(table, Mapping):
        raise InputError(name, "is no table", value=table, hint=f"write [{name}]")
    for key in table:
        if key not in allowed:
            raise InputError(f"{name}.{key}", "is no known key", allowed=", ".join(allowed))
    return dict(table)


def tables(data: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """A list of tables of the study, empty when it is not there.

    Raises:
        InputError: for anything else.
    """
    found = data.get(name, [])
    if not isinstance(found, list) or not all(isinstance(t, Mapping) for t in found):
        raise InputError(name, "is no list of tables", hint=f"write [[{name}]] before each")
    return found


def file_beside(folder: Path, field: str, name: object) -> Path:
    """A file in the study's folder, or below it.

    Raises:
        InputError: for what is no text, or a path that leads elsewhere.
    """
    if not isinstance(name, str):
        raise InputError(field, "is no file name", value=name)
    try:
        target = (folder / name).resolve()
        target.is_file()
    except (OSError, ValueError) as error:  # too long a name, or one with a null byte
        raise InputError(field, "is no file name", value=name, hint=str(error)) from None
    if not target.is_relative_to(folder.resolve()):
        raise InputError(field, "lies outside the study's folder", value=name)
    return target

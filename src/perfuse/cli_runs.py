"""``perfuse runs``. Everything heavy is imported inside, as in ``cli``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from perfuse.cli_options import Flag, WholeNumber
from perfuse.errors import InputError

_FILE_WIDTH = 160
_MAX_DEPTH = 32


def runs(
    *folders: Path,
    compare: Annotated[bool, Flag] = False,
    sort: Annotated[Literal["val_loss", "gmfe", "time"] | None, Parameter(show_default=False)] = None,
    depth: WholeNumber = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """List runs, or hold some against each other: configuration, data, figures, and whether these may be compared.

    Args:
        folders: Run folders, or folders with runs somewhere below. (Default the working folder.)
        compare: Show the runs side by side, with what differs in their configurations.
        sort: What comes first: the lowest validation loss, test GMFE, or training time. (Default by path.)
        depth: Levels of folders to look into; links are not followed. (Default 4.)
        as_json: Print JSON.
    """
    from rich.console import Console

    from perfuse.evaluation.files import strict_json
    from perfuse.evaluation.run_compare import compare_runs, sorted_runs
    from perfuse.evaluation.run_list import DEPTH, list_runs
    from perfuse.evaluation.run_table import print_comparison, print_runs

    levels = DEPTH if depth is None else depth
    if not 0 <= levels <= _MAX_DEPTH:
        raise InputError("--depth", value=levels, allowed=f"0 to {_MAX_DEPTH}")
    places = folders or (Path(),)
    entries = sorted_runs(list_runs(places, levels), sort or "")
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    if compare:
        comparison = compare_runs(entries)
        if as_json:
            print(strict_json(comparison.plain()), end="")
        else:
            print_comparison(comparison, console)
    elif as_json:
        print(strict_json([entry.plain() for entry in entries]), end="")
    elif entries:
        print_runs(entries, console)
    else:
        print(f"no run in {', '.join(map(str, places))}, {levels} levels deep")

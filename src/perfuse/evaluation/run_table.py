"""Lists and comparisons of runs as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from perfuse.evaluation.run_compare import ABSENT, Comparison
from perfuse.evaluation.run_list import RunEntry
from perfuse.evaluation.verdict import show_gmfe
from perfuse.training.run_facts import whole

if TYPE_CHECKING:
    from rich.console import Console


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return ABSENT
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def _number(value: float | None, form: str = ",d") -> str:
    return ABSENT if value is None else format(value, form)


def _shown(path: Path) -> str:
    """A path, short where it lies below the working folder."""
    with suppress(ValueError, OSError):
        path = path.resolve().relative_to(Path.cwd())
    return str(path)


def print_runs(entries: Sequence[RunEntry], console: Console) -> None:
    """One line a run, then a line for each that did not end well."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    shown.add_column("run", overflow="fold")
    shown.add_column("id", no_wrap=True)
    shown.add_column("model", overflow="fold")
    shown.add_column("data", overflow="fold")
    for name in ("curves", "epochs", "steps", "val loss", "test GMFE", "time"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("status", no_wrap=True)
    for entry in entries:
        facts = entry.facts
        curves = None if facts is None else whole(facts.part("train"), "n_curves")
        gmfe = show_gmfe(entry.test_gmfe) if entry.test_gmfe is not None else ABSENT
        if entry.test is not None and entry.test.note:
            gmfe = "outdated"
        shown.add_row(
            _escaped(_shown(entry.path)), entry.run_id[:8] or ABSENT, _escaped(facts.model if facts else ABSENT),
            _escaped(_data(entry)), _number(curves), _number(entry.epochs), _number(entry.steps),
            _number(entry.best_val_loss, ".4g"), gmfe, duration(entry.seconds), entry.status,
        )  # fmt: skip
    console.print(shown)
    for entry in entries:
        if entry.detail:
            _say(console, f"{_shown(entry.path)}: {entry.status}: {entry.detail}")


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Figures, then differences of the configuration, then what may be concluded."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    shown.add_column("")
    for i, entry in enumerate(comparison.entries):
        mark = " *" if i == comparison.best else ""
        shown.add_column(_escaped(_shown(entry.path)) + mark, overflow="fold", justify="right")
    for name, values in comparison.figures:
        shown.add_row(name, *(_escaped(_cell(name, v)) for v in values))
    shown.add_section()
    for key, values in comparison.differences:
        shown.add_row(_escaped(key), *(_escaped("unset" if v is None else str(v)) for v in values), style="cyan")
    console.print(shown)
    if not comparison.differences:
        _say(console, "No difference in the configuration.")
    if comparison.best is not None:
        _say(console, "* lowest test GMFE")
    for remark in comparison.remarks:
        _say(console, remark)


def _say(console: Console, line: str) -> None:
    console.print(_printable(line), markup=False, highlight=False, soft_wrap=True)


def _cell(name: str, value: object) -> str:
    if value is None:
        return ABSENT
    if name == "test GMFE":
        return show_gmfe(value if isinstance(value, float) else None)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _data(entry: RunEntry) -> str:
    facts = entry.facts
    if facts is None:
        return ABSENT
    name = facts.data_path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return f"{name or 'data'} {facts.data_sha256[:6]}"


def _printable(value: str) -> str:
    """The text with what would steer a terminal as question marks."""
    return "".join(c if c.isprintable() else "?" for c in value)


def _escaped(value: str) -> str:
    from rich.markup import escape

    return escape(_printable(value))

"""A progress bar in curves, with rate and time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def curves_progress(total: int, console: Console | None) -> Iterator[Callable[[int, int], None] | None]:
    """A function to call with curves done and failed so far, which draws a bar; None without a console."""
    if console is None:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        BarColumn(), TextColumn("{task.completed}/{task.total} curves"), TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[failed]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total, rate="", failed="")
        first: int | None = None

        def update(done: int, failed: int) -> None:
            nonlocal first
            first = done if first is None else first  # of an earlier run: no speed of this one
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = f"{(done - first) / elapsed:,.0f}/s" if elapsed > 0 and done > first else ""
            bar.update(task, completed=done, rate=rate, failed=f"{failed} failed" if failed else "")

        yield update

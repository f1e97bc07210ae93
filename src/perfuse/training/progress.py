"""What a user watches: a rich bar on a terminal, plain lines elsewhere, nothing without a console."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_BAR_INTERVAL_S = 0.2
_LINE_INTERVAL_S = 10.0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressDisplay:
    """Shows epoch, losses, learning rate, curves/s and time left.

    Args:
        console: Where to write; None is silent.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._val_loss = ""
        self._next = 0.0
        self._recent: tuple[float, int] = (time.monotonic(), 0)
        if console is not None and console.is_terminal and not console.quiet:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("training", total=None, text="")
            self._bar.start()

    @property
    def due(self) -> bool:
        """Whether ``show`` would show anything now; asked every step, so it is cheap."""
        return self._console is not None and time.monotonic() >= self._next

    def show(
        self, *, epoch: int, step: int, total_steps: int | None, train_loss: float, lr: float, curves: int,
        left_s: float | None,
    ) -> None:  # fmt: skip
        """Show one moment; ``curves`` counts since the display began."""
        now = time.monotonic()
        rate = (curves - self._recent[1]) / max(now - self._recent[0], 1e-9)
        self._recent = (now, curves)
        self._next = now + (_BAR_INTERVAL_S if self._bar is not None else _LINE_INTERVAL_S)
        text = f"train {train_loss:.3g}  {self._val_loss}lr {lr:.2g}  {rate:,.0f} curves/s"
        if left_s is not None:
            text += f"  {_clock(left_s)} left"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=f"epoch {epoch}", completed=step, total=total_steps, text=text)
        else:
            of = f"/{total_steps}" if total_steps else ""
            self.note(f"epoch {epoch}  step {step}{of}  {text}")

    def validated(self, val_loss: float) -> None:
        """Remember the validation loss for the next line."""
        self._val_loss = f"val {val_loss:.3g}  "

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

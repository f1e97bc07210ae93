from __future__ import annotations

import io

from rich.console import Console

from perfuse.training.progress import ProgressDisplay


def show(display: ProgressDisplay, step: int = 5) -> None:
    display.show(epoch=2, step=step, total_steps=50, train_loss=0.1234, lr=0.01, curves=100, left_s=125.0)


def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out, width=200))
    assert display.due
    display.validated(0.5)
    show(display)
    assert not display.due  # not again for a while
    display.close()
    text = out.getvalue()
    assert text.startswith("epoch 2  step 5/50  train 0.123  val 0.5  lr 0.01  ")
    assert "curves/s" in text
    assert "2:05 left" in text
    assert "\x1b" not in text


def test_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out, width=120, force_terminal=True, _environ={"TERM": "xterm"}))
    show(display)
    display.note("a note [not markup]")
    display.close()
    display.close()
    text = out.getvalue()
    assert "epoch 2" in text
    assert "a note [not markup]" in text


def test_silence_without_a_console() -> None:
    display = ProgressDisplay(None)
    assert not display.due
    show(display)
    display.note("nothing")
    display.close()


def test_long_times_have_hours() -> None:
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out, width=200))
    display.show(epoch=1, step=1, total_steps=None, train_loss=1, lr=1, curves=1, left_s=3725.0)
    assert "1:02:05 left" in out.getvalue()

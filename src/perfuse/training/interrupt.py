"""Ctrl-C, SIGTERM and SIGHUP: the first asks the loop to finish its step, save and leave; a second aborts at once.

SIGHUP, which a closed terminal sends, counts unless it is ignored already, as under ``nohup``. An abort leaves the
last checkpoint: one that is being written is dropped, or found by the next reader where it lies.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType

from perfuse.errors import PerfuseError

_SIGNALS = tuple(s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None)) is not None)


class LeftOff(PerfuseError):
    """A watcher of the validations ended the run, which has saved and may be continued: no failure."""


class Interrupted(PerfuseError):
    """Training was asked to stop and has saved; ``exit_code`` is 128 + the signal's number (130, 143, 129)."""

    def __init__(self, signal_number: int, text: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}: {text}")
        self.exit_code = 128 + signal_number


class Interruption:
    """Context manager that turns the signals into a flag, ``received``.

    Handlers can only be installed in the main thread; elsewhere this does nothing, and signals act as before.

    Args:
        announce: Called with a line of text when the first signal arrives.
    """

    def __init__(self, announce: Callable[[str], None] | None = None) -> None:
        self.received: int | None = None
        self._announce = announce
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        self.received = number
        if self._announce is not None:
            text = f"{signal.Signals(number).name}: finishing the step and saving; once more aborts at once"
            with suppress(OSError):  # the terminal may be gone
                self._announce(text)

"""``RUN/log.jsonl``: what happened to a run, one JSON object a line, for people and for machines.

Keys of a line: ``utc`` (ISO 8601 with milliseconds), ``time_s`` (of training, all sessions together, as in
``metrics.jsonl``), ``run_id``, ``session`` (from 1: each start or ``--resume`` is one), ``rank``, ``level`` (info,
warning or error), ``event``, and the event's own ``fields``. A value that is not finite is null.

A log is a help, not a result: no problem with it ends the training. A line is written by one call, whole or not at
all; half a line that a dying machine left is dropped by the next session; what could not be written is counted in the
next line that can (``lines_lost``). At ``MAX_BYTES`` the file becomes ``log.1.jsonl``, which replaces an older one.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO, TypeAlias

LOG_FILE = "log.jsonl"
MAX_BYTES = 10_000_000
Level: TypeAlias = Literal["info", "warning", "error"]

_TAIL_BYTES = 2**17
_MAX_LINE_BYTES = 2**16
_MAX_TEXT = 2000
_MAX_ITEMS = 200
_MAX_DEPTH = 6
_LEVELS: dict[str, Level] = {
    "skipped_step": "warning", "interrupted": "warning", "rank_lost": "error", "failed": "error", "log_cut": "warning",
}  # fmt: skip
"""Levels of events that do not name theirs."""


def json_value(value: object, depth: int = 0) -> object:
    """What stands for a value in a log line: JSON only, bounded in length and depth, null where it is not finite."""
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth < _MAX_DEPTH and isinstance(value, Mapping):
        return {str(k)[:_MAX_TEXT]: json_value(v, depth + 1) for k, v in list(value.items())[:_MAX_ITEMS]}
    if depth < _MAX_DEPTH and isinstance(value, list | tuple | set | frozenset):
        return [json_value(v, depth + 1) for v in list(value)[:_MAX_ITEMS]]
    item = getattr(value, "item", None)  # a NumPy or torch scalar
    if callable(item) and getattr(value, "ndim", None) == 0:
        return json_value(item(), depth + 1)
    text = str(value)
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."


class EventLog:
    """The log of one session, open for appending; of several processes the first one writes it.

    Args:
        run: Folder of the run.
        run_id: Id of the run, in every line.
        session: Number of the session, from 1.
        rank: Number of the process that writes.
        clock: Seconds trained so far; None counts from now.
        echo: Where to print every line too, such as ``sys.stderr``.
        fresh: Start an empty file; else go on with what is there.
        max_bytes: Length at which the file is set aside.
    """

    def __init__(
        self, run: Path, run_id: str, *, session: int = 1, rank: int = 0, clock: Callable[[], float] | None = None,
        echo: TextIO | None = None, fresh: bool = False, max_bytes: int = MAX_BYTES,
    ) -> None:  # fmt: skip
        self.path = run / LOG_FILE
        self._head = {"run_id": run_id, "session": session, "rank": rank}
        began = time.monotonic()
        self._clock = clock or (lambda: time.monotonic() - began)
        self._echo = echo
        self._max_bytes = max_bytes
        self._file: int | None = None
        self._lost = 0
        self._has_complained = False
        self._lock = threading.RLock()  # re-entrant: a signal may come in the middle of a line
        cut = 0
        with self._forgiven():
            self._open(fresh)
            cut = 0 if fresh else self._drop_half_line()
        if cut:
            self.write("log_cut", {"bytes": cut})

    def write(self, event: str, fields: Mapping[str, object], level: Level | None = None) -> None:
        """One line; never raises for a disk that refuses it."""
        with self._lock:
            line = self._line(event, fields, level or _LEVELS.get(event, "info"))
            if self._echo is not None:
                with suppress(OSError, ValueError):  # a closed pipe is nobody's problem here
                    self._echo.write(line)
                    self._echo.flush()
            self._lost += 1
            with self._forgiven():
                self._append(line.encode())
                self._lost = 0

    def close(self) -> None:
        """Close the file; may be called twice."""
        with self._lock:
            if self._file is not None:
                with suppress(OSError):
                    os.close(self._file)
                self._file = None

    def _line(self, event: str, fields: Mapping[str, object], level: Level) -> str:
        line: dict[str, object] = {
            "utc": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "time_s": round(self._clock(), 3), **self._head, "level": level, "event": event,
        }  # fmt: skip
        if self._lost:
            line["lines_lost"] = self._lost
        text = json.dumps(line | {"fields": json_value(fields)}, allow_nan=False)
        if len(text) >= _MAX_LINE_BYTES:
            text = json.dumps(line | {"fields": {"left_out": f"{len(text)} bytes, too long for a line"}})
        return text + "\n"

    def _open(self, fresh: bool) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | (os.O_TRUNC if fresh else 0)
        self._file = os.open(self.path, flags, 0o666)

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._open(fresh=False)
        assert self._file is not None
        size = os.fstat(self._file).st_size
        if size and size + len(line) > self._max_bytes:
            self.close()
            os.replace(self.path, self.path.with_suffix(".1.jsonl"))
            self._open(fresh=True)
            size = 0
        if os.write(self._file, line) != len(line):
            os.ftruncate(self._file, size)
            raise OSError("the disk took only part of a line")

    def _drop_half_line(self) -> int:
        """Cut what follows the last newline; returns how many bytes."""
        assert self._file is not None
        size = os.fstat(self._file).st_size
        start = max(0, size - _TAIL_BYTES)
        tail = os.pread(self._file, size - start, start)
        cut = len(tail) - (tail.rfind(b"\n") + 1)
        if cut:
            os.ftruncate(self._file, size - cut)
        return cut

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        """Swallow a disk's refusal and say so once."""
        try:
            yield
        except OSError as error:
            if not self._has_complained:
                self._has_complained = True
                reason = error.strerror or str(error)
                text = f"perfuse: warning: {self.path} cannot be written ({reason}); training goes on"
                with suppress(OSError, ValueError, AttributeError):
                    print(text, file=sys.stderr)

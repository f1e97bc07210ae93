"""``metrics.jsonl`` (one JSON object per validation), TensorBoard, and the events of ``log.jsonl`` (``event_log``).

A line's losses and norms are those of all steps since the line before. Keys: ``epoch`` (from 1), ``step`` (updates
done), ``train_loss``, ``val_loss`` (null when not finite), ``lr``, ``grad_norm`` (mean before clipping),
``grad_norm_max``, ``train_curves_per_s``, ``time_s`` (since the run began, all sessions together),
``skipped_steps`` (fp16 overflows so far), ``val_loss_per_organ``, ``run_id``, and whatever the metric function returns.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias

from perfuse.errors import InputError, PerfuseError
from perfuse.files import write_atomic
from perfuse.training.event_log import EventLog

if TYPE_CHECKING:
    from perfuse.training.board import Board

METRICS_FILE = "metrics.jsonl"
ALIVE_EVERY_S = 60.0
"""A run that trains writes a line to ``log.jsonl`` at least so often."""
Line: TypeAlias = "dict[str, float | int | dict[str, float] | None]"


def _finite(value: object) -> object:
    """Plain JSON knows no NaN: null stands for it."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def truncate_metrics(path: Path, last_step: int) -> None:
    """Drop the lines after ``last_step``, and a line that a crash cut short.

    Raises:
        InputError: if a line before the last is no JSON object with a step.
    """
    if not path.is_file():
        return
    kept = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            step = json.loads(line)["step"]
            if step <= last_step:
                kept.append(line if line.endswith("\n") else line + "\n")
        except (ValueError, TypeError, KeyError, RecursionError):
            if number < len(lines):
                raise InputError(
                    METRICS_FILE, f"line {number} is no JSON object with a step", value=str(path)
                ) from None
    if kept != lines:
        write_atomic(path, "".join(kept).encode())


class RunLogs:
    """The logs of a run, open for appending.

    Args:
        run: Folder of the run.
        tensorboard: Whether to write TensorBoard events too.
        resume_after: Step of the last line that counts; lines after it are dropped. None starts afresh.
        run_id: Id of the run, for every line of ``metrics.jsonl`` and ``log.jsonl``.
        session: Number of this session (``provenance.begin_session``), from 1.
        clock: Seconds trained so far, all sessions together; None counts from now.
        echo: Where to print the lines of ``log.jsonl`` too.
    """

    def __init__(
        self, run: Path, tensorboard: bool, resume_after: int | None = None, *, run_id: str = "", session: int = 1,
        clock: Callable[[], float] | None = None, echo: TextIO | None = None,
    ) -> None:  # fmt: skip
        path = run / METRICS_FILE
        self.run_id = run_id
        if resume_after is not None:
            truncate_metrics(path, resume_after)
        self._file = path.open("w" if resume_after is None else "a", encoding="utf-8")
        self._events = EventLog(run, run_id, session=session, clock=clock, echo=echo, fresh=resume_after is None)
        self._alive_until = 0.0
        self._board: Board | None = None
        if tensorboard:
            from perfuse.training.board import Board

            purge = None if resume_after is None else resume_after + 1
            self._board = Board(run / "tensorboard", purge_step=purge)
            self._watch_board()

    def write(self, line: Line) -> None:
        """Append one line.

        Raises:
            PerfuseError: if the disk is full or gone.
        """
        tagged = {"run_id": self.run_id, **line} if self.run_id else line
        try:
            self._file.write(json.dumps(_finite(tagged), allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            rest = "what was saved before is kept (use --resume)"
            raise PerfuseError(f"cannot write {self._file.name}: {error.strerror or error}; {rest}") from None
        if self._board is not None:
            step = line["step"]
            assert isinstance(step, int)
            for key, value in line.items():
                if key not in ("step", "epoch", "time_s") and not isinstance(value, dict) and value is not None:
                    self._board.add_scalar(key, value, step)
            organs = line.get("val_loss_per_organ")
            for organ, value in organs.items() if isinstance(organs, dict) else ():
                self._board.add_scalar(f"val_loss/{organ}", value, step)
            self._watch_board()

    def _watch_board(self) -> None:
        """Say once that TensorBoard's file could not be written; the run goes on without it."""
        if self._board is not None and self._board.failure:
            self.event("tensorboard_given_up", reason=self._board.failure, level="warning")
            self._board = None

    def event(self, name: str, **fields: object) -> None:
        """One line of ``log.jsonl``; a disk that refuses it does not end the training.

        Args:
            name: What happened, such as ``checkpoint_saved``.
            fields: What belongs to it; ``level`` (info, warning or error) is the line's.
        """
        level = fields.pop("level", None)
        self._events.write(name, fields, level if level in ("info", "warning", "error") else None)
        self._alive_until = time.monotonic() + ALIVE_EVERY_S

    def alive(self, **fields: object) -> None:
        """A line that says the run goes on, if none has been written for a while; cheap enough for every step."""
        if time.monotonic() >= self._alive_until:
            self.event("alive", **fields)

    def note(self, name: str, value: float, step: int) -> None:
        """One scalar for TensorBoard alone, such as a skipped step."""
        if self._board is not None:
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close; may be called twice."""
        self._events.close()
        with suppress(OSError):  # what could not be written has been reported by `write`
            self._file.close()
        if self._board is not None:
            self._board.close()
            self._board = None


class NoLogs(RunLogs):
    """Of a process that does not write."""

    def __init__(self) -> None:
        pass

    def write(self, line: Line) -> None:
        """Nothing."""

    def event(self, name: str, **fields: object) -> None:
        """Nothing."""

    def alive(self, **fields: object) -> None:
        """Nothing."""

    def note(self, name: str, value: float, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

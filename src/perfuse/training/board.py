"""TensorBoard events, written at once by the caller itself.

PyTorch's ``SummaryWriter`` writes on a thread of its own, which prints a traceback when the disk is full and then
blocks or fails whoever writes next. TensorBoard is a help, not a result: here a file that can no longer be written is
given up, and the run goes on. The format is TensorBoard's: ``Event`` messages in TFRecord frames.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

_VERSION = "brain.Event:2"


class Board:
    """One file of events.

    Args:
        folder: TensorBoard's log folder; made if need be.
        purge_step: Events of earlier files from this step on no longer count; None keeps all.

    Attributes:
        failure: Why nothing more is written; empty while all is well.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self.failure = ""
        self._file: IO[bytes] | None = None
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / name).open("xb", buffering=0)
        except OSError as error:
            self._give_up(error)
        self._write(Event(file_version=_VERSION))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write one value; does nothing after a failure."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))

    def _write(self, event: Event) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is None:
            return
        event.wall_time = time.time()  # only shown; steps order the curves
        at = self._file.tell()
        try:
            RecordWriter(_Whole(self._file)).write(event.SerializeToString())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(at)  # half a record would end the file for its readers
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failure = f"TensorBoard events cannot be written: {error.strerror or error}"
        self.close()

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


class _Whole:
    """Writes all bytes or raises; a raw file may write fewer when the disk fills."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data) :]

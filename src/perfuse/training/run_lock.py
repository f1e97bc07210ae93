"""One training at a time in a run's folder: two would overwrite each other's checkpoints and metrics."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from perfuse.data.locks import take_lock
from perfuse.errors import InputError

LOCK_FILE = ".lock"


class RunLock:
    """The lock of a run's folder, which the system lets go when this process ends, however it ends.

    Args:
        run: The folder; it must exist when the lock is taken.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Hold the lock until ``release``; once is enough.

        Raises:
            InputError: if another training holds it.
            OSError: if the folder cannot be written.
        """
        if self._file is not None:
            return
        self._file = take_lock(self._run / LOCK_FILE)
        if self._file is None:
            raise InputError(
                "--out", "is in use by another training that has not ended", value=str(self._run),
                hint="wait for it, stop it, or choose another folder",
            )  # fmt: skip

    def release(self) -> None:
        """Let go; may be called when nothing is held."""
        if self._file is not None:
            with suppress(OSError):  # the folder may be gone
                os.unlink(self._run / LOCK_FILE)
            self._file.close()
            self._file = None

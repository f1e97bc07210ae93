"""``metrics.jsonl`` (one JSON object per validation) and TensorBoard.

A line's losses and norms are those of all steps since the line before. Keys: ``epoch`` (from 1), ``step`` (updates
done), ``train_loss``, ``val_loss`` (null when not finite), ``lr``, ``grad_norm`` (mean before clipping),
``grad_norm_max``, ``train_curves_per_s``, ``time_s`` (since the run began, all sessions together),
``skipped_steps`` (fp16 overflows so far), ``val_loss_per_organ``, and whatever the metric function returns.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from perfuse.errors import InputError, PerfuseError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
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
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            step = json.loads(line)["step"]
            if step <= last_step:
                kept.append(line if line.endswith("\n") else line + "\n")
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise InputError(
                    METRICS_FILE, f"line {number} is no JSON object with a step", value=str(path)
                ) from None
    new = path.with_name(path.name + ".new")
    new.write_text("".join(kept), encoding="utf-8")
    os.replace(new, path)


class RunLogs:
    """The two logs of a run, open for appending.

    Args:
        run: Folder of the run.
        tensorboard: Whether to write TensorBoard events too.
        resume_after: Step of the last line that counts; lines after it are dropped. None starts afresh.
    """

    def __init__(self, run: Path, tensorboard: bool, resume_after: int | None = None) -> None:
        path = run / METRICS_FILE
        if resume_after is not None:
            truncate_metrics(path, resume_after)
        self._file = path.open("w" if resume_after is None else "a", encoding="utf-8")
        self._board: SummaryWriter | None = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            purge = None if resume_after is None else resume_after + 1
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=purge)

    def write(self, line: Line) -> None:
        """Append one line.

        Raises:
            PerfuseError: if the disk is full or gone.
        """
        try:
            self._file.write(json.dumps(_finite(line), allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise PerfuseError(f"cannot write {self._file.name}: {error.strerror or error}") from None
        if self._board is not None:
            step = line["step"]
            for key, value in line.items():
                if key not in ("step", "epoch", "time_s") and not isinstance(value, dict) and value is not None:
                    self._board.add_scalar(key, value, step)
            organs = line.get("val_loss_per_organ")
            for organ, value in organs.items() if isinstance(organs, dict) else ():
                self._board.add_scalar(f"val_loss/{organ}", value, step)

    def note(self, name: str, value: float, step: int) -> None:
        """One scalar for TensorBoard alone, such as a skipped step."""
        if self._board is not None:
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close; may be called twice."""
        with suppress(OSError):  # what could not be written has been reported by `write`
            self._file.close()
        if self._board is not None:
            self._board.close()
            self._board = None

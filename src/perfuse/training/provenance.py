"""``RUN/provenance.json``: how a run was made; one entry for each session (the start, and every ``--resume``).

An entry says when, where and by which command the session began, with which versions, threads and processes, what
was then known of the run's length, and which level of determinism held.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from perfuse.files import check_file, check_plain, write_atomic
from perfuse.training.determinism import determinism
from perfuse.training.machine import command_line, machine, utc_now

if TYPE_CHECKING:
    from perfuse.config import RunConfig

PROVENANCE_FILE = "provenance.json"
SCHEMA_VERSION = 1
LENGTH_KEYS = ("epochs", "max_steps", "max_minutes", "early_stopping_patience", "validate_every_epochs")
"""Keys of ``training`` that say how long a run is, and may change when it goes on."""
_MAX_SESSIONS = 200
_MAX_BYTES = 2**24


def begin_session(
    run: Path, *, run_id: str, config: RunConfig, device: str, processes: int = 1, data_sha256: str = "",
    resumed_at_step: int | None = None, resumed_after: str = "",
) -> int:  # fmt: skip
    """Add this session to a run's record.

    Args:
        run: Folder of the run.
        run_id: Id of the run.
        config: The resolved configuration.
        device: ``cpu`` or ``cuda``.
        processes: How many train together.
        data_sha256: Content hash of the data.
        resumed_at_step: Step that the session goes on from; None for a fresh run.
        resumed_after: How the session before had ended: completed, early, deadline, or '' for an interruption.

    Returns:
        The session's number, from 1.

    Raises:
        PerfuseError: if the folder cannot be written.
    """
    import torch

    earlier = sessions_of(run, run_id) if resumed_at_step is not None else []
    number = _number(earlier[-1]) + 1 if earlier else (1 if resumed_at_step is None else 2)
    level = determinism(
        device, processes, config.training.max_minutes is not None, torch.get_num_threads(),
        has_dropout=bool(getattr(config.model, "dropout", 0.0)),
    )  # fmt: skip
    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device
    session: dict[str, object] = {
        "session": number, "started_utc": utc_now(), "resumed_at_step": resumed_at_step, "resumed_after": resumed_after,
        "command": command_line(), "folder": os.getcwd(), "host": platform.node(), **machine(),
        "device": device, "device_name": name, "processes": processes, "threads": torch.get_num_threads(),
        "length": {key: getattr(config.training, key, None) for key in LENGTH_KEYS},
        "determinism": {"code": level.code, "text": level.text, "is_length_fixed": level.is_length_fixed},
    }  # fmt: skip
    kept = [*earlier[:1], *earlier[1:][-(_MAX_SESSIONS - 2) :], session]
    record = {"schema_version": SCHEMA_VERSION, "run_id": run_id, "data_sha256": data_sha256, "sessions": kept}
    write_atomic(run / PROVENANCE_FILE, (json.dumps(record, indent=2, ensure_ascii=True) + "\n").encode())
    return number


def read_provenance(run: Path) -> dict[str, object]:
    """The record of a run; empty where there is none or it is damaged: nothing but the record depends on it."""
    path = run / PROVENANCE_FILE
    try:
        check_file(path, PROVENANCE_FILE, _MAX_BYTES)
        record = json.loads(path.read_text(encoding="utf-8"))
        check_plain(record)
    except (OSError, ValueError, RecursionError):  # InputError is a ValueError
        return {}
    return record if isinstance(record, dict) else {}


def sessions_of(run: Path, run_id: str = "") -> list[dict[str, object]]:
    """The sessions of a run, oldest first; none if the record is of another run (by ``run_id``) or damaged."""
    record = read_provenance(run)
    if run_id and record.get("run_id") != run_id:
        return []
    found = record.get("sessions")
    return [s for s in found if isinstance(s, dict)] if isinstance(found, list) else []


def _number(session: Mapping[str, object]) -> int:
    number = session.get("session")
    return number if type(number) is int and 0 < number < 2**31 else 1

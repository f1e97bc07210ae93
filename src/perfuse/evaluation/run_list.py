"""The runs under some folders, as their files tell: what they are, how far they came, how good they are.

Nothing is loaded but JSON, and no file is trusted: a run that cannot be read is listed with the reason.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from perfuse.errors import InputError
from perfuse.files import check_file, check_plain
from perfuse.training.event_log import LOG_FILE
from perfuse.training.logs import ALIVE_EVERY_S, METRICS_FILE
from perfuse.training.provenance import PROVENANCE_FILE, sessions_of
from perfuse.training.run_facts import STATE_NAME, Plain, RunFacts, number, read_facts, table, text, whole

DEPTH = 4
"""Levels of folders below a named one that are looked into."""
MAX_FOLDERS = 100_000
QUIET_S = 3 * ALIVE_EVERY_S
"""A run that has not ended and has written nothing for so long counts as interrupted."""
_CHECKPOINTS = ("last", "best")
_TRACES = (METRICS_FILE, LOG_FILE, PROVENANCE_FILE)
_MAX_JSON_BYTES = 2**28
_TAIL_BYTES = 2**17
_ENDED = frozenset({"ended", "interrupted", "failed", "rank_lost"})


@dataclass(frozen=True)
class TestScore:
    """A run's evaluation on its own test split.

    Attributes:
        gmfe: Geometric mean fold error; None where no value counted.
        ci95: Its 95 % interval over drugs.
        n_curves: Curves that were judged.
        curves_key: Names the judged curves: equal keys, equal curves.
        note: Why it may not be used for the present weights; '' when it may.
    """

    gmfe: float | None
    ci95: tuple[float, float] | None
    n_curves: int
    curves_key: str
    note: str = ""


@dataclass(frozen=True)
class RunEntry:
    """One run.

    Attributes:
        path: Its folder.
        status: completed, early, deadline, running, interrupted, failed or unreadable.
        detail: More on the status.
        facts: Of ``last`` (else ``best``); None where unreadable.
        run_id: Id; '' for runs from before there was one.
        epochs, steps: Done so far.
        best_val_loss: Lowest validation loss.
        seconds: Training time, all sessions together.
        started_utc: Start of the first session; '' where that is not recorded.
        sessions: How many there were; 0 where that is not recorded.
        test: Its evaluation, if there is one.
    """

    path: Path
    status: str
    detail: str = ""
    facts: RunFacts | None = field(default=None, repr=False)
    run_id: str = ""
    epochs: int | None = None
    steps: int | None = None
    best_val_loss: float | None = None
    seconds: float | None = None
    started_utc: str = ""
    sessions: int = 0
    test: TestScore | None = None

    @property
    def test_gmfe(self) -> float | None:
        """GMFE of the present weights on the test split."""
        return self.test.gmfe if self.test is not None and not self.test.note else None

    def plain(self) -> dict[str, object]:
        """For JSON."""
        facts, test = self.facts, self.test
        return {
            "path": str(self.path), "run_id": self.run_id or None, "status": self.status, "detail": self.detail,
            "model": facts.model if facts else None,
            "data_path": facts.data_path if facts else None, "data_sha256": facts.data_sha256 if facts else None,
            "train_curves": whole(facts.part("train"), "n_curves") if facts else None,
            "epochs": self.epochs, "steps": self.steps, "best_val_loss": self.best_val_loss,
            "test_gmfe": self.test_gmfe, "test_curves": test.n_curves if test else None,
            "test_note": test.note if test else "not evaluated", "seconds": self.seconds,
            "started_utc": self.started_utc or None, "sessions": self.sessions,
            "code_version": text(facts.state, "code_version") if facts else None,
        }  # fmt: skip


def list_runs(folders: Iterable[Path], depth: int = DEPTH, now: float | None = None) -> list[RunEntry]:
    """Every run under the folders, each once, in the order of their paths.

    Args:
        folders: Run folders, or folders that hold some.
        depth: Levels of folders to look into; links are not followed.
        now: Seconds since 1970, for tests.

    Raises:
        InputError: for a folder that does not exist.
    """
    seen: set[tuple[int, int]] = set()
    found: list[RunEntry] = []
    for folder in folders:
        if not folder.is_dir():
            problem = "is no folder" if folder.exists() else "does not exist"
            raise InputError("FOLDER", problem, value=str(folder))
        for path, problem in _walk(folder, depth):
            status = path.stat() if not problem else None
            if status is not None and (status.st_dev, status.st_ino) in seen:
                continue
            if status is not None:
                seen.add((status.st_dev, status.st_ino))
            found.append(RunEntry(path, "unreadable", problem) if problem else read_run(path, now))
    return found


def is_run(folder: Path) -> bool:
    """Whether a folder looks like a run's."""
    if any((folder / f"{name}{end}" / STATE_NAME).is_file() for name in _CHECKPOINTS for end in ("", ".previous")):
        return True
    return (folder / "config.toml").is_file() and any((folder / name).is_file() for name in _TRACES)


def _walk(root: Path, depth: int) -> Iterator[tuple[Path, str]]:
    """Runs under a folder with '', folders that cannot be read with the reason; never through links."""
    waiting, visited = [(root, 0)], 0
    while waiting:
        folder, level = waiting.pop()
        visited += 1
        if visited > MAX_FOLDERS:
            yield root, f"holds more than {MAX_FOLDERS} folders: name some below it"
            return
        try:
            if is_run(folder):
                yield folder, ""
                continue
            if level == depth:
                continue
            with os.scandir(folder) as entries:
                below = [e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
        except OSError as error:
            yield folder, error.strerror or str(error)
            continue
        waiting += [(folder / name, level + 1) for name in sorted(below, reverse=True)]


def read_run(path: Path, now: float | None = None) -> RunEntry:
    """What a run's files say; a run that cannot be read has the status ``unreadable`` and the reason."""
    try:
        return _read_run(path, time.time() if now is None else now)
    except InputError as error:
        return RunEntry(path, "unreadable", str(error))
    except OSError as error:
        return RunEntry(path, "unreadable", error.strerror or str(error))


def _read_run(path: Path, now: float) -> RunEntry:
    facts = _facts(path)
    event, age_s = last_event(path), _age_s(path, now)
    if facts is None:
        status, detail = _without_checkpoint(event, age_s)
        return RunEntry(path, status, detail, run_id=text(event, "run_id"))
    progress = facts.progress
    status, detail = _status(facts, event, age_s)
    sessions = sessions_of(path, facts.run_id)
    return RunEntry(
        path, status, detail, facts, facts.run_id, whole(progress, "epoch"), whole(progress, "step"),
        number(progress, "best_val_loss"), number(progress, "elapsed_s"),
        text(sessions[0], "started_utc") if sessions else "", len(sessions), _test_score(path, facts),
    )  # fmt: skip


def _facts(path: Path) -> RunFacts | None:
    """Of ``last``, else of ``best``; None where there is neither.

    Raises:
        InputError: if there is one, and none can be read.
    """
    problem: InputError | None = None
    for name in _CHECKPOINTS:
        folder = path / name
        if not (folder.exists() or folder.with_name(f"{name}.previous").exists()):
            continue
        try:
            facts = read_facts(folder)
            if not facts.config or not facts.progress:
                raise InputError(STATE_NAME, "holds no configuration or no progress", where=str(folder))
            return facts
        except InputError as error:
            problem = problem or error
    if problem is not None:
        raise problem
    return None


def _status(facts: RunFacts, event: Plain, age_s: float | None) -> tuple[str, str]:
    stopped, name = text(facts.progress, "stopped"), text(event, "event")
    step, total = whole(facts.progress, "step") or 0, whole(facts.plan, "total_steps")
    where = f"step {step}{f' of {total}' if total else ''}"
    if stopped in ("completed", "early", "deadline") and not (name and name not in _ENDED and _is_fresh(age_s)):
        return stopped, ""
    if name in ("failed", "rank_lost"):
        reason = " ".join(text(table(event, "fields"), "error").split())[:200]
        return "failed", f"{reason or name}; --resume continues at {where}"
    if name != "interrupted" and _is_fresh(age_s):
        return "running", f"{where}; last sign of life {age_s or 0:.0f} s ago"
    return "interrupted", f"--resume continues at {where}"


def _without_checkpoint(event: Plain, age_s: float | None) -> tuple[str, str]:
    name = text(event, "event")
    if name not in _ENDED and _is_fresh(age_s):
        return "running", f"nothing saved yet; last sign of life {age_s or 0:.0f} s ago"
    reason = " ".join(text(table(event, "fields"), "error").split())[:200]
    return "failed" if name in ("failed", "rank_lost") else "interrupted", "nothing was saved" + (
        f": {reason}" if reason else ""
    )


def _is_fresh(age_s: float | None) -> bool:
    return age_s is not None and age_s < QUIET_S


def _age_s(path: Path, now: float) -> float | None:
    """Seconds since the run last wrote anything; None where it never did."""
    newest: float | None = None
    for place in (path / LOG_FILE, path / METRICS_FILE, path / "last" / STATE_NAME):
        try:
            newest = max(newest or 0.0, place.stat().st_mtime)
        except OSError:
            continue
    return None if newest is None else max(0.0, now - newest)


def last_event(path: Path) -> dict[str, object]:
    """The last whole line of ``log.jsonl``; empty where there is none."""
    try:
        check_file(path / LOG_FILE, LOG_FILE)
        with (path / LOG_FILE).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).split(b"\n")[:-1]
    except (OSError, InputError):
        return {}
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            return event
    return {}


def _test_score(path: Path, facts: RunFacts) -> TestScore | None:
    """The evaluation in ``RUN/evaluation``, held against the weights that ``best`` has now."""
    stored = _json_object(path / "evaluation" / "evaluation.json")
    data, model = table(stored, "data"), table(stored, "model")
    if not stored or text(data, "scope") != "test split":
        return None
    n_curves = whole(stored, "n_curves") or 0
    rows = text(data, "rows_sha256") or f"{text(facts.part('test'), 'rows_hash')}, {n_curves}"
    interval = stored.get("gmfe_ci95")
    ends = [number({"end": end}, "end") for end in interval] if isinstance(interval, list) else []
    low, high = ends if len(ends) == 2 else (None, None)
    judged, note = text(model, "weights_sha256"), ""
    if judged and judged != _best_weights(path, facts):
        note = "of earlier weights"
    return TestScore(
        number(stored, "gmfe"), None if low is None or high is None else (low, high), n_curves,
        f"{text(data, 'sha256')}/{rows}", note,
    )  # fmt: skip


def _best_weights(path: Path, facts: RunFacts) -> str:
    try:
        return read_facts(path / "best").weights_sha256
    except InputError:
        return facts.weights_sha256


def _json_object(path: Path) -> dict[str, object]:
    try:
        check_file(path, path.name, _MAX_JSON_BYTES)
        value = json.loads(path.read_text(encoding="utf-8"))
        check_plain(value)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

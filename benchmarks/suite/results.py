"""Where results live between runs: one JSON a job, named by what it was and by the code that made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.suite.plan import Job

FINISHED = ("done", "refused")
"""What need not be tried again with the same code."""
Result = dict[str, Any]


class ResultStore:
    """Results of jobs in a folder.

    Args:
        folder: Made when something is written.
        code: Hash of the code that a job's result depends on.
        any_code: Whether the newest result of a job counts whatever code made it.
    """

    def __init__(self, folder: Path, code: Callable[[Job], str], any_code: bool = False) -> None:
        self.folder, self.code, self.any_code = folder, code, any_code

    def path(self, job: Job) -> Path:
        """Where the result of a job by this code goes."""
        return self.folder / f"{job.name}-{job.key}-{self.code(job)}.json"

    def load(self, job: Job) -> Result | None:
        """The result of a job, or None; a damaged file is none."""
        paths = [self.path(job)]
        if self.any_code:
            found = self.folder.glob(f"{job.name}-{job.key}-*.json")
            paths = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
        for path in paths:
            try:
                result = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(result, dict) and {"job", "status", "rows"} <= set(result):
                return result | {"other_code": path != self.path(job)}
        return None

    def load_all(self, jobs: Iterable[Job]) -> list[Result]:
        """A result for each job, in order; ``not run`` where there is none."""
        return [self.load(job) or not_run(job) for job in jobs]

    def remaining(self, jobs: Iterable[Job]) -> list[Job]:
        """Jobs without a finished result."""
        return [job for job in jobs if (self.load(job) or {}).get("status") not in FINISHED]


def not_run(job: Job, status: str = "not run", reason: str = "") -> Result:
    """A result that says that there is none."""
    return {"job": asdict(job), "status": status, "reason": reason, "rows": []}

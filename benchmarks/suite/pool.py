"""Jobs side by side, each in a process of its own, so that the crash of one is a row of the table and not the end.

Processes are forked from a server that has imported everything beforehand: a start costs milliseconds, and code that
is edited during a run does not enter it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from benchmarks.suite.plan import DataSpec, Job, expected_minutes
from benchmarks.suite.results import Result, ResultStore, not_run
from benchmarks.suite.work import make_data, perform_to_file
from perfuse.data.simulation import THREAD_VARIABLES
from perfuse.evaluation.files import write_json

PRELOAD = "benchmarks.suite.preload"
GRACE_S = 900.0
"""Seconds that a job may take beyond twice its budget, for data, judging and start-up."""


@dataclass
class _Running:
    process: ForkServerProcess
    label: str
    deadline: float
    job: Job | None = None


class Pool:
    """Runs jobs.

    Args:
        data, runs: Folders for simulated data and for runs.
        store: Where results go.
        workers: Jobs at a time.
        say: Told of progress.
        perform: What a child does with a job (tests put something else here).
        preload: Modules that are imported once for all jobs.
    """

    def __init__(
        self, data: Path, runs: Path, store: ResultStore, workers: int, say: Callable[[str], None] | None = None,
        perform: Callable[[Job, Path, Path, Path], object] = perform_to_file, preload: Sequence[str] = (PRELOAD,),
    ) -> None:  # fmt: skip
        self.data, self.runs, self.store, self.workers, self.perform = data, runs, store, workers, perform
        self.say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # the server reads it when it loads its libraries
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(preload))

    def simulate(self, jobs: Sequence[Job]) -> None:
        """Make every data set that the jobs need.

        Raises:
            SystemExit: when one cannot be made: nothing could be judged on it.
        """
        self.data.mkdir(parents=True, exist_ok=True)
        wanted = [s for s in dict.fromkeys(s for job in jobs for s in job.data()) if not self._has(s)]
        tasks = [partial(self._simulate_one, spec) for spec in sorted(wanted, key=lambda s: -s.n)]
        self._all(tasks, self._check_data)

    def _simulate_one(self, spec: DataSpec) -> _Running:
        return _Running(self._start(make_data, spec, self.data), spec.folder, time.monotonic() + GRACE_S)

    def _has(self, spec: DataSpec) -> bool:
        return (self.data / spec.folder).exists()

    def _check_data(self, ended: _Running, reason: str) -> None:
        if reason:
            raise SystemExit(f"data set {ended.label} could not be simulated: {reason}")

    def run(self, jobs: Sequence[Job]) -> None:
        """Do the jobs, in order, ``workers`` at a time."""
        for folder in (self.store.folder, self.runs):
            folder.mkdir(parents=True, exist_ok=True)
        done, began = 0, time.monotonic()

        def finished(ended: _Running, reason: str) -> None:
            nonlocal done
            job, done = ended.job, done + 1
            assert job is not None
            if reason or not self.store.path(job).exists():
                write_json(not_run(job, "crashed", reason or "it left no result"), self.store.path(job))
            result = self.store.load(job) or not_run(job)
            minutes, left = (time.monotonic() - began) / 60, expected_minutes(jobs[done:], self.workers)
            self.say(f"[{done}/{len(jobs)}, {minutes:.1f} min, ~{left:.0f} left] {job.name}: {_told(result)}")

        self._all([partial(self._begin, job) for job in jobs], finished)

    def _begin(self, job: Job) -> _Running:
        self.store.path(job).unlink(missing_ok=True)
        process = self._start(self.perform, job, self.data, self.runs, self.store.path(job))
        return _Running(process, job.name, time.monotonic() + 120 * job.minutes + GRACE_S, job)

    def _start(self, target: Callable[..., object], *arguments: object) -> ForkServerProcess:
        process = self.context.Process(target=target, args=arguments)
        process.start()
        return process

    def _all(self, tasks: Sequence[Callable[[], _Running]], ended: Callable[[_Running, str], None]) -> None:
        """Start each task when there is room; tell ``ended`` of every end, with "" or what went wrong."""
        running: list[_Running] = []
        waiting = list(tasks)
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    running.append(waiting.pop(0)())
                wait([r.process.sentinel for r in running], timeout=1.0)
                for r in list(running):
                    late = r.process.is_alive() and time.monotonic() > r.deadline
                    if late:
                        r.process.kill()
                    elif r.process.is_alive():
                        continue
                    r.process.join()
                    running.remove(r)
                    code = r.process.exitcode
                    ended(r, "it took too long and was stopped" if late else f"exit code {code}" if code else "")
        finally:
            for r in running:
                r.process.kill()
                r.process.join()


def _told(result: Result) -> str:
    """A result in a few words."""
    if reached := result.get("reached"):
        found = f"{reached['seconds']:.3g} s" if reached["seconds"] else f"not there after {reached['trained_s']:.0f} s"
        return f"{result['status']}: {found}"
    rows = [row for row in result["rows"] if row["gmfe"] is not None]
    gmfe = ", ".join(f"{row['arm']} {row['test']} {row['gmfe']:.5g}" for row in rows)
    return f"{result['status']}{': ' + result['reason'] if result['reason'] else ''} {gmfe}".rstrip()

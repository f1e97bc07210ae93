"""``python -m benchmarks.suite``: run what has no result yet, then write tables and figures.

A finished job is not done again: its result is named by its definition and by a hash of the source files that it
depends on. Ctrl-C stops the run; the same command goes on with it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from benchmarks.suite.plan import ROOT, SUITE_FILE, Job, Suite, expected_minutes, load_suite, make_jobs
from benchmarks.suite.results import ResultStore

DATA_MARKER = ".perfuse-suite-data"
"""The file by which the suite knows a folder of simulated data as its own."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description="The task suite T1-T7.")
    parser.add_argument("--profile", default="full", help="full or quick: how much of everything (default full)")
    parser.add_argument("--jobs", type=int, default=2, help="jobs at a time, one thread each (default 2)")
    parser.add_argument("--task", nargs="+", default=[], metavar="ID", help="only these tasks")
    parser.add_argument(
        "--arm", nargs="+", default=[], metavar="NAME", help="only these arms; `flux: ...` are ablations"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="results and data (default benchmark-results/suite-PROFILE)"
    )
    parser.add_argument(
        "--docs", action="store_true", help="also write docs/benchmarks.md, its detail page and figures"
    )
    parser.add_argument("--report-only", action="store_true", help="run nothing, write what there is")
    parser.add_argument(
        "--any-code", action="store_true", help="count results of other versions of the code, and say so"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the jobs that are left and the time they should take"
    )
    speed = ROOT / "benchmark-results" / "speed.json"
    parser.add_argument("--speed", type=Path, default=speed, help="results of benchmarks/speed.py, for its targets")
    parser.add_argument("--suite", type=Path, default=SUITE_FILE, help="the plan (default benchmarks/suite.toml)")
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: need at least 1")
    if args.docs and (args.task or args.arm or args.profile != "full"):
        parser.error("--docs needs the whole of profile full: no --task, no --arm")
    args.out = (args.out or ROOT / "benchmark-results" / f"suite-{args.profile}").resolve()
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run and report; 1 when a job failed."""
    args = parse(arguments)
    suite = load_suite(args.suite)
    jobs = make_jobs(suite, args.profile, args.task, args.arm)
    from benchmarks.suite.sources import code_hash

    store = ResultStore(args.out / "results", code_hash, args.any_code)
    left = store.remaining(jobs)
    if args.dry_run:
        _list(jobs, left, args.jobs)
        return 0
    began = time.monotonic()
    if left and not args.report_only:
        try:
            _run(args, store, jobs, left)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            return 130
    return _report(args, suite, store, jobs, time.monotonic() - began)


def _list(jobs: list[Job], left: list[Job], workers: int) -> None:
    for job in left:
        print(f"{job.name}  {job.minutes:g} min")
    minutes = expected_minutes(left, workers)
    print(f"{len(left)} of {len(jobs)} jobs are left, about {minutes:.0f} min with {workers} at a time")


def _run(args: argparse.Namespace, store: ResultStore, jobs: list[Job], left: list[Job]) -> None:
    from benchmarks.suite.pool import Pool

    print(
        f"{len(left)} of {len(jobs)} jobs, {args.jobs} at a time, about {expected_minutes(left, args.jobs):.0f} min",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    pool = Pool(_data_folder(args.out / "data"), args.out / "runs", store, args.jobs)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the children end too
    pool.simulate(left)
    pool.run(left)


def _data_folder(folder: Path) -> Path:
    """Where simulated data of this version lie; those of others are removed, they are large and quickly made.

    Removed are only folders that the suite made itself: named by a hash, with its marker inside.
    """
    from benchmarks.suite.sources import data_hash

    current = folder / data_hash()
    for other in folder.glob("*"):
        is_own = re.fullmatch(r"[0-9a-f]{12}", other.name) and (other / DATA_MARKER).is_file()
        if is_own and other.name != current.name and not other.is_symlink():
            shutil.rmtree(other)
    current.mkdir(parents=True, exist_ok=True)
    (current / DATA_MARKER).touch()
    return current


def _report(args: argparse.Namespace, suite: Suite, store: ResultStore, jobs: list[Job], seconds: float) -> int:
    from benchmarks.suite.page import write_pages
    from benchmarks.suite.summary import Summary

    summary = Summary(suite, store.load_all(jobs))
    written = write_pages(summary, args, seconds)
    for path in written:
        print(path)
    bad = summary.unfinished()
    for result in bad:
        job = result["job"]
        print(
            f"{job['task']}, {job['arm']}, seed {job['seed']}: {result['status']} {result['reason']}", file=sys.stderr
        )
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())

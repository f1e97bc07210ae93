"""Simulating, and reading back, as many curves as asked: rate by workers, resident memory, and shuffled reads.

    python benchmarks/scale.py                 # 100,000 curves, 1 and 2 processes
    python benchmarks/scale.py --n 1000000     # 13 GB of disk

Memory is RssAnon (a memory map's pages are not the program's), sampled every 50 ms over this process and its children.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/scale.py

from benchmarks.common import machine, machine_line
from perfuse.data.simulate import simulate_block
from perfuse.data.simulation import simulate_dataset
from perfuse.data.store import CurveStore
from perfuse.data.table import dose_events, system_parameters
from perfuse.data.tasks import draw_block
from perfuse.pk.mechanistic import solve

BATCH = 256


class MemoryWatch:
    """Peak RssAnon, MB: of this process, of its largest child, and of all of them at one time."""

    def __enter__(self) -> MemoryWatch:
        self.own = self.child = self.all = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            own = rss_anon_mb(os.getpid())
            children = [rss_anon_mb(child) for child in descendants(os.getpid())]
            self.own = max(self.own, own)
            self.child = max(self.child, *children, 0.0)
            self.all = max(self.all, own + sum(children))


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and theirs."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread that ended meanwhile
            for child in map(int, path.read_text().split()):
                found += [child, *descendants(child)]
    return found


def rss_anon_mb(pid: int | str) -> float:
    """Resident anonymous memory of a process (or of "self"), MB; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def solver_share(task: str) -> float:
    """Share of a block's time that the solver takes, one thread."""
    torch.set_num_threads(1)
    table = draw_block(task, 0, 0)
    system, doses, time_h = system_parameters(table), dose_events(table), torch.as_tensor(table.time_h)
    simulate_block(task, 0, 0)
    best = {"solver": float("inf"), "block": float("inf")}
    for i in range(12):
        for name, run in (
            ("solver", lambda: solve(system, doses, time_h)),
            ("block", lambda i=i: simulate_block(task, 1, i)),
        ):
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    return best["solver"] / best["block"]


def shuffled_read(path: Path, batches: int = 400) -> dict[str, float]:
    """GB/s and ms of shuffled batches of 256: by the store, by a bare gather of the same bytes of the same map, and by
    a plain copy of as many bytes that lie together.

    The gather copies rows of the columns with a time axis (99 % of the bytes) and nothing else, in the leanest way
    that NumPy has. Every measure is the median batch of the best of three rounds, by turns.
    """
    store = CurveStore.open(path)
    random = np.random.default_rng(0)
    rows = [random.integers(0, len(store), BATCH) for _ in range(batches)]
    shards = [store._shards[i] for i in range(len(store.manifest.shards))]
    offsets, large = store.shard_offsets, [[s.views[n] for s in shards] for n in ("conc_mg_l", "time_h", "censored")]
    flat = [[view.reshape(len(view), -1) for view in views] for views in large]
    size = BATCH * sum(views[0][0].nbytes for views in large)
    together, copied, at = random.random(64 * size // 8), np.empty(size // 8), 0  # 220 MB: beyond the caches

    def bare(batch: np.ndarray) -> None:
        shard = np.searchsorted(offsets, batch, side="right") - 1
        local = (batch - offsets[shard]).tolist()
        for views in flat:
            np.concatenate([views[s][r] for s, r in zip(shard.tolist(), local, strict=True)])

    def copy(_: np.ndarray) -> None:
        nonlocal at
        at = (at + 1) % 64
        copied[:] = together[at * (size // 8) : (at + 1) * (size // 8)]

    best = {"store": float("inf"), "gather": float("inf"), "copy": float("inf")}
    for batch in rows:  # into the page cache, as far as it goes
        store.take(batch)
    for _ in range(3):
        for name, read in (("store", store.take), ("gather", bare), ("copy", copy)):
            seconds = []
            for batch in rows:
                began = time.perf_counter()
                read(batch)
                seconds.append(time.perf_counter() - began)
            best[name] = min(best[name], float(np.median(seconds)))
    return {f"{k}, GB/s": size / v / 1e9 for k, v in best.items()} | {f"{k}, ms": 1e3 * v for k, v in best.items()}


def main(arguments: list[str] | None = None) -> None:
    """Print the figures as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--task", default="T1")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dir", type=Path, default=None, help="where to write (default: a temporary folder)")
    args = parser.parse_args(arguments)
    print(machine_line(machine()))
    print(f"\nsolver's share of a {args.task} block, one thread: {100 * solver_share(args.task):.0f} %")
    folder = Path(tempfile.mkdtemp(dir=args.dir))
    try:
        print("\n| processes | curves | s | curves/s | GB | peak RssAnon, driver / largest worker / all, MB |")
        print("|---|---|---|---|---|---|")
        for workers in args.workers:
            out = folder / str(workers)
            with MemoryWatch() as memory:
                report = simulate_dataset(args.task, args.n, 0, out, workers=workers)
            peak_mb = f"{memory.own:.0f} / {memory.child:.0f} / {memory.all:.0f}"
            print(f"| {workers} | {report.n_curves:,} | {report.seconds:.1f} | {report.rate_curves_s:,.0f} | "
                  f"{report.n_bytes / 1e9:.2f} | {peak_mb} |", flush=True)  # fmt: skip
            if workers != args.workers[-1]:
                shutil.rmtree(out)
        with MemoryWatch() as memory:
            read = shuffled_read(folder / str(args.workers[-1]))
        print(
            f"\nread back shuffled, batches of {BATCH} (concentrations, times and censoring count): "
            + "; ".join(f"{name} {value:.2f}" for name, value in read.items())
            + f"; peak RssAnon {memory.own:.0f} MB"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

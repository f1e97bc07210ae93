"""Training on a million curves: memory throughout, the loader's share of a step, and a stop in mid-epoch.

    python benchmarks/big_data.py                          # 1,000,000 curves, 14 GB of disk
    python benchmarks/big_data.py --n 200000 --steps 100

Memory is RssAnon (a memory map's pages are not the program's), sampled every 20 ms from before the data are opened to
the end of the run. The loader's share is the time that the loop waits for batches over the time between the first
and the last of them, validation left out.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/big_data.py

import numpy as np
import torch

from benchmarks.common import machine, machine_line
from benchmarks.scale import rss_anon_mb
from perfuse.config import RunConfig
from perfuse.data import order
from perfuse.data.loader import CurveLoader, LoadedBatch
from perfuse.data.simulate import simulate_task
from perfuse.data.simulation import simulate_dataset
from perfuse.data.sources import open_source
from perfuse.data.store import write_dataset
from perfuse.data.table import CurveTable
from perfuse.training.run import train


class Watch:
    """Peaks of this process's RssAnon, MB, by phase."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}
        self._phase = "import"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def phase(self, name: str) -> None:
        """What comes next is of this phase."""
        self._phase = name

    def end(self) -> float:
        """The greatest of all."""
        self._stop.set()
        self._thread.join()
        return max(self.peaks.values())

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            phase = self._phase
            self.peaks[phase] = max(self.peaks.get(phase, 0.0), rss_anon_mb_self())


def rss_anon_mb_self() -> float:
    """RssAnon of this process, MB."""
    return rss_anon_mb("self")


class Meter:
    """Times how long the training loop waits for its batches, and notes which rows came."""

    def __init__(self, watch: Watch) -> None:
        self.waited_s, self.between_s, self.curves = 0.0, 0.0, 0
        self.rows: list[np.ndarray] = []
        self._watch = watch

    def __enter__(self) -> Meter:
        self._epoch: Callable[..., Iterator[LoadedBatch]] = CurveLoader.epoch
        original, meter = self._epoch, self

        def epoch(loader: CurveLoader, number: int, start_batch: int = 0) -> Iterator[LoadedBatch]:
            batches = original(loader, number, start_batch)
            return meter.timed(batches) if loader.shuffle else batches

        CurveLoader.epoch = epoch  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        CurveLoader.epoch = self._epoch  # type: ignore[method-assign]

    def timed(self, batches: Iterator[LoadedBatch]) -> Iterator[LoadedBatch]:
        """The same batches; the first, before which a thread starts and files are read ahead, is not counted."""
        self.rows = []  # of the run's one epoch alone, not of what was looked at before its first step
        for i, loaded in enumerate(iter(lambda: self._next(batches), None)):
            if i:
                self.waited_s += self._last_wait_s
                self.curves += len(loaded.rows)
            self.rows.append(loaded.rows)
            self._watch.phase("steps")
            began = time.perf_counter()
            yield loaded
            if i:
                self.between_s += time.perf_counter() - began

    def _next(self, batches: Iterator[LoadedBatch]) -> LoadedBatch | None:
        began = time.perf_counter()
        loaded = next(batches, None)
        self._last_wait_s = time.perf_counter() - began
        return loaded


def configuration(model: str, steps: int) -> RunConfig:
    """A model at its defaults, for so many steps."""
    return RunConfig.model_validate(
        {"model": {"name": model}, "training": {"max_steps": steps, "tensorboard": False, "device": "cpu"}}
    )


def one_run(data: Path, model: str, steps: int, out: Path, verify: bool = True) -> tuple[dict[str, float], Meter]:
    """Open the data, train for some steps, and say what that took."""
    watch = Watch()
    watch.phase("open")
    began = time.perf_counter()
    source = open_source(data, verify=verify)
    opened = time.perf_counter()
    watch.phase("start")
    with Meter(watch) as meter:
        train(source, configuration(model, steps), out, data_path=str(data), resume=out.exists())
    ended = time.perf_counter()
    peak = watch.end()
    total = meter.waited_s + meter.between_s
    figures = {
        "open, s": opened - began, "train, s": ended - opened, "peak RssAnon, MB": peak,
        **{f"{name}, MB": value for name, value in watch.peaks.items()},
        "step, ms": 1e3 * total / max(len(meter.rows) - 1, 1), "loader's share, %": 100 * meter.waited_s / total,
        "curves/s": meter.curves / total,
    }  # fmt: skip
    return figures, meter


def resumed_rows(data: Path, model: str, steps: int, folder: Path) -> bool:
    """Whether a run that is stopped in mid-epoch and continued visits the rows of one that is not."""
    whole = one_run(data, model, steps, folder / "whole", verify=False)[1].rows
    first = one_run(data, model, steps // 3, folder / "stopped", verify=False)[1].rows
    rest = one_run(data, model, steps, folder / "stopped", verify=False)[1].rows
    together = first + rest
    return all(np.array_equal(a, b) for a, b in zip(together, whole, strict=True))


def shuffled(table: CurveTable, folder: Path, shards: int) -> Path:
    """A dataset of so many shards."""
    parts = np.array_split(np.arange(len(table)), shards)
    return write_dataset((table.take(part) for part in parts), folder, generator={}, seed=0)


def shuffle_quality(folder: Path, n: int, shards: int, steps: int, seeds: int) -> None:
    """Rows in windows of eight shards against rows permuted as a whole: batches' spread, and the loss after training.

    The curves are those of T1 as they are drawn, and sorted by hepatic clearance, which is the worst that can be: then
    a shard holds one kind of drug alone. Batches' spread is the variance of the mean of ln CL over batches of 128,
    over that of independent draws.
    """
    table = simulate_task("T1", n, 0)
    by_clearance = table.take(np.argsort(table.elimination_l_h[:, 0], kind="stable"))
    print("\n| curves | order | spread of batches | validation loss by seed | mean |\n|---|---|---|---|---|")
    for name, curves in (("as drawn", table), ("sorted by clearance", by_clearance)):
        data = shuffled(curves, folder / name.replace(" ", "-"), shards)
        ln_cl = np.log(curves.elimination_l_h[:, 0])
        for label, window in (("whole", n), ("windows", n * order.WINDOW_SHARDS // shards)):
            order.WINDOW_CURVES = window  # type: ignore[misc]
            source = open_source(data, verify=False)
            loader = CurveLoader(source, np.arange(n), 128, 0)
            batches = [b for e in range(20) for b, _ in loader._order.batches(e, 0, 128) if len(b) == 128]
            spread = np.var([ln_cl[b].mean() for b in batches]) / (ln_cl.var() / 128)
            losses = []
            for seed in range(seeds):
                config = configuration("mlp", steps).model_copy(update={"seed": seed})
                result = train(source, config, folder / f"{name}-{label}-{seed}".replace(" ", "-"))
                losses.append(result.validation["val_loss"])
            shown = ", ".join(f"{loss:.3g}" for loss in losses)
            print(f"| {name} | {label} | {spread:.2f} | {shown} | {np.mean(losses):.3g} |", flush=True)
    order.WINDOW_CURVES = 65_536  # type: ignore[misc]


def main(arguments: list[str] | None = None) -> None:
    """Print the figures as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--models", nargs="*", default=["flux", "mlp"])
    parser.add_argument("--data", type=Path, default=None, help="a dataset (default: simulated here, then removed)")
    parser.add_argument("--dir", type=Path, default=None, help="where to write (default: a temporary folder)")
    parser.add_argument("--resume", action="store_true", help="also stop in mid-epoch, continue, and compare the rows")
    parser.add_argument("--shuffle", action="store_true", help="also compare the shuffle with a whole permutation")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(machine_line(machine()))
    folder = Path(tempfile.mkdtemp(dir=args.dir))
    try:
        data = args.data
        if data is None and args.models + ["x"] * args.resume:
            data = folder / "data"
            simulate_dataset("T1", args.n, 0, data, workers=2)
        for model in args.models:
            figures, _ = one_run(data, model, args.steps, folder / model)
            print(
                f"\n{model}, {args.steps} steps: " + "; ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True
            )
        if args.resume:
            same = resumed_rows(data, "mlp", args.steps, folder)
            print(
                f"\nstopped after {args.steps // 3} steps in mid-epoch and continued: the same rows: {same}", flush=True
            )
        if args.shuffle:
            shuffle_quality(folder, 20_000, 80, 600, 2)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

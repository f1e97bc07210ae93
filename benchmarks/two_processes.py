"""Prediction on all cores by one process a core, beside LSODA: what two cores do when threads are no help.

    python benchmarks/two_processes.py [--processes 2] [--rounds 4] [--out FOLDER]

Each process has one thread, its own trained `flux` and `loglinear-rates` (prior "none", Gauss-Newton on 80 curves of
T1, then its steps) and its own curves; all start together, and their rates are summed. LSODA has no use for a second
core on one curve, so it runs in one process (`ode_reference`), in turns with the others.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/two_processes.py

from benchmarks.common import Spread, machine, machine_line, markdown_table, rate, write_results
from benchmarks.ode_reference import OdeReference, solve_lsoda
from perfuse.config import MODEL_CONFIGS, RunConfig, TrainingConfig
from perfuse.data.simulate import simulate_task
from perfuse.evaluation.evaluate import model_predictor
from perfuse.training.load import load_model
from perfuse.training.run import train

MODELS = ("flux", "loglinear-rates")
BATCH = 512
_SEED_OF_TRAINING, _SEED_OF_CURVES = 1, 101


def trained(model: str, folder: Path) -> None:
    """A short run on 100 curves of T1."""
    training = TrainingConfig(epochs=5, tensorboard=False, device="cpu")
    config = RunConfig(model=MODEL_CONFIGS[model](), training=training)
    train(simulate_task("T1", 100, _SEED_OF_TRAINING), config, folder)


def _work(number: int, runs: dict[str, Path], start: Barrier, asked: Connection, seconds: float) -> None:
    """Predict whenever asked for a model's rate, starting together with the other processes."""
    torch.set_num_threads(1)
    table = simulate_task("T1", BATCH, _SEED_OF_CURVES + number)
    predictors = {name: model_predictor(load_model(run).model) for name, run in runs.items()}
    for predict in predictors.values():
        predict(table)
    while name := asked.recv():
        start.wait()
        asked.send(rate(partial(predictors[name], table), BATCH, seconds))


def compare(processes: int, rounds: int, seconds: float) -> tuple[str, dict[str, Any]]:
    """The table and its numbers; arms take turns, and ratios are taken within rounds."""
    reference = OdeReference(simulate_task("T1", 64, _SEED_OF_CURVES))
    context = multiprocessing.get_context("spawn")
    rates: dict[str, list[float]] = {"LSODA": [], **{name: [] for name in MODELS}}
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: Path(folder) / name for name in MODELS}
        for name, run in runs.items():
            trained(name, run)
        start, pipes, workers = context.Barrier(processes), [], []
        for number in range(processes):
            ours, theirs = context.Pipe()
            workers.append(context.Process(target=_work, args=(number, runs, start, theirs, seconds), daemon=True))
            pipes.append(ours)
            workers[-1].start()
        for _ in range(rounds):
            rates["LSODA"].append(reference.solve_for(solve_lsoda, seconds))
            for name in MODELS:
                for pipe in pipes:
                    pipe.send(name)
                rates[name].append(sum(pipe.recv() for pipe in pipes))
        for pipe, worker in zip(pipes, workers, strict=True):
            pipe.send("")
            worker.join()
    return table_of(rates, processes)


def table_of(rates: dict[str, list[float]], processes: int) -> tuple[str, dict[str, Any]]:
    """Text and numbers of what was measured, curves/s by arm and round."""
    ratios = {n: [a / b for a, b in zip(rates[n], rates["LSODA"], strict=True)] for n in rates}
    added = [a / b - 1 for a, b in zip(rates["loglinear-rates"], rates["flux"], strict=True)]
    rows = [
        [name, str(1 if name == "LSODA" else processes), str(Spread.of(rates[name])), str(Spread.of(ratios[name]))]
        for name in rates
    ]
    overhead = Spread.of(added)
    text = "\n\n".join(
        (
            "# Prediction by one process a core, task T1",
            machine_line(machine()),
            markdown_table(("arm", "processes of one thread", "curves/s", "x solve_ivp LSODA"), rows),
            f"The network adds {overhead.median:.0%} ({overhead.low:.0%} to {overhead.high:.0%}) to the time of "
            f"`loglinear-rates`. Batches of {BATCH} curves of 14 organs x 100 times.",
        )
    )
    return text, {"processes": processes, "curves_per_s": rates, "ratios": ratios, "network_overhead": added}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description="Prediction by one process a core, beside LSODA.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn (default 3)")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    args = parser.parse_args()
    if args.processes < 1 or args.rounds < 1 or args.seconds <= 0:
        parser.error("--processes and --rounds need at least 1, --seconds more than 0")
    text, result = compare(args.processes, args.rounds, args.seconds)
    print(text)
    write_results(args.out, "two_processes", text, result)


if __name__ == "__main__":
    main()

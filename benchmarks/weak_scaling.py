"""What a second process brings to training: twice the curves in twice the batch, each process on a core of its own.

    python benchmarks/weak_scaling.py [--models flux mlp recurrent] [--rounds 3] [--out FOLDER]

Three arms take turns in every round, each a real ``perfuse train`` with one thread a process:

- one: one process, a batch of B curves;
- two: ``--devices 2``, a joint batch of 2 B curves;
- apart: two runs of one process at the same time, which share the machine and exchange nothing: what the machine itself
  allows two processes.

Rates are those of ``metrics.jsonl`` (training alone, without start-up, validation and saving) but for the first epoch.
Weak-scaling efficiency is rate(two) / (2 rate(one)); the engine's own share of what is lost is rate(two) / rate(apart).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/weak_scaling.py

from benchmarks.common import Spread, machine, machine_line, markdown_table, number, write_results
from perfuse.config import MODEL_CONFIGS, RunConfig, resolve
from perfuse.data.simulation import simulate_dataset

ARMS = ("one", "two", "apart")


def started(data: Path, out: Path, model: str, batch_size: int, epochs: int, devices: int) -> subprocess.Popen[bytes]:
    """A run of the command line, one thread a process; without a first fit, which is not trained in parallel."""
    config = out.with_suffix(".toml")
    start = 'start = "zero"\n' if model in ("flux", "loglinear-rates") else ""
    config.write_text(f'[model]\nname = "{model}"\n{start}')
    arguments = [
        "train", str(data), "--out", str(out), "--config", str(config), "--batch-size", str(batch_size), "--epochs",
        str(epochs), "--device", "cpu", "--devices", str(devices), "--no-tensorboard", "--quiet",
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen([sys.executable, "-m", "perfuse", *arguments], env=env)


def rate_of(run: Path) -> float:
    """Training curves/s over the epochs but the first."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [line["train_curves_per_s"] for line in lines if line["epoch"] > 1]
    return len(rates) / sum(1 / r for r in rates)


def run_arm(arm: str, folder: Path, model: str, batch_size: int, epochs: int) -> float:
    """Curves/s of one arm, all of its processes together."""
    runs = {"one": [("half", 1, 1)], "two": [("whole", 2, 2)], "apart": [("half", 1, 1)] * 2}[arm]
    place = Path(tempfile.mkdtemp(dir=folder))
    going = [
        started(folder / data, place / str(i), model, times * batch_size, epochs, devices)
        for i, (data, times, devices) in enumerate(runs)
    ]
    if any([process.wait() for process in going]):
        raise RuntimeError(f"a run of {model}, {arm}, has failed")
    return sum(rate_of(place / str(i)) for i in range(len(going)))


def _percent(values: list[float]) -> str:
    """Median, and from where to where."""
    spread = Spread.of(values)
    return f"{spread.median:.0%} ({spread.low:.0%}-{spread.high:.0%})"


def compare(models: list[str], rounds: int, curves: int, epochs: int) -> tuple[str, dict[str, Any]]:
    """The table and its numbers."""
    facts: dict[str, Any] = {"machine": machine(), "curves": curves, "epochs": epochs, "models": {}}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for data, n in (("half", curves), ("whole", 2 * curves)):
            simulate_dataset("T1", n, 0, folder / data)
        for model in models:
            batch_size = resolve(RunConfig(model=MODEL_CONFIGS[model]()), 10**6).training.batch_size
            assert batch_size is not None
            rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
            for _ in range(rounds):
                for arm in ARMS:
                    rates[arm].append(run_arm(arm, folder, model, batch_size, epochs))
            efficiency = [t / (2 * o) for t, o in zip(rates["two"], rates["one"], strict=True)]
            engine = [t / a for t, a in zip(rates["two"], rates["apart"], strict=True)]
            facts["models"][model] = {
                "batch_size": batch_size, "rates": rates, "efficiency": efficiency, "beside_apart": engine
            }  # fmt: skip
            rows.append([
                model, f"{batch_size} / {2 * batch_size}", *(number(Spread.of(rates[arm]).median) for arm in ARMS),
                _percent(efficiency), _percent(engine),
            ])  # fmt: skip
    head = ["model", "batch: one / two", "one, curves/s", "two", "apart", "two / (2 one)", "two / apart"]
    return f"{machine_line(facts['machine'])}\n\n{markdown_table(head, rows)}", facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["flux", "mlp", "recurrent"], choices=sorted(MODEL_CONFIGS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--curves", type=int, default=20_000, help="of one process")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args()
    text, facts = compare(options.models, options.rounds, options.curves, options.epochs)
    print(text)
    write_results(options.out, "weak-scaling", text, facts)


if __name__ == "__main__":
    main()

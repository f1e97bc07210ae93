"""Training and prediction curves/s of every model beside the plain loop and scipy's stiff solvers, in one run.

Task T1 (hub, 14 organs x 100 times). Arms take turns, forwards and backwards by turns, so that whatever else the
machine does hits all of them; a ratio is taken within each round, then median, least and greatest over rounds.
The plain loop is measured at batch 8 and at its best batch, each at whichever thread count serves it best.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/speed.py

from benchmarks.arms import (
    Arm,
    EngineRun,
    default_batch_size,
    onnx_arm,
    plain_prediction_arm,
    plain_training_arm,
    prediction_arm,
    solver_arm,
    training_arm,
)
from benchmarks.common import (
    LARGEST_NETWORK_OVERHEAD,
    Spread,
    cores,
    machine,
    machine_line,
    markdown_table,
    number,
    write_results,
)
from benchmarks.limits import Machine, Step, growth_table, limits_table
from benchmarks.ode_reference import SOLVERS, OdeReference
from benchmarks.plain_loop import BATCH_SIZES, PlainLoop, PlainSetting, scan
from perfuse.config import FluxConfig, RecurrentConfig
from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch

MODELS = ("flux", "loglinear-rates", "recurrent", "lstm", "mlp")
SMALL_BATCH = 8
PREDICTION_BATCH = 512
"""``perfuse evaluate``'s own."""
TRAINING_TARGETS = {"flux": 500.0, "recurrent": 100.0}
PREDICTION_TARGETS = {"flux": 250.0}
"""Times solve_ivp's LSODA, the solver as users of SciPy mostly call it."""
ODEINT = "odeint"
"""The same LSODA, stepped in compiled code: shown beside every verdict."""


@dataclass(frozen=True)
class Settings:
    """How long and how often things are measured."""

    models: tuple[str, ...] = MODELS
    small_batch_models: tuple[str, ...] = MODELS
    curves: int = 4096
    rounds: int = 4
    turn_s: float = 1.2
    warm_s: float = 6.0
    solver_s: float = 1.0
    scan_batch_sizes: tuple[int, ...] = BATCH_SIZES
    scan_s: float = 1.0
    threads: int = 2
    prediction_batch: int = PREDICTION_BATCH
    growth_batches: tuple[int, ...] = (8, 32, 128, 512, 2048)
    growth_times: tuple[int, ...] = (25, 100, 400)
    usual_batch: int = 256
    onnx: bool = True
    seed: int = 0


QUICK = Settings(
    small_batch_models=("flux", "recurrent"), curves=1024, rounds=2, turn_s=0.3, warm_s=0.7, solver_s=0.3,
    scan_batch_sizes=(8, 64), scan_s=0.2, growth_batches=(8, 128, 512),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """An arm with its rates, one per round, and its ratios to the references of the same round."""

    name: str
    batch_size: int
    threads: int
    curves_per_s: list[float]
    ratios: dict[str, list[float]]
    target: float | None

    def verdict(self, reference: str) -> str:
        """Target and whether the median ratio meets it."""
        if self.target is None:
            return ""
        met = Spread.of(self.ratios[reference]).median >= self.target
        beside = f" ({number(Spread.of(self.ratios[ODEINT]).median)} x odeint)" if ODEINT in self.ratios else ""
        return f">= {self.target:g}: {'met' if met else 'MISSED'}{beside}"


def measured(arms: Sequence[Arm], rounds: int, label: str) -> list[list[float]]:
    """Rates of every arm, one per round; the arms take turns, in reverse order every second round."""
    rates: list[list[float]] = [[] for _ in arms]
    for done in range(rounds):
        order = range(len(arms)) if done % 2 == 0 else reversed(range(len(arms)))
        for i in order:
            rates[i].append(arms[i].turn())
        print(f"{label}: round {done + 1} of {rounds}", file=sys.stderr, flush=True)
    return rates


def with_ratios(
    arms: Sequence[Arm], rates: list[list[float]], references: dict[str, list[int]], targets: dict[int, float]
) -> list[Row]:
    """Rows with ratios; where a reference is several arms, it is the fastest of them in each round."""
    fastest = {
        name: [max(r) for r in zip(*(rates[i] for i in members), strict=True)] for name, members in references.items()
    }
    return [
        Row(
            arm.name, arm.batch_size, arm.threads, mine,
            {name: [a / b for a, b in zip(mine, theirs, strict=True)] for name, theirs in fastest.items()},
            targets.get(i),
        )
        for i, (arm, mine) in enumerate(zip(arms, rates, strict=True))
    ]  # fmt: skip


def best_setting(settings: Sequence[PlainSetting]) -> PlainSetting:
    """The batch size at which the plain loop is fastest."""
    return max(settings, key=lambda s: s.curves_per_s)


def training_rows(s: Settings, runs: Sequence[EngineRun], loop: PlainLoop, plain: Sequence[PlainSetting]) -> list[Row]:
    """Training speeds; the first reference is the plain loop at batch 8, the second at its best batch."""
    small, best = plain[0], best_setting(plain)
    arms = [plain_training_arm(loop, p.batch_size, p.threads, s.turn_s) for p in dict.fromkeys((small, best))]
    references = {
        f"plain loop at batch {small.batch_size}": [0],
        f"plain loop at its best, batch {best.batch_size}": [len(arms) - 1],
    }
    first = len(arms)
    arms += [training_arm(run, s.threads) for run in runs]
    targets = {
        i: TRAINING_TARGETS[arm.name] for i, arm in enumerate(arms) if i >= first and arm.name in TRAINING_TARGETS
    }
    return with_ratios(arms, measured(arms, s.rounds, "training"), references, targets)


def prediction_rows(
    s: Settings, runs: Sequence[EngineRun], loop: PlainLoop, plain: Sequence[PlainSetting], reference: OdeReference
) -> list[Row]:
    """Prediction speeds; `flux` also on one thread, core for core against the solvers."""
    arms = [solver_arm(name, reference, solver, s.solver_s) for name, solver in SOLVERS.items()]
    lsoda = [i for i, arm in enumerate(arms) if "LSODA" in arm.name]
    odeint = [i for i, arm in enumerate(arms) if "odeint" in arm.name]
    best = best_setting(plain)
    arms.append(plain_prediction_arm(loop, best.batch_size, best.threads, s.solver_s))
    table = simulate_task("T1", s.prediction_batch, s.seed + 1)
    targets = {}
    for run in {r.model: r for r in reversed(runs)}.values():
        for threads in sorted({1, s.threads}, reverse=True) if run.model in PREDICTION_TARGETS else [s.threads]:
            if run.model in PREDICTION_TARGETS:
                targets[len(arms)] = PREDICTION_TARGETS[run.model]
            arms.append(prediction_arm(run.model, run.folder, table, threads, s.solver_s / 2))
        if s.onnx and run.model == "flux" and find_spec("onnxruntime") and find_spec("onnxscript"):
            arms.append(onnx_arm(run.model, run.folder, table, s.threads, s.solver_s / 2))
    references = {"solve_ivp LSODA (the faster way)": lsoda, ODEINT: odeint}
    return with_ratios(arms, measured(arms, s.rounds, "prediction"), references, targets)


def rows_table(rows: Sequence[Row], what: str) -> str:
    """Markdown; the target counts against the first reference."""
    references = list(rows[0].ratios)
    lines = [
        (
            row.name, str(row.batch_size), str(row.threads), str(Spread.of(row.curves_per_s)),
            *(str(Spread.of(row.ratios[name])) for name in references), row.verdict(references[0]),
        )
        for row in rows
    ]  # fmt: skip
    header = (what, "batch", "threads", "curves/s", *(f"x {name}" for name in references), "target")
    return markdown_table(header, lines)


def overhead(rows: Sequence[Row]) -> list[float] | None:
    """What the network adds to the time of `loglinear-rates`, per round, at the same threads; None without both."""
    rates = {(row.name, row.threads): row.curves_per_s for row in rows}
    threads = max(row.threads for row in rows)
    bare, full = rates.get(("loglinear-rates", threads)), rates.get(("flux", threads))
    return [a / b - 1 for a, b in zip(bare, full, strict=True)] if bare and full else None


def overhead_line(added: list[float] | None) -> str:
    """In words, with the target."""
    if added is None:
        return ""
    median = Spread.of(added).median
    met = "met" if median <= LARGEST_NETWORK_OVERHEAD else "MISSED"
    return (
        f"The network adds {median:.0%} ({min(added):.0%} to {max(added):.0%}) to the time that `loglinear-rates`, the "
        f"same propagator without a network, takes to predict (<= {LARGEST_NETWORK_OVERHEAD:.0%}: {met})."
    )


def training_words() -> str:
    """What is not equal in the comparison with the plain loop."""
    flux, recurrent = FluxConfig(), RecurrentConfig()
    return (
        f"Hidden sizes: {flux.hidden} in `flux`, {recurrent.hidden} in `recurrent` and in the plain loop, which has "
        f"`recurrent`'s: a ratio of `flux` is one of whole models as they are used, not of equally large networks."
    )


def prediction_words(rows: Sequence[Row]) -> str:
    """Which LSODA the target is about, and what the other one makes of it."""
    lines = [
        f"`{row.name}`, {row.threads} threads: {number(Spread.of(row.ratios[ODEINT]).median)} times odeint, which is "
        f"{'at least' if Spread.of(row.ratios[ODEINT]).median >= row.target else 'less than'} {row.target:g}."
        for row in rows
        if row.target is not None and ODEINT in row.ratios
    ]
    return (
        "Targets count against `solve_ivp`'s LSODA, which returns to Python between steps; `odeint` is the same LSODA "
        f"without that, so the part of a ratio that is Python's is not in its column. {' '.join(lines)}"
    )


def missed(rows: Sequence[Row]) -> list[str]:
    """The rows whose median misses their target, in words."""
    verdicts = [(row, row.verdict(next(iter(row.ratios)))) for row in rows]
    return [
        f"{row.name}, batch {row.batch_size}, {row.threads} threads: {verdict}"
        for row, verdict in verdicts
        if "MISSED" in verdict
    ]


def compare(s: Settings, work: Path) -> tuple[str, dict[str, object]]:
    """Measure everything; Markdown and plain data."""
    torch.set_num_threads(s.threads)
    facts = machine()
    table = simulate_task("T1", s.curves, s.seed)
    loop = PlainLoop(table, seed=s.seed)
    plain = scan(loop, s.scan_batch_sizes, sorted({1, s.threads}), s.scan_s)
    torch.set_num_threads(s.threads)
    print("plain loop scanned", file=sys.stderr, flush=True)
    wanted = [(m, default_batch_size(m)) for m in s.models] + [(m, SMALL_BATCH) for m in s.small_batch_models]
    wanted = sorted(set(wanted), key=lambda run: (MODELS.index(run[0]), -run[1]))
    runs = [EngineRun(model, batch_size, table, work, s.turn_s, s.warm_s) for model, batch_size in wanted]
    print("runs warmed up", file=sys.stderr, flush=True)
    training = training_rows(s, runs, loop, plain)
    prediction = prediction_rows(s, runs, loop, plain, OdeReference(table))
    added = overhead(prediction)
    torch.set_num_threads(s.threads)
    limits, limit_facts = limits_table(
        Machine.measured(s.scan_s), Step(to_batch(table.take(range(s.usual_batch)))), s.scan_s
    )
    growth, growth_facts = growth_table(s.threads, s.scan_s / 2, s.growth_batches, s.growth_times, usual=s.usual_batch)
    scanned = markdown_table(
        ("plain loop, batch", "faster with threads", "training curves/s"),
        [(str(p.batch_size), str(p.threads), f"{p.curves_per_s:.1f}") for p in plain],
    )
    share = loop.graph_share(SMALL_BATCH)
    text = (
        f"# Speed on task T1\n\n{machine_line(facts)}\nMedian (least-greatest) of {s.rounds} interleaved rounds; "
        f"ratios within rounds.\n\n## Training\n\n{rows_table(training, 'training')}\n\n"
        f"{training_words()}\n\n## Prediction\n\n"
        f"{rows_table(prediction, 'prediction')}\n\n{prediction_words(prediction)}\n\n"
        f"{overhead_line(added)}\n\n## The machine's limits\n\n{limits}\n\n"
        f"## How it grows\n\n{growth}\n\n## The plain loop over batch sizes\n\n{scanned}\n\n"
        f"Building graphs is {share:.1%} of its step at batch {SMALL_BATCH}."
    )
    result: dict[str, object] = {
        "machine": facts, "settings": asdict(s), "training": [asdict(r) for r in training],
        "prediction": [asdict(r) for r in prediction], "plain_scan": [asdict(p) for p in plain],
        "plain_graph_share": share, "network_overhead": added, "limits": limit_facts, "growth": growth_facts,
        "missed": [*missed([*training, *prediction]), *(line for line in [overhead_line(added)] if "MISSED" in line)],
    }  # fmt: skip
    return text, result


def main() -> int:
    """Measure, print and write; exit code 1 with ``--check`` when a target is missed."""
    parser = argparse.ArgumentParser(description="Training and prediction speed beside a plain loop and scipy.")
    parser.add_argument("--quick", action="store_true", help="about 30 s: fewer rounds, shorter turns, rough figures")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=None, help="default: all")
    parser.add_argument("--rounds", type=int, default=None, help="interleaved rounds (default 4; quick 2)")
    parser.add_argument("--threads", type=int, default=min(2, cores()), help="threads of the models (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="folder of speed.md and speed.json")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a target is missed")
    args = parser.parse_args()
    base = QUICK if args.quick else Settings()
    models = tuple(args.models or base.models)
    settings = replace(
        base, models=models, small_batch_models=tuple(m for m in base.small_batch_models if m in models),
        rounds=args.rounds or base.rounds, threads=args.threads, seed=args.seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        text, result = compare(settings, Path(work))
    print(text)
    write_results(args.out, "speed", text, result)
    return 1 if args.check and result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())

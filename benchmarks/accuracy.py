"""Accuracy within a time budget, through the command line as a user would: simulate, train, evaluate.

Task T1 (hub, fixed body, 100 times in 24 h). `flux` and `loglinear-rates` learn from 80 curves, `mlp` and
`recurrent` from 18,000; every run is judged on the same 2,000 fresh curves of another seed, beside the trivial
baselines and `loglinear-rates` fitted on that run's own training split. "80 curves" are all that the run gets:
its validation and test splits come out of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/accuracy.py

from benchmarks.common import Spread, machine, machine_line, markdown_table, write_results

TARGET_GMFE = {"flux": 1.01, "mlp": 1.01, "recurrent": 1.04}
FRESH_SEED_OFFSET = 1_000_000
"""Fresh curves of seed s are simulated with seed s + this."""


@dataclass(frozen=True)
class Job:
    """One training run: which model, how many curves, which budget."""

    model: str
    curves: int
    minutes: float


@dataclass(frozen=True)
class Outcome:
    """What a run gave on the fresh curves.

    Attributes:
        train_wall_s: Seconds of the whole `perfuse train` command, start-up included.
        beside: GMFE of every baseline on the same curves.
    """

    model: str
    curves: int
    minutes: float
    seed: int
    gmfe: float
    within_1_25: float
    r2: float
    train_wall_s: float
    train_curves_per_s: float | None
    predict_curves_per_s: float | None
    beside: dict[str, float]
    evaluation: dict[str, object]


def perfuse(*arguments: object) -> float:
    """Run one `perfuse` command and return its seconds.

    Raises:
        SystemExit: with the command's own error line when it fails.
    """
    command = [sys.executable, "-m", "perfuse", *map(str, arguments)]
    print("perfuse " + " ".join(map(str, arguments)), file=sys.stderr, flush=True)
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr.strip()}\n(exit code {done.returncode} of: {' '.join(command)})")
    return time.monotonic() - start


def dataset(work: Path, curves: int, seed: int) -> Path:
    """A simulated T1 dataset, made once."""
    folder = work / f"t1-{curves}-seed{seed}"
    if not folder.exists():
        perfuse("simulate", folder, "--task", "T1", "--n", curves, "--seed", seed, "--quiet")
    return folder


def last_rate(run: Path) -> float | None:
    """Training curves/s of the last line of the run's log that has one."""
    rate = None
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        rate = json.loads(line).get("train_curves_per_s") or rate
    return rate


def run_job(job: Job, seed: int, work: Path, fresh: Path) -> Outcome:
    """Train and judge."""
    run, report = work / f"{job.model}-{job.curves}-seed{seed}", work / f"{job.model}-{job.curves}-seed{seed}.json"
    prior = ("--prior", "none") if job.model == "flux" else ()
    wall_s = perfuse(
        "train", dataset(work, job.curves, seed), "--out", run, "--model", job.model, *prior,
        "--max-minutes", job.minutes, "--seed", seed, "--quiet",
    )  # fmt: skip
    perfuse("evaluate", run, fresh, "--json", report, "--quiet")
    evaluation = json.loads(report.read_text(encoding="utf-8"))
    return Outcome(
        **asdict(job), seed=seed, gmfe=evaluation["gmfe"], within_1_25=evaluation["within_1_25"], r2=evaluation["r2"],
        train_wall_s=round(wall_s, 1), train_curves_per_s=last_rate(run),
        predict_curves_per_s=evaluation["speed"]["predict_curves_per_s"],
        beside={name: result["gmfe"] for name, result in evaluation["baselines"].items()},
        evaluation={k: evaluation[k] for k in ("per_organ", "windows", "exposure", "n_curves", "n_values", "verdict")},
    )  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> str:
    """One row per model and one per baseline; median (min-max) over seeds."""
    rows: list[tuple[str, ...]] = []
    for model, curves in dict.fromkeys((o.model, o.curves) for o in outcomes):
        mine = [o for o in outcomes if (o.model, o.curves) == (model, curves)]
        gmfe, target = Spread.of([o.gmfe for o in mine]), TARGET_GMFE.get(model)
        verdict = "" if target is None else f"<= {target}: {'met' if gmfe.high <= target else 'MISSED'}"
        within = Spread.of([o.within_1_25 for o in mine])
        rows.append((
            model, f"{curves:,}", f"{mine[0].minutes:g}", _four(gmfe), f"{within.median:.2%}",
            f"{Spread.of([o.r2 for o in mine]).median:.5f}", f"{max(o.train_wall_s for o in mine):.0f}",
            str(Spread.of([o.train_curves_per_s or 0.0 for o in mine])), verdict,
        ))  # fmt: skip
        for name in mine[0].beside:
            values = [o.beside[name] for o in mine if o.beside.get(name) is not None]
            if values:
                rows.append((f"&nbsp;&nbsp;beside it: {name}", f"{curves:,}", "", _four(Spread.of(values)), *[""] * 5))
    header = (
        "model", "curves", "budget, min", "GMFE", "within 1.25x", "R2 (mg/L)", "train command, s (longest)",
        "training curves/s", "target",
    )  # fmt: skip
    return markdown_table(header, rows)


def _four(spread: Spread) -> str:
    text = f"{spread.median:.4f}"
    return text if spread.n == 1 else f"{text} ({spread.low:.4f}-{spread.high:.4f})"


def jobs_from(args: argparse.Namespace) -> list[Job]:
    """The asked jobs, the small data first."""
    few = [Job(m, args.few, args.few_minutes) for m in ("flux", "loglinear-rates") if m in args.models]
    many = [Job(m, args.many, args.many_minutes) for m in ("mlp", "recurrent", "lstm") if m in args.models]
    return few + many


def main() -> None:
    """Run all jobs over all seeds; print and write the table."""
    parser = argparse.ArgumentParser(description="Accuracy within a time budget on task T1, through the command line.")
    parser.add_argument("--models", nargs="+", default=["flux", "loglinear-rates", "mlp", "recurrent"],
                        choices=["flux", "loglinear-rates", "mlp", "recurrent", "lstm"])  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="seeds of data and training (default 1)")
    parser.add_argument("--few", type=int, default=80, help="curves for flux and loglinear-rates (default 80)")
    parser.add_argument("--few-minutes", type=float, default=2.0, help="their budget (default 2)")
    parser.add_argument("--many", type=int, default=18_000, help="curves for the others (default 18000)")
    parser.add_argument("--many-minutes", type=float, default=5.0, help="their budget (default 5)")
    parser.add_argument("--fresh", type=int, default=2_000, help="fresh curves of another seed (default 2000)")
    parser.add_argument("--work", type=Path, default=None, help="keep datasets and runs here (default: temporary)")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="folder of accuracy.md and .json")
    args = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        outcomes = []
        for seed in args.seeds:
            fresh = dataset(work, args.fresh, seed + FRESH_SEED_OFFSET)
            outcomes += [run_job(job, seed, work, fresh) for job in jobs_from(args)]
    text = (
        f"# Accuracy on task T1\n\n{args.fresh:,} fresh curves of another seed, t = 0 and values under the LOQ "
        f"excluded; seeds {', '.join(map(str, args.seeds))}.\n{machine_line(facts)}\n\n{table(outcomes)}"
    )
    print(text)
    write_results(args.out, "accuracy", text, {"machine": facts, "runs": [asdict(o) for o in outcomes]})


if __name__ == "__main__":
    main()

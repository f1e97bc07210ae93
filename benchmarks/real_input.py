"""The main job on real input, through the command line: the origin's own file, then measured human plasma.

Every model trains on `origin/training_data.npz` (100 curves: 80 train, 10 validation, 10 test drugs) for the same
few minutes, and is judged on the file's test drugs and on `human_iv_curves.csv`, whose drug inputs are turned into
the model's by the simplest published scaling. The figures are printed as they come out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/real_input.py

from benchmarks.accuracy import perfuse
from benchmarks.common import machine, machine_line, markdown_table, number, write_results

MODELS = ("flux", "loglinear-rates", "recurrent", "lstm", "mlp")


def judge(run: Path, data: Path, report: Path) -> dict[str, object]:
    """``perfuse evaluate --json``."""
    perfuse("evaluate", run, data, "--json", report, "--quiet")
    result: dict[str, object] = json.loads(report.read_text(encoding="utf-8"))
    return result


def _row(name: str, result: dict[str, object]) -> tuple[str, ...]:
    exposure = result.get("exposure")
    cells = [
        name,
        f"{result['gmfe']:.6f}".rstrip("0").ljust(5, "0"),
        f"{result['within_1_25']:.1%}",
        f"{result['within_2']:.1%}",
    ]
    for kind in ("cmax", "auc", "half_life"):
        one = exposure.get(kind) if isinstance(exposure, dict) else None
        known = isinstance(one, dict) and one.get("gmfe") is not None
        cells.append(f"{number(one['gmfe'])} ({one['within_2']:.0%}, n {one['n']})" if known else "-")  # type: ignore[index]
    return tuple(cells)


def table(results: dict[str, dict[str, object]]) -> str:
    """Models first, then the baselines fitted on the same training split."""
    rows = [_row(model, result) for model, result in results.items()]
    baselines: dict[str, dict[str, object]] = {}
    for result in results.values():
        beside = result["baselines"]
        assert isinstance(beside, dict)
        baselines |= {k: v for k, v in beside.items() if v.get("gmfe") is not None}
    rows += [_row(f"baseline: {name}", result) for name, result in baselines.items()]
    header = (
        "", "GMFE", "within 1.25x", "within 2x",
        "Cmax GMFE (within 2x, n)", "AUC GMFE (within 2x, n)", "half-life GMFE (within 2x, n)",
    )  # fmt: skip
    return markdown_table(header, rows)


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description="All models on the origin's file and on measured human plasma.")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PERFUSE_DATA", "../shared/data")))
    parser.add_argument("--minutes", type=float, default=1.0, help="training budget per model (default 1)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=None, help="keep runs here (default: temporary)")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="folder of real_input.md and .json")
    args = parser.parse_args()
    facts = machine()
    origin, human = args.data / "origin" / "training_data.npz", args.data / "human_iv_curves.csv"
    on_origin: dict[str, dict[str, object]] = {}
    on_people: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        for model in args.models:
            run = work / model
            perfuse("train", origin, "--out", run, "--model", model, "--max-minutes", args.minutes, "--seed", args.seed,
                    "--quiet")  # fmt: skip
            on_origin[model] = judge(run, origin, work / f"{model}-origin.json")
            on_people[model] = judge(run, human, work / f"{model}-human.json")
    first_origin, first_people = next(iter(on_origin.values())), next(iter(on_people.values()))
    text = "\n\n".join((
        f"# Real input\n\nTrained for {args.minutes:g} min each on the training split of the origin's file, seed "
        f"{args.seed}.\n{machine_line(facts)}",
        f"## (a) Held-out drugs of the origin's file: {first_origin['n_curves']} curves (simulated by the origin)",
        table(on_origin),
        f"## (b) Measured human plasma after intravenous doses: {first_people['n_curves']} curves, "
        f"{first_people['n_drugs']} drugs, {first_people['n_values']} values",
        table(on_people),
        "\n".join(f"- {model}: {result['verdict']}" for model, result in on_people.items()),
    ))  # fmt: skip
    print(text)
    write_results(args.out, "real_input", text, {"machine": facts, "origin": on_origin, "human": on_people})


if __name__ == "__main__":
    main()

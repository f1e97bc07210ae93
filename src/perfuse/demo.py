"""``perfuse demo``: the whole chain on simulated curves, in two minutes on two cores.

Models and baselines (``loglinear-rates`` among them, fitted by the judge) see the same 320 training curves; 400 drugs
of another seed, which none has seen, judge them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from perfuse.config import parse_config
from perfuse.data.simulation import simulate_dataset
from perfuse.data.sources import open_source
from perfuse.errors import InputError
from perfuse.evaluation.during_training import ValidationGmfe
from perfuse.evaluation.evaluate import evaluate_run
from perfuse.evaluation.files import write_json
from perfuse.evaluation.report import build_report
from perfuse.evaluation.verdict import show_gmfe, show_percent
from perfuse.training.run import train

if TYPE_CHECKING:
    from rich.console import Console

    from perfuse.evaluation.evaluate import Evaluation
    from perfuse.evaluation.metrics import Summary

TASK = "T1"
TRAINING_CURVES = 400
UNSEEN_CURVES = 400
MINUTES = {"flux": 0.75, "mlp": 0.5}
"""Wall-clock budget of each model's training."""
_CAPTION = (
    "Typical error: GMFE - 1, the typical fold error of a concentration over 14 organs and 24 h; t = 0 does not count. "
    "within 1.25x: share of values wrong by less than a quarter. Simulated curves: this is not accuracy on people."
)


def _config(model: str, seed: int) -> dict[str, Any]:
    return {"seed": seed, "model": {"name": model}, "training": {"max_minutes": MINUTES[model]}}


def run_demo(out: Path, seed: int, progress: Console, results: Console) -> Path:
    """Simulate, train two models, judge them on unseen drugs, write the report; returns its path.

    Args:
        out: New folder.
        seed: Seed of data and training.
        progress: Where progress goes.
        results: Where the table, the verdict and the report's path go.

    Raises:
        InputError: if ``out`` exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("--out", "exists already", value=str(out), hint="choose another folder or remove it first")
    began = time.monotonic()

    def say(text: str) -> None:
        progress.print(f"[{time.monotonic() - began:5.0f} s] {text}", highlight=False, markup=False)

    say(f"simulating {TRAINING_CURVES} drugs of task {TASK}, and {UNSEEN_CURVES} more to judge on")
    data = simulate_dataset(TASK, TRAINING_CURVES, seed, out / "data").path
    unseen = simulate_dataset(TASK, UNSEEN_CURVES, seed + 1, out / "unseen").path
    seconds: dict[str, float] = {}
    judged: dict[str, Evaluation] = {}
    for model, minutes in MINUTES.items():
        say(f"training {model} for at most {60 * minutes:.0f} s")
        start = time.monotonic()
        config = parse_config(_config(model, seed))
        train(open_source(data), config, out / model, validate=ValidationGmfe(), data_path=str(data.resolve()))
        seconds[model] = time.monotonic() - start
    for model in MINUTES:
        say(f"judging {model} on unseen drugs")
        judged[model] = evaluate_run(out / model, unseen, baselines=model == "flux")
    report = build_report(out / "flux")
    write_json(judged, out / "metrics.json")
    results.print(_table(judged, seconds))
    results.print(judged["flux"]["verdict"], highlight=False)
    results.print(f"report: {report.resolve()}", highlight=False, soft_wrap=True)
    return report


def _table(results: dict[str, Evaluation], seconds: dict[str, float]) -> Table:
    flux = results["flux"]
    title = f"{flux['n_curves']} unseen drugs, 14 organs, {flux['n_values']:,} concentrations"
    table = Table(title=title, caption=_CAPTION, title_justify="left", caption_justify="left")
    table.add_column("trained on 320 curves")
    for column in ("typical error", "within 1.25x", "R2", "trained for", "predicts"):
        table.add_column(column, justify="right")
    for model, result in results.items():
        rate = result["speed"]["predict_curves_per_s"]
        speed = f"{float(rate):,.0f} curves/s" if rate else "n/a"
        table.add_row(*_row(str(result["model"]["label"]), result), f"{seconds[model]:.0f} s", speed)
    table.add_section()
    for name, baseline in flux["baselines"].items():
        table.add_row(*_row(name, baseline), "", "")
    return table


def _row(name: str, m: Summary | Evaluation) -> tuple[str, str, str, str]:
    r2 = m["r2"]
    within = f"{show_percent(m['within_1_25'])} %"
    return name, _typical_error(m["gmfe"]), within, "n/a" if r2 is None else f"{r2:.5f}"


def _typical_error(gmfe: float | None) -> str:
    """GMFE as people say it: "0.23 %" for 1.0023, "2.619-fold" for 2.619."""
    if gmfe is None:
        return "n/a"
    if gmfe < 1.00001:
        return "below 0.001 %"
    return f"{100 * (gmfe - 1):.3g} %" if gmfe < 2 else f"{show_gmfe(gmfe)}-fold"

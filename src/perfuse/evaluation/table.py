"""Evaluations as tables for the terminal: the model, each baseline, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

from perfuse.evaluation.coverage import coverage_sentence
from perfuse.evaluation.evaluate import Evaluation
from perfuse.evaluation.verdict import show_gmfe, show_percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEADINGS = ("GMFE", "% within 1.25x", "% within 2x", "R2 of ln C", "Cmax GMFE", "AUC GMFE", "half-life GMFE")
LEGEND = (
    "GMFE: geometric mean fold error over drugs, 1 is perfect, 2 means off by 2-fold. Values at t > 0 and at or above "
    "the LOQ. AUC to the last observed time; half-life where truth and prediction both have a terminal slope."
)


class TableRow(TypedDict):
    """One line of the comparison: its name, its cells, and whether it is the model."""

    name: str
    cells: list[str]
    is_model: bool


def comparison_rows(evaluation: Evaluation) -> list[TableRow]:
    """The model first, then baselines and other runs, each with the cells of ``HEADINGS``."""
    label = str(evaluation["model"]["label"])
    rows = [TableRow(name=label, cells=_cells(evaluation), is_model=True)]
    for name, summary in evaluation["baselines"].items():
        rows.append(TableRow(name=name, cells=_cells(summary), is_model=False))
    for name, summary in evaluation["against"].items():
        rows.append(TableRow(name=f"{name} (other run)", cells=_cells(summary), is_model=False))
    return rows


def _cells(summary: Mapping[str, object]) -> list[str]:
    exposure = summary["exposure"]
    assert isinstance(exposure, Mapping)
    r2_log = summary["r2_log"]
    return [
        show_gmfe(_number(summary["gmfe"])),
        show_percent(_number(summary["within_1_25"])),
        show_percent(_number(summary["within_2"])),
        "n/a" if not isinstance(r2_log, float) else f"{r2_log:.4f}",
        *(show_gmfe(_number(exposure[name]["gmfe"])) for name in ("cmax", "auc", "half_life")),
    ]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def evaluation_table(evaluation: Evaluation) -> Table:
    """Model against baselines, one line each."""
    from rich.table import Table

    data = evaluation["data"]
    counted = f"{evaluation['n_curves']} curves, {evaluation['n_values']} values, {evaluation['n_drugs']} drugs"
    title = f"{data['path']}: {counted}"
    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for row in comparison_rows(evaluation):
        table.add_row(row["name"], *row["cells"], style="bold" if row["is_model"] else None)
    return table


def breakdown_table(evaluation: Evaluation, kind: str = "per_organ") -> Table:
    """GMFE and fractions per organ (``per_organ``) or time window (``windows``)."""
    from rich.table import Table

    table = Table(title="by organ" if kind == "per_organ" else "by time since the first dose", title_justify="left")
    table.add_column("organ" if kind == "per_organ" else "window", no_wrap=True)
    for heading in ("GMFE", "bias", "% within 1.25x", "% within 2x", "% in 90 % interval", "RMSE, mg/L", "values"):
        table.add_column(heading, justify="right")
    parts = evaluation["per_organ"] if kind == "per_organ" else evaluation["windows"]
    coverage = evaluation["coverage"]["per_organ" if kind == "per_organ" else "windows"]
    for name, s in parts.items():
        bias = "n/a" if s["bias"] is None else f"{s['bias']:.4g}"
        rmse = "n/a" if s["rmse"] is None else f"{s['rmse']:.3g}"
        table.add_row(
            name, show_gmfe(s["gmfe"]), bias, show_percent(s["within_1_25"]), show_percent(s["within_2"]),
            show_percent(coverage[name]["coverage_90"]) if name in coverage else "n/a", rmse, str(s["n_values"]),
        )  # fmt: skip
    return table


def print_evaluation(evaluation: Evaluation, console: Console, details: bool = False) -> None:
    """The comparison, what could not be compared, notes, and the verdict last.

    Args:
        evaluation: From ``evaluate_run``.
        console: Where to print.
        details: Also per organ and per time window.
    """
    console.print(evaluation_table(evaluation))
    if details:
        console.print(breakdown_table(evaluation, "per_organ"))
        console.print(breakdown_table(evaluation, "windows"))
    plain = {"markup": False, "highlight": False}
    console.print(LEGEND, style="dim", **plain)  # type: ignore[arg-type]
    for reason, names in _by_reason(evaluation["baselines_unavailable"]).items():
        console.print(f"Not available: {', '.join(names)}: {reason}.", **plain)  # type: ignore[arg-type]
    if evaluation["n_censored"]:
        share = show_percent(evaluation["censored_predicted_below_lloq"])
        console.print(f"{evaluation['n_censored']} values below the LLOQ, {share} % predicted below it.", **plain)  # type: ignore[arg-type]
    console.print(coverage_sentence(evaluation["coverage"]), **plain)  # type: ignore[arg-type]
    for note in (n for n in evaluation["notes"] if n not in evaluation["verdict"]):
        console.print(note, **plain)  # type: ignore[arg-type]
    for line in reproduction_lines(evaluation):
        console.print(line, style="dim", soft_wrap=True, **plain)  # type: ignore[arg-type]
    console.print(evaluation["verdict"], style="bold", **plain)  # type: ignore[arg-type]


def reproduction_lines(evaluation: Evaluation) -> list[str]:
    """Run id, and how to make the run and the evaluation again."""
    lines = []
    again = evaluation["provenance"].get("reproduction")
    if isinstance(again, dict):
        commands, level = again.get("commands"), again.get("determinism")
        code = level.get("code") if isinstance(level, dict) else None
        lines.append(f"Run id {again.get('run_id') or 'none'}. To reproduce the run ({code}):")
        lines += [f"  {command}" for command in commands] if isinstance(commands, list) else []
    judge = evaluation["provenance"].get("evaluate_command")
    if isinstance(judge, str):
        data = str(evaluation["data"].get("sha256"))[:12]
        lines += [f"To reproduce the evaluation (data sha256 {data}):", f"  {judge}"]
    return lines


def _by_reason(absent: Mapping[str, str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name, reason in absent.items():
        out.setdefault(reason, []).append(name)
    return out

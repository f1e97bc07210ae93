"""``RUN/report.html``: one self-contained file, plotly inlined, that opens offline and may load nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from markupsafe import Markup

from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation.charts import Chart, theme_json
from perfuse.evaluation.coverage import coverage_sentence
from perfuse.evaluation.evaluate import Evaluation, evaluate_run
from perfuse.evaluation.figures import (
    FEW_VALUES,
    Line,
    breakdown_chart,
    case_charts,
    coverage_chart,
    gradient_chart,
    loss_chart,
    rate_chart,
    scatter_chart,
)
from perfuse.evaluation.files import write_atomic
from perfuse.evaluation.results import JSON_NAME, StoredCurves, load_evaluation
from perfuse.evaluation.runs import TrainedRun, open_run
from perfuse.evaluation.stored import check_evaluation
from perfuse.evaluation.table import HEADINGS, LEGEND, comparison_rows
from perfuse.evaluation.verdict import NETWORK_FREE, TRIVIAL, show_gmfe, show_percent
from perfuse.training.machine import provenance, without_secrets
from perfuse.training.provenance import sessions_of

REPORT_NAME = "report.html"
LIMITS = (
    "Accuracy on simulated curves is accuracy in reproducing equations. It is not accuracy on people.",
    "The networks model linear kinetics; flux and loglinear-rates any regimen, the others intravenous doses alone.",
    "t = 0 and values below the limit of quantification (LOQ) do not count; predictions are raised to LOQ/100, none is "
    "dropped.",
    "90 % intervals hold on average over drugs drawn as those they were calibrated on, and over values at or above the "
    "LOQ; not for one drug, and not outside of what the model was trained on.",
    "A network interpolates: bodies, clearances or partition coefficients outside the training range are not covered.",
    "For measured human data, the drug's inputs come from in-vitro values by the simplest published scaling; classical "
    "scaling alone puts 30 % of drugs within 2-fold of their measured clearance.",
    "Where loglinear-rates is as good or better, the network adds nothing: use the simpler model.",
    "Research software: not for decisions about patients.",
)
_MAX_SESSIONS = 10
_BREAKDOWN = ("GMFE", "bias", "% within 1.25x", "% within 2x", "R2, mg/L", "RMSE, mg/L", "values")


def build_report(run: Path) -> Path:
    """Write ``report.html`` into a run's folder and return its path.

    It shows every evaluation that the run holds (its own test split first); a run without any is judged on its own
    test split first, if its training data is at hand.

    Raises:
        InputError: if there is no usable run.
        PerfuseError: if the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    trained = open_run(Path(run), with_calibration=False)
    stored, not_judged = _evaluations(trained)
    lines = metrics_lines(trained.folder / "metrics.jsonl")
    training = [loss_chart(lines, trained.config.loss.kind), rate_chart(lines), gradient_chart(lines)] if lines else []
    loader = PackageLoader("perfuse.evaluation")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    scripts = page_scripts(loader.get_source(environment, "report.js")[0]) if stored or training else []
    page = environment.get_template("report.html.j2").render(
        title=f"{trained.label} on {trained.topology.name}",
        subtitle=f"run {trained.folder.resolve().name} ({trained.run_id[:8] or 'no id'}), seed {trained.config.seed}, "
        f"trained on {trained.facts['training_curves']} curves of {len(trained.train_compounds)} drugs",
        evaluations=[_evaluation_context(e, c) for e, c in stored],
        not_judged=not_judged,
        headings=HEADINGS,
        legend=LEGEND,
        training=training,
        training_note=_training_note(lines),
        provenance=_provenance_rows(trained, stored[0][0] if stored else None),
        command=_command(trained),
        config=_config_text(trained.folder / "config.toml"),
        limits=LIMITS,
        theme=theme_json(),
        scripts=scripts,
        script_policy=" ".join(map(policy_hash, scripts)) or "'none'",
    )
    path = trained.folder / REPORT_NAME
    write_atomic(path, page.encode())
    return path


def page_scripts(drawing: str) -> list[Markup]:
    """plotly.js and the script that draws with it, as text of script elements.

    Raises:
        PerfuseError: if one holds what would end its element early, so that code would show up as page text.
    """
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs().strip(), drawing.strip()]
    for script in scripts:
        if "</script" in script.lower() or "<!--" in script or "\r" in script:
            raise PerfuseError("plotly.js cannot be put into the report; install another version of plotly")
    return [Markup(script) for script in scripts]


def policy_hash(script: str) -> str:
    """The source expression that lets exactly this inline script run (Content Security Policy Level 3, 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _evaluations(run: TrainedRun) -> tuple[list[tuple[Evaluation, StoredCurves]], str]:
    """Stored evaluations that can be read, own test split first; and why there is none."""
    folders = sorted(p.parent for p in run.folder.glob(f"evaluation*/{JSON_NAME}"))
    if not folders:
        try:
            if not Path(run.data_path).exists():
                return [], "its training data is not at hand, and `perfuse evaluate` has not been run"
            evaluate_run(run.folder, Path(run.data_path))
        except InputError as error:
            return [], str(error)
        folders = sorted(p.parent for p in run.folder.glob(f"evaluation*/{JSON_NAME}"))
    found = []
    for folder in sorted(folders, key=lambda f: (f.name != "evaluation", f.name)):
        stored, curves = load_evaluation(folder)
        found.append((check_evaluation(stored, str(folder)), curves))
    return found, ""


def _evaluation_context(e: Evaluation, curves: StoredCurves) -> dict[str, object]:
    """What the template shows of one evaluation."""
    speed = e["speed"]["predict_curves_per_s"]
    tiles = [
        (show_gmfe(e["gmfe"]), "GMFE (1 is perfect)"),
        (f"{show_percent(e['within_2'])} %", "of values within 2-fold"),
        (f"{show_percent(e['within_1_25'])} %", "of values within 1.25-fold"),
        (f"{e['n_curves']:,}", f"curves of {e['n_drugs']:,} drugs, {e['n_values']:,} values"),
        (
            f"{speed:,.0f}/s" if isinstance(speed, int | float) else "n/a",
            f"curves predicted per second, {e['speed']['batch_size']} at a time",
        ),
    ]
    data = e["data"]
    kind = {True: "simulated", False: "measured", None: ""}[cast("bool | None", data["simulated"])]
    best = min((n for n in e["baselines"] if n in TRIVIAL), key=lambda n: e["baselines"][n]["gmfe"] or 1e9, default="")
    others = [n for n in (NETWORK_FREE, best) if n in e["baselines"]]
    label = str(e["model"]["label"])
    scope = "its own test split" if data["scope"] == "test split" else f"{kind} curves it has not seen".strip()
    organs = {label: e["per_organ"], **{n: e["baselines"][n]["per_organ"] for n in others}}
    cases = _cases(curves)
    windows = {label: e["windows"], **{n: e["baselines"][n]["windows"] for n in others}}
    return {
        "verdict": e["verdict"],
        "good": bool(e["beats_baselines"]) and e["beats_loglinear_rates"] is not False,
        "name": scope,
        "path": data["path"],
        "tiles": tiles,
        "rows": comparison_rows(e),
        "notes": [n for n in e["notes"] if n not in e["verdict"]]
        + [f"{name} is not available: {why}." for name, why in e["baselines_unavailable"].items()],
        "scatter": scatter_chart(curves),
        "scatter_note": "One point per value. Dashed: 2-fold off." if e["n_values"] <= FEW_VALUES
        else "Darker cells hold more values (log scale). Dashed: 2-fold off.",
        "organs": breakdown_chart(organs, "Error by organ") if len(e["per_organ"]) > 1 else None,
        "windows": breakdown_chart(windows, "Error by time since the first dose") if e["windows"] else None,
        "coverage": coverage_chart(e["coverage"]) if e["coverage"]["per_organ"] else None,
        "coverage_note": coverage_sentence(e["coverage"]),
        "distance_note": _distance_sentence(e),
        "tables": [
            ("organ", _BREAKDOWN, [_breakdown_row(n, s) for n, s in e["per_organ"].items()]),
            ("time window", _BREAKDOWN, [_breakdown_row(n, s) for n, s in e["windows"].items()]),
        ],
        "cases": cases,
        "has_band": bool(np.isfinite(curves.case_lower).any()),
        "single_organ": bool(cases) and all(len(cast("list[Chart]", c["charts"])) == 1 for c in cases),
    }  # fmt: skip


def _distance_sentence(e: Evaluation) -> str:
    d = e["training_distance"]
    if d["median_percentile"] is None or d["share_outside"] is None:
        return f"Distance to the training drugs: not known{': ' + d['note'] if d['note'] else ''}."
    return (
        f"Distance to the training drugs: the median judged curve lies at percentile {d['median_percentile']:.0f} of "
        f"their own distances from one another; {show_percent(d['share_outside'])} % lie beyond percentile 99, where "
        "no interval is promised."
    )


def _breakdown_row(name: str, s: Mapping[str, object]) -> list[str]:
    def show(key: str, form: str) -> str:
        value = s[key]
        return format(value, form) if isinstance(value, int | float) else "n/a"

    percent = [show_percent(cast("float | None", s[key])) for key in ("within_1_25", "within_2")]
    gmfe = show_gmfe(cast("float | None", s["gmfe"]))
    return [name, gmfe, show("bias", ".4g"), *percent, show("r2", ".4f"), show("rmse", ".3g"), f"{s['n_values']:,}"]


def _cases(curves: StoredCurves) -> list[dict[str, object]]:
    out = []
    seen: set[str] = set()
    for i, kind in enumerate(curves.kind.tolist()):
        drug = "" if curves.case_compound_id[i] == curves.case_curve_id[i] else f" ({curves.case_compound_id[i]})"
        title = f"{kind}: {curves.case_curve_id[i]}{drug}, GMFE {show_gmfe(float(curves.case_gmfe[i]))}"
        out.append({"title": title, "open": kind not in seen, "charts": case_charts(curves, i)})
        seen.add(kind)
    return out


def metrics_lines(path: Path) -> list[Line]:
    """Lines of ``metrics.jsonl``; a line that a crash cut short, or that is none of ours, is skipped."""
    lines: list[Line] = []
    if not path.is_file():
        return lines
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return lines
    for raw in text.splitlines():
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and all(_is_number(line.get(key)) for key in ("step", "epoch")):
            lines.append({key: value for key, value in line.items() if _is_number(value)})
    return lines


def _is_number(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _training_note(lines: list[Line]) -> str:
    if not lines:
        return ""
    last = lines[-1]
    parts = [f"{len(lines)} validations, last in epoch {last.get('epoch')} at step {last.get('step')}"]
    for key, text in (("time_s", "{:.0f} s"), ("train_curves_per_s", "{:,.0f} training curves/s")):
        value = last.get(key)
        if isinstance(value, int | float):
            parts.append(text.format(value))
    return ", ".join(parts) + "."


def _provenance_rows(run: TrainedRun, evaluation: Evaluation | None) -> list[tuple[str, str]]:
    machine = evaluation["provenance"] if evaluation else provenance()
    packages = cast("dict[str, str]", machine["packages"])
    facts = run.facts
    seconds = facts["training_seconds"]
    again = run.reproduction()
    return [
        ("run id", run.run_id or "none"),
        ("determinism", again.level.line() if again else "not recorded"),
        *_session_rows(run),
        ("training data", without_secrets(run.data_path) or "not recorded"),
        ("sha256 of its content", run.data_hash),
        ("split", f"{facts['training_curves']} training curves ({len(run.train_compounds)} drugs), "
                  f"{len(run.validation_compounds)} drugs validation, {len(run.test_compounds)} drugs test"),
        ("seed", str(run.config.seed)),
        ("checkpoint", f"{facts['checkpoint']}: epoch {facts['epoch']}, step {facts['step']}"),
        ("sha256 of the weights", run.weights_hash),
        ("trained for", f"{seconds:.0f} s" if isinstance(seconds, int | float) else "not recorded"),
        ("code version", f"trained with {facts['code_version']}, judged with {machine['perfuse']}"),
        ("versions", f"Python {machine['python']}, " + ", ".join(f"{n} {v}" for n, v in packages.items())),
        ("judged on", f"{machine['processor']}, {machine['cores']} cores, {machine['system']}"),
        ("judged at", f"{machine['created_utc']} (UTC)"),
    ]  # fmt: skip


def _session_rows(run: TrainedRun) -> list[tuple[str, str]]:
    """Where the run was made, a row for each session; at most ``_MAX_SESSIONS``."""
    sessions = sessions_of(run.folder, run.run_id)
    rows = []
    for session in [*sessions[:1], *sessions[1:][-(_MAX_SESSIONS - 1) :]]:
        step = session.get("resumed_at_step")
        what = "started" if step is None else f"resumed at step {step},"
        name, count = str(session.get("device_name")), session.get("processes")
        where = str(session.get("processor")) + ("" if name == "cpu" else f" and {name}")
        commit = str(session.get("git_commit") or "")
        code = f"Perfuse {session.get('perfuse')}" + (f", commit {commit[:12]}" if commit else "")
        rows.append((
            f"session {session.get('session')}",
            f"{what} {session.get('started_utc')} on {where}, {count} process{'' if count == 1 else 'es'}, threads: "
            f"{session.get('threads')}, {code}",
        ))  # fmt: skip
    return rows


def _command(run: TrainedRun) -> str:
    data = without_secrets(run.data_path) or "DATA"
    again = run.reproduction()
    if again is None:
        new, commands = "RUN", [shlex.join(["perfuse", "train", data, "--config", "config.toml", "--out", "RUN"])]
    else:
        new, commands = shlex.quote(again.new_run), list(again.commands)
    return "\n".join([*commands, f"perfuse evaluate {new} {shlex.quote(data)}", f"perfuse report {new}"])


def _config_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "(no config.toml in this folder)"

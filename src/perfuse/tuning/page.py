"""``FOLDER/tune.html``: a sweep on one self-contained page that opens offline and may load nothing."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from perfuse.config import resolve
from perfuse.evaluation.charts import Chart, show_number, theme_json
from perfuse.evaluation.report import metrics_lines, page_scripts, policy_hash
from perfuse.files import write_atomic
from perfuse.tuning.charts import course_chart, minimum_width_px, parallel_chart
from perfuse.tuning.halving import REDUCTION, RUNGS
from perfuse.tuning.record import BEST_FILE, PAGE_FILE, TrialRecord, trial_folder
from perfuse.tuning.space import merged
from perfuse.tuning.sweep import Sweep
from perfuse.tuning.trial import fraction_done

_MOST_POINTS = 200
_STATUS = {
    "completed": "to its end", "terminated": "terminated early", "failed": "failed",
    "lost": "lost (goes on with --resume)",
}  # fmt: skip


def write_page(sweep: Sweep) -> Path:
    """Write the page of a sweep, finished or not.

    Raises:
        PerfuseError: if the file cannot be written.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader("perfuse.tuning"), PackageLoader("perfuse.evaluation")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    charts = _charts(sweep)
    scripts = page_scripts(loader.get_source(environment, "report.js")[0]) if charts else []
    page = environment.get_template("tune.html.j2").render(
        **_context(sweep),
        charts=charts,
        minimum_width=minimum_width_px(sweep.space),
        theme=theme_json(),
        scripts=scripts,
        script_policy=" ".join(map(policy_hash, scripts)) or "'none'",
    )
    path = sweep.folder / PAGE_FILE
    write_atomic(path, page.encode())
    return path


def summary(sweep: Sweep) -> list[str]:
    """What a user is told at the end; the page says the same."""
    best, counts = sweep.best(), _counts(sweep)
    parts = [f"{counts[s]} {_STATUS[s]}" for s in ("completed", "terminated", "failed") if counts[s]]
    lines = [f"{sum(counts.values())} trials: {', '.join(parts) or 'none has ended'}"]
    if counts["open"]:
        lines[0] += f", {counts['open']} not ended ({sweep.stopped_because or 'go on with --resume'})"
    if best is not None and best.ended is not None and best.ended.val_loss is not None:
        base = sweep.trials[0].ended
        lines.append(f"best: trial {best.number}, validation loss {best.ended.val_loss:.4g}")
        if best.number and base is not None and base.status == "completed" and base.val_loss is not None:
            lines[-1] += f" (the base configuration, trial 0: {base.val_loss:.4g})"
    return lines


def optimism(sweep: Sweep) -> str:
    """What a loss that a choice was made by is worth."""
    judged = sum(t.ended is not None and t.ended.val_loss is not None for t in sweep.trials)
    record = sweep.record
    return (
        f"These are losses on the {record.n_validation} validation curves by which the choice was made. The best of "
        f"{judged} trials on the same curves looks better than it is: its figure is optimistic, the more so the more "
        f"trials there are and the fewer curves. The {record.n_test} test curves were not touched: train {BEST_FILE} "
        "and judge that run with perfuse evaluate."
    )


def _counts(sweep: Sweep) -> dict[str, int]:
    counts = dict.fromkeys(("completed", "terminated", "failed", "open"), 0)
    for trial in sweep.trials:
        counts["open" if trial.is_open or trial.ended is None else trial.ended.status] += 1
    return counts


def _context(sweep: Sweep) -> dict[str, object]:
    record, best = sweep.record, sweep.best()
    ended = [t for t in sweep.trials if t.ended is not None]
    seconds = sum(t.ended.seconds for t in ended if t.ended)
    tiles = [(str(len(sweep.trials)), "trials"), (f"{seconds:,.0f} s", "training, all trials together")]
    counts = _counts(sweep)
    tiles.insert(1, (str(counts["terminated"]), "of them terminated early"))
    if best is not None and best.ended is not None and best.ended.val_loss is not None:
        tiles.insert(0, (show_number(best.ended.val_loss), f"validation loss of the best, trial {best.number}"))
    early = (
        f"At {' and '.join(f'{r:.0%}' for r in RUNGS)} of its length a trial goes on if it is among the best third "
        f"of those that have got there, the first {REDUCTION - 1} always. One that was terminated might have come out "
        "best later."
        if record.early_termination
        else "Early termination was off."
    )
    train = ["perfuse", "train", record.data, "--config", f"{sweep.folder.name}/{BEST_FILE}", "--out", "RUN"]
    return {
        "title": f"Sweep of {record.config.model.name}: {len(sweep.trials)} trials",
        "subtitle": f"{record.data}, sha256 {record.data_sha256[:12]}; {record.n_train} training, "
        f"{record.n_validation} validation, {record.n_test} test curves; seed {record.seed}; "
        f"loss {record.config.loss.kind}; Perfuse {record.code_version}",
        "lines": summary(sweep),
        "optimism": optimism(sweep),
        "is_whole": not counts["open"],
        "tiles": tiles,
        "early": early,
        "keys": [p.key.split(".") for p in sweep.space.parameters],
        "has_reasons": any(t.ended is not None and t.ended.reason for t in sweep.trials),
        "rows": [_row(t, t is best, sweep) for t in sorted(sweep.trials, key=_by_loss)],
        "space": sweep.space.toml(),
        "best": (sweep.folder / BEST_FILE).read_text(encoding="utf-8") if best is not None else "",
        "command": f"{shlex.join(train)}\nperfuse evaluate RUN {shlex.quote(record.data)}",
    }


def _row(trial: TrialRecord, is_best: bool, sweep: Sweep) -> dict[str, object]:
    ended = trial.ended
    how = "not ended" if ended is None else _STATUS[ended.status]
    if ended is not None and ended.status == "terminated":
        how += f" at {ended.progress:.0%}"
    cells = [
        "n/a" if ended is None or ended.val_loss is None else show_number(ended.val_loss),
        how,
        "" if ended is None else f"{ended.best_epoch}",
        "" if ended is None else f"{ended.epochs}",
        "" if ended is None else f"{ended.seconds:.1f}",
    ]
    values = [trial.values[p.key] for p in sweep.space.parameters]
    return {
        "name": f"{trial.number}{' (base)' if trial.number == 0 else ''}",
        "is_best": is_best,
        "cells": cells + [show_number(v) if isinstance(v, float) else str(v) for v in values],
        "reason": ended.reason if ended is not None else "",
    }


def _by_loss(trial: TrialRecord) -> tuple[bool, float]:
    loss = trial.ended.val_loss if trial.ended else None
    return loss is None, math.inf if loss is None else loss


def _charts(sweep: Sweep) -> list[Chart]:
    best = sweep.best()
    if best is None:
        return []
    ended = [t for t in sweep.trials if t.ended is not None]
    courses = {t.number: course for t in ended if (course := _course(sweep, t))}
    charts = [parallel_chart(ended, sweep.space, best)]
    return [*charts, course_chart(ended, courses, best)] if courses else charts


def _course(sweep: Sweep, trial: TrialRecord) -> list[tuple[float, float]]:
    """Percent of its length, and best validation loss so far, at each of a trial's validations (thinned)."""
    lines = metrics_lines(trial_folder(sweep.folder, trial.number) / "metrics.jsonl")
    config = resolve(merged(sweep.record.config, trial.values), sweep.record.n_train) if lines else None
    course: list[tuple[float, float]] = []
    best = math.inf
    for line in lines:
        loss, seconds, epoch = (line.get(k) for k in ("val_loss", "time_s", "epoch"))
        if isinstance(loss, int | float) and isinstance(seconds, int | float) and isinstance(epoch, int | float):
            best = min(best, loss)
            assert config is not None
            course.append((100 * min(fraction_done(config, int(epoch), seconds), 1.0), best))
    step = max(1, len(course) // _MOST_POINTS)
    return course[:-1:step] + course[-1:]

"""The page's figures: accuracy on every test set, coverage, time to accuracy. SVG, equal bytes for equal results."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib as mpl

from benchmarks.suite.summary import COVERED, FLUX, LBFGS, TRAINED, TRIVIAL, Summary
from perfuse.files import write_atomic

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    FLUX: "#d55e00", TRAINED: "#0072b2", LBFGS: "#56b4e9", "recurrent": "#009e73", "lstm": "#cc79a7", "mlp": "#e69f00",
    "mean-curve": "#999999", "5-nearest": "#777777", "log-linear": "#555555",
}  # fmt: skip
"""Okabe & Ito: told apart by the colour-blind."""
MARKERS = {FLUX: "D", TRAINED: "o", LBFGS: "s", "recurrent": "^", "lstm": "v", "mlp": "P"}
_LEAST_ERROR, _GREATEST_ERROR = 1e-6, 1e3
"""Ends of the accuracy figure, GMFE - 1; what lies beyond is drawn there."""


def write_figures(summary: Summary, folder: Path) -> dict[str, Path]:
    """``suite-NAME.svg`` for ``accuracy``, ``coverage`` and ``time``; those that there is something to show in."""
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "0", "svg.fonttype": "none"})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    made = {"accuracy": _accuracy(summary), "coverage": _coverage(summary), "time": _time(summary)}
    paths = {}
    for name, figure in made.items():
        if figure is not None:
            paths[name] = folder / f"suite-{name}.svg"
            _save(figure, paths[name])
    return paths


def _save(figure: Figure, path: Path) -> None:
    from io import BytesIO

    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    write_atomic(path, buffer.getvalue())


def _places(summary: Summary) -> list[tuple[str, str, str]]:
    """(task, test set, label) of every row, top to bottom."""
    return [(t.id, test, t.id if test == t.data else f"{t.id}: {test}") for t in summary.tasks for test in t.tests]


def _style(arm: str) -> dict[str, object]:
    return {"color": COLOURS.get(arm, "black"), "marker": MARKERS.get(arm, "."), "markersize": 5, "linestyle": "none"}


def _legend(axis: Axes, arms: list[str]) -> None:
    for arm in arms:
        axis.plot([], [], label=arm, **_style(arm))  # type: ignore[arg-type]
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _accuracy(summary: Summary) -> Figure | None:
    """GMFE - 1 on a log axis: one row per test set, median and range over seeds; bars mark targets."""
    places = _places(summary)
    if not any(summary.gmfe(task, FLUX, test) for task, test, _ in places):
        return None
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(places) + 1.2), layout="constrained")
    arms = summary.arms(summary.tasks[0])
    targets = {task.id: task.targets for task in summary.tasks}
    for y, (task, test, _) in enumerate(places):
        for i, arm in enumerate(arms):
            spread = summary.gmfe(task, arm, test)
            if spread is None:
                continue
            at = y + 0.6 * (i / max(1, len(arms) - 1) - 0.5)
            low, middle, high = (
                min(max(v - 1, _LEAST_ERROR), _GREATEST_ERROR) for v in (spread.low, spread.median, spread.high)
            )
            axis.plot([low, high], [at, at], color=COLOURS.get(arm, "black"), linewidth=1)
            axis.plot([middle], [at], **_style(arm))  # type: ignore[arg-type]
        if limit := targets[task].get(test):
            axis.plot([limit - 1] * 2, [y - 0.4, y + 0.4], color=COLOURS[FLUX], linewidth=1, linestyle=":")
    axis.set(xscale="log", xlabel="GMFE - 1 (dotted: target of flux); lower is better", yticks=range(len(places)))
    axis.set_yticklabels([label for _, _, label in places])
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.25, linewidth=0.5)
    _legend(axis, arms)
    return figure


def _coverage(summary: Summary) -> Figure | None:
    """Coverage of every model per test set, in all and in each organ."""
    spec, places = summary.suite.coverage, _places(summary)
    arms = [a for a in summary.arms(summary.tasks[0]) if a not in TRIVIAL and a != LBFGS] if places else []
    if not any(summary.spread(t, a, test, *COVERED) for t, test, _ in places for a in arms):
        return None
    figure, axis = plt.subplots(figsize=(9, 0.36 * len(places) + 1.2), layout="constrained")
    axis.axvspan(*spec.organ, color="0.93")
    axis.axvspan(*spec.overall, color="0.85")
    axis.axvline(spec.level, color="0.4", linewidth=0.8)
    for y, (task, test, _) in enumerate(places):
        for i, arm in enumerate(arms):
            overall = summary.spread(task, arm, test, *COVERED)
            if overall is None:
                continue
            at = y + 0.6 * (i / max(1, len(arms) - 1) - 0.5)
            organs = [
                s.median
                for organ in _organs()
                if (s := summary.spread(task, arm, test, "coverage", "per_organ", organ, COVERED[-1]))
            ]
            axis.plot([min(organs), max(organs)], [at, at], color=COLOURS.get(arm, "black"), linewidth=1)
            axis.plot([overall.median], [at], **_style(arm))  # type: ignore[arg-type]
    axis.set(xlabel="share of values inside 90 % intervals (lines: range over organs)", yticks=range(len(places)))
    axis.set_yticklabels([label for _, _, label in places])
    axis.invert_yaxis()
    _legend(axis, arms)
    return figure


def _organs() -> tuple[str, ...]:
    from perfuse.pk.physiology import ORGANS

    return ORGANS


def _time(summary: Summary) -> Figure | None:
    """GMFE on held-out curves against training time, both logarithmic."""
    reached = {arm: values for arm, values in summary.reached().items() if values["checks"]}
    if not reached:
        return None
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    styles, greys = itertools.cycle(("-", "-.", "--", ":")), itertools.cycle(("#0072b2", "#009e73", "#e69f00"))
    for arm, values in sorted(reached.items()):
        seconds, gmfe = zip(*values["checks"], strict=True)
        colour = COLOURS[FLUX] if arm.startswith(FLUX) else next(greys)
        axis.plot(seconds, gmfe, next(styles), marker=".", label=arm, color=colour)
    axis.axhline(summary.suite.time_to_accuracy.gmfe, color="0.4", linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="training time, s (one thread)", ylabel="GMFE, held-out curves")
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.legend(frameon=False, fontsize=8)
    return figure

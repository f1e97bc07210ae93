"""The report's charts, from what an evaluation and a run's ``metrics.jsonl`` hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from perfuse.evaluation.results import StoredCurves
from perfuse.evaluation.svg import BLUE, GREEN, INK, ORANGE, PURPLE, Axis, Plot, show_number
from perfuse.pk.physiology import ORGANS

Line = Mapping[str, object]
_SPARSE = 25
"""Up to so many observations a true curve is drawn as points, above as a line."""
_MOST_DENSITY_BINS = 70
FEW_VALUES = 1500
"""Up to so many values predicted-versus-true shows points, above a density."""


def _series(lines: Sequence[Line], key: str) -> np.ndarray:
    values = [line.get(key) for line in lines]
    return np.asarray([float(v) if isinstance(v, int | float) else np.nan for v in values])


def loss_chart(lines: Sequence[Line]) -> Markup:
    """Training and validation loss over steps."""
    step, train, val = (_series(lines, key) for key in ("step", "train_loss", "val_loss"))
    plot = Plot(
        Axis.around(step, "optimiser step"), Axis.around(np.concatenate((train, val)), "loss", log=True),
        "Loss", f"training ends at {_last(train)}, validation at {_last(val)}",
    )  # fmt: skip
    plot.line(step, train, ORANGE, "training", "5 3")
    plot.line(step, val, BLUE, "validation")
    _tips(plot, step, val, BLUE, "validation loss")
    return plot.render()


def rate_chart(lines: Sequence[Line]) -> Markup:
    """Learning rate over steps."""
    step, lr = _series(lines, "step"), _series(lines, "lr")
    plot = Plot(Axis.around(step, "optimiser step"), Axis.around(lr, "learning rate", log=True), "Learning rate",
                f"from {show_number(float(lr[0]))} to {_last(lr)}")  # fmt: skip
    plot.line(step, lr, GREEN)
    _tips(plot, step, lr, GREEN, "learning rate")
    return plot.render()


def gradient_chart(lines: Sequence[Line]) -> Markup:
    """Gradient norm before clipping over steps."""
    step, norm = _series(lines, "step"), _series(lines, "grad_norm")
    plot = Plot(Axis.around(step, "optimiser step"), Axis.around(norm, "gradient norm", log=True),
                "Gradient norm, before clipping", f"ends at {_last(norm)}")  # fmt: skip
    plot.line(step, norm, PURPLE)
    _tips(plot, step, norm, PURPLE, "gradient norm")
    return plot.render()


def _last(values: np.ndarray) -> str:
    good = values[np.isfinite(values)]
    return show_number(float(good[-1])) if len(good) else "no value"


def _tips(plot: Plot, xs: np.ndarray, ys: np.ndarray, color: str, what: str) -> None:
    """Small markers with tooltips, at most 60 of them."""
    keep = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), 60)).astype(int))
    tips = [f"step {show_number(float(xs[i]))}: {what} {show_number(float(ys[i]))}" for i in keep]
    plot.points(xs[keep], ys[keep], color, tips=tips, size=2.2)


def scatter_chart(curves: StoredCurves) -> Markup:
    """Predicted against true concentration: density of all values, or the values when they are few."""
    counts, edges = curves.density, curves.log10_edges
    total = int(counts.sum())
    used = np.flatnonzero((counts.sum(axis=0) + counts.sum(axis=1)) > 0)
    few = total <= FEW_VALUES
    if not len(used):
        low, high = -1.0, 1.0
    else:
        low, high = edges[used[0]], edges[used[-1] + 1]
    # A handful of floored predictions should not squeeze everything else into a corner.
    axis_label = "concentration, mg/L"
    x = Axis(10 ** (low - 0.1), 10 ** (high + 0.1), f"true {axis_label}", True)
    plot = Plot(
        x, Axis(x.low, x.high, f"predicted {axis_label}", True), "Predicted against true, all organs and times > 0",
        f"{total} values; most lie near the diagonal when the prediction is good", height=440,
    )  # fmt: skip
    if few:
        t, p = curves.sample_true, curves.sample_pred
        tips = [f"true {show_number(a)}, predicted {show_number(b)} mg/L" for a, b in zip(t, p, strict=True)]
        plot.points(t, p, BLUE, tips=tips, size=2.6, opacity=0.55)
    elif len(used):
        merge = max(1, -(-(used[-1] + 1 - used[0]) // _MOST_DENSITY_BINS))
        n = -(-(used[-1] + 1 - used[0]) // merge) * merge
        first = min(used[0], len(counts) - n)
        m = n // merge
        block = counts[first : first + n, first : first + n].reshape(m, merge, m, merge).sum(axis=(1, 3))
        at = 10 ** edges[first : first + n + 1 : merge]
        plot.cells(at, at, block)
    ends = np.asarray([x.low, x.high])
    plot.line(ends, ends, INK, "equal")
    plot.line(ends, 2 * ends, ORANGE, "2-fold", "5 3", 1.4)
    plot.line(ends, ends / 2, ORANGE, "", "5 3", 1.4)
    return plot.render()


def breakdown_chart(parts: Mapping[str, Mapping[str, Mapping[str, object]]], title: str) -> Markup:
    """Error of each organ or time window: the model and up to two others, as dots on a log scale of GMFE - 1.

    Args:
        parts: Who -> organ or window -> metrics; the model first.
        title: What the rows are.
    """
    names = [n for n in next(iter(parts.values()), {})]
    styles = ((BLUE, "circle", 5.0), (ORANGE, "diamond", 4.0), (GREEN, "square", 3.6))
    percent = {
        who: np.asarray([_percent(rows.get(name, {}).get("gmfe")) for name in names]) for who, rows in parts.items()
    }
    everything = np.concatenate(list(percent.values())) if percent else np.zeros(0)
    axis = Axis.around(everything, "GMFE - 1, % (log scale; left is better)", log=True)
    height = 100 + 21 * len(names)
    plot = Plot(axis, Axis(0, 1, ""), title, "dots further left are more accurate", height=height, categories=names)
    for (who, values), (color, shape, size) in zip(percent.items(), styles, strict=False):
        tips = [f"{name}, {who}: off by {show_number(float(v))} %" for name, v in zip(names, values, strict=True)]
        good = np.flatnonzero(values > 0)
        plot.points(values[good], good, color, who, [tips[i] for i in good], shape, size)
    return plot.render()


def _percent(gmfe: object) -> float:
    return 100 * (float(gmfe) - 1) if isinstance(gmfe, int | float) else float("nan")


def case_charts(curves: StoredCurves, case: int) -> list[Markup]:
    """Small multiples of one case: every organ that was observed, truth and prediction over time."""
    time, scored = curves.case_time_h[case], curves.case_scored[case]
    late = np.nan_to_num(time, nan=0.0) > 0
    shown = [o for o in range(len(ORGANS)) if (~np.isnan(curves.case_true[case, o]) & late).any()]
    x = Axis(0.0, 1.03 * float(np.max(time[late])) if late.any() else 1.0, "time, h")
    alone = len(shown) == 1
    out = []
    for o in shown:
        true, pred = curves.case_true[case, o], curves.case_pred[case, o]
        quantified = np.where(scored[o], true, np.nan)
        both = np.concatenate((quantified[late], pred[late & scored[o]]))
        y = Axis.around(both, "concentration, mg/L", log=True, decades=6)
        blood = "blood" if curves.case_matrix[case].startswith("blood") else str(curves.case_matrix[case])
        name = blood if o == 0 else ORGANS[o]
        size = (330, 240) if alone else (190, 128)
        plot = Plot(x, y, name, "truth in black, prediction in blue", *size, small=not alone)
        if scored[o].sum() <= _SPARSE:
            t, c = time[scored[o]], true[scored[o]]
            tips = [f"{show_number(a)} h: {show_number(b)} mg/L" for a, b in zip(t, c, strict=True)]
            plot.points(t, c, INK, tips=tips, size=2.6)
        else:
            plot.line(time, quantified, INK, width=3.2)
        plot.line(time, np.where(late, pred, np.nan), BLUE if scored[o].sum() <= _SPARSE else "#4db2f0", "", "4 2", 1.8)
        out.append(plot.render())
    return out

"""The report's charts as plotly figures, from what an evaluation and a run's ``metrics.jsonl`` hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from perfuse.evaluation.charts import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    THEME,
    Chart,
    compact,
    literal,
    log_axis,
    log_range,
    show_number,
)
from perfuse.evaluation.coverage import Coverage
from perfuse.evaluation.results import StoredCurves
from perfuse.pk.physiology import ORGANS

Line = Mapping[str, object]
FEW_VALUES = 1500
"""Up to so many values predicted-versus-true shows points, above a density."""
_SPARSE = 25
"""Up to so many observations a true curve is drawn as points, above as a line."""
_MOST_DENSITY_BINS = 70
_MOST_STEPS = 400
"""Validations drawn in a training curve."""
_MOST_TIMES = 150
"""Times drawn of one curve of a case."""
_DENSITY = [[0.0, "#c6dbef"], [0.35, "#6baed6"], [0.7, "#08519c"], [1.0, "#03132b"]]
_CONCENTRATION = "concentration, mg/L"


def loss_chart(lines: Sequence[Line], loss: str = "") -> Chart:
    """Training and validation loss over steps; ``loss`` names which."""
    train, val = _series(lines, "train_loss"), _series(lines, "val_loss")
    series = [("training", train, ORANGE, "dash"), ("validation", val, BLUE, "solid")]
    described = f"training ends at {_last(train)}, validation at {_last(val)}"
    return _over_steps(lines, series, "Loss", f"loss ({loss})" if loss else "loss", described)


def rate_chart(lines: Sequence[Line]) -> Chart:
    """Learning rate over steps."""
    lr = _series(lines, "lr")
    described = f"from {show_number(float(lr[0]))} to {_last(lr)}"
    return _over_steps(lines, [("learning rate", lr, GREEN, "solid")], "Learning rate", "learning rate", described)


def gradient_chart(lines: Sequence[Line]) -> Chart:
    """Gradient norm before clipping over steps."""
    norm = _series(lines, "grad_norm")
    series = [("gradient norm", norm, PURPLE, "solid")]
    return _over_steps(lines, series, "Gradient norm, before clipping", "gradient norm", f"ends at {_last(norm)}")


def _series(lines: Sequence[Line], key: str) -> np.ndarray:
    values = [line.get(key) for line in lines]
    return np.asarray([float(v) if isinstance(v, int | float) else np.nan for v in values])


def _last(values: np.ndarray) -> str:
    good = values[np.isfinite(values)]
    return show_number(float(good[-1])) if len(good) else "no value"


def _over_steps(
    lines: Sequence[Line], series: Sequence[tuple[str, np.ndarray, str, str]], title: str, label: str, described: str
) -> Chart:
    """Lines over optimiser steps: (name, values, colour, dash) each; log scale unless a value is not positive."""
    everything = np.concatenate([values for _, values, _, _ in series])
    log = not (everything <= 0).any()
    keep = _thinned(len(lines), _MOST_STEPS)
    step = compact(_series(lines, "step")[keep])
    mode = "lines" if len(keep) > 40 else "lines+markers"
    figure = go.Figure(layout={"template": THEME, "hovermode": "x unified", "showlegend": len(series) > 1})
    for name, values, color, dash in series:
        figure.add_scatter(
            x=step, y=compact(values[keep], positive=log), name=name, mode=mode,
            line={"color": color, "width": 2, "dash": dash}, marker={"size": 4},
            hovertemplate=f"{name} %{{y:.4~g}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(
        title_text="optimiser step", tickformat=",d", nticks=6, unifiedhovertitle={"text": "step %{x:,d}"}
    )
    figure.update_yaxes(log_axis(label, log_range(everything)) if log else {"title": {"text": label}})
    return Chart(title, described, figure, 290)


def _thinned(n: int, most: int) -> np.ndarray:
    """At most ``most`` evenly spaced numbers of 0..n-1, both ends among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)) if n else np.zeros(0, dtype=int)


def scatter_chart(curves: StoredCurves) -> Chart:
    """Predicted against true concentration: density of all values, or the values when they are few."""
    counts, edges = curves.density, curves.log10_edges
    total = int(counts.sum())
    used = np.flatnonzero((counts.sum(axis=0) + counts.sum(axis=1)) > 0)
    low, high = (edges[used[0]] - 0.1, edges[used[-1] + 1] + 0.1) if len(used) else (-1.0, 1.0)
    span = round(float(low), 4), round(float(high), 4)
    figure = go.Figure(layout={"template": THEME, "hovermode": "closest"})
    hover = "true %{x:.3~g} mg/L<br>predicted %{y:.3~g} mg/L"
    if total > FEW_VALUES:
        figure.add_trace(_density(counts, edges, used, hover))
    else:
        figure.add_scatter(
            x=compact(curves.sample_true, positive=True), y=compact(curves.sample_pred, positive=True), mode="markers",
            marker={"color": BLUE, "size": 5, "opacity": 0.55}, showlegend=False,
            hovertemplate=f"{hover}<extra></extra>",
        )  # fmt: skip
    ends = 10.0 ** np.asarray(span)
    for factor, name, color, dash in (
        (1.0, "equal", INK, "solid"),
        (2.0, "2-fold", ORANGE, "6px,3px"),
        (0.5, "", ORANGE, "6px,3px"),
    ):
        figure.add_scatter(
            x=compact(ends), y=compact(factor * ends), mode="lines", name=name, hoverinfo="skip",
            line={"color": color, "width": 1.4, "dash": dash}, showlegend=bool(name),
        )  # fmt: skip
    figure.update_xaxes(log_axis(f"true {_CONCENTRATION}", span, 6), constrain="domain")
    figure.update_yaxes(log_axis(f"predicted {_CONCENTRATION}", span, 6), scaleanchor="x", constrain="domain")
    described = f"{total} values; most lie near the diagonal when the prediction is good"
    return Chart("Predicted against true, all organs and times > 0", described, figure, 470, square=True)


def _density(counts: np.ndarray, edges: np.ndarray, used: np.ndarray, hover: str) -> go.Heatmap:
    """The occupied square of the histogram, bins merged until few enough, coloured by log10 of the count."""
    size = used[-1] + 1 - used[0]
    merge = max(1, -(-size // _MOST_DENSITY_BINS))
    n = -(-size // merge) * merge
    first = min(used[0], len(counts) - n)
    m = n // merge
    block = counts[first : first + n, first : first + n].reshape(m, merge, m, merge).sum(axis=(1, 3)).T
    at = compact(10 ** edges[first : first + n + 1 : merge])
    top = int(block.max())
    marks = [k * 10**e for e in range(9) for k in ((1,) if top >= 100 else (1, 2, 5)) if k * 10**e <= top]
    colorbar = {
        "title": {"text": "values", "font": {"size": 12}}, "thickness": 12, "outlinewidth": 0, "xpad": 4, "ypad": 0,
        "tickvals": [round(math.log10(v), 4) for v in marks], "ticktext": [f"{v:,}" for v in marks],
    }  # fmt: skip
    return go.Heatmap(
        x=at, y=at, z=[compact(row) for row in np.log10(np.where(block > 0, block, np.nan))],
        customdata=block.tolist(), hovertemplate=f"{hover}<br>%{{customdata:,d}} values<extra></extra>",
        colorscale=_DENSITY, zmin=0, zmax=max(math.log10(top), 0.3), hoverongaps=False, colorbar=colorbar,
    )  # fmt: skip


def breakdown_chart(parts: Mapping[str, Mapping[str, Mapping[str, object]]], title: str) -> Chart:
    """Error of each organ or time window: the model and up to two others, as dots on a log scale of GMFE - 1.

    Args:
        parts: Who -> organ or window -> metrics; the model first.
        title: What the rows are.
    """
    names = list(next(iter(parts.values()), {}))
    styles = ((BLUE, "circle", 10), (ORANGE, "diamond", 9), (GREEN, "square", 7))
    figure = go.Figure(layout={"template": THEME, "hovermode": "closest", "showlegend": True})
    rows = [literal(name) for name in names]
    everything = [np.zeros(0)]
    for (who, metrics), (color, symbol, size) in zip(parts.items(), styles, strict=False):
        percent = np.asarray([_percent(metrics.get(name, {}).get("gmfe")) for name in names])
        everything.append(percent)
        figure.add_scatter(
            x=compact(percent, positive=True), y=rows, name=literal(who), mode="markers",
            marker={"color": color, "symbol": symbol, "size": size, "line": {"color": "#fff", "width": 1}},
            hovertemplate="%{y}, %{fullData.name}<br>off by %{x:.4~g} %<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(log_axis("GMFE - 1, % (log scale; left is better)", log_range(np.concatenate(everything))))
    figure.update_yaxes(type="category", autorange="reversed", categoryarray=rows, showgrid=True, dtick=1)
    return Chart(title, "dots further left are more accurate", figure, 115 + 21 * len(names))


def coverage_chart(coverage: Coverage) -> Chart:
    """Share of values inside the 90 % interval, of each organ and time window, with two standard errors over drugs."""
    parts = {**coverage["per_organ"], **coverage["windows"]}
    shares = np.asarray([_share(s["coverage_90"]) for s in parts.values()])
    errors = np.asarray([_share(s["coverage_90_se"]) for s in parts.values()])
    rows = [literal(name) for name in parts]
    low = min(80.0, 5 * math.floor(float(np.nanmin(shares, initial=85.0)) / 5) - 1)
    figure = go.Figure(layout={"template": THEME, "hovermode": "closest", "showlegend": False})
    figure.add_vrect(x0=85, x1=95, fillcolor="#eef5fa", line_width=0, layer="below")
    figure.add_vline(x=90, line={"color": INK, "width": 1.4, "dash": "6px,3px"})
    figure.add_scatter(
        x=compact(shares), y=rows, mode="markers", name="inside",
        marker={"color": BLUE, "size": 10, "line": {"color": "#fff", "width": 1}},
        error_x={"type": "data", "array": compact(np.nan_to_num(2 * errors)), "color": GREY, "thickness": 1.5},
        hovertemplate="%{y}<br>%{x:.1f} % inside<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="values inside their 90 % interval, %", range=[low, 101])
    figure.update_yaxes(type="category", autorange="reversed", categoryarray=rows, showgrid=True, dtick=1)
    described = "dots near the dashed line at 90 % mean that the intervals keep their promise"
    return Chart("Coverage of the 90 % intervals, by organ and time", described, figure, 100 + 21 * len(rows))


def _share(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _percent(gmfe: object) -> float:
    return 100 * (float(gmfe) - 1) if isinstance(gmfe, int | float) else float("nan")


def case_charts(curves: StoredCurves, case: int) -> list[Chart]:
    """Small multiples of one case: every organ that was observed, truth and prediction over time."""
    late = np.nan_to_num(curves.case_time_h[case], nan=0.0) > 0
    shown = [o for o in range(len(ORGANS)) if (~np.isnan(curves.case_true[case, o]) & late).any()]
    return [_case_chart(curves, case, o, late, alone=len(shown) == 1) for o in shown]


def _case_chart(curves: StoredCurves, case: int, organ: int, late: np.ndarray, alone: bool) -> Chart:
    """One organ of one case; ``alone``: the case has no other, so there is room."""
    time, scored = curves.case_time_h[case], curves.case_scored[case, organ]
    true, pred = curves.case_true[case, organ], curves.case_pred[case, organ]
    sparse = scored.sum() <= _SPARSE
    quantified = np.where(scored, true, np.nan)
    kept = np.flatnonzero(scored) if sparse else _thinned(len(time), _MOST_TIMES)
    figure = go.Figure(layout={"template": THEME, "hovermode": "x unified", "showlegend": False})
    figure.add_scatter(
        x=compact(time[kept]), y=compact(quantified[kept], positive=True), name="truth",
        mode="markers" if sparse else "lines", marker={"color": INK, "size": 6}, line={"color": GREY, "width": 5},
        hovertemplate="truth %{y:.3~g}<extra></extra>",
    )  # fmt: skip
    drawn = np.flatnonzero(late)
    drawn = drawn[_thinned(len(drawn), _MOST_TIMES)]
    figure.add_scatter(
        x=compact(time[drawn]), y=compact(pred[drawn], positive=True), name="prediction", mode="lines",
        line={"color": BLUE, "width": 1.8}, hovertemplate="pred. %{y:.3~g}<extra></extra>",
    )  # fmt: skip
    lower, upper = curves.case_lower[case, organ], curves.case_upper[case, organ]
    if np.isfinite(lower[drawn]).any():
        _add_band(figure, time[drawn], lower[drawn], upper[drawn])
    end = 1.03 * float(np.max(time[late])) if late.any() else 1.0
    both = np.concatenate((quantified[late], *(values[late & scored] for values in (pred, lower, upper))))
    size = 12 if alone else 10.5
    figure.update_xaxes(
        title={"text": "time, h", "font": {"size": size}}, range=[0, round(end, 4)], nticks=6 if alone else 5,
        tickfont={"size": size}, unifiedhovertitle={"text": "%{x:.3~g} h, mg/L"},
    )  # fmt: skip
    figure.update_yaxes(log_axis("mg/L", log_range(both, decades=6), 6 if alone else 5, size))
    figure.update_yaxes(title_font={"size": size})
    matrix = str(curves.case_matrix[case])
    name = ORGANS[organ] if organ else "blood" if matrix.startswith("blood") else matrix
    shape = "dots" if sparse else "a grey line"
    described = f"{curves.kind[case]} curve {curves.case_curve_id[case]}, truth as {shape}, prediction as a blue line"
    return Chart(name, described, figure, 270 if alone else 175)


def _add_band(figure: go.Figure, time: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
    """The 90 % interval as a pale band."""
    style = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "name": "90 % interval"}
    figure.add_scatter(x=compact(time), y=compact(lower, positive=True), **style)
    figure.add_scatter(
        x=compact(time), y=compact(upper, positive=True), fill="tonexty", fillcolor="rgba(0,114,178,0.18)", **style
    )

"""The two charts of a sweep's page: parallel coordinates, and validation loss over the course of each trial.

Parallel coordinates are drawn as plain lines, not by plotly's own trace: that needs WebGL and code made at run time,
which the page's policy forbids, and knows no log axis and no dashes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from perfuse.evaluation.charts import (
    GREY,
    INK,
    ORANGE,
    THEME,
    Chart,
    compact,
    literal,
    log_axis,
    log_range,
    show_number,
)
from perfuse.tuning.record import TrialRecord
from perfuse.tuning.space import Parameter, Range, Space

_SCALE = [[0.0, "#0b2a5b"], [0.5, "#2f8fae"], [1.0, "#e2a64a"]]
_DASH = {"completed": "solid", "terminated": "dot", "failed": "dash", "lost": "dash"}
_NAMES = {"completed": "to its end", "terminated": "terminated early", "failed": "failed"}
_AXIS_PX, _MOST_TICKS = 120, 6


@dataclass(frozen=True)
class Axis:
    """One upright axis: where values lie between 0 (bottom) and 1, and its ticks."""

    title: str
    low: float
    high: float
    log: bool
    choices: tuple[object, ...] = ()

    def place(self, value: object) -> float:
        if self.choices:
            return self.choices.index(value) / max(len(self.choices) - 1, 1)
        assert isinstance(value, int | float)
        low, high, at = (_log(v) if self.log else float(v) for v in (self.low, self.high, value))
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        if self.choices:
            return [(self.place(c), str(c)) for c in self.choices]
        return [(self.place(v), show_number(v)) for v in _ticks(self.low, self.high, self.log)]


def axis_of(parameter: Parameter) -> Axis:
    """The axis of a parameter."""
    if isinstance(parameter, Range):
        return Axis(parameter.key, parameter.low, parameter.high, parameter.log)
    return Axis(parameter.key, 0, 1, False, parameter.values)


def loss_axis(losses: Sequence[float]) -> Axis:
    """The axis of validation loss; log where all are positive."""
    low, high = min(losses), max(losses)
    return Axis("validation loss", low, high, low > 0 and high > 1.5 * low)


def parallel_chart(trials: Sequence[TrialRecord], space: Space, best: TrialRecord) -> Chart:
    """Parallel coordinates: a line per trial over its values, coloured by its validation loss.

    Args:
        trials: Those that have ended.
        space: What was searched.
        best: The trial that was chosen.
    """
    losses = [t.ended.val_loss for t in trials if t.ended and t.ended.val_loss is not None]
    axes = [*(axis_of(p) for p in space.parameters), loss_axis(losses)]
    figure = go.Figure(layout={"template": THEME})
    worst_first = sorted((t for t in trials if t is not best), key=_worst_first)
    for trial in [*worst_first, best]:
        figure.add_trace(_line(trial, axes, trial is best))
    for status in _NAMES:
        if any(t.ended and t.ended.status == status for t in trials):
            figure.add_trace(_legend(_NAMES[status], GREY, _DASH[status], 2))
    figure.add_trace(_legend(f"chosen: trial {best.number}", ORANGE, "solid", 4))
    figure.add_trace(_colour_bar(axes[-1]))
    for x, axis in enumerate(axes):
        figure.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, line={"color": INK, "width": 1}, layer="below")
        for y, text in axis.ticks():
            figure.add_annotation(
                x=x, y=y, text=literal(text), showarrow=False, xanchor="right", xshift=-3,
                bgcolor="rgba(255,255,255,0.8)", font={"size": 11, "color": INK}, borderpad=1,
            )  # fmt: skip
    figure.update_layout(
        xaxis={
            "tickvals": list(range(len(axes))), "ticktext": [_two_lines(a.title) for a in axes], "side": "top",
            "range": [-0.55, len(axes) - 0.75], "showgrid": False, "showline": False, "ticks": "", "fixedrange": True,
        },
        yaxis={
            "range": [-0.04, 1.04], "showticklabels": False, "showgrid": False, "showline": False, "ticks": "",
            "fixedrange": True,
        },
        legend={"orientation": "h", "x": 0, "y": -0.02, "xanchor": "left", "yanchor": "top"},
        hovermode="closest",
    )  # fmt: skip
    values = ", ".join(f"{k} {v}" for k, v in best.values.items())
    return Chart(
        "Every trial: its values, and the validation loss they led to",
        f"{len(trials)} trials over {len(axes) - 1} parameters; the best, trial {best.number}, has {values}",
        figure,
        height_px=460,
    )


def course_chart(
    trials: Sequence[TrialRecord], courses: Mapping[int, Sequence[tuple[float, float]]], best: TrialRecord
) -> Chart:  # fmt: skip
    """Best validation loss so far over the part of its length that a trial has behind it.

    Args:
        trials: Those that have ended.
        courses: Trial -> (percent of its length, best validation loss so far), in order.
        best: The trial that was chosen.
    """
    losses = [t.ended.val_loss for t in trials if t.ended and t.ended.val_loss is not None]
    colours = loss_axis(losses)
    figure = go.Figure(layout={"template": THEME, "showlegend": False})
    shown: list[float] = []
    for trial in [*sorted((t for t in trials if t is not best), key=_worst_first), best]:
        course = courses.get(trial.number, ())
        if not course:
            continue
        status = trial.ended.status if trial.ended else "lost"
        colour = ORANGE if trial is best else _colour(trial, colours)
        x, y = [p for p, _ in course], [v for _, v in course]
        shown += y
        figure.add_trace(
            go.Scatter(
                x=compact(x), y=compact(y, positive=True), mode="lines", name=f"trial {trial.number}",
                line={"color": colour, "width": 3 if trial is best else 1.3, "shape": "hv"},
                hovertemplate="%{x:.0f} %: %{y:.4g}<extra>%{fullData.name}</extra>",
            )
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=compact(x[-1:]), y=compact(y[-1:], positive=True), mode="markers", hoverinfo="skip",
                marker={"symbol": "circle" if status == "completed" else "x", "size": 7, "color": colour},
            )
        )  # fmt: skip
    figure.update_layout(
        xaxis={"title": {"text": "% of the trial's own length"}, "range": [0, 103]},
        yaxis=log_axis("best validation loss so far", log_range(shown)),
    )
    return Chart(
        "The course of every trial",
        f"lines of {len(courses)} trials; a cross ends one that was terminated early or failed",
        figure,
        height_px=360,
    )


def _line(trial: TrialRecord, axes: Sequence[Axis], is_best: bool) -> go.Scatter:
    ended = trial.ended
    assert ended is not None
    named = list(zip(axes[:-1], [trial.values[a.title] for a in axes[:-1]], strict=True))
    y = [axis.place(value) for axis, value in named]
    loss = "no finite validation loss" if ended.val_loss is None else f"validation loss {show_number(ended.val_loss)}"
    text = [f"{a.title} = {show_number(v) if isinstance(v, float) else v}" for a, v in named]
    if ended.val_loss is not None:
        y.append(axes[-1].place(ended.val_loss))
        text.append(loss)
    how = "" if ended.status == "completed" else f", {_NAMES.get(ended.status, ended.status)}"
    if ended.status == "terminated":
        how += f" at {ended.progress:.0%}"
    return go.Scatter(
        x=list(range(len(y))), y=compact(y), mode="lines+markers", showlegend=False, name=f"trial {trial.number}",
        line={
            "color": ORANGE if is_best else _colour(trial, axes[-1]), "width": 4 if is_best else 1.6,
            "dash": _DASH[ended.status],
        },
        marker={"size": 6 if is_best else 4},
        text=[literal(t) for t in text],
        hovertemplate=f"trial {trial.number}: {loss}{how}<br>%{{text}}<extra></extra>",
    )  # fmt: skip


def _colour(trial: TrialRecord, axis: Axis) -> str:
    if trial.ended is None or trial.ended.val_loss is None:
        return GREY
    colour: str = sample_colorscale(_SCALE, [min(max(axis.place(trial.ended.val_loss), 0.0), 1.0)])[0]
    return colour


def _colour_bar(axis: Axis) -> go.Scatter:
    """A point that is not seen, for the scale that is."""
    ticks = axis.ticks()
    return go.Scatter(
        x=[None], y=[None], mode="markers", showlegend=False, hoverinfo="skip",
        marker={
            "color": [0], "cmin": 0, "cmax": 1, "colorscale": _SCALE, "showscale": True,
            "colorbar": {
                "title": {"text": "loss", "side": "top", "font": {"size": 11}}, "thickness": 10, "len": 0.9,
                "tickvals": [p for p, _ in ticks], "ticktext": [t for _, t in ticks], "x": 1.0,
                "tickfont": {"size": 10},
            },
        },
    )  # fmt: skip


def _legend(name: str, colour: str, dash: str, width: float) -> go.Scatter:
    return go.Scatter(
        x=[None], y=[None], mode="lines", name=literal(name), line={"color": colour, "dash": dash, "width": width}
    )


def _worst_first(trial: TrialRecord) -> float:
    loss = trial.ended.val_loss if trial.ended else None
    return -math.inf if loss is None else -loss


def _two_lines(key: str) -> str:
    """``optimizer.<br>lr``: narrow enough to stand beside others."""
    return literal(key).replace(".", ".<br>", 1) if "." in key else literal(key).replace(" ", "<br>", 1)


def _log(value: float) -> float:
    return math.log10(value)


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Both ends and a few round numbers between them that keep their distance."""
    if not high > low:
        return [low]
    found = [low, high]
    if log:
        decades = range(math.ceil(_log(low)), math.floor(_log(high)) + 1)
        inner = [m * 10.0**d for d in range(min(decades, default=0) - 1, max(decades, default=0) + 1) for m in (1, 3)]
        if not decades:
            inner = [low * (high / low) ** f for f in (1 / 3, 2 / 3)]
    else:
        step = _round_step((high - low) / 4)
        inner = [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    axis = Axis("", low, high, log)
    for value in inner:
        if low < value < high and all(abs(axis.place(value) - axis.place(f)) > 1 / (2 * _MOST_TICKS) for f in found):
            found.append(value)
    return sorted(found)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(_log(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step)


def minimum_width_px(space: Space) -> int:
    """How wide parallel coordinates must be for their ticks not to meet."""
    return _AXIS_PX * (len(space.parameters) + 1)

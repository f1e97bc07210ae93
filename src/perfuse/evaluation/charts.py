"""What every chart of the report shares: theme, compact numbers, and JSON that is safe inside an HTML page.

Colours are from Okabe M, Ito K (Color Universal Design, 2008): told apart with any colour vision, and every series
also differs by dash, width or shape.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

INK, GREY, BLUE, ORANGE, GREEN, PURPLE = "#1a1a1a", "#8c8c8c", "#0072B2", "#D55E00", "#00785a", "#8a3d6e"
_GRID = "#dcdcdc"
_DIGITS = 5
"""Significant digits of every number in a chart."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_AXIS = {
    "showgrid": True, "gridcolor": _GRID, "zeroline": False, "showline": True, "mirror": True, "linecolor": "#777",
    "ticks": "outside", "ticklen": 3, "tickcolor": "#777", "tickformat": ".5~g", "tickangle": 0,
    "automargin": True,
    "title": {"standoff": 6, "font": {"size": 12.5}},
}  # fmt: skip
THEME = go.layout.Template(
    layout={
        "font": {"family": _FONT, "size": 12, "color": INK},
        "paper_bgcolor": "#fff", "plot_bgcolor": "#fff", "margin": {"l": 8, "r": 10, "t": 8, "b": 8, "pad": 0},
        "hoverlabel": {
            "bgcolor": "#fff", "bordercolor": "#777", "namelength": -1,
            "font": {"family": _FONT, "color": INK, "size": 12},
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "xanchor": "left", "yanchor": "bottom"},
        "xaxis": _AXIS, "yaxis": _AXIS,
    }
)  # fmt: skip
"""Look of every chart; the page holds it once."""


@dataclass(frozen=True)
class Chart:
    """One figure and what the page says around it.

    Attributes:
        title: Above the chart (HTML, so that it wraps on a narrow screen).
        description: For those who cannot see it.
        figure: The plotly figure; its template is ``THEME``.
        height_px: Height of its place; the width follows the page.
        square: Lower on a narrow screen, because both axes share one scale.
    """

    title: str
    description: str
    figure: go.Figure
    height_px: int = 320
    square: bool = False

    @property
    def json(self) -> Markup:
        """Traces and layout as JSON for a script element, without the shared theme."""
        plain = self.figure.to_plotly_json()
        plain["layout"].pop("template", None)
        return script_json({"data": plain["data"], "layout": plain["layout"]})


def theme_json() -> Markup:
    """``THEME`` as JSON for a script element."""
    return script_json(THEME.to_plotly_json())


def script_json(content: object) -> Markup:
    """JSON that cannot end the script element it stands in: ``<``, ``>`` and ``&`` only as escapes.

    Raises:
        ValueError: if a number is not finite (``compact`` turns those into null).
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def literal(text: object) -> str:
    """Text from data as plotly should show it: plotly reads markup such as ``<b>`` or ``<a>`` in titles and names."""
    return html.escape(str(text), quote=False)


def compact(values: np.ndarray | Sequence[float], positive: bool = False) -> list[float | None]:
    """Numbers with five significant digits; None (a gap) where not finite, or not positive if ``positive``."""
    return [
        None if not math.isfinite(v) or (positive and v <= 0) else float(f"{v:.{_DIGITS}g}")
        for v in np.asarray(values, dtype=float).tolist()
    ]


def log_range(values: np.ndarray | Sequence[float], decades: float = 12, pad: float = 0.04) -> tuple[float, float]:
    """Log10 of an axis range that holds every positive value, at most the top ``decades``; (-1, 1) without any."""
    v = np.asarray(values, dtype=float)
    v = v[np.isfinite(v) & (v > 0)]
    if not len(v):
        return -1.0, 1.0
    low, high = math.log10(v.min()), math.log10(v.max())
    low = max(low, high - decades)
    margin = max(pad * (high - low), 0.15)
    return round(low - margin, 4), round(high + margin, 4)


def log_axis(label: str, span: tuple[float, float], most_ticks: int = 7, font_px: float = 12) -> dict[str, object]:
    """A log axis over ``span`` (log10); whole decades as ticks when it holds at least two, else 1, 2, 5."""
    width = span[1] - span[0]
    axis: dict[str, object] = {"type": "log", "range": list(span), "title": {"text": label}, "dtick": "D1"}
    axis["tickfont"] = {"size": font_px}
    if width >= 2:
        axis["dtick"] = max(1, math.ceil(width / most_ticks))
        if span[0] < -5 or span[1] > 5:  # 10^-8 reads better than 0.00000001; plotly draws powers 1.25 times as large
            axis |= {"exponentformat": "power", "tickformat": "", "tickfont": {"size": font_px / 1.2}}
    elif width > 0.5:
        axis["dtick"] = "D2"
    return axis


def show_number(value: float) -> str:
    """A short number for a description."""
    text = f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"

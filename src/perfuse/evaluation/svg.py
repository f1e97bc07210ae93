"""A small plotting kit: charts as SVG text, readable without scripts, with tooltips from ``<title>``.

Colours are from Okabe M, Ito K (Color Universal Design, 2008): told apart with any colour vision, and every series
also differs by dash or shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

INK, GRID, BLUE, ORANGE, GREEN, PURPLE = "#1a1a1a", "#dcdcdc", "#0072B2", "#D55E00", "#00785a", "#8a3d6e"
_DENSITY = ((222, 235, 247), (107, 174, 214), (8, 81, 156), (3, 19, 43))


@dataclass(frozen=True)
class Axis:
    """One axis: range in data units, log10 or linear, label with unit."""

    low: float
    high: float
    label: str
    log: bool = False

    @classmethod
    def around(
        cls, values: Sequence[float] | np.ndarray, label: str, log: bool = False, decades: float = 12, pad: float = 0.04
    ) -> Axis:
        """An axis that holds every finite (positive, if log) value; on a log axis at most the top ``decades``."""
        v = np.asarray(values, dtype=float)
        v = v[np.isfinite(v) & (v > 0 if log else True)]
        if not len(v):
            return cls(0.1, 10.0, label, True) if log else cls(0.0, 1.0, label)
        low, high = float(v.min()), float(v.max())
        if log:
            a, b = math.log10(low), math.log10(high)
            a = max(a, b - decades)
            margin = max(pad * (b - a), 0.15)
            return cls(10 ** (a - margin), 10 ** (b + margin), label, True)
        margin = pad * (high - low) or 0.5
        return cls(low - margin if low < 0 else max(0.0, low - margin), high + margin, label)

    def at(self, value: np.ndarray | float) -> np.ndarray:
        """Position(s) along the axis, 0..1."""
        v = np.asarray(value, dtype=float)
        if not self.log:
            return (v - self.low) / (self.high - self.low)
        a, b = math.log10(self.low), math.log10(self.high)
        return (np.log10(np.maximum(v, 1e-300)) - a) / (b - a)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the range."""
        if self.log:
            a, b = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            if b - a < 1:
                steps = [m * 10.0**e for e in range(a - 1, b + 2) for m in (1, 2, 5)]
                return [s for s in steps if self.low <= s <= self.high]
            stride = max(1, math.ceil((b - a + 1) / most))
            return [10.0**e for e in range(a, b + 1, stride)]
        raw = (self.high - self.low) / max(most, 1)
        size = 10 ** math.floor(math.log10(raw))
        step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw)
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def show_number(value: float) -> str:
    """A short number for a tick or tooltip."""
    text = f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


@dataclass
class Plot:
    """A chart under construction; add marks, then ``render``.

    Attributes:
        x, y: Axes.
        title: Above the chart, with the subject.
        description: For those who cannot see it.
        width, height: Size in viewBox units (the chart scales to its place).
        categories: Names instead of ticks on the y axis, from the top; y values are then 0, 1, 2 ...
        small: Drop labels and most ticks, for small multiples.
    """

    x: Axis
    y: Axis
    title: str
    description: str
    width: int = 440
    height: int = 320
    categories: Sequence[str] = ()
    small: bool = False
    _marks: list[str] = field(default_factory=list)
    _legend: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        left = 92 if self.categories else 34 if self.small else 62
        self._box = (left, 22 if self.small else 44, 8 if self.small else 16, 20 if self.small else 46)

    def _px(self, values: np.ndarray) -> np.ndarray:
        left, _, right, _ = self._box
        return left + self.x.at(values) * (self.width - left - right)

    def _py(self, values: np.ndarray) -> np.ndarray:
        _, top, _, bottom = self._box
        inner = self.height - top - bottom
        if self.categories:
            return top + (np.asarray(values, dtype=float) + 0.5) / len(self.categories) * inner
        return top + (1 - self.y.at(values)) * inner

    def line(
        self, xs: np.ndarray, ys: np.ndarray, color: str, label: str = "", dash: str = "", width: float = 1.8
    ) -> None:
        """A polyline, broken at values that are not finite (or not positive on a log axis)."""
        ok = np.isfinite(xs) & np.isfinite(ys) & ((ys > 0) | (not self.y.log)) & ((xs > 0) | (not self.x.log))
        px, py = self._px(np.where(ok, xs, 1.0)), self._py(np.where(ok, ys, 1.0))
        path, pen_down = [], False
        for good, a, b in zip(ok, px, py, strict=True):
            if good:
                path.append(f"{'L' if pen_down else 'M'}{a:.1f} {b:.1f}")
            pen_down = bool(good)
        extra = f' stroke-dasharray="{dash}"' if dash else ""
        pen = f'fill="none" stroke="{color}" stroke-width="{width}" stroke-linejoin="round"{extra}'
        self._marks.append(f'<path d="{"".join(path)}" {pen}/>')
        if label:
            self._legend.append((label, color, dash or "line"))

    def points(
        self, xs: np.ndarray, ys: np.ndarray, color: str, label: str = "", tips: Sequence[str] = (),
        shape: str = "circle", size: float = 3.0, opacity: float = 1.0,
    ) -> None:  # fmt: skip
        """Markers with tooltips; ``shape`` is circle, square or diamond."""
        for i, (a, b) in enumerate(zip(self._px(np.asarray(xs)), self._py(np.asarray(ys)), strict=True)):
            if not (math.isfinite(a) and math.isfinite(b)):
                continue
            tip = f"<title>{escape(tips[i])}</title>" if len(tips) > i else ""
            s = size
            fill = f'fill="{color}"' + (f' fill-opacity="{opacity}"' if opacity < 1 else "")
            if shape == "circle":
                self._marks.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{s}" {fill}>{tip}</circle>')
            else:
                turn = f' transform="rotate(45 {a:.1f} {b:.1f})"' if shape == "diamond" else ""
                place = f'x="{a - s:.1f}" y="{b - s:.1f}" width="{2 * s}" height="{2 * s}"'
                self._marks.append(f"<rect {place} {fill}{turn}>{tip}</rect>")
        if label:
            self._legend.append((label, color, shape))

    def cells(self, x_edges: np.ndarray, y_edges: np.ndarray, counts: np.ndarray) -> None:
        """A density: one rectangle per occupied cell of ``counts`` (x, y), darker for more (log scale)."""
        px, py = self._px(x_edges), self._py(y_edges)
        top = math.log1p(float(counts.max())) or 1.0
        for i, j in np.argwhere(counts > 0):
            color = density_color(math.log1p(float(counts[i, j])) / top)
            width, height = px[i + 1] - px[i] + 0.4, py[j] - py[j + 1] + 0.4  # overlap: no seams from rounding
            place = f'x="{px[i]:.1f}" y="{py[j + 1]:.1f}" width="{width:.2f}" height="{height:.2f}"'
            tip = f"<title>{int(counts[i, j])} values</title>"
            self._marks.append(f'<rect {place} fill="{color}" shape-rendering="crispEdges">{tip}</rect>')

    def render(self) -> Markup:
        """The chart as SVG."""
        name = escape(self.title)
        parts = [
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{name}: {escape(self.description)}"',
            f' style="max-width:{round(1.35 * self.width)}px">',
            f'<text x="{self._box[0]}" y="14" class="t">{name}</text>',
            *self._grid(),
            self._clipped(),
            *self._legend_marks(),
            "</svg>",
        ]
        return Markup("".join(parts))  # every text above is escaped

    def _clipped(self) -> str:
        """The marks in a nested viewport, which cuts off what lies outside the axes."""
        left, top, right, bottom = self._box
        w, h = self.width - left - right, self.height - top - bottom
        size = f'x="{left}" y="{top}" width="{w}" height="{h}" viewBox="{left} {top} {w} {h}"'
        return f"<svg {size}>{''.join(self._marks)}</svg>"

    def _grid(self) -> list[str]:
        left, top, right, bottom = self._box
        x2, y2 = self.width - right, self.height - bottom
        out = []
        for tick in self.x.ticks(3 if self.small else 6):
            x = float(self._px(np.asarray(tick)))
            out.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{y2}" stroke="{GRID}"/>')
            out.append(f'<text x="{x:.1f}" y="{y2 + 14}" text-anchor="middle" class="k">{show_number(tick)}</text>')
        if self.categories:
            for i, name in enumerate(self.categories):
                y = float(self._py(np.asarray(i)))
                out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{x2}" y2="{y:.1f}" stroke="{GRID}"/>')
                out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" class="k">{escape(name)}</text>')
        else:
            for tick in self.y.ticks(3 if self.small else 6):
                y = float(self._py(np.asarray(tick)))
                out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{x2}" y2="{y:.1f}" stroke="{GRID}"/>')
                place = f'x="{left - 4}" y="{y + 4:.1f}" text-anchor="end" class="k"'
                out.append(f"<text {place}>{show_number(tick)}</text>")
        box = f'x="{left}" y="{top}" width="{x2 - left}" height="{y2 - top}"'
        out.append(f'<rect {box} fill="none" stroke="#777"/>')
        if not self.small:
            place = f'x="{(left + x2) / 2}" y="{self.height - 10}" text-anchor="middle" class="a"'
            out.append(f"<text {place}>{escape(self.x.label)}</text>")
            middle = (top + y2) / 2
            if not self.categories:
                out.append(
                    f'<text x="14" y="{middle}" text-anchor="middle" class="a" transform="rotate(-90 14 {middle})">'
                    f"{escape(self.y.label)}</text>"
                )
        return out

    def _legend_marks(self) -> list[str]:
        out = []
        x = float(self.width - self._box[2])
        for label, color, kind in reversed(self._legend):
            x -= 6.6 * len(label) + 30
            y = 34.0
            out.append(f'<text x="{x + 22:.1f}" y="{y}" class="k">{escape(label)}</text>')
            if kind == "circle":
                out.append(f'<circle cx="{x + 10:.1f}" cy="{y - 4}" r="3.5" fill="{color}"/>')
            elif kind in ("square", "diamond"):
                turn = f' transform="rotate(45 {x + 10:.1f} {y - 4})"' if kind == "diamond" else ""
                place = f'x="{x + 7:.1f}" y="{y - 7}" width="6" height="6"'
                out.append(f'<rect {place} fill="{color}"{turn}/>')
            else:
                dash = "" if kind == "line" else f' stroke-dasharray="{kind}"'
                place = f'x1="{x:.1f}" y1="{y - 4}" x2="{x + 18:.1f}" y2="{y - 4}"'
                out.append(f'<line {place} stroke="{color}" stroke-width="2"{dash}/>')
        return out


def density_color(share: float) -> str:
    """Light to dark blue for 0..1."""
    place = min(max(share, 0.0), 1.0) * (len(_DENSITY) - 1)
    i = min(int(place), len(_DENSITY) - 2)
    mixed = (round(a + (b - a) * (place - i)) for a, b in zip(_DENSITY[i], _DENSITY[i + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)

"""The pictures of the two example pages.

    python scripts/make_example_pictures.py        # docs/img/example-*.png; seconds; needs the dev extra

The studies are the ones that the pages themselves run: their TOML blocks are read from the pages.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import matplotlib as mpl
import numpy as np

from perfuse.data.study import study_from
from perfuse.evaluation.solve import SolvedStudy, solve_study

mpl.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parents[1] / "docs"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe & Ito


def study_of(page: str) -> SolvedStudy:
    """The study whose TOML stands in a page's heredoc."""
    text = (DOCS / page).read_text(encoding="utf-8")
    match = re.search(r"<<'TOML'\n(.*?)\nTOML", text, re.S)
    if match is None:
        raise ValueError(f"{page} holds no study")
    return solve_study(study_from(tomllib.loads(match[1])))


def style() -> None:
    """The look of every picture here."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "0"})


def draw_drug(solved: SolvedStudy, out: Path) -> None:
    """Plasma and organs: the first hours, and all of it."""
    figure, axes = plt.subplots(
        1, 2, figsize=(8, 3.4), sharey=True, layout="constrained", gridspec_kw={"width_ratios": [2, 3]}
    )
    for axis, last in zip(axes, (2.0, solved.time_h[-1]), strict=True):
        shown = (solved.time_h > 0) & (solved.time_h <= last)
        for row, (organ, colour) in enumerate(zip(solved.organs, COLOURS, strict=True)):
            name = "plasma" if organ == "blood" else organ
            values = solved.conc_mg_l[0, row, shown]
            axis.plot(solved.time_h[shown], values, color=colour, linewidth=1.6, label=name)
        axis.set(yscale="log", xlabel="time, h", xlim=(0, last), ylim=(5e-3, 1))
        axis.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylabel("concentration, mg/L")
    axes[1].legend(frameon=False, ncols=2)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def draw_population(solved: SolvedStudy, out: Path) -> None:
    """A panel an organ: the median and the band of 5-95 %."""
    figure, axes = plt.subplots(1, len(solved.organs), figsize=(9, 3.2), sharey=True, layout="constrained")
    low, middle, high = solved.percentiles()[..., 1:]
    time = solved.time_h[1:]
    for o, (axis, organ) in enumerate(zip(axes, solved.organs, strict=True)):
        axis.fill_between(time, low[o], high[o], color=COLOURS[0], alpha=0.25, linewidth=0, label="5-95 %")
        axis.plot(time, middle[o], color=COLOURS[0], linewidth=1.4, label="median")
        axis.set(
            title="plasma" if organ == "blood" else organ, yscale="log", xlim=(0, time[-1]),
            xticks=np.arange(0, time[-1] + 1, 12), ylim=(low.min() / 1.5, high.max() * 2.5),
        )  # fmt: skip
        axis.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylabel("concentration, mg/L")
    axes[-1].legend(frameon=False, ncols=2, loc="upper right")
    figure.supxlabel("time, h", fontsize=9)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def main() -> None:
    """Draw both."""
    style()
    folder = DOCS / "img"
    folder.mkdir(exist_ok=True)
    for page, draw in (("example-drug.md", draw_drug), ("example-population.md", draw_population)):
        out = folder / page.replace(".md", ".png")
        draw(study_of(page), out)
        print(out)


if __name__ == "__main__":
    main()

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
    """One panel: plasma and organs over time."""
    figure, axis = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    for organ, colour in zip(solved.organs, COLOURS, strict=False):
        name = "plasma" if organ == "blood" else organ
        row = solved.organs.index(organ)
        axis.plot(solved.time_h[1:], solved.conc_mg_l[0, row, 1:], color=colour, linewidth=1.6, label=name)
    axis.set(yscale="log", xlabel="time, h", ylabel="concentration, mg/L", ylim=(5e-4, None))
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.legend(frameon=False, ncols=2)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def draw_population(solved: SolvedStudy, out: Path) -> None:
    """A panel an organ: the median and the band of 5-95 %."""
    figure, axes = plt.subplots(1, len(solved.organs), figsize=(9, 3.2), sharex=True, layout="constrained")
    low, middle, high = solved.percentiles()
    for o, (axis, organ) in enumerate(zip(axes, solved.organs, strict=True)):
        axis.fill_between(solved.time_h, low[o], high[o], color=COLOURS[0], alpha=0.25, linewidth=0, label="5-95 %")
        axis.plot(solved.time_h, middle[o], color=COLOURS[0], linewidth=1.6, label="median")
        axis.set(
            title="plasma" if organ == "blood" else organ,
            xticks=np.arange(0, solved.time_h[-1] + 1, 12),
            ylim=(0, None),
        )
        axis.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylabel("concentration, mg/L")
    axes[-1].set_ylim(0, 1.2 * high[-1].max())
    axes[-1].legend(frameon=False, ncols=2, loc="upper center")
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

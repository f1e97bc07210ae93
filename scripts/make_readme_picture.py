"""The README's picture: organ curves of unseen drugs in unseen bodies, exact solution against prediction.

    python scripts/make_readme_picture.py          # docs/img/curves.png; two minutes; needs the dev extra

Trains ``flux`` (prior "none") on 320 simulated curves of task T2 and draws three curves of another seed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from perfuse.config import RunConfig, TrainingConfig
from perfuse.data.simulate import simulate_task
from perfuse.data.table import CurveTable, to_batch
from perfuse.pk.physiology import ORGAN_INDEX
from perfuse.training.load import load_model
from perfuse.training.run import train

mpl.use("Agg")
import matplotlib.pyplot as plt

ORGANS_SHOWN = ("blood", "liver", "brain", "adipose")
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # Okabe & Ito: told apart by the colour-blind
DOTS_EVERY = 6


def trained_prediction(unseen: CurveTable, minutes: float) -> np.ndarray:
    """Predictions for ``unseen``, mg/L, by a ``flux`` trained for so many minutes on other drugs and bodies."""
    config = RunConfig(training=TrainingConfig(max_minutes=minutes, tensorboard=False))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(simulate_task("T2", 400, seed=1), config, run)
        model = load_model(run).model
    with torch.no_grad():
        return model(to_batch(unseen)).numpy()


def draw(unseen: CurveTable, predicted: np.ndarray, out: Path) -> None:
    """Four panels, one per organ; dots are exact, lines predicted."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "0"})
    figure, axes = plt.subplots(1, len(ORGANS_SHOWN), figsize=(10, 3), sharex=True, layout="constrained")
    for axis, organ in zip(axes, ORGANS_SHOWN, strict=True):
        for c, colour in enumerate(COLOURS):
            row, time_h = ORGAN_INDEX[organ], unseen.time_h[c]
            axis.plot(time_h[1:], predicted[c, row, 1:], color=colour, linewidth=1.4)
            dots = slice(1, None, DOTS_EVERY)
            axis.plot(time_h[dots], unseen.conc_mg_l[c, row, dots], "o", color=colour, markersize=3.4, mfc="white")
        axis.set(title=organ, yscale="log", xticks=(0, 6, 12, 18, 24))
        axis.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylabel("concentration, mg/L")
    figure.supxlabel("time since dose, h", fontsize=9)
    for c, colour in enumerate(COLOURS):
        label = f"{unseen.dose_mg[c, 0]:.0f} mg, {unseen.body_weight_kg[c]:.0f} kg"
        axes[-1].plot([], [], color=colour, marker="o", markersize=3.4, mfc="white", label=label)
    axes[-1].legend(frameon=False, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def main() -> None:
    """Train, predict, draw, and say how far the lines are from the dots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "img" / "curves.png")
    parser.add_argument("--minutes", type=float, default=2.0)
    args = parser.parse_args()
    unseen = simulate_task("T2", len(COLOURS), seed=2)
    predicted = trained_prediction(unseen, args.minutes)
    fold = np.abs(np.log(predicted[..., 1:] / unseen.conc_mg_l[..., 1:]))
    draw(unseen, predicted, args.out)
    print(f"{args.out}: GMFE of the three curves, all organs: {np.exp(fold.mean()):.4f}")


if __name__ == "__main__":
    main()

"""What the page says in words and never changes with the figures."""

from __future__ import annotations

from benchmarks.time_to_accuracy import check_every_s
from perfuse.config import FluxConfig, RecurrentConfig

READING = """Every model gets the same curves, inputs, wall-clock budget and number of threads, with its own defaults;
`flux` has `prior="none"`: single logs of what is given, no ratios, no textbook values. `loglinear-rates` (one exponent
per feature, no network) stands in twice: trained as `flux` is (Gauss-Newton, then AdamW), and by a closed fit (L-BFGS,
with a limit of its own); comparisons take whichever is better on the test set, which can only flatter it. Trivial
baselines are fitted on all curves. t = 0 never counts, nor do values under the LOQ; GMFE weighs every drug alike, 1 is
perfect. In tables: median over seeds, and in brackets the least and the greatest. Where a model cannot do a task, its
row says why.

Budgets are short: seconds of one thread, not the hours that a network may be given. `recurrent`, `lstm` and `mlp` learn
by gradient descent alone and may still be improving when their time is up: their rows say what they reach in that time,
not what they could. That favours a model that learns fast, as `flux` was built to.

A seed draws training curves and everything that is random in training anew. All seeds of a task share one test set and
one set of calibration drugs: ranges over seeds hold the chance of training, not that of testing or calibrating."""

LEARNED = """Elasticities d ln k / d ln f of the rate k at which drug leaves a tissue, f being that tissue's own flow,
volume or Kp: network and messages included, mean over tissues on curves that the model has not seen, median over seeds
(least-greatest). The textbook's rate is Q / (V Kp). On T1 all bodies are one and the same, so flow and volume vary over
organs only, 13 points for two exponents; on T7 no Kp is given, and three organs have a vascular space, whose rates are
not those of the textbook's well-stirred organ."""

_TIME = """Seconds of training, with one thread each, until held-out curves of T1 are predicted with the wanted GMFE;
one seed. The plain loop (`benchmarks/plain_loop.py`) is the graph network as one would first write it, with the loss,
hidden size ({recurrent}), optimiser and clipping of `recurrent`; `flux` has {flux}. It reads raw logs of what is given,
not standardised, and keeps its learning rate constant, as people would write it. The rate was tried out at batch 8
only; at its best batch (most curves/s) it follows a rule of thumb, and a better one may exist. `flux` starts with a
Gauss-Newton fit of its exponents, which is part of its time. "AdamW alone" is `flux` without that fit, but with the
engine's standardised features and cosine schedule, so beside the plain loop it is not the architecture alone that
differs. `benchmarks/pyg_loop.py` is the same kind of network written with PyTorch Geometric.

`flux` is judged after its fit and after every epoch, the plain loop every {plain_s:g} s and PyTorch Geometric every
{pyg_s:g} s of training, so their times may be too long by as much. Judging does not count; of `flux`, start-up,
validations and checkpoints do. "At least" is a bound: the arm was stopped there, not having arrived, and might have
arrived soon after or never. Curves of a Gauss-Newton fit count once an iteration, each of which solves them once per
rate constant."""

GPU = """Unmeasured: no GPU has run this version. Its code path is tested on the CPU as far as that goes, and by tests
that skip where there is no device."""

PUBLISHED = """A dynamic graph network of whole-body pharmacokinetics has been reported with an R2 of 0.9342 and a MAPE
of 15.7 % (arXiv 2510.22096v2, 3 January 2026; the abstract of version 1 has the same R2 and no MAPE). Its data set
cannot be rebuilt, so nothing here is measured on it and nothing here is claimed to pass those figures. The tables of T1
above give the same two quantities (R2 in mg/L, pooled; MAPE; t = 0 excluded) for every model and for trivial baselines,
on data of our own, so that a reader can see what values of them mean there; as figures of different data they cannot be
ranked against each other. R2 in mg/L is ruled by the greatest concentrations, so by how widely doses and clearances
were drawn; and both depend on whether t = 0, which is known, is counted."""


def time_words(plain_minutes: float, pyg_minutes: float) -> str:
    """How time to accuracy is measured, with these limits of the plain loop and of PyTorch Geometric."""
    return _TIME.format(
        flux=FluxConfig().hidden, recurrent=RecurrentConfig().hidden,
        plain_s=check_every_s(60 * plain_minutes), pyg_s=check_every_s(60 * pyg_minutes),
    )  # fmt: skip

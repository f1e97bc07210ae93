"""Seconds of training until held-out curves of task T1 are predicted with a GMFE of 1.05: `flux` and the plain loop.

All arms get the same training curves and are judged on the same held-out ones, with one thread each. The clock runs
while an arm trains; judging does not count, start-up and the engine's own validations and checkpoints do. The plain
loop has the loss, hidden size, optimiser and clipping of Perfuse's `recurrent`; it is run at batch 8 and at the batch
at which it trains most curves/s. Its learning rate, constant as in a script, was tried out at batch 8 only; at greater
batches it is scaled by a rule of thumb, and nobody has looked for a better one there.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/time_to_accuracy.py

from benchmarks.common import machine, machine_line, markdown_table, number, write_results
from benchmarks.plain_loop import BATCH_SIZES, BESIDE_ANOTHER, PlainLoop, scan
from perfuse.config import SplitConfig, parse_config, resolve
from perfuse.data.loader import LoadedBatch
from perfuse.data.scoring import floored, scored_mask
from perfuse.data.simulate import simulate_task
from perfuse.data.split import Split, split_curves
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.training import run, session
from perfuse.training.gauss_newton import FitReport, start_exponents

SMALL_BATCH = 8
PLAIN_LR, PLAIN_LR_MOST = 3e-3, 8e-3
"""Of the plain loop at batch 8 (tried there: 1e-3 and 8e-3 came no further per curve). Above, untried: it grows as the
square root of the batch, up to the second."""
_CHECK_BATCH = 128
_CHECKS = 20
"""The plain loop is judged so many times within its limit, and at least every ``_CHECK_EVERY_S``."""
_CHECK_EVERY_S = 30.0


@dataclass
class Reached:
    """What an arm came to.

    Attributes:
        arm: Its name.
        batch_size: Curves per step.
        gmfe_wanted, limit_s: What was asked for, and how long it might take.
        seconds: Training time when it was first there; None: not there within the limit.
        trained_s: Training time in all.
        curves: Training curves that it went through, repeats counted; in a Gauss-Newton fit, those of its sample once
            an iteration (an iteration solves each of them once per rate constant, and its first ones a part of them).
        checks: (training seconds, GMFE) of every judgement.
    """

    arm: str
    batch_size: int
    gmfe_wanted: float
    limit_s: float
    seconds: float | None = None
    trained_s: float = 0.0
    curves: int = 0
    checks: list[tuple[float, float]] = field(default_factory=list)

    def check(self, seconds: float, gmfe: float) -> bool:
        """Note a judgement; whether the arm is there."""
        self.trained_s = seconds
        self.checks.append((round(seconds, 3), gmfe))
        if self.seconds is None and gmfe <= self.gmfe_wanted:
            self.seconds = seconds
        return self.seconds is not None

    @property
    def best_gmfe(self) -> float:
        """The least GMFE seen."""
        return min((gmfe for _, gmfe in self.checks), default=math.inf)

    def text(self) -> str:
        """Seconds, or that it was not there."""
        if self.seconds is not None:
            return f"{number(self.seconds)} s"
        return f"not there after {number(self.trained_s / 60)} min (GMFE {self.best_gmfe:.3f})"


def held_out(table: CurveTable, validation_fraction: float, seed: int) -> Split:
    """The curves to train on and those to judge by: what ``perfuse train`` makes of this seed."""
    return split_curves(table, SplitConfig(validation_fraction=validation_fraction, test_fraction=0.0), seed)


def _gmfe(table: CurveTable, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """GMFE of predictions, mg/L, of rows of a table with a drug each; the metric of ``perfuse evaluate``, alone."""
    per_curve: list[np.ndarray] = []
    for rows, predicted in parts:
        some = table.take(rows)
        mask = scored_mask(some)
        true = np.where(mask, some.conc_mg_l, 1.0)
        error = np.where(mask, np.abs(np.log(floored(some, predicted) / true)), 0.0)
        n = mask.sum(axis=(1, 2))
        per_curve.append(error.sum(axis=(1, 2))[n > 0] / n[n > 0])
    return float(np.exp(np.concatenate(per_curve).mean()))


class _There(Exception):
    """Ends a run of the engine."""


def engine_time(
    table: CurveTable, model: dict[str, Any], gmfe: float, minutes: float, seed: int, validation_fraction: float,
    arm: str = "flux",
) -> Reached:  # fmt: skip
    """A real run of ``perfuse.training.run.train`` until it is there, judged after a first fit and every epoch."""
    config = parse_config({
        "seed": seed, "model": model,
        "split": {"validation_fraction": validation_fraction, "test_fraction": 0.0},
        "training": {"max_minutes": minutes, "device": "cpu", "tensorboard": False, "validate_every_epochs": 1},
    })  # fmt: skip
    n_train = len(held_out(table, validation_fraction, seed).train)
    batch_size = resolve(config, n_train).training.batch_size
    assert batch_size is not None
    reached, judging_s, judged = Reached(arm, min(batch_size, n_train), gmfe, 60 * minutes), 0.0, 0
    fits: list[FitReport] = []

    def fit(*arguments: Any, **named: Any) -> FitReport:
        fits.append(start_exponents(*arguments, **named))
        return fits[-1]

    class Judge:
        """A metric of the validation split; judging itself does not count."""

        def __init__(self) -> None:
            self.parts: list[tuple[np.ndarray, np.ndarray]] = []

        def sums(self, loaded: LoadedBatch, pred_mg_l: Tensor) -> Tensor:
            self.parts.append((loaded.rows, pred_mg_l.to(torch.float64).numpy()))
            return torch.zeros(1, dtype=torch.float64)

        def finish(self, sums: Tensor) -> dict[str, float]:
            nonlocal judging_s, judged
            arrived = time.perf_counter()
            judged += 1
            epochs = judged - len(fits)  # a run that begins with a fit is judged after it, before its first epoch
            reached.curves = epochs * n_train + sum(report.curves * report.iterations for report in fits)
            found, self.parts = _gmfe(table, self.parts), []
            if reached.check(arrived - began - judging_s, found):
                raise _There
            judging_s += time.perf_counter() - arrived
            return {"gmfe": found}

    import_module("lightning_fabric")  # loading libraries is no training; the plain loop's are loaded by now
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        try:
            with patch.object(session, "start_exponents", fit):
                run.train(table, config, Path(folder) / "run", validate=Judge(), data_path="benchmark")
        except _There:
            return reached
    return reached


def plain_time(
    table: CurveTable, batch_size: int, gmfe: float, minutes: float, seed: int, validation_fraction: float, arm: str,
    loop: type[PlainLoop] = PlainLoop,
) -> Reached:  # fmt: skip
    """The plain loop (or another) until it is there, judged every now and then."""
    split, limit_s = held_out(table, validation_fraction, seed), 60 * minutes
    reached = Reached(arm, batch_size, gmfe, limit_s)
    training, judged = table.take(split.train), table.take(split.validation)
    every_s = check_every_s(limit_s)
    began = time.perf_counter()
    learner, unseen = loop(training, seed=seed, lr=plain_lr(batch_size)), loop(judged, seed=seed)
    unseen.network = learner.network
    spent = time.perf_counter() - began
    while spent < limit_s:
        turn = time.perf_counter()
        curves_per_s = learner.train_for(batch_size, min(every_s, limit_s - spent))
        took = time.perf_counter() - turn
        spent += took
        reached.curves += round(curves_per_s * took)
        if reached.check(spent, _plain_gmfe(unseen, judged)):
            break
    return reached


def check_every_s(limit_s: float) -> float:
    """Seconds of training between judgements of a plain loop, which has no epochs to be judged after."""
    return min(_CHECK_EVERY_S, limit_s / _CHECKS)


def plain_lr(batch_size: int) -> float:
    """Learning rate of the plain loop."""
    return min(PLAIN_LR * math.sqrt(batch_size / SMALL_BATCH), PLAIN_LR_MOST)


def _plain_gmfe(unseen: PlainLoop, judged: CurveTable) -> float:
    parts = []
    unseen.network.eval()
    with torch.inference_mode():
        for start in range(0, len(judged), _CHECK_BATCH):
            rows = np.arange(start, min(start + _CHECK_BATCH, len(judged)))
            parts.append((rows, unseen.predict(rows).to(torch.float64).numpy()))
    return _gmfe(judged, parts)


def loop_class(name: str) -> type[PlainLoop]:
    """``plain``, or ``pyg``: the loop written with PyTorch Geometric.

    Raises:
        InputError: when that is not installed.
    """
    if name == "plain":
        return PlainLoop
    try:
        from benchmarks.pyg_loop import PygLoop
    except ImportError:
        raise InputError("torch_geometric", "is not installed", hint='pip install "perfuse[bench]"') from None
    return PygLoop


def best_batch(
    table: CurveTable, seed: int, batch_sizes: Sequence[int] = BATCH_SIZES, seconds: float = 2.0,
    loop: type[PlainLoop] = PlainLoop,
) -> int:  # fmt: skip
    """The batch size at which a loop trains most curves/s on one thread."""
    settings = scan(loop(table, seed=seed), batch_sizes, (1,), seconds, BESIDE_ANOTHER)
    return max(settings, key=lambda setting: setting.curves_per_s).batch_size


def ratio(plain: Reached, flux: Reached) -> tuple[float | None, bool]:
    """How many times longer the plain loop took, and whether that is only a lower bound; None if `flux` failed."""
    if flux.seconds is None:
        return None, False
    return (plain.seconds or plain.trained_s) / flux.seconds, plain.seconds is None


def ratio_text(plain: Reached, flux: Reached) -> str:
    """``123 times``, or ``at least 123 times`` and that this is a bound."""
    value, is_bound = ratio(plain, flux)
    if value is None:
        return "flux not there"
    return f"at least {number(value)} times (a bound)" if is_bound else f"{number(value)} times"


def main() -> None:
    """Measure all arms one after another; print and write a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="limit of each run of the plain loop (default 30)")
    parser.add_argument("--flux-minutes", type=float, default=1.0, help="budget of flux (default 1)")
    parser.add_argument("--gmfe", type=float, default=1.05, help="what to reach (default 1.05)")
    parser.add_argument("--curves", type=int, default=4096, help="simulated curves (default 4096)")
    parser.add_argument("--held-out", type=int, default=128, help="of them to judge by (default 128)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCH_SIZES), help="tried for the best one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    args = parser.parse_args()
    if not 0 < args.held_out < args.curves / 2 or args.minutes <= 0 or args.flux_minutes <= 0 or args.gmfe <= 1:
        parser.error("need 0 < --held-out < half of --curves, --minutes and --flux-minutes > 0, --gmfe > 1")
    torch.set_num_threads(1)
    facts, fraction = machine(), args.held_out / args.curves
    table = simulate_task("T1", args.curves, args.seed)
    flux = engine_time(table, {"name": "flux"}, args.gmfe, args.flux_minutes, args.seed, fraction)
    best = best_batch(table, args.seed, args.batch_sizes)
    bare = {"name": "flux", "start": "zero"}
    alone = engine_time(table, bare, args.gmfe, args.flux_minutes, args.seed, fraction, "flux, AdamW alone")
    arms = [flux, alone]
    for batch_size in dict.fromkeys((SMALL_BATCH, best)):
        arm = f"plain loop, batch {batch_size}"
        arms.append(plain_time(table, batch_size, args.gmfe, args.minutes, args.seed, fraction, arm))
    rows = [
        (a.arm, str(a.batch_size), a.text(), f"{a.curves:,}", "" if a in (flux, alone) else ratio_text(a, flux))
        for a in arms
    ]
    text = f"# Time to a GMFE of {args.gmfe:g} on task T1\n\n{machine_line(facts)}\n\n" + markdown_table(
        ("arm", "batch", "training time", "curves gone through", "flux is faster by"), rows
    )
    text += (
        f"\n\nOne seed ({args.seed}). `flux` is judged after its fit and every epoch, the plain loop "
        f"every {check_every_s(60 * args.minutes):g} s: its time may be too long by as much. A bound is the time after "
        "which the plain loop was stopped, not there yet."
    )
    print(text)
    write_results(args.out, "time_to_accuracy", text, {"machine": facts, "arms": [asdict(a) for a in arms]})


if __name__ == "__main__":
    main()

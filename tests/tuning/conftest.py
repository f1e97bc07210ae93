"""A small sweep without Ray: trials run one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from perfuse.config import parse_config
from perfuse.tuning.record import Ended, Journal, SweepRecord, holds_sweep, read_sweep, read_trials, write_sweep
from perfuse.tuning.space import Value
from perfuse.tuning.sweep import Sweep
from perfuse.tuning.trial import TrialSpec

SPACE = {
    "model": {"hidden": {"choices": [8, 16]}},
    "optimizer": {"lr": {"low": 1e-3, "high": 1e-1, "log": True}},
}
RunTrial = Callable[[TrialSpec, Callable[[int, Ended], bool]], "Ended | None"]


@contextmanager
def _opened(folder: Path, n_trials: int, **options: Any) -> Iterator[Sweep]:
    if not holds_sweep(folder):
        config = {"model": {"name": "mlp", "hidden": 8, "layers": 2}, "training": {"epochs": 10}}
        record = SweepRecord(
            seed=3, config=parse_config(config), space=options.pop("space", SPACE), data="d", data_sha256="0" * 64,
            n_train=16, n_validation=2, n_test=2, code_version="0", **options.pop("record", {}),
        )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        write_sweep(folder, record)
    record, space = read_sweep(folder)
    trials = read_trials(folder, space)
    journal = Journal(folder)
    try:
        yield Sweep(folder, record, space, trials, journal, n_trials=n_trials, **options)
    finally:
        journal.close()


def _loss(values: dict[str, Value]) -> float:
    """A bowl around lr = 0.02, a little lower for the wider model."""
    import math

    lr, hidden = float(values["optimizer.lr"]), values["model.hidden"]
    return 0.1 + (math.log(lr) - math.log(0.02)) ** 2 - (0.01 if hidden == 16 else 0.0)


def _pretend(spec: TrialSpec, at_rung: Callable[[int, Ended], bool]) -> Ended | None:
    """A trial without training: its loss falls to ``_loss`` and its rungs are asked as a real one's."""
    values = {"optimizer.lr": spec.config["optimizer"]["lr"], "model.hidden": spec.config["model"]["hidden"]}
    final = _loss(values)
    for rung, progress in enumerate((0.1, 0.3)):
        so_far = Ended(number=spec.number, status="terminated", val_loss=final / progress, progress=progress, epochs=1)
        if not at_rung(rung, so_far):
            return None
    return Ended(number=spec.number, status="completed", val_loss=final, progress=1.0, epochs=10, best_epoch=9)


def _run_all(sweep: Sweep, run_trial: RunTrial = _pretend) -> Sweep:
    while (spec := sweep.next_trial()) is not None:
        ended = run_trial(spec, sweep.at_rung)
        if ended is not None:
            sweep.ended(ended)
    return sweep


@pytest.fixture
def opened() -> Callable[..., Any]:
    """``with opened(folder, n_trials, ...) as sweep``: a new sweep, or the one in the folder."""
    return _opened


@pytest.fixture
def pretend() -> RunTrial:
    return _pretend


@pytest.fixture
def run_all() -> Callable[..., Sweep]:
    """Run a sweep's trials here, one after the other."""
    return _run_all

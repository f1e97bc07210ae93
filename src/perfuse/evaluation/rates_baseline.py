"""``loglinear-rates`` as a baseline: a small, closed fit on the training split, kept in ``RUN/baselines``.

At most 256 training curves and 20 s: L-BFGS on the mean squared error of ln C over the values that count. The fit is
stored with the hash of what it was fitted on, and used again only for the very same curves; a file whose own sha256 is
not the one that it was written with is not used but made anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perfuse.config import LoglinearRatesConfig
from perfuse.data.batch import CurveBatch
from perfuse.data.table import CurveTable, to_batch
from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation.baselines import Unavailable
from perfuse.evaluation.files import write_atomic
from perfuse.evaluation.metrics import FLOOR_FRACTION_OF_LOQ
from perfuse.models import build_model
from perfuse.models.base import CurveModel, check_modelled

NAME = "loglinear-rates"
MAX_CURVES = 256
MAX_SECONDS = 20.0
MAX_EVALUATIONS = 400
_SAMPLE_STREAM = 0xBA5E
_FORMAT = 1


@dataclass(frozen=True)
class RatesBaseline:
    """A fitted ``loglinear-rates`` model with the interface of a ``Baseline``."""

    model: CurveModel
    facts: dict[str, float | int | str]
    """How it was fitted: curves, evaluations, seconds, final loss."""
    name: str = NAME

    def predict(self, table: CurveTable) -> np.ndarray:
        """Concentrations, mg/L, ``(C, O, T)``, in each curve's matrix."""
        with torch.inference_mode():
            out: np.ndarray = self.model(to_batch(table)).to(torch.float64).numpy()
            return out


def sample_rows(rows: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """At most ``limit`` of ``rows``, sorted; the same for the same rows and seed."""
    if len(rows) <= limit:
        return rows
    random = np.random.Generator(np.random.Philox(key=np.asarray([seed, _SAMPLE_STREAM], dtype=np.uint64)))
    return np.sort(random.choice(rows, limit, replace=False))


def rates_baseline(training: CurveTable, content_hash: str, cache: Path | None) -> RatesBaseline | Unavailable:
    """The baseline, from the cache when it holds a fit on the same curves, else fitted now.

    Args:
        training: Training curves, at most ``MAX_CURVES`` (see ``sample_rows``).
        content_hash: Hash of these curves.
        cache: Folder to keep it in, or None. A folder that cannot be written is no failure.
    """
    name = f"{NAME}-{content_hash[:12]}-v{_FORMAT}"
    path = None if cache is None else cache / f"{name}.safetensors"
    if path is not None and path.is_file():
        loaded = _load(path, training)
        if loaded is not None:
            return loaded
    fitted = fit_rates(training)
    if path is not None and isinstance(fitted, RatesBaseline):
        _save(path, fitted)
    return fitted


def fit_rates(
    training: CurveTable, max_seconds: float = MAX_SECONDS, max_evaluations: int = MAX_EVALUATIONS
) -> RatesBaseline | Unavailable:
    """Fit ``loglinear-rates`` on these curves; the better of the last and the best point seen.

    Args:
        training: Training curves; all of them are used in every evaluation.
        max_seconds, max_evaluations: Where the fit stops at the latest.

    Returns:
        The fit, or why there is none: no value to fit, curves that the model cannot do, an error that stays infinite.
    """
    batch = to_batch(training)
    if not bool((batch.mask & ~batch.censored).any()):
        return Unavailable(NAME, "no training curve has a value at or above its LOQ")
    try:
        model = build_model(LoglinearRatesConfig(), training.topology)
        model.fit_normalisation(batch)
        check_modelled(batch, NAME, type(model))
    except InputError as error:
        return Unavailable(NAME, str(error))
    return _fit(model, batch, max_seconds, max_evaluations)


def _fit(model: CurveModel, batch: CurveBatch, max_seconds: float, max_evaluations: int) -> RatesBaseline | Unavailable:
    parameters = list(model.parameters())
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=max_evaluations, max_eval=max_evaluations, history_size=30, tolerance_grad=1e-9,
        tolerance_change=1e-13, line_search_fn="strong_wolfe",
    )  # fmt: skip
    best, best_loss, evaluations = [p.detach().clone() for p in parameters], np.inf, 0
    began = time.monotonic()

    def closure() -> Tensor:
        nonlocal best, best_loss, evaluations
        if time.monotonic() - began > max_seconds:
            raise _OutOfTime
        optimizer.zero_grad()
        loss = _log_loss(model, batch)
        loss.backward()
        evaluations += 1
        value = float(loss.detach())
        if value < best_loss:
            best, best_loss = [p.detach().clone() for p in parameters], value
        return loss

    with suppress(_OutOfTime):
        optimizer.step(closure)
    if not np.isfinite(best_loss):
        return Unavailable(NAME, "its fit did not reach a finite error")
    with torch.no_grad():
        for parameter, value in zip(parameters, best, strict=True):
            parameter.copy_(value)
    model.eval()
    facts: dict[str, float | int | str] = {
        "training_curves": len(batch), "evaluations": evaluations, "log_mse": best_loss,
        "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip
    return RatesBaseline(model, facts)


class _OutOfTime(Exception):
    """Ends the optimiser's inner loop; the best point so far is used."""


def _log_loss(model: CurveModel, batch: CurveBatch) -> Tensor:
    counts = batch.mask & ~batch.censored
    floor = FLOOR_FRACTION_OF_LOQ * batch.loq_mg_l[:, None, None]
    pred = torch.maximum(model(batch), floor)
    error = torch.where(counts, pred.log() - torch.where(counts, batch.conc_mg_l, 1.0).log(), 0.0)
    return error.square().sum() / counts.sum()


def _save(path: Path, fitted: RatesBaseline) -> None:
    from safetensors.torch import save

    tensors = {name: value.detach().contiguous() for name, value in fitted.model.state_dict().items()}
    facts = json.dumps(fitted.facts)
    try:
        write_atomic(path, save(tensors, metadata={"facts": facts, "sha256": _digest(tensors, facts)}))
    except PerfuseError:  # a read-only run: the fit is repeated next time
        return


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    """sha256 of everything that a cached fit holds."""
    digest = sha256(facts.encode())
    for name in sorted(tensors):
        array = tensors[name].numpy()
        digest.update(f"\0{name} {array.dtype} {array.shape}\0".encode() + array.tobytes())
    return digest.hexdigest()


def _load(path: Path, training: CurveTable) -> RatesBaseline | None:
    """The stored fit, or None when the file is damaged or of another shape."""
    from safetensors import SafetensorError, safe_open

    model = build_model(LoglinearRatesConfig(), training.topology)
    try:
        with safe_open(str(path), "pt") as file:
            kept = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if kept["sha256"] != _digest(tensors, kept["facts"]):
            return None
        facts = json.loads(kept["facts"])
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OSError):
        return None
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        return None
    model.eval()
    return RatesBaseline(model, facts)

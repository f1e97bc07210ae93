"""Predicting organ curves for a drug (TOML) or a list of drugs and doses (CSV) with a trained run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from perfuse.data.drug_file import Regimen, read_drug_file
from perfuse.data.importers.drug_csv import read_drug_dose_csv
from perfuse.data.inputs import Dose, curve_table_for
from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation.coverage import NOT_CALIBRATED
from perfuse.evaluation.evaluate import model_predictor
from perfuse.evaluation.files import write_atomic
from perfuse.evaluation.runs import TrainedRun, open_run
from perfuse.evaluation.training_distance import training_distance
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import Topology
from perfuse.training.distance import OUTSIDE_PERCENTILE
from perfuse.training.precision import check_device

_T = TypeVar("_T", float, str)

DEFAULT_TIME_H = np.linspace(0.0, 24.0, 100)
_BODY_WEIGHT_KG = 70.0
_OUT_SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class PredictionReport:
    """What was predicted.

    Attributes:
        path: The file written.
        n_curves, n_rows: Curves and rows in it.
        outside: Curve -> the inputs that lie outside the training range.
        caveat: Why the training drugs could not be looked at; '' when they were.
        intervals: What limits the intervals: not calibrated, or on few drugs; '' when nothing does.
        distant: Curve -> percentile of its distance to the training drugs, where that is above 99.
    """

    path: Path
    n_curves: int
    n_rows: int
    outside: dict[str, str]
    caveat: str
    intervals: str = ""
    distant: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        out = [f"{self.n_curves} curves, {self.n_rows} rows: {self.path}"]
        out += [f"  outside the training range: {curve}: {what}" for curve, what in self.outside.items()]
        if self.caveat:
            out.append(f"  the training range and distance could not be looked at: {self.caveat}")
        out += [
            f"  far from the training drugs: {curve}: percentile {value:.4g} of their own distances; no interval is "
            "promised there"
            for curve, value in self.distant.items()
        ]  # fmt: skip
        return out + ([f"  intervals: {self.intervals}"] if self.intervals else [])


def predict_file(
    run: Path,
    input_path: Path,
    out: Path,
    *,
    time_h: Sequence[float] | np.ndarray | None = None,
    dose_mg: float | None = None,
    duration_h: float | None = None,
    body_weight_kg: float | None = None,
    matrix: str | None = None,
    batch_size: int = 512,
    device: str = "cpu",
    force: bool = False,
) -> PredictionReport:
    """Predict and write tidy rows: ``curve_id, drug, organ, matrix, time_h, conc_mg_l, lower_90, upper_90,
    outside_training, training_distance_percentile``.

    ``lower_90`` and ``upper_90``, mg/L, are the ends of the calibrated 90 % interval; empty at t <= 0 and where the run
    is not calibrated. ``outside_training`` is true where an input of the curve lies more than 4 standard deviations (of
    its logarithm) from the training mean, or never varied in training and differs; ``training_distance_percentile``
    says how far the drug lies from the nearest training drugs (see ``training.distance``). Both are empty where the
    training drugs are not known.

    Args:
        run: Run or checkpoint folder.
        input_path: Drug ``.toml`` (see ``data.drug_file``) or ``.csv`` of drugs x doses.
        out: New ``.parquet`` or ``.csv`` file, written whole or not at all.
        time_h: Times, h; by default 100 from 0 to 24 h.
        dose_mg, duration_h: One dose at time 0, instead of those in the TOML file.
        body_weight_kg, matrix: Instead of those in the TOML file; by default 70 kg and plasma.
        batch_size: Curves per batch.
        device: Where the model runs.
        force: Replace ``out`` if it exists.

    Raises:
        InputError: for any input that cannot be used, or when ``out`` exists and ``force`` is off.
        PerfuseError: if a prediction is not finite or ``out`` cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() not in _OUT_SUFFIXES:
        raise InputError("--out", "is of an unknown kind", value=str(out), allowed=", ".join(_OUT_SUFFIXES))
    if out.exists() and not force:
        raise InputError("--out", "exists already", value=str(out), hint="choose another name, or use --force")
    check_device(device, "--device")
    trained = open_run(Path(run))
    time = DEFAULT_TIME_H if time_h is None else np.asarray(time_h, dtype=np.float64)
    given = Regimen(_single_dose(dose_mg, duration_h), body_weight_kg, matrix)
    table = _read_input(Path(input_path), trained.topology, time, given)
    predict = model_predictor(trained.model, device)
    rows = np.array_split(np.arange(len(table)), -(-len(table) // max(batch_size, 1)))
    conc = np.concatenate([predict(table.take(part)) for part in rows])
    if not np.isfinite(conc).all():
        c, o, k = np.argwhere(~np.isfinite(conc))[0]
        raise PerfuseError(
            f"the prediction for curve {table.curve_id[c]}, {ORGANS[o]} at {table.time_h[c, k]:.6g} h is not finite"
        )
    beyond = _beyond(trained, table, conc)
    write_atomic(out, _encode(table, conc, beyond, out.suffix.lower()))
    return PredictionReport(
        out, len(table), conc.size, beyond.outside_range(table), beyond.caveat,
        NOT_CALIBRATED if trained.calibration is None else trained.calibration.doubt, beyond.distant(table),
    )  # fmt: skip


@dataclass(frozen=True)
class _Beyond:
    """What goes with a prediction: ends of the 90 % interval, mg/L, ``(C, O, T)``; percentiles ``(C,)``; or None.

    ``outside`` holds each curve's inputs outside the training range as text.
    """

    lower: np.ndarray | None
    upper: np.ndarray | None
    percentile: np.ndarray | None
    outside: list[str] | None
    caveat: str

    def outside_range(self, table: CurveTable) -> dict[str, str]:
        pairs = zip(table.curve_id, self.outside or [""] * len(table), strict=True)
        return {str(curve): text for curve, text in pairs if text}

    def distant(self, table: CurveTable) -> dict[str, float]:
        if self.percentile is None:
            return {}
        pairs = zip(table.curve_id, self.percentile.tolist(), strict=True)
        return {str(curve): value for curve, value in pairs if value > OUTSIDE_PERCENTILE}


def _beyond(run: TrainedRun, table: CurveTable, conc: np.ndarray) -> _Beyond:
    distance = training_distance(run)
    if isinstance(distance, str):
        return _Beyond(None, None, None, None, distance)
    measured = distance.measure(table)
    lower, upper = (None, None) if run.calibration is None else run.calibration.bounds(table, conc, measured=measured)
    return _Beyond(lower, upper, measured.percentile, distance.outside_range(measured), "")


def _single_dose(dose_mg: float | None, duration_h: float | None) -> tuple[Dose, ...]:
    if dose_mg is None:
        if duration_h is not None:
            raise InputError("duration_h", "needs a dose", hint="give dose_mg too")
        return ()
    return (Dose(0.0, dose_mg, duration_h or 0.0),)


def _first_said(given: _T | None, in_file: _T | None, default: _T) -> _T:
    """The first that is not None: 0 and '' were said, and are refused where they are checked."""
    return next((value for value in (given, in_file) if value is not None), default)


def _read_input(path: Path, topology: Topology, time: np.ndarray, given: Regimen) -> CurveTable:
    suffix = path.suffix.lower()
    if suffix == ".toml":
        drug, regimen = read_drug_file(path, given.body_weight_kg)
        doses = given.doses or regimen.doses
        if not doses:
            raise InputError(
                "dose_mg", "is missing", where=str(path), hint="write dose_mg = 100 (mg) in the file, or give --dose-mg"
            )
        weight = _first_said(given.body_weight_kg, regimen.body_weight_kg, _BODY_WEIGHT_KG)
        return curve_table_for(drug, topology, weight, doses, time, _first_said(given.matrix, regimen.matrix, "plasma"))
    if suffix == ".csv":
        if given != Regimen():
            raise InputError(
                "dose, body weight and matrix", "belong into the CSV", where=str(path),
                hint="columns dose_mg, duration_h, body_weight_kg, matrix",
            )  # fmt: skip
        return read_drug_dose_csv(path, topology, time)
    raise InputError("INPUT", "is of an unknown kind", value=str(path), allowed=".toml (a drug), .csv (drugs x doses)")


def _encode(table: CurveTable, conc: np.ndarray, beyond: _Beyond, suffix: str) -> bytes:
    """Tidy rows as CSV or Parquet; the tissues' matrix is ``tissue_homogenate``."""
    import polars as pl

    c, o, t = conc.shape
    matrix = np.full((c, o), "tissue_homogenate", dtype=object)
    matrix[:, 0] = table.matrix
    flag = [None] * c if beyond.outside is None else [bool(text) for text in beyond.outside]

    def numbers(values: np.ndarray | None) -> pl.Series:
        plain = np.full(conc.size, np.nan) if values is None else values.reshape(-1)
        return pl.Series(plain, dtype=pl.Float64).fill_nan(None)

    percentile = None if beyond.percentile is None else np.repeat(beyond.percentile, o * t)
    frame = pl.DataFrame(
        {
            "curve_id": np.repeat(table.curve_id.astype(str), o * t).tolist(),
            "drug": np.repeat(table.compound_id.astype(str), o * t).tolist(),
            "organ": np.tile(np.repeat(np.asarray(ORGANS), t), c).tolist(),
            "matrix": np.repeat(matrix.reshape(-1), t).tolist(),
            "time_h": np.repeat(table.time_h[:, None], o, axis=1).reshape(-1),
            "conc_mg_l": conc.reshape(-1),
            "lower_90": numbers(beyond.lower),
            "upper_90": numbers(beyond.upper),
            "outside_training": pl.Series([f for f in flag for _ in range(o * t)], dtype=pl.Boolean),
            "training_distance_percentile": numbers(percentile),
        }
    )
    buffer = io.BytesIO()
    if suffix == ".csv":
        frame.write_csv(buffer)
    else:
        frame.write_parquet(buffer)
    return buffer.getvalue()

"""``perfuse nca``: from a file of curves, observed, simulated or predicted, to a table of exposure parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perfuse.data.importers.tidy_columns import read_parquet
from perfuse.data.sources import open_source
from perfuse.data.table import CurveSource, CurveTable
from perfuse.errors import InputError
from perfuse.evaluation.judged_data import OBSERVED_COLUMNS
from perfuse.evaluation.nca import NcaRows, encode_table, nca_rows, nca_table
from perfuse.files import write_atomic
from perfuse.pk.exposure_rules import AucMethod, NcaRules, blq_rule, nca_rules
from perfuse.pk.matrix import BLOOD_MATRICES
from perfuse.pk.physiology import ORGANS
from perfuse.pk.system import ORAL, ROUTES

if TYPE_CHECKING:
    import polars as pl

PREDICTED_COLUMNS = ("curve_id", "organ", "time_h", "conc_mg_l")
"""A table with these columns and no ``event`` is a table of predictions, as ``perfuse predict`` writes it."""
_CURVES_AT_ONCE = 2000
_LARGEST = 1e30
_OUT_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class NcaReport:
    """What was analysed.

    Attributes:
        path: The file written.
        n_curves, n_rows: Curves analysed, rows written.
        n_half_life: Rows with a half-life.
    """

    path: Path
    n_curves: int
    n_rows: int
    n_half_life: int

    def lines(self) -> list[str]:
        """The report as lines of text."""
        return [f"{self.n_curves} curves, {self.n_rows} rows, {self.n_half_life} with a half-life: {self.path}"]


def nca_file(
    input_path: Path,
    out: Path,
    *,
    organs: Sequence[str] = (),
    rules: str = "pknca",
    auc_method: AucMethod | None = None,
    blq: str | None = None,
    min_adjusted_r2: float | None = None,
    min_span_ratio: float | None = None,
    max_extrapolated_fraction: float | None = None,
    loq_mg_l: float | None = None,
    tau_h: float | None = None,
    dose_mg: float | None = None,
    duration_h: float | None = None,
    route: str | None = None,
    force: bool = False,
) -> NcaReport:
    """Analyse every curve of a file and write one row per curve, organ and dose (see ``nca.nca_table``).

    Args:
        input_path: A dataset folder, an origin ``.npz``, a tidy ``.csv`` / ``.tsv`` / ``.parquet``, a ``.csv`` of
            measured human curves, or a ``.csv`` / ``.parquet`` that ``perfuse predict`` wrote.
        out: New ``.csv`` or ``.parquet`` file, written whole or not at all.
        organs: Only these; all by default.
        rules: A name of ``NCA_RULES``; the next five replace its own.
        auc_method, min_adjusted_r2, min_span_ratio, max_extrapolated_fraction: See ``NcaRules``.
        blq: A name of ``BLQ_RULES``.
        loq_mg_l: Limit of quantification of all curves, mg/L, instead of that of the data (0 for predictions).
        tau_h: Length of the last dosing interval, h; by default that of the one before.
        dose_mg, duration_h, route: One dose at time 0, for a file of predictions, which does not say it. Without
            ``dose_mg`` clearances and volumes are not available.
        force: Replace ``out`` if it exists.

    Raises:
        InputError: for any input that cannot be used, or when ``out`` exists and ``force`` is off.
        PerfuseError: if ``out`` cannot be written.
    """
    import polars as pl

    input_path, out = Path(input_path), Path(out)
    if out.suffix.lower() not in _OUT_SUFFIXES:
        raise InputError("--out", "is of an unknown kind", value=str(out), allowed=", ".join(_OUT_SUFFIXES))
    if out.exists() and not force:
        raise InputError("--out", "exists already", value=str(out), hint="choose another name, or use --force")
    unknown = [organ for organ in organs if organ not in ORGANS]
    if unknown:
        raise InputError("organs", "is unknown", value=unknown[0], allowed=", ".join(ORGANS))
    chosen = _rules(rules, auc_method, blq, min_adjusted_r2, min_span_ratio, max_extrapolated_fraction)
    _check_positive("loq_mg_l", "mg/L", loq_mg_l, allow_zero=True)
    _check_positive("tau_h", "h", tau_h)
    tau = np.nan if tau_h is None else tau_h
    predicted = _read_predicted(input_path)
    if predicted is not None:
        rows = _predicted_rows(predicted, str(input_path), dose_mg, duration_h, route, loq_mg_l or 0.0)
        keep = np.isin(rows.labels["organ"].astype(str), organs) if organs else np.ones(len(rows.time_h), dtype=bool)
        frames = [nca_rows(rows.take(np.flatnonzero(keep)), rules=chosen, tau_h=tau)]
    else:
        if not (dose_mg is None and duration_h is None and route is None):
            raise InputError("dose, duration and route", "are in the data", where=str(input_path),
                             hint="they are options for a file of predictions only")  # fmt: skip
        frames = [_of_table(t, organs, chosen, tau, loq_mg_l) for t in _blocks(_open(input_path))]
    frame = pl.concat(frames)
    if frame.height == 0:
        raise InputError("INPUT", "holds no concentration to analyse", value=str(input_path))
    write_atomic(out, encode_table(frame, out.suffix.lower()))
    half_lives = int(frame["half_life_h"].is_not_null().sum())
    return NcaReport(out, frame["curve_id"].n_unique(), frame.height, half_lives)


def _rules(
    name: str, auc_method: AucMethod | None, blq: str | None, r2: float | None, span: float | None, far: float | None
) -> NcaRules:
    chosen = nca_rules(name, r2, span)
    if auc_method is not None:
        chosen = replace(chosen, auc_method=auc_method)
    if blq is not None:
        chosen = replace(chosen, blq=blq_rule(blq))
    if far is not None:
        chosen = replace(chosen, max_extrapolated_fraction=far)
    return chosen


def _check_positive(name: str, unit: str, value: float | None, allow_zero: bool = False) -> None:
    if value is not None and not (np.isfinite(value) and (value > 0 or (allow_zero and value == 0))):
        raise InputError(name, value=float(value), unit=unit, allowed=">= 0" if allow_zero else "> 0")


def _open(path: Path) -> CurveSource:
    if path.suffix.lower() == ".csv" and path.is_file():
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            header = {name.strip().strip('"') for name in file.readline(1_000_000).split(",")}
        if header >= OBSERVED_COLUMNS:
            from perfuse.data.importers.human import read_observed
            from perfuse.pk.topology import get_topology

            return read_observed(path, get_topology("circulation"))[0]
    return open_source(path)


def _blocks(source: CurveSource) -> Iterator[CurveTable]:
    for start in range(0, len(source), _CURVES_AT_ONCE):
        yield source.take(range(start, min(start + _CURVES_AT_ONCE, len(source))))


def _of_table(
    table: CurveTable, organs: Sequence[str], rules: NcaRules, tau_h: float, loq_mg_l: float | None
) -> pl.DataFrame:
    at = [i for i, organ in enumerate(ORGANS) if not organs or organ in organs]
    conc = np.where(table.censored, 0.0, table.conc_mg_l)[:, at]
    return nca_table(
        table.time_h, conc, table.curve_id, [ORGANS[i] for i in at], dose_mg=table.dose_mg,
        dose_time_h=table.dose_time_h, duration_h=table.dose_duration_h, oral=table.dose_route == ORAL,
        drug=table.compound_id, matrix=table.matrix, loq_mg_l=table.loq_mg_l if loq_mg_l is None else loq_mg_l,
        tau_h=tau_h, rules=rules,
    )  # fmt: skip


def _read_predicted(path: Path) -> pl.DataFrame | None:
    """The table if it is one of predictions, else None; what cannot be read is for others to complain about."""
    import polars as pl

    if path.suffix.lower() not in (".csv", ".parquet") or not path.is_file():
        return None
    try:
        if path.suffix.lower() == ".csv":
            frame = pl.read_csv(path) if _is_predicted(pl.scan_csv(path).collect_schema().names()) else None
        else:
            # Not by polars: it panics on some damaged files, which no `except Exception` catches.
            frame = read_parquet(path, str(path))
        return frame if frame is not None and _is_predicted(frame.columns) else None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, InputError):
        return None


def _is_predicted(names: Sequence[str]) -> bool:
    return set(PREDICTED_COLUMNS) <= set(names) and "event" not in names


def _predicted_rows(
    frame: pl.DataFrame, where: str, dose_mg: float | None, duration_h: float | None, route: str | None, loq: float
) -> NcaRows:
    """One row per curve, organ and matrix of a table of predictions, with the dose that the user names."""
    import polars as pl

    _check_positive("dose_mg", "mg", dose_mg)
    _check_positive("duration_h", "h", duration_h, allow_zero=True)
    if route is not None and route not in ROUTES:
        raise InputError("route", "is unknown", value=route, allowed=", ".join(ROUTES))
    if route is not None and (route == "iv_infusion") != bool(duration_h):
        raise InputError("duration_h", "contradicts the route", value=float(duration_h or 0), unit="h",
                         allowed="> 0 for iv_infusion, else 0")  # fmt: skip
    for name in ("time_h", "conc_mg_l"):
        if not frame[name].dtype.is_numeric():
            raise InputError(name, "is not a number", where=where)
        beyond = frame[name].cast(pl.Float64).abs().max()
        if beyond is not None and float(beyond) > _LARGEST:  # type: ignore[arg-type]
            raise InputError(name, "is larger than any time or concentration", value=beyond, where=where,
                             allowed=f"<= {_LARGEST:g}")  # fmt: skip
    keys = [name for name in ("curve_id", "drug", "organ", "matrix") if name in frame.columns]
    for name in keys:
        kind = frame[name].dtype
        if not (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
            raise InputError(name, "is no text", value=kind, where=where)
    frame = frame.sort([*keys, "time_h"], maintain_order=True)
    same = np.ones(max(frame.height - 1, 0), dtype=bool)
    for name in keys:
        values = frame[name].cast(str).to_numpy()
        same &= values[1:] == values[:-1]
    starts = np.concatenate((np.ones(min(frame.height, 1), dtype=bool), ~same))
    index = np.cumsum(starts) - 1
    begin = np.flatnonzero(starts)
    place = np.arange(frame.height) - begin[index]
    shape = (len(begin), int(place.max(initial=0)) + 1)
    time, conc = np.full(shape, np.nan), np.full(shape, np.nan)
    time[index, place] = frame["time_h"].cast(float).to_numpy()
    conc[index, place] = frame["conc_mg_l"].cast(float).to_numpy()
    labels: dict[str, np.ndarray] = {str(name): frame[name].cast(str).to_numpy()[begin].astype(object) for name in keys}
    is_blood = labels["organ"] == "blood"
    if "matrix" in labels:
        is_blood &= np.isin(labels["matrix"].astype(str), BLOOD_MATRICES)
    one = np.ones((len(begin), 1))
    return NcaRows(
        labels, time, conc, np.full(len(begin), loq), is_blood, 0.0 * one,
        one * (np.nan if dose_mg is None else dose_mg), one * (duration_h or 0.0), (one > 0) & (route == "oral"),
    )  # fmt: skip

"""Dose and observation rows of a tidy table, converted to Perfuse's units and checked.

Axis legend: R rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from perfuse.data.importers.tidy_columns import in_unit, numbers, refuse, row_place, text
from perfuse.pk.matrix import BLOOD_MATRICES, MATRICES, TISSUE_MATRIX, check_blood_matrix
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS
from perfuse.pk.system import ROUTES

MAX_DOSES = 1_000_000
"""Doses that one file may expand to."""


@dataclass(frozen=True)
class Doses:
    """Dose rows, by subject number: h, mg, h, and whether by mouth, ``(R,)`` each."""

    subject: np.ndarray
    time_h: np.ndarray
    dose_mg: np.ndarray
    duration_h: np.ndarray
    is_oral: np.ndarray

    def repeated(self, further: np.ndarray, interval_h: np.ndarray) -> Doses:
        """Each row and its ``further`` doses, ``(R,)`` int, ``interval_h`` apart."""
        row = np.repeat(np.arange(len(further)), further + 1)
        count = np.arange(len(row)) - np.repeat(np.cumsum(further + 1) - further - 1, further + 1)
        rows = Doses(**{name: value[row] for name, value in vars(self).items()})
        return replace(rows, time_h=rows.time_h + count * interval_h[row])


@dataclass(frozen=True)
class Observations:
    """Observation rows: subject number, organ and matrix indices, h, mg/L, flags, and mg/L (NaN: none given)."""

    subject: np.ndarray
    organ: np.ndarray
    matrix: np.ndarray
    time_h: np.ndarray
    conc_mg_l: np.ndarray
    censored: np.ndarray
    lloq_mg_l: np.ndarray

    def of(self, rows: np.ndarray) -> Observations:
        """Some of the rows."""
        return Observations(**{name: value[rows] for name, value in vars(self).items()})


def read_doses(frame: pl.DataFrame, subject: np.ndarray, covariates: dict[str, np.ndarray], where: str) -> Doses:
    """Dose rows, converted and checked."""
    mw, weight = covariates["mw_g_mol"][subject], covariates["body_weight_kg"][subject]
    route = text(frame, "route")
    known = route.is_in(list(ROUTES)).fill_null(False).to_numpy()
    given = route.is_not_null().to_numpy()
    refuse(frame, ~given, where, "route", "is missing", allowed=", ".join(ROUTES))
    refuse(frame, ~known, where, "route", "cannot be modelled", values=route, allowed=", ".join(ROUTES))
    dose = numbers(frame, "dose", where)
    refuse(frame, np.isnan(dose), where, "dose", "is missing", allowed="> 0")
    refuse(frame, ~(dose > 0), where, "dose", values=dose, allowed="> 0")
    duration = numbers(frame, "duration", where)
    infused = (route == "iv_infusion").to_numpy()
    refuse(frame, infused & ~(duration > 0), where, "duration", "is missing or not positive", allowed="> 0",
           hint="an infusion needs its duration; use route iv_bolus for a bolus")  # fmt: skip
    refuse(frame, ~infused & (duration != 0) & ~np.isnan(duration), where, "duration", "is given without an infusion",
           values=duration, allowed="empty or 0", hint="use route iv_infusion")  # fmt: skip
    duration = np.where(infused, duration, np.nan)
    doses = Doses(
        subject=subject,
        time_h=_time_h(frame, where),
        dose_mg=in_unit(frame, "dose", dose, "mg", where, mw, weight),
        duration_h=np.where(infused, in_unit(frame, "duration", duration, "h", where), 0.0),
        is_oral=(route == "oral").to_numpy(),
    )
    return doses.repeated(*_repeats(frame, where))


def _repeats(frame: pl.DataFrame, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Further doses of each row, int, and their interval, h."""
    addl, interval = numbers(frame, "addl", where), numbers(frame, "ii", where)
    further = np.nan_to_num(addl)
    whole = (further >= 0) & (further == np.floor(further))
    refuse(frame, ~whole, where, "addl", "is no number of doses", values=addl, allowed="a whole number >= 0")
    many = np.cumsum(further + 1) > MAX_DOSES
    refuse(frame, many, where, "addl", "makes too many doses", values=addl, allowed=f"{MAX_DOSES:,} in the file")
    refuse(frame, (further > 0) & ~(interval > 0), where, "ii", "is missing or not positive", values=interval,
           unit="", allowed="> 0 where addl is given")  # fmt: skip
    interval_h = in_unit(frame, "ii", np.where(further > 0, interval, np.nan), "h", where)
    return further.astype(np.int64), np.where(further > 0, interval_h, 0.0)


def _time_h(frame: pl.DataFrame, where: str) -> np.ndarray:
    time = numbers(frame, "time", where)
    refuse(frame, np.isnan(time), where, "time", "is missing")
    return in_unit(frame, "time", time, "h", where)


def _sites(frame: pl.DataFrame, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices of matrix (in ``MATRICES``) and organ (in ``ORGANS``) of observation rows."""
    matrix, organ = text(frame, "matrix"), text(frame, "organ")
    readable = (*BLOOD_MATRICES, TISSUE_MATRIX)
    refuse(frame, matrix.is_null(), where, "matrix", "is missing", allowed=", ".join(readable))
    other = ~matrix.is_in(readable)
    if other.any():
        i = int(other.arg_max() or 0)
        check_blood_matrix(matrix[i], row_place(frame, where, i))
    unknown = ~organ.is_in(ORGANS).fill_null(True)
    refuse(frame, unknown, where, "organ", "is unknown", values=organ, allowed=", ".join(ORGANS))
    tissue = matrix == TISSUE_MATRIX
    in_blood = organ.is_null() | (organ == "blood").fill_null(False)
    refuse(frame, tissue & in_blood, where, "organ", "is missing or blood for a tissue", allowed=", ".join(ORGANS[1:]))
    refuse(frame, ~tissue & ~in_blood, where, "organ", "does not fit the matrix", values=organ,
           allowed="blood, or empty", hint=f"tissues have the matrix {TISSUE_MATRIX}")  # fmt: skip
    matrix_index = np.asarray([MATRICES.index(m) for m in matrix.to_list()], dtype=np.int64)
    organ_index = np.asarray([ORGAN_INDEX[o or "blood"] for o in organ.to_list()], dtype=np.int64)
    return matrix_index, organ_index


def read_observations(
    frame: pl.DataFrame, subject: np.ndarray, covariates: dict[str, np.ndarray], where: str
) -> Observations:
    """Observation rows, converted and checked; ``conc_mg_l`` holds the LLOQ where censored."""
    mw = covariates["mw_g_mol"][subject]
    matrix, organ = _sites(frame, where)
    time_h = _time_h(frame, where)
    refuse(frame, time_h < 0, where, "time", "is before the start", values=time_h, unit="h", allowed=">= 0")
    raw = text(frame, "conc")
    below = raw.str.starts_with("<").fill_null(False)
    shown = pl.DataFrame([frame["_row"], raw.str.strip_prefix("<").str.strip_chars(), text(frame, "conc_unit")])
    bare = (below & (shown["conc"] == "")).fill_null(False)
    refuse(frame, bare, where, "conc", "states no limit", values=raw, allowed="< and a number > 0")
    conc = numbers(shown, "conc", where)
    refuse(frame, conc < 0, where, "conc", values=conc, allowed=">= 0")
    below_x = below.to_numpy()
    refuse(frame, below_x & ~(conc > 0), where, "conc", "states no limit", values=raw, allowed="< and a number > 0")
    lloq = numbers(frame, "lloq", where)
    refuse(frame, lloq <= 0, where, "lloq", values=lloq, allowed="> 0")
    missing = np.isnan(conc) & np.isnan(lloq)
    refuse(
        frame, missing, where, "conc", "is missing", hint="below the limit? give lloq; not measured? leave the row out"
    )
    conc_mg_l = in_unit(shown, "conc", conc, "mg/L", where, mw)
    lloq_mg_l = in_unit(frame, "lloq", lloq, "mg/L", where, mw)
    lloq_mg_l = np.where(below_x, conc_mg_l, lloq_mg_l)
    censored = below_x | (np.isnan(conc_mg_l)) | (conc_mg_l < lloq_mg_l)
    conc_mg_l = np.where(censored, lloq_mg_l, conc_mg_l)
    refuse_twice(frame, (subject, matrix, organ, time_h), where)
    return Observations(subject, organ, matrix, time_h, conc_mg_l, censored, lloq_mg_l)


def after_first_dose(
    frame: pl.DataFrame, seen: Observations, doses: Doses, n: int, where: str, conc: str = "conc"
) -> Observations:
    """Observations of ``n`` subjects without those that no model without a baseline can predict.

    They lie at or before a first dose that is after time 0. A value above 0 there is refused. A first dose at time 0
    needs nothing: a value at time 0 never counts.
    """
    first = np.full(n, np.inf)
    np.minimum.at(first, doses.subject, doses.time_h)
    begin = first[seen.subject]
    early = (begin > 0) & (seen.time_h <= begin)
    refuse(frame, early & ~seen.censored & (seen.conc_mg_l > 0), where, conc, "is measured before the first dose",
           values=seen.conc_mg_l, unit="mg/L", allowed="0, below the limit, or after the dose",
           hint="a baseline cannot be predicted: leave the row out, or give the earlier dose too")  # fmt: skip
    return seen.of(~early)


def refuse_twice(frame: pl.DataFrame, key: tuple[np.ndarray, ...], where: str, time: str = "time") -> None:
    """Refuse the first row whose subject, matrix, organ and time stood before; ``time`` is its column."""
    keys = pl.DataFrame({str(i): values for i, values in enumerate(key)})
    is_first = keys.select(pl.struct(pl.all()).is_first_distinct()).to_series()
    refuse(frame, ~is_first, where, time, "is given twice for one subject, matrix and organ",
           values=text(frame, time), hint="keep one value, or name replicates as subjects")  # fmt: skip

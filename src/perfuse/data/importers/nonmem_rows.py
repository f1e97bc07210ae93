"""Dose and observation records of a NONMEM data file, checked and in Perfuse's units.

Axis legend: R records, n curves (an individual, or what follows a reset of it).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from perfuse.data.importers.nonmem_options import ORAL_COMPARTMENT, NonmemOptions
from perfuse.data.importers.tidy_columns import numbers, refuse, row_place, text
from perfuse.data.importers.tidy_events import MAX_DOSES, Doses, Observations, refuse_twice
from perfuse.data.units import conversion_factor
from perfuse.errors import InputError
from perfuse.pk.matrix import BLOOD_MATRICES, MATRICES, TISSUE_MATRIX, check_blood_matrix
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS

_RATE_TOLERANCE = 1e-6
_MODELLED_DURATION = -2.0


@dataclass(frozen=True)
class Records:
    """All records with what tells them apart: curve number, time, and whether dose or observation, ``(R,)`` each."""

    frame: pl.DataFrame
    curve: np.ndarray
    time: np.ndarray
    is_dose: np.ndarray
    is_seen: np.ndarray
    names: list[str]
    where: str

    def of(self, rows: np.ndarray) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
        """Frame, curve and time of some records."""
        return self.frame.filter(pl.Series(rows)), self.curve[rows], self.time[rows]


def zero_if_missing(frame: pl.DataFrame, name: str, where: str) -> np.ndarray:
    """A column in which a missing value is 0, as NONMEM has it."""
    return np.nan_to_num(numbers(frame, name, where), nan=0.0)


def read_record_kinds(frame: pl.DataFrame, where: str) -> Records:
    """Tell curves, doses and observations apart by ID, TIME, EVID and MDV.

    EVID: 0 observation, 1 dose, 2 other (passed over), 3 reset, 4 reset and dose; without the column a record with an
    AMT is a dose. MDV=1 leaves an observation out. A reset begins a new curve of the same individual.
    """
    who, time = numbers(frame, "ID", where), numbers(frame, "TIME", where)
    refuse(frame, np.isnan(who), where, "ID", "is missing")
    refuse(frame, np.isnan(time), where, "TIME", "is missing")
    refuse(frame, time < 0, where, "TIME", "is before the start", values=time, allowed=">= 0")
    amount, mdv = zero_if_missing(frame, "AMT", where), zero_if_missing(frame, "MDV", where)
    evid = zero_if_missing(frame, "EVID", where)
    if "EVID" not in frame.columns:
        evid = np.where(amount > 0, 1.0, 0.0)
    refuse(frame, ~np.isin(evid, (0, 1, 2, 3, 4)), where, "EVID", "is unknown", values=evid, allowed="0, 1, 2, 3, 4")
    refuse(frame, ~np.isin(mdv, (0, 1)), where, "MDV", "is unknown", values=mdv, allowed="0, 1")
    refuse(frame, np.isin(evid, (0, 2, 3)) & (amount != 0), where, "AMT", "is given for a record that is no dose",
           values=amount, allowed="0 or . unless EVID is 1 or 4")  # fmt: skip
    new_block = np.append(True, who[1:] != who[:-1])
    is_first = pl.Series(who).is_first_distinct().to_numpy()
    refuse(frame, new_block & ~is_first, where, "ID", "appears again after another", values=text(frame, "ID"),
           hint="the records of an individual must follow each other")  # fmt: skip
    new = new_block | (evid >= 3)
    curve = np.cumsum(new) - 1
    refuse(frame, np.append(False, time[1:] < time[:-1]) & ~new, where, "TIME", "goes back", values=time,
           allowed="in order within an individual, unless EVID is 3 or 4")  # fmt: skip
    begins = np.flatnonzero(new)
    within = curve[begins] - np.maximum.accumulate(np.where(new_block[begins], curve[begins], 0))
    names = [f"{i:.15g}" + (f"/{k + 1}" if k else "") for i, k in zip(who[begins], within, strict=True)]
    return Records(frame, curve, time, np.isin(evid, (1, 4)), (evid == 0) & (mdv == 0), names, where)


def per_curve_factor(
    unit: str, target: str, field: str, mw_g_mol: np.ndarray, body_weight_kg: np.ndarray, names: list[str], where: str
) -> np.ndarray:
    """What each curve's values in ``unit`` are multiplied by to be in ``target``, ``(n,)``."""
    with suppress(InputError):
        return np.full(len(names), conversion_factor(unit, target, field))
    known = lambda v: None if np.isnan(v) else float(v)  # noqa: E731
    return np.asarray([
        conversion_factor(unit, target, field, f"{where}: ID {name}", known(mw), known(weight))
        for name, mw, weight in zip(names, mw_g_mol, body_weight_kg, strict=True)
    ])  # fmt: skip


def _compartments(frame: pl.DataFrame, options: NonmemOptions, default: str, where: str) -> np.ndarray:
    """What each record's CMT is, ``(R,)`` str; ``default`` where CMT is missing or 0."""
    cmt = zero_if_missing(frame, "CMT", where)
    known = np.isin(cmt, list(options.compartments)) | (cmt == 0)
    refuse(frame, ~known, where, "CMT", "is unknown", values=cmt,
           allowed=", ".join(f"{k} ({v})" for k, v in options.compartments.items()),
           hint="name it in compartments")  # fmt: skip
    return np.asarray([options.compartments.get(int(c), default) for c in cmt], dtype=str)


def _durations(frame: pl.DataFrame, amount: np.ndarray, where: str) -> np.ndarray:
    """Duration of each dose, in time units: DUR, or AMT / RATE; 0 for a bolus."""
    rate, duration = zero_if_missing(frame, "RATE", where), zero_if_missing(frame, "DUR", where)
    modelled = (rate == _MODELLED_DURATION) & (duration > 0)
    refuse(frame, (rate < 0) & ~modelled, where, "RATE", "is estimated by the model, which the data do not tell",
           values=rate, allowed=">= 0, or -2 beside a DUR")  # fmt: skip
    refuse(frame, duration < 0, where, "DUR", values=duration, allowed=">= 0")
    by_rate = np.where(rate > 0, amount / np.where(rate > 0, rate, 1.0), 0.0)
    both = (rate > 0) & (duration > 0)
    differs = both & ~(np.abs(by_rate - duration) <= _RATE_TOLERANCE * duration)
    refuse(frame, differs, where, "DUR", "contradicts AMT / RATE", values=duration, hint="give one of them")
    return np.where(duration > 0, duration, by_rate)


def read_dose_records(
    records: Records, options: NonmemOptions, to_mg: np.ndarray, to_h: float
) -> tuple[Doses, np.ndarray]:
    """Every dose, repeats and steady states written out, and by how much each curve's clock was moved, h, ``(n,)``.

    Args:
        records: The records.
        options: Compartments, and doses that stand for a steady state.
        to_mg: Factor of AMT, ``(n,)``.
        to_h: Factor of TIME.
    """
    frame, curve, time = records.of(records.is_dose)
    where = records.where
    amount = numbers(frame, "AMT", where)
    refuse(frame, ~(amount > 0), where, "AMT", "is missing or not positive", values=amount, allowed="> 0 for a dose")
    place = _compartments(frame, options, options.default_dose, where)
    refuse(
        frame, place == "", where, "CMT", "is missing for a dose", allowed="a compartment, or the option default_dose"
    )
    refuse(frame, ~np.isin(place, (ORAL_COMPARTMENT, "blood")), where, "CMT", "takes no dose", values=place,
           allowed="oral, blood")  # fmt: skip
    duration = _durations(frame, amount, where)
    oral = place == ORAL_COMPARTMENT
    refuse(frame, oral & (duration > 0), where, "RATE", "is given for an oral dose", allowed="0",
           hint="absorption is first-order; zero-order absorption is not modelled")  # fmt: skip
    doses = Doses(curve, time * to_h, amount * to_mg[curve], duration * to_h, oral)
    later = np.append(False, curve[1:] == curve[:-1])
    _refuse_after_bolus(records, later & ~oral & (duration == 0))
    further, interval_h, before = _repeats(frame, curve, options, to_h, where)
    doses = replace(doses, time_h=doses.time_h - before * interval_h).repeated(further + before, interval_h)
    moved = np.zeros(len(records.names))
    np.minimum.at(moved, doses.subject, doses.time_h)
    return replace(doses, time_h=doses.time_h - moved[doses.subject]), -moved


def _repeats(
    frame: pl.DataFrame, curve: np.ndarray, options: NonmemOptions, to_h: float, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Further doses of each record, their interval in h, and how many doses before it stand for a steady state."""
    addl, interval, steady = (zero_if_missing(frame, name, where) for name in ("ADDL", "II", "SS"))
    whole = (addl >= 0) & (addl == np.floor(addl))
    refuse(frame, ~whole, where, "ADDL", "is no number of doses", values=addl, allowed="a whole number >= 0")
    refuse(frame, ~np.isin(steady, (0, 1)), where, "SS", "cannot be read", values=steady, allowed="0, 1")
    is_steady = steady == 1
    if options.steady_state_doses == 0:
        refuse(frame, is_steady, where, "SS", "asks for a steady state, which depends on the drug", values=steady,
               allowed="0", hint="say how many doses before it stand for it: steady_state_doses")  # fmt: skip
    later = np.append(False, curve[1:] == curve[:-1])
    refuse(frame, is_steady & later, where, "SS", "is not at the first dose", values=steady, allowed="0",
           hint="a steady state begins a curve; use EVID 4 to begin a new one")  # fmt: skip
    repeats = (addl > 0) | is_steady
    refuse(frame, repeats & ~(interval > 0), where, "II", "is missing or not positive", values=interval,
           allowed="> 0 beside ADDL or SS")  # fmt: skip
    before = np.where(is_steady, options.steady_state_doses, 0).astype(np.int64)
    many = np.cumsum(addl + before + 1) > MAX_DOSES
    refuse(frame, many, where, "ADDL", "makes too many doses", values=addl, allowed=f"{MAX_DOSES:,} in the file")
    return addl.astype(np.int64), np.where(repeats, interval * to_h, 0.0), before


def read_observation_records(
    records: Records, options: NonmemOptions, to_mg_l: np.ndarray, to_h: float, moved_h: np.ndarray
) -> tuple[Observations, pl.DataFrame]:
    """Observed values in mg/L, and their records; ``conc_mg_l`` holds the limit where censored.

    A value is below the limit when BLQ is 1 (the limit is LLOQ, or DV where that is missing), or when it is lower than
    its LLOQ.
    """
    frame, curve, time = records.of(records.is_seen)
    where = records.where
    place = _sites(frame, options, where)
    matrix = np.full(len(place), MATRICES.index(TISSUE_MATRIX))
    in_blood = place == "blood"
    matrix[in_blood] = _blood_matrices(frame.filter(pl.Series(in_blood)), options, where)
    organ = np.asarray([ORGAN_INDEX[p] for p in place], dtype=np.int64)
    dv, lloq, blq = numbers(frame, "DV", where), numbers(frame, "LLOQ", where), zero_if_missing(frame, "BLQ", where)
    refuse(frame, ~np.isin(blq, (0, 1)), where, "BLQ", "is unknown", values=blq, allowed="0, 1")
    refuse(frame, dv < 0, where, "DV", values=dv, allowed=">= 0", hint="values must not be logarithms")
    refuse(frame, lloq <= 0, where, "LLOQ", values=lloq, allowed="> 0")
    limit = np.where(np.isnan(lloq) & (blq == 1), dv, lloq)
    refuse(frame, (blq == 1) & ~(limit > 0), where, "BLQ", "states no limit", allowed="a LLOQ, or the limit as DV")
    refuse(frame, np.isnan(dv) & np.isnan(limit), where, "DV", "is missing",
           hint="below the limit? give LLOQ; not measured? MDV is 1")  # fmt: skip
    censored = (blq == 1) | (np.nan_to_num(dv, nan=0.0) < limit)
    conc = np.where(censored, limit, dv) * to_mg_l[curve]
    refuse_twice(frame, (curve, matrix, organ, time), where, "TIME")
    time_h = time * to_h + moved_h[curve]
    return Observations(curve, organ, matrix, time_h, conc, censored, limit * to_mg_l[curve]), frame


def _sites(frame: pl.DataFrame, options: NonmemOptions, where: str) -> np.ndarray:
    """Organ of each observation, ``(R,)`` str: the ORGAN column, else CMT, else blood."""
    named = text(frame, "ORGAN")
    unknown = ~named.is_in(list(ORGANS)).fill_null(True)
    refuse(frame, unknown, where, "ORGAN", "is unknown", values=named, allowed=", ".join(ORGANS))
    if named.null_count() == 0:
        return named.to_numpy().astype(str)
    bare = frame.filter(named.is_null())
    place = _compartments(bare, options, "blood", where)
    refuse(bare, place == ORAL_COMPARTMENT, where, "CMT", "is not observed", values=place,
           allowed="blood or a tissue")  # fmt: skip
    out = named.fill_null("").to_numpy().astype(object)
    out[named.is_null().to_numpy()] = place
    return out.astype(str)


def _blood_matrices(frame: pl.DataFrame, options: NonmemOptions, where: str) -> np.ndarray:
    """Index in ``MATRICES`` of what blood was measured in."""
    named = text(frame, "MATRIX").fill_null(options.matrix)
    wrong = ~named.is_in(list(BLOOD_MATRICES))
    if wrong.any():
        i = int(wrong.arg_max() or 0)
        check_blood_matrix(named[i], row_place(frame, where, i))
    return np.asarray([MATRICES.index(m) for m in named.to_list()], dtype=np.int64)


def _refuse_after_bolus(records: Records, is_bolus: np.ndarray) -> None:
    """Refuse a value at the moment of a later bolus, after it; ``is_bolus`` is by dose record."""
    index = np.arange(len(records.curve))
    at = index[records.is_dose][is_bolus]
    bolus = pl.DataFrame({"c": records.curve[at], "t": records.time[at], "i": at})
    seen = pl.DataFrame({"c": records.curve, "t": records.time, "at": index}).filter(pl.Series(records.is_seen))
    after = seen.join(bolus.group_by("c", "t").agg(pl.col("i").min()), on=["c", "t"], how="left", maintain_order="left")
    bad = np.zeros(len(index), dtype=bool)
    bad[after["at"].to_numpy()] = (after["at"] > after["i"]).fill_null(False).to_numpy()
    refuse(records.frame, bad, records.where, "TIME", "is that of a bolus before it", values=records.time,
           hint="a curve holds the value before a later dose: put the record before it, or a little later")  # fmt: skip

"""The tidy long table: one row is one dose or one observation; CSV, TSV or Parquet.

Columns: ``drug``, ``subject``, ``event`` (``dose`` | ``observation``), ``time``, ``time_unit``; for doses ``dose``,
``dose_unit``, ``route`` (``iv_bolus`` | ``iv_infusion`` | ``oral``), ``duration``, ``duration_unit``, and for repeats
``addl`` (further doses) with ``ii``, ``ii_unit`` (interval); for observations ``matrix``, ``organ``, ``conc``,
``conc_unit``, ``lloq``, ``lloq_unit``; and covariates, which may stand on any row of a subject but may not differ:
``topology``, ``body_weight_kg``, ``fup``, ``bp_ratio``, ``kp_<organ>``, ``volume_<organ>_l``, ``flow_<organ>_l_h``,
``loq_mg_l``, the topology's eliminations and ``ps_<organ>_l_h``; ``ka_1_h``, ``lag_h``, ``f_abs`` of oral doses;
``vmax_mg_h_<i>`` and ``km_u_mg_l_<i>`` of saturable pathways 1 to 9; the descriptors ``mw_g_mol``, ``logp``,
``pka_acid_<i>``, ``pka_base_<i>`` (1, 2), ``clint_ul_min_million_cells``.

* Every number has a unit column or its unit in its name. Molar units need ``mw_g_mol``, mg/kg ``body_weight_kg``.
* A concentration is below the limit when it is written ``<x`` (limit x), is empty beside an ``lloq``, or is lower
  than its ``lloq``. Missing: empty, ``NA`` or ``.``.
* One curve is one drug in one subject with one blood matrix. A subject measured in two of them gives two curves;
  tissues go with the first (the order of ``MATRICES``). Blood is venous: arterial matrices are refused.
* ``loq_mg_l`` is the limit below which no value of the subject counts. Without it a curve's limit is its lowest
  ``lloq``, or 1e-5 x dose / blood volume, and in either case never above a value that states no ``lloq``.
* The first dose is where a curve begins. Where that is after time 0, nothing can be predicted at or before it: a value
  above 0 there is refused, a zero or a censored one says nothing and is left out. (At time 0 no value counts anyway.)
* A drug with ``mw_g_mol`` and ``logp`` may leave out every Kp, or every elimination: they are "not given".
* Rows may come in any order. Two values at one subject, matrix, organ and time are refused, not averaged.

Axis legend: C curves, O reported organs, M eliminations, D dose events, T times.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from perfuse.data.importers.tidy_columns import check_names, read_frame, refuse, topology_of
from perfuse.data.importers.tidy_covariates import Columns, drug_groups, read_covariates, table_columns
from perfuse.data.importers.tidy_events import (
    Doses,
    Observations,
    after_first_dose,
    read_doses,
    read_observations,
)
from perfuse.data.importers.tidy_write import write_tidy
from perfuse.data.table import LOQ_FRACTION, CurveTable
from perfuse.errors import InputError
from perfuse.pk.matrix import MATRICES, TISSUE_MATRIX
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS
from perfuse.pk.system import ORAL
from perfuse.pk.topology import Topology


def _curves(seen: Observations, n_subjects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which curve each observation belongs to, and each curve's subject and matrix index.

    A subject has one curve per matrix of its blood; tissue goes with the first, or alone when there is none.
    """
    tissue = MATRICES.index(TISSUE_MATRIX)
    first = np.full(n_subjects, tissue)
    np.minimum.at(first, seen.subject, seen.matrix)  # TISSUE_MATRIX is the last of MATRICES
    matrix = np.where(seen.matrix == tissue, first[seen.subject], seen.matrix)
    key, curve = np.unique(seen.subject * len(MATRICES) + matrix, return_inverse=True)
    return curve, key // len(MATRICES), key % len(MATRICES)


def _time_grid(curve: np.ndarray, time_h: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """``(C, T)`` each curve's own times, increasing and NaN-padded, and each row's place in it."""
    order = np.lexsort((time_h, curve))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(curve[order]) != 0) | (np.diff(time_h[order]) != 0)
    count = np.cumsum(new) - 1  # number of the (curve, time) pair
    begin = np.zeros(n, dtype=np.int64)
    begin[1:] = np.cumsum(np.bincount(curve[order][new], minlength=n))[:-1]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = count - begin[curve[order]]
    grid = np.full((n, int(place.max()) + 1), np.nan)
    grid[curve, place] = time_h
    return grid, place


def _dose_arrays(doses: Doses, curve_subject: np.ndarray) -> dict[str, np.ndarray]:
    """``(C, D)`` dose columns of every curve, in order of time, padded with 0 mg at time 0."""
    order = np.lexsort((doses.time_h, doses.subject))
    subject = doses.subject[order]
    n = int(max(subject.max(initial=0), curve_subject.max())) + 1
    counts = np.bincount(subject, minlength=n)
    begin = np.concatenate(([0], np.cumsum(counts)[:-1]))
    place = np.arange(len(subject)) - begin[subject]
    out = {}
    for name, values in (
        ("dose_time_h", doses.time_h),
        ("dose_mg", doses.dose_mg),
        ("dose_duration_h", doses.duration_h),
        ("dose_route", np.where(doses.is_oral, ORAL, 0).astype(np.int8)),
    ):
        padded = np.zeros((n, int(counts.max())), dtype=values.dtype)
        padded[subject, place] = values[order]
        out[name] = padded[curve_subject]
    return out


def _quantification_limit(
    seen: Observations, curve: np.ndarray, given_mg_l: np.ndarray, default_mg_l: np.ndarray
) -> np.ndarray:
    """``(C,)`` mg/L: the one given for the curve; else the lowest LLOQ of its values, or 1e-5 x dose / blood volume,
    lowered to the smallest positive value without an LLOQ: a measured value is never struck out by a limit that nobody
    stated for it.
    """
    n = len(default_mg_l)
    stated, smallest = np.full(n, np.inf), np.full(n, np.inf)
    bare = np.isnan(seen.lloq_mg_l)
    np.minimum.at(stated, curve, np.where(bare, np.inf, seen.lloq_mg_l))
    np.minimum.at(smallest, curve, np.where(bare & (seen.conc_mg_l > 0), seen.conc_mg_l, np.inf))
    limit = np.minimum(np.where(np.isfinite(stated), stated, default_mg_l), smallest)
    return np.where(np.isnan(given_mg_l), limit, given_mg_l)


def read_tidy(path: Path, topology: Topology | None = None) -> CurveTable:
    """Read a tidy table (see the module's text for its columns).

    Args:
        path: ``.csv``, ``.tsv`` or ``.parquet``.
        topology: Organ graph; unset, the file's ``topology`` column says.

    Raises:
        InputError: one line naming the file, the row or subject, the column, the value and what is allowed.
    """
    path = Path(path)
    where = str(path)
    frame = read_frame(path)
    topology = topology_of(frame, topology, where)
    check_names(frame, topology, where)
    for name in ("drug", "subject", "event"):
        refuse(frame, frame[name].is_null(), where, name, "is missing")
    is_dose, is_seen = (frame["event"] == "dose").to_numpy(), (frame["event"] == "observation").to_numpy()
    refuse(frame, ~is_dose & ~is_seen, where, "event", "is unknown", values=frame["event"], allowed="dose, observation")
    for wanted, event in ((is_dose, "dose"), (is_seen, "observation")):
        if not wanted.any():
            raise InputError("event", f"never says {event}", allowed=">= 1 dose and >= 1 observation", where=where)
    keys = frame.select("drug", "subject").unique(maintain_order=True).with_row_index("_subject")
    joined = frame.join(keys, on=["drug", "subject"], how="left", maintain_order="left")
    subject = joined["_subject"].to_numpy().astype(np.int64)
    names = [f"{drug}/{who}" for drug, who in keys.select("drug", "subject").iter_rows()]
    covariates = read_covariates(frame, subject, len(names), topology, where)
    doses = read_doses(frame.filter(pl.Series(is_dose)), subject[is_dose], covariates, where)
    seen_frame = frame.filter(pl.Series(is_seen))
    seen = read_observations(seen_frame, subject[is_seen], covariates, where)
    refuse_absent(doses.subject, "dose", names, where)
    seen = after_first_dose(seen_frame, seen, doses, len(names), where)
    refuse_absent(seen.subject, "observation", names, where)
    columns = table_columns(covariates, doses, names, topology, where)
    return assemble(topology, keys["drug"].to_numpy().astype(str), names, columns, doses, seen).validate(where)


def refuse_absent(subject: np.ndarray, event: str, names: list[str], where: str) -> None:
    """Refuse the first drug and subject without a dose, or without an observation that can be used."""
    absent = np.bincount(subject, minlength=len(names)) == 0
    if absent.any():
        raise InputError("event", f"has no {event} for this drug and subject",
                         where=f"{where}: {names[int(np.argmax(absent))]}")  # fmt: skip


def assemble(
    topology: Topology, drug: np.ndarray, names: list[str], by_subject: Columns, doses: Doses, seen: Observations
) -> CurveTable:
    """One row per curve from everything by subject.

    Args:
        topology: Organ graph.
        drug: Name of each subject's drug, ``(n,)`` str.
        names: Name of each drug and subject.
        by_subject: Columns as ``tidy_covariates.table_columns`` gives them.
        doses, seen: Rows by subject number.
    """
    curve, of_subject, matrix = _curves(seen, len(names))
    n = len(of_subject)
    grid, place = _time_grid(curve, seen.time_h, n)
    conc = np.full((n, len(ORGANS), grid.shape[1]), np.nan)
    censored = np.zeros(conc.shape, dtype=bool)
    conc[curve, seen.organ, place] = seen.conc_mg_l
    censored[curve, seen.organ, place] = seen.censored
    columns = {name: values[of_subject] for name, values in by_subject.items()}
    dosing = _dose_arrays(doses, of_subject)
    given_loq = columns.pop("loq_mg_l")
    default = LOQ_FRACTION * dosing["dose_mg"].sum(1) / columns["volume_l"][:, ORGAN_INDEX["blood"]]
    matrix_name = np.asarray(MATRICES)[matrix]
    return CurveTable(
        topology=topology,
        curve_id=np.asarray([f"{names[s]}/{m}" for s, m in zip(of_subject, matrix_name, strict=True)], dtype=str),
        compound_id=drug[of_subject],
        group_id=drug_groups(columns),
        time_h=grid,
        conc_mg_l=conc,
        censored=censored,
        loq_mg_l=_quantification_limit(seen, curve, given_loq, default),
        matrix=matrix_name,
        **columns,
        **dosing,
    )


__all__ = ["read_tidy", "write_tidy"]

"""The tidy long table: one row is one dose or one observation; CSV, TSV or Parquet.

Columns: ``drug``, ``subject``, ``event`` (``dose`` | ``observation``), ``time``, ``time_unit``; for doses ``dose``,
``dose_unit``, ``route`` (``iv_bolus`` | ``iv_infusion``), ``duration``, ``duration_unit``; for observations
``matrix``, ``organ``, ``conc``, ``conc_unit``, ``lloq``, ``lloq_unit``; and covariates, which may stand on any row
of a subject but may not differ: ``topology``, ``body_weight_kg``, ``mw_g_mol``, ``fup``, ``bp_ratio``,
``kp_<organ>``, ``volume_<organ>_l``, ``flow_<organ>_l_h`` and the topology's eliminations.

* Every number has a unit column or its unit in its name. Molar units need ``mw_g_mol``, mg/kg ``body_weight_kg``.
* A concentration is below the limit when it is written ``<x`` (limit x), is empty beside an ``lloq``, or is lower
  than its ``lloq``. Missing: empty, ``NA`` or ``.``.
* One curve is one drug in one subject with one blood matrix. A subject measured in two of them gives two curves;
  tissues go with the first (the order of ``MATRICES``).
* Rows may come in any order. Two values at one subject, matrix, organ and time are refused, not averaged.

Axis legend: C curves, O reported organs, M eliminations, D dose events, T times, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from perfuse.data.importers.tidy_columns import (
    SCALARS,
    check_names,
    in_unit,
    numbers,
    read_frame,
    refuse,
    text,
    topology_of,
)
from perfuse.data.importers.tidy_write import write_tidy
from perfuse.data.table import LOQ_FRACTION, CurveTable, parameter_group
from perfuse.errors import InputError
from perfuse.pk.curves import MATRICES
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, Physiology, check_flow_balance, hub_reference, human_reference
from perfuse.pk.topology import Topology

ROUTES = ("iv_bolus", "iv_infusion")
TISSUE = "tissue_homogenate"


@dataclass(frozen=True)
class _Doses:
    """Dose rows, by subject number: h, mg, h, ``(R,)`` each."""

    subject: np.ndarray
    time_h: np.ndarray
    dose_mg: np.ndarray
    duration_h: np.ndarray


@dataclass(frozen=True)
class _Observations:
    """Observation rows: subject number, organ and matrix indices, h, mg/L, flags, and mg/L (NaN: none given)."""

    subject: np.ndarray
    organ: np.ndarray
    matrix: np.ndarray
    time_h: np.ndarray
    conc_mg_l: np.ndarray
    censored: np.ndarray
    lloq_mg_l: np.ndarray

    def of(self, rows: np.ndarray) -> _Observations:
        """Some of the rows."""
        return _Observations(**{name: value[rows] for name, value in vars(self).items()})


def _covariates(
    frame: pl.DataFrame, subject: np.ndarray, n: int, topology: Topology, where: str
) -> dict[str, np.ndarray]:
    """Each covariate by subject, NaN where not given; refuses one that differs within a subject."""
    organ_columns = [f"{p}_{o}{s}" for p, s in (("kp", ""), ("volume", "_l"), ("flow", "_l_h")) for o in ORGANS]
    out = {}
    for name in (*SCALARS, *topology.elimination_names, *organ_columns):
        value = numbers(frame, name, where)
        given = np.flatnonzero(~np.isnan(value))
        of_subject = np.full(n, np.nan)
        of_subject[subject[given][::-1]] = value[given][::-1]  # the first row given wins
        differs = np.zeros(len(value), dtype=bool)
        differs[given] = value[given] != of_subject[subject[given]]
        refuse(frame, differs, where, name, "differs within one drug and subject", values=value)
        wrong = np.zeros(len(value), dtype=bool)
        wrong[given] = value[given] < 0 if name in topology.elimination_names else value[given] <= 0
        allowed = ">= 0" if name in topology.elimination_names else "> 0"
        refuse(frame, wrong, where, name, values=value, allowed=allowed)
        out[name] = of_subject
    return out


def _read_doses(frame: pl.DataFrame, subject: np.ndarray, covariates: dict[str, np.ndarray], where: str) -> _Doses:
    """Dose rows, converted and checked."""
    mw, weight = covariates["mw_g_mol"][subject], covariates["body_weight_kg"][subject]
    route = text(frame, "route")
    known = route.is_in(ROUTES).fill_null(False).to_numpy()
    given = route.is_not_null().to_numpy()
    refuse(frame, ~given, where, "route", "is missing", allowed=", ".join(ROUTES))
    refuse(frame, ~known, where, "route", "cannot be modelled", values=route, allowed=", ".join(ROUTES),
           hint="this version models intravenous doses; oral and other routes are not among them")  # fmt: skip
    dose = numbers(frame, "dose", where)
    refuse(frame, np.isnan(dose), where, "dose", "is missing", allowed="> 0")
    refuse(frame, ~(dose > 0), where, "dose", values=dose, allowed="> 0")
    duration = numbers(frame, "duration", where)
    infused = (route == "iv_infusion").to_numpy()
    refuse(frame, infused & ~(duration > 0), where, "duration", "is missing or not positive", allowed="> 0",
           hint="an infusion needs its duration; use route iv_bolus for a bolus")  # fmt: skip
    refuse(frame, ~infused & (duration != 0) & ~np.isnan(duration), where, "duration", "is given for a bolus",
           values=duration, allowed="empty or 0", hint="use route iv_infusion")  # fmt: skip
    duration = np.where(infused, duration, np.nan)
    return _Doses(
        subject=subject,
        time_h=_time_h(frame, where),
        dose_mg=in_unit(frame, "dose", dose, "mg", where, mw, weight),
        duration_h=np.where(infused, in_unit(frame, "duration", duration, "h", where), 0.0),
    )


def _time_h(frame: pl.DataFrame, where: str) -> np.ndarray:
    time = numbers(frame, "time", where)
    refuse(frame, np.isnan(time), where, "time", "is missing")
    return in_unit(frame, "time", time, "h", where)


def _sites(frame: pl.DataFrame, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices of matrix (in ``MATRICES``) and organ (in ``ORGANS``) of observation rows."""
    matrix, organ = text(frame, "matrix"), text(frame, "organ")
    refuse(frame, matrix.is_null(), where, "matrix", "is missing", allowed=", ".join(MATRICES))
    unknown = ~matrix.is_in(MATRICES)
    refuse(frame, unknown, where, "matrix", "is unknown", values=matrix, allowed=", ".join(MATRICES))
    unknown = ~organ.is_in(ORGANS).fill_null(True)
    refuse(frame, unknown, where, "organ", "is unknown", values=organ, allowed=", ".join(ORGANS))
    tissue = matrix == TISSUE
    in_blood = organ.is_null() | (organ == "blood").fill_null(False)
    refuse(frame, tissue & in_blood, where, "organ", "is missing or blood for a tissue", allowed=", ".join(ORGANS[1:]))
    refuse(frame, ~tissue & ~in_blood, where, "organ", "does not fit the matrix", values=organ,
           allowed="blood, or empty", hint=f"tissues have the matrix {TISSUE}")  # fmt: skip
    matrix_index = np.asarray([MATRICES.index(m) for m in matrix.to_list()], dtype=np.int64)
    organ_index = np.asarray([ORGAN_INDEX[o or "blood"] for o in organ.to_list()], dtype=np.int64)
    return matrix_index, organ_index


def _read_observations(
    frame: pl.DataFrame, subject: np.ndarray, covariates: dict[str, np.ndarray], where: str
) -> _Observations:
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
    _refuse_twice(frame, (subject, matrix, organ, time_h), where)
    return _Observations(subject, organ, matrix, time_h, conc_mg_l, censored, lloq_mg_l)


def _refuse_twice(frame: pl.DataFrame, key: tuple[np.ndarray, ...], where: str) -> None:
    """Refuse the first row whose subject, matrix, organ and time stood before."""
    keys = pl.DataFrame({str(i): values for i, values in enumerate(key)})
    is_first = keys.select(pl.struct(pl.all()).is_first_distinct()).to_series()
    refuse(frame, ~is_first, where, "time", "is given twice for one subject, matrix and organ",
           values=text(frame, "time"), hint="keep one value, or name replicates as subjects")  # fmt: skip


def _curves(seen: _Observations, n_subjects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which curve each observation belongs to, and each curve's subject and matrix index.

    A subject has one curve per matrix of its blood; tissue goes with the first, or alone when there is none.
    """
    tissue = MATRICES.index(TISSUE)
    first = np.full(n_subjects, tissue)
    np.minimum.at(first, seen.subject, seen.matrix)  # TISSUE is the last of MATRICES
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


def _dose_arrays(doses: _Doses, curve_subject: np.ndarray) -> dict[str, np.ndarray]:
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
    ):
        padded = np.zeros((n, int(counts.max())))
        padded[subject, place] = values[order]
        out[name] = padded[curve_subject]
    return out


def _bodies(
    covariates: dict[str, np.ndarray], names: list[str], topology: Topology, where: str
) -> dict[str, np.ndarray]:
    """Body weight, volumes, flows, Kp, binding and eliminations by subject, defaults filled in."""
    hub = topology.name == "hub"
    weight = covariates["body_weight_kg"].copy()
    required = [*topology.elimination_names, *(f"kp_{o}" for o in ORGANS[1:])]
    required += [] if hub else ["body_weight_kg", "fup", "bp_ratio"]
    for name in required:
        absent = np.isnan(covariates[name])
        if absent.any():
            raise InputError(name, "is missing", where=f"{where}: {names[int(np.argmax(absent))]}",
                             hint=f"a covariate that topology {topology.name} needs")  # fmt: skip
    weight = np.where(np.isnan(weight), hub_reference().body_weight_kg, weight)
    bodies = [
        hub_reference() if hub else _reference(float(w), f"{where}: {n}") for w, n in zip(weight, names, strict=True)
    ]
    default = {"volume": [b.volume_l for b in bodies], "flow": [b.flow_l_h for b in bodies], "kp": [1.0]}
    filled = {}
    for prefix, suffix in (("volume", "_l"), ("flow", "_l_h"), ("kp", "")):
        given = np.column_stack([covariates[f"{prefix}_{o}{suffix}"] for o in ORGANS])
        filled[prefix] = np.where(np.isnan(given), np.asarray(default[prefix]), given)
    if not hub:
        for i, name in enumerate(names):
            try:
                check_flow_balance(filled["flow"][i])
            except InputError as error:
                raise InputError(
                    "flow_<organ>_l_h", f"cannot be: {error}", hint="give every flow, or none", where=f"{where}: {name}"
                ) from None
    return {
        "body_weight_kg": weight,
        "volume_l": filled["volume"],
        "flow_l_h": filled["flow"],
        "kp": filled["kp"],
        "elimination_l_h": np.column_stack([covariates[name] for name in topology.elimination_names]),
        "fup": np.where(np.isnan(covariates["fup"]), 1.0, covariates["fup"]),
        "bp_ratio": np.where(np.isnan(covariates["bp_ratio"]), 1.0, covariates["bp_ratio"]),
    }


def _reference(body_weight_kg: float, where: str) -> Physiology:
    """``human_reference``; its error names the subject."""
    try:
        return human_reference(body_weight_kg)
    except InputError:
        raise InputError("body_weight_kg", value=body_weight_kg, unit="kg", allowed="(0, 300]", where=where) from None


def _quantification_limit(seen: _Observations, curve: np.ndarray, default_mg_l: np.ndarray) -> np.ndarray:
    """``(C,)`` mg/L: the lowest LLOQ stated for a curve; without one, 1e-5 x dose / blood volume, lowered to the
    curve's smallest positive value: a measured value is never struck out by a limit that nobody stated.
    """
    n = len(default_mg_l)
    stated, smallest = np.full(n, np.inf), np.full(n, np.inf)
    np.minimum.at(stated, curve, np.where(np.isnan(seen.lloq_mg_l), np.inf, seen.lloq_mg_l))
    np.minimum.at(smallest, curve, np.where(seen.conc_mg_l > 0, seen.conc_mg_l, np.inf))
    return np.where(np.isfinite(stated), stated, np.minimum(default_mg_l, smallest))


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
    covariates = _covariates(frame, subject, len(names), topology, where)
    doses = _read_doses(frame.filter(pl.Series(is_dose)), subject[is_dose], covariates, where)
    seen = _read_observations(frame.filter(pl.Series(is_seen)), subject[is_seen], covariates, where)
    for rows, event in ((doses.subject, "dose"), (seen.subject, "observation")):
        absent = np.bincount(rows, minlength=len(names)) == 0
        if absent.any():
            raise InputError("event", f"has no {event} for this drug and subject",
                             where=f"{where}: {names[int(np.argmax(absent))]}")  # fmt: skip
    bodies = _bodies(covariates, names, topology, where)
    return _assemble(topology, keys["drug"].to_numpy().astype(str), names, bodies, doses, seen).validate(where)


def _assemble(
    topology: Topology, drug: np.ndarray, names: list[str], bodies: dict[str, np.ndarray], doses: _Doses,
    seen: _Observations,
) -> CurveTable:  # fmt: skip
    """One row per curve from everything by subject."""
    curve, of_subject, matrix = _curves(seen, len(names))
    n = len(of_subject)
    grid, place = _time_grid(curve, seen.time_h, n)
    conc = np.full((n, len(ORGANS), grid.shape[1]), np.nan)
    censored = np.zeros(conc.shape, dtype=bool)
    conc[curve, seen.organ, place] = seen.conc_mg_l
    censored[curve, seen.organ, place] = seen.censored
    columns = {name: values[of_subject] for name, values in bodies.items()}
    dosing = _dose_arrays(doses, of_subject)
    default = LOQ_FRACTION * dosing["dose_mg"].sum(1) / columns["volume_l"][:, ORGAN_INDEX["blood"]]
    matrix_name = np.asarray(MATRICES)[matrix]
    return CurveTable(
        topology=topology,
        curve_id=np.asarray([f"{names[s]}/{m}" for s, m in zip(of_subject, matrix_name, strict=True)], dtype=str),
        compound_id=drug[of_subject],
        group_id=parameter_group(columns["kp"], columns["elimination_l_h"], columns["fup"], columns["bp_ratio"]),
        time_h=grid,
        conc_mg_l=conc,
        censored=censored,
        loq_mg_l=_quantification_limit(seen, curve, default),
        matrix=matrix_name,
        **columns,
        **dosing,
    )


__all__ = ["read_tidy", "write_tidy"]

"""Solving a study with the mechanistic model: curves, exposure, parameters, mass balance, prediction intervals.

Axis legend: C curves (people), O reported organs, T times.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from perfuse.data.study import Study
from perfuse.data.table import dose_events, system_parameters
from perfuse.errors import InputError
from perfuse.files import write_atomic
from perfuse.pk.custom_topology import add_organ
from perfuse.pk.exposure import Exposure, exposure
from perfuse.pk.matrix import PLASMA_MATRICES
from perfuse.pk.mechanistic import organ_concentrations, solve
from perfuse.pk.steady_state import steady_state
from perfuse.pk.system import DoseEvents, SystemParameters

_AT_ONCE = 256
EXPOSURE_COLUMNS = (
    "cmax_mg_l",
    "tmax_h",
    "auc_last_mg_h_l",
    "auc_inf_mg_h_l",
    "half_life_h",
    "cl_l_h",
    "vss_l",
    "mrt_h",
)


@dataclass(frozen=True)
class SolvedStudy:
    """What came out.

    Attributes:
        study: What was asked.
        system, doses: What was solved.
        time_h: ``(T,)``.
        organs: ``(O,)`` names, those asked for.
        conc_mg_l: ``(C, O, T)``, mg/L, the blood row in the study's matrix.
        exposure: NCA of each curve and organ, ``(C, O)``; None at steady state.
        mass_error: Largest relative difference between drug given and drug found anywhere; None at steady state.
    """

    study: Study
    system: SystemParameters
    doses: DoseEvents
    time_h: np.ndarray
    organs: tuple[str, ...]
    conc_mg_l: np.ndarray
    exposure: Exposure | None
    mass_error: float | None

    def percentiles(self) -> np.ndarray:
        """Percentiles over people, ``(P, O, T)``: a prediction interval of the population."""
        return np.percentile(self.conc_mg_l, self.study.percentiles, axis=0)


def _with_extra_organs(study: Study) -> SystemParameters:
    system = system_parameters(study.table)
    for organ in study.extra_organs:
        system = add_organ(system, organ)
    return system


def _part(record: object, rows: slice) -> dict[str, torch.Tensor]:
    return {k: v[rows] for k, v in vars(record).items() if isinstance(v, torch.Tensor)}


def solve_study(study: Study) -> SolvedStudy:
    """Solve every person of a study.

    Raises:
        InputError: see ``mechanistic.solve`` and ``steady_state.steady_state``.
    """
    system, doses = _with_extra_organs(study), dose_events(study.table)
    time = torch.as_tensor(np.ascontiguousarray(study.table.time_h))
    plasma = np.isin(study.table.matrix, PLASMA_MATRICES)
    factor = torch.where(torch.as_tensor(plasma), 1 / system.bp_ratio, 1.0)
    pieces, worst = [], 0.0
    for start in range(0, len(system), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        one = SystemParameters(system.topology, **_part(system, rows))
        dose = DoseEvents(**_part(doses, rows))
        if study.steady_state_tau_h is not None:
            amounts = steady_state(one, dose, study.steady_state_tau_h, time[rows])
        else:
            amounts = solve(one, dose, time[rows], with_sinks=True)
            worst = max(worst, _mass_error(dose, amounts, time[rows]))
        pieces.append(organ_concentrations(one, amounts, factor[rows]).numpy())
    conc = np.concatenate(pieces)[:, [system.topology.organs.index(organ) for organ in study.organs]]
    steady = study.steady_state_tau_h is not None
    return SolvedStudy(
        study, system, doses, study.table.time_h[0], study.organs, conc,
        None if steady else _exposure(study, conc, doses), None if steady else worst,
    )  # fmt: skip


def _mass_error(doses: DoseEvents, amounts: torch.Tensor, time_h: torch.Tensor) -> float:
    since = time_h[:, None] - doses.time_h[..., None]
    running = (since / torch.where(doses.duration_h > 0, doses.duration_h, 1.0)[..., None]).clamp(0, 1)
    first = torch.where(doses.amount_mg > 0, doses.time_h, torch.inf).amin(1)
    at_once = (since > 0) | ((since == 0) & (doses.time_h == first[:, None])[..., None])
    share = torch.where((doses.duration_h > 0)[..., None], running, at_once.double())
    given = (doses.amount_mg[..., None] * share).sum(1)
    return float(((amounts.sum(1) - given).abs() / given.clamp_min(1e-300))[given > 0].max())


def _exposure(study: Study, conc: np.ndarray, doses: DoseEvents) -> Exposure:
    """NCA of every curve and organ; clearance and volumes need one intravenous dose, and are absent otherwise."""
    single = (doses.amount_mg > 0).sum(1) == 1
    intravenous = (single & ~doses.is_oral.any(1)).numpy()
    dose = np.where(intravenous, doses.amount_mg.sum(1).numpy(), np.nan)[:, None]
    dose = np.where(np.asarray([organ == "blood" for organ in study.organs]), dose, np.nan)
    duration = np.broadcast_to(doses.duration_h.amax(1).numpy()[:, None], dose.shape)
    return exposure(study.table.time_h[0], conc, dose_mg=dose, duration_h=duration, min_adjusted_r2=0.9)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def _number(value: float) -> str:
    return "" if not np.isfinite(value) else f"{value:.10g}"


def write_solved(solved: SolvedStudy, out: Path, sbml: bool = False) -> list[Path]:
    """Write ``curves.csv``, ``exposure.csv``, ``parameters.csv``; for a population ``intervals.csv``; on demand SBML.

    Args:
        solved: What to write.
        out: New or empty folder.
        sbml: Also write ``model.sbml`` of the first person (needs the extra ``export``).

    Raises:
        InputError: if ``out`` is in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            "--out", "exists already and is not an empty folder", value=str(out), hint="choose another name"
        )
    files = {"curves.csv": _curves(solved), "parameters.csv": _parameters(solved)}
    if solved.exposure is not None:
        files["exposure.csv"] = _exposure_rows(solved)
    if solved.study.is_population:
        files["intervals.csv"] = _intervals(solved)
    model = None
    if sbml:
        from perfuse.pk.sbml import sbml_text

        model = sbml_text(solved.system, solved.doses, 0, name=solved.study.drug.name).encode()
        files["model.sbml"] = model
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(out / name, content)
    return [out / name for name in files]


def _blood_name(solved: SolvedStudy, organ: str) -> str:
    return str(solved.study.table.matrix[0]) if organ == "blood" else organ


def _curves(solved: SolvedStudy) -> bytes:
    ids = solved.study.table.curve_id
    return _csv(
        ("curve_id", "organ", "time_h", "conc_mg_l"),
        (
            (ids[c], _blood_name(solved, organ), _number(t), _number(solved.conc_mg_l[c, o, k]))
            for c in range(len(ids)) for o, organ in enumerate(solved.organs) for k, t in enumerate(solved.time_h)
        ),
    )  # fmt: skip


def _exposure_rows(solved: SolvedStudy) -> bytes:
    ids, found = solved.study.table.curve_id, solved.exposure
    return _csv(
        ("curve_id", "organ", *EXPOSURE_COLUMNS),
        (
            (ids[c], _blood_name(solved, organ), *(_number(float(getattr(found, name)[c, o])) for name in
            EXPOSURE_COLUMNS)) for c in range(len(ids)) for o, organ in enumerate(solved.organs)
        ),
    )  # fmt: skip


def _intervals(solved: SolvedStudy) -> bytes:
    values = solved.percentiles()
    return _csv(
        ("organ", "time_h", *(f"p{p:g}_mg_l" for p in solved.study.percentiles)),
        (
            (_blood_name(solved, organ), _number(t), *(_number(v) for v in values[:, o, k]))
            for o, organ in enumerate(solved.organs) for k, t in enumerate(solved.time_h)
        ),
    )  # fmt: skip


def _parameters(solved: SolvedStudy) -> bytes:
    """Every number that the solver was given, long: curve, parameter, place, value, unit."""
    system, t = solved.system, solved.system.topology
    edges = [f"{t.nodes[s]} -> {t.nodes[d]}" for s, d in t.edges]
    columns = (
        ("volume_l", t.nodes, system.volume_l, "L"), ("kp", t.nodes, system.kp, "1"),
        ("flow_l_h", edges, system.flow_l_h, "L/h"), ("elimination_l_h", t.elimination_names, system.elimination_l_h,
        "L/h"), ("ps_l_h", [x.name for x in t.exchanges], system.ps_l_h, "L/h"),
        ("vmax_mg_h", [str(p) for p in range(system.vmax_mg_h.shape[1])], system.vmax_mg_h, "mg/h"),
        ("km_u_mg_l", [str(p) for p in range(system.km_u_mg_l.shape[1])], system.km_u_mg_l, "mg/L"),
        ("fup", [""], system.fup[:, None], "1"), ("bp_ratio", [""], system.bp_ratio[:, None], "1"),
        ("body_weight_kg", [""], torch.as_tensor(solved.study.table.body_weight_kg)[:, None], "kg"),
    )  # fmt: skip
    return _csv(
        ("curve_id", "parameter", "place", "value", "unit"),
        (
            (curve, name, place, _number(float(values[c, i])), unit)
            for c, curve in enumerate(solved.study.table.curve_id)
            for name, places, values, unit in columns for i, place in enumerate(places)
        ),
    )  # fmt: skip


def summary_lines(solved: SolvedStudy) -> list[str]:
    """What to tell on the console."""
    people = f"{len(solved.conc_mg_l)} people" if solved.study.is_population else "1 person"
    t = solved.system.topology
    lines = [
        f"{solved.study.drug.name}: {people}, topology {t.name}, {len(solved.time_h)} times to "
        f"{solved.time_h[-1]:g} h, Kp by {solved.study.kp_method}"
    ]
    if solved.mass_error is not None:
        lines.append(f"mass balance: drug found anywhere equals drug given within {solved.mass_error:.1e} (relative)")
    if solved.exposure is not None and "blood" in solved.organs:
        o = solved.organs.index("blood")
        parts = []
        for name, unit in (("cmax_mg_l", "mg/L"), ("tmax_h", "h"), ("auc_inf_mg_h_l", "mg h/L"), ("half_life_h", "h"),
                           ("cl_l_h", "L/h"), ("vss_l", "L")):  # fmt: skip
            values = getattr(solved.exposure, name)[:, o]
            known = values[np.isfinite(values)]
            parts.append(
                f"{name.split('_')[0]} {np.median(known):.3g} {unit}" if len(known) else f"{name} not available"
            )
        which = f"{_blood_name(solved, 'blood')}{', median of people' if solved.study.is_population else ''}"
        lines.append(f"{which}: " + ", ".join(parts))
    return lines

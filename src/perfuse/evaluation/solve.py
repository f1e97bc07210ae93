"""Solving a study with the mechanistic model: curves, exposure, mass balance, prediction intervals, sensitivities.

Axis legend: C curves (people), O reported organs, T times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from perfuse.data.study import Study
from perfuse.data.study_sensitivity import SensitivityRequest
from perfuse.evaluation.solve_files import check_out, write_solved
from perfuse.pk.exposure import Exposure, exposure
from perfuse.pk.interval_exposure import IntervalExposure, steady_state_exposure
from perfuse.pk.matrix import PLASMA_MATRICES
from perfuse.pk.mechanistic import organ_concentrations, solve
from perfuse.pk.sensitivity import elasticities, global_sensitivity
from perfuse.pk.steady_state import steady_state
from perfuse.pk.system import DoseEvents, SystemParameters

_AT_ONCE = 256
_NCA_AT_ONCE = 256
_Found = TypeVar("_Found", Exposure, IntervalExposure)


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
        interval: NCA of one dosing interval at steady state, ``(C, O, 1)``; None otherwise.
        mass_error: Largest relative difference between drug given and drug found anywhere; None at steady state.
        sensitivity: By parameter, what the study's ``[sensitivity]`` asked for; None when it asked for nothing.
    """

    study: Study
    system: SystemParameters
    doses: DoseEvents
    time_h: np.ndarray
    organs: tuple[str, ...]
    conc_mg_l: np.ndarray
    exposure: Exposure | None
    interval: IntervalExposure | None
    mass_error: float | None
    sensitivity: dict[str, dict[str, float]] | None = None

    def percentiles(self) -> np.ndarray:
        """Percentiles over people, ``(P, O, T)``: a prediction interval of the population."""
        return np.percentile(self.conc_mg_l, self.study.percentiles, axis=0)


def _rows(system: SystemParameters, rows: slice) -> SystemParameters:
    cut: dict[str, Any] = {k: v[rows] for k, v in vars(system).items() if isinstance(v, torch.Tensor)}
    return replace(system, **cut)


def solve_study(study: Study) -> SolvedStudy:
    """Solve every person of a study.

    Raises:
        InputError: see ``mechanistic.solve`` and ``steady_state.steady_state``.
    """
    system, doses, tau = study.system, study.doses, study.steady_state_tau_h
    time = torch.as_tensor(study.time_h).expand(len(system), -1)
    plasma = study.matrix in PLASMA_MATRICES
    factor = 1 / system.bp_ratio if plasma else torch.ones_like(system.bp_ratio)
    conc, worst = _organ_curves(study, time, factor)
    found, interval = _exposure(study, factor)
    sensitivity = None if study.sensitivity is None else _sensitivity(study, study.sensitivity)
    return SolvedStudy(
        study, system, doses, study.time_h, study.organs, conc, found, interval, worst if tau is None else None,
        sensitivity,
    )  # fmt: skip


def _organ_curves(study: Study, time_h: torch.Tensor, factor: torch.Tensor) -> tuple[np.ndarray, float]:
    """Concentrations of the study's organs, ``(C, O, T)``, and the largest mass error (0 at steady state)."""
    pieces, worst = [], 0.0
    for start in range(0, len(study.system), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        one, dose = _rows(study.system, rows), study.doses.of(rows)
        if study.steady_state_tau_h is not None:
            amounts = steady_state(one, dose, study.steady_state_tau_h, time_h[rows])
        else:
            amounts = solve(one, dose, time_h[rows], with_sinks=True)
            worst = max(worst, _mass_error(dose, amounts, time_h[rows]))
        pieces.append(organ_concentrations(one, amounts, factor[rows]).numpy())
    wanted = [study.system.topology.organs.index(organ) for organ in study.organs]
    return np.concatenate(pieces)[:, wanted], worst


def _mass_error(doses: DoseEvents, amounts: torch.Tensor, time_h: torch.Tensor) -> float:
    since = time_h[:, None] - doses.time_h[..., None]
    running = (since / torch.where(doses.duration_h > 0, doses.duration_h, 1.0)[..., None]).clamp(0, 1)
    first = torch.where(doses.amount_mg > 0, doses.time_h, torch.inf).amin(1)
    at_once = (since > 0) | ((since == 0) & (doses.time_h == first[:, None])[..., None])
    share = torch.where((doses.duration_h > 0)[..., None], running, at_once.double())
    given = (doses.amount_mg[..., None] * share).sum(1)
    error = ((amounts.sum(1) - given).abs() / given.clamp_min(1e-300))[given > 0]
    return float(error.max()) if len(error) else 0.0


_DENSE_POINTS = 240
_FIRST_POINT_H = 1e-4
_OF_ONE_DOSE = ("auc_inf_mg_h_l", "half_life_h", "cl_l_h", "vss_l", "cl_f_l_h", "vz_f_l", "mrt_h")


def _dense_times(study: Study) -> tuple[float, np.ndarray]:
    """First dose, h, and times since it for the NCA: those wanted, and dense after it, where the output's own grid
    would miss the start. At steady state: of one interval.
    """
    doses = study.doses
    given = doses.amount_mg[0] > 0
    starts = doses.time_h[0][given]
    tau = study.steady_state_tau_h
    begin = 0.0 if tau is not None else float(starts.min())
    horizon = float(study.time_h[-1]) - begin if tau is None else tau
    if horizon <= 0:
        return begin, np.zeros(1)
    after = np.geomspace(min(_FIRST_POINT_H, horizon / 2), horizon, _DENSE_POINTS)
    events = torch.cat((starts, starts + doses.duration_h[0][given])).numpy() - begin
    since = np.unique(np.concatenate(([0.0], after, events, study.time_h - begin)))
    return begin, since[(since >= 0) & (since <= horizon)]


def _exposure(study: Study, factor: torch.Tensor) -> tuple[Exposure | None, IntervalExposure | None]:
    """NCA of every curve and organ, of one dose or of an interval at steady state, a few people at a time: the dense
    curves are many times the output. With several doses, areas and slopes of the whole curve mean no single dose's, and
    are not available: ``perfuse nca`` takes them dose by dose.
    """
    begin, since = _dense_times(study)
    single, intervals = [], []
    for start in range(0, len(study.curve_id), _NCA_AT_ONCE):
        rows = slice(start, start + _NCA_AT_ONCE)
        part = replace(study, system=_rows(study.system, rows), doses=study.doses.of(rows))
        conc, _ = _organ_curves(part, torch.as_tensor(begin + since).expand(len(part.system), -1), factor[rows])
        options = _nca_options(part, conc.shape[:2])
        if study.steady_state_tau_h is not None:
            intervals.append(steady_state_exposure(since, conc, study.steady_state_tau_h, **options))
        else:
            mat = (part.doses.lag_h + 1 / part.doses.ka_1_h).numpy()[:, None]
            single.append(exposure(since, conc, mat_h=np.broadcast_to(mat, conc.shape[:2]), **options))
    if intervals:
        return None, _joined(intervals)
    found = _joined(single)
    if bool(((study.doses.amount_mg > 0).sum(1) == 1).all()):
        return found, None
    unknown: dict[str, Any] = {name: np.full(found.cmax_mg_l.shape, np.nan) for name in _OF_ONE_DOSE}
    return replace(found, **unknown), None


def _nca_options(study: Study, shape: tuple[int, ...]) -> dict[str, Any]:
    """Clearance and volumes need one dose, and are of blood alone."""
    doses = study.doses
    single = ((doses.amount_mg > 0).sum(1) == 1).numpy()[:, None]
    of_blood = np.asarray([organ == study.blood for organ in study.organs])
    return {
        "dose_mg": np.where(single & of_blood, doses.amount_mg.sum(1).numpy()[:, None], np.nan),
        "duration_h": np.broadcast_to(doses.duration_h.amax(1).numpy()[:, None], shape),
        "extravascular": np.broadcast_to(doses.is_oral.any(1).numpy()[:, None], shape),
    }


def _joined(parts: list[_Found]) -> _Found:
    """The same record of all people."""
    whole: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0]) if name != "causes"
    }
    causes = {name: np.concatenate([part.causes[name] for part in parts]) for name in parts[0].causes}
    return replace(parts[0], **whole, causes=causes)


def _sensitivity(study: Study, request: SensitivityRequest) -> dict[str, dict[str, float]]:
    if request.method == "local":
        found = elasticities(study.system, study.doses, request.output)
        return {name: {"elasticity": float(value)} for name, value in zip(found.names, found.value[0], strict=True)}
    return global_sensitivity(
        study.system, study.doses, request.output, request.ranges or {}, request.method, request.n, request.seed
    )


def summary_lines(solved: SolvedStudy) -> list[str]:
    """What to tell on the console."""
    study, t = solved.study, solved.system.topology
    people = f"{len(solved.conc_mg_l)} people" if study.is_population else "1 person"
    method = f", Kp by {study.kp_method}" if study.kp_method else ""
    lines = [f"{study.drug.name}: {people}, topology {t.name}, {len(solved.time_h)} times to "
             f"{solved.time_h[-1]:g} h{method}"]  # fmt: skip
    if solved.mass_error is not None:
        lines.append(f"mass balance: drug found anywhere equals drug given within {solved.mass_error:.1e} (relative)")
    if study.blood in solved.organs:
        lines.append(_exposure_line(solved, solved.organs.index(study.blood)))
    if solved.sensitivity is not None and study.sensitivity is not None:
        column = {"local": "elasticity", "morris": "mu_star", "sobol": "st"}[study.sensitivity.method]
        ranked = sorted(solved.sensitivity.items(), key=lambda item: -abs(item[1][column]))[:5]
        what = f"{study.sensitivity.name}, {column.replace('st', 'total index') if column == 'st' else column}"
        lines.append(f"sensitivity of {what}: " + ", ".join(f"{name} {of[column]:.3g}" for name, of in ranked))
    return lines


_LABELS = {
    "cmax_mg_l": "Cmax", "tmax_h": "Tmax", "auc_last_mg_h_l": "AUC_last", "auc_inf_mg_h_l": "AUC_inf",
    "half_life_h": "half-life", "cl_l_h": "CL", "vss_l": "Vss", "cl_f_l_h": "CL/F", "vz_f_l": "Vz/F",
    "cmin_mg_l": "Cmin", "cavg_mg_l": "Cavg", "auc_tau_mg_h_l": "AUC_tau",
}  # fmt: skip
_UNITS = {"cmax_mg_l": "mg/L", "cmin_mg_l": "mg/L", "cavg_mg_l": "mg/L", "tmax_h": "h", "half_life_h": "h",
          "cl_l_h": "L/h", "cl_f_l_h": "L/h", "vss_l": "L", "vz_f_l": "L"}  # fmt: skip


def _exposure_line(solved: SolvedStudy, organ: int) -> str:
    if solved.interval is not None:
        found: object = solved.interval
        names = ["cmax_mg_l", "cmin_mg_l", "cavg_mg_l", "auc_tau_mg_h_l"]
    else:
        found = solved.exposure
        names = ["cmax_mg_l", "tmax_h", "auc_last_mg_h_l", "auc_inf_mg_h_l", "half_life_h"]
        names += ["cl_f_l_h", "vz_f_l"] if bool(solved.doses.is_oral.any()) else ["cl_l_h", "vss_l"]
    parts = []
    for name in names:
        values = np.asarray(getattr(found, name))[:, organ]
        known = values[np.isfinite(values)]
        value = f"{np.median(known):.3g} {_UNITS.get(name, 'mg h/L')}" if len(known) else "not available"
        parts.append(f"{_LABELS[name]} {value}")
    which = f"{solved.study.matrix}{', median of people' if solved.study.is_population else ''}"
    return f"{which}{' at steady state' if solved.interval is not None else ''}: " + ", ".join(parts)


__all__ = ["SolvedStudy", "check_out", "solve_study", "summary_lines", "write_solved"]

"""The files of a solved study: long CSV tables, and on demand SBML; a folder that is there whole or not at all.

Axis legend: C curves (people), O reported organs, T times.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from perfuse.data.study import Study
from perfuse.errors import InputError, PerfuseError
from perfuse.pk.exposure import Exposure
from perfuse.pk.interval_exposure import IntervalExposure

if TYPE_CHECKING:
    from perfuse.evaluation.solve import SolvedStudy

EXPOSURE_COLUMNS = (
    "cmax_mg_l", "tmax_h", "auc_last_mg_h_l", "auc_inf_mg_h_l", "half_life_h", "mrt_h", "cl_l_h", "vss_l", "cl_f_l_h",
    "vz_f_l",
)  # fmt: skip
INTERVAL_COLUMNS = (
    "cmax_mg_l", "tmax_h", "cmin_mg_l", "ctrough_mg_l", "cavg_mg_l", "auc_tau_mg_h_l", "fluctuation", "cl_ss_l_h",
    "cl_f_ss_l_h",
)  # fmt: skip


def check_out(out: Path) -> None:
    """Refuse an output folder that is in use.

    Raises:
        InputError: when it is there and not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            "--out", "exists already and is not an empty folder", value=str(out), hint="choose another name"
        )


def write_solved(solved: SolvedStudy, out: Path, sbml: bool = False) -> list[Path]:
    """Write ``curves.csv``, ``parameters.csv``, ``exposure.csv``, and where they exist ``intervals.csv`` (percentiles
    of a population), ``sensitivity.csv`` and ``model.sbml``.

    Args:
        solved: What to write.
        out: New or empty folder.
        sbml: Also write ``model.sbml`` of the first person (needs the extra ``export``).

    Raises:
        InputError: if ``out`` is in use.
        PerfuseError: when the disk refuses; nothing is left behind then.
    """
    check_out(out)
    if sbml and solved.study.steady_state_tau_h is not None:
        raise InputError("--sbml", "does not go with steady_state_tau_h", hint="give the doses with n_doses")
    found = {"curves.csv": _curves(solved), "parameters.csv": _parameters(solved.study),
             "exposure.csv": _exposure(solved)}  # fmt: skip
    if solved.study.is_population:
        found["intervals.csv"] = _intervals(solved)
    if solved.sensitivity is not None:
        rows = [{"parameter": name, **values} for name, values in solved.sensitivity.items()]
        found["sensitivity.csv"] = pl.DataFrame(rows)
    text = None
    if sbml:
        from perfuse.pk.sbml import sbml_text

        text = sbml_text(solved.system, solved.doses, 0, name=solved.study.drug.name)
    _write_folder(out, found, text)
    return [out / name for name in (*found, *(["model.sbml"] if text else []))]


def _write_folder(out: Path, found: dict[str, pl.DataFrame], sbml: str | None) -> None:
    """All files beside one another in a temporary folder first; an empty folder that is there already stays."""
    part: Path | None = None
    exists = out.exists()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=out if exists else out.parent, prefix=f".{out.name}."))
        for name, frame in found.items():
            frame.with_columns(pl.col(pl.Float64).fill_nan(None)).write_csv(part / name)
        if sbml is not None:
            (part / "model.sbml").write_text(sbml, encoding="utf-8")
        if exists:
            for path in sorted(part.iterdir()):
                path.replace(out / path.name)
        else:
            mask = os.umask(0)
            os.umask(mask)
            part.chmod(0o777 & ~mask)
            part.replace(out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PerfuseError(f"{out} cannot be written ({reason}); nothing was kept; choose another place") from error
    finally:
        if part is not None and part.exists():
            shutil.rmtree(part, ignore_errors=True)


def _names(solved: SolvedStudy) -> list[str]:
    """Organs as files name them: blood by its matrix."""
    return [solved.study.matrix if organ == solved.study.blood else organ for organ in solved.organs]


def _long(names: Sequence[str], repeats: int, tiles: int) -> pl.Series:
    """Each name ``repeats`` times in a row, and all of that ``tiles`` times."""
    return pl.Series(list(names), dtype=pl.String).gather(np.tile(np.repeat(np.arange(len(names)), repeats), tiles))


def _curves(solved: SolvedStudy) -> pl.DataFrame:
    c, o, t = solved.conc_mg_l.shape
    return pl.DataFrame({
        "curve_id": _long(solved.study.curve_id, o * t, 1),
        "organ": _long(_names(solved), t, c),
        "time_h": np.tile(solved.time_h, c * o),
        "conc_mg_l": solved.conc_mg_l.reshape(-1),
    })  # fmt: skip


def _exposure(solved: SolvedStudy) -> pl.DataFrame:
    """NCA; what is not available is empty, and ``not_available`` says why."""
    c, o, _ = solved.conc_mg_l.shape
    found: Exposure | IntervalExposure | None = solved.interval or solved.exposure
    assert found is not None
    columns = INTERVAL_COLUMNS if isinstance(found, IntervalExposure) else EXPOSURE_COLUMNS
    values = {name: np.asarray(getattr(found, name)).reshape(-1) for name in columns}
    why = {name: np.asarray(found.why(name)).reshape(-1) for name in columns}
    reasons = []
    for row in range(c * o):
        by_reason: dict[str, list[str]] = {}
        for name in columns:
            if np.isnan(values[name][row]):
                by_reason.setdefault(str(why[name][row]) or "several doses", []).append(name)
        reasons.append("; ".join(f"{' '.join(names)}: {reason}" for reason, names in by_reason.items()))
    ids = {"curve_id": _long(solved.study.curve_id, o, 1), "organ": _long(_names(solved), 1, c)}
    return pl.DataFrame({**ids, **values, "not_available": reasons})


def _intervals(solved: SolvedStudy) -> pl.DataFrame:
    values = solved.percentiles()
    _, o, t = values.shape
    frame = {"organ": _long(_names(solved), t, 1), "time_h": np.tile(solved.time_h, o)}
    columns = {f"p{p:g}_mg_l": values[i].reshape(-1) for i, p in enumerate(solved.study.percentiles)}
    return pl.DataFrame({**frame, **columns})


def _parameters(study: Study) -> pl.DataFrame:
    """Every number that the solver was given and what they were made of, with unit and source; long."""
    system, t, doses = study.system, study.system.topology, study.doses
    edges = [f"{t.nodes[s]} -> {t.nodes[d]}" for s, d in t.edges]
    pathways = [str(p) for p in range(system.vmax_mg_h.shape[1])]
    blocks: list[tuple[str, Sequence[str], np.ndarray, str]] = [
        ("volume_l", t.nodes, system.volume_l.numpy(), "L"), ("kp", t.nodes, system.kp.numpy(), "1"),
        ("flow_l_h", edges, system.flow_l_h.numpy(), "L/h"),
        ("elimination_l_h", t.elimination_names, system.elimination_l_h.numpy(), "L/h"),
        ("ps_l_h", [x.name for x in t.exchanges], system.ps_l_h.numpy(), "L/h"),
        ("vmax_mg_h", pathways, system.vmax_mg_h.numpy(), "mg/h"),
        ("km_u_mg_l", pathways, system.km_u_mg_l.numpy(), "mg/L"),
        ("fup", [""], system.fup.numpy()[:, None], "1"), ("bp_ratio", [""], system.bp_ratio.numpy()[:, None], "1"),
    ]  # fmt: skip
    if bool(doses.is_oral.any()):
        for name, unit in (("ka_1_h", "1/h"), ("lag_h", "h"), ("f_abs", "1")):
            blocks.append((name, [""], getattr(doses, name).numpy()[:, None], unit))
    if not np.isnan(study.body_weight_kg).all():
        blocks.append(("body_weight_kg", [""], study.body_weight_kg[:, None], "kg"))
    sources = dict(study.sources)
    for name, (values, unit, source) in study.derived.items():
        blocks.append((name, [""], values[:, None], unit))
        sources[name, ""] = source
    parameter = [name for name, places, _, _ in blocks for _ in places]
    place = [p for _, places, _, _ in blocks for p in places]
    units = [u for _, places, _, u in blocks for _ in places]
    c = len(study.curve_id)
    return pl.DataFrame({
        "curve_id": _long(study.curve_id, len(parameter), 1),
        "parameter": _long(parameter, 1, c), "place": _long(place, 1, c),
        "value": np.concatenate([values for _, _, values, _ in blocks], axis=1).reshape(-1),
        "unit": _long(units, 1, c),
        "source": _long([sources.get(key, "") for key in zip(parameter, place, strict=True)], 1, c),
    })  # fmt: skip


__all__ = ["EXPOSURE_COLUMNS", "INTERVAL_COLUMNS", "check_out", "write_solved"]

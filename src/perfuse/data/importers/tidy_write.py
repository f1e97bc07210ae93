"""Writing a ``CurveTable`` as the tidy long table that ``importers.tidy`` reads.

Axis legend: C curves, O reported organs, D dose events, T times.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import polars.selectors as cs

from perfuse.data.importers.tidy_columns import MAX_PATHWAYS
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.files import replacing
from perfuse.pk.matrix import check_blood_matrix
from perfuse.pk.physiology import ORGANS
from perfuse.pk.system import ORAL


def covariate_frame(table: CurveTable) -> pl.DataFrame:
    """One row of covariates per curve, empty where not given; columns that say nothing are left out."""
    columns: dict[str, np.ndarray] = {
        "topology": np.full(len(table), table.topology.name),
        "body_weight_kg": table.body_weight_kg,
        "fup": table.fup,
        "bp_ratio": table.bp_ratio,
        "loq_mg_l": table.loq_mg_l,
    }
    columns |= {name: table.elimination_l_h[:, m] for m, name in enumerate(table.topology.elimination_names)}
    columns |= {f"ps_{exchange.name}_l_h": table.ps_l_h[:, x] for x, exchange in enumerate(table.topology.exchanges)}
    columns |= {f"kp_{organ}": table.kp[:, o] for o, organ in enumerate(ORGANS) if o}
    columns |= {f"volume_{organ}_l": table.volume_l[:, o] for o, organ in enumerate(ORGANS)}
    flows = {f"flow_{organ}_l_h": table.flow_l_h[:, o] for o, organ in enumerate(ORGANS)}
    columns |= {name: flow for name, flow in flows.items() if (flow > 0).all()}  # hub uses no blood flow
    optional = {"ka_1_h": np.nan, "lag_h": 0.0, "f_abs": 1.0, "mw_g_mol": np.nan, "logp": np.nan,
                "clint_ul_min_million_cells": np.nan}  # fmt: skip
    columns |= {
        name: table.column(name) for name, neutral in optional.items() if _says_more(table.column(name), neutral)
    }
    for name in ("pka_acid", "pka_base"):
        if not np.isnan(table.column(name)).all():
            columns |= {f"{name}_{i + 1}": values for i, values in enumerate(table.column(name).T)}
    vmax, km = table.vmax_mg_h, table.km_u_mg_l
    if vmax.shape[1] > 1 or (vmax > 0).any() or (km != 1).any():
        for p in range(vmax.shape[1]):
            columns |= {f"vmax_mg_h_{p + 1}": vmax[:, p], f"km_u_mg_l_{p + 1}": km[:, p]}
    return pl.DataFrame(columns).with_columns(cs.float().fill_nan(None))


def _says_more(values: np.ndarray, neutral: float) -> bool:
    """Whether a column holds anything but what stands for "left out"."""
    return not np.array_equal(values, np.full_like(values, neutral), equal_nan=True)


def _keys(table: CurveTable, curve: np.ndarray, event: str, time_h: np.ndarray) -> dict[str, np.ndarray]:
    n = len(curve)
    return {
        "drug": table.compound_id[curve], "subject": table.curve_id[curve], "event": np.full(n, event),
        "time": time_h, "time_unit": np.full(n, "h"),
    }  # fmt: skip


def _dose_rows(table: CurveTable) -> pl.DataFrame:
    """Dose events; every curve's covariates stand on its first dose."""
    curve, d = np.nonzero(table.dose_mg > 0)
    duration = table.dose_duration_h[curve, d]
    infused, oral = duration > 0, table.dose_route[curve, d] == ORAL
    frame = pl.DataFrame(
        _keys(table, curve, "dose", table.dose_time_h[curve, d])
        | {
            "dose": table.dose_mg[curve, d],
            "dose_unit": np.full(len(curve), "mg"),
            "duration": duration,
            "duration_unit": np.full(len(curve), "h"),
            "route": np.where(oral, "oral", np.where(infused, "iv_infusion", "iv_bolus")),
        }
    )
    first = np.flatnonzero(np.diff(curve, prepend=-1))
    covariates = covariate_frame(table).with_columns(_at=pl.Series(first, dtype=pl.UInt32))
    return frame.with_row_index("_at").join(covariates, on="_at", how="left", maintain_order="left").drop("_at")


def _observation_rows(table: CurveTable) -> pl.DataFrame:
    """Observed values; an LLOQ stands beside each value that is below it (the curve's limit is its ``loq_mg_l``)."""
    observed = ~np.isnan(table.conc_mg_l)
    curve, organ, t = np.nonzero(observed)
    conc, censored = table.conc_mg_l[observed], table.censored[observed]
    n = len(curve)
    frame = pl.DataFrame(
        _keys(table, curve, "observation", table.time_h[curve, t])
        | {
            "matrix": np.where(organ == 0, table.matrix[curve], "tissue_homogenate"),
            "organ": np.asarray(ORGANS)[organ],
            "conc": np.where(censored, np.nan, conc),
            "conc_unit": np.full(n, "mg/L"),
            "lloq": np.where(censored, conc, np.nan),
            "lloq_unit": np.full(n, "mg/L"),
        }
    )
    return frame.with_columns(pl.col("conc", "lloq").fill_nan(None))


def write_tidy(table: CurveTable, path: Path) -> Path:
    """Write curves as a tidy table; the suffix decides: ``.csv``, ``.tsv`` or ``.parquet``.

    Reading it back gives the same numbers. Names change: the subject is the curve's name, so the curve read back
    is ``<compound>/<curve>/<matrix>``, and zeros at or before a first dose after time 0 are left out on reading. The
    file appears whole or not at all.

    Raises:
        InputError: for another suffix, an invalid table, or blood in a matrix that ``read_tidy`` would refuse.
        PerfuseError: when the disk refuses.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet"):
        raise InputError("out", "is no kind of table", value=str(path), allowed=".csv, .tsv, .parquet")
    check_writable(table, path)
    frame = pl.concat([_dose_rows(table), _observation_rows(table)], how="diagonal")
    with replacing(path) as part:
        try:
            if suffix == ".parquet":
                frame.write_parquet(part)
            else:
                frame.write_csv(part, separator="\t" if suffix == ".tsv" else ",")
        except pl.exceptions.ComputeError as error:  # how polars reports a disk that is full
            raise OSError(str(error).splitlines()[0]) from error
    return path


def check_writable(table: CurveTable, path: Path) -> None:
    """Refuse a table that a file could not give back.

    Raises:
        InputError: for an invalid table, too many pathways, names that are not unique, or a matrix that blood lacks.
    """
    table.validate(str(path))
    if table.vmax_mg_h.shape[1] > MAX_PATHWAYS:
        raise InputError("vmax_mg_h", "has too many pathways for a table", value=table.vmax_mg_h.shape[1],
                         allowed=f"<= {MAX_PATHWAYS}", where=str(path))  # fmt: skip
    unique = len(np.unique(table.curve_id)) == len(table)
    if not unique:
        raise InputError("curve_id", "is not unique, so subjects would be mixed up", where=str(path))
    for i in np.flatnonzero((~np.isnan(table.conc_mg_l[:, 0])).any(axis=1)):
        check_blood_matrix(str(table.matrix[i]), f"{path}: curve {table.curve_id[i]}")

"""Writing a ``CurveTable`` as a NONMEM data file that ``importers.nonmem`` reads back.

Axis legend: C curves, D dose events, T times, R records.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from perfuse.data.importers.nonmem_file import NUMBERS
from perfuse.data.importers.tidy_write import check_writable, covariate_frame
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.files import replacing
from perfuse.pk.physiology import ORGANS
from perfuse.pk.system import ORAL

_DEPOT, _BLOOD = 1, 2
_DOSE_FIRST, _SEEN, _DOSE_LATER = 0, 1, 2
"""Order of records at one time: a curve's first dose, then values, then later doses, which values come before."""


def _dose_records(table: CurveTable) -> dict[str, np.ndarray]:
    curve, d = np.nonzero(table.dose_mg > 0)
    time, amount, duration = (table.column(n)[curve, d] for n in ("dose_time_h", "dose_mg", "dose_duration_h"))
    first = np.full(len(table), np.inf)
    np.minimum.at(first, curve, time)
    infused = duration > 0
    n = len(curve)
    return {
        "curve": curve, "order": np.where(time == first[curve], _DOSE_FIRST, _DOSE_LATER), "TIME": time, "AMT": amount,
        "RATE": np.where(infused, amount / np.where(infused, duration, 1.0), 0.0), "DUR": duration,
        "DV": np.full(n, np.nan), "EVID": np.ones(n, dtype=int), "MDV": np.ones(n, dtype=int),
        "CMT": np.where(table.dose_route[curve, d] == ORAL, _DEPOT, _BLOOD), "BLQ": np.zeros(n, dtype=int),
        "LLOQ": np.full(n, np.nan), "organ": np.full(n, -1),
    }  # fmt: skip


def _observation_records(table: CurveTable) -> dict[str, np.ndarray]:
    """Observed values, DV the limit where censored; for a curve without any, its times as EVID 2 (to be predicted)."""
    observed = ~np.isnan(table.conc_mg_l)
    bare = ~observed.any(axis=(1, 2))
    wanted = observed.copy()
    wanted[bare, 0] = ~np.isnan(table.time_h[bare])
    curve, organ, t = np.nonzero(wanted)
    conc, censored, other = table.conc_mg_l[wanted], table.censored[wanted], bare[curve]
    n = len(curve)
    return {
        "curve": curve, "order": np.full(n, _SEEN), "TIME": table.time_h[curve, t], "AMT": np.full(n, np.nan),
        "RATE": np.full(n, np.nan), "DUR": np.full(n, np.nan), "DV": conc, "EVID": np.where(other, 2, 0),
        "MDV": other.astype(int), "CMT": _BLOOD + organ, "BLQ": censored.astype(int),
        "LLOQ": np.where(censored, conc, np.nan), "organ": organ,
    }  # fmt: skip


def write_nonmem(table: CurveTable, path: Path) -> Path:
    """Write curves as a NONMEM data file (CSV); times in h, amounts in mg, DV in mg/L.

    One ID is one curve, 1 to C. CMT 1 is the oral depot, 2 blood (in the curve's matrix), 3 to 15 the tissues in the
    order of ``ORGANS``. Every record carries WT and the covariates of the tidy table; the text columns DRUG, CURVE,
    MATRIX, ORGAN, TOPOLOGY stand last, where ``$INPUT`` need not name them. Read back, the numbers are the same.

    Raises:
        InputError: for an invalid table, names that are not unique, blood in a matrix that could not be read back, or
            a dose before time 0.
        PerfuseError: when the disk refuses.
    """
    path = Path(path)
    check_writable(table, path)
    early = (table.dose_time_h < 0) & (table.dose_mg > 0)
    if early.any():
        c, d = np.argwhere(early)[0]
        raise InputError("dose_time_h", "is before the start", value=float(table.dose_time_h[c, d]), unit="h",
                         allowed=">= 0", where=f"{path}: curve {table.curve_id[c]}")  # fmt: skip
    records = pl.concat([pl.DataFrame(_dose_records(table)), pl.DataFrame(_observation_records(table))])
    records = records.sort("curve", "TIME", "order", maintain_order=True)
    curve, organ = records["curve"].to_numpy(), records["organ"].to_numpy()
    zero = pl.Series(np.zeros(len(records), dtype=int))
    records = records.with_columns(ID=pl.col("curve") + 1, II=zero, ADDL=zero, SS=zero).select(NUMBERS)
    covariates = covariate_frame(table)
    columns = {"body_weight_kg": "WT"} | {n: n.upper() for n in covariates.columns if n != "body_weight_kg"}
    covariates = covariates.rename(columns).drop("TOPOLOGY")[curve]
    texts = pl.DataFrame({
        "DRUG": table.compound_id[curve], "CURVE": table.curve_id[curve], "MATRIX": table.matrix[curve],
        "ORGAN": [ORGANS[o] if o >= 0 else None for o in organ], "TOPOLOGY": [table.topology.name] * len(curve),
    })  # fmt: skip
    whole = pl.concat([records, covariates, texts], how="horizontal").with_columns(pl.selectors.float().fill_nan(None))
    with replacing(path) as part:
        try:
            whole.write_csv(part, null_value=".")
        except pl.exceptions.ComputeError as error:  # how polars reports a disk that is full
            raise OSError(str(error).splitlines()[0]) from error
    return path

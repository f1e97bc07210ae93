"""Which values count, and as what: the one mask and floor that metrics and calibration share.

Axis legend: C curves, O reported organs, T times.
"""

from __future__ import annotations

import numpy as np

from perfuse.data.table import CurveTable

FLOOR_FRACTION_OF_LOQ = 0.01
"""Predictions below this fraction of the LOQ are raised to it."""


def scored_mask(table: CurveTable) -> np.ndarray:
    """``(C, O, T)``: observed, t > 0, >= LOQ, not censored."""
    conc = table.conc_mg_l
    late = (np.nan_to_num(table.time_h, nan=0.0) > 0)[:, None]
    with np.errstate(invalid="ignore"):
        return late & ~table.censored & ~np.isnan(conc) & (conc >= table.loq_mg_l[:, None, None])


def floored(table: CurveTable, pred_mg_l: np.ndarray) -> np.ndarray:
    """Predictions ``(C, O, T)``, mg/L, none below LOQ/100; what is not finite counts as 0."""
    floor = FLOOR_FRACTION_OF_LOQ * table.loq_mg_l[:, None, None]
    return np.maximum(np.where(np.isfinite(pred_mg_l), pred_mg_l, 0.0), floor)


def first_dose_h(table: CurveTable) -> np.ndarray:
    """``(C,)`` time of each curve's first dose above 0 mg, h."""
    return np.where(table.dose_mg > 0, table.dose_time_h, np.inf).min(axis=1)


def since_last_dose_h(table: CurveTable) -> np.ndarray:
    """``(C, T)`` time since the start of the last dose before each time, h; since the first dose where none was.

    At the time of a dose the value before it is reported, so that dose does not count yet.
    """
    start = np.where(table.dose_mg > 0, table.dose_time_h, np.inf)[:, None]
    time = table.time_h[:, :, None]
    last = np.where(start < time, start, -np.inf).max(axis=2)
    return table.time_h - np.where(np.isfinite(last), last, first_dose_h(table)[:, None])

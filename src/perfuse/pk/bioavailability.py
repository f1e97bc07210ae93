"""Bioavailability and absorption time, from an extravascular and an intravenous dose.

Rowland M, Tozer TN, Clinical Pharmacokinetics and Pharmacodynamics, 4th ed., 2011; Gibaldi M, Perrier D,
Pharmacokinetics, 2nd ed., 1982 (statistical moments).
"""

from __future__ import annotations

import numpy as np

from perfuse.errors import InputError


def bioavailability(
    auc_extravascular_mg_h_l: np.ndarray | float,
    dose_extravascular_mg: np.ndarray | float,
    auc_intravenous_mg_h_l: np.ndarray | float,
    dose_intravenous_mg: np.ndarray | float,
) -> np.ndarray:
    """F = (AUC_ev / dose_ev) / (AUC_iv / dose_iv), the same clearance assumed; NaN where an AUC is not available.

    With AUC_inf of single doses, or AUC_tau at steady state; both in the same matrix. Arguments broadcast.

    Raises:
        InputError: for a dose or an AUC that is not positive.
    """
    values = []
    for name, unit, value in (
        ("auc_extravascular_mg_h_l", "mg h/L", auc_extravascular_mg_h_l),
        ("dose_extravascular_mg", "mg", dose_extravascular_mg),
        ("auc_intravenous_mg_h_l", "mg h/L", auc_intravenous_mg_h_l),
        ("dose_intravenous_mg", "mg", dose_intravenous_mg),
    ):
        array = np.asarray(value, float)
        if (array <= 0).any():
            raise InputError(name, value=float(array[array <= 0].reshape(-1)[0]), unit=unit, allowed="> 0")
        values.append(array)
    auc_ev, dose_ev, auc_iv, dose_iv = values
    return (auc_ev / dose_ev) / (auc_iv / dose_iv)


def mean_absorption_time(mtt_extravascular_h: np.ndarray | float, mrt_intravenous_h: np.ndarray | float) -> np.ndarray:
    """MAT = MTT after the extravascular dose - MRT after the intravenous one, h; NaN where negative or unknown."""
    mat = np.asarray(mtt_extravascular_h, float) - np.asarray(mrt_intravenous_h, float)
    return np.where(mat >= 0, mat, np.nan)

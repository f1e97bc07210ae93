"""T7: drugs known by their descriptors alone, with partitioning and permeability that follow from them.

The truth: Kp by Rodgers & Rowland from logP, pKa, fup and B:P; brain, adipose and muscle are permeability-limited, with
capillary permeability from logD and molecular weight; the liver by scaled hepatocyte clearance; the kidney by
filtration. Tables keep the descriptors and hide what was derived from them.

Axis legend: C curves, O reported organs, M eliminations, X exchanges.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from perfuse.data.table import CurveTable
from perfuse.data.tasks.bodies_and_drugs import Columns, log_normal
from perfuse.pk.clearance import GFR_ML_MIN, HEPATOCELLULARITY_MILLION_CELLS_G, LIVER_DENSITY_G_L
from perfuse.pk.physiology import ORGAN_INDEX
from perfuse.pk.topology import get_topology

MW_LOG = (5.86, 0.3)
"""ln g/mol: median 350, 190-640 in 95 % of drugs."""
LOGP_MEAN_SD = (2.2, 1.6)
LOGP_RANGE = (-1.5, 6.0)
CLASS_SHARES = {"neutral": 0.2, "acid": 0.25, "base": 0.4, "zwitterion": 0.15}
PKA_ACID_RANGE = (2.5, 7.0)
PKA_BASE_RANGE = (7.6, 10.5)
FUP_LOG10 = (-0.25, -0.25, 0.45)
"""log10 fup = first + second x logP + N(0, third), within ``FUP_RANGE``: lipophilic drugs bind more."""
FUP_RANGE = (0.01, 1.0)
BP_RANGE = {"acid": (0.55, 0.75), "other": (0.7, 1.6)}
CLINT_LOG = (2.0, 1.2)
"""ln uL/min/10^6 cells: median 7.4."""

CAPILLARY_CM2_PER_ML = {"brain": 100.0, "adipose": 30.0, "muscle": 70.0}
"""Capillary surface of a tissue, cm2/mL: orders of magnitude of brain 100-240, resting muscle 70 (Pappenheimer JR,
Renkin EM, Borrero LM. Am J Physiol 1951;167:13-46) and fat; part of the definition of this task, not a claim."""
PERMEABILITY = (-4.605, 0.4115)
"""log10 Pc (cm/s) = first + second x log10(D / sqrt(MW)): brain capillaries of the rat, Levin VA. J Med Chem
1980;23:682-684, with D at pH 7.4; T7 uses it for all three organs."""


def _draw_ionisation(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """One acidic and one basic pKa a drug, ``(C, 2)`` each with NaN where there is none."""
    kinds = np.asarray(list(CLASS_SHARES))[random.choice(len(CLASS_SHARES), n, p=list(CLASS_SHARES.values()))]
    acid, base = np.full((n, 2), np.nan), np.full((n, 2), np.nan)
    drawn_acid, drawn_base = random.uniform(*PKA_ACID_RANGE, n), random.uniform(*PKA_BASE_RANGE, n)
    acid[:, 0] = np.where(np.isin(kinds, ("acid", "zwitterion")), drawn_acid, np.nan)
    base[:, 0] = np.where(np.isin(kinds, ("base", "zwitterion")), drawn_base, np.nan)
    return acid, base


def permeability_surface_l_h(
    mw_g_mol: np.ndarray, logp: np.ndarray, unionised: np.ndarray, volume_l: np.ndarray
) -> np.ndarray:
    """PS, L/h, ``(C, X)`` of T7's permeability-limited organs, from permeability and capillary surface."""
    log_d = logp + np.log10(unionised)
    permeability_cm_s = 10.0 ** (PERMEABILITY[0] + PERMEABILITY[1] * (log_d - 0.5 * np.log10(mw_g_mol)))
    organs = [exchange.name for exchange in get_topology("circulation-ps").exchanges]
    surface_cm2 = np.stack([CAPILLARY_CM2_PER_ML[o] * 1000 * volume_l[:, ORGAN_INDEX[o]] for o in organs], 1)
    return permeability_cm_s[:, None] * surface_cm2 * 3600 / 1000


def draw_descriptors(random: np.random.Generator, people: Columns) -> Columns:
    """A drug for each person by its descriptors, and what follows from them."""
    from perfuse.pk.partition import rodgers_rowland_kp, unionised_fraction

    weight_kg, volume_l, flow_l_h = people["body_weight_kg"], people["volume_l"], people["flow_l_h"]
    n = len(weight_kg)
    mw = log_normal(random, MW_LOG, n)
    logp = np.clip(random.normal(*LOGP_MEAN_SD, n), *LOGP_RANGE)
    pka_acid, pka_base = _draw_ionisation(random, n)
    fup = np.clip(10 ** (FUP_LOG10[0] + FUP_LOG10[1] * logp + FUP_LOG10[2] * random.standard_normal(n)), *FUP_RANGE)
    acid = ~np.isnan(pka_acid[:, 0]) & np.isnan(pka_base[:, 0])
    low, high = (np.where(acid, BP_RANGE["acid"][i], BP_RANGE["other"][i]) for i in (0, 1))
    bp_ratio = random.uniform(low, high)
    clint_in_vitro = log_normal(random, CLINT_LOG, n)
    liver_g = volume_l[:, ORGAN_INDEX["liver"]] * LIVER_DENSITY_G_L
    clint_l_h = clint_in_vitro * HEPATOCELLULARITY_MILLION_CELLS_G * liver_g * 60 / 1e6
    cl_renal_l_h = GFR_ML_MIN * 60 / 1000 * (weight_kg / 70.0) ** 0.75 * fup
    cl_renal_l_h = np.minimum(cl_renal_l_h, 0.9 * flow_l_h[:, ORGAN_INDEX["kidney"]] * bp_ratio)
    return {
        "kp": rodgers_rowland_kp(logp, pka_acid, pka_base, fup, bp_ratio),
        "ps_l_h": permeability_surface_l_h(mw, logp, unionised_fraction(pka_acid, pka_base), volume_l),
        "elimination_l_h": np.column_stack((clint_l_h, cl_renal_l_h)),
        "fup": fup,
        "bp_ratio": bp_ratio,
        "mw_g_mol": mw,
        "logp": logp,
        "pka_acid": pka_acid,
        "pka_base": pka_base,
        "clint_ul_min_million_cells": clint_in_vitro,
    }


def hide_derived(table: CurveTable) -> CurveTable:
    """The table without Kp, PS and organ clearances: only descriptors remain."""
    kp = np.full_like(table.kp, np.nan)
    kp[:, 0] = 1.0
    return replace(
        table, kp=kp, ps_l_h=np.full_like(table.ps_l_h, np.nan),
        elimination_l_h=np.full_like(table.elimination_l_h, np.nan),
    )  # fmt: skip

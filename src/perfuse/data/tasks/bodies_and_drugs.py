"""Random people and drugs of the task suite: the origin's distributions (T1) and people of 40-120 kg (T2 and on).

Every function draws ``n`` rows from a NumPy generator and returns columns of a ``CurveTable`` by name. The order of
the draws is part of a task: changing it changes every curve of every seed.

Axis legend: C curves, O reported organs, M eliminations, P saturable pathways.
"""

from __future__ import annotations

import math

import numpy as np

from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, hub_reference, human_reference
from perfuse.pk.population import sample_adults

Columns = dict[str, np.ndarray]

# LogN(mu, s) here is exp(N(mu, s)): in the origin's own file ln CL_hepatic has mean 1.84 and sd 1.02 over 100
# curves, which fits N(2, 1) within its standard error of 0.1 and excludes a median of 2 (mean of logs 0.69).
CL_HEPATIC_LOG = (2.0, 1.0)
CL_RENAL_LOG = (1.5, 0.8)
KP_LOG = {"brain": (-0.5, 0.5), "adipose": (1.0, 0.8), "liver": (0.5, 0.6)}
KP_LOG_OTHERS = (0.0, 0.5)

# T2's drug, beyond T1's. CLint's median, 200 L/h for the reference liver, gives at fup 0.1 an extraction of 0.17.
FUP_RANGE = (0.01, 1.0)
BP_RANGE = (0.55, 2.0)
CLINT_LOG = (5.3, 1.3)
MAX_RENAL_EXTRACTION = 0.9


def draw_kp(random: np.random.Generator, n: int, widen: float = 1.0) -> np.ndarray:
    """Partition coefficients ``(C, O)``; 1 for blood. ``widen`` multiplies the standard deviations of the logs."""
    mean_sd = np.asarray([KP_LOG.get(organ, KP_LOG_OTHERS) for organ in ORGANS])
    kp = np.exp(mean_sd[:, 0] + widen * mean_sd[:, 1] * random.standard_normal((n, len(ORGANS))))
    kp[:, ORGAN_INDEX["blood"]] = 1.0
    return kp


def log_normal(random: np.random.Generator, mean_sd: tuple[float, float], n: int, widen: float = 1.0) -> np.ndarray:
    """``exp(N(mean, sd))``, ``(C,)``."""
    return np.exp(mean_sd[0] + widen * mean_sd[1] * random.standard_normal(n))


def log_uniform(random: np.random.Generator, bounds: tuple[float, float], n: int) -> np.ndarray:
    """Uniform in the logarithm between two bounds, ``(C,)``."""
    return np.exp(random.uniform(math.log(bounds[0]), math.log(bounds[1]), n))


def draw_origin(random: np.random.Generator, n: int) -> Columns:
    """T1: the origin's fixed body and its parameter distributions; clearances are blood clearances."""
    body = hub_reference()
    return {
        "body_weight_kg": np.full(n, body.body_weight_kg),
        "volume_l": np.tile(body.volume_l, (n, 1)),
        "flow_l_h": np.tile(body.flow_l_h, (n, 1)),
        "elimination_l_h": np.column_stack(
            (log_normal(random, CL_HEPATIC_LOG, n), log_normal(random, CL_RENAL_LOG, n))
        ),
        "kp": draw_kp(random, n),
        "fup": np.ones(n),
        "bp_ratio": np.ones(n),
    }


def draw_people(random: np.random.Generator, n: int) -> Columns:
    """Body weights, organ volumes and flows of adults (``sample_adults``)."""
    weight_kg, volume_l, flow_l_h = sample_adults(random, n)
    return {"body_weight_kg": weight_kg, "volume_l": volume_l, "flow_l_h": flow_l_h}


def draw_drugs(random: np.random.Generator, bodies: Columns, widen: float = 1.0) -> Columns:
    """A drug for each body, like T1's, with binding and intrinsic clearance.

    Kp (tissue:plasma) as in T1; fup log-uniform in 0.01-1; B:P uniform in 0.55-2; unbound CLint LogN(5.3, 1.3) L/h for
    the reference liver, times the body's liver volume over it; renal plasma clearance LogN(1.5, 0.8) L/h at 70 kg,
    times (weight / 70)^0.75, limited to a renal blood extraction of 0.9 (which is rare). ``widen`` multiplies the
    standard deviations of the logs of Kp, CLint and renal clearance.
    """
    weight_kg, volume_l, flow_l_h = bodies["body_weight_kg"], bodies["volume_l"], bodies["flow_l_h"]
    n = len(weight_kg)
    fup = log_uniform(random, FUP_RANGE, n)
    bp_ratio = random.uniform(*BP_RANGE, n)
    liver_l = volume_l[:, ORGAN_INDEX["liver"]] / human_reference(70.0).volume_l[ORGAN_INDEX["liver"]]
    clint = log_normal(random, CLINT_LOG, n, widen) * liver_l
    cl_renal = log_normal(random, CL_RENAL_LOG, n, widen) * (weight_kg / 70.0) ** 0.75
    cl_renal = np.minimum(cl_renal, MAX_RENAL_EXTRACTION * flow_l_h[:, ORGAN_INDEX["kidney"]] * bp_ratio)
    return {
        "elimination_l_h": np.column_stack((clint, cl_renal)),
        "kp": draw_kp(random, n, widen),
        "fup": fup,
        "bp_ratio": bp_ratio,
    }


def vss_plasma_l(columns: Columns) -> np.ndarray:
    """Steady-state volume of distribution referred to plasma, L, ``(C,)``: V_blood (B:P) + sum V_tissue Kp.

    Oie S, Tozer TN. J Pharm Sci 1979;68:1203-1205, with blood in place of plasma and its own partition, B:P.
    """
    volume, kp = columns["volume_l"], columns["kp"]
    return volume[:, 0] * columns["bp_ratio"] + (volume[:, 1:] * kp[:, 1:]).sum(1)


SATURABLE_SHARE = 0.9
SATURATION_RANGE = (0.01, 100.0)


def make_saturable(random: np.random.Generator, columns: Columns, dose_mg: np.ndarray) -> Columns:
    """T4: nine tenths of the intrinsic clearance saturate, one tenth stays linear.

    Km,u follows from fup dose / (Vss Km,u), log-uniform in 0.01-100, and Vmax / Km,u is the saturable share of CLint.
    """
    saturation = log_uniform(random, SATURATION_RANGE, len(dose_mg))
    km_u = columns["fup"] * dose_mg / (vss_plasma_l(columns) * saturation)
    clint = columns["elimination_l_h"][:, 0]
    elimination = columns["elimination_l_h"].copy()
    elimination[:, 0] = (1 - SATURABLE_SHARE) * clint
    return columns | {
        "elimination_l_h": elimination,
        "vmax_mg_h": (SATURABLE_SHARE * clint * km_u)[:, None],
        "km_u_mg_l": km_u[:, None],
    }

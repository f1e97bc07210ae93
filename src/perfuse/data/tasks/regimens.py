"""Random regimens and sampling times of the task suite.

Axis legend: C curves, D dose events, T times.
"""

from __future__ import annotations

import numpy as np

from perfuse.data.tasks.bodies_and_drugs import Columns, log_normal
from perfuse.pk.system import ORAL

T_MAX_H = 24.0
N_TIMES = 100
DOSE_RANGE_MG = (10.0, 1000.0)

REGIMEN_T_MAX_H = 48.0
EARLIEST_SAMPLE_H = 0.05
MAX_DOSES = 8
INFUSION_RANGE_H = (0.25, 6.0)
INTERVALS_H = (6.0, 8.0, 12.0)
KA_LOG = (0.0, 0.7)
KA_RANGE_1_H = (0.1, 10.0)
MAX_LAG_H = 0.5
F_ABS_RANGE = (0.3, 1.0)


def single_bolus(dose_mg: np.ndarray) -> Columns:
    """One intravenous bolus at time 0, 100 even times in 24 h."""
    n = len(dose_mg)
    return {
        "dose_time_h": np.zeros((n, 1)),
        "dose_mg": dose_mg[:, None],
        "dose_duration_h": np.zeros((n, 1)),
        "time_h": np.tile(np.linspace(0.0, T_MAX_H, N_TIMES), (n, 1)),
    }


def draw_irregular_times(random: np.random.Generator, n: int) -> np.ndarray:
    """100 increasing times a curve, h, ``(C, T)``: half log-uniform in 0.05-48 h, half uniform, no two curves alike."""
    early = np.exp(random.uniform(np.log(EARLIEST_SAMPLE_H), np.log(REGIMEN_T_MAX_H), (n, N_TIMES // 2)))
    late = random.uniform(EARLIEST_SAMPLE_H, REGIMEN_T_MAX_H, (n, N_TIMES - N_TIMES // 2))
    return np.sort(np.concatenate((early, late), 1), 1)


def draw_regimens(random: np.random.Generator, n: int) -> Columns:
    """T3: a quarter each of one infusion, one oral dose, a repeated route, and a bolus with oral doses after it.

    Doses U(10, 1000) mg; infusions U(0.25, 6) h; repeats every 6, 8 or 12 h, 2 to 8 of them; ka LogN(0, 0.7) 1/h within
    0.1-10, a lag U(0, 0.5) h for half of the drugs, Fa x Fg U(0.3, 1).
    """
    kind = random.integers(0, 4, n)
    amount = random.uniform(*DOSE_RANGE_MG, n)
    loading = random.uniform(*DOSE_RANGE_MG, n)
    duration = random.uniform(*INFUSION_RANGE_H, n)
    interval = np.asarray(INTERVALS_H)[random.integers(0, len(INTERVALS_H), n)]
    count = np.where(kind >= 2, random.integers(2, MAX_DOSES + 1, n), 1)
    way = random.integers(0, 3, n)  # of a repeated route: bolus, infusion, oral
    has_lag = random.random(n) < 0.5
    absorption = {
        "ka_1_h": np.clip(log_normal(random, KA_LOG, n), *KA_RANGE_1_H),
        "lag_h": np.where(has_lag, random.uniform(0.0, MAX_LAG_H, n), 0.0),
        "f_abs": random.uniform(*F_ABS_RANGE, n),
    }
    index = np.arange(MAX_DOSES)
    time = index * interval[:, None]
    given = (index < count[:, None]) & (time < REGIMEN_T_MAX_H)
    oral = ((kind == 1) | ((kind == 2) & (way == 2)))[:, None] | ((kind == 3)[:, None] & (index > 0))
    infused = ((kind == 0) | ((kind == 2) & (way == 1)))[:, None] & ~oral
    dose = np.where((kind == 3)[:, None] & (index == 0), loading[:, None], amount[:, None])
    return {
        "dose_time_h": np.where(given, time, 0.0),
        "dose_mg": np.where(given, dose, 0.0),
        "dose_duration_h": np.where(given & infused, np.minimum(duration, interval)[:, None], 0.0),
        "dose_route": np.where(given & oral, ORAL, 0).astype(np.int8),
        "time_h": draw_irregular_times(random, n),
        **absorption,
    }

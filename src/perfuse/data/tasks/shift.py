"""T5's shifted bodies: children of 2-18 years and rats, with the organ variation of T2's adults.

Axis legend: C curves.
"""

from __future__ import annotations

import numpy as np

from perfuse.data.tasks.bodies_and_drugs import Columns
from perfuse.pk.physiology import ORGANS, check_flow_balance, rat_reference
from perfuse.pk.population import ORGAN_CV, log_sd, sample_population, vary_flows, vary_volumes

CHILD_AGES_YEAR = (2.0, 18.0)
RAT_WEIGHTS_KG = (0.2, 0.4)


def draw_children(random: np.random.Generator, n: int) -> Columns:
    """Children of 2-18 years: ICRP 89's organ proportions (``pk.growth``), every organ with 20 % CV."""
    children = sample_population(random, n, age_range_year=CHILD_AGES_YEAR, height_cv=0, gfr_cv=0)  # not used here
    return {
        "body_weight_kg": children.body_weight_kg,
        "volume_l": children.volume_l,
        "flow_l_h": children.flow_l_h,
    }


def draw_rats(random: np.random.Generator, n: int) -> Columns:
    """Rats of 0.2-0.4 kg: real rat volumes and flows (``pk.physiology.rat_reference``), every organ with 20 % CV."""
    rat = rat_reference()
    weight_kg = random.uniform(*RAT_WEIGHTS_KG, n)
    relative = (weight_kg / rat.body_weight_kg)[:, None]
    factors = np.exp(log_sd(ORGAN_CV) * random.standard_normal((2, n, len(ORGANS))))
    flow = vary_flows(np.tile(rat.flow_l_h, (n, 1)), factors[1]) * relative**0.75
    check_flow_balance(flow)
    volume = vary_volumes(np.tile(rat.volume_l, (n, 1)), factors[0]) * relative
    return {"body_weight_kg": weight_kg, "volume_l": volume, "flow_l_h": flow}

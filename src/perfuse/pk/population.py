"""Virtual adults: organ volumes and flows that vary around the reference and still add up.

Axis legend: C people, O the 14 reported organs.
"""

from __future__ import annotations

import math

import numpy as np

from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, PORTAL_ORGANS, Physiology, check_flow_balance, human_reference

BODY_WEIGHT_RANGE_KG = (40.0, 120.0)
ORGAN_CV = 0.2
"""Coefficient of variation of organ volumes and flows at a given body weight, about what PBPK populations
assume (20-30 %: Willmann S et al. J Pharmacokinet Pharmacodyn 2007;34:401-431)."""


def sample_adults(
    random: np.random.Generator, n: int, reference: Physiology | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Body weights, organ volumes and flows of ``n`` people.

    Body weight is uniform in 40-120 kg. ``human_reference`` is scaled to it (volumes linearly, flows by the
    power 3/4); each organ's volume, and each systemic outflow (the hepatic artery counts, total liver flow is
    the sum of artery and portal vein), is multiplied by a log-normal factor of 20 % CV and all are renormalised:
    volumes to the reference's sum at that body weight, flows to its cardiac output.

    Returns:
        ``(C,)`` kg, ``(C, O)`` L, ``(C, O)`` L/h.
    """
    reference = reference or human_reference(70.0)
    sd = math.sqrt(math.log1p(ORGAN_CV**2))
    body_weight_kg = random.uniform(*BODY_WEIGHT_RANGE_KG, n)
    relative = (body_weight_kg / reference.body_weight_kg)[:, None]

    volume = reference.volume_l * np.exp(sd * random.standard_normal((n, len(ORGANS))))
    volume *= reference.volume_l.sum() / volume.sum(1, keepdims=True)

    liver, lung, blood = (ORGAN_INDEX[o] for o in ("liver", "lung", "blood"))
    portal = [ORGAN_INDEX[o] for o in PORTAL_ORGANS]
    outflow = reference.flow_l_h.copy()
    outflow[liver] -= outflow[portal].sum()  # the hepatic artery
    outflow[[lung, blood]] = 0
    flow = outflow * np.exp(sd * random.standard_normal((n, len(ORGANS))))
    flow *= reference.cardiac_output_l_h / flow.sum(1, keepdims=True)
    flow[:, liver] += flow[:, portal].sum(1)
    flow[:, [lung, blood]] = reference.cardiac_output_l_h

    volume_l, flow_l_h = volume * relative, flow * relative**0.75
    check_flow_balance(flow_l_h)
    return body_weight_kg, volume_l, flow_l_h

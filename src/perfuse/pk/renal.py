"""Renal clearance: filtration, net secretion or reabsorption, and what kidney blood flow allows."""

from __future__ import annotations

import math

from perfuse.errors import InputError
from perfuse.pk.checks import check_fraction, check_positive

GFR_ML_MIN = 120.0
"""Normal adult glomerular filtration rate, mL/min (per 1.73 m2): Rowland M, Tozer TN. Clinical Pharmacokinetics and
Pharmacodynamics, 4th ed. Lippincott Williams & Wilkins 2011; within the 90-130 mL/min per 1.73 m2 of
Stevens LA, Coresh J, Greene T, Levey AS. N Engl J Med 2006;354:2473-2483."""

_GFR_BODY_WEIGHT_KG = 70.0


def glomerular_filtration_l_h(body_weight_kg: float = _GFR_BODY_WEIGHT_KG) -> float:
    """Glomerular filtration rate, L/h: 7.2 L/h (120 mL/min) at 70 kg, scaled by body weight to the power 3/4.

    Raises:
        InputError: if the body weight is not in (0, 300] kg.

    Reference of the exponent: West GB, Brown JH, Enquist BJ. Science 1997;276:122-126.
    """
    if not 0 < body_weight_kg <= 300:
        raise InputError("body_weight_kg", value=float(body_weight_kg), unit="kg", allowed="(0, 300]")
    return GFR_ML_MIN * 60 / 1000 * (body_weight_kg / _GFR_BODY_WEIGHT_KG) ** 0.75


def renal_clearance_filtration(fup: float, body_weight_kg: float = _GFR_BODY_WEIGHT_KG) -> float:
    """Renal plasma clearance by filtration alone, L/h: GFR * fup (no secretion, no reabsorption).

    Raises:
        InputError: if fup is not in (0, 1] or the body weight is not in (0, 300] kg.
    """
    check_fraction("fup", fup)
    return glomerular_filtration_l_h(body_weight_kg) * fup


def renal_clearance(fup: float, gfr_l_h: float, net_secretion_l_h: float = 0.0) -> float:
    """Renal plasma clearance, L/h: GFR * fup + net tubular secretion (negative: net reabsorption).

    Args:
        fup: Fraction unbound in plasma, in (0, 1].
        gfr_l_h: Glomerular filtration rate, L/h, >= 0.
        net_secretion_l_h: Secretion minus reabsorption as a plasma clearance, L/h, >= -GFR * fup.

    Raises:
        InputError: naming the argument; more cannot be reabsorbed than was filtered.
    """
    check_fraction("fup", fup)
    check_positive("gfr_l_h", gfr_l_h, "L/h", or_zero=True)
    filtered = gfr_l_h * fup
    if not (math.isfinite(net_secretion_l_h) and net_secretion_l_h >= -filtered):
        raise InputError(
            "cl_secretion_l_h", "reabsorbs more than is filtered", value=float(net_secretion_l_h), unit="L/h plasma",
            allowed=f">= {-filtered:.4g} L/h",
        )  # fmt: skip
    return filtered + net_secretion_l_h


def check_renal_clearance(
    cl_renal_l_h: float, bp_ratio: float, kidney_flow_l_h: float, where: str = "", field: str = "cl_renal_l_h"
) -> None:
    """Refuse a renal plasma clearance whose blood clearance, CL_r / (B:P), exceeds kidney blood flow.

    Raises:
        InputError: naming the greatest plasma clearance that this body's kidneys can have.
    """
    check_positive("bp_ratio", bp_ratio)
    check_positive("kidney_flow_l_h", kidney_flow_l_h, "L/h")
    if not cl_renal_l_h / bp_ratio <= kidney_flow_l_h:
        raise InputError(
            field, "exceeds kidney blood flow", value=float(cl_renal_l_h), unit="L/h plasma",
            allowed=f"<= {kidney_flow_l_h * bp_ratio:.4g} L/h", where=where,
        )  # fmt: skip

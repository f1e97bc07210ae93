"""Clearance: well-stirred liver and its inversion, in-vitro-to-in-vivo scaling, glomerular filtration."""

from __future__ import annotations

import math

from perfuse.errors import InputError

HEPATOCELLULARITY_MILLION_CELLS_G = 99.0
"""Hepatocytes per gram of human liver: Barter ZE, Bayliss MK, Beaune PH, et al. Curr Drug Metab 2007;8:33-45."""

LIVER_DENSITY_G_L = 1000.0
"""The convention of ``pk.physiology``, where a liver's volume is its ICRP 89 mass at 1 kg/L."""

GFR_ML_MIN = 120.0
"""Normal adult glomerular filtration rate, mL/min (per 1.73 m2): Rowland M, Tozer TN. Clinical Pharmacokinetics and
Pharmacodynamics, 4th ed. Lippincott Williams & Wilkins 2011; within the 90-130 mL/min per 1.73 m2 of
Stevens LA, Coresh J, Greene T, Levey AS. N Engl J Med 2006;354:2473-2483."""

_GFR_BODY_WEIGHT_KG = 70.0


def _positive(field: str, value: float, unit: str = "", *, or_zero: bool = False) -> None:
    if not (math.isfinite(value) and (value >= 0 if or_zero else value > 0)):
        raise InputError(field, value=float(value), unit=unit, allowed=f"{'>=' if or_zero else '>'} 0 and finite")


def _fraction(field: str, value: float) -> None:
    if not 0 < value <= 1:
        raise InputError(field, value=float(value), allowed="(0, 1]")


def scale_hepatocyte_clint(clint_ul_min_million_cells: float, liver_volume_l: float) -> float:
    """Unbound intrinsic clearance of the whole liver, L/h, from an incubation with hepatocytes.

        CL_int = CL_int,vitro * cells per g liver * liver mass * 60 min/h / 1e6 uL/L

    Binding inside the incubation is not corrected for (fu,inc = 1).

    Args:
        clint_ul_min_million_cells: In-vitro intrinsic clearance, uL/min per 10^6 cells, >= 0
            (0: no turnover was measured).
        liver_volume_l: Liver volume, L.

    Raises:
        InputError: naming the argument, its value and the allowed range.

    Reference: Houston JB. Biochem Pharmacol 1994;47:1469-1479.
    """
    _positive("clint_ul_min_million_cells", clint_ul_min_million_cells, "uL/min/10^6 cells", or_zero=True)
    _positive("liver_volume_l", liver_volume_l, "L")
    million_cells = HEPATOCELLULARITY_MILLION_CELLS_G * liver_volume_l * LIVER_DENSITY_G_L
    return clint_ul_min_million_cells * million_cells * 60 / 1e6


def hepatic_clearance_well_stirred(clint_l_h: float, fup: float, bp_ratio: float, hepatic_flow_l_h: float) -> float:
    """Hepatic blood clearance by the well-stirred model.

        CL_h = Q_h * fu_b * CL_int / (Q_h + fu_b * CL_int),   fu_b = fup / BP

    Args:
        clint_l_h: Unbound intrinsic clearance of the whole liver, L/h (after in vitro scaling), >= 0.
        fup: Fraction unbound in plasma, in (0, 1].
        bp_ratio: Blood-to-plasma concentration ratio, > 0.
        hepatic_flow_l_h: Total hepatic blood flow (artery + portal vein), L/h.

    Returns:
        Blood clearance in L/h; never above ``hepatic_flow_l_h``.

    Raises:
        InputError: naming the argument, its value and the allowed range.

    Reference: Rowland M, Benet LZ, Graham GG. J Pharmacokinet Biopharm 1973;1:123-136.
    """
    _positive("clint_l_h", clint_l_h, "L/h", or_zero=True)
    _fraction("fup", fup)
    _positive("bp_ratio", bp_ratio)
    _positive("hepatic_flow_l_h", hepatic_flow_l_h, "L/h")
    unbound = fup / bp_ratio * clint_l_h
    return hepatic_flow_l_h * (unbound / (hepatic_flow_l_h + unbound))


def clint_from_hepatic_clearance(
    cl_hepatic_blood_l_h: float, fup: float, bp_ratio: float, hepatic_flow_l_h: float
) -> float:
    """The well-stirred model inverted: CL_int = CL_h / (fu_b (1 - CL_h / Q_h)), L/h.

    Args:
        cl_hepatic_blood_l_h: Hepatic blood clearance, L/h, >= 0 and below the hepatic flow.
        fup: Fraction unbound in plasma, in (0, 1].
        bp_ratio: Blood-to-plasma concentration ratio, > 0.
        hepatic_flow_l_h: Total hepatic blood flow (artery + portal vein), L/h.

    Raises:
        InputError: naming the argument; no finite CL_int gives a clearance at or above hepatic blood flow.
    """
    _positive("cl_hepatic_blood_l_h", cl_hepatic_blood_l_h, "L/h", or_zero=True)
    _fraction("fup", fup)
    _positive("bp_ratio", bp_ratio)
    _positive("hepatic_flow_l_h", hepatic_flow_l_h, "L/h")
    if cl_hepatic_blood_l_h >= hepatic_flow_l_h:
        raise InputError(
            "cl_hepatic_blood_l_h", "reaches hepatic blood flow", value=float(cl_hepatic_blood_l_h), unit="L/h",
            allowed=f"< {hepatic_flow_l_h:.4g} L/h",
            hint="blood clearance is plasma clearance / (B:P); is part of it renal, or is B:P higher?",
        )  # fmt: skip
    return cl_hepatic_blood_l_h / (fup / bp_ratio * (1 - cl_hepatic_blood_l_h / hepatic_flow_l_h))


def hepatic_from_total(cl_total_l_h: float, cl_renal_l_h: float) -> float:
    """Hepatic plasma clearance, L/h: total minus renal plasma clearance; everything not renal counts as hepatic.

    Raises:
        InputError: if the renal part exceeds the total.
    """
    _positive("cl_total_l_h", cl_total_l_h, "L/h", or_zero=True)
    _positive("cl_renal_l_h", cl_renal_l_h, "L/h", or_zero=True)
    if cl_renal_l_h > cl_total_l_h:
        raise InputError(
            "cl_total_l_h", "is below renal clearance", value=float(cl_total_l_h), unit="L/h plasma",
            allowed=f">= {cl_renal_l_h:.4g} L/h",
            hint="give cl_renal_l_h; where it is not given it is GFR x fup",
        )  # fmt: skip
    return cl_total_l_h - cl_renal_l_h


def clint_from_total_clearance(
    cl_total_l_h: float, cl_renal_l_h: float, fup: float, bp_ratio: float, hepatic_flow_l_h: float
) -> float:
    """CL_int of the whole liver, L/h, from total and renal plasma clearance; see the functions it chains.

    Args:
        cl_total_l_h: Total plasma clearance, L/h.
        cl_renal_l_h: Renal plasma clearance, L/h, not above the total.
        fup: Fraction unbound in plasma, in (0, 1].
        bp_ratio: Blood-to-plasma concentration ratio, > 0.
        hepatic_flow_l_h: Total hepatic blood flow (artery + portal vein), L/h.

    Raises:
        InputError: naming the argument, its value and the allowed range.
    """
    _positive("bp_ratio", bp_ratio)
    blood = hepatic_from_total(cl_total_l_h, cl_renal_l_h) / bp_ratio
    return clint_from_hepatic_clearance(blood, fup, bp_ratio, hepatic_flow_l_h)


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
    _fraction("fup", fup)
    return glomerular_filtration_l_h(body_weight_kg) * fup

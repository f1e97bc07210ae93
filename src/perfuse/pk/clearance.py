"""Clearance in one place: liver models, in-vitro scaling, renal clearance, and total clearance taken apart.

The parts live in ``pk.liver_models``, ``pk.in_vitro``, ``pk.assay_binding`` and ``pk.renal``; their functions can be
imported from here.
"""

from __future__ import annotations

from perfuse.errors import InputError
from perfuse.pk.assay_binding import fu_hepatocytes, fu_microsomes
from perfuse.pk.checks import check_positive
from perfuse.pk.in_vitro import (
    HEPATOCELLULARITY_MILLION_CELLS_G,
    LIVER_DENSITY_G_L,
    MICROSOMAL_PROTEIN_MG_G,
    km_unbound_mg_l,
    microsomal_protein_mg_g,
    scale_hepatocyte_clint,
    scale_hepatocyte_vmax,
    scale_microsome_clint,
    scale_microsome_vmax,
    scale_recombinant_clint,
    scale_recombinant_vmax,
)
from perfuse.pk.liver_models import (
    DISPERSION_NUMBER,
    LIVER_MODELS,
    clint_from_hepatic_clearance,
    hepatic_clearance,
    hepatic_clearance_well_stirred,
    hepatic_extraction,
    well_stirred_equivalent_clint,
)
from perfuse.pk.renal import (
    GFR_ML_MIN,
    check_renal_clearance,
    glomerular_filtration_l_h,
    renal_clearance,
    renal_clearance_filtration,
)

__all__ = [
    "DISPERSION_NUMBER", "GFR_ML_MIN", "HEPATOCELLULARITY_MILLION_CELLS_G", "LIVER_DENSITY_G_L", "LIVER_MODELS",
    "MICROSOMAL_PROTEIN_MG_G", "check_renal_clearance", "clint_from_hepatic_clearance", "clint_from_total_clearance",
    "fu_hepatocytes", "fu_microsomes", "glomerular_filtration_l_h", "hepatic_clearance",
    "hepatic_clearance_well_stirred", "hepatic_extraction", "hepatic_from_total", "km_unbound_mg_l",
    "microsomal_protein_mg_g", "renal_clearance", "renal_clearance_filtration", "scale_hepatocyte_clint",
    "scale_hepatocyte_vmax", "scale_microsome_clint", "scale_microsome_vmax", "scale_recombinant_clint",
    "scale_recombinant_vmax", "well_stirred_equivalent_clint",
]  # fmt: skip


def hepatic_from_total(cl_total_l_h: float, cl_renal_l_h: float) -> float:
    """Hepatic plasma clearance, L/h: total minus renal plasma clearance; everything not renal counts as hepatic.

    Raises:
        InputError: if the renal part exceeds the total.
    """
    check_positive("cl_total_l_h", cl_total_l_h, "L/h", or_zero=True)
    check_positive("cl_renal_l_h", cl_renal_l_h, "L/h", or_zero=True)
    if cl_renal_l_h > cl_total_l_h:
        raise InputError(
            "cl_total_l_h", "is below renal clearance", value=float(cl_total_l_h), unit="L/h plasma",
            allowed=f">= {cl_renal_l_h:.4g} L/h",
            hint="give cl_renal_l_h; where it is not given it is GFR x fup",
        )  # fmt: skip
    return cl_total_l_h - cl_renal_l_h


def clint_from_total_clearance(
    cl_total_l_h: float, cl_renal_l_h: float, fup: float, bp_ratio: float, hepatic_flow_l_h: float,
    model: str = "well-stirred", dispersion_number: float = DISPERSION_NUMBER,
) -> float:  # fmt: skip
    """CL_int of the whole liver, L/h, from total and renal plasma clearance; see the functions it chains.

    Args:
        cl_total_l_h: Total plasma clearance, L/h.
        cl_renal_l_h: Renal plasma clearance, L/h, not above the total.
        fup: Fraction unbound in plasma, in (0, 1].
        bp_ratio: Blood-to-plasma concentration ratio, > 0.
        hepatic_flow_l_h: Total hepatic blood flow (artery + portal vein), L/h.
        model: One of ``LIVER_MODELS``.
        dispersion_number: Used by ``dispersion`` alone.

    Raises:
        InputError: naming the argument, its value and the allowed range.
    """
    check_positive("bp_ratio", bp_ratio)
    blood = hepatic_from_total(cl_total_l_h, cl_renal_l_h) / bp_ratio
    return clint_from_hepatic_clearance(blood, fup, bp_ratio, hepatic_flow_l_h, model, dispersion_number)

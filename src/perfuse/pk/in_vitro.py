"""In-vitro-to-in-vivo scaling: from an incubation's clearance or Vmax and Km to those of the whole liver.

    CL_int = CL_int,vitro / fu,inc * scaling factor per g liver * liver mass        (unbound, L/h)

The scaling factor is hepatocytes, microsomal protein, or microsomal protein x enzyme abundance per gram of liver.
Method: Houston JB. Biochem Pharmacol 1994;47:1469-1479; binding in the assay: Obach RS. Drug Metab Dispos
1997;25:1359-1369. How binding is predicted where it was not measured is in ``pk.assay_binding``.
"""

from __future__ import annotations

from perfuse.errors import InputError
from perfuse.pk.checks import check_fraction, check_positive

HEPATOCELLULARITY_MILLION_CELLS_G = 99.0
"""Hepatocytes per gram of human liver: Barter ZE, Bayliss MK, Beaune PH, et al. Curr Drug Metab 2007;8:33-45.
(Wilson ZE, Rostami-Hodjegan A, Burn JL, et al. Br J Clin Pharmacol 2003;56:433-440 found a geometric mean of 107.)"""

MICROSOMAL_PROTEIN_MG_G = 40.0
"""Microsomal protein per gram of adult liver, mg/g: what ``microsomal_protein_mg_g`` gives at 30 years (40.2), rounded
as usual. Wilson et al. 2003 (above) found a geometric mean of 33, and Barter et al. 2007 recommend 32."""

LIVER_DENSITY_G_L = 1000.0
"""The convention of ``pk.physiology``, where a liver's volume is its ICRP 89 mass at 1 kg/L."""

_UL_MIN_TO_L_H = 60 / 1e6
_PMOL_MIN_TO_MG_H_PER_G_MOL = 60 * 1e-12 * 1e3


def microsomal_protein_mg_g(age_years: float) -> float:
    """Microsomal protein per gram of liver, mg/g, at an age in [0, 90] years.

        log10 MPPGL = 1.407 + 0.0158 age - 0.00038 age^2 + 0.0000024 age^3

    26 at birth, 40 at 30 years, 32 at 60. Reference: Barter ZE, Chowdry JE, Harlow JR, Snawder JE, Lipscomb JC,
    Rostami-Hodjegan A. Drug Metab Dispos 2008;36:2405-2409 (coefficients as published population models quote them).

    Raises:
        InputError: for an age out of range.
    """
    if not 0 <= age_years <= 90:
        raise InputError("age_years", value=float(age_years), unit="years", allowed="[0, 90]")
    return float(10 ** (1.407 + 0.0158 * age_years - 0.00038 * age_years**2 + 0.0000024 * age_years**3))


def _liver_g(liver_volume_l: float) -> float:
    check_positive("liver_volume_l", liver_volume_l, "L")
    return liver_volume_l * LIVER_DENSITY_G_L


def scale_hepatocyte_clint(
    clint_ul_min_million_cells: float, liver_volume_l: float, fu_inc: float = 1.0,
    million_cells_g: float = HEPATOCELLULARITY_MILLION_CELLS_G,
) -> float:  # fmt: skip
    """Unbound intrinsic clearance of the whole liver, L/h, from an incubation with hepatocytes.

    Args:
        clint_ul_min_million_cells: In-vitro intrinsic clearance, uL/min per 10^6 cells, >= 0
            (0: no turnover was measured).
        liver_volume_l: Liver volume, L.
        fu_inc: Fraction unbound in the incubation, in (0, 1].
        million_cells_g: Hepatocytes per gram of liver, 10^6/g.

    Raises:
        InputError: naming the argument, its value and the allowed range.
    """
    check_positive("clint_ul_min_million_cells", clint_ul_min_million_cells, "uL/min/10^6 cells", or_zero=True)
    check_fraction("fu_inc", fu_inc)
    check_positive("million_cells_g", million_cells_g, "10^6 cells/g")
    return clint_ul_min_million_cells / fu_inc * million_cells_g * _liver_g(liver_volume_l) * _UL_MIN_TO_L_H


def scale_microsome_clint(
    clint_ul_min_mg: float, liver_volume_l: float, fu_inc: float = 1.0,
    protein_mg_g: float = MICROSOMAL_PROTEIN_MG_G,
) -> float:  # fmt: skip
    """Unbound intrinsic clearance of the whole liver, L/h, from an incubation with liver microsomes.

    Args:
        clint_ul_min_mg: In-vitro intrinsic clearance, uL/min per mg microsomal protein, >= 0.
        liver_volume_l: Liver volume, L.
        fu_inc: Fraction unbound in the incubation, in (0, 1].
        protein_mg_g: Microsomal protein per gram of liver, mg/g (see ``microsomal_protein_mg_g`` for other ages).

    Raises:
        InputError: naming the argument, its value and the allowed range.
    """
    check_positive("clint_ul_min_mg", clint_ul_min_mg, "uL/min/mg", or_zero=True)
    check_fraction("fu_inc", fu_inc)
    check_positive("protein_mg_g", protein_mg_g, "mg/g")
    return clint_ul_min_mg / fu_inc * protein_mg_g * _liver_g(liver_volume_l) * _UL_MIN_TO_L_H


def scale_recombinant_clint(
    clint_ul_min_pmol: float, abundance_pmol_mg: float, liver_volume_l: float, fu_inc: float = 1.0,
    isef: float = 1.0, protein_mg_g: float = MICROSOMAL_PROTEIN_MG_G,
) -> float:  # fmt: skip
    """One enzyme's part of the liver's unbound intrinsic clearance, L/h, from the recombinant enzyme.

    Parts of several enzymes add up. Abundances are not tabulated here: they, and the inter-system extrapolation
    factor (ISEF) that goes with an expression system, come from the laboratory or from a published meta-analysis.

    Args:
        clint_ul_min_pmol: In-vitro intrinsic clearance, uL/min per pmol of enzyme, >= 0.
        abundance_pmol_mg: The enzyme in liver microsomes, pmol per mg microsomal protein, >= 0.
        liver_volume_l: Liver volume, L.
        fu_inc: Fraction unbound in the incubation, in (0, 1].
        isef: Activity per pmol in liver over that in the expression system.
        protein_mg_g: Microsomal protein per gram of liver, mg/g.

    Raises:
        InputError: naming the argument, its value and the allowed range.

    Reference: Proctor NJ, Tucker GT, Rostami-Hodjegan A. Xenobiotica 2004;34:151-178.
    """
    check_positive("clint_ul_min_pmol", clint_ul_min_pmol, "uL/min/pmol", or_zero=True)
    check_positive("abundance_pmol_mg", abundance_pmol_mg, "pmol/mg", or_zero=True)
    check_positive("isef", isef)
    return scale_microsome_clint(clint_ul_min_pmol * isef * abundance_pmol_mg, liver_volume_l, fu_inc, protein_mg_g)


def scale_microsome_vmax(
    vmax_pmol_min_mg: float, mw_g_mol: float, liver_volume_l: float, protein_mg_g: float = MICROSOMAL_PROTEIN_MG_G
) -> float:
    """Maximal rate of the whole liver, mg/h, from microsomes: pmol/min per mg protein x mg/g x g liver x g/mol.

    Raises:
        InputError: naming the argument, its value and the allowed range.
    """
    check_positive("vmax_pmol_min_mg", vmax_pmol_min_mg, "pmol/min/mg", or_zero=True)
    check_positive("mw_g_mol", mw_g_mol, "g/mol")
    check_positive("protein_mg_g", protein_mg_g, "mg/g")
    return vmax_pmol_min_mg * protein_mg_g * _liver_g(liver_volume_l) * mw_g_mol * _PMOL_MIN_TO_MG_H_PER_G_MOL


def scale_hepatocyte_vmax(
    vmax_pmol_min_million_cells: float, mw_g_mol: float, liver_volume_l: float,
    million_cells_g: float = HEPATOCELLULARITY_MILLION_CELLS_G,
) -> float:  # fmt: skip
    """Maximal rate of the whole liver, mg/h, from hepatocytes: pmol/min per 10^6 cells x 10^6 cells/g x g x g/mol.

    Raises:
        InputError: naming the argument, its value and the allowed range.
    """
    check_positive("vmax_pmol_min_million_cells", vmax_pmol_min_million_cells, "pmol/min/10^6 cells", or_zero=True)
    check_positive("mw_g_mol", mw_g_mol, "g/mol")
    check_positive("million_cells_g", million_cells_g, "10^6 cells/g")
    per_liver = vmax_pmol_min_million_cells * million_cells_g * _liver_g(liver_volume_l)
    return per_liver * mw_g_mol * _PMOL_MIN_TO_MG_H_PER_G_MOL


def scale_recombinant_vmax(
    vmax_pmol_min_pmol: float, abundance_pmol_mg: float, mw_g_mol: float, liver_volume_l: float, isef: float = 1.0,
    protein_mg_g: float = MICROSOMAL_PROTEIN_MG_G,
) -> float:  # fmt: skip
    """Maximal rate of one enzyme in the whole liver, mg/h, from the recombinant one; see ``scale_recombinant_clint``.

    Raises:
        InputError: naming the argument, its value and the allowed range.
    """
    check_positive("vmax_pmol_min_pmol", vmax_pmol_min_pmol, "pmol/min/pmol", or_zero=True)
    check_positive("abundance_pmol_mg", abundance_pmol_mg, "pmol/mg", or_zero=True)
    check_positive("isef", isef)
    return scale_microsome_vmax(vmax_pmol_min_pmol * isef * abundance_pmol_mg, mw_g_mol, liver_volume_l, protein_mg_g)


def km_unbound_mg_l(km_um: float, mw_g_mol: float, fu_inc: float = 1.0) -> float:
    """Michaelis constant on the unbound concentration, mg/L, from the incubation's Km, umol/L.

    Raises:
        InputError: naming the argument, its value and the allowed range.
    """
    check_positive("km_um", km_um, "umol/L")
    check_positive("mw_g_mol", mw_g_mol, "g/mol")
    check_fraction("fu_inc", fu_inc)
    return km_um * fu_inc * mw_g_mol / 1000

"""Fraction unbound in an incubation, fu,inc, predicted from lipophilicity where it was not measured.

The regressions take log P of bases and log D at pH 7.4 of acids, neutral compounds and (as the authors have none,
our choice) zwitterions. They hold for the range they were made from, about log P/D -1 to 6; Hallifax and Houston's
is a parabola in log P, so log P/D below its lowest point (-0.47) counts as that point, which is no binding to speak of.
"""

from __future__ import annotations

from perfuse.errors import InputError
from perfuse.pk.checks import check_positive
from perfuse.pk.partition import ion_class, log10_total_to_unionised

_PARABOLA_LOWEST = -0.067 / (2 * 0.072)
HEPATOCYTE_VOLUME_RATIO = 0.005
"""Volume of 10^6 hepatocytes per mL of incubation: Kilford et al. 2008."""

MICROSOME_METHODS = ("hallifax-houston", "austin")


def log_p_or_d(logp: float, pka_acid: tuple[float, ...] = (), pka_base: tuple[float, ...] = ()) -> float:
    """log P of a base, log D at pH 7.4 of everything else (ions do not partition)."""
    if ion_class(pka_acid, pka_base) == "base":
        return logp
    return logp - log10_total_to_unionised(pka_acid, pka_base)


def fu_microsomes(
    logp: float, protein_mg_ml: float, pka_acid: tuple[float, ...] = (), pka_base: tuple[float, ...] = (),
    method: str = "hallifax-houston",
) -> float:  # fmt: skip
    """Fraction unbound with liver microsomes.

        austin            1 / (1 + C 10^(0.56 log P/D - 1.41))
        hallifax-houston  1 / (1 + C 10^(0.072 (log P/D)^2 + 0.067 log P/D - 1.126))

    Args:
        logp: log10 octanol:water coefficient of the un-ionised drug.
        protein_mg_ml: Microsomal protein C in the incubation, mg/mL.
        pka_acid, pka_base: pKa values of acidic groups and of the conjugate acids of basic groups.
        method: One of ``MICROSOME_METHODS``.

    Raises:
        InputError: for an unknown method, a protein concentration that is not positive, or a pKa out of range.

    References: Austin RP, Barton P, Cockroft SL, Wenlock MC, Riley RJ. Drug Metab Dispos 2002;30:1497-1503.
    Hallifax D, Houston JB. Drug Metab Dispos 2006;34:724-726.
    """
    check_positive("protein_mg_ml", protein_mg_ml, "mg/mL")
    x = log_p_or_d(logp, pka_acid, pka_base)
    if method == "austin":
        exponent = 0.56 * x - 1.41
    elif method == "hallifax-houston":
        exponent = _parabola(x)
    else:
        raise InputError("method", "is unknown", value=method, allowed=", ".join(MICROSOME_METHODS))
    return 1 / (1 + protein_mg_ml * 10.0**exponent)


def fu_hepatocytes(
    logp: float, million_cells_ml: float = 1.0, pka_acid: tuple[float, ...] = (), pka_base: tuple[float, ...] = ()
) -> float:
    """Fraction unbound with hepatocytes.

        1 / (1 + 125 VR 10^(0.072 (log P/D)^2 + 0.067 log P/D - 1.126)),   VR = 0.005 x million cells per mL

    Args:
        logp: log10 octanol:water coefficient of the un-ionised drug.
        million_cells_ml: Cells in the incubation, 10^6/mL.
        pka_acid, pka_base: pKa values of acidic groups and of the conjugate acids of basic groups.

    Raises:
        InputError: for a cell density that is not positive, or a pKa out of range.

    Reference: Kilford PJ, Gertz M, Houston JB, Galetin A. Drug Metab Dispos 2008;36:1194-1197.
    """
    check_positive("million_cells_ml", million_cells_ml, "10^6 cells/mL")
    exponent = _parabola(log_p_or_d(logp, pka_acid, pka_base))
    return 1 / (1 + 125 * HEPATOCYTE_VOLUME_RATIO * million_cells_ml * 10.0**exponent)


def _parabola(log_p_d: float) -> float:
    x = max(log_p_d, _PARABOLA_LOWEST)
    return 0.072 * x**2 + 0.067 * x - 1.126

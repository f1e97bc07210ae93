"""Tissue:plasma partition coefficients from lipid and water alone: Poulin & Theil, and Berezhkovskiy.

Limits: both use the octanol:water coefficient of the un-ionised drug in every tissue but adipose, so they overpredict
strongly ionised, albumin-bound acids and know nothing of bases that bind to acidic phospholipids.
"""

from __future__ import annotations

from collections.abc import Mapping

from perfuse.pk.composition import (
    HUMAN_COMPOSITION,
    PLASMA_COMPOSITION,
    RAT_COMPOSITION,
    RAT_PLASMA_COMPOSITION,
    Composition,
)
from perfuse.pk.ionisation import check_number, log10_total_to_unionised
from perfuse.pk.partition_inputs import PartitionInputs


def fraction_unbound_tissue(fup: float) -> float:
    """Fraction unbound in tissue, fut = 1 / (1 + 0.5 (1 - fup) / fup): half of plasma's binding (Poulin & Theil 2002).

    Raises:
        InputError: if fup is not in (0, 1].
    """
    check_number("fup", fup, 0.0, 1.0, open_low=True)
    return 1 / (1 + 0.5 * (1 - fup) / fup)


def _oil_water(drug: PartitionInputs, tissue: str) -> float:
    """Lipid:water coefficient: octanol (un-ionised drug); for adipose vegetable oil, all species at pH 7.4.

    log P(vegetable oil:water) = 1.115 log P - 1.35: Leo A, Hansch C, Elkins D. Chem Rev 1971;71:525-616.
    """
    if tissue != "adipose":
        return 10.0**drug.logp
    return 10.0 ** (1.115 * drug.logp - 1.35 - log10_total_to_unionised(drug.pka_acid, drug.pka_base))


def _tables(drug: PartitionInputs) -> tuple[Mapping[str, Composition], Composition]:
    """Tissues and plasma of the drug's species."""
    if drug.species == "rat":
        return RAT_COMPOSITION, RAT_PLASMA_COMPOSITION
    return HUMAN_COMPOSITION, PLASMA_COMPOSITION


def _lipid_and_water(composition: Composition) -> tuple[float, float]:
    """Lipid-like and water-like fractions: phospholipid behaves as 30 % neutral lipid and 70 % water."""
    lipid = composition.neutral_lipid + 0.3 * composition.phospholipid
    return lipid, composition.water + 0.7 * composition.phospholipid


def kp_poulin_theil(drug: PartitionInputs) -> dict[str, float]:
    """Kp of every tissue by Poulin & Theil.

        Kp = [P (Vnl_t + 0.3 Vph_t) + Vw_t + 0.7 Vph_t] / [the same of plasma] * fup / fut

    P is octanol:water, fut see ``fraction_unbound_tissue``; for adipose P is vegetable oil:water at pH 7.4 and fut = 1.

    Reference: Poulin P, Theil FP. J Pharm Sci 2002;91:129-156.
    """
    out = {}
    tissues, plasma = _tables(drug)
    plasma_lipid, plasma_water = _lipid_and_water(plasma)
    for tissue, composition in tissues.items():
        p = _oil_water(drug, tissue)
        lipid, water = _lipid_and_water(composition)
        fut = 1.0 if tissue == "adipose" else fraction_unbound_tissue(drug.fup)
        out[tissue] = (p * lipid + water) / (p * plasma_lipid + plasma_water) * drug.fup / fut
    return out


def kp_berezhkovskiy(drug: PartitionInputs) -> dict[str, float]:
    """Kp of every tissue by Berezhkovskiy: protein binding acts on the water phase only.

        Kp = [P (Vnl_t + 0.3 Vph_t) + Vw_t / fut + 0.7 Vph_t] / [P (Vnl_p + 0.3 Vph_p) + Vw_p / fup + 0.7 Vph_p]

    P as in ``kp_poulin_theil``; fut applies to adipose too, as in the implementation that accompanies
    Utsey K, Gastonguay MS, Russell S, et al. Drug Metab Dispos 2020;48:903-916.

    Reference: Berezhkovskiy LM. J Pharm Sci 2004;93:1628-1640.
    """
    out = {}
    fut = fraction_unbound_tissue(drug.fup)
    tissues, plasma = _tables(drug)
    plasma_lipid, _ = _lipid_and_water(plasma)
    bound_plasma = plasma.water / drug.fup + 0.7 * plasma.phospholipid
    for tissue, composition in tissues.items():
        p = _oil_water(drug, tissue)
        lipid, _ = _lipid_and_water(composition)
        bound = composition.water / fut + 0.7 * composition.phospholipid
        out[tissue] = (p * lipid + bound) / (p * plasma_lipid + bound_plasma)
    return out

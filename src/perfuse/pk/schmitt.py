"""Tissue:plasma partition coefficients by Schmitt, and PK-Sim's standard method.

Schmitt: a tissue is interstitium and cells; cells are water, lipids and protein at their own pH.

    Kpu = f_int (f_w,int + r (1/fup - f_w,pl)) + f_cell kappa (f_w + K_NL f_NL + K_NP f_NP + K_AP f_AP + K_P f_P)

kappa is the ratio of un-ionised fractions in plasma and cells; K_NL the distribution coefficient of octanol at the
cells' pH with ionised drug at a thousandth; K_NP the membrane affinity, log K_NP = 1.294 + 0.304 log P; K_AP = K_NP
(f_neutral + 20 f_cation + 0.05 f_anion); K_P = 0.163 + 0.0221 K_NP; r = 0.37 interstitial:plasma protein.

PK-Sim standard: Kpu = f_water + K f_lipid + K_P f_protein with K = 10^log P and K_P = 5 (0.81 + 0.11 K) / 24.92.

Kp = Kpu fup for both.

References: Schmitt W. Toxicol In Vitro 2008;22:457-467; membrane affinity: Yun YE, Edginton AN. Xenobiotica
2013;43:839-852; Willmann S, Lippert J, Schmitt W. Expert Opin Drug Metab Toxicol 2005;1:159-168. The forms of K_AP, K_P
and of PK-Sim's K_P as the open implementations of these methods have them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from perfuse.pk.composition import (
    HUMAN_PROTEIN_COMPOSITION,
    INTERSTITIAL_TO_PLASMA_PROTEIN,
    INTERSTITIAL_WATER,
    PLASMA_WATER,
    RAT_PROTEIN_COMPOSITION,
    ProteinComposition,
)
from perfuse.pk.ionisation import fraction_unionised, log10_species
from perfuse.pk.partition_inputs import PartitionInputs

IONISED_LIPOPHILICITY = 1e-3
CATION_AFFINITY, ANION_AFFINITY = 20.0, 0.05
PLASMA_PROTEIN_FRACTION = 0.07


def membrane_affinity(logp: float) -> float:
    """Phospholipid:water partition coefficient from log P (Yun & Edginton 2013)."""
    return 10.0 ** (1.294 + 0.304 * logp)


def protein_affinity(membrane: float) -> float:
    """Protein:water partition coefficient (Schmitt 2008)."""
    return 0.163 + 0.0221 * membrane


def charge_fractions(drug: PartitionInputs, ph: float) -> tuple[float, float, float]:
    """Fractions un-ionised (or zwitterionic), cationic and anionic at a pH."""
    rows = [np.asarray(values or (np.nan,), dtype=np.float64) for values in (drug.pka_acid, drug.pka_base)]
    acid, base = (10.0 ** float(value) for value in log10_species(rows[0], rows[1], ph))
    anion, cation = (acid - 1) / (acid * base), (base - 1) / (acid * base)
    return 1 - anion - cation, cation, anion


def _composition(drug: PartitionInputs) -> Mapping[str, ProteinComposition]:
    return RAT_PROTEIN_COMPOSITION if drug.species == "rat" else HUMAN_PROTEIN_COMPOSITION


def _with_pancreas(kp: dict[str, float]) -> dict[str, float]:
    return kp | {"pancreas": (kp["gut"] + kp["spleen"]) / 2}


def kp_schmitt(drug: PartitionInputs) -> dict[str, float]:
    """Kp of every tissue by Schmitt (see the module)."""
    membrane = membrane_affinity(drug.logp)
    unionised_plasma = fraction_unionised(drug.pka_acid, drug.pka_base)
    plasma_protein = 1 / drug.fup - PLASMA_WATER
    out = {}
    for tissue, c in _composition(drug).items():
        unionised = fraction_unionised(drug.pka_acid, drug.pka_base, c.ph)
        neutral, cation, anion = charge_fractions(drug, c.ph)
        lipid = 10.0**drug.logp * (unionised + IONISED_LIPOPHILICITY * (1 - unionised))
        acidic = membrane * (neutral + CATION_AFFINITY * cation + ANION_AFFINITY * anion)
        cells = (
            c.water
            + c.lipid * (lipid * c.neutral_lipid + membrane * c.neutral_phospholipid + acidic * c.acidic_phospholipid)
            + c.protein * protein_affinity(membrane)
        )
        interstitium = INTERSTITIAL_WATER + INTERSTITIAL_TO_PLASMA_PROTEIN * max(plasma_protein, 0.0)
        kpu = c.interstitium * interstitium + c.cells * unionised_plasma / unionised * cells
        out[tissue] = kpu * drug.fup
    return _with_pancreas(out)


def kp_pk_sim_standard(drug: PartitionInputs) -> dict[str, float]:
    """Kp of every tissue by PK-Sim's standard method (see the module); fractions of the whole tissue."""
    k = 10.0**drug.logp
    k_protein = 5 * (0.81 + 0.11 * k) / 24.92
    interstitial_protein = INTERSTITIAL_TO_PLASMA_PROTEIN * PLASMA_PROTEIN_FRACTION
    out = {}
    for tissue, c in _composition(drug).items():
        water = c.cells * c.water + c.interstitium * INTERSTITIAL_WATER
        lipid = c.cells * c.lipid
        protein = c.cells * c.protein + c.interstitium * interstitial_protein
        out[tissue] = (water + k * lipid + k_protein * protein) * drug.fup
    return _with_pancreas(out)

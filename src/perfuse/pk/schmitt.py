"""Tissue:plasma partition coefficients by Schmitt, and PK-Sim's standard method.

Schmitt: a tissue is interstitium and cells; cells are water, lipids and protein at their own pH.

    Kpu = f_int (f_w,int + r (1/fup - f_w,pl)) + f_cell kappa (f_w + K_NL f_NL + K_NP f_NP + K_AP f_AP + K_P f_P)

K_NL = 10^log P (u + 0.001 i), u the share without net charge (un-ionised or zwitterionic), i the ionised rest;
kappa the ratio of (u + 0.001 i) in plasma and in the cells; K_NP the membrane affinity, log K_NP = 1.294 +
0.304 log P; K_AP = K_NP (u + 20 cations + 0.05 anions); K_P = 0.163 + 0.0221 K_NP; r = 0.37 the interstitial:plasma
ratio of protein.

PK-Sim standard: Kpu = f_water + K f_lipid + K_P f_protein with K = 10^log P and K_P = 5 (0.81 + 0.11 K) / 24.92.
K is meant to be the membrane affinity; like PK-Sim it takes log P where that was not measured. Charge plays no part.

Kp = Kpu fup for both.

References: Schmitt W. Toxicol In Vitro 2008;22:457-467; membrane affinity: Yun YE, Edginton AN. Xenobiotica
2013;43:839-852; Willmann S, Lippert J, Schmitt W. Expert Opin Drug Metab Toxicol 2005;1:159-168. Kappa and K_AP in this
general form are those of the R package httk, PK-Sim's K_P that of the code of Utsey K, Gastonguay MS, Russell S, et al.
Drug Metab Dispos 2020;48:903-916.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from perfuse.pk.composition import (
    HUMAN_PROTEIN_COMPOSITION,
    INTERSTITIAL_TO_PLASMA_PROTEIN,
    INTERSTITIAL_WATER,
    PK_SIM_COMPOSITION,
    PLASMA_WATER,
    RAT_PROTEIN_COMPOSITION,
    ProteinComposition,
)
from perfuse.pk.ionisation import PLASMA_PH, log10_species
from perfuse.pk.partition_inputs import PartitionInputs

IONISED_LIPOPHILICITY = 1e-3
CATION_AFFINITY, ANION_AFFINITY = 20.0, 0.05


def membrane_affinity(logp: float) -> float:
    """Phospholipid:water partition coefficient from log P (Yun & Edginton 2013)."""
    return 10.0 ** (1.294 + 0.304 * logp)


def protein_affinity(membrane: float) -> float:
    """Protein:water partition coefficient (Schmitt 2008)."""
    return 0.163 + 0.0221 * membrane


@dataclass(frozen=True)
class ChargeFractions:
    """Shares of a drug by its charge: without net charge (un-ionised or zwitterionic), cationic, anionic."""

    uncharged: float
    cationic: float
    anionic: float

    @property
    def lipophilic(self) -> float:
        """Lipophilicity relative to that of the un-ionised drug: an ion's is a thousandth."""
        return self.uncharged + IONISED_LIPOPHILICITY * (self.cationic + self.anionic)


def charge_fractions(drug: PartitionInputs, ph: float) -> ChargeFractions:
    """What charges the drug carries at a pH."""
    rows = [np.asarray(values or (np.nan,), dtype=np.float64) for values in (drug.pka_acid, drug.pka_base)]
    acid, base = (10.0 ** float(value) for value in log10_species(rows[0], rows[1], ph))
    total = acid * base
    return ChargeFractions((1 + (acid - 1) * (base - 1)) / total, (base - 1) / total, (acid - 1) / total)


def _composition(drug: PartitionInputs) -> Mapping[str, ProteinComposition]:
    return RAT_PROTEIN_COMPOSITION if drug.species == "rat" else HUMAN_PROTEIN_COMPOSITION


def kp_schmitt(drug: PartitionInputs) -> dict[str, float]:
    """Kp of every tissue by Schmitt (see the module)."""
    membrane = membrane_affinity(drug.logp)
    in_plasma = charge_fractions(drug, PLASMA_PH)
    interstitium = INTERSTITIAL_WATER + INTERSTITIAL_TO_PLASMA_PROTEIN * max(1 / drug.fup - PLASMA_WATER, 0.0)
    out = {}
    for tissue, c in _composition(drug).items():
        charge = charge_fractions(drug, c.ph)
        acidic = membrane * (
            charge.uncharged + CATION_AFFINITY * charge.cationic + ANION_AFFINITY * charge.anionic
        )  # fmt: skip
        neutral_lipid = 10.0**drug.logp * charge.lipophilic
        lipid = c.neutral_lipid * neutral_lipid + c.neutral_phospholipid * membrane + c.acidic_phospholipid * acidic
        cells = c.water + c.lipid * lipid + c.protein * protein_affinity(membrane)
        kappa = in_plasma.lipophilic / charge.lipophilic
        whole = c.cells + c.interstitium  # gut's sum to 0.996
        out[tissue] = (c.interstitium * interstitium + c.cells * kappa * cells) / whole * drug.fup
    return out | {"pancreas": (out["gut"] + out["spleen"]) / 2}


def kp_pk_sim_standard(drug: PartitionInputs) -> dict[str, float]:
    """Kp of every tissue by PK-Sim's standard method (see the module)."""
    k = 10.0**drug.logp
    k_protein = 5 * (0.81 + 0.11 * k) / 24.92
    return {
        tissue: (c.water + k * c.lipid + k_protein * c.protein) * drug.fup for tissue, c in PK_SIM_COMPOSITION.items()
    }

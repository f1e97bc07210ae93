"""Tissue:plasma partition coefficients by Rodgers and Rowland, for one drug or many at once.

    Kpu = f_EW + (1 + X) / (1 + Y) f_IW + (P f_NL + (0.3 P + 0.7) f_NP) / (1 + Y) + binding,    Kp = Kpu fup

with X, Y and Z the ionised relative to the un-ionised drug in intracellular water (pH 7.0), plasma (7.4) and red cells
(7.22), P octanol:water (vegetable oil:water in adipose). Binding is

- for drugs with a basic pKa of at least 7: to acidic phospholipids, Ka_AP [AP] X / (1 + Y), with Ka_AP from the drug's
  uptake into red cells, Kpu_BC = (B:P - 1 + Hct) / (Hct fup):
  Ka_AP = (Kpu_BC - (1 + Z) / (1 + Y) f_IW,BC - (P f_NL,BC + (0.3 P + 0.7) f_NP,BC) / (1 + Y)) (1 + Y) / ([AP]_BC Z);
- for the others: to albumin, and for neutrals (at most 1 % ionised) to lipoprotein,
  (1 / fup - 1 - (P f_NL,P + (0.3 P + 0.7) f_NP,P) / (1 + Y)) x tissue:plasma ratio of that protein.

Both are kept at 0 where they would come out negative: B:P, or fup, then leaves nothing to bind.

As published, X of a drug with acidic and basic groups is the sum of both, 10^(pKa_base - pH) + 10^(pH - pKa_acid): the
drug that carries both charges counts as un-ionised. Strong bases have the tissue water of the 2005 paper; all others,
zwitterions included, the water of the 2006 paper, which is corrected for the blood that tissues hold.

References: Rodgers T, Leahy D, Rowland M. J Pharm Sci 2005;94:1259-1276; Rodgers T, Rowland M. J Pharm Sci
2006;95:1238-1257.

Axis legend: C drugs, G groups (padded with NaN), O the 14 reported organs, K tissues of the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perfuse.pk.blood_binding import HAEMATOCRIT
from perfuse.pk.composition import (
    CELLULAR_COMPOSITION,
    INTRACELLULAR_PH,
    PLASMA_NEUTRAL_LIPID,
    PLASMA_PHOSPHOLIPID,
    RED_CELL_ACIDIC_PHOSPHOLIPID_MG_G,
    RED_CELL_NEUTRAL_LIPID,
    RED_CELL_PH,
    RED_CELL_PHOSPHOLIPID,
    RED_CELL_WATER,
)
from perfuse.pk.ionisation import PLASMA_PH, log10_species
from perfuse.pk.partition_inputs import PartitionInputs, Species
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, human_reference, rat_reference

STRONG_BASE_PKA = 7.0
NEUTRAL_BELOW = 1.01
"""Ratio of all to un-ionised drug in plasma up to which a drug counts as neutral (1 % ionised)."""
DEFAULT_BP_RATIO = 1.0
"""B:P where none was measured. Of strong bases it says how well they bind to acidic phospholipids; 1 gives better Kp of
rats than the ratio that ``pk.blood_binding`` predicts: that is nearer to measured B:P, but binds too little of the drug
(docs/partition.md)."""
TISSUES = tuple(CELLULAR_COMPOSITION)
_ADIPOSE = TISSUES.index("adipose")


def vegetable_oil_log_p(logp: np.ndarray | float) -> np.ndarray | float:
    """log P(vegetable oil:water) = 1.115 log P - 1.35: Leo A, Hansch C, Elkins D. Chem Rev 1971;71:525-616."""
    return 1.115 * logp - 1.35


def _total(pka_acid: np.ndarray, pka_base: np.ndarray, ph: float) -> np.ndarray:
    """1 + X of the module, ``(C, 1)``."""
    acid, base = log10_species(pka_acid, pka_base, ph)
    return (10.0**acid + (10.0**base - 1))[:, None]


def _lipid(p: np.ndarray, neutral: np.ndarray | float, phospholipid: np.ndarray | float) -> np.ndarray:
    return p * neutral + (0.3 * p + 0.7) * phospholipid


def _column(name: str) -> np.ndarray:
    return np.asarray([getattr(row, name) for row in CELLULAR_COMPOSITION.values()])


def tissue_volumes_l(tissues: Sequence[str], species: Species) -> np.ndarray:
    """Volumes, L, of tissues in the reference man or rat: the weights of ``other``."""
    body = rat_reference() if species == "rat" else human_reference()
    return body.volume_l[[ORGAN_INDEX[tissue] for tissue in tissues]]


def _phospholipid_affinity(
    octanol: np.ndarray, y: np.ndarray, z: np.ndarray, fup: np.ndarray, bp_ratio: np.ndarray, haematocrit: float
) -> np.ndarray:
    """Ka_AP of the module, at least 0, ``(C, 1)``; y and z are 1 + Y and 1 + Z."""
    in_red_cells = (haematocrit - 1 + bp_ratio) / (haematocrit * fup)
    free = z / y * RED_CELL_WATER + _lipid(octanol, RED_CELL_NEUTRAL_LIPID, RED_CELL_PHOSPHOLIPID) / y
    ionised = np.where(z > 1, z - 1, 1.0)  # without a base the affinity is not used, and must not divide by 0
    return np.maximum((in_red_cells - free) * y / (RED_CELL_ACIDIC_PHOSPHOLIPID_MG_G * ionised), 0)


def tissue_kp(
    logp: np.ndarray, pka_acid: np.ndarray, pka_base: np.ndarray, fup: np.ndarray, bp_ratio: np.ndarray,
    haematocrit: float = HAEMATOCRIT,
) -> np.ndarray:  # fmt: skip
    """Kp of every tissue in ``TISSUES``, ``(C, K)``; arguments as ``rodgers_rowland_kp``."""
    bp = np.where(np.isnan(bp_ratio), DEFAULT_BP_RATIO, bp_ratio)[:, None]
    x, y, z = (_total(pka_acid, pka_base, ph) for ph in (INTRACELLULAR_PH, PLASMA_PH, RED_CELL_PH))
    fup, octanol = fup[:, None], 10.0 ** logp[:, None]
    strong = (pka_base >= STRONG_BASE_PKA).any(1, keepdims=True)
    base_only = strong & ~(pka_acid < PLASMA_PH).any(1, keepdims=True)

    p = np.tile(octanol, (1, len(TISSUES)))
    p[:, _ADIPOSE] = 10.0 ** vegetable_oil_log_p(logp)
    intracellular = np.where(base_only, _column("intracellular_water"), _column("bloodless_intracellular_water"))
    water = _column("extracellular_water") + x / y * intracellular
    lipid = _lipid(p, _column("neutral_lipid"), _column("neutral_phospholipid")) / y
    affinity = _phospholipid_affinity(octanol, y, z, fup, bp, haematocrit)
    to_phospholipid = affinity * _column("acidic_phospholipid_mg_g") * (x - 1) / y
    bound = np.maximum(1 / fup - 1 - _lipid(octanol, PLASMA_NEUTRAL_LIPID, PLASMA_PHOSPHOLIPID) / y, 0)
    to_protein = bound * np.where(y <= NEUTRAL_BELOW, _column("lipoprotein_ratio"), _column("albumin_ratio"))
    return (water + lipid + np.where(strong, to_phospholipid, to_protein)) * fup


def rodgers_rowland_kp(
    logp: np.ndarray, pka_acid: np.ndarray, pka_base: np.ndarray, fup: np.ndarray, bp_ratio: np.ndarray,
    species: Species = "human", haematocrit: float = HAEMATOCRIT,
) -> np.ndarray:  # fmt: skip
    """Kp of the 14 organs for many drugs, ``(C, O)``; blood 1, ``other`` the volume-weighted mean of the tissues.

    Args:
        logp, fup: ``(C,)``.
        pka_acid, pka_base: ``(C, G)``, NaN where there is no group.
        bp_ratio: ``(C,)``; NaN where it was not measured: then ``DEFAULT_BP_RATIO``.
        species: Whose volumes weigh ``other``; the composition is the rat's for both.
        haematocrit: Of the blood that ``bp_ratio`` is of.
    """
    kp = tissue_kp(logp, pka_acid, pka_base, fup, bp_ratio, haematocrit)
    weight = tissue_volumes_l(TISSUES, species)
    out = np.ones((len(logp), len(ORGANS)))
    out[:, [ORGAN_INDEX[tissue] for tissue in TISSUES]] = kp
    out[:, ORGAN_INDEX["other"]] = kp @ weight / weight.sum()
    return out


def kp_rodgers_rowland(drug: PartitionInputs) -> dict[str, float]:
    """Kp of every tissue of one drug (see the module)."""
    acid, base = (np.asarray([values or (np.nan,)], dtype=np.float64) for values in (drug.pka_acid, drug.pka_base))
    bp_ratio = DEFAULT_BP_RATIO if drug.bp_ratio is None else drug.bp_ratio
    logp, fup, ratio = (np.asarray([value], dtype=np.float64) for value in (drug.logp, drug.fup, bp_ratio))
    kp = tissue_kp(logp, acid, base, fup, ratio, drug.haematocrit)[0]
    return dict(zip(TISSUES, kp.tolist(), strict=True))

"""Tissue:plasma partition coefficients by Rodgers and Rowland, for one drug or many at once.

    Kpu = f_EW + (1 + X) / (1 + Y) f_IW + (P f_NL + (0.3 P + 0.7) f_NP) / (1 + Y) + binding,    Kp = Kpu fup

with 1 + X, 1 + Y, 1 + Z the ratio of all to un-ionised drug in intracellular water (pH 7.0), plasma (7.4) and red cells
(7.22), P octanol:water (vegetable oil:water in adipose). Binding is

- for bases with a pKa of at least 7 (zwitterions included): to acidic phospholipids, Ka_AP [AP] X / (1 + Y), with Ka_AP
  from the drug's uptake into red cells, Kpu_BC = (B:P - 1 + Hct) / (Hct fup);
- for acids, weaker bases and other zwitterions: to albumin, and for neutrals (less than 1 % ionised) to lipoprotein,
  (1 / fup - 1 - (P f_NL,P + (0.3 P + 0.7) f_NP,P) / (1 + Y)) x tissue:plasma ratio of that protein.

Both binding constants are kept at 0 where they would come out negative: B:P, or fup, then leaves nothing to bind.

References: Rodgers T, Leahy D, Rowland M. J Pharm Sci 2005;94:1259-1276; Rodgers T, Rowland M. J Pharm Sci
2006;95:1238-1257.

Axis legend: C drugs, O the 14 reported organs, K tissues of the table.
"""

from __future__ import annotations

import numpy as np

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
from perfuse.pk.partition_inputs import PartitionInputs
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, human_reference

STRONG_BASE_PKA = 7.0
NEUTRAL_BELOW = 1.01
"""Ratio of all to un-ionised drug in plasma up to which a drug counts as neutral (1 % ionised)."""
HAEMATOCRIT = 0.45
TISSUES = tuple(CELLULAR_COMPOSITION)
_ADIPOSE = TISSUES.index("adipose")


def vegetable_oil_log_p(logp: np.ndarray | float) -> np.ndarray | float:
    """log P(vegetable oil:water) = 1.115 log P - 1.35: Leo A, Hansch C, Elkins D. Chem Rev 1971;71:525-616."""
    return 1.115 * logp - 1.35


def _total_to_unionised(pka_acid: np.ndarray, pka_base: np.ndarray, ph: float) -> np.ndarray:
    acid, base = log10_species(pka_acid, pka_base, ph)
    return 10.0 ** (acid + base)


def _lipid(p: np.ndarray, neutral: np.ndarray | float, phospholipid: np.ndarray | float) -> np.ndarray:
    return p * neutral + (0.3 * p + 0.7) * phospholipid


def tissue_kp(
    logp: np.ndarray, pka_acid: np.ndarray, pka_base: np.ndarray, fup: np.ndarray, bp_ratio: np.ndarray
) -> np.ndarray:
    """Kp of every tissue in ``TISSUES``, ``(C, K)``; arguments as ``rodgers_rowland_kp``."""
    table = list(CELLULAR_COMPOSITION.values())
    column = lambda name: np.asarray([getattr(row, name) for row in table])  # noqa: E731
    phs = (INTRACELLULAR_PH, PLASMA_PH, RED_CELL_PH)
    x, y, z = (_total_to_unionised(pka_acid, pka_base, ph)[:, None] for ph in phs)
    p = np.tile(10.0 ** logp[:, None], (1, len(table)))
    p[:, _ADIPOSE] = 10.0 ** vegetable_oil_log_p(logp)
    water = column("extracellular_water") + x / y * column("intracellular_water")
    lipid = _lipid(p, column("neutral_lipid"), column("neutral_phospholipid")) / y

    octanol = 10.0 ** logp[:, None]
    in_red_cells = (HAEMATOCRIT - 1 + bp_ratio[:, None]) / (HAEMATOCRIT * fup[:, None])
    free_in_cells = z / y * RED_CELL_WATER + _lipid(octanol, RED_CELL_NEUTRAL_LIPID, RED_CELL_PHOSPHOLIPID) / y
    strong = (pka_base >= STRONG_BASE_PKA).any(1, keepdims=True)  # NaN compares as False
    cations = np.where(strong, z - 1, 1.0)  # none to divide by where there is no base
    affinity = np.maximum((in_red_cells - free_in_cells) * y / (RED_CELL_ACIDIC_PHOSPHOLIPID_MG_G * cations), 0)
    to_phospholipid = affinity * column("acidic_phospholipid_mg_g") * (x - 1) / y

    bound = 1 / fup[:, None] - 1 - _lipid(octanol, PLASMA_NEUTRAL_LIPID, PLASMA_PHOSPHOLIPID) / y
    ratio = np.where(y <= NEUTRAL_BELOW, column("lipoprotein_ratio"), column("albumin_ratio"))
    kpu = water + lipid + np.where(strong, to_phospholipid, np.maximum(bound, 0) * ratio)
    return kpu * fup[:, None]


def rodgers_rowland_kp(
    logp: np.ndarray, pka_acid: np.ndarray, pka_base: np.ndarray, fup: np.ndarray, bp_ratio: np.ndarray
) -> np.ndarray:
    """Kp of the 14 organs for many drugs, ``(C, O)``; blood 1, ``other`` the volume-weighted mean of the tissues.

    Args:
        logp, fup, bp_ratio: ``(C,)``.
        pka_acid, pka_base: ``(C, G)``, NaN where there is no group.
    """
    kp = tissue_kp(logp, pka_acid, pka_base, fup, bp_ratio)
    volume_l = human_reference().volume_l
    weight = volume_l[[ORGAN_INDEX[tissue] for tissue in TISSUES]]
    out = np.ones((len(logp), len(ORGANS)))
    out[:, [ORGAN_INDEX[tissue] for tissue in TISSUES]] = kp
    out[:, ORGAN_INDEX["other"]] = kp @ weight / weight.sum()
    return out


def kp_rodgers_rowland(drug: PartitionInputs) -> dict[str, float]:
    """Kp of every tissue of one drug (see the module)."""
    acid, base = (np.asarray([values or (np.nan,)], dtype=np.float64) for values in (drug.pka_acid, drug.pka_base))
    logp, fup, bp_ratio = (np.asarray([value]) for value in (drug.logp, drug.fup, drug.bp_ratio))
    kp = tissue_kp(logp, acid, base, fup, bp_ratio)[0]
    return dict(zip(TISSUES, kp.tolist(), strict=True))

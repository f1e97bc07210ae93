"""What tissues, plasma and red cells are made of: the tables behind the partition coefficient methods.

Each method keeps the table it was published with; mixing them would judge something else than the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Composition:
    """Volume fractions of wet tissue (or of plasma): water, neutral lipid, phospholipid."""

    water: float
    neutral_lipid: float
    phospholipid: float


PLASMA_COMPOSITION = Composition(0.945, 0.0035, 0.00225)
HUMAN_COMPOSITION: Mapping[str, Composition] = {
    "liver": Composition(0.751, 0.0348, 0.0252),
    "kidney": Composition(0.783, 0.0207, 0.0162),
    "brain": Composition(0.77, 0.051, 0.0565),
    "heart": Composition(0.758, 0.0115, 0.0166),
    "lung": Composition(0.811, 0.003, 0.009),
    "muscle": Composition(0.76, 0.0238, 0.0072),
    "adipose": Composition(0.18, 0.79, 0.002),
    "gut": Composition(0.718, 0.0487, 0.0163),
    "skin": Composition(0.718, 0.0284, 0.0111),
    "bone": Composition(0.439, 0.074, 0.0011),
    "spleen": Composition(0.788, 0.0201, 0.0198),
    "pancreas": Composition(0.784, 0.0403, 0.01067),
}
RAT_PLASMA_COMPOSITION = Composition(0.96, 0.00147, 0.00083)
RAT_COMPOSITION: Mapping[str, Composition] = {
    "liver": Composition(0.705, 0.0138, 0.0303),
    "kidney": Composition(0.771, 0.0123, 0.0281),
    "brain": Composition(0.788, 0.0392, 0.0533),
    "heart": Composition(0.779, 0.014, 0.0118),
    "lung": Composition(0.79, 0.0219, 0.014),
    "muscle": Composition(0.756, 0.01, 0.009),
    "adipose": Composition(0.12, 0.853, 0.002),
    "gut": Composition(0.749, 0.0292, 0.0138),
    "skin": Composition(0.651, 0.0239, 0.018),
    "bone": Composition(0.446, 0.0273, 0.0027),
    "spleen": Composition(0.771, 0.0077, 0.0136),
    "pancreas": Composition(0.784, 0.0403, 0.01067),
}
"""Man, rat and their plasma: Poulin P, Theil FP. J Pharm Sci 2002;91:129-156. The rat's as they are tabulated with the
code of Utsey K, Gastonguay MS, Russell S, et al. Drug Metab Dispos 2020;48:903-916.

Pancreas is in neither; it is the rat's of Rodgers T, Leahy D, Rowland M. J Pharm Sci 2005;94:1259-1276 and
Rodgers T, Rowland M. J Pharm Sci 2006;95:1238-1257: water 0.120 (extracellular) + 0.664 (intracellular), neutral
lipid 0.0403, neutral phospholipid 0.0090 plus acidic phospholipid 1.67 mg/g.
"""


@dataclass(frozen=True)
class CellularComposition:
    """Rodgers and Rowland's composition of a tissue.

    Attributes:
        extracellular_water, intracellular_water, neutral_lipid, neutral_phospholipid: Volume fractions of wet tissue.
        bloodless_water: All water of the tissue without its residual blood.
        acidic_phospholipid_mg_g: mg/g tissue.
        albumin_ratio, lipoprotein_ratio: Tissue:plasma concentration ratios of albumin and of lipoprotein.
    """

    extracellular_water: float
    intracellular_water: float
    bloodless_water: float
    neutral_lipid: float
    neutral_phospholipid: float
    acidic_phospholipid_mg_g: float
    albumin_ratio: float
    lipoprotein_ratio: float

    @property
    def bloodless_intracellular_water(self) -> float:
        """Intracellular water of the tissue without its residual blood: the rest beside extracellular water."""
        return self.bloodless_water - self.extracellular_water


CELLULAR_COMPOSITION: Mapping[str, CellularComposition] = {
    "liver": CellularComposition(0.161, 0.573, 0.642, 0.0135, 0.0238, 4.56, 0.086, 0.161),
    "kidney": CellularComposition(0.273, 0.483, 0.672, 0.0121, 0.0240, 5.03, 0.130, 0.137),
    "brain": CellularComposition(0.162, 0.620, 0.753, 0.0391, 0.0015, 0.40, 0.048, 0.041),
    "heart": CellularComposition(0.320, 0.456, 0.568, 0.0135, 0.0106, 2.25, 0.157, 0.160),
    "lung": CellularComposition(0.336, 0.446, 0.574, 0.0215, 0.0123, 3.91, 0.212, 0.168),
    "muscle": CellularComposition(0.118, 0.630, 0.726, 0.0100, 0.0072, 1.53, 0.064, 0.059),
    "adipose": CellularComposition(0.135, 0.017, 0.144, 0.8530, 0.0016, 0.40, 0.049, 0.068),
    "gut": CellularComposition(0.282, 0.475, 0.738, 0.0375, 0.0124, 2.41, 0.158, 0.141),
    "skin": CellularComposition(0.382, 0.291, 0.658, 0.0603, 0.0044, 1.32, 0.277, 0.096),
    "bone": CellularComposition(0.100, 0.346, 0.417, 0.0174, 0.0016, 0.67, 0.100, 0.050),
    "spleen": CellularComposition(0.207, 0.579, 0.562, 0.0071, 0.0107, 3.18, 0.097, 0.207),
    "pancreas": CellularComposition(0.120, 0.664, 0.784, 0.0403, 0.0090, 1.67, 0.060, 0.060),
}
"""Rat tissues, which later users of the method take for man as well. Extra- and intracellular water and acidic
phospholipids: Rodgers T, Leahy D, Rowland M. J Pharm Sci 2005;94:1259-1276. Bloodless water, lipids, albumin and
lipoprotein ratios: Rodgers T, Rowland M. J Pharm Sci 2006;95:1238-1257 (no bloodless water of the pancreas was found:
it keeps the 2005 figure). Seen not in the papers but in open implementations that tabulate them with that source; of
what the papers print with them, Kpu that they predicted are reproduced (tests/pk/test_rodgers_rowland.py)."""

RED_CELL_WATER, RED_CELL_NEUTRAL_LIPID, RED_CELL_PHOSPHOLIPID = 0.603, 0.0017, 0.0029
RED_CELL_ACIDIC_PHOSPHOLIPID_MG_G = 0.5
RED_CELL_PH = 7.22
PLASMA_NEUTRAL_LIPID, PLASMA_PHOSPHOLIPID = 0.0023, 0.0013
INTRACELLULAR_PH = 7.0
"""Red cells, plasma lipids and intracellular pH of the same method (same sources)."""


@dataclass(frozen=True)
class ProteinComposition:
    """Schmitt's composition of a tissue.

    Attributes:
        cells, interstitium: Volume fractions of wet tissue.
        water, lipid, protein: Volume fractions of the cells.
        neutral_lipid, neutral_phospholipid, acidic_phospholipid: Shares of the cells' lipid.
        ph: Of the cells.
    """

    cells: float
    interstitium: float
    water: float
    lipid: float
    protein: float
    neutral_lipid: float
    neutral_phospholipid: float
    acidic_phospholipid: float
    ph: float


HUMAN_PROTEIN_COMPOSITION: Mapping[str, ProteinComposition] = {
    "liver": ProteinComposition(0.77, 0.23, 0.7244, 0.09231, 0.1833, 0.7244, 0.2251, 0.05051, 7.23),
    "kidney": ProteinComposition(0.835, 0.165, 0.7661, 0.06407, 0.1698, 0.6375, 0.294, 0.06853, 7.22),
    "brain": ProteinComposition(0.995, 0.005, 0.8043, 0.1123, 0.08341, 0.3734, 0.4588, 0.1678, 7.1),
    "heart": ProteinComposition(0.75, 0.25, 0.6957, 0.1375, 0.1668, 0.8901, 0.07901, 0.0309, 7.1),
    "lung": ProteinComposition(0.80, 0.20, 0.8038, 0.01316, 0.183, 0.3, 0.56, 0.14, 6.6),
    "muscle": ProteinComposition(0.85, 0.15, 0.7991, 0.02387, 0.177, 0.5394, 0.3817, 0.07884, 6.81),
    "adipose": ProteinComposition(0.86, 0.14, 0.02002, 0.934, 0.04601, 0.9361, 0.05607, 0.007859, 7.1),
    "gut": ProteinComposition(0.90, 0.096, 0.78, 0.07, 0.15, 0.69, 0.26, 0.05, 7.0),
    "skin": ProteinComposition(0.40, 0.60, 0.427, 0.2831, 0.2898, 0.3599, 0.5019, 0.1382, 7.0),
    "bone": ProteinComposition(0.90, 0.10, 0.26, 0.02, 0.21, 0.85, 0.11, 0.04, 7.0),
    "spleen": ProteinComposition(0.745, 0.255, 0.7699, 0.03946, 0.1907, 0.5341, 0.393, 0.07287, 7.0),
}
RAT_PROTEIN_COMPOSITION: Mapping[str, ProteinComposition] = {
    "liver": ProteinComposition(0.873, 0.127, 0.6818, 0.0622, 0.256, 0.3305, 0.5619, 0.1076, 7.23),
    "kidney": ProteinComposition(0.854, 0.146, 0.7536, 0.05266, 0.1937, 0.2925, 0.5849, 0.1226, 7.22),
    "brain": ProteinComposition(0.838, 0.162, 0.8029, 0.1154, 0.08173, 0.9535, 0.03667, 0.00978, 7.1),
    "heart": ProteinComposition(0.86, 0.14, 0.764, 0.03288, 0.2031, 0.5214, 0.3948, 0.0838, 7.1),
    "lung": ProteinComposition(0.675, 0.325, 0.7554, 0.0833, 0.1613, 0.5758, 0.3219, 0.1023, 6.6),
    "muscle": ProteinComposition(0.876, 0.124, 0.7768, 0.02319, 0.20, 0.5339, 0.3844, 0.08169, 6.81),
    "adipose": ProteinComposition(0.86, 0.14, 0.02888, 0.9192, 0.05194, 0.9977, 0.001871, 0.0004678, 7.1),
    "gut": ProteinComposition(0.90, 0.096, 0.78, 0.07, 0.15, 0.69, 0.26, 0.05, 7.0),
    "skin": ProteinComposition(0.681, 0.319, 0.522, 0.06383, 0.4142, 0.8075, 0.148, 0.04441, 7.0),
    "bone": ProteinComposition(0.90, 0.10, 0.26, 0.02, 0.21, 0.85, 0.11, 0.04, 7.0),
    "spleen": ProteinComposition(0.745, 0.255, 0.645, 0.03957, 0.3154, 0.3656, 0.489, 0.1453, 7.0),
}
"""Schmitt W. Toxicol In Vitro 2008;22:457-467, as revised for man and rat by Ruark CD, Hack CE, Robinson PJ, Mahle DA,
Gearhart JM. J Pharm Sci 2014;103:2189-2198; figures as the R package httk (0.9 and later) tabulates them. Pancreas is
not among them: it takes the mean of gut and spleen."""

INTERSTITIAL_TO_PLASMA_PROTEIN = 0.37
PLASMA_WATER = 0.945
INTERSTITIAL_WATER = 0.935
"""Schmitt 2008: protein in interstitial fluid relative to plasma, and water in plasma and in interstitial fluid."""


@dataclass(frozen=True)
class WholeTissueComposition:
    """Water, lipid and protein, volume fractions of the whole tissue."""

    water: float
    lipid: float
    protein: float


PK_SIM_COMPOSITION: Mapping[str, WholeTissueComposition] = {
    "liver": WholeTissueComposition(0.747, 0.069, 0.184),
    "kidney": WholeTissueComposition(0.774, 0.052, 0.171),
    "brain": WholeTissueComposition(0.808, 0.11, 0.081),
    "heart": WholeTissueComposition(0.731, 0.1, 0.168),
    "lung": WholeTissueComposition(0.807, 0.01, 0.183),
    "muscle": WholeTissueComposition(0.811, 0.013, 0.177),
    "adipose": WholeTissueComposition(0.15, 0.8, 0.05),
    "gut": WholeTissueComposition(0.792, 0.062, 0.133),
    "skin": WholeTissueComposition(0.612, 0.1, 0.288),
    "bone": WholeTissueComposition(0.465, 0.268, 0.268),
    "spleen": WholeTissueComposition(0.776, 0.016, 0.194),
    "pancreas": WholeTissueComposition(0.71, 0.08, 0.13),
}
"""What PK-Sim uses in its standard method, for every species; as tabulated with the code of Utsey et al. 2020. Kp that
PK-Sim itself gave are reproduced (tests/pk/test_schmitt.py)."""

"""Reference anatomies: organ masses by age and sex, cardiac output and its distribution, and the rat.

ICRP 89: ICRP Publication 89, Basic anatomical and physiological data for use in radiological protection. Ann ICRP
2002;32(3-4). Masses: table 2.8; weight and height: table 2.9; cardiac output: table 2.39; shares: table 2.40; red
cells and plasma: table 2.12. Checked against the tables of the online supplement of Huisinga W, Solms A, Fronton L,
Pilari S. CPT Pharmacometrics Syst Pharmacol 2012, doi:10.1038/psp.2012.3, which takes them from ICRP 89 as well.

Axis legend: A reference ages, O the 14 reported organs (in the order of ``physiology.ORGANS``).
"""

from __future__ import annotations

import numpy as np

AGE_YEAR = np.asarray([1.0, 5.0, 10.0, 15.0, 20.0])
"""Ages of the tables; the last stands for adults of 20-50 years."""
BODY_WEIGHT_KG = {"male": (10.0, 19.0, 32.0, 56.0, 73.0), "female": (10.0, 19.0, 32.0, 53.0, 60.0)}
HEIGHT_CM = {"male": (76.0, 109.0, 138.0, 167.0, 176.0), "female": (76.0, 109.0, 138.0, 161.0, 163.0)}
CARDIAC_OUTPUT_L_MIN = {"male": (1.817, 3.4, 5.0, 6.1, 6.5), "female": (1.817, 3.4, 5.0, 6.1, 5.9)}
"""ICRP 89; one year: 109 L/h, Alverson et al. 1987 as cited by Huisinga 2012. (The 1.2 L/min that others quote for one
year would be 2.5 L/min per m2 of body surface, against 4.4 at five.) It counts below five years only."""
HAEMATOCRIT = {"male": 0.434, "female": 0.385}
"""2,300 mL red cells of 5,300 mL blood, 1,500 mL of 3,900 mL. Children up to 10 years take the woman's (Huisinga
2012)."""

_SHARED_G = {  # ages 1, 5 and 10 are one for both sexes
    "blood": (530, 1500, 2500), "liver": (330, 570, 830), "kidney": (70, 110, 180), "heart": (50, 85, 140),
    "lung": (80, 125, 210), "muscle": (1900, 5600, 11000), "adipose": (3800, 5500, 8600), "gut": (155, 390, 665),
    "skin": (350, 570, 820), "bone": (1170, 2430, 4500), "spleen": (29, 50, 80), "pancreas": (20, 35, 60),
}  # fmt: skip
_BRAIN_G = {"male": (950, 1310, 1400), "female": (950, 1180, 1220)}
_GROWN_G = {  # 15 years, adult
    "male": {
        "blood": (4800, 5600), "liver": (1300, 1800), "kidney": (250, 310), "brain": (1420, 1450), "heart": (230, 330),
        "lung": (330, 500), "muscle": (24000, 29000), "adipose": (12000, 18200), "gut": (940, 1170),
        "skin": (2000, 3300), "bone": (7950, 10500), "spleen": (130, 150), "pancreas": (110, 140),
    },
    "female": {
        "blood": (3500, 4100), "liver": (1300, 1400), "kidney": (240, 275), "brain": (1300, 1300), "heart": (220, 250),
        "lung": (290, 420), "muscle": (17000, 17500), "adipose": (18700, 22500), "gut": (940, 1100),
        "skin": (1700, 2300), "bone": (7180, 7800), "spleen": (130, 130), "pancreas": (100, 120),
    },
}  # fmt: skip
"""g. Gut: walls of stomach, small and large intestine. Adipose: all adipose tissue; bone: the whole skeleton with its
marrow. Lung, heart: tissue only. Blood 1.06 g/mL. Fat of yellow marrow counts in both adipose and bone, so that the
rest, ``other``, is small."""

ADULT_FLOW_PERCENT = {
    "male": {"liver": 25.5, "kidney": 19.0, "brain": 12.0, "heart": 4.0, "muscle": 17.0, "adipose": 5.0, "gut": 15.0,
             "skin": 5.0, "bone": 5.0, "spleen": 3.0, "pancreas": 1.0, "other": 7.5},
    "female": {"liver": 27.0, "kidney": 17.0, "brain": 12.0, "heart": 5.0, "muscle": 12.0, "adipose": 8.5, "gut": 16.5,
               "skin": 5.0, "bone": 5.0, "spleen": 3.0, "pancreas": 1.0, "other": 8.5},
}  # fmt: skip
"""Per cent of cardiac output. Liver is total, its artery 6.5. Gut is what the portal vein has left after spleen and
pancreas (the woman's small and large intestine and stomach alone add to 17). Other is the rest, bronchial flow
included."""

BRAIN_FLOW_ML_MIN_100G = (59.0, 71.0, 68.0, 57.0)
"""At 1, 5, 10 and 15 years: Chiron C, Raynaud C, Maziere B, et al. J Nucl Med 1992;33:696-703, as Huisinga 2012 uses
them."""

RAT_BODY_WEIGHT_KG = 0.25
RAT_HAEMATOCRIT = 0.46
RAT_GFR_L_H = 0.0786
RAT_VOLUME_ML = {
    "blood": 14.4, "liver": 8.715, "kidney": 1.738, "brain": 1.376, "heart": 0.801, "lung": 1.190, "muscle": 97.1,
    "adipose": 18.15, "gut": 6.463, "skin": 42.58, "bone": 9.235, "spleen": 0.4745, "pancreas": 0.766,
}  # fmt: skip
RAT_FLOW_L_H = {
    "liver": 0.7081, "kidney": 0.5520, "brain": 0.0780, "heart": 0.2340, "muscle": 0.4499, "adipose": 0.0240,
    "gut": 0.5605, "skin": 0.3479, "bone": 0.5418, "spleen": 0.0611, "pancreas": 0.0275,
}  # fmt: skip
RAT_CARDIAC_OUTPUT_L_H = 4.440
"""A rat of 0.25 kg, as the R package httk tabulates it (volumes per kg and flows per kg^3/4 after Brown RP et al.
Toxicol Ind Health 1997;13:407-484 and Davies B, Morris T. Pharm Res 1993;10:1093-1095): cardiac output 209.3
mL/min/kg^3/4, GFR 3.705 mL/min/kg^3/4, haematocrit 0.46, plasma 31.2 mL/kg (so blood 57.8 mL/kg). The pancreas is not
in httk: 0.32 % of body weight (Brown 1997) at 1.045 g/mL, as httk treats Brown's other organs, and of httk's gut flow
0.6 mL/min per mL of pancreas (assumed). The rest is volume to body weight and flow to cardiac output."""


def organ_mass_kg(sex: str) -> dict[str, np.ndarray]:
    """Masses at the reference ages, kg, ``(A,)`` by organ; ``other`` is the rest of body weight."""
    young = {**_SHARED_G, "brain": _BRAIN_G[sex]}
    mass = {organ: np.asarray([*young[organ], *_GROWN_G[sex][organ]]) / 1000 for organ in young}
    return mass | {"other": np.asarray(BODY_WEIGHT_KG[sex]) - np.sum(list(mass.values()), axis=0)}

"""Obesity, renal and hepatic impairment as named scalings of a person, each with its source.

A scaling changes a ``Physiology``; what it does to enzymes and binding is returned beside it as factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.physiology import ORGAN_INDEX, PORTAL_ORGANS, Physiology, adult_gfr_l_h, check_flow_balance


@dataclass(frozen=True)
class DrugFactors:
    """What a condition does to a drug's parameters.

    Attributes:
        clint: Factor on intrinsic hepatic clearance per volume of liver, by enzyme ("CYP3A4", ...).
        albumin, alpha1_acid_glycoprotein: Factors on the plasma concentration of the binding protein.
    """

    clint: Mapping[str, float]
    albumin: float = 1.0
    alpha1_acid_glycoprotein: float = 1.0

    def fup(self, fup: float, protein: str = "albumin") -> float:
        """Fraction unbound with the changed protein: 1 / (1 + factor (1 - fup) / fup), linear binding.

        McNamara PJ, Alcorn J. AAPS PharmSci 2002;4:E4.

        Raises:
            InputError: for fup outside (0, 1] or an unknown protein.
        """
        if not 0 < fup <= 1:
            raise InputError("fup", value=float(fup), allowed="(0, 1]")
        if protein not in ("albumin", "alpha1_acid_glycoprotein"):
            raise InputError("protein", "is unknown", value=protein, allowed="albumin, alpha1_acid_glycoprotein")
        return 1 / (1 + getattr(self, protein) * (1 - fup) / fup)


NORMAL = DrugFactors({})

RENAL_GFR_ML_MIN: Mapping[str, float] = {"mild": 75.0, "moderate": 45.0, "severe": 22.0}
"""Middles of the classes 60-89, 30-59 and 15-29 mL/min: FDA, Pharmacokinetics in patients with impaired renal function,
draft guidance 2020."""


def renal_impairment(person: Physiology, severity: str) -> tuple[Physiology, DrugFactors]:
    """GFR and kidney flow fall together (intact nephrons: Bricker NS. Am J Med 1969;46:1-11), other flows take the
    rest.

    GFR falls in the ratio of the class's middle to 120 mL/min. Binding, haematocrit and non-renal clearance are left
    alone: they change too, in ways that differ between drugs.

    Raises:
        InputError: for an unknown severity.
    """
    if severity not in RENAL_GFR_ML_MIN:
        raise InputError("renal", "is unknown", value=severity, allowed=", ".join(RENAL_GFR_ML_MIN))
    share = RENAL_GFR_ML_MIN[severity] / 120.0
    flow = person.flow_l_h.copy()
    kidney = ORGAN_INDEX["kidney"]
    output = person.cardiac_output_l_h
    others = (output - flow[kidney] * share) / (output - flow[kidney])
    flow[kidney] *= share
    _scale_others(flow, others, ("kidney",))
    return _changed(person, f"{severity} renal impairment", flow=flow, gfr_l_h=person.gfr_or_default * share), NORMAL


@dataclass(frozen=True)
class _Cirrhosis:
    portal: float
    artery: float
    kidney: float
    liver: float
    haematocrit: float
    gfr: float
    cardiac_index: float
    factors: DrugFactors


_ENZYMES = ("CYP3A4", "CYP1A2", "CYP2E1", "CYP2A6", "CYP2B6", "CYP2C8", "CYP2C9", "CYP2C19", "CYP2D6")
_CIRRHOSIS: Mapping[str, _Cirrhosis] = {
    grade: _Cirrhosis(*numbers, DrugFactors(dict(zip(_ENZYMES, clint, strict=True)), albumin, glycoprotein))
    for grade, numbers, albumin, glycoprotein, clint in (
        ("A", (0.40, 1.3, 0.88, 0.69, 0.92, 1.00, 1.11), 0.81, 0.60,
         (1.0, 1.0, 1.0, 0.89, 1.0, 0.69, 0.69, 0.32, 0.76)),
        ("B", (0.36, 2.3, 0.65, 0.55, 0.88, 0.70, 1.27), 0.68, 0.56,
         (0.4, 0.1, 0.83, 0.62, 0.9, 0.52, 0.51, 0.26, 0.33)),
        ("C", (0.04, 3.4, 0.48, 0.28, 0.83, 0.36, 1.36), 0.50, 0.30,
         (0.4, 0.1, 0.83, 0.32, 0.8, 0.32, 0.33, 0.12, 0.11)),
    )
}  # fmt: skip
"""Child-Pugh grades: Edginton AN, Willmann S. Clin Pharmacokinet 2008;47:743-752 and Johnson TN, Boussery K,
Rowland-Yeo K, et al. Clin Pharmacokinet 2010;49:189-206, as tabulated in PK-Sim's qualification of hepatic
impairment; functional liver mass (0.69, 0.55, 0.28) after Edginton & Willmann from memory."""


def hepatic_impairment(person: Physiology, grade: str) -> tuple[Physiology, DrugFactors]:
    """Cirrhosis of Child-Pugh grade A, B or C: less functional liver, shunted portal flow, more arterial flow and
    output.

    Volume: the liver keeps its functional share, the rest of body weight takes what it loses (into ``other``). Portal
    flow falls by organ in one ratio; what remains up to the raised cardiac output goes to the other organs in
    proportion.

    Raises:
        InputError: for an unknown grade.
    """
    if grade not in _CIRRHOSIS:
        raise InputError("hepatic", "is unknown", value=grade, allowed="A, B, C (Child-Pugh)")
    c = _CIRRHOSIS[grade]
    liver, kidney, other = (ORGAN_INDEX[o] for o in ("liver", "kidney", "other"))
    portal = [ORGAN_INDEX[organ] for organ in PORTAL_ORGANS]
    flow, volume = person.flow_l_h.copy(), person.volume_l.copy()
    artery = (flow[liver] - flow[portal].sum()) * c.artery
    flow[portal] *= c.portal
    flow[kidney] *= c.kidney
    output = person.cardiac_output_l_h * c.cardiac_index
    fixed = artery + flow[portal].sum() + flow[kidney]
    names = [i for name, i in ORGAN_INDEX.items() if name not in ("blood", "lung", "liver", "kidney", *PORTAL_ORGANS)]
    flow[names] *= (output - fixed) / flow[names].sum()
    flow[liver] = artery + flow[portal].sum()
    flow[[ORGAN_INDEX["blood"], ORGAN_INDEX["lung"]]] = output
    volume[other] += volume[liver] * (1 - c.liver)
    volume[liver] *= c.liver
    changed = _changed(person, f"Child-Pugh {grade}", flow, volume, person.gfr_or_default * c.gfr)
    return replace(changed, haematocrit=person.haematocrit * c.haematocrit), c.factors


def lean_body_weight_kg(body_weight_kg: float, height_cm: float, sex: str) -> float:
    """9270 W / (6680 + 216 BMI) for men, 9270 W / (8780 + 244 BMI) for women: Janmahasatian S, Duffull SB, Ash S, et
    al. Clin Pharmacokinet 2005;44:1051-1065.
    """
    bmi = body_weight_kg / (height_cm / 100) ** 2
    return 9270 * body_weight_kg / ((6680 + 216 * bmi) if sex == "male" else (8780 + 244 * bmi))


def body_surface_m2(body_weight_kg: float, height_cm: float) -> float:
    """sqrt(height x weight / 3600): Mosteller RD. N Engl J Med 1987;317:1098."""
    return float(np.sqrt(height_cm * body_weight_kg / 3600))


def obese(person: Physiology, body_weight_kg: float) -> tuple[Physiology, DrugFactors]:
    """An adult of a body weight at which lean and fat mass grow differently, at the same height.

    Lean organs grow with lean body weight (Janmahasatian 2005), adipose takes the rest of body weight, and cardiac
    output, GFR and all flows grow with body surface at a constant cardiac index (as in Ghobadi C, Johnson TN, Aarabi
    M, et al. Clin Pharmacokinet 2011;50:809-822).

    Raises:
        InputError: for a person without sex and height, or a body weight below the person's or above 300 kg.
    """
    if person.height_cm is None or person.sex not in ("male", "female"):
        raise InputError("height_cm and sex", "are needed for lean body weight", value=person.name)
    if not person.body_weight_kg <= body_weight_kg <= 300:
        allowed = f"[{person.body_weight_kg:g}, 300]"
        raise InputError("body_weight_kg", value=float(body_weight_kg), unit="kg", allowed=allowed)
    before, after = (
        lean_body_weight_kg(w, person.height_cm, person.sex) for w in (person.body_weight_kg, body_weight_kg)
    )
    volume = person.volume_l * after / before
    adipose = ORGAN_INDEX["adipose"]
    volume[adipose] = 0.0
    volume[adipose] = body_weight_kg - volume.sum()
    surface = body_surface_m2(body_weight_kg, person.height_cm) / body_surface_m2(
        person.body_weight_kg, person.height_cm
    )
    changed = _changed(person, "obese", person.flow_l_h * surface, volume, person.gfr_or_default * surface)
    return replace(changed, body_weight_kg=float(body_weight_kg)), NORMAL


def _scale_others(flow: np.ndarray, factor: float, fixed: tuple[str, ...]) -> None:
    """Multiply every outflow but the fixed ones (and the whole circulation's) by a factor."""
    for name, i in ORGAN_INDEX.items():
        if name not in (*fixed, "blood", "lung"):
            flow[i] *= factor


def _changed(
    person: Physiology, what: str, flow: np.ndarray, volume: np.ndarray | None = None, gfr_l_h: float | None = None
) -> Physiology:
    check_flow_balance(flow)
    return replace(
        person, name=f"{person.name}, {what}", flow_l_h=flow, gfr_l_h=gfr_l_h,
        volume_l=person.volume_l if volume is None else volume,
    )  # fmt: skip


__all__ = [
    "NORMAL", "RENAL_GFR_ML_MIN", "DrugFactors", "adult_gfr_l_h", "body_surface_m2", "hepatic_impairment",
    "lean_body_weight_kg", "obese", "renal_impairment",
]  # fmt: skip

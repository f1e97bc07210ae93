"""Obesity, renal and hepatic impairment as named scalings of a person, each with its source.

A scaling changes a ``Physiology``; what it does to enzymes and binding is returned beside it as ``DrugFactors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.drug_factors import ENZYMES, NORMAL, DrugFactors
from perfuse.pk.growth import gfr_ageing
from perfuse.pk.physiology import ORGAN_INDEX, PORTAL_ORGANS, Physiology, adult_gfr_l_h, check_flow_balance

HEALTHY_GFR_ML_MIN = 120.0
RENAL_GFR_ML_MIN: Mapping[str, float] = {"mild": 75.0, "moderate": 45.0, "severe": 22.0, "failure": 7.5}
"""Middles of the classes 60-89, 30-59, 15-29 and below 15 mL/min, the last without dialysis: FDA, Pharmacokinetics in
patients with impaired renal function, guidance for industry, 2020 draft and 2024 final. KDIGO's stages 2 to 5 have the
same bounds per 1.73 m2."""
_RENAL_LOWEST_ML_MIN = {"mild": 60.0, "moderate": 30.0, "severe": 15.0, "failure": 0.0}

_RENAL_HAEMATOCRIT_PERCENT = {
    "male": (45.5, {"mild": 45.2, "moderate": 43.6, "severe": 41.7, "failure": 34.3}),
    "female": (40.0, {"mild": 39.9, "moderate": 39.2, "severe": 37.4, "failure": 33.5}),
}
"""Healthy, and by class (moderate: the mean of its three rows, 30-60): Hsu CY, Bates DW, Kuperman GJ, Curhan GC. Kidney
Int 2001;59:725-731, as tabulated in PK-Sim's qualification of chronic kidney disease, table 2-1."""
_RENAL_FUP_FACTOR = {"mild": 1.0, "moderate": 1.07, "severe": 1.16, "failure": 1.55}
"""Unbound fraction over the healthy: Tan ML, Yoshida K, Zhao P, et al. Clin Pharmacol Ther 2018;103:854-867, as used by
Malik PRV, Yeung CHT, Ismaeil S, et al. J Clin Pharmacol 2020;60 Suppl 1:S52-S62 and tabulated there, table 2-2."""


def renal_class(gfr_ml_min: float) -> str | None:
    """The class of a GFR (per 1.73 m2), None from 90 mL/min on."""
    if gfr_ml_min >= 90:
        return None
    return next(severity for severity, lowest in _RENAL_LOWEST_ML_MIN.items() if gfr_ml_min >= lowest)


def _renal_class_of(severity: str | None, gfr_ml_min: float | None) -> tuple[float, str | None]:
    """GFR and class, from either."""
    if (severity is None) == (gfr_ml_min is None):
        raise InputError("renal severity and gfr_ml_min", "say one thing: give one of them")
    if gfr_ml_min is None:
        if severity not in RENAL_GFR_ML_MIN:
            raise InputError("renal", "is unknown", value=severity, allowed=", ".join(RENAL_GFR_ML_MIN))
        return RENAL_GFR_ML_MIN[str(severity)], severity
    if not 0 < gfr_ml_min <= HEALTHY_GFR_ML_MIN:
        raise InputError("gfr_ml_min", value=float(gfr_ml_min), unit="mL/min per 1.73 m2", allowed="(0, 120]")
    return gfr_ml_min, renal_class(gfr_ml_min)


def renal_impairment(
    person: Physiology, severity: str | None = None, *, gfr_ml_min: float | None = None
) -> tuple[Physiology, DrugFactors]:
    """GFR and kidney flow fall together (intact nephrons: Bricker NS. Am J Med 1969;46:1-11); haematocrit falls (Hsu
    2001), and so does plasma binding (Tan 2018).

    Cardiac output stays, liver and gut keep their flow, the other organs share what the kidneys give up (assumed).

    The class's middle, or the given value, over 120 mL/min is the share that is left of what the person filtered when
    young (an old person has lost part of it already, and keeps a GFR that is lower still). The tabulated factor on fup
    becomes 1 / factor on albumin, which is the same for bound drugs and keeps fup below 1. Secretion, given as a
    clearance, and non-renal clearance are left alone: they change in ways that differ between drugs.

    Args:
        person: In health.
        severity: One of ``RENAL_GFR_ML_MIN``.
        gfr_ml_min: Instead of it, per 1.73 m2, in (0, 120].

    Raises:
        InputError: for an unknown severity, a GFR out of range, or not exactly one of the two.
    """
    gfr_ml_min, severity = _renal_class_of(severity, gfr_ml_min)
    own = person.gfr_or_default
    when_young = own / _ageing(person)
    share = min(gfr_ml_min / HEALTHY_GFR_ML_MIN * when_young / own, 1.0)
    flow, kidney, liver = person.flow_l_h.copy(), ORGAN_INDEX["kidney"], ORGAN_INDEX["liver"]
    rest = person.cardiac_output_l_h - flow[kidney] - flow[liver]
    given_up = flow[kidney] * (1 - share)
    flow[kidney] *= share
    _scale_others(flow, 1 + given_up / rest, ("kidney", "liver", *PORTAL_ORGANS))
    name = f"{severity} renal impairment" if severity else f"GFR {gfr_ml_min:g} mL/min"
    ill = _changed(person, name, flow=flow, gfr_l_h=own * share)
    if severity is None:
        return ill, NORMAL
    healthy, by_class = _RENAL_HAEMATOCRIT_PERCENT[person.sex or "male"]
    ill = replace(ill, haematocrit=person.haematocrit * by_class[severity] / healthy)
    return ill, DrugFactors({}, albumin=1 / _RENAL_FUP_FACTOR[severity])


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


_CIRRHOSIS: Mapping[str, _Cirrhosis] = {
    grade: _Cirrhosis(*numbers, DrugFactors(dict(zip(ENZYMES, clint, strict=True)), albumin, glycoprotein))
    for grade, numbers, albumin, glycoprotein, clint in (
        ("A", (0.40, 1.3, 0.88, 0.69, 0.92, 1.00, 1.11), 0.81, 0.60,
         (1.0, 1.0, 1.0, 0.89, 1.0, 0.69, 0.69, 0.32, 0.32, 0.76)),
        ("B", (0.36, 2.3, 0.65, 0.55, 0.88, 0.70, 1.27), 0.68, 0.56,
         (0.4, 0.1, 0.83, 0.62, 0.9, 0.52, 0.51, 0.26, 0.26, 0.33)),
        ("C", (0.04, 3.4, 0.48, 0.28, 0.83, 0.36, 1.36), 0.50, 0.30,
         (0.4, 0.1, 0.83, 0.32, 0.8, 0.32, 0.33, 0.12, 0.12, 0.11)),
    )
}  # fmt: skip
CHILD_PUGH_GRADES = tuple(_CIRRHOSIS)
"""Child-Pugh grades: Edginton AN, Willmann S. Clin Pharmacokinet 2008;47:743-752 and Johnson TN, Boussery K,
Rowland-Yeo K, et al. Clin Pharmacokinet 2010;49:189-206, as tabulated in PK-Sim's qualification of hepatic impairment,
table 2; functional liver volume (0.69, 0.55, 0.28): PK-Sim's source code. Since 2023 PK-Sim scales the artery's flow
per volume of liver by 1.61, 2.34 and 5.29, after Johnson 2010: 1.11, 1.29 and 1.48 times the flow. Here it is
Edginton's 1.3, 2.3 and 3.4."""


def hepatic_impairment(person: Physiology, grade: str) -> tuple[Physiology, DrugFactors]:
    """Cirrhosis of Child-Pugh grade A, B or C: less functional liver, less portal flow, more arterial flow and output.

    Volume: the liver keeps its functional share, what it loses joins ``other``. The portal organs' flows fall in one
    ratio; what remains up to the raised cardiac output goes to the other organs in proportion. The shunt around the
    liver is the missing portal flow: no blood by-passes the liver, so that the first pass of an oral dose is not
    avoided.

    Raises:
        InputError: for an unknown grade.
    """
    if grade not in _CIRRHOSIS:
        raise InputError("hepatic", "is unknown", value=grade, allowed="A, B, C (Child-Pugh)")
    c = _CIRRHOSIS[grade]
    liver, kidney, other = (ORGAN_INDEX[o] for o in ("liver", "kidney", "other"))
    portal = [ORGAN_INDEX[organ] for organ in PORTAL_ORGANS]
    flow, volume = person.flow_l_h.copy(), person.volume_l.copy()
    artery = person.hepatic_artery_l_h * c.artery
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

    Lean organs grow with lean body weight (Janmahasatian 2005), the brain does not, adipose takes the rest of body
    weight. Cardiac output and GFR grow with body surface, at a constant cardiac index (as in Ghobadi C, Johnson TN,
    Aarabi M, et al. Clin Pharmacokinet 2011;50:809-822); the brain keeps its flow, all others share the rest in
    proportion, so that a kg of fat has less the more there is.

    Raises:
        InputError: for a person without sex and height, below 18 years, or a body weight below the person's or above
            300 kg.
    """
    if person.height_cm is None or person.sex not in ("male", "female"):
        raise InputError("height_cm and sex", "are needed for lean body weight", value=person.name)
    if person.age_year is not None and person.age_year < 18:
        raise InputError("age_year", value=person.age_year, unit="years", allowed=">= 18",
                         hint="lean body weight is that of adults")  # fmt: skip
    if not person.body_weight_kg <= body_weight_kg <= 300:
        allowed = f"[{person.body_weight_kg:g}, 300]"
        raise InputError("body_weight_kg", value=float(body_weight_kg), unit="kg", allowed=allowed)
    before, after = (
        lean_body_weight_kg(w, person.height_cm, person.sex) for w in (person.body_weight_kg, body_weight_kg)
    )
    adipose, brain = ORGAN_INDEX["adipose"], ORGAN_INDEX["brain"]
    volume = person.volume_l * after / before
    volume[brain], volume[adipose] = person.volume_l[brain], 0.0
    volume[adipose] = body_weight_kg - volume.sum()
    surface = body_surface_m2(body_weight_kg, person.height_cm) / body_surface_m2(
        person.body_weight_kg, person.height_cm
    )
    flow, output = person.flow_l_h.copy(), person.cardiac_output_l_h
    _scale_others(flow, (output * surface - flow[brain]) / (output - flow[brain]), ("brain",))
    flow[[ORGAN_INDEX["blood"], ORGAN_INDEX["lung"]]] = output * surface
    changed = _changed(person, "obese", flow, volume, person.gfr_or_default * surface)
    return replace(changed, body_weight_kg=float(body_weight_kg)), NORMAL


def _ageing(person: Physiology) -> float:
    if person.age_year is None or person.sex is None:
        return 1.0
    return float(gfr_ageing(person.age_year, person.sex))


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
    "CHILD_PUGH_GRADES", "NORMAL", "RENAL_GFR_ML_MIN", "DrugFactors", "adult_gfr_l_h", "body_surface_m2",
    "hepatic_impairment", "lean_body_weight_kg", "obese", "renal_class", "renal_impairment",
]  # fmt: skip

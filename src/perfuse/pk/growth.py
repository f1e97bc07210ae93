"""People by age and sex: ICRP 89's reference persons, interpolated, from 2 years on.

Between the reference ages (1, 5, 10, 15 years, adult from 20) the logarithms of organ masses, body weight, height and
cardiac output follow monotone cubics (PCHIP). Children's flows: kidneys per g of tissue as in the man (Grunert D,
Schoning M, Rosendahl W. Eur J Pediatr 1990;149:287-292), brain after Chiron 1992, all others in proportion to their
organ's mass and the man's flow per g, filled up to cardiac output (``other``, a remainder, keeps the man's share) -
the method of Abraham K, Mielke H, Huisinga W, Gundert-Remy U. Basic Clin Pharmacol Toxicol 2005;96:160-175. GFR
matures as Rhodin MM, Anderson BJ, Peters AM, et al. Pediatr Nephrol 2009;24:67-76, and declines with age as in kidney
donors (``gfr_ageing``); nothing else of the adult ages.

Axis legend: A reference ages, C people, O the 14 reported organs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.interpolate import PchipInterpolator

from perfuse.errors import InputError
from perfuse.pk import anatomy
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, PORTAL_ORGANS, Physiology, adult_gfr_l_h, check_flow_balance

AGE_RANGE_YEAR = (2.0, 100.0)
ADULT_AGE_YEAR = 20.0
SEXES = ("male", "female")
_ARTERY = "hepatic artery"


def gfr_maturation(age_year: np.ndarray | float) -> np.ndarray:
    """Share of adult filtration (per kg^3/4): PMA^3.4 / (PMA^3.4 + 47.7^3.4), PMA weeks after conception (Rhodin
    2009).
    """
    weeks = 40 + age_year * 365.25 / 7
    return np.asarray(weeks**3.4 / (weeks**3.4 + 47.7**3.4))


def gfr_ageing(age_year: np.ndarray | float, sex: str) -> np.ndarray:
    """Share of the young adult's filtration: 1 until 35 years, then 0.066 (men) or 0.077 (women) less per decade.

    6.6 and 7.7 of 100 mL/min per 1.73 m2 in 2,974 prospective donors: Fenton A, Montgomery E, Nightingale P, et al. BMC
    Nephrol 2018, doi:10.1186/s12882-018-1126-8.
    """
    per_year = {"male": 0.0066, "female": 0.0077}[sex]
    return np.asarray(1 - per_year * np.maximum(np.asarray(age_year) - 35.0, 0.0))


def _outflows_l_h(sex: str) -> dict[str, np.ndarray]:
    """Systemic outflows (the hepatic artery instead of total liver) at the reference ages, L/h, ``(A,)``."""
    mass = anatomy.organ_mass_kg(sex)
    output = np.asarray(anatomy.CARDIAC_OUTPUT_L_MIN[sex]) * 60
    man_mass, man_flow = anatomy.organ_mass_kg("male"), _adult_outflows("male", output_l_h=390.0)
    organ_of = lambda name: "liver" if name == _ARTERY else name  # noqa: E731
    flows = {}
    for name, flow in man_flow.items():
        per_kg = flow / man_mass[organ_of(name)][-1]
        flows[name] = per_kg * mass[organ_of(name)]
    brain = np.asarray(anatomy.BRAIN_FLOW_ML_MIN_100G) * 10 * 60 / 1000
    flows["brain"][:-1] = brain * mass["brain"][:-1]
    flows["other"] = anatomy.ADULT_FLOW_PERCENT["male"]["other"] / 100 * output
    known = ("kidney", "brain", "other")
    fixed = sum(flows[name] for name in known)
    rest = sum(flow for name, flow in flows.items() if name not in known)
    for name in flows:
        if name not in known:
            flows[name] = flows[name] * (output - fixed) / rest
    for name, flow in _adult_outflows(sex, output[-1]).items():
        flows[name][-1] = flow
    return flows


def _adult_outflows(sex: str, output_l_h: float) -> dict[str, float]:
    percent = dict(anatomy.ADULT_FLOW_PERCENT[sex])
    percent[_ARTERY] = percent.pop("liver") - sum(percent[organ] for organ in PORTAL_ORGANS)
    return {name: share / 100 * output_l_h for name, share in percent.items()}


@cache
def _curves(sex: str) -> dict[str, PchipInterpolator]:
    ages = anatomy.AGE_YEAR
    tables = {f"mass {organ}": mass for organ, mass in anatomy.organ_mass_kg(sex).items()}
    tables |= {f"flow {name}": flow for name, flow in _outflows_l_h(sex).items()}
    tables |= {
        "weight": np.asarray(anatomy.BODY_WEIGHT_KG[sex]), "height": np.asarray(anatomy.HEIGHT_CM[sex]),
        "output": np.asarray(anatomy.CARDIAC_OUTPUT_L_MIN[sex]) * 60,
    }  # fmt: skip
    return {name: PchipInterpolator(ages, np.log(values)) for name, values in tables.items()}


def check_age_and_sex(age_year: float, sex: str) -> None:
    """Refuse what the growth tables do not cover.

    Raises:
        InputError: naming the field and the allowed range.
    """
    if sex not in SEXES:
        raise InputError("sex", "is unknown", value=sex, allowed=", ".join(SEXES))
    if not AGE_RANGE_YEAR[0] <= age_year <= AGE_RANGE_YEAR[1]:
        raise InputError("age_year", value=float(age_year), unit="years", allowed="[2, 100]",
                         hint="organ growth and enzyme maturation before 2 years are not modelled")  # fmt: skip


@dataclass(frozen=True)
class Bodies:
    """Reference bodies of many people: ``(C,)`` each, volumes L and flows L/h ``(C, O)`` as in ``Physiology``."""

    body_weight_kg: np.ndarray
    height_cm: np.ndarray
    haematocrit: np.ndarray
    gfr_l_h: np.ndarray
    volume_l: np.ndarray
    flow_l_h: np.ndarray


def reference_bodies(age_year: np.ndarray, sex: str) -> Bodies:
    """ICRP 89's reference persons of one sex at many ages ``(C,)``; from 20 years on the adult, of whom only GFR ages.

    Raises:
        InputError: for an age or sex out of range.
    """
    for age in (np.min(age_year), np.max(age_year)):
        check_age_and_sex(float(age), sex)
    curves, age = _curves(sex), np.minimum(age_year, ADULT_AGE_YEAR)
    at = lambda name: np.exp(curves[name](age))  # noqa: E731
    weight, output = at("weight"), at("output")
    volume = np.stack([at(f"mass {organ}") for organ in ORGANS], -1)
    volume *= (weight / volume.sum(-1))[:, None]
    artery = at(f"flow {_ARTERY}")
    flow = np.stack([at(f"flow {o}") if f"flow {o}" in curves else np.zeros_like(artery) for o in ORGANS], -1)
    factor = output / (flow.sum(-1) + artery)
    flow *= factor[:, None]
    portal = [ORGAN_INDEX[organ] for organ in PORTAL_ORGANS]
    flow[:, ORGAN_INDEX["liver"]] = artery * factor + flow[:, portal].sum(-1)
    flow[:, [ORGAN_INDEX["blood"], ORGAN_INDEX["lung"]]] = output[:, None]
    check_flow_balance(flow)
    woman, own = anatomy.HAEMATOCRIT["female"], anatomy.HAEMATOCRIT[sex]
    haematocrit = woman + np.clip((age - 10) / 5, 0, 1) * (own - woman)  # a boy's rises between 10 and 15 years
    gfr = adult_gfr_l_h(weight) * gfr_maturation(age_year) * gfr_ageing(age_year, sex)
    return Bodies(weight, at("height"), haematocrit, gfr, volume, flow)


def reference_person(age_year: float, sex: str) -> Physiology:
    """ICRP 89's reference person of an age and sex (see ``reference_bodies``).

    Raises:
        InputError: for an age or sex out of range.
    """
    body = reference_bodies(np.asarray([float(age_year)]), sex)
    return Physiology(
        f"ICRP 89 {sex}, {min(age_year, ADULT_AGE_YEAR):g} years", float(body.body_weight_kg[0]), body.volume_l[0],
        body.flow_l_h[0], species="human", sex=sex, age_year=float(age_year), height_cm=float(body.height_cm[0]),
        haematocrit=float(body.haematocrit[0]), gfr_l_h=float(body.gfr_l_h[0]),
    )  # fmt: skip


def for_person(
    age_year: float, sex: str, body_weight_kg: float | None = None, height_cm: float | None = None
) -> Physiology:
    """A person of an age and sex, scaled to a body weight.

    Against the reference person of that age and sex: volumes in proportion to body weight, flows and GFR to its power
    3/4. Height is carried, and used by ``pk.special_populations``.

    Raises:
        InputError: for an age, sex, body weight or height out of range.
    """
    person = reference_person(age_year, sex)
    if height_cm is not None:
        if not 50 <= height_cm <= 250:
            raise InputError("height_cm", value=float(height_cm), unit="cm", allowed="[50, 250]")
        person = replace(person, height_cm=float(height_cm))
    return person if body_weight_kg is None else person.scaled(body_weight_kg)

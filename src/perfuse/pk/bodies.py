"""One way to any body: reference persons and rats, and the conditions they may have, by name."""

from __future__ import annotations

from perfuse.errors import InputError
from perfuse.pk.anatomy import RAT_BODY_WEIGHT_KG
from perfuse.pk.growth import for_person
from perfuse.pk.physiology import Physiology, rat_reference
from perfuse.pk.special_populations import (
    CHILD_PUGH_GRADES,
    RENAL_GFR_ML_MIN,
    DrugFactors,
    hepatic_impairment,
    obese,
    renal_impairment,
)

SPECIES = ("human", "rat")
ADULT_AGE_YEAR = 35.0
CONDITIONS = (
    *(f"renal:{severity}" for severity in RENAL_GFR_ML_MIN), *(f"hepatic:{grade}" for grade in CHILD_PUGH_GRADES),
    "obese",
)  # fmt: skip


def reference(
    species: str = "human",
    sex: str | None = None,
    *,
    age_year: float | None = None,
    body_weight_kg: float | None = None,
    height_cm: float | None = None,
) -> Physiology:
    """The reference body of a species, sex and age, scaled to a body weight.

    Args:
        species: ``human`` (``growth.for_person``) or ``rat`` (``physiology.rat_reference``).
        sex: ``male`` (the default of a human) or ``female``; not of a rat.
        age_year: 2-100 years, 35 by default; not of a rat.
        body_weight_kg: None: the reference weight of that age and sex, or 0.25 kg.
        height_cm: None: the reference height; not of a rat.

    Raises:
        InputError: naming the argument that is unknown, out of range or not modelled for a rat.
    """
    if species not in SPECIES:
        raise InputError("species", "is unknown", value=species, allowed=", ".join(SPECIES))
    if species == "rat":
        for name, value in (("sex", sex), ("age_year", age_year), ("height_cm", height_cm)):
            if value is not None:
                raise InputError(name, "is not modelled for a rat", value=value)
        return rat_reference(RAT_BODY_WEIGHT_KG if body_weight_kg is None else body_weight_kg)
    age = ADULT_AGE_YEAR if age_year is None else age_year
    return for_person(age, sex or "male", body_weight_kg, height_cm)


def with_condition(
    person: Physiology, condition: str, body_weight_kg: float | None = None
) -> tuple[Physiology, DrugFactors]:
    """A person with one of ``CONDITIONS``, and what it does to drugs (``special_populations``).

    Args:
        person: Who has it.
        condition: Its name.
        body_weight_kg: Of the obese person; needed for, and only for, ``obese``.

    Raises:
        InputError: for an unknown condition, a rat, a weight that is missing or out of place, and what the condition
            itself refuses.
    """
    if condition not in CONDITIONS:
        raise InputError("condition", "is unknown", value=condition, allowed=", ".join(CONDITIONS))
    if person.species != "human":
        raise InputError("condition", f"is not modelled for a {person.species}", value=condition)
    if (body_weight_kg is None) == (condition == "obese"):
        raise InputError("body_weight_kg", "goes with the condition obese, and with no other", value=body_weight_kg)
    if body_weight_kg is not None:
        return obese(person, body_weight_kg)
    kind, _, grade = condition.partition(":")
    return renal_impairment(person, grade) if kind == "renal" else hepatic_impairment(person, grade)

"""Who takes part in a study: one subject, with a condition if so wished, or a sampled population."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from perfuse.data.drug_file import quantity
from perfuse.data.study_tables import section
from perfuse.data.study_variability import read_drug_cv, vary_drugs
from perfuse.errors import InputError
from perfuse.pk.bodies import with_condition
from perfuse.pk.drug import Drug, number
from perfuse.pk.drug_factors import NORMAL, DrugFactors
from perfuse.pk.growth import for_person
from perfuse.pk.physiology import Physiology, hub_reference, rat_reference
from perfuse.pk.population import sample_population
from perfuse.pk.topology import Topology

MAX_PEOPLE = 100_000
SUBJECT_KEYS = (
    "species", "age_year", "sex", "body_weight_kg", "height_cm", "condition", "enzymes", "binding_protein",
)  # fmt: skip
POPULATION_KEYS = (
    "n", "seed", "age_range_year", "share_female", "weight_cv", "volume_cv", "flow_cv", "output_cv", "height_cv",
    "gfr_cv", "condition", "enzymes", "binding_protein", "drug_cv",
)  # fmt: skip
_NUMBERS = POPULATION_KEYS[3:9]
_OBESE = "obese"


@dataclass(frozen=True)
class People:
    """Bodies, and what their condition does to a drug.

    Attributes:
        bodies: One a person.
        is_population: Whether they were sampled.
        factors: Of the condition, which a population shares.
        enzymes: Which enzymes make up the drug's intrinsic clearance, and their shares; empty: not said.
        binding_protein: What binds the drug in plasma; None: not said.
        drug_cv: How much the drug's numbers vary between people, by name (``study_variability``).
        seed: Of that variation.
    """

    bodies: tuple[Physiology, ...]
    is_population: bool = False
    factors: DrugFactors = NORMAL
    enzymes: Mapping[str, float] | None = None
    binding_protein: str | None = None
    drug_cv: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def drug_in(self, drug: Drug) -> Drug:
        """The drug as the condition changes it: by enzymes and binding protein, where they are said."""
        return self.factors.applied_to(drug, self.enzymes, self.binding_protein)

    def each_ones(self, drugs: Sequence[Drug]) -> list[Drug]:
        """One drug a person, varied between them; from one for all, or one each."""
        each = list(drugs) * (len(self.bodies) if len(drugs) == 1 else 1)
        return vary_drugs(each, self.drug_cv, self.seed) if self.drug_cv else each


def read_people(data: Mapping[str, Any], topology: Topology) -> People:
    """The people of a study.

    Raises:
        InputError: naming the key or value that cannot be used.
    """
    if "population" in data and "subject" in data:
        raise InputError("subject and population", "exclude each other", hint="give one of them")
    if topology.name == "hub":
        if "population" in data or section(data, "subject", ("body_weight_kg",)).get("body_weight_kg", 70) != 70:
            raise InputError("subject", "cannot be chosen on topology hub, which has one body of 70 kg")
        return People((hub_reference(),))
    if "population" in data:
        return _population(section(data, "population", POPULATION_KEYS))
    return _subject(section(data, "subject", SUBJECT_KEYS))


def _population(table: dict[str, Any]) -> People:
    n, seed = table.pop("n", None), table.pop("seed", 0)
    for key, value, low, high in (("n", n, 1, MAX_PEOPLE), ("seed", seed, 0, 2**63 - 1)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"population.{key}", value=value, allowed=f"a whole number, {low} to {high}")
    ages = table.pop("age_range_year", [20, 50])
    if not isinstance(ages, list) or len(ages) != 2:
        raise InputError("population.age_range_year", "is no pair", value=ages, allowed="[youngest, oldest]")
    bounds = (number("population.age_range_year", ages[0]), number("population.age_range_year", ages[1]))
    condition, enzymes, protein = _condition("population", table)
    if condition == _OBESE:
        raise InputError("population.condition", value=condition, allowed="those of kidney and liver",
                         hint="obesity needs a body weight: use [subject]")  # fmt: skip
    others: dict[str, Any] = {}
    for key in _NUMBERS:
        if key in table:
            by_organ = key in ("volume_cv", "flow_cv") and isinstance(table[key], Mapping)
            others[key] = (
                {organ: number(f"population.{key}.{organ}", value) for organ, value in table[key].items()}
                if by_organ
                else number(f"population.{key}", table[key])
            )
    people = sample_population(np.random.default_rng(seed), int(n or 0), age_range_year=bounds, **others)
    bodies, factors = [people.person(i) for i in range(len(people))], NORMAL
    if condition:
        changed = [with_condition(body, condition) for body in bodies]
        bodies, factors = [body for body, _ in changed], changed[0][1]
    varied = read_drug_cv(table["drug_cv"]) if "drug_cv" in table else {}
    return People(tuple(bodies), True, factors, enzymes, protein, varied, int(seed))


def _condition(where: str, table: Mapping[str, Any]) -> tuple[str, Mapping[str, float] | None, str | None]:
    """The condition ("" for none), and how it reaches the drug."""
    condition, enzymes, protein = str(table.get("condition", "")), table.get("enzymes"), table.get("binding_protein")
    if (enzymes is not None or protein is not None) and not condition:
        raise InputError(f"{where}.enzymes and binding_protein", "need a condition that changes them")
    if enzymes is not None and not isinstance(enzymes, Mapping):
        raise InputError(f"{where}.enzymes", "is no table", value=enzymes, hint="write enzymes = { CYP3A4 = 0.9 }")
    return condition, enzymes, protein


def _subject(table: Mapping[str, Any]) -> People:
    species = table.get("species", "human")
    weight = quantity("subject.body_weight_kg", table["body_weight_kg"], "kg") if "body_weight_kg" in table else None
    if species == "rat":
        for key in table:
            if key not in ("species", "body_weight_kg"):
                raise InputError(f"subject.{key}", "is not modelled for a rat")
        return People((rat_reference() if weight is None else rat_reference(weight),))
    if species != "human":
        raise InputError("subject.species", "is unknown", value=species, allowed="human, rat")
    height = number("subject.height_cm", table["height_cm"]) if "height_cm" in table else None
    age, sex = number("subject.age_year", table.get("age_year", 35)), str(table.get("sex", "male"))
    condition, enzymes, protein = _condition("subject", table)
    obese = condition == _OBESE
    if obese and weight is None:
        raise InputError("subject.body_weight_kg", "is missing", hint="obesity needs it")
    person, factors = for_person(age, sex, None if obese else weight, height), NORMAL
    if condition:
        person, factors = with_condition(person, condition, weight if obese else None)
    return People((person,), False, factors, enzymes, protein)

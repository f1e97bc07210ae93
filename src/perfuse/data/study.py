"""A study: drug, people, structure, regimen and outputs in one TOML file, for the mechanistic solver.

::

    [drug]                        # the keys of a drug file, or: file = "midazolam.toml"
    name = "midazolam"
    mw_g_mol = 325.8
    logp = 3.9
    pka_base = 6.0
    fup = 0.03
    clint_ul_min_million_cells = 28.0
    ka_1_h = 2.0

    [subject]                     # one person ...
    age_year = 35
    sex = "female"
    body_weight_kg = 62           # optional, as are height_cm and condition
    condition = "renal:moderate"  # renal:mild|moderate|severe, hepatic:A|B|C, obese (with body_weight_kg)
    # species = "rat"
    # [population]                # ... or many: n = 200, seed = 1, age_range_year = [20, 50], share_female = 0.5

    [structure]                   # optional
    topology = "circulation"      # or hub, circulation-ps
    permeability_limited = ["brain"]
    # [[organ]]                   # organs to add (see pk.custom_topology)

    [[dose]]                      # numbers, or text with a unit
    amount_mg = "2 mg/kg"
    route = "oral"                # iv_bolus, iv_infusion, oral
    time_h = 0
    interval_h = "12 h"
    n_doses = 3

    [output]
    times_h = { stop = 36, step = 0.25 }   # start = 0; or a list
    organs = ["blood", "brain"]            # default: all
    matrix = "plasma"                      # of the blood row; or serum, blood_venous
    kp_method = "rodgers-rowland"
    # steady_state_tau_h = 12              # the doses are one interval's, repeated for ever

Axis legend: C curves, O reported organs, T times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perfuse.data.drug_file import plain_numbers, quantity, read_drug_file
from perfuse.data.drug_parameters import DEFAULT_KP_METHOD
from perfuse.data.inputs import Dose, curve_table_for
from perfuse.data.stacking import stack_tables
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.files import read_toml
from perfuse.pk.custom_topology import ExtraOrgan
from perfuse.pk.drug import Drug, located, number
from perfuse.pk.growth import for_person
from perfuse.pk.matrix import check_blood_matrix
from perfuse.pk.partition import KP_METHODS
from perfuse.pk.physiology import Physiology, hub_reference, rat_reference
from perfuse.pk.population import sample_population
from perfuse.pk.regimen import DoseCourse
from perfuse.pk.special_populations import hepatic_impairment, obese, renal_impairment
from perfuse.pk.topology import Topology, circulation, get_topology

MAX_PEOPLE = 100_000
MAX_TIMES = 100_000
_SECTIONS = ("drug", "subject", "population", "structure", "organ", "dose", "output")
_SUBJECT = ("species", "age_year", "sex", "body_weight_kg", "height_cm", "condition")
_POPULATION = ("n", "seed", "age_range_year", "share_female", "weight_cv", "volume_cv", "flow_cv", "output_cv")
_STRUCTURE = ("topology", "permeability_limited")
_DOSE = ("amount_mg", "route", "time_h", "duration_h", "interval_h", "n_doses")
_OUTPUT = ("times_h", "organs", "matrix", "kp_method", "steady_state_tau_h", "percentiles")
_OBESE, _RENAL, _HEPATIC = "obese", "renal", "hepatic"


@dataclass(frozen=True)
class Study:
    """A study that can be solved: every value is checked.

    Attributes:
        table: One curve a person, concentrations NaN.
        drug: The compound.
        extra_organs: Organs of the user's own.
        organs: Organs to report.
        steady_state_tau_h: Dosing interval of a steady state; None: the doses as they are.
        percentiles: Of a population's curves.
        is_population: Whether there are several people.
        kp_method: How Kp was predicted.
    """

    table: CurveTable
    drug: Drug
    extra_organs: tuple[ExtraOrgan, ...]
    organs: tuple[str, ...]
    steady_state_tau_h: float | None
    percentiles: tuple[float, ...]
    is_population: bool
    kp_method: str


def _section(data: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    table = data.get(name, {})
    if not isinstance(table, Mapping):
        raise InputError(name, "is no table", value=table, hint=f"write [{name}]")
    for key in table:
        if key not in allowed:
            raise InputError(f"{name}.{key}", "is no known key", allowed=", ".join(allowed))
    return dict(table)


def _list(data: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = data.get(name, [])
    if not isinstance(found, list) or not all(isinstance(t, Mapping) for t in found):
        raise InputError(name, "is no list of tables", hint=f"write [[{name}]] before each")
    return found


def read_study(path: Path) -> Study:
    """Read and check a study file (see the module).

    Raises:
        InputError: in one line, naming the file and the key or value that cannot be used.
    """
    path = Path(path)
    data = read_toml(path, "study")
    try:
        return study_from(data, path.parent)
    except InputError as error:
        raise located(error, str(path)) from None


def study_from(data: Mapping[str, Any], folder: Path = Path()) -> Study:
    """A study from plain data; a drug file's path is relative to ``folder`` and stays inside it.

    Raises:
        InputError: naming the key or value that cannot be used.
    """
    for key in data:
        if key not in _SECTIONS:
            raise InputError(key, "is no known section", allowed=", ".join(_SECTIONS))
    topology = _topology(_section(data, "structure", _STRUCTURE))
    people, is_population = _people(data, topology)
    drug = _drug(data, people[0], folder)
    output = _section(data, "output", _OUTPUT)
    extra = tuple(ExtraOrgan.from_mapping(t, f"organ {i}") for i, t in enumerate(_list(data, "organ"), 1))
    organs = _organs(output, (*topology.organs, *(organ.name for organ in extra)))
    kp_method = output.get("kp_method", DEFAULT_KP_METHOD)
    if kp_method not in KP_METHODS:
        raise InputError("output.kp_method", "is unknown", value=kp_method, allowed=", ".join(KP_METHODS))
    matrix = output.get("matrix", "plasma")
    check_blood_matrix(str(matrix))
    time_h = _times(output.get("times_h"))
    rows = []
    for i, person in enumerate(people):
        doses = _doses(data, drug, person)
        body = None if topology.name == "hub" else person
        weight = person.body_weight_kg if topology.name == "hub" else None
        name = f"{drug.name}-{i}" if is_population else drug.name
        rows.append(curve_table_for(drug, topology, weight, doses, time_h, str(matrix), body=body, curve_id=name,
                                    compound_id=drug.name, kp_method=kp_method))  # fmt: skip
    tau = output.get("steady_state_tau_h")
    return Study(
        stack_tables(rows), drug, extra, organs, None if tau is None else quantity("steady_state_tau_h", tau, "h"),
        _percentiles(output.get("percentiles", [5, 50, 95])), is_population, kp_method,
    )  # fmt: skip


def _topology(structure: Mapping[str, Any]) -> Topology:
    name, limited = structure.get("topology", "circulation"), structure.get("permeability_limited", [])
    if (
        not isinstance(limited, list)
        or not all(isinstance(o, str) for o in limited)
        or len(set(limited)) != len(limited)
    ):
        raise InputError("structure.permeability_limited", "is no list of different organs", value=limited)
    if not limited:
        return get_topology(str(name))
    if name != "circulation":
        raise InputError("structure.permeability_limited", "needs the topology circulation", value=name)
    return circulation(tuple(limited), f"circulation with {', '.join(limited)} permeability-limited")


def _people(data: Mapping[str, Any], topology: Topology) -> tuple[list[Physiology], bool]:
    if "population" in data and "subject" in data:
        raise InputError("subject and population", "exclude each other", hint="give one of them")
    if topology.name == "hub":
        if "population" in data or _section(data, "subject", ("body_weight_kg",)).get("body_weight_kg", 70) != 70:
            raise InputError("subject", "cannot be chosen on topology hub, which has one body of 70 kg")
        return [hub_reference()], False
    if "population" not in data:
        return [_subject(_section(data, "subject", _SUBJECT))], False
    table = _section(data, "population", _POPULATION)
    n, seed = table.pop("n", None), table.pop("seed", 0)
    for key, value, low, high in (("n", n, 1, MAX_PEOPLE), ("seed", seed, 0, 2**63 - 1)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"population.{key}", value=value, allowed=f"a whole number, {low} to {high}")
    ages = table.pop("age_range_year", [20, 50])
    if not isinstance(ages, list) or len(ages) != 2:
        raise InputError("population.age_range_year", "is no pair", value=ages, allowed="[youngest, oldest]")
    bounds = (number("population.age_range_year", ages[0]), number("population.age_range_year", ages[1]))
    others = {key: number(f"population.{key}", value) for key, value in table.items()}
    people = sample_population(np.random.default_rng(seed), int(n or 0), age_range_year=bounds, **others)  # type: ignore[arg-type]
    return [people.person(i) for i in range(len(people))], True


def _subject(table: Mapping[str, Any]) -> Physiology:
    species = table.get("species", "human")
    weight = quantity("subject.body_weight_kg", table["body_weight_kg"], "kg") if "body_weight_kg" in table else None
    if species == "rat":
        for key in table:
            if key not in ("species", "body_weight_kg"):
                raise InputError(f"subject.{key}", "is not modelled for a rat")
        return rat_reference() if weight is None else rat_reference(weight)
    if species != "human":
        raise InputError("subject.species", "is unknown", value=species, allowed="human, rat")
    height = number("subject.height_cm", table["height_cm"]) if "height_cm" in table else None
    age, sex = number("subject.age_year", table.get("age_year", 35)), str(table.get("sex", "male"))
    condition = str(table.get("condition", ""))
    if condition == _OBESE:
        if weight is None:
            raise InputError("subject.body_weight_kg", "is missing", hint="obesity needs it")
        return obese(for_person(age, sex, None, height), weight)[0]
    person = for_person(age, sex, weight, height)
    kind, _, grade = condition.partition(":")
    if kind == _RENAL:
        return renal_impairment(person, grade)[0]
    if kind == _HEPATIC:
        return hepatic_impairment(person, grade)[0]
    if condition:
        raise InputError("subject.condition", "is unknown", value=condition, allowed="renal:*, hepatic:*, obese")
    return person


def _drug(data: Mapping[str, Any], person: Physiology, folder: Path) -> Drug:
    table = data.get("drug")
    if not isinstance(table, Mapping):
        raise InputError("drug", "is missing", hint='write [drug] with its keys, or file = "drug.toml"')
    if "file" in table:
        name = table["file"]
        if len(table) > 1 or not isinstance(name, str):
            raise InputError("drug.file", "stands alone and is text", value=name)
        target = (folder / name).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise InputError("drug.file", "lies outside the study's folder", value=name)
        return read_drug_file(target, person.body_weight_kg)[0]
    mw = quantity("mw_g_mol", table["mw_g_mol"], "g/mol") if "mw_g_mol" in table else None
    return Drug.from_mapping(plain_numbers(table, mw, person.body_weight_kg))


def _doses(data: Mapping[str, Any], drug: Drug, person: Physiology) -> list[Dose]:
    """The regimen of one person, mg/kg resolved with the person's weight."""
    out = []
    for i, table in enumerate(_list(data, "dose"), 1):
        where = f"dose {i}"
        for key in table:
            if key not in _DOSE:
                raise InputError(f"{where}: {key}", "is no known key", allowed=", ".join(_DOSE))
        if "amount_mg" not in table:
            raise InputError(f"{where}: amount_mg", "is missing")
        as_number = lambda key, unit: quantity(key, table[key], unit, drug.mw_g_mol, person.body_weight_kg)  # noqa: B023, E731
        given = {key: as_number(key, "mg" if key == "amount_mg" else "h")
                 for key in ("amount_mg", "time_h", "duration_h", "interval_h") if key in table}  # fmt: skip
        route = table.get("route") or ("iv_infusion" if given.get("duration_h") else "iv_bolus")
        try:
            course = DoseCourse(route=str(route), n_doses=table.get("n_doses", 1), **given)
        except InputError as error:
            raise located(error, where) from None
        out += [Dose(t, course.amount_mg, course.duration_h, course.route) for t in course.times_h()]
    if not out:
        raise InputError("dose", "is missing: there is not one", hint="write [[dose]] with amount_mg")
    return sorted(out, key=lambda dose: dose.time_h)


def _times(value: object) -> np.ndarray:
    if value is None:
        return np.linspace(0.0, 24.0, 97)
    if isinstance(value, Mapping):
        for key in value:
            if key not in ("start", "stop", "step"):
                raise InputError(f"output.times_h.{key}", "is no known key", allowed="start, stop, step")
        start, stop, step = (quantity(f"output.times_h.{k}", value.get(k, d), "h") for k, d in
                             (("start", 0.0), ("stop", 24.0), ("step", 0.25)))  # fmt: skip
        if not (0 <= start < stop and step > 0 and (stop - start) / step <= MAX_TIMES):
            raise InputError("output.times_h", value=(start, stop, step), unit="h",
                             allowed=f"0 <= start < stop, step > 0, at most {MAX_TIMES} times")  # fmt: skip
        return start + step * np.arange(int(np.floor((stop - start) / step * (1 + 1e-12))) + 1)
    if not isinstance(value, list) or not value or len(value) > MAX_TIMES:
        raise InputError("output.times_h", "is no list of times", allowed="[0, 1, 2] or { stop = 24, step = 0.5 }")
    return np.asarray([quantity("output.times_h", t, "h") for t in value])


def _organs(output: Mapping[str, Any], known: tuple[str, ...]) -> tuple[str, ...]:
    wanted = output.get("organs", list(known))
    if not isinstance(wanted, list) or not wanted:
        raise InputError("output.organs", "is no list of organs", value=wanted)
    for organ in wanted:
        if organ not in known:
            raise InputError("output.organs", "holds an unknown organ", value=organ, allowed=", ".join(known))
    return tuple(wanted)


def _percentiles(value: object) -> tuple[float, ...]:
    if not isinstance(value, list) or not value:
        raise InputError("output.percentiles", "is no list", value=value)
    out = tuple(number("output.percentiles", p) for p in value)
    if not all(0 < p < 100 for p in out) or list(out) != sorted(set(out)):
        raise InputError("output.percentiles", value=value, allowed="increasing, between 0 and 100")
    return out

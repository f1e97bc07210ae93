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
    condition = "renal:moderate"  # renal:mild|moderate|severe|failure, hepatic:A|B|C, obese (with body_weight_kg)
    # enzymes = { CYP3A4 = 0.9 }, binding_protein = "albumin": how the condition reaches the drug (pk.drug_factors)
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
from perfuse.data.study_people import read_people, section
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.files import read_toml
from perfuse.pk.custom_topology import ExtraOrgan
from perfuse.pk.drug import Drug, located, number
from perfuse.pk.matrix import check_blood_matrix
from perfuse.pk.partition import KP_METHODS
from perfuse.pk.physiology import Physiology
from perfuse.pk.regimen import DoseCourse
from perfuse.pk.topology import Topology, circulation, get_topology

MAX_TIMES = 100_000
_SECTIONS = ("drug", "subject", "population", "structure", "organ", "dose", "output")
_STRUCTURE = ("topology", "permeability_limited")
_DOSE = ("amount_mg", "route", "time_h", "duration_h", "interval_h", "n_doses")
_OUTPUT = ("times_h", "organs", "matrix", "kp_method", "steady_state_tau_h", "percentiles")


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
    topology = _topology(section(data, "structure", _STRUCTURE))
    people = read_people(data, topology)
    drug = people.drug_in(_drug(data, people.bodies[0], folder))
    output = section(data, "output", _OUTPUT)
    extra = tuple(ExtraOrgan.from_mapping(t, f"organ {i}") for i, t in enumerate(_list(data, "organ"), 1))
    organs = _organs(output, (*topology.organs, *(organ.name for organ in extra)))
    kp_method = output.get("kp_method", DEFAULT_KP_METHOD)
    if kp_method not in KP_METHODS:
        raise InputError("output.kp_method", "is unknown", value=kp_method, allowed=", ".join(KP_METHODS))
    matrix = output.get("matrix", "plasma")
    check_blood_matrix(str(matrix))
    time_h = _times(output.get("times_h"))
    rows = []
    for i, person in enumerate(people.bodies):
        doses = _doses(data, drug, person)
        body = None if topology.name == "hub" else person
        weight = person.body_weight_kg if topology.name == "hub" else None
        name = f"{drug.name}-{i}" if people.is_population else drug.name
        rows.append(curve_table_for(drug, topology, weight, doses, time_h, str(matrix), body=body, curve_id=name,
                                    compound_id=drug.name, kp_method=kp_method))  # fmt: skip
    tau = output.get("steady_state_tau_h")
    return Study(
        stack_tables(rows), drug, extra, organs, None if tau is None else quantity("steady_state_tau_h", tau, "h"),
        _percentiles(output.get("percentiles", [5, 50, 95])), people.is_population, kp_method,
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

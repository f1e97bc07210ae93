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
    # drug_cv = { clint = 0.5 }   # data.study_variability

    [structure]                   # optional
    topology = "circulation"      # or hub, circulation-ps
    permeability_limited = ["brain"]
    # [[organ]]                   # organs to add (see pk.custom_topology)
    # file = "tumour.toml"        # instead: all of this, or a whole graph of one's own (pk.custom_topology)

    [[dose]]                      # numbers, or text with a unit
    amount_mg = "2 mg/kg"
    route = "oral"                # iv_bolus, iv_infusion, oral
    time_h = 0                    # or a list of times, without
    interval_h = "12 h"
    n_doses = 3

    [output]
    times_h = "0..36 h by 15 min"          # or { stop = 36, step = 0.25 }, or a list
    organs = ["blood", "brain"]            # default: all
    matrix = "plasma"                      # of the blood row; or serum, blood_venous
    kp_method = "rodgers-rowland"
    # steady_state_tau_h = 12              # the doses are one interval's, repeated for ever

    # [sensitivity]               # see data.study_sensitivity

Axis legend: C curves (people), T times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from perfuse.data.drug_file import plain_numbers, quantity, read_drug_file
from perfuse.data.drug_parameters import DEFAULT_KP_METHOD
from perfuse.data.inputs import Dose, curve_table_for
from perfuse.data.stacking import stack_tables
from perfuse.data.study_doses import read_doses, read_times
from perfuse.data.study_people import People, read_people
from perfuse.data.study_sensitivity import SensitivityRequest, read_sensitivity
from perfuse.data.study_sources import Derived, derived_numbers, parameter_sources
from perfuse.data.study_structure import Structure, graph_system, read_structure
from perfuse.data.study_tables import file_beside, section
from perfuse.data.table import CurveTable, system_parameters
from perfuse.data.table import dose_events as events_of_table
from perfuse.errors import InputError
from perfuse.files import read_toml
from perfuse.pk.custom_topology import add_organ
from perfuse.pk.drug import Drug, located, number
from perfuse.pk.matrix import PLASMA_MATRICES, check_blood_matrix
from perfuse.pk.partition import KP_METHODS
from perfuse.pk.regimen import DoseCourse, dose_events
from perfuse.pk.system import DoseEvents, SystemParameters

_SECTIONS = ("drug", "subject", "population", "structure", "organ", "dose", "output", "sensitivity")
MAX_VALUES_AN_ORGAN = 10**7
"""People x times: their concentrations in every organ are in memory at once."""
_OUTPUT = ("times_h", "organs", "matrix", "kp_method", "steady_state_tau_h", "percentiles")


@dataclass(frozen=True)
class Study:
    """A study that can be solved: every value is checked.

    Attributes:
        drug: The compound, in its person; of a population, in the first.
        curve_id: A name a person, ``(C,)``.
        system, doses: What will be solved, extra organs included, C curves.
        time_h: ``(T,)``.
        matrix: What the blood row is reported in.
        body_weight_kg: ``(C,)``; NaN where it does not matter.
        organs: Organs to report.
        steady_state_tau_h: Dosing interval of a steady state; None: the doses as they are.
        percentiles: Of a population's curves.
        is_population: Whether there are several people.
        kp_method: How Kp was predicted; "" on a graph of one's own.
        sources: Where each parameter comes from, by parameter and place.
        derived: Numbers on the way to them: values ``(C,)``, unit and source, by name.
        sensitivity: What the output's sensitivities are wanted of; None: none are.
        table: The same as a table of curves without extra organs, concentrations NaN, for models and datasets; None
            on a graph of one's own.
    """

    drug: Drug
    curve_id: tuple[str, ...]
    system: SystemParameters
    doses: DoseEvents
    time_h: np.ndarray
    matrix: str
    body_weight_kg: np.ndarray
    organs: tuple[str, ...]
    steady_state_tau_h: float | None
    percentiles: tuple[float, ...]
    is_population: bool
    kp_method: str
    sources: Mapping[tuple[str, str], str]
    derived: Mapping[str, Derived]
    sensitivity: SensitivityRequest | None = None
    table: CurveTable | None = None

    @property
    def blood(self) -> str | None:
        """The reported organ that the matrix is about: the first, if it is blood."""
        topology = self.system.topology
        return topology.organs[0] if topology.is_blood[int(topology.organ_node[0])] else None


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
    """A study from plain data; paths of files are relative to ``folder`` and stay inside it.

    Raises:
        InputError: naming the key or value that cannot be used.
    """
    for key in data:
        if key not in _SECTIONS:
            raise InputError(key, "is no known section", allowed=", ".join(_SECTIONS))
    structure = read_structure(data, folder)
    output = section(data, "output", _OUTPUT)
    kp_method = output.get("kp_method", DEFAULT_KP_METHOD)
    if not isinstance(kp_method, str) or kp_method not in KP_METHODS:
        raise InputError("output.kp_method", "is unknown", value=kp_method, allowed=", ".join(KP_METHODS))
    matrix, time_h = str(output.get("matrix", "plasma")), read_times(output.get("times_h"))
    check_blood_matrix(matrix)
    tau = _tau(output, time_h)
    build = _on_graph if structure.topology is None else _in_bodies
    parts = build(data, structure, folder, time_h, matrix, kp_method)
    study = Study(
        **parts, time_h=time_h, matrix=matrix, organs=_organs(output, parts["system"].topology.organs),
        steady_state_tau_h=tau, percentiles=_percentiles(output.get("percentiles", [5, 50, 95])),
    )  # fmt: skip
    if matrix in PLASMA_MATRICES and study.blood is None:
        raise InputError("output.matrix", "needs blood as the first node of the graph", value=matrix,
                         allowed="blood_venous")  # fmt: skip
    return _with_sensitivity(study, data)


def _with_sensitivity(study: Study, data: Mapping[str, Any]) -> Study:
    if "sensitivity" not in data:
        return study
    if study.is_population or study.steady_state_tau_h is not None:
        raise InputError("sensitivity", "is of one subject and of doses as they are")
    return replace(study, sensitivity=read_sensitivity(data, study.system, study.doses, study.time_h))


def _in_bodies(
    data: Mapping[str, Any], structure: Structure, folder: Path, time_h: np.ndarray, matrix: str, kp_method: str
) -> dict[str, Any]:
    """People on a built-in topology, as the fields of ``Study``."""
    topology = structure.topology
    assert topology is not None
    people = read_people(data, topology)
    if len(people.bodies) * len(time_h) > MAX_VALUES_AN_ORGAN:
        raise InputError("population.n", "times the number of times is too large", value=len(people.bodies),
                         allowed=f"<= {MAX_VALUES_AN_ORGAN // len(time_h)} with {len(time_h)} times")  # fmt: skip
    stated = _drugs(data, [body.body_weight_kg for body in people.bodies], folder)
    drugs = people.each_ones([people.drug_in(drug) for drug in stated])
    rows = []
    for i, (person, drug) in enumerate(zip(people.bodies, drugs, strict=True)):
        fixed = topology.name == "hub"
        rows.append(curve_table_for(
            drug, topology, person.body_weight_kg if fixed else None, read_doses(data, drug, person.body_weight_kg),
            time_h, matrix, body=None if fixed else person, compound_id=drug.name, kp_method=kp_method,
            curve_id=f"{drug.name}-{i}" if people.is_population else drug.name,
        ))  # fmt: skip
    table = stack_tables(rows)
    system = system_parameters(table)
    for organ in structure.extra_organs:
        system = add_organ(system, organ)
    return {
        "drug": drugs[0], "curve_id": tuple(table.curve_id.tolist()), "system": system,
        "doses": events_of_table(table), "body_weight_kg": table.body_weight_kg,
        "is_population": people.is_population, "kp_method": kp_method, "table": table,
        "sources": parameter_sources(drugs[0], stated[0], people, structure, system, kp_method),
        "derived": derived_numbers(people, drugs),
    }  # fmt: skip


def _on_graph(
    data: Mapping[str, Any], structure: Structure, folder: Path, _time_h: np.ndarray, _matrix: str, _kp_method: str
) -> dict[str, Any]:
    """The one body of the user's own graph, as the fields of ``Study``."""
    if "population" in data:
        raise InputError("population", "cannot be sampled on a graph of one's own")
    subject = section(data, "subject", ("body_weight_kg",))
    weight = quantity("subject.body_weight_kg", subject["body_weight_kg"], "kg") if subject else None
    drug = _drugs(data, [weight], folder)[0]
    system = graph_system(structure, drug)
    doses = read_doses(data, drug, weight)
    if any(dose.route == "oral" for dose in doses) and system.topology.absorption_node is None:
        raise InputError("absorption", "is missing: the node where oral doses are absorbed", where=structure.where)
    return {
        "drug": drug, "curve_id": (drug.name,), "system": system, "doses": _events(doses, drug),
        "body_weight_kg": np.asarray([np.nan if weight is None else weight]), "is_population": False, "kp_method": "",
        "sources": parameter_sources(drug, drug, People(()), structure, system, ""),
        "derived": {},
    }  # fmt: skip


def _events(doses: Sequence[Dose], drug: Drug) -> DoseEvents:
    courses = [DoseCourse(d.amount_mg, d.route, d.time_h, d.duration_h) for d in doses]
    ka = None if drug.ka_1_h is None else [drug.ka_1_h]
    return dose_events([courses], ka, [drug.lag_h], [drug.f_abs])


def _tau(output: Mapping[str, Any], time_h: np.ndarray) -> float | None:
    if "steady_state_tau_h" not in output:
        return None
    tau = quantity("output.steady_state_tau_h", output["steady_state_tau_h"], "h")
    if not tau > 0:
        raise InputError("output.steady_state_tau_h", value=tau, unit="h", allowed="> 0")
    if time_h.max() > tau * (1 + 1e-12):
        raise InputError("output.times_h", "holds a time outside the dosing interval", value=float(time_h.max()),
                         unit="h", allowed=f"[0, {tau:g}]")  # fmt: skip
    return tau


def _drugs(data: Mapping[str, Any], weights_kg: Sequence[float | None], folder: Path) -> list[Drug]:
    """The drug, once, or once a person where it holds a number per kg of body weight."""
    table = data.get("drug")
    if not isinstance(table, Mapping):
        raise InputError("drug", "is missing", hint='write [drug] with its keys, or file = "drug.toml"')
    if "file" in table:
        if len(table) > 1:
            raise InputError("drug.file", "stands alone", value=table["file"])
        path = file_beside(folder, "drug.file", table["file"])
        read = lambda weight: read_drug_file(path, weight)[0]  # noqa: E731
        per_kg = path.is_file() and _per_kg(read_toml(path, "drug.file"))
    else:
        mw = quantity("mw_g_mol", table["mw_g_mol"], "g/mol") if "mw_g_mol" in table else None
        read = lambda weight: Drug.from_mapping(plain_numbers(table, mw, weight))  # noqa: E731
        per_kg = _per_kg(table)
    return [read(weight) for weight in (weights_kg if per_kg else weights_kg[:1])]


def _per_kg(value: object) -> bool:
    """Whether any text in plain data is a quantity per kg."""
    if isinstance(value, Mapping):
        return any(_per_kg(v) for v in value.values())
    if isinstance(value, list):
        return any(_per_kg(v) for v in value)
    return isinstance(value, str) and value.replace(" ", "").endswith("/kg")


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

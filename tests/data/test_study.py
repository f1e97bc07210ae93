"""Reading studies: structure files, times and doses as text, sources of parameters, numbers per kg in a population."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.data.study import Study, read_study, study_from
from perfuse.data.study_doses import read_times
from perfuse.data.study_structure import Structure, graph_system
from perfuse.errors import InputError
from perfuse.evaluation.solve import solve_study
from perfuse.pk.drug import Drug
from perfuse.pk.mechanistic import organ_concentrations, solve
from perfuse.pk.regimen import DoseCourse, dose_events

STUDY = """
[drug]
name = "drug"
mw_g_mol = 300.0
logp = 2.0
fup = 0.2
bp_ratio = 0.8
clint_ul_min_million_cells = 8.0
ka_1_h = 1.5
[[dose]]
amount_mg = 100
[output]
times_h = "0..12 h by 30 min"
"""
TIMES = torch.tensor([[0.2, 1.0, 6.0]], dtype=torch.float64)
GRAPH = """
name = "minimal"
dose = "blood"
absorption = "gut"
saturable = "liver"
node = [{ name = "blood", volume_l = 5.0, blood = true }, { name = "gut", volume_l = 1.2 },
        { name = "liver", volume_l = 1.8, kp = 3.0 }, { name = "rest", volume_l = 60.0, kp = 0.7 }]
flow = [{ from = "blood", to = "gut", flow_l_h = 60.0 }, { from = "gut", to = "liver", flow_l_h = 60.0 },
        { from = "blood", to = "liver", flow_l_h = 25.0 }, { from = "liver", to = "blood", flow_l_h = 85.0 },
        { from = "blood", to = "rest", flow_l_h = 200.0 }, { from = "rest", to = "blood", flow_l_h = 200.0 }]
elimination = [{ name = "clint_l_h", kind = "intrinsic", organ = "liver", clearance_l_h = 40.0 }]
"""


def data_of(**change: Any) -> dict[str, Any]:
    data = tomllib.loads(STUDY)
    for path, value in change.items():
        *steps, last = path.split("__")
        target = data
        for step in steps:
            target = target.setdefault(step, {})
        target[last] = value
    return data


def in_file(folder: Path, structure: str, **change: Any) -> Study:
    (folder / "structure.toml").write_text(structure)
    data = data_of(structure={"file": "structure.toml"}, **change)
    if "extends" not in structure:
        del data["drug"]["clint_ul_min_million_cells"]
    return study_from(data, folder)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0..2 h by 30 min", [0, 0.5, 1, 1.5, 2]), ("1..2 by 0.5", [1, 1.5, 2]),
        ("0 min..60 min by 0.5 h", [0, 0.5, 1]),
        ("0.5 .. 1.5 h by 1 h", [0.5, 1.5]), ({"stop": 1, "step": "30 min"}, [0, 0.5, 1]), (["30 min", 2], [0.5, 2]),
    ],
)  # fmt: skip
def test_times_may_be_text(value: object, expected: list[float]) -> None:
    np.testing.assert_allclose(read_times(value), expected)


def test_a_dose_may_have_a_list_of_times() -> None:
    data = data_of()
    data["dose"] = [{"amount_mg": "50 mg", "route": "oral", "time_h": [0, "7 h", 30]}]
    study = study_from(data)
    assert study.doses.time_h.tolist() == [[0, 7, 30]]
    assert study.doses.amount_mg.tolist() == [[50, 50, 50]]
    assert study.doses.route.tolist() == [[1, 1, 1]]


def test_a_structure_file_extends_the_circulation(tmp_path: Path) -> None:
    text = """
    extends = "circulation"
    permeability_limited = ["brain"]
    [[organ]]
    name = "tumour"
    volume_l = 0.05
    flow_l_h = 1.2
    """
    study = in_file(tmp_path, text, drug__ps_l_h={"brain": 3.0})
    inline = study_from(data_of(
        structure={"permeability_limited": ["brain"]}, drug__ps_l_h={"brain": 3.0},
        organ=[{"name": "tumour", "volume_l": 0.05, "flow_l_h": 1.2}],
    ))  # fmt: skip
    np.testing.assert_array_equal(solve_study(study).conc_mg_l, solve_study(inline).conc_mg_l)
    assert study.organs[-1] == "tumour"
    assert study.sources["volume_l", "tumour"] == "[[organ]]"
    assert study.sources["volume_l", "other"].endswith("less [[organ]]")


def test_a_structure_file_may_be_a_whole_graph(tmp_path: Path) -> None:
    """Hepatic clearance of the graph, by its closed form; the drug gives fup, B:P and absorption."""
    dose = [{"amount_mg": "1 mg/kg", "route": "oral"}]
    study = in_file(tmp_path, GRAPH, subject={"body_weight_kg": 70}, dose=dose,
                    output={"times_h": np.linspace(0, 200, 4001).tolist()})  # fmt: skip
    assert study.organs == ("blood", "gut", "liver", "rest")
    assert study.doses.amount_mg.tolist() == [[70]]
    solved = solve_study(study)
    q, x = 85.0, 0.2 * 40.0 / 0.8
    hepatic = q * x / (q + x)
    auc_plasma = 70 * q / (q + x) / hepatic / 0.8
    assert solved.exposure is not None
    assert solved.exposure.auc_inf_mg_h_l[0, 0] == pytest.approx(auc_plasma, rel=2e-3)
    assert solved.mass_error is not None
    assert solved.mass_error < 1e-11


def test_saturable_pathways_reach_the_named_node_of_a_graph(tmp_path: Path) -> None:
    pathway = {"name": "x", "vmax_mg_h": 40.0, "km_u_mg_l": 0.5}
    study = in_file(tmp_path, GRAPH, drug__saturable=[pathway])
    assert study.system.vmax_mg_h.tolist() == [[pytest.approx(40.0 * 1.8 / 1.726, rel=1e-3)]]
    less = solve_study(in_file(tmp_path, GRAPH)).conc_mg_l - solve_study(study).conc_mg_l
    assert (less[0, :, 1:] > 0).all()


@pytest.mark.parametrize(
    ("structure", "change", "message"),
    [
        ("extends = 'circulation'\ncolour = 1", {}, "colour is no known key"),
        ("extends = 'torus'", {}, "topology is unknown"),
        (GRAPH, {"drug__clint_l_h": 3.0}, "drug.clint_l_h has no place"),
        (GRAPH, {"drug__kp": {"liver": 3.0}}, "drug.kp has no place"), (GRAPH, {"population": {"n": 3}}, "population"),
        (GRAPH, {"subject": {"age_year": 3}}, "age_year is no known key"),
        (GRAPH, {"dose": [{"amount_mg": "1 mg/kg"}]}, "per kg"),
        (GRAPH.replace('absorption = "gut"', ""),
         {"dose": [{"amount_mg": 1, "route": "oral"}]}, "absorption is missing"),
        (GRAPH.replace('saturable = "liver"', ""),
         {"drug__saturable": [{"name": "x", "vmax_mg_h": 4.0, "km_u_mg_l": 1.0}]}, "saturable is missing"),
        (GRAPH.replace(", blood = true", ""), {}, "needs blood as the first node"),
        (GRAPH.replace("25.0", "26.0"), {}, "structure.toml.*into and out of"),
    ],
)  # fmt: skip
def test_structures_that_cannot_be_are_refused(
    structure: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        in_file(tmp_path, structure, **change)


def test_an_own_graph_without_blood_reports_what_it_has(tmp_path: Path) -> None:
    study = in_file(tmp_path, GRAPH.replace(", blood = true", ""), output={"matrix": "blood_venous", "times_h": [1, 2]})
    assert study.blood is None
    assert np.isnan(solve_study(study).exposure.cl_l_h).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("as_file", [False, True])
def test_clearances_per_kg_are_each_persons_own(as_file: bool, tmp_path: Path) -> None:
    data = data_of(population={"n": 4, "seed": 1})
    del data["drug"]["clint_ul_min_million_cells"]
    data["drug"]["cl_renal_l_h"] = "0.05 L/h/kg"
    data["drug"]["clint_l_h"] = 0.0
    if as_file:
        lines = [f"{k} = {v!r}".replace("'", '"') for k, v in data["drug"].items()]
        (tmp_path / "drug.toml").write_text("\n".join(lines))
        data["drug"] = {"file": "drug.toml"}
    study = study_from(data, tmp_path)
    np.testing.assert_allclose(study.system.elimination_l_h[:, 1], 0.05 * study.body_weight_kg)
    assert len(set(study.body_weight_kg)) == 4


def test_sources_say_what_was_measured_and_what_predicted() -> None:
    study = study_from(data_of(drug__kp={"adipose": 2.0}))
    assert study.sources["kp", "adipose"] == "given"
    assert study.sources["kp", "liver"] == study.kp_method
    assert study.sources["bp_ratio", ""] == "given"
    assert "fu_inc" in study.sources["elimination_l_h", "clint_l_h"]
    assert "predicted" in study.sources["elimination_l_h", "clint_l_h"]
    assert study.sources["elimination_l_h", "cl_renal_l_h"] == "GFR x fup"
    values, unit, source = study.derived["fu_inc"]
    assert (0 < values).all()
    assert (unit, source) == ("1", "predicted from log P and pKa")
    changed = study_from(data_of(subject={"condition": "hepatic:B", "enzymes": {"CYP3A4": 1.0},
                                          "binding_protein": "albumin"}))  # fmt: skip
    assert changed.sources["fup", ""] == "given, changed by the condition"
    assert changed.sources["elimination_l_h", "clint_l_h"].endswith("changed by the condition")


@pytest.mark.parametrize(
    ("drug", "source"),
    [
        ({"clint_l_h": 30.0, "liver_model": "dispersion"}, "given, dispersion"),
        ({"cl_hepatic_l_h": 10.0}, "cl_hepatic_l_h, liver blood flow"),
        ({"cl_total_l_h": 12.0, "cl_renal_l_h": 2.0}, "cl_total_l_h less renal, liver blood flow"),
        ({"saturable": [{"name": "x", "vmax_mg_h": 9.0, "km_u_mg_l": 1.0}]}, "none beside saturable pathways"),
    ],
)
def test_every_kind_of_clearance_has_a_source(drug: dict[str, Any], source: str) -> None:
    data = data_of()
    del data["drug"]["clint_ul_min_million_cells"]
    data["drug"] |= drug
    assert study_from(data).sources["elimination_l_h", "clint_l_h"] == source


def test_a_population_may_share_a_condition_and_vary_by_organ() -> None:
    well = study_from(data_of(population={"n": 5, "seed": 2, "volume_cv": {"liver": 0.3}}))
    ill = study_from(data_of(population={"n": 5, "seed": 2, "volume_cv": {"liver": 0.3}, "condition": "renal:severe"}))
    assert (ill.derived["gfr_l_h"][0] < 0.5 * well.derived["gfr_l_h"][0]).all()
    np.testing.assert_array_equal(ill.body_weight_kg, well.body_weight_kg)


def test_a_file_in_a_study_names_itself(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY + '[structure]\nfile = "s.toml"\n')
    (tmp_path / "s.toml").write_text('extends = "circulation"\n[[organ]]\nname = "x"\n')
    with pytest.raises(InputError, match=r"study\.toml: .*s\.toml: organ x: volume_l is missing|s\.toml"):
        read_study(tmp_path / "study.toml")


def varied(**cv: float) -> Study:
    return study_from(data_of(population={"n": 400, "seed": 5, "drug_cv": cv}))


def test_a_drug_may_vary_between_people_as_asked() -> None:
    same, clint, fup = varied(), varied(clint=0.5), varied(fup=0.3)
    ratio = np.log((clint.system.elimination_l_h[:, 0] / same.system.elimination_l_h[:, 0]).numpy())
    assert ratio.std() == pytest.approx(np.sqrt(np.log1p(0.25)), rel=0.1)
    assert abs(ratio.mean()) < 0.1
    np.testing.assert_array_equal(clint.system.volume_l, same.system.volume_l)  # the bodies are the same
    assert ((fup.system.fup > 0) & (fup.system.fup < 1)).all()
    assert len(set(fup.system.fup.tolist())) == 400
    both = varied(clint=0.5, fup=0.3)
    np.testing.assert_array_equal(both.system.fup, fup.system.fup)  # each number has a stream of its own
    assert "CV 50% between people" in clint.sources["elimination_l_h", "clint_l_h"]
    assert "fu_inc" in clint.sources["elimination_l_h", "clint_l_h"]
    assert "condition" not in clint.sources["elimination_l_h", "clint_l_h"]


def test_vmax_varies_with_clint() -> None:
    data = data_of(population={"n": 3, "drug_cv": {"clint": 0.5}})
    del data["drug"]["clint_ul_min_million_cells"]
    data["drug"]["saturable"] = [{"name": "x", "vmax_mg_h": 9.0, "km_u_mg_l": 1.0}]
    study = study_from(data)
    per_litre = study.system.vmax_mg_h[:, 0].numpy() / study.table.volume_l[:, 1]  # type: ignore[union-attr]
    assert len(set(per_litre.round(9).tolist())) == 3


@pytest.mark.parametrize(
    ("cv", "message"),
    [
        (3, "drug_cv is no table"), ({"mood": 1}, "drug_cv.mood is nothing that varies"),
        ({"clint": 3}, "drug_cv.clint"), ({"cl_renal_l_h": 0.2}, "does not state"), ({"clint": "x"}, "not a number"),
    ],
)  # fmt: skip
def test_variation_that_cannot_be_is_refused(cv: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        study_from(data_of(population={"n": 3, "drug_cv": cv}))


def test_permuting_the_nodes_of_a_graph_permutes_its_output(tmp_path: Path) -> None:
    data = tomllib.loads(GRAPH)
    drug = data_of()["drug"] | {"clint_ul_min_million_cells": None}
    chemistry = {k: v for k, v in drug.items() if v is not None}
    curves = []
    for order in ([0, 1, 2, 3], [0, 3, 1, 2]):
        nodes = [data["node"][i] for i in order]
        system = graph_system(Structure(None, (), data | {"node": nodes}), Drug.from_mapping(chemistry))
        conc = organ_concentrations(system, solve(system, dose_events([[DoseCourse(10.0)]]), TIMES))[0]
        curves.append(dict(zip(system.topology.organs, conc, strict=True)))
    for organ, conc in curves[0].items():
        torch.testing.assert_close(conc, curves[1][organ], rtol=1e-11, atol=0)

"""Studies from a TOML file: read, solved, written; and one line for everything that cannot be."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse.data.study import read_study, study_from
from perfuse.errors import InputError
from perfuse.evaluation.solve import solve_study, summary_lines, write_solved

STUDY = """
[drug]
name = "drug"
mw_g_mol = 300.0
logp = 2.0
fup = 0.2
bp_ratio = 1.0
clint_l_h = 60.0
cl_renal_l_h = 1.0
ka_1_h = 1.5
fa = 0.8
[subject]
age_year = 35
sex = "male"
[[dose]]
amount_mg = 100
[output]
times_h = { stop = 300, step = 0.5 }
"""


def edited(**change: Any) -> dict[str, Any]:
    data = tomllib.loads(STUDY)
    for path, value in change.items():
        *steps, last = [int(p) if p.isdigit() else p for p in path.split("__")]
        target: Any = data
        for step in steps:
            target = target.setdefault(step, {}) if isinstance(target, dict) else target[step]
        target[last] = value
    return data


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_clearance_and_volume_come_back_out() -> None:
    """CL of the curve is well-stirred hepatic plus renal plasma clearance of that body."""
    dense = [0, *np.geomspace(0.002, 300, 400).tolist()]
    solved = solve_study(study_from(edited(output__times_h=dense)))
    blood = solved.organs.index("blood")
    q_h, x = 0.255 * 390.0, 0.2 * 60.0
    expected = q_h * x / (q_h + x) + 1.0
    assert solved.exposure is not None
    assert solved.exposure.cl_l_h[0, blood] == pytest.approx(expected, rel=0.01)
    kp = np.asarray(solved.study.table.kp[0])
    volume = solved.study.table.volume_l[0]
    assert solved.exposure.vss_l[0, blood] == pytest.approx(volume[0] + volume[1:] @ kp[1:], rel=0.05)
    assert solved.mass_error is not None
    assert solved.mass_error < 1e-11
    assert np.isnan(solved.exposure.cl_l_h[0, solved.organs.index("brain")])


def test_a_study_file_is_written_whole(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    solved = solve_study(read_study(tmp_path / "study.toml"))
    files = write_solved(solved, tmp_path / "out")
    assert sorted(f.name for f in files) == ["curves.csv", "exposure.csv", "parameters.csv"]
    curves = rows_of(tmp_path / "out" / "curves.csv")
    assert len(curves) == 14 * 601
    assert curves[0] == {"curve_id": "drug", "organ": "plasma", "time_h": "0", "conc_mg_l": curves[0]["conc_mg_l"]}
    assert float(curves[0]["conc_mg_l"]) == pytest.approx(solved.conc_mg_l[0, 0, 0])
    parameters = {(r["parameter"], r["place"]): r for r in rows_of(tmp_path / "out" / "parameters.csv")}
    assert float(parameters["elimination_l_h", "clint_l_h"]["value"]) == 60
    assert parameters["volume_l", "liver"]["unit"] == "L"
    assert "mass balance" in "\n".join(summary_lines(solved))
    with pytest.raises(InputError, match="exists already"):
        write_solved(solved, tmp_path / "out")


def test_a_population_gives_prediction_intervals(tmp_path: Path) -> None:
    data = edited(population={"n": 60, "seed": 3}, output__times_h=[0.5, 4, 24], dose=[{"amount_mg": "2 mg/kg"}])
    del data["subject"]
    solved = solve_study(study_from(data))
    assert solved.conc_mg_l.shape == (60, 14, 3)
    low, middle, high = solved.percentiles()
    assert (low < middle).all()
    assert (middle < high).all()
    np.testing.assert_allclose(solved.study.table.dose_mg[:, 0], 2 * solved.study.table.body_weight_kg)
    write_solved(solved, tmp_path / "out")
    intervals = rows_of(tmp_path / "out" / "intervals.csv")
    assert len(intervals) == 14 * 3
    assert float(intervals[0]["p50_mg_l"]) == pytest.approx(middle[0, 0], rel=1e-9)
    assert "60 people" in summary_lines(solved)[0]


def test_regimens_structure_and_organs_of_ones_own() -> None:
    data = edited(
        dose=[
            {"amount_mg": "0.1 g", "route": "oral", "interval_h": "12 h", "n_doses": 3},
            {"amount_mg": 20, "duration_h": "30 min", "time_h": 1},
        ],
        structure={"permeability_limited": ["brain"]}, drug__ps_l_h={"brain": 2.0},
        organ=[{"name": "tumour", "volume_l": 0.02, "flow_l_h": 0.5}],
        output__organs=["blood", "brain", "tumour"], output__times_h={"stop": 36, "step": "30 min"},
    )  # fmt: skip
    solved = solve_study(study_from(data))
    assert solved.conc_mg_l.shape == (1, 3, 73)
    assert solved.mass_error is not None
    assert solved.mass_error < 1e-11
    assert solved.system.topology.nodes[-1] == "tumour"
    assert solved.study.table.dose_time_h[0].tolist() == [0, 1, 12, 24]
    assert np.isnan(solved.exposure.cl_l_h).all()  # type: ignore[union-attr]


def test_steady_state_repeats_itself() -> None:
    data = edited(output__steady_state_tau_h=12, output__times_h=[0.5, 6, 12], dose=[{"amount_mg": 50}])
    steady = solve_study(study_from(data))
    many = edited(dose=[{"amount_mg": 50, "interval_h": 12, "n_doses": 60}], output__times_h=[708.5, 714, 720])
    np.testing.assert_allclose(steady.conc_mg_l, solve_study(study_from(many)).conc_mg_l, rtol=1e-8)
    assert steady.exposure is None


@pytest.mark.parametrize(
    ("subject", "check"),
    [
        ({"species": "rat", "body_weight_kg": 0.3}, lambda t: t.body_weight_kg[0] == 0.3),
        ({"age_year": 6, "sex": "female"}, lambda t: 19 < t.body_weight_kg[0] < 25),
        ({"condition": "renal:severe"}, lambda t: t.flow_l_h[0, 2] < 20),
        ({"condition": "hepatic:C"}, lambda t: t.volume_l[0, 1] < 0.6),
        ({"condition": "obese", "body_weight_kg": 130}, lambda t: t.volume_l[0, 7] > 50),
    ],
)
def test_subjects(subject: dict[str, Any], check: Any) -> None:
    solved = solve_study(study_from(edited(subject=subject, drug__cl_renal_l_h=0.1)))
    assert check(solved.study.table)
    assert (solved.conc_mg_l >= 0).all()


def test_a_condition_reaches_the_drug_where_enzymes_and_protein_are_said() -> None:
    drug = {"name": "d", "mw_g_mol": 300.0, "logp": 2.0, "fup": 0.1, "clint_ul_min_million_cells": 20.0}
    body = {"condition": "hepatic:C"}
    only_body = study_from(edited(drug=drug, subject=body))
    both = study_from(edited(drug=drug, subject=body | {"enzymes": {"CYP3A4": 1.0}, "binding_protein": "albumin"}))
    assert only_body.drug.fup == 0.1
    assert both.drug.fup == pytest.approx(1 / (1 + 0.5 * 9))
    assert both.drug.clint_ul_min_million_cells == pytest.approx(0.4 * 20)
    for extra, message in (
        ({"enzymes": {"CYP9": 1.0}}, "CYP9"),
        ({"binding_protein": "glue"}, "protein"),
        ({"enzymes": 3}, "no table"),
    ):
        with pytest.raises(InputError, match=message):
            study_from(edited(drug=drug, subject=body | extra))
    with pytest.raises(InputError, match="need a condition"):
        study_from(edited(subject={"binding_protein": "albumin"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "colour is no known section"), ({"drug__colour": 1}, "colour is no known key"),
        ({"drug__fup": 2.0}, "fup"), ({"subject__age_year": 1.0}, "age_year"), ({"subject__sex": "x"}, "sex"),
        ({"subject__condition": "tired"}, "condition is unknown"),
        ({"subject__condition": "renal:bad"}, "condition is unknown"),
        ({"subject__species": "cat"}, "species is unknown"), ({"subject": {"condition": "obese"}}, "obesity needs it"),
        ({"population__n": 0}, "exclude each other"), ({"dose": []}, "dose is missing"),
        ({"dose": 3}, "no list of tables"),
        ({"dose__0__amount_mg": -1}, "dose 1: dose amount_mg"), ({"dose__0__amount_mg": "5 s"}, "amount_mg"),
        ({"dose__0__route": "nasal"}, "route"), ({"dose__0__n_doses": 2}, "interval_h is missing"),
        ({"dose__0__size": 2}, "size is no known key"), ({"output__organs": ["nose"]}, "unknown organ"),
        ({"output__organs": []}, "organs"), ({"output__matrix": "arterial_plasma"}, "matrix"),
        ({"output__kp_method": "guess"}, "kp_method"), ({"output__times_h": []}, "times_h"),
        ({"output__times_h": {"stop": 1, "step": 0}}, "step > 0"),
        ({"output__times_h": {"every": 1}}, "every is no known key"),
        ({"output__times_h": [2, 1]}, "not increasing"), ({"output__percentiles": [95, 5]}, "percentiles"),
        ({"structure__topology": "torus"}, "topology"),
        ({"structure__permeability_limited": ["spleen"]}, "permeability_limited"),
        ({"structure": {"topology": "hub", "permeability_limited": ["brain"]}}, "needs the topology circulation"),
        ({"structure__permeability_limited": ["brain"]}, "ps_l_h"), ({"organ": [{"name": "t"}]}, "is missing"),
        ({"drug": {"file": "../x.toml"}}, "outside the study's folder"),
        ({"drug": {"file": "x.toml"}}, "cannot be read"),
        ({"drug": 1}, "drug is missing"),
        ({"output__steady_state_tau_h": 12, "output__times_h": [20]}, "outside the dosing interval"),
    ],
)  # fmt: skip
def test_studies_that_cannot_be_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        solve_study(study_from(edited(**change), tmp_path))


@pytest.mark.parametrize(
    ("population", "message"),
    [
        ({"n": 0}, "population.n"), ({"n": True}, "population.n"), ({}, "population.n"),
        ({"n": 5, "seed": -1}, "population.seed"),
        ({"n": 5, "age_range_year": [1, 5]}, "age_year"), ({"n": 5, "age_range_year": 5}, "is no pair"),
        ({"n": 5, "share_female": 2}, "share_female"), ({"n": 5, "size": 2}, "size is no known key"),
    ],
)  # fmt: skip
def test_populations_that_cannot_be_are_refused(population: dict[str, Any], message: str) -> None:
    data = edited(population=population)
    del data["subject"]
    with pytest.raises(InputError, match=message):
        study_from(data)


def test_a_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    with pytest.raises(InputError, match=r"study\.toml"):
        read_study(path)
    path.write_text("[drug]\nname = 3\n[[dose]]\namount_mg = 1\n")
    with pytest.raises(InputError, match=r"study\.toml: "):
        read_study(path)

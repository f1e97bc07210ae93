"""Studies from a TOML file: read, solved, written; and one line for everything that cannot be."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse.data.study import read_study, study_from
from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation.solve import solve_study, summary_lines, write_solved
from perfuse.pk.sensitivity import auc_inf

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
    solved = solve_study(study_from(edited(output__times_h={"stop": 300, "step": 1})))
    blood = solved.organs.index("blood")
    q_h, x = 0.255 * 390.0, 0.2 * 60.0
    expected = q_h * x / (q_h + x) + 1.0
    assert solved.exposure is not None
    assert solved.exposure.cl_l_h[0, blood] == pytest.approx(expected, rel=2e-3)
    kp = np.asarray(solved.study.table.kp[0])
    volume = solved.study.table.volume_l[0]
    assert solved.exposure.vss_l[0, blood] == pytest.approx(volume[0] + volume[1:] @ kp[1:], rel=0.01)
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
    assert curves[0] == {"curve_id": "drug", "organ": "plasma", "time_h": "0.0", "conc_mg_l": curves[0]["conc_mg_l"]}
    assert float(curves[0]["conc_mg_l"]) == pytest.approx(solved.conc_mg_l[0, 0, 0])
    parameters = {(r["parameter"], r["place"]): r for r in rows_of(tmp_path / "out" / "parameters.csv")}
    assert float(parameters["elimination_l_h", "clint_l_h"]["value"]) == 60
    assert parameters["volume_l", "liver"]["unit"] == "L"
    assert parameters["elimination_l_h", "clint_l_h"]["source"] == "given"
    assert parameters["kp", "liver"]["source"] == "berezhkovskiy"
    assert all(row["source"] for row in parameters.values())
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
    assert steady.interval is not None
    blood = steady.organs.index("blood")
    assert steady.interval.cmax_mg_l[0, blood, 0] > steady.conc_mg_l[0, blood, 0]  # its times are dense


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
        ({"output__steady_state_tau_h": 0}, "steady_state_tau_h"),
        ({"output__times_h": "now and then"}, "no range of times"), ({"output__times_h": "0..4 s by 1 mg"}, "step"),
        ({"output__times_h": "4..0 h by 1 h"}, "start < stop"),
        ({"dose__0__time_h": []}, "empty list"), ({"dose__0__time_h": [0, -1]}, "dose 1: dose time_h"),
        ({"dose__0": {"amount_mg": 1, "time_h": [0, 1], "interval_h": 2}}, "the same thing twice"),
        ({"structure__file": "../x.toml"}, "outside the study's folder"), ({"structure__file": 3}, "no file name"),
        ({"structure": {"file": "x.toml", "topology": "hub"}}, "stands alone"),
        ({"structure": {"file": "x.toml"}}, "cannot be read"),
        ({"sensitivity__output": "beauty"}, "output is unknown"), ({"sensitivity__organ": "nose"}, "organ is unknown"),
        ({"sensitivity__method": "guess"}, "method is unknown"),
        ({"sensitivity__time_h": 1}, "goes with concentration"),
        ({"sensitivity": {"output": "concentration", "time_h": -1}}, "time_h"),
        ({"sensitivity__n": 4}, "goes with morris"), ({"sensitivity__method": "sobol"}, "ranges is missing"),
        ({"sensitivity": {"method": "sobol", "ranges": {"nose": [1, 2]}}}, "is no parameter"),
        ({"sensitivity": {"method": "sobol", "ranges": {"fup": [2, 1]}}}, "0 < low < high"),
        ({"sensitivity": {"method": "sobol", "ranges": {"fup": 2}}}, "no pair"),
        ({"sensitivity": {"method": "sobol", "ranges": {"fup": [1, 2]}, "n": 3}}, "no power of 2"),
        ({"sensitivity": {"method": "morris", "ranges": {"fup": [1, 2]}, "seed": -1}}, "seed"),
        ({"sensitivity__output": "vss", "drug__saturable": [{"name": "x", "vmax_mg_h": 3, "km_u_mg_l": 1}]}, "linear"),
        ({"sensitivity": {}, "output": {"steady_state_tau_h": 24}}, "of one subject"),
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
        ({"n": 5, "condition": "obese"}, "condition"), ({"n": 5, "volume_cv": {"nose": 1}}, "volume_cv.nose"),
        ({"n": 5, "enzymes": {"CYP3A4": 1}}, "need a condition"),
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


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solved = solve_study(study_from(edited(output__times_h=[1, 2])))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    write_solved(solved, Path())
    assert len(list((tmp_path / "empty").iterdir())) == 3

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polars.DataFrame.write_csv", full)
    with pytest.raises(PerfuseError, match="No space left on device"):
        write_solved(solved, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_exposure_says_what_is_missing_and_why(tmp_path: Path) -> None:
    data = edited(dose=[{"amount_mg": 100, "route": "oral"}])
    solved = solve_study(study_from(data))
    write_solved(solved, tmp_path / "out")
    rows = {row["organ"]: row for row in rows_of(tmp_path / "out" / "exposure.csv")}
    assert rows["plasma"]["cl_l_h"] == ""
    assert "cl_l_h" in rows["plasma"]["not_available"]
    q, x = 0.255 * 390.0, 0.2 * 60.0
    hepatic, f = q * x / (q + x), 0.8 * q / (q + x)
    assert float(rows["plasma"]["cl_f_l_h"]) == pytest.approx((hepatic + 1.0) / f, rel=0.02)
    assert "CL/F" in "\n".join(summary_lines(solved))
    parameters = {r["parameter"]: r for r in rows_of(tmp_path / "out" / "parameters.csv")}
    assert float(parameters["f_abs"]["value"]) == 0.8


def test_steady_state_is_written_by_interval(tmp_path: Path) -> None:
    data = edited(output__steady_state_tau_h=12, output__times_h="0..12 h by 15 min",
                  dose=[{"amount_mg": 50, "duration_h": 1}])  # fmt: skip
    solved = solve_study(study_from(data))
    write_solved(solved, tmp_path / "out")
    plasma = rows_of(tmp_path / "out" / "exposure.csv")[0]
    q, x = 0.255 * 390.0, 0.2 * 60.0
    assert float(plasma["cl_ss_l_h"]) == pytest.approx(q * x / (q + x) + 1.0, rel=0.01)
    assert float(plasma["cavg_mg_l"]) == pytest.approx(float(plasma["auc_tau_mg_h_l"]) / 12)
    assert "at steady state" in "\n".join(summary_lines(solved))


@pytest.mark.parametrize(
    ("request_", "column"),
    [
        ({"output": "auc_inf"}, "elasticity"), ({"output": "concentration", "time_h": "30 min"}, "elasticity"),
        ({"output": "cmax", "organ": "brain"}, "elasticity"), ({"output": "auc_last"}, "elasticity"),
        ({"output": "clearance"}, "elasticity"),
        ({"output": "vss", "method": "morris", "n": 4, "ranges": {"fup": [0.5, 2], "kp.muscle": [0.5, 2]}}, "mu_star"),
        ({"output": "half_life", "method": "sobol", "n": 16, "ranges": {"fup": [0.5, 2]}}, "st"),
    ],
)  # fmt: skip
def test_sensitivities_of_a_study(request_: dict[str, Any], column: str, tmp_path: Path) -> None:
    if "ranges" in request_:
        pytest.importorskip("SALib", reason="SALib is an extra")
    solved = solve_study(study_from(edited(sensitivity=request_, output__times_h="0..24 h by 1 h")))
    write_solved(solved, tmp_path / "out")
    rows = {row["parameter"]: float(row[column]) for row in rows_of(tmp_path / "out" / "sensitivity.csv")}
    assert rows["fup"] != 0
    assert "sensitivity of" in summary_lines(solved)[-1]
    if request_["output"] == "clearance":
        q, x = 0.255 * 390.0, 0.2 * 60.0
        assert rows["clint_l_h"] == pytest.approx(q * q * x / (q + x) ** 2 / (q * x / (q + x) + 1.0), rel=1e-2)


def test_exposure_depends_neither_on_the_output_grid_nor_on_the_clock() -> None:
    """A bolus, and the same ten hours later; exact clearance from the solver's own AUC."""
    coarse, late = (
        solve_study(study_from(edited(output__times_h=times, dose=[{"amount_mg": 100, "time_h": start}])))
        for times, start in (([0, 24, 300], 0), ([0, 34, 310], 10))
    )
    fine = solve_study(study_from(edited(output__times_h={"stop": 300, "step": 0.05})))
    exact = 100 / float(auc_inf("blood")(fine.system, fine.doses)[0])
    for solved in (coarse, late, fine):
        assert solved.exposure is not None
        assert solved.exposure.cl_l_h[0, 0] == pytest.approx(exact, rel=1e-3)
        assert solved.exposure.mrt_h[0, 0] == pytest.approx(fine.exposure.mrt_h[0, 0], rel=2e-3)  # type: ignore[union-attr]


def test_several_doses_have_no_single_doses_exposure() -> None:
    solved = solve_study(study_from(edited(dose=[{"amount_mg": 10, "interval_h": 12, "n_doses": 4}])))
    assert solved.exposure is not None
    for name in ("auc_inf_mg_h_l", "half_life_h", "cl_l_h", "vss_l", "mrt_h"):
        assert np.isnan(getattr(solved.exposure, name)).all()
    assert (solved.exposure.auc_last_mg_h_l > 0).all()
    assert "CL not available" in "\n".join(summary_lines(solved))


def test_values_per_kg_are_each_persons_own() -> None:
    drug = {
        "name": "d",
        "mw_g_mol": 300.0,
        "logp": 1.0,
        "fup": 0.5,
        "cl_total_l_h": "0.2 L/h/kg",
        "cl_renal_l_h": "0.2 L/h/kg",
    }
    data = edited(drug=drug, population={"n": 6, "age_range_year": [3, 40], "weight_cv": 0.3})
    del data["subject"]
    table = study_from(data).table
    np.testing.assert_allclose(table.elimination_l_h[:, 1], 0.2 * table.body_weight_kg)


def test_sbml_of_a_steady_state_is_refused(tmp_path: Path) -> None:
    steady = solve_study(study_from(edited(output__steady_state_tau_h=12, output__times_h=[1, 12])))
    with pytest.raises(InputError, match="--sbml does not go with"):
        write_solved(steady, tmp_path / "out", sbml=True)
    assert not (tmp_path / "out").exists()


def test_a_rat_has_its_own_partition_coefficients() -> None:
    change = {"output__kp_method": "schmitt", "drug__cl_renal_l_h": 0.01, "drug__clint_l_h": 0.1}
    kp = [study_from(edited(subject={"species": s}, **change)).system.kp.numpy() for s in ("rat", "human")]
    assert not np.allclose(kp[0], kp[1])


def test_people_are_analysed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data = edited(population={"n": 7, "seed": 3}, output__times_h=[0.5, 4, 24])
    del data["subject"]
    steady = edited(population={"n": 7}, output={"steady_state_tau_h": 8, "times_h": [1]}, dose=[{"amount_mg": 5}])
    del steady["subject"]
    whole = [solve_study(study_from(d)) for d in (data, steady)]
    monkeypatch.setattr("perfuse.evaluation.solve._NCA_AT_ONCE", 3)
    parts = [solve_study(study_from(d)) for d in (data, steady)]
    assert whole[0].exposure is not None
    assert parts[0].exposure is not None
    np.testing.assert_allclose(parts[0].exposure.cl_l_h, whole[0].exposure.cl_l_h, rtol=1e-9)
    assert (parts[0].exposure.why("cl_l_h") == whole[0].exposure.why("cl_l_h")).all()
    assert whole[1].interval is not None
    assert parts[1].interval is not None
    np.testing.assert_allclose(parts[1].interval.cavg_mg_l, whole[1].interval.cavg_mg_l, rtol=1e-9)


def test_a_dose_after_the_last_time_leaves_nothing_to_analyse() -> None:
    solved = solve_study(study_from(edited(dose=[{"amount_mg": 5, "time_h": 30}], output__times_h=[1, 2])))
    assert (solved.conc_mg_l == 0).all()
    assert np.isnan(solved.exposure.cl_l_h).all()  # type: ignore[union-attr]
    assert "not available" in summary_lines(solved)[-1]

"""Observed human curves and drug x dose tables: what is kept, what is counted, what is refused."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse.data.batch import in_matrix
from perfuse.data.importers import human
from perfuse.data.importers.drug_csv import read_drug_dose_csv
from perfuse.data.inputs import Dose, curve_table_for
from perfuse.data.table import CurveTable, to_batch
from perfuse.errors import InputError
from perfuse.pk import mechanistic
from perfuse.pk.drug import Drug
from perfuse.pk.topology import get_topology

HUB, CIRCULATION = get_topology("hub"), get_topology("circulation")
TIMES = np.asarray([0.5, 1.0, 4.0])
ROW: dict[str, Any] = {
    "compound": "Drugone", "curve_id": "c1", "species": "human", "route": "iv_bolus", "infusion_duration_h": "",
    "dose_mg_used": 100, "body_weight_used_kg": 80, "matrix": "plasma", "time_h": 1, "conc_mg_per_L": 2,
    "httk_mw_g_per_mol": 300, "httk_logp_octanol_water": 1.5, "httk_pka_donor_acid_list": "",
    "httk_pka_acceptor_base_list": "9.1,4", "httk_human_fup_fraction": 0.3, human.CLINT_COLUMN: 5,
    "httk_human_blood_to_plasma_ratio": 0.9, "flag_special_population": "False", "flag_ddi_or_codosed": "False",
    "flag_unbound_conc": "False", "flag_maybe_multidose": "False", "n_dose_events": "1.0", "qc_tier": "A",
    "body_weight_assumed_70kg": "False",
}  # fmt: skip


def _write(folder: Path, rows: list[dict[str, Any]], drop: str = "") -> Path:
    path = folder / "observed.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        names = [name for name in ROW if name != drop]
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _read(folder: Path, rows: list[dict[str, Any]], topology: Any = HUB) -> tuple[CurveTable, human.ObservedReport]:
    return human.read_observed(_write(folder, rows), topology)


def test_one_curve_becomes_what_the_drug_says(tmp_path: Path) -> None:
    table, report = _read(tmp_path, [ROW | {"time_h": 4, "conc_mg_per_L": 0.5}, ROW], CIRCULATION)
    drug = Drug(
        name="drugone", mw_g_mol=300, logp=1.5, fup=0.3, pka_base=(9.1, 4.0), bp_ratio=0.9, clint_ul_min_million_cells=5
    )
    expected = curve_table_for(drug, CIRCULATION, 80.0, [Dose(0.0, 100.0)], np.asarray([1.0, 4.0]))
    for name in ("kp", "elimination_l_h", "volume_l", "flow_l_h", "fup", "bp_ratio", "dose_mg", "time_h", "group_id"):
        np.testing.assert_array_equal(table.column(name), expected.column(name))
    assert table.conc_mg_l[0, 0].tolist() == [2.0, 0.5]
    assert np.isnan(table.conc_mg_l[0, 1:]).all()
    assert not table.censored.any()
    assert (table.curve_id[0], table.compound_id[0], table.matrix[0]) == ("c1", "drugone", "plasma")
    assert (report.n_rows, report.n_curves, report.n_kept, report.n_kept_compounds) == (2, 1, 1, 1)
    assert not report.excluded
    assert report.lines() == ["1 of 1 curves kept (1 of 1 compounds)"]


def test_loq_never_exceeds_what_was_observed(tmp_path: Path) -> None:
    usual, _ = _read(tmp_path, [ROW])
    assert usual.loq_mg_l[0] == pytest.approx(1e-5 * 100 / 5.0)
    baseline, _ = _read(tmp_path, [ROW, ROW | {"time_h": 0, "conc_mg_per_L": 1e-9}])
    assert baseline.loq_mg_l[0] == usual.loq_mg_l[0]
    low, _ = _read(tmp_path, [ROW, ROW | {"time_h": 30, "conc_mg_per_L": 1e-6}])
    assert low.loq_mg_l[0] == 1e-6
    assert to_batch(low).mask[0, 0].all()


EXCLUDED: list[tuple[dict[str, Any], str]] = [
    ({"species": "rat"}, "not human"),
    ({"route": "iv_unspecified"}, "bolus or infusion not stated"),
    ({"route": "oral"}, "not intravenous"),
    ({"route": "iv_infusion"}, "infusion without duration"),
    ({"matrix": "arterial_plasma"}, "arterial matrix (reported blood is venous)"),
    ({"matrix": "arterial_blood"}, "arterial matrix (reported blood is venous)"),
    ({"matrix": "saliva"}, "matrix not modelled"),
    ({"flag_unbound_conc": "True"}, "unbound concentrations"),
    ({"n_dose_events": "3"}, "several doses, or not surely one"),
    ({"flag_maybe_multidose": "True"}, "several doses, or not surely one"),
    ({"dose_mg_used": ""}, "no dose"),
    ({"body_weight_used_kg": ""}, "no body weight"),
    ({"httk_mw_g_per_mol": ""}, "no molecular weight"),
    ({"httk_logp_octanol_water": ""}, "no logP"),
    ({"httk_human_fup_fraction": ""}, "no fup measured"),
    ({human.CLINT_COLUMN: ""}, "no hepatocyte CLint measured"),
    ({"time_h": 0}, "no concentration at a positive time"),
    ({"conc_mg_per_L": ""}, "no concentration at a positive time"),
]


@pytest.mark.parametrize(("change", "reason"), EXCLUDED)
def test_unusable_curve_is_counted_by_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    table, report = _read(tmp_path, [ROW, ROW | {"curve_id": "c2"} | change])
    assert table.curve_id.tolist() == ["c1"]
    assert report.excluded == {reason: 1}
    assert f"  left out: {reason}: 1" in report.lines()


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"flag_special_population": "True"}, "special population"),
        ({"flag_ddi_or_codosed": "True"}, "interaction or co-dosed"),
        ({"body_weight_assumed_70kg": "True"}, "body weight assumed to be 70 kg"),
        ({"qc_tier": "C_suspect"}, "clearance more than 3-fold off the literature (tier C)"),
        ({human.CLINT_COLUMN: 0}, "CLint 0: no turnover measured"),
        ({"httk_human_blood_to_plasma_ratio": ""}, "B:P not measured"),
    ],
)
def test_noteworthy_curve_is_kept_and_counted(tmp_path: Path, change: dict[str, Any], note: str) -> None:
    table, report = _read(tmp_path, [ROW | change])
    assert len(table) == 1
    assert report.flagged == {note: 1}


def test_values_dropped_and_averaged(tmp_path: Path) -> None:
    rows = [
        ROW | {"time_h": t, "conc_mg_per_L": c}
        for t, c in ((1, 4.0), (1, 1.0), (2, 0), (-1, 3.0), (0, 9.0), ("", 2.0), (5, ""), (8, 0.5))
    ]
    table, report = _read(tmp_path, rows)
    assert table.time_h[0].tolist() == [1.0, 8.0]
    assert table.conc_mg_l[0, 0] == pytest.approx([2.0, 0.5])
    assert report.averaged_values == 1
    assert report.dropped_values == {
        "zero: below a limit of quantification that is not stated": 1,
        "not after the dose": 2,
        "no time or no concentration": 2,
    }


def test_matrices_and_infusion(tmp_path: Path) -> None:
    matrices = ("plasma", "plasma_assumed", "serum", "whole_blood")
    rows = [ROW | {"curve_id": m, "matrix": m, "route": "iv_infusion", "infusion_duration_h": 0.5} for m in matrices]
    table, _ = _read(tmp_path, rows)
    assert table.matrix.tolist() == ["plasma", "plasma", "serum", "blood_venous"]
    assert table.dose_duration_h.tolist() == [[0.5]] * 4
    assert to_batch(table).is_plasma.tolist() == [True, True, True, False]


def test_enantiomers_are_one_compound(tmp_path: Path) -> None:
    table, report = _read(tmp_path, [ROW | {"compound": "(S)-Drugone"}, ROW | {"curve_id": "c2"}])
    assert table.compound_id.tolist() == ["drugone", "drugone"]
    assert (report.n_compounds, report.n_kept_compounds) == (1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_h": "soon"}, r"line 2: time_h is not a number \(got soon\)"),
        ({"conc_mg_per_L": "nan"}, "line 2: conc_mg_per_L is not finite"),
        ({"conc_mg_per_L": "-1"}, "line 2: conc_mg_per_L is not allowed"),
        ({"conc_mg_per_L": "__import__('os')"}, "conc_mg_per_L is not a number"),
        ({"httk_human_fup_fraction": "1.5"}, "line 2: fup is not allowed"),
        ({"httk_human_fup_fraction": "-0.5"}, "line 2: fup is not allowed"),
        ({human.CLINT_COLUMN: "-3"}, "clint_ul_min_million_cells is not allowed"),
        ({"httk_pka_acceptor_base_list": "8,x"}, "httk_pka_acceptor_base_list is not a number"),
        ({"dose_mg_used": "-5"}, "dose amount_mg is not allowed"),
        ({"body_weight_used_kg": "900"}, "body_weight_kg is not allowed"),
        ({"infusion_duration_h": "-1", "route": "iv_infusion"}, "dose duration_h"),
        ({"flag_unbound_conc": "perhaps"}, "flag_unbound_conc is no truth value"),
        ({"curve_id": ""}, "curve_id is empty"),
        ({"route": "oral"}, "curves are all left out; hint: not intravenous: 1"),
    ],
)
def test_bad_value_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        _read(tmp_path, [ROW | change])
    assert "observed.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column matrix is missing"):
        human.read_observed(_write(tmp_path, [ROW], drop="matrix"), HUB)
    with pytest.raises(InputError, match="only a header"):
        human.read_observed(_write(tmp_path, []), HUB)
    with pytest.raises(InputError, match="dose_mg_used changes within curve c1"):
        _read(tmp_path, [ROW, ROW | {"time_h": 2, "dose_mg_used": 50}])
    with pytest.raises(InputError, match="cannot be read"):
        human.read_observed(tmp_path / "nothing.csv", HUB)
    bad = tmp_path / "bad.csv"
    for content, message in (
        (b"", "file is empty"),
        (b"\xff\xfe\x00", "is no CSV text"),
        (b'a,"b\n1,2', "is no CSV text"),
        (b"curve_id,curve_id\n1,2", "is missing"),
    ):
        bad.write_bytes(content)
        with pytest.raises(InputError, match=message):
            human.read_observed(bad, HUB)
    path = _write(tmp_path, [ROW])
    path.write_text(path.read_text(encoding="utf-8") + "1,2,3\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 3: row has a wrong number of cells"):
        human.read_observed(path, HUB)


def test_repeated_column(tmp_path: Path) -> None:
    path = tmp_path / "drugs.csv"
    path.write_text("name,mw_g_mol,logp,fup,dose_mg,fup\na,1,1,1,1,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="column fup appears twice"):
        read_drug_dose_csv(path, HUB, TIMES)


HEADER = "name,mw_g_mol,logp,fup,pka_base,clint_l_h,kp_liver,dose_mg,dose_time_h,duration_h,body_weight_kg,curve_id\n"


def test_drug_dose_table(tmp_path: Path) -> None:
    path = tmp_path / "drugs.csv"
    path.write_text(
        HEADER
        + "a,300,2,0.1,8.2; 4,50,,100,,,,a1\n"
        + "a,300,2,0.1,8.2; 4,50,,60,12,0.5,,a1\n"
        + "b,200,0,0.9,,20,3.5,10,,,60,\n",
        encoding="utf-8",
    )
    table = read_drug_dose_csv(path, CIRCULATION, TIMES)
    assert table.curve_id.tolist() == ["a1", "b"]
    assert table.compound_id.tolist() == ["a", "b"]
    assert table.dose_mg.tolist() == [[100.0, 60.0], [10.0, 0.0]]
    assert table.dose_time_h.tolist() == [[0.0, 12.0], [0.0, 0.0]]
    assert table.dose_duration_h.tolist() == [[0.0, 0.5], [0.0, 0.0]]
    assert table.body_weight_kg.tolist() == [70.0, 60.0]
    assert table.kp[1, 1] == 3.5
    assert table.time_h.tolist() == [TIMES.tolist()] * 2
    drug = Drug(name="a", mw_g_mol=300, logp=2, fup=0.1, pka_base=(8.2, 4.0), clint_l_h=50)
    expected = curve_table_for(drug, CIRCULATION, 70.0, [Dose(0.0, 100.0)], TIMES)
    np.testing.assert_array_equal(table.kp[0], expected.kp[0])
    np.testing.assert_array_equal(table.elimination_l_h[0], expected.elimination_l_h[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,mw_g_mol,logp,fup\na,1,1,1\n", "column dose_mg is missing"),
        ("name,mw_g_mol,logp,fup,dose_mg,colour\na,1,1,1,1,red\n", "column colour is unknown"),
        ("name,mw_g_mol,logp,fup,dose_mg,clint_l_h\na,300,2,,10,5\n", "line 2: fup is empty"),
        ("name,mw_g_mol,logp,fup,dose_mg,clint_l_h\na,300,2,0.1,,5\n", "line 2: dose_mg is empty"),
        ("name,mw_g_mol,logp,fup,dose_mg,clint_l_h\na,300,2,2,10,5\n", "line 2: fup is not allowed"),
        ("name,mw_g_mol,logp,fup,dose_mg,clint_l_h\n,300,2,0.2,10,5\n", "line 2: name is empty"),
        ("name,mw_g_mol,logp,fup,dose_mg,clint_l_h\na,300,2,0.2,-10,5\n", "line 2: dose amount_mg"),
        ("name,mw_g_mol,logp,fup,dose_mg,clint_l_h\na,300,2,0.2,1e,5\n", "line 2: dose_mg is not a number"),
        ("name,mw_g_mol,logp,fup,dose_mg\na,300,2,0.2,10\n", "line 2: drug a: clearance of the liver is missing"),
        ("name,mw_g_mol,logp,fup,dose_mg,clint_l_h,route\na,300,2,0.2,10,5,oral\n", "csv: line 2.*ka_1_h is missing"),
        ("name,mw_g_mol,logp,fup,dose_mg,clint_l_h,kp_gut\na,300,2,0.2,10,5,-1\n", "line 2: kp.gut"),
        ("name,mw_g_mol,logp,fup,dose_mg,clint_l_h,matrix\na,300,2,0.2,10,5,sweat\n", "matrix is unknown"),
        ("name,mw_g_mol,logp,fup,dose_mg,clint_l_h,body_weight_kg\na,300,2,0.2,10,5,0\n", "line 2: body_weight_kg"),
        (
            "name,mw_g_mol,logp,fup,dose_mg,clint_l_h,matrix\na,300,2,0.2,10,5,blood_arterial\n",
            "line 2: matrix cannot be",
        ),
        (
            "name,mw_g_mol,logp,fup,dose_mg,clint_l_h,kp_liver\na,300,2,0.2,10,5,1e-15\n",
            "line 2: kp.liver is not allowed",
        ),
        (
            "name,mw_g_mol,logp,fup,dose_mg,clint_l_h\na,300,2,0.2,10,5\na,300,3,0.2,10,5\n",
            "line 3: logp differs between doses of curve a",
        ),
    ],
)
def test_drug_dose_table_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "drugs.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        read_drug_dose_csv(path, HUB, TIMES)
    assert "drugs.csv" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "bound"), [("hub", 3.5), ("circulation", 3.2)])
def test_mechanistic_model_on_measured_human_plasma(perfuse_data: Path, name: str, bound: float) -> None:
    """The real file: 118 of 200 curves, 11 drugs. Plasma GMFE was measured as 2.73 (hub) and 2.39 (circulation)."""
    table, report = human.read_observed(perfuse_data / "human_iv_curves.csv", get_topology(name))
    assert (report.n_curves, report.n_kept, report.n_kept_compounds) == (200, 118, 11)
    assert report.excluded["infusion without duration"] == 10
    assert sum(report.excluded.values()) + report.n_kept == report.n_curves
    batch = to_batch(table)
    amounts = mechanistic.solve(batch.system, batch.doses, batch.time_h)
    predicted = in_matrix(batch, mechanistic.organ_concentrations(batch.system, amounts))[:, 0]
    predicted = predicted.clamp_min(0).maximum(batch.loq_mg_l[:, None] / 100)
    counts = batch.mask[:, 0] & batch.is_plasma[:, None]
    errors = (predicted.log() - batch.conc_mg_l[:, 0].log()).abs()
    drugs = [c for c in sorted(set(table.compound_id)) if counts[table.compound_id == c].any()]
    per_drug = [float(errors[table.compound_id == c][counts[table.compound_id == c]].mean()) for c in drugs]
    gmfe = math.exp(np.mean(per_drug))
    print(f"{name}: plasma GMFE {gmfe:.3f} over {len(drugs)} drugs, {int(counts.sum())} values")
    assert 1.0 < gmfe < bound


@pytest.mark.real_data
def test_oral_file_is_refused_with_its_reason(perfuse_data: Path) -> None:
    with pytest.raises(InputError, match="curves are all left out; hint: not intravenous"):
        human.read_observed(perfuse_data / "human_oral_curves.csv", HUB)

"""NONMEM data files: a public data set, every kind of record, units, round trips, and every refusal."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from perfuse.data.importers.nonmem import NonmemOptions, read_nonmem, write_nonmem
from perfuse.data.simulate import simulate_task
from perfuse.data.table import CurveTable, to_batch
from perfuse.errors import InputError, PerfuseError
from perfuse.pk.drug import Drug
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, human_reference
from perfuse.pk.topology import get_topology

THEOPHYLLINE = """ ID   DOSE  TIME   CP    WT
  1   4.02    .     .   79.6
  1    .     0.    .74    .
  1    .     .25  2.84    .
  1    .     .57  6.57    .
  1    .    1.12 10.5     .
  1    .    2.02  9.66    .
  1    .    3.82  8.58    .
  1    .    5.1   8.36    .
  1    .    7.03  7.47    .
  1    .    9.05  6.89    .
  1    .   12.12  5.94    .
  1    .   24.37  3.28    .
  2   4.4     .     .   72.4
  2    .     0.   0.      .
  2    .     .27  1.72    .
  2    .     .52  7.91    .
  2    .    1.    8.31    .
  2    .    1.92  8.33    .
  2    .    3.5   6.85    .
  2    .    5.02  6.08    .
  2    .    7.03  5.4     .
  2    .    9.    4.55    .
  2    .   12.    3.01    .
  2    .   24.3    .9     .
"""
"""Theophylline by mouth, mg/kg, first two subjects (RA Upton's data: Boeckmann AJ, Sheiner LB, Beal SL. NONMEM Users
Guide: Part V. 1994; R's ``Theoph``), laid out as that guide does."""
DRUG = Drug(
    name="theophylline", mw_g_mol=180.2, logp=-0.02, pka_acid=(8.8,), fup=0.4, bp_ratio=0.8, cl_total_l_h=2.7,
    cl_renal_l_h=0.4, ka_1_h=1.5, lag_h=0.1,
)  # fmt: skip

COVARIATES = {"WT": 80, "FUP": 0.2, "BP_RATIO": 0.8, "CLINT_L_H": 50, "CL_RENAL_L_H": 3, "KA_1_H": 1.2} | {
    f"KP_{organ.upper()}": 1.5 for organ in ORGANS[1:]
}
Record = dict[str, object]


def save(path: Path, records: list[Record], covariates: Record | None = None) -> Path:
    """Records as a file; covariates stand on every one of them."""
    rows = [record | (COVARIATES if covariates is None else covariates) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names), *(",".join(str(row.get(name, ".")) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def dose(time: float = 0, amt: object = 100, **more: object) -> Record:
    return {"ID": 1, "TIME": time, "AMT": amt, "EVID": 1, "MDV": 1, "CMT": 2, "DV": "."} | more


def seen(time: float, dv: object, **more: object) -> Record:
    return {"ID": 1, "TIME": time, "AMT": ".", "EVID": 0, "MDV": 0, "CMT": 2, "DV": dv} | more


def read(tmp_path: Path, records: list[Record], **options: object) -> CurveTable:
    return read_nonmem(save(tmp_path / "t.csv", records), NonmemOptions(**options))  # type: ignore[arg-type]


def two() -> list[Record]:
    return [dose(), seen(1, 4), seen(2, 2)]


def test_theophylline(tmp_path: Path) -> None:
    path = tmp_path / "THEO"
    path.write_text(THEOPHYLLINE.replace("4.02    .  ", "4.02    0  ").replace("4.4     .  ", "4.4     0  "))
    options = NonmemOptions(
        dose_unit="mg/kg", default_dose="oral", columns={"DOSE": "AMT", "CP": "DV"}, topology="circulation"
    )
    table = read_nonmem(path, options, drug=DRUG)
    assert table.curve_id.tolist() == ["theophylline/1/plasma", "theophylline/2/plasma"]
    assert table.dose_mg[:, 0] == pytest.approx([4.02 * 79.6, 4.4 * 72.4], rel=1e-14)
    assert table.dose_route.tolist() == [[1], [1]]
    assert table.dose_time_h.tolist() == [[0], [0]]
    assert table.body_weight_kg.tolist() == [79.6, 72.4]
    assert table.time_h[0].tolist() == [0, 0.25, 0.57, 1.12, 2.02, 3.82, 5.1, 7.03, 9.05, 12.12, 24.37]
    assert table.conc_mg_l[1, 0].tolist() == [0, 1.72, 7.91, 8.31, 8.33, 6.85, 6.08, 5.4, 4.55, 3.01, 0.9]
    assert np.isnan(table.conc_mg_l[:, 1:]).all()
    assert not table.censored.any()
    assert (table.ka_1_h == 1.5).all() and (table.lag_h == 0.1).all() and (table.fup == 0.4).all()
    assert np.array_equal(table.volume_l[1], human_reference(72.4).volume_l)
    batch = to_batch(table)
    assert batch.mask[:, 0].sum(1).tolist() == [10, 10], "the values at time 0 do not count"


def test_a_missing_time_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "THEO"
    path.write_text(THEOPHYLLINE)
    options = NonmemOptions(dose_unit="mg/kg", default_dose="oral", columns={"DOSE": "AMT", "CP": "DV"})
    with pytest.raises(InputError, match="row 2: TIME is missing"):
        read_nonmem(path, options, drug=DRUG)


def test_covariates_come_from_columns(tmp_path: Path) -> None:
    table = read(tmp_path, two())
    assert table.curve_id.tolist() == ["t/1/plasma"]
    assert table.topology is get_topology("circulation")
    assert table.elimination_l_h.tolist() == [[50, 3]]
    assert (table.kp[0, 1:] == 1.5).all()
    assert table.dose_mg.tolist() == [[100]] and table.dose_route.tolist() == [[0]]
    assert table.conc_mg_l[0, 0].tolist() == [4, 2]


def test_infusions_by_rate_and_by_duration(tmp_path: Path) -> None:
    table = read(tmp_path, [
        dose(0, 100, RATE=40), dose(5, 100, DUR=2.5), dose(9, 90, RATE=45, DUR=2), dose(12, 30, RATE=-2, DUR=3),
        dose(20, 10, RATE=0), seen(24, 1),
    ])  # fmt: skip
    assert table.dose_duration_h.tolist() == [[2.5, 2.5, 2, 3, 0]]


def test_repeats(tmp_path: Path) -> None:
    table = read(tmp_path, [dose(0, 50, ADDL=2, II=12), dose(1, 7, CMT=1), seen(30, 1)])
    assert table.dose_time_h.tolist() == [[0, 1, 12, 24]]
    assert table.dose_mg.tolist() == [[50, 7, 50, 50]]
    assert table.dose_route.tolist() == [[0, 1, 0, 0]]


def test_steady_state_is_written_out(tmp_path: Path) -> None:
    table = read(tmp_path, [dose(3, 50, SS=1, II=12, ADDL=1), seen(5, 4), seen(20, 1)], steady_state_doses=3)
    assert table.dose_time_h.tolist() == [[0, 12, 24, 36, 48]]
    assert table.time_h.tolist() == [[38, 53]], "the clock starts at the first dose that stands for the steady state"


def test_resets_begin_curves(tmp_path: Path) -> None:
    table = read(tmp_path, [
        *two(), dose(0, 30, EVID=4), seen(2, 3), seen(9, 0, EVID=3), dose(100, 20), seen(101, 1), seen(102, 0.5),
        *[record | {"ID": 2} for record in two()],
    ])  # fmt: skip
    assert table.curve_id.tolist() == ["t/1/plasma", "t/1/2/plasma", "t/1/3/plasma", "t/2/plasma"]
    assert table.compound_id.tolist() == ["t"] * 4
    assert table.dose_mg[:, 0].tolist() == [100, 30, 20, 100]
    assert table.dose_time_h[:, 0].tolist() == [0, 0, 100, 0]
    assert np.array_equal(table.time_h[2], [101, 102], equal_nan=True)


def test_what_does_not_count_is_left_out(tmp_path: Path) -> None:
    path = save(tmp_path / "t.csv", [*two(), seen(3, 9, EVID=2), seen(4, 9, MDV=1), seen(5, 1)])
    lines = path.read_text().splitlines()
    lines[2:2] = ["# a remark", "C" + lines[2][1:], "@ x", lines[0], "", "; y"]
    path.write_text("\n".join(lines))
    table = read_nonmem(path)
    assert table.time_h.tolist() == [[1, 2, 5]]


def test_without_evid_an_amount_makes_a_dose(tmp_path: Path) -> None:
    records = [{k: v for k, v in record.items() if k not in ("EVID", "MDV")} for record in two()]
    assert read(tmp_path, records).dose_mg.tolist() == [[100]]


def test_below_the_limit(tmp_path: Path) -> None:
    table = read(tmp_path, [
        dose(), seen(1, 4, LLOQ=0.5), seen(2, 0.3, LLOQ=0.5), seen(3, ".", LLOQ=0.5), seen(4, 0.2, BLQ=1),
        seen(5, 0, BLQ=1, LLOQ=0.4), seen(6, 0.6, BLQ=1, LLOQ=0.5),
    ])  # fmt: skip
    assert table.censored[0, 0].tolist() == [False, True, True, True, True, True]
    assert table.conc_mg_l[0, 0].tolist() == [4, 0.5, 0.5, 0.2, 0.4, 0.5]
    assert table.loq_mg_l.tolist() == [0.2]


def test_units(tmp_path: Path) -> None:
    records = [dose(0, 2, RATE=1), dose(60, 1, ADDL=1, II=30, CMT=1), seen(150, 500, LLOQ=5)]
    table = read(tmp_path, records, time_unit="min", dose_unit="mg/kg", dv_unit="ng/mL")
    assert table.dose_mg[0] == pytest.approx([160, 80, 80])
    assert table.dose_time_h[0] == pytest.approx([0, 1, 1.5])
    assert table.dose_duration_h[0] == pytest.approx([2 / 60, 0, 0])
    assert table.time_h[0] == pytest.approx([2.5])
    assert table.conc_mg_l[0, 0] == pytest.approx([0.5])
    molar = save(tmp_path / "m.csv", two(), COVARIATES | {"MW_G_MOL": 300})
    table = read_nonmem(molar, NonmemOptions(dose_unit="mmol", dv_unit="umol/L"))
    assert table.dose_mg[0] == pytest.approx([30_000])
    assert table.conc_mg_l[0, 0] == pytest.approx([1.2, 0.6])


def test_tissues_by_compartment(tmp_path: Path) -> None:
    compartments = {1: "blood", 3: "oral", 7: "liver"}
    records = [dose(CMT=3), seen(1, 4, CMT=1), seen(1, 9, CMT=7), seen(2, 3, CMT=0), seen(2, 5, ORGAN="brain")]
    table = read(tmp_path, records, compartments=compartments, matrix="blood_venous")
    assert table.dose_route.tolist() == [[1]]
    assert table.matrix.tolist() == ["blood_venous"]
    assert table.conc_mg_l[0, 0].tolist() == [4, 3]
    assert table.conc_mg_l[0, ORGAN_INDEX["liver"], 0] == 9
    assert table.conc_mg_l[0, ORGAN_INDEX["brain"], 1] == 5


def test_a_trough_before_the_dose_of_its_time(tmp_path: Path) -> None:
    table = read(tmp_path, [dose(), seen(12, 1), dose(12), seen(24, 2), dose(24, CMT=1), seen(24.5, 3)])
    assert table.time_h.tolist() == [[12, 24, 24.5]]
    oral = read(tmp_path, [dose(CMT=1), dose(12, CMT=1), seen(12, 1)])  # no jump: the order does not matter
    assert oral.conc_mg_l[0, 0].tolist() == [1]


def test_options_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "o.toml"
    path.write_text('dv_unit = "ng/mL"\ncolumns = { CONC = "DV" }\n[compartments]\n1 = "oral"\n4 = "blood"\n')
    options = NonmemOptions.from_toml(path)
    assert options == NonmemOptions(dv_unit="ng/mL", columns={"CONC": "DV"}, compartments={1: "oral", 4: "blood"})
    for text, match in (
        ('units = "h"', "o.toml: units is no known key.*time_unit"),
        ("[compartments]\nx = 'oral'", "compartments has a key that is no compartment .got x"),
        ("[compartments]\n1 = 'gall'", "compartments names no compartment .got gall"),
        ("compartments = 1", "compartments is no table"),
        ("dose_unit = 'mL'", "dose_unit is of another kind"),
        ("dv_unit = 'mg'", "dv_unit is of another kind"),
        ("time_unit = 'week ago'", "time_unit is no unit"),
        ("time_unit = 3", "time_unit is no text"),
        ("default_dose = 'liver'", "default_dose is not allowed .got liver"),
        ("matrix = 'urine'", "matrix is unknown"),
        ("columns = {CONC = 3}", "columns is no table of names"),
        ("steady_state_doses = -1", "steady_state_doses is not allowed"),
        ("steady_state_doses = true", "steady_state_doses is not allowed"),
        ("x =", "NONMEM options is no valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=match) as error:
            NonmemOptions.from_toml(path)
        assert "\n" not in str(error.value)


def changed(at: int, **changes: object) -> Callable[[list[Record]], object]:
    return lambda records: records[at].update(changes)


def added(*more: Record) -> Callable[[list[Record]], object]:
    return lambda records: records.extend(more)


def without(*names: str) -> Callable[[list[Record]], object]:
    return lambda records: [record.pop(name, None) for record in records for name in names]


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        *[(without(n), f"column {n} is missing.*columns") for n in ("ID", "TIME", "AMT", "DV")],
        (changed(1, ID="."), "row 3: ID is missing"),
        (changed(1, ID="x"), "row 3: ID is no finite number .got x"),
        (changed(1, TIME="."), "row 3: TIME is missing"),
        (changed(1, TIME="8:30"), "row 3: TIME is no finite number .got 8:30"),
        (changed(1, TIME="inf"), "row 3: TIME is no finite number"),
        (changed(0, TIME=-1), "row 2: TIME is before the start .got -1"),
        (changed(2, TIME=0.5), "row 4: TIME goes back .got 0.5.*EVID is 3 or 4"),
        (changed(1, DATE="1-1-2000"), "DATE is not read"),
        (changed(1, EVID=7), "row 3: EVID is unknown .got 7"),
        (changed(1, MDV=5), "row 3: MDV is unknown .got 5"),
        (changed(1, AMT=5), "row 3: AMT is given for a record that is no dose .got 5"),
        (added(dose(ID=2), seen(1, 1, ID=2), seen(3, 1)), "row 7: ID appears again after another .got 1"),
        (added(seen(1, 1, ID=2)), "ID 2: event has no dose"),
        (added(dose(ID=2)), "ID 2: event has no observation"),
        # doses
        (changed(0, AMT=0), "row 2: AMT is missing or not positive .got 0"),
        (changed(0, AMT="."), "row 2: AMT is missing or not positive"),
        (changed(0, AMT=-3), "row 2: AMT is missing or not positive .got -3"),
        (changed(0, CMT="."), "row 2: CMT is missing for a dose.*default_dose"),
        (changed(0, CMT=9), r"row 2: CMT is unknown .got 9.*1 \(oral\), 2 \(blood\)"),
        (changed(0, RATE=-1), "row 2: RATE is estimated by the model.*got -1"),
        (changed(0, RATE=-2), "row 2: RATE is estimated by the model.*-2 beside a DUR"),
        (changed(0, RATE=10, DUR=9), "row 2: DUR contradicts AMT / RATE .got 9"),
        (changed(0, DUR=-1), "row 2: DUR is not allowed .got -1"),
        (changed(0, RATE=10, CMT=1), "row 2: RATE is given for an oral dose.*first-order"),
        (changed(0, ADDL=2), "row 2: II is missing or not positive"),
        (changed(0, ADDL=1.5, II=8), "row 2: ADDL is no number of doses"),
        (changed(0, ADDL=1e9, II=8), "row 2: ADDL makes too many doses"),
        (changed(0, SS=1, II=8), "row 2: SS asks for a steady state.*steady_state_doses"),
        (changed(0, SS=2, II=8), "row 2: SS cannot be read"),
        (added(dose(3), seen(3, 2)), "row 6: TIME is that of a bolus before it .got 3"),
        (changed(0, TIME=1.5), "TIME goes back"),
        (lambda r: r.insert(0, r.pop(1) | {"TIME": 0}) or r[1].update(TIME=0.5), "row 2: DV is measured before the"),
        # observations
        (changed(1, DV="."), "row 3: DV is missing.*MDV is 1"),
        (changed(1, DV=-1), "row 3: DV is not allowed .got -1.*logarithms"),
        (changed(1, DV="low"), "row 3: DV is no finite number .got low"),
        (changed(1, CMT=1), "row 3: CMT is not observed .got oral"),
        (changed(1, CMT=5), "row 3: CMT is unknown"),
        (changed(1, LLOQ=0), "row 3: LLOQ is not allowed"),
        (changed(1, BLQ=2), "row 3: BLQ is unknown .got 2"),
        (changed(1, BLQ=1, DV=0), "row 3: BLQ states no limit"),
        (added(seen(2, 3)), "row 5: TIME is given twice"),
        (changed(1, ORGAN="gall"), "row 3: ORGAN is unknown .got gall"),
        (changed(1, MATRIX="blood_arterial"), "row 3: matrix cannot be modelled.*venous"),
        # names and covariates
        (changed(1, KP_GALL=1), "KP_GALL names an unknown organ"),
        (changed(1, CENS=0, BLQ=0), "BLQ says the same as CENS"),
        (changed(1, TOPOLOGY="star"), "topology is unknown .got star"),
        (changed(1, DRUG="a,b"), "row 3: record has a wrong number of cells"),
        (lambda r: (r[1].update(DRUG="A"), r[2].update(DRUG="B")), "row 4: DRUG differs within one individual .got B"),
    ],
)
def test_refusals(tmp_path: Path, edit: Callable[[list[Record]], object], match: str) -> None:
    records = two()
    edit(records)
    path = save(tmp_path / "t.csv", records)
    with pytest.raises(InputError, match=match) as error:
        read_nonmem(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path)), "the file is named first"


@pytest.mark.parametrize(
    ("covariates", "match"),
    [
        ({"WT": "."}, "t/1: body_weight_kg is missing"),
        ({"KP_BRAIN": "."}, "t/1: kp_brain is missing"),
        ({"KP_BRAIN": -1}, "row 2: KP_BRAIN is not allowed .got -1"),
        ({"FUP": "much"}, "row 2: FUP is no finite number .got much"),
        ({"WT": 900}, "body_weight_kg is not allowed .got 900"),
        ({"KA_1_H": "."}, "t/1: ka_1_h is missing"),
    ],
)
def test_refused_covariates(tmp_path: Path, covariates: Record, match: str) -> None:
    path = save(tmp_path / "t.csv", [dose(CMT=1), seen(1, 4), seen(2, 2)], COVARIATES | covariates)
    with pytest.raises(InputError, match=match):
        read_nonmem(path)
    other = save(tmp_path / "u.csv", two(), {"WT": 80}).read_text().splitlines()
    other[3] = other[3].removesuffix("80") + "81"
    (tmp_path / "u.csv").write_text("\n".join(other))
    with pytest.raises(InputError, match="row 4: WT differs within one drug and subject .got 81"):
        read_nonmem(tmp_path / "u.csv")


def test_refused_beside_a_drug(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="FUP is given by the drug"):
        read_nonmem(save(tmp_path / "t.csv", two()), drug=DRUG)
    with pytest.raises(InputError, match="WT is missing"):
        read_nonmem(save(tmp_path / "t.csv", two(), {}), drug=DRUG)
    with pytest.raises(InputError, match="WT 900: body_weight_kg"):
        read_nonmem(save(tmp_path / "t.csv", two(), {"WT": 900}), drug=DRUG)
    with pytest.raises(InputError, match="TOPOLOGY differs .got hub.; allowed: circulation"):
        read_nonmem(
            save(tmp_path / "t.csv", two(), {"WT": 90, "TOPOLOGY": "hub"}), NonmemOptions(topology="circulation")
        )
    with pytest.raises(InputError, match="ID 1: dose_unit is molar"):
        read_nonmem(save(tmp_path / "t.csv", two()), NonmemOptions(dose_unit="mmol"))


def test_refused_columns(tmp_path: Path) -> None:
    path = save(tmp_path / "t.csv", two())
    with pytest.raises(InputError, match="columns names a column that the file lacks .got CONC"):
        read_nonmem(path, NonmemOptions(columns={"CONC": "DV"}))
    with pytest.raises(InputError, match="columns gives a name that is unknown .got KONZ"):
        read_nonmem(path, NonmemOptions(columns={"DV": "KONZ"}))
    with pytest.raises(InputError, match="DV says the same as TIME"):
        read_nonmem(path, NonmemOptions(columns={"DV": "TIME"}))


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "file is empty"),
        (b"ID,TIME,AMT,DV\n", "table holds no record"),
        (b"ID,TIME,AMT,DV\n1,2\n", "row 2: record has a wrong number of cells .got 2.; allowed: 4"),
        (b"\xff\xfe\x00", "file is no text"),
        (b'ID,TIME,AMT,DV\n1,"2,3,4\n', "row 2: record is no CSV"),
    ],
)
def test_files_that_are_no_data_are_refused(tmp_path: Path, raw: bytes, match: str) -> None:
    (tmp_path / "t.csv").write_bytes(raw)
    with pytest.raises(InputError, match=match) as error:
        read_nonmem(tmp_path / "t.csv")
    assert "\n" not in str(error.value)


def test_a_missing_or_too_large_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="file cannot be read"):
        read_nonmem(tmp_path / "none.csv")
    monkeypatch.setattr("perfuse.data.importers.nonmem_file.MAX_BYTES", 10)
    with pytest.raises(InputError, match="file is too large"):
        read_nonmem(save(tmp_path / "t.csv", two()))


def rich() -> CurveTable:
    """Six curves with all that a table can hold: every kind of dose, gaps, censored values, pathways, descriptors."""
    table = simulate_task("T2", 6, seed=3)
    random = np.random.default_rng(7)
    conc, censored, time = (
        table.conc_mg_l[:, :, 1:9].copy(),
        table.censored[:, :, 1:9].copy(),
        table.time_h[:, 1:9].copy(),
    )
    conc[0, 1:] = np.nan
    conc[1, 1:, ::3] = np.nan
    time[2, 5:], conc[2, :, 5:] = np.nan, np.nan
    conc[3, 0, 4:], censored[3, 0, 4:] = table.loq_mg_l[3] * 2, True
    time[:, 7] = np.where(np.isnan(time[:, 7]), np.nan, 8.0)
    some = np.asarray([True, False, True, True, False, True])
    drawn = lambda low, high: np.where(some, random.uniform(low, high, 6), np.nan)  # noqa: E731
    kp, elimination, ps = table.kp.copy(), table.elimination_l_h.copy(), random.uniform(0.01, 9, (6, 3))
    kp[2, 1:], elimination[2], ps[4] = np.nan, np.nan, np.nan
    second = np.arange(6) != 3
    return replace(
        table, topology=get_topology("circulation-ps"), conc_mg_l=conc, censored=censored, time_h=time, kp=kp,
        elimination_l_h=elimination, ps_l_h=ps, matrix=np.asarray(["plasma", "blood_venous", "serum"] * 2),
        dose_time_h=np.column_stack((np.zeros(6), np.where(second, 8.0, 0))),
        dose_mg=np.column_stack((table.dose_mg, np.where(second, random.uniform(5, 50, 6), 0))),
        dose_duration_h=np.column_stack((np.asarray([0, 0.3, 0, 0.7, 1 / 3, 0]), np.zeros(6))),
        dose_route=np.asarray([[1, 0], [0, 0], [1, 1], [0, 0], [0, 1], [0, 0]], dtype=np.int8),
        ka_1_h=np.asarray([0.3, np.nan, 1.7, np.nan, 0.9, 2.2]), lag_h=random.uniform(0, 1, 6),
        f_abs=random.uniform(0.1, 1, 6), vmax_mg_h=random.uniform(1, 9, (6, 3)) * [[1.0, 0.0, 1.0]],
        km_u_mg_l=random.uniform(0.1, 1, (6, 3)), mw_g_mol=drawn(100, 500), logp=drawn(-2, 4),
        pka_acid=np.column_stack((drawn(2, 9), np.full(6, np.nan))), clint_ul_min_million_cells=drawn(0, 20),
    )  # fmt: skip


@pytest.mark.parametrize("make", [rich, lambda: simulate_task("T1", 3, seed=1)])
def test_round_trip_is_exact(tmp_path: Path, make: Callable[[], CurveTable]) -> None:
    table = make()
    back = read_nonmem(write_nonmem(table, tmp_path / "t.csv"))
    assert os.listdir(tmp_path) == ["t.csv"]
    assert back.topology is table.topology
    for field in fields(CurveTable):
        if field.name == "topology" or (field.name == "group_id" and make is rich):
            continue
        value, expected = back.column(field.name), table.column(field.name)
        assert np.array_equal(value, expected, equal_nan=value.dtype.kind == "f"), field.name


def test_a_curve_to_be_predicted_is_written_with_its_times(tmp_path: Path) -> None:
    table = simulate_task("T1", 1, seed=1)
    bare = replace(table, conc_mg_l=np.full_like(table.conc_mg_l, np.nan))
    lines = write_nonmem(bare, tmp_path / "t.csv").read_text().splitlines()
    assert len(lines) == 102
    assert lines[2].startswith("1,0.0,.,.,.,0,0,0,.,2,1,2,0,.,70.0,")
    with pytest.raises(InputError, match="ID 1: event has no observation"):
        read_nonmem(tmp_path / "t.csv")


def test_writing_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    table = simulate_task("T1", 2, seed=0)
    with pytest.raises(InputError, match="dose_time_h is before the start .got -1 h"):
        write_nonmem(replace(table, dose_time_h=table.dose_time_h - 1), tmp_path / "t.csv")
    with pytest.raises(InputError, match="curve_id is not unique"):
        write_nonmem(replace(table, curve_id=np.asarray(["a", "a"])), tmp_path / "t.csv")
    with pytest.raises(InputError, match="matrix cannot be modelled"):
        write_nonmem(replace(table, matrix=np.asarray(["blood_arterial", "plasma"])), tmp_path / "t.csv")
    many = replace(table, vmax_mg_h=np.zeros((2, 10)), km_u_mg_l=np.ones((2, 10)))
    with pytest.raises(InputError, match="vmax_mg_h has too many pathways.*got 10"):
        write_nonmem(many, tmp_path / "t.csv")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PerfuseError, match="cannot be written"):
        write_nonmem(table, tmp_path / "file" / "t.csv")
    assert os.listdir(tmp_path) == ["file"]

"""The tidy long table: conversions by consequence, gaps, censoring, several matrices, and every refusal."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from perfuse.data.importers.tidy import read_tidy, write_tidy
from perfuse.data.simulate import simulate_task
from perfuse.data.table import CurveTable, to_batch
from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation.metrics import scored_mask
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, human_reference
from perfuse.pk.topology import get_topology

Row = dict[str, object]
COVARIATES: Row = {
    "topology": "circulation", "body_weight_kg": 80, "mw_g_mol": 300, "fup": 0.2, "bp_ratio": 0.8, "clint_l_h": 50,
    "cl_renal_l_h": 3, **{f"kp_{organ}": 1.5 for organ in ORGANS[1:]},
}  # fmt: skip


def dose(subject: str = "s1", drug: str = "D", **changes: object) -> Row:
    row: Row = {
        "drug": drug, "subject": subject, "event": "dose", "time": 0, "time_unit": "h", "dose": 100, "dose_unit": "mg",
        "route": "iv_bolus",
    }  # fmt: skip
    return row | COVARIATES | changes


def seen(time: object, conc: object, subject: str = "s1", drug: str = "D", **changes: object) -> Row:
    row: Row = {
        "drug": drug, "subject": subject, "event": "observation", "time": time, "time_unit": "h", "matrix": "plasma",
        "conc": conc, "conc_unit": "mg/L",
    }  # fmt: skip
    return row | changes


def save(path: Path, rows: list[Row]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cell = lambda v: None if v is None else str(v)  # noqa: E731
    pl.DataFrame({n: [cell(r.get(n)) for r in rows] for n in names}, dict.fromkeys(names, pl.String)).write_csv(path)
    return path


def read(tmp_path: Path, rows: list[Row]) -> CurveTable:
    return read_tidy(save(tmp_path / "t.csv", rows))


def two() -> list[Row]:
    """The smallest useful file: one dose, two plasma values."""
    return [dose(), seen(1, 4.0), seen(2, 2.0)]


def test_sparse_plasma(tmp_path: Path) -> None:
    table = read(tmp_path, two())
    assert len(table) == 1
    assert table.curve_id.tolist() == ["D/s1/plasma"]
    assert table.compound_id.tolist() == ["D"]
    assert table.topology.name == "circulation"
    assert table.time_h.tolist() == [[1, 2]]
    assert table.conc_mg_l[0, 0].tolist() == [4, 2]
    assert np.isnan(table.conc_mg_l[0, 1:]).all()
    assert table.elimination_l_h.tolist() == [[50, 3]]
    assert table.kp[0, 0] == 1
    assert (table.kp[0, 1:] == 1.5).all()
    body = human_reference(80)
    assert np.array_equal(table.volume_l[0], body.volume_l)
    assert np.array_equal(table.flow_l_h[0], body.flow_l_h)
    batch = to_batch(table)
    assert batch.is_plasma.tolist() == [True]
    assert int(batch.mask.sum()) == 2


@pytest.mark.parametrize(
    ("value", "unit"),
    [(4.0, "mg/L"), (4.0, "ug/mL"), (4000, "ng/mL"), (0.004, "g/L"), (4 / 0.3, "umol/L"), (0.4, "mg/dL")],
)
def test_concentrations_in_any_unit_are_the_same(tmp_path: Path, value: float, unit: str) -> None:
    table = read(tmp_path, [dose(), seen(1, value, conc_unit=unit)])
    assert table.conc_mg_l[0, 0, 0] == pytest.approx(4.0, rel=1e-14)


@pytest.mark.parametrize(("value", "unit"), [(100, "mg"), (0.1, "g"), (1e5, "ug"), (1.25, "mg/kg"), (1 / 3, "mmol")])
def test_doses_in_any_unit_are_the_same(tmp_path: Path, value: float, unit: str) -> None:
    table = read(tmp_path, [dose(dose=value, dose_unit=unit), seen(1, 4.0)])
    assert table.dose_mg[0, 0] == pytest.approx(100, rel=1e-14)


@pytest.mark.parametrize(("value", "unit"), [(1.5, "h"), (90, "min"), (5400, "s"), (0.0625, "day")])
def test_times_and_durations_in_any_unit_are_the_same(tmp_path: Path, value: float, unit: str) -> None:
    infusion = dose(route="iv_infusion", duration=value, duration_unit=unit, time=value, time_unit=unit)
    table = read(tmp_path, [infusion, seen(2 * value, 1.0, time_unit=unit)])
    for name, hours in (("dose_time_h", 1.5), ("dose_duration_h", 1.5), ("time_h", 3.0)):
        assert table.column(name)[0, 0] == pytest.approx(hours, rel=1e-14), name


def test_units_may_differ_between_rows(tmp_path: Path) -> None:
    table = read(tmp_path, [dose(), seen(30, 4.0, time_unit="min"), seen(1, 2000, conc_unit="ng/mL")])
    assert table.time_h.tolist() == [[0.5, 1]]
    assert table.conc_mg_l[0, 0].tolist() == [4, 2]


def test_rows_in_any_order(tmp_path: Path) -> None:
    rows = [*two(), dose("s2"), seen(3, 1.0, "s2"), seen(0.5, 5.0, "s2")]
    a, b = read(tmp_path, rows), read(tmp_path, rows[::-1])
    order = [b.curve_id.tolist().index(name) for name in a.curve_id]
    for name in ("time_h", "conc_mg_l", "dose_mg", "loq_mg_l", "kp"):
        assert np.array_equal(a.column(name), b.column(name)[order], equal_nan=True), name


def test_below_the_limit_in_three_spellings(tmp_path: Path) -> None:
    limit = {"lloq": 500, "lloq_unit": "ng/mL"}
    table = read(tmp_path, [
        dose(), seen(1, 4.0, **limit), seen(2, "<0.5"), seen(3, None, **limit, conc_unit=None), seen(4, 0.3, **limit),
        seen(5, 0, **limit), seen(6, 0.5, **limit), seen(7, "< 400", conc_unit="ng/mL"),
    ])  # fmt: skip
    assert table.censored[0, 0].tolist() == [False, True, True, True, True, False, True]
    assert table.conc_mg_l[0, 0].tolist() == [4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4]
    assert not table.censored[0, 1:].any()
    assert table.loq_mg_l.tolist() == [0.4]
    batch = to_batch(table)
    assert batch.mask[0, 0].all()


def test_without_a_stated_limit_no_measured_value_is_lost(tmp_path: Path) -> None:
    tiny = 1e-5 * 100 / human_reference(80).volume_l[0] / 50
    table = read(tmp_path, [dose(), seen(1, 4.0), seen(2, tiny)])
    assert to_batch(table).mask[0, 0].all()
    usual = read(tmp_path, two())
    assert usual.loq_mg_l[0] == pytest.approx(50 * tiny)


def test_a_limit_stated_for_one_value_strikes_out_no_other(tmp_path: Path) -> None:
    liver = seen(1, 0.5, matrix="tissue_homogenate", organ="liver")
    table = read(tmp_path, [dose(), seen(1, 4.0, lloq=2, lloq_unit="mg/L"), seen(2, "<2"), liver])
    assert table.loq_mg_l.tolist() == [0.5]
    assert scored_mask(table)[0, ORGAN_INDEX["liver"]].tolist() == [True, False]
    assert scored_mask(table)[0, 0].tolist() == [True, False]
    mask = to_batch(table).mask[0]
    assert mask[ORGAN_INDEX["liver"], 0]
    assert mask[0].all()


def test_a_zero_lowers_no_limit(tmp_path: Path) -> None:
    table = read(tmp_path, [dose(), seen(1, 4.0, lloq=2, lloq_unit="mg/L"), seen(2, 0)])
    assert table.loq_mg_l.tolist() == [2]


def test_a_limit_of_the_subject_holds_for_all_its_values(tmp_path: Path) -> None:
    table = read(tmp_path, [dose(loq_mg_l=1.0), seen(1, 4.0), seen(2, 0.5), seen(3, 3.0, lloq=2, lloq_unit="mg/L")])
    assert table.loq_mg_l.tolist() == [1]
    assert to_batch(table).mask[0, 0].tolist() == [True, False, True]
    assert not table.censored.any()


def test_before_the_first_dose_nothing_is_kept(tmp_path: Path) -> None:
    low = {"lloq": 1, "lloq_unit": "mg/L"}
    early = [seen(0, 0), seen(2, "<1"), seen(4, 0.5, **low), seen(5, 0)]
    table = read(tmp_path, [dose(time=5), *early, seen(6, 4.0), dose(time=9)])
    assert table.time_h.tolist() == [[6]]
    assert table.conc_mg_l[0, 0].tolist() == [4]
    at_zero = read(tmp_path, [dose(), seen(0, 7.0), seen(1, 4.0)])
    assert at_zero.time_h.tolist() == [[0, 1]]
    assert to_batch(at_zero).mask[0, 0].tolist() == [False, True]


def test_tissues_stand_beside_plasma(tmp_path: Path) -> None:
    tissue = {"matrix": "tissue_homogenate"}
    table = read(tmp_path, [
        dose(), seen(1, 4.0), seen(2, 2.0), seen(1, 9.0, **tissue, organ="liver"),
        seen(3, 8.0, **tissue, organ="liver"), seen(2, 1.0, **tissue, organ="brain"),
    ])  # fmt: skip
    nan = np.nan
    assert len(table) == 1
    assert table.matrix.tolist() == ["plasma"]
    assert table.time_h.tolist() == [[1, 2, 3]]
    assert np.array_equal(table.conc_mg_l[0, 0], [4, 2, nan], equal_nan=True)
    assert np.array_equal(table.conc_mg_l[0, ORGAN_INDEX["liver"]], [9, nan, 8], equal_nan=True)
    assert np.array_equal(table.conc_mg_l[0, ORGAN_INDEX["brain"]], [nan, 1, nan], equal_nan=True)
    assert int(to_batch(table).mask.sum()) == 5


def test_two_blood_matrices_are_two_curves(tmp_path: Path) -> None:
    table = read(tmp_path, [
        dose(), seen(1, 4.0), seen(1, 3.0, matrix="blood_venous", organ="blood"), seen(2, 2.0),
        seen(1, 9.0, matrix="tissue_homogenate", organ="liver"),
    ])  # fmt: skip
    assert table.curve_id.tolist() == ["D/s1/blood_venous", "D/s1/plasma"]
    assert table.compound_id.tolist() == ["D", "D"]
    assert table.conc_mg_l[0, 0, 0] == 3
    assert table.conc_mg_l[1, 0].tolist() == [4, 2]
    liver = table.conc_mg_l[:, ORGAN_INDEX["liver"]]
    assert np.nansum(liver[0]) == 9
    assert np.isnan(liver[1]).all()
    assert table.dose_mg.tolist() == [[100], [100]]


def test_tissue_alone_is_a_curve(tmp_path: Path) -> None:
    table = read(tmp_path, [dose(), seen(1, 9.0, matrix="tissue_homogenate", organ="liver")])
    assert table.matrix.tolist() == ["tissue_homogenate"]
    assert table.conc_mg_l[0, ORGAN_INDEX["liver"]].tolist() == [9]


def test_people_and_drugs_have_grids_and_doses_of_their_own(tmp_path: Path) -> None:
    table = read(tmp_path, [
        dose("s1"), seen(1, 4.0, "s1"), seen(2, 2.0, "s1"), seen(5, 1.0, "s1"),
        dose("s2", body_weight_kg=60), dose("s2", time=12, dose=50, body_weight_kg=60), seen(14, 7.0, "s2"),
        dose("s1", "E", route="iv_infusion", duration=2, duration_unit="h", kp_brain=3), seen(3, 1.0, "s1", "E"),
    ])  # fmt: skip
    rows = {name: i for i, name in enumerate(table.curve_id)}
    assert sorted(rows) == ["D/s1/plasma", "D/s2/plasma", "E/s1/plasma"]
    one, other, infused = rows["D/s1/plasma"], rows["D/s2/plasma"], rows["E/s1/plasma"]
    assert table.time_h[one].tolist() == [1, 2, 5]
    assert np.array_equal(table.time_h[other], [14, np.nan, np.nan], equal_nan=True)
    assert table.dose_mg[one].tolist() == [100, 0]
    assert table.dose_mg[other].tolist() == [100, 50]
    assert table.dose_time_h[other].tolist() == [0, 12]
    assert table.dose_duration_h[infused].tolist() == [2, 0]
    assert table.body_weight_kg[[one, other]].tolist() == [80, 60]
    assert table.group_id[one] == table.group_id[other] != table.group_id[infused]


def test_hub_fills_in_its_fixed_body(tmp_path: Path) -> None:
    row = {k: v for k, v in dose().items() if k not in ("topology", "clint_l_h", "fup", "bp_ratio", "body_weight_kg")}
    path = save(tmp_path / "t.csv", [row | {"cl_hepatic_l_h": 10}, seen(1, 4.0)])
    table = read_tidy(path, get_topology("hub"))
    assert table.volume_l[0, 0] == 5
    assert table.fup.tolist() == table.bp_ratio.tolist() == [1]
    assert table.body_weight_kg.tolist() == [70]
    assert table.elimination_l_h.tolist() == [[10, 3]]
    to_batch(table)


def test_given_volumes_and_flows_replace_the_reference(tmp_path: Path) -> None:
    body = human_reference(80)
    flows = {f"flow_{o}_l_h": f for o, f in zip(ORGANS, 1.1 * body.flow_l_h, strict=True)}
    table = read(tmp_path, [dose(volume_liver_l=2.5, **flows), seen(1, 4.0)])
    assert table.volume_l[0, ORGAN_INDEX["liver"]] == 2.5
    assert table.volume_l[0, ORGAN_INDEX["brain"]] == body.volume_l[ORGAN_INDEX["brain"]]
    assert np.allclose(table.flow_l_h[0], 1.1 * body.flow_l_h, rtol=1e-14)


def test_covariates_may_stand_on_any_row_and_repeat(tmp_path: Path) -> None:
    bare = {k: v for k, v in dose().items() if k not in COVARIATES}
    table = read(tmp_path, [bare, seen(1, 4.0), seen(2, 2.0, **COVARIATES), seen(3, 1.0, fup=0.2)])
    assert table.fup.tolist() == [0.2]


def test_missing_marks_and_strange_columns(tmp_path: Path) -> None:
    rows = [dose(study="A", comment="x"), seen(1, 4.0, lloq="NA", organ=".", duration="")]
    assert len(read(tmp_path, rows)) == 1


def test_parquet_with_numbers_and_tsv(tmp_path: Path) -> None:
    frame = pl.read_csv(save(tmp_path / "t.csv", two()))
    frame.write_parquet(tmp_path / "t.parquet")
    frame.write_csv(tmp_path / "t.tsv", separator="\t")
    for name in ("t.parquet", "t.tsv"):
        table = read_tidy(tmp_path / name)
        assert table.conc_mg_l[0, 0].tolist() == [4, 2]
        assert table.body_weight_kg.tolist() == [80]


def test_a_byte_order_mark_is_read_past(tmp_path: Path) -> None:
    path = save(tmp_path / "t.csv", two())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_tidy(path)) == 1


def test_oral_doses(tmp_path: Path) -> None:
    given = {"route": "oral", "ka_1_h": 0.8, "lag_h": 0.25, "f_abs": 0.6}
    table = read(tmp_path, [dose(**given), dose(time=6, dose=10), seen(1, 4.0), seen(8, 2.0)])
    assert table.dose_route.tolist() == [[1, 0]]
    assert (table.ka_1_h[0], table.lag_h[0], table.f_abs[0]) == (0.8, 0.25, 0.6)
    plain = read(tmp_path, [dose(route="oral", ka_1_h=1), seen(1, 4.0)])
    assert (plain.lag_h[0], plain.f_abs[0]) == (0, 1)
    assert np.isnan(read(tmp_path, two()).ka_1_h[0])


def test_repeats_stand_for_the_doses_they_make(tmp_path: Path) -> None:
    table = read(tmp_path, [dose(addl=3, ii=480, ii_unit="min"), dose(time=4, dose=7), seen(30, 4.0)])
    assert table.dose_time_h.tolist() == [[0, 4, 8, 16, 24]]
    assert table.dose_mg.tolist() == [[100, 7, 100, 100, 100]]
    once = read(tmp_path, [dose(addl=0, ii=8, ii_unit="h"), seen(30, 4.0)])
    assert once.dose_mg.tolist() == [[100]]


def test_permeability_and_saturable_pathways(tmp_path: Path) -> None:
    limited = {"topology": "circulation-ps", "ps_brain_l_h": 0.1, "ps_adipose_l_h": 2, "ps_muscle_l_h": 0}
    table = read(tmp_path, [dose(**limited, vmax_mg_h_2=5, km_u_mg_l_2=0.3), seen(1, 4.0, topology="circulation-ps")])
    assert table.topology is get_topology("circulation-ps")
    assert table.ps_l_h.tolist() == [[0.1, 2, 0]]
    assert table.vmax_mg_h.tolist() == [[0, 5]]
    assert table.km_u_mg_l.tolist() == [[1, 0.3]]


def test_a_described_drug_may_lack_what_is_derived(tmp_path: Path) -> None:
    bare = {k: v for k, v in dose(logp=2.5, pka_base_1=8.1).items() if not k.startswith(("kp_", "clint_l_h", "cl_"))}
    table = read_tidy(
        save(tmp_path / "t.csv", [bare, seen(1, 4.0), bare | {"drug": "E", "logp": 3}, seen(1, 4, drug="E")])
    )
    assert np.isnan(table.kp[:, 1:]).all()
    assert np.isnan(table.elimination_l_h).all()
    assert (table.mw_g_mol[0], table.logp[0], table.pka_base[0, 0]) == (300, 2.5, 8.1)
    assert np.isnan(table.pka_base[0, 1])
    assert table.group_id[0] != table.group_id[1], "drugs are told apart by their descriptors"


def changed(at: int, **changes: object) -> Callable[[list[Row]], object]:
    return lambda rows: rows[at].update(changes)


def without(*names: str) -> Callable[[list[Row]], object]:
    return lambda rows: [row.pop(name, None) for row in rows for name in names]


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        *[(without(n), f"{n} column is missing") for n in ("drug", "subject", "event", "time", "time_unit")],
        *[
            (changed(1, **{n: None}), f"row 3: {n} is missing")
            for n in ("drug", "subject", "event", "time", "time_unit")
        ],
        (changed(1, event="sample"), "row 3: event is unknown.*got sample.*dose, observation"),
        (lambda r: r.__delitem__(slice(1, None)), "event never says observation"),
        (lambda r: r.pop(0), "topology is missing"),
        (
            lambda r: r[0].update(event="observation", conc=1, conc_unit="mg/L", matrix="plasma"),
            "event never says dose",
        ),
        (lambda r: r.append(seen(1, 1.0, "s9", topology="circulation")), "D/s9: event has no dose"),
        (lambda r: r.append(dose("s9")), "D/s9: event has no observation"),
        (lambda r: r.append(seen(1, 1.0)), "row 5: time is given twice.*got 1"),
        (lambda r: r.append(seen(60, 1.0, time_unit="min")), "row 5: time is given twice.*got 60"),
        # times
        (changed(1, time=-1), "row 3: time is before the start.*got -1 h"),
        (changed(1, time="soon"), "row 3: time is no finite number.*got soon"),
        (changed(1, time="NaN"), "row 3: time is no finite number"),
        (changed(1, time="inf"), "row 3: time is no finite number"),
        (changed(1, time_unit="mg"), "row 3: time_unit is of another kind"),
        (changed(1, time_unit="fortnights ago"), "row 3: time_unit is no unit"),
        # concentrations
        (changed(1, conc=-1), "row 3: conc is not allowed.*got -1"),
        (changed(1, conc="NaN"), "row 3: conc is no finite number.*got NaN"),
        (changed(1, conc="inf"), "row 3: conc is no finite number"),
        (changed(1, conc="high"), "row 3: conc is no finite number.*got high"),
        (changed(1, conc="<"), "row 3: conc states no limit"),
        (changed(1, conc="<0"), "row 3: conc states no limit"),
        (changed(1, conc="<x"), "row 3: conc is no finite number"),
        (changed(1, conc=None), "row 3: conc is missing.*give lloq"),
        (changed(1, conc_unit=None), "row 3: conc_unit is missing"),
        (changed(1, conc_unit="mg"), "row 3: conc_unit is of another kind"),
        (changed(1, lloq=0.1), "row 3: lloq_unit is missing"),
        (changed(1, lloq=0, lloq_unit="mg/L"), "row 3: lloq is not allowed.*got 0"),
        (changed(1, lloq=-1, lloq_unit="mg/L"), "row 3: lloq is not allowed"),
        (
            lambda r: (r[0].pop("mw_g_mol"), r[1].update(conc_unit="umol/L")),
            "row 3: conc_unit is molar and needs a mol",
        ),
        (lambda r: (r[0].pop("mw_g_mol"), r[1].update(lloq=1, lloq_unit="nM")), "row 3: lloq_unit is molar"),
        # sites
        (changed(1, matrix=None), "row 3: matrix is missing"),
        (changed(1, matrix="urine"), "row 3: matrix is unknown.*got urine"),
        (changed(1, organ="gall"), "row 3: organ is unknown.*got gall"),
        (changed(1, organ="liver"), "row 3: organ does not fit the matrix.*got liver"),
        (changed(1, matrix="tissue_homogenate"), "row 3: organ is missing or blood for a tissue"),
        (changed(1, matrix="tissue_homogenate", organ="blood"), "row 3: organ is missing or blood for a tissue"),
        (
            changed(1, matrix="blood_arterial"),
            "row 3: matrix cannot.*blood_arterial.*reported blood is venous",
        ),
        (
            changed(1, matrix="arterial_plasma", organ="blood"),
            "row 3: matrix cannot be modelled.*reported blood is venous",
        ),
        # before the dose
        (changed(0, time=1.5), "row 3: conc is measured before the first dose .got 4 mg/L.*a baseline cannot be"),
        (changed(0, time=1), "row 3: conc is measured before the first dose"),
        (changed(0, time=2.5), "row 3: conc is measured before the first dose"),
        (lambda r: (r[0].update(time=3), r[1].update(conc=0), r[2].update(conc=0)), "D/s1: event has no observation"),
        # doses
        (changed(0, route="rectal"), "row 2: route cannot be modelled.*got rectal.*iv_bolus, iv_infusion, oral"),
        (changed(0, route="oral"), "D/s1: ka_1_h is missing.*an oral dose needs"),
        (changed(0, route="oral", duration=1), "row 2: duration is given without an infusion"),
        (changed(0, route=None), "row 2: route is missing"),
        (changed(0, dose=None), "row 2: dose is missing"),
        (changed(0, dose=0), "row 2: dose is not allowed.*got 0"),
        (changed(0, dose=-5), "row 2: dose is not allowed.*got -5"),
        (changed(0, dose_unit=None), "row 2: dose_unit is missing"),
        (changed(0, dose_unit="mL"), "row 2: dose_unit is of another kind"),
        (lambda r: (r[0].pop("mw_g_mol"), r[0].update(dose_unit="mmol")), "row 2: dose_unit is molar"),
        (changed(0, duration=1, duration_unit="h"), "row 2: duration is given without an infusion.*got 1"),
        (changed(0, route="iv_infusion"), "row 2: duration is missing or not positive"),
        (changed(0, route="iv_infusion", duration=0), "row 2: duration is missing or not positive"),
        (changed(0, route="iv_infusion", duration=1), "row 2: duration_unit is missing"),
        # covariates
        *[
            (without(n), f"D/s1: {n} is missing")
            for n in ("body_weight_kg", "fup", "bp_ratio", "clint_l_h", "kp_brain")
        ],
        (changed(1, fup=0.3), "row 3: fup differs within one drug and subject.*got 0.3"),
        (changed(0, fup=1.2), "fup is not allowed.*got 1.2.*allowed: .0, 1."),
        (changed(0, fup=0), "row 2: fup is not allowed.*got 0"),
        (changed(0, kp_brain=-1), "row 2: kp_brain is not allowed.*got -1"),
        (changed(0, kp_brain=1e-15), r"row 2: kp_brain is not allowed.*got 1e-15.*allowed: .0.0001, 1e\+06."),
        (changed(0, kp_brain=2e6), "row 2: kp_brain is not allowed"),
        (changed(0, loq_mg_l=0), "row 2: loq_mg_l is not allowed.*got 0"),
        (changed(0, kp_brain="much"), "row 2: kp_brain is no finite number.*got much"),
        (changed(0, clint_l_h=-1), "row 2: clint_l_h is not allowed"),
        (changed(0, body_weight_kg=900), "D/s1: body_weight_kg is not allowed.*got 900"),
        (changed(0, volume_liver_l=0), "row 2: volume_liver_l is not allowed"),
        (changed(0, flow_liver_l_h=500), "D/s1: flow_<organ>_l_h cannot be: flow_l_h does not sum"),
        # absorption, repeats, saturable pathways, permeability, descriptors
        (changed(0, route="oral", ka_1_h=0), "row 2: ka_1_h is not allowed.*got 0"),
        (changed(0, route="oral", ka_1_h=1, f_abs=1.5), "row 2: f_abs is not allowed.*got 1.5"),
        (changed(0, route="oral", ka_1_h=1, lag_h=-1), "row 2: lag_h is not allowed.*got -1"),
        (changed(0, addl=1.5, ii=8, ii_unit="h"), "row 2: addl is no number of doses.*got 1.5"),
        (changed(0, addl=-1, ii=8, ii_unit="h"), "row 2: addl is no number of doses"),
        (changed(0, addl=2), "row 2: ii is missing or not positive"),
        (changed(0, addl=2, ii=8), "row 2: ii_unit is missing"),
        (changed(0, addl=1e9, ii=8, ii_unit="h"), "row 2: addl makes too many doses.*1,000,000"),
        (changed(0, vmax_mg_h_1=3), "D/s1: km_u_mg_l_1 is missing.*vmax_mg_h_1 needs"),
        (changed(0, vmax_mg_h_1=-3), "row 2: vmax_mg_h_1 is not allowed"),
        (changed(0, vmax_mg_h_1=3, km_u_mg_l_1=0), "row 2: km_u_mg_l_1 is not allowed"),
        (changed(0, vmax_mg_h=3), "vmax_mg_h is no known column.*vmax_mg_h_1"),
        (changed(0, ps_brain_l_h=3), "ps_brain_l_h names an organ that is not permeability-limited.*allowed: none"),
        (
            changed(0, topology="circulation-ps", ps_brain_l_h=3),
            "D/s1: ps_adipose_l_h is missing.*circulation-ps",
        ),
        (changed(0, topology="circulation-ps", ps_liver_l_h=3), "ps_liver_l_h names an organ that is not.*muscle"),
        (changed(0, logp=40), "logp is not allowed.*got 40"),
        (changed(0, mw_g_mol=-1), "mw_g_mol is not allowed.*got -1"),
        (changed(0, pka_acid_3=4), "pka_acid_3 is no known column"),
        # names
        (changed(0, kp_gall=1), "kp_gall names an unknown organ.*got gall"),
        (changed(0, volume_gall_l=1), "volume_gall_l names an unknown organ"),
        (changed(0, cl_hepatic_l_h=1), "cl_hepatic_l_h is no elimination of topology circulation"),
        (changed(0, body_weight_lb=1), "body_weight_lb is no known column"),
        (changed(0, conc_ng_ml=1), "conc_ng_ml is no known column"),
        (changed(0, mw_unit="g"), "mw_unit is no known column"),
        (changed(0, topology="star"), "topology is unknown.*got star"),
        (changed(1, topology="hub"), "topology differs between rows"),
    ],
)
def test_refusals(tmp_path: Path, edit: Callable[[list[Row]], object], match: str) -> None:
    rows = two()
    edit(rows)
    path = save(tmp_path / "t.csv", rows)
    with pytest.raises(InputError, match=match) as error:
        read_tidy(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path)), "the file is named first"


def test_the_callers_topology_must_agree(tmp_path: Path) -> None:
    path = save(tmp_path / "t.csv", two())
    assert read_tidy(path, get_topology("circulation")).topology.name == "circulation"
    with pytest.raises(InputError, match="topology differs from the one asked for"):
        read_tidy(path, get_topology("hub"))


@pytest.mark.parametrize(
    ("name", "raw", "match"),
    [
        ("t.csv", b"", "table cannot be read"),
        ("t.csv", b"drug,subject,event,time,time_unit\n", "table holds no row"),
        ("t.csv", b"drug,subject\na,b,c,d\n", "table cannot be read"),
        ("t.csv", b"\xff\xfe\x00\x01\n\xff,\xfe\n", "table cannot be read|column is missing"),
        ("t.parquet", b"PAR1 no", "table cannot be read"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path: Path, name: str, raw: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(InputError, match=match) as error:
        read_tidy(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="table cannot be read"):
        read_tidy(tmp_path / "none.csv")


def test_nested_parquet_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"drug": [["a"]], "subject": ["b"]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="drug holds no plain values"):
        read_tidy(tmp_path / "t.parquet")


def awkward() -> CurveTable:
    """T2 curves with gaps, censored values, an infusion, a second dose, irregular and short time rows, plasma."""
    table = simulate_task("T2", 6, seed=3)
    conc, censored, time = table.conc_mg_l.copy(), table.censored.copy(), table.time_h.copy()
    conc[0, 1:] = np.nan
    conc[1, :, ::3] = np.nan
    conc[1, :, 1] = 1.0
    time[1] *= 0.7
    conc[1, :, 0] = conc[1, :, 2]
    time[2, 50:], conc[2, :, 50:] = np.nan, np.nan
    low = table.loq_mg_l[3] * 2
    conc[3, 0, 40:], censored[3, 0, 40:] = low, True
    loq = table.loq_mg_l.copy()
    # Names: the curve's own, and doses in a second column
    two_doses = {
        "dose_time_h": np.column_stack((table.dose_time_h, np.where(np.arange(6) == 4, 8.0, 0.0))),
        "dose_mg": np.column_stack((table.dose_mg, np.where(np.arange(6) == 4, 30.0, 0.0))),
        "dose_duration_h": np.column_stack((np.where(np.arange(6) == 5, 1.5, 0.0), np.zeros(6))),
        "dose_route": np.zeros((6, 2), dtype=np.int8),
    }
    matrix = np.asarray(["plasma", "blood_venous", "serum", "plasma", "serum", "blood_venous"])
    kept = ~np.isnan(conc).all(1)
    short = kept.sum(1)
    grid, packed = np.full(time.shape, np.nan), np.full(conc.shape, np.nan)
    flags = np.zeros(conc.shape, bool)
    for i in range(6):
        grid[i, : short[i]] = time[i, kept[i]]
        packed[i, :, : short[i]] = conc[i][:, kept[i]]
        flags[i, :, : short[i]] = censored[i][:, kept[i]]
    return replace(table, conc_mg_l=packed, censored=flags, time_h=grid, loq_mg_l=loq, matrix=matrix, **two_doses)


def rich() -> CurveTable:
    """Everything that a table can hold: oral and mixed doses, PS, saturable pathways, descriptors, and gaps in each."""
    table = awkward()
    random = np.random.default_rng(7)
    some = np.asarray([True, False, True, True, False, True])
    ps = random.uniform(0.01, 9, (6, 3))
    ps[4] = np.nan
    kp, elimination = table.kp.copy(), table.elimination_l_h.copy()
    kp[2, 1:], elimination[2] = np.nan, np.nan
    route = np.zeros((6, 2), dtype=np.int8)
    route[0, 0] = route[2, 0] = route[4, 1] = 1
    drawn = lambda low, high: np.where(some, random.uniform(low, high, 6), np.nan)  # noqa: E731
    one_pka = np.column_stack((drawn(2, 9), np.full(6, np.nan)))
    return replace(
        table, topology=get_topology("circulation-ps"), ps_l_h=ps, kp=kp, elimination_l_h=elimination,
        dose_route=route, ka_1_h=np.asarray([0.3, np.nan, 1.7, np.nan, 0.9, 2.2]), lag_h=random.uniform(0, 1, 6),
        f_abs=random.uniform(0.1, 1, 6), vmax_mg_h=random.uniform(1, 9, (6, 3)) * [[1.0, 0.0, 1.0]],
        km_u_mg_l=random.uniform(0.1, 1, (6, 3)), mw_g_mol=drawn(100, 500), logp=drawn(-2, 4), pka_acid=one_pka,
        pka_base=one_pka[:, ::-1] + 1, clint_ul_min_million_cells=drawn(0, 20),
    )  # fmt: skip


def t4_like_hub() -> CurveTable:
    """The hub with an oral dose and a pathway that is none."""
    table = simulate_task("T1", 3, seed=1)
    ones = np.ones(3)
    return replace(table, dose_route=np.ones((3, 1), dtype=np.int8), ka_1_h=ones, lag_h=0 * ones, f_abs=0.5 * ones)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("make", [awkward, lambda: simulate_task("T1", 3, seed=1), rich, t4_like_hub])
def test_round_trip_is_exact(tmp_path: Path, suffix: str, make: Callable[[], CurveTable]) -> None:
    table = make()
    back = read_tidy(write_tidy(table, tmp_path / f"t{suffix}"))
    assert os.listdir(tmp_path) == [f"t{suffix}"]
    assert back.compound_id.tolist() == table.compound_id.tolist()
    assert back.topology is table.topology
    for field in fields(CurveTable):
        name = field.name
        if name in ("topology", "curve_id", "group_id") and not (name == "group_id" and make is not rich):
            continue
        value = back.column(name)
        assert np.array_equal(value, table.column(name), equal_nan=value.dtype.kind == "f"), name
        assert value.dtype.kind == table.column(name).dtype.kind, name


def test_writing_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    table = simulate_task("T1", 2, seed=0)
    with pytest.raises(InputError, match="no kind of table"):
        write_tidy(table, tmp_path / "t.xlsx")
    with pytest.raises(InputError, match="curve_id is not unique"):
        write_tidy(replace(table, curve_id=np.asarray(["a", "a"])), tmp_path / "t.csv")
    with pytest.raises(InputError, match="T1-0-0: matrix cannot be modelled.*reported blood is venous"):
        write_tidy(replace(table, matrix=np.asarray(["blood_arterial", "plasma"])), tmp_path / "t.csv")
    with pytest.raises(InputError, match="matrix does not fit blood"):
        write_tidy(replace(table, matrix=np.asarray(["plasma", "tissue_homogenate"])), tmp_path / "t.csv")
    with pytest.raises(InputError, match="kp"):
        write_tidy(replace(table, kp=-table.kp), tmp_path / "t.csv")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PerfuseError, match="cannot be written"):
        write_tidy(table, tmp_path / "file" / "t.csv")
    assert os.listdir(tmp_path) == ["file"]

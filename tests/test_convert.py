"""Converting between files: which format a name means, NONMEM with its options, SBML of one curve."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from perfuse.convert import READ_FORMATS, WRITE_FORMATS, convert, curve_row, format_of
from perfuse.data.importers.tidy import write_tidy
from perfuse.data.simulate import simulate_task
from perfuse.data.sources import open_source
from perfuse.data.store import write_dataset
from perfuse.data.table import CurveTable
from perfuse.errors import InputError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three curves as a dataset folder."""
    return write_dataset([simulate_task("T1", 3, seed=2)], tmp_path / "data", generator={}, seed=2)


def same(a: CurveTable, b: CurveTable) -> None:
    for field in fields(CurveTable):
        if field.name not in ("topology", "curve_id"):
            value = a.column(field.name)
            assert np.array_equal(value, b.column(field.name), equal_nan=value.dtype.kind == "f"), field.name


@pytest.mark.parametrize(
    ("name", "stated", "expected"),
    [
        ("a", "", "dataset"), ("a.npz", "", "npz"), ("a.csv", "", "tidy"), ("a.TSV", "", "tidy"),
        ("a.parquet", "", "tidy"), ("a.nonmem.csv", "", "nonmem"), ("a.xml", "", "sbml"), ("a.sbml", "", "sbml"),
        ("a.csv", "nonmem", "nonmem"), ("a.dat", "nonmem", "nonmem"), ("a.xlsx", "", ""),
    ],
)  # fmt: skip
def test_formats_by_name(tmp_path: Path, name: str, stated: str, expected: str) -> None:
    assert format_of(tmp_path / name, stated, "--to", WRITE_FORMATS) == expected


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--from is unknown .got sbml.; allowed: dataset, npz, tidy, nonmem"):
        format_of(tmp_path / "a", "sbml", "--from", READ_FORMATS)
    assert format_of(tmp_path / "a.xml", "", "--from", READ_FORMATS) == ""


def test_through_nonmem_and_back(data: Path, tmp_path: Path) -> None:
    whole = open_source(data).take([0, 1, 2])
    assert convert(data, tmp_path / "a.nonmem.csv") == 3
    assert convert(data, tmp_path / "b.csv", out_format="nonmem") == 3
    assert (tmp_path / "a.nonmem.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert convert(tmp_path / "b.csv", tmp_path / "back", source_format="nonmem") == 3
    same(open_source(tmp_path / "back").take([0, 1, 2]), whole)
    assert convert(tmp_path / "a.nonmem.csv", tmp_path / "tidy.tsv") == 3
    same(open_source(tmp_path / "tidy.tsv").take([0, 1, 2]), whole)


def test_nonmem_with_options_and_a_drug(tmp_path: Path) -> None:
    (tmp_path / "study.csv").write_text("ID,TIME,AMT,CONC,WT\n1,0,2,.,70\n1,2,.,900,70\n")
    (tmp_path / "o.toml").write_text(
        'dose_unit = "mg/kg"\ndv_unit = "ng/mL"\ndefault_dose = "oral"\ncolumns = {CONC = "DV"}'
    )
    (tmp_path / "drug.toml").write_text(
        'name = "x"\nmw_g_mol = 300\nlogp = 2\nfup = 0.5\ncl_total_l_h = 5\nka_1_h = "0.02 1/min"'
    )
    options = {"nonmem": tmp_path / "o.toml", "drug": tmp_path / "drug.toml"}
    assert convert(tmp_path / "study.csv", tmp_path / "out.csv", source_format="nonmem", **options) == 1
    table = open_source(tmp_path / "out.csv").take([0])
    assert table.dose_mg.tolist() == [[140]]
    assert table.ka_1_h == pytest.approx([1.2])
    assert table.conc_mg_l[0, 0] == pytest.approx([0.9])
    for name in ("nonmem", "drug"):
        with pytest.raises(InputError, match=f"--{name} is for NONMEM files"):
            convert(tmp_path / "study.csv", tmp_path / "other.csv", **{name: options[name]})


def test_sbml_of_one_curve(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("libsbml", reason="python-libsbml is not installed")
    assert convert(data, tmp_path / "m.xml", curve="1") == 1
    text = (tmp_path / "m.xml").read_text()
    assert 'name="T1-2-1"' in text
    assert convert(data, tmp_path / "n.sbml", curve="T1-2-1") == 1
    assert (tmp_path / "n.sbml").read_text() == text
    for curve, match in (("", "--curve is missing.*0 to 2"), ("3", "--curve is no curve .got 3"), ("x", "is no curve")):
        with pytest.raises(InputError, match=match):
            convert(data, tmp_path / "o.xml", curve=curve)
    assert sorted(os.listdir(tmp_path)) == ["data", "m.xml", "n.sbml"]
    assert curve_row(open_source(data).take([1]), "") == 0


def test_a_stated_format_goes_before_the_ending(data: Path, tmp_path: Path) -> None:
    table = open_source(data).take([0, 1, 2])
    write_tidy(table, tmp_path / "t.csv").rename(tmp_path / "t.txt")
    convert(tmp_path / "t.txt", tmp_path / "u.npz", source_format="tidy")
    (tmp_path / "u.npz").rename(tmp_path / "u.bin")
    convert(tmp_path / "u.bin", tmp_path / "v.csv", source_format="npz")
    same(open_source(tmp_path / "v.csv").take([0, 1, 2]), table)
    with pytest.raises(InputError, match="--from does not fit .got dataset"):
        convert(tmp_path / "t.txt", tmp_path / "w", source_format="dataset")


def test_refusals(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="OUT has an unknown ending .got out.xlsx.*nonmem.csv"):
        convert(data, tmp_path / "out.xlsx")
    with pytest.raises(InputError, match="OUT exists already"):
        convert(data, data)
    table = open_source(data).take([0])
    oral = replace(table, dose_route=np.ones((1, 1), dtype=np.int8), ka_1_h=np.ones(1))
    write_tidy(oral, tmp_path / "oral.csv")
    with pytest.raises(InputError, match="doses does not fit the origin's layout.*intravenous"):
        convert(tmp_path / "oral.csv", tmp_path / "oral.npz")

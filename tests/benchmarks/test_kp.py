"""The judging arithmetic is right, and the published figures are what the script gives."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks import kp
from perfuse.pk.blood_binding import blood_plasma_ratio
from perfuse.pk.partition import KP_METHODS, PartitionInputs

COLUMNS = (
    "compound", "species", "tissue", "logp", "fup_fraction", "kp_tissue_to_plasma_observed", "httk_mw_g_per_mol",
    "httk_pka_donor_acid_list", "httk_pka_acceptor_base_list", "httk_rat_fup_fraction",
    "httk_rat_blood_to_plasma_ratio",
)  # fmt: skip


def _file(path: Path, rows: list[tuple[object, ...]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def test_each_compound_weighs_the_same() -> None:
    compound = np.asarray(["a", "a", "a", "b"])
    cells = kp.judged("x", compound, np.asarray([4.0, 4.0, 4.0, 1.0]), np.ones(4))
    assert cells[:3] == ["x", "4", "2"]
    assert cells[3].startswith("2.00 ")  # (ln 4 + 0) / 2, not 3 ln 4 / 4
    assert cells[4:] == ["50%", "50%", "2.00"]


def test_median_of_others_leaves_the_compound_out() -> None:
    compound = np.asarray(["a", "b", "c", "a", "d"])
    ion = np.asarray(["base", "base", "base", "base", "acid"])
    tissue = np.asarray(["liver"] * 5)
    out = kp.median_of_others(compound, ion, tissue, np.asarray([1.0, 2.0, 4.0, 100.0, 9.0]))
    assert out[0] == 3.0  # of 2 and 4
    assert out[1] == 4.0  # of 1, 4 and 100
    assert out[4] == 3.0  # no other acid: every class


@pytest.mark.parametrize(
    ("name", "expected"),
    [("(R)-(-)-Etodolac", "etodolac"), ("S-Etodolac", "etodolac"), ("Oxprenolol-R", "oxprenolol"),
     ("Levobetaxolol", "betaxolol"), ("dl-Pentazocine", "pentazocine"), ("Ranitidine", "ranitidine")],
)  # fmt: skip
def test_enantiomers_are_one_compound(name: str, expected: str) -> None:
    assert kp.family(name) == expected


def test_rows_are_read_predicted_and_left_out_by_reason(tmp_path: Path) -> None:
    row = ("x", "rat", "liver", 2.0, 0.2, 3.0, 300, "", "9.0", 0.2, "")
    path = _file(tmp_path / "kp.csv", [
        row, ("x", "rat", "blood_cells", 2.0, 0.2, 3.0, 300, "", "9.0", 0.2, ""),
        ("y", "rat", "liver", 2.0, 0.2, 3.0, "", "", "", "", ""),
        ("z", "rat", "liver", 2.0, 0.5, 3.0, 300, "", "", "", ""),
        ("w", "rat", "liver", 2.0, 0.0, 3.0, 300, "", "", 0.1, ""), ("x", "rabbit", "liver", *row[3:]),
        ("v", "rat", "liver", 1.0, 0.4, 1.0, 300, "", "", 0.4, 0.9),
    ])  # fmt: skip
    data = kp.read_measured(path)
    assert data.compound.tolist() == ["x", "v"]
    assert data.left_out == {
        "a tissue that the model has not": 1, "pKa not known": 1, "fup 0.5 stands in for unknown": 1,
        "fup or Kp given as 0": 1,
    }  # fmt: skip
    drug = PartitionInputs(2.0, 0.2, (), (9.0,), bp_ratio=1 + 0.45 * 2, species="rat")  # from its blood cells
    for method, predict in KP_METHODS.items():
        assert data.predicted[method][0] == pytest.approx(predict(drug)["liver"])
    assert data.predicted[kp.MEDIAN].tolist() == [1.0, 3.0]
    assert data.bp_measured.all()


def test_input_sets(tmp_path: Path) -> None:
    """httk's log P and fup instead of the file's; B:P withheld, or predicted."""
    path = tmp_path / "kp.csv"
    row = ("x", "rat", "liver", 2.0, 0.2, 3.0, 300, "", "9.0", 0.3, 1.4)
    predicted = blood_plasma_ratio("base", 0.2)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [(*COLUMNS, "httk_logp_octanol_water"), (*row, 2.5), ("y", *row[1:], ""), ("z", *row[1:], 2.5)]
        )
    for inputs, names, drug in (
        (kp.FILE, ["x", "y", "z"], PartitionInputs(2.0, 0.2, (), (9.0,), 1.4, "rat")),
        (kp.HTTK, ["x", "z"], PartitionInputs(2.5, 0.3, (), (9.0,), 1.4, "rat")),
        (kp.NO_BP, ["x", "y", "z"], PartitionInputs(2.0, 0.2, (), (9.0,), 1.0, "rat")),
        (kp.PREDICTED_BP, ["x", "y", "z"], PartitionInputs(2.0, 0.2, (), (9.0,), predicted, "rat")),
    ):
        data = kp.read_measured(path, inputs)
        assert data.compound.tolist() == names
        assert data.predicted["rodgers-rowland"][0] == pytest.approx(KP_METHODS["rodgers-rowland"](drug)["liver"])


def test_tables_go_between_the_markers() -> None:
    page = f"head\n{kp.BEGIN}\nold\n{kp.END}\ntail"
    assert kp.replaced(page, "new") == f"head\n{kp.BEGIN}\n\nnew\n\n{kp.END}\ntail"
    with pytest.raises(ValueError, match="no <!-- kp tables"):
        kp.replaced("head", "new")


@pytest.mark.real_data
def test_published_tables(perfuse_data: Path) -> None:
    """The rows that docs/partition.md shows are what the script gives."""
    page = kp.PAGE.read_text(encoding="utf-8")
    assert kp.replaced(page, kp.tables(perfuse_data / "kp_observed.csv")) == page

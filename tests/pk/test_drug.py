"""Drug: range checks, defaults, TOML reading and one clear line for each bad input."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from perfuse.errors import InputError
from perfuse.pk.clearance import fu_hepatocytes, fu_microsomes
from perfuse.pk.drug import Drug, SaturablePathway

GOOD: dict[str, Any] = {"name": "x", "mw_g_mol": 300.0, "logp": 2.0, "fup": 0.1}
PATHWAY = SaturablePathway("CYP2C9", 30.0, 0.5)


def test_docstring_example_is_readable(tmp_path: Path) -> None:
    """The example in ``Drug.from_toml`` is what the reader will copy."""
    lines = (Drug.from_toml.__doc__ or "").split("Example::")[1].split("Raises:")[0]
    path = tmp_path / "drug.toml"
    path.write_text("\n".join(line.strip().removeprefix("# ") for line in lines.splitlines()), encoding="utf-8")
    drug = Drug.from_toml(path)
    assert drug.name == "midazolam"
    assert drug.pka_base == (6.0,)
    assert drug.clint_ul_min_million_cells == 28.0
    assert drug.cl_renal_l_h == 0.0
    assert drug.kp == {"adipose": 12.0}
    assert drug.ps_l_h == {"brain": 5.0}
    assert drug.ka_1_h == 3.0
    assert drug.saturable == (SaturablePathway("CYP3A4", 400.0, 1.1),)


def test_numbers_become_floats_and_single_pka_a_list() -> None:
    drug = Drug(**(GOOD | {"mw_g_mol": 300, "pka_acid": 4, "pka_base": [8, 9.5]}))
    assert isinstance(drug.mw_g_mol, float)
    assert drug.pka_acid == (4.0,)
    assert drug.pka_base == (8.0, 9.5)


@pytest.mark.parametrize(
    ("extra", "bp"),
    [
        ({"pka_acid": (4.0,)}, 0.6121),  # 0.55 + 0.45 (1.2 x 0.1 + 0.02 x 0.9)
        ({"pka_base": (9.0,)}, 0.766),  # 0.55 + 0.45 (1.2 x 0.1 + 0.4 x 0.9)
        ({}, 0.766),
        ({"pka_acid": (3.0,), "pka_base": (9.0,)}, 0.766),
        ({"pka_acid": (4.0,), "bp_ratio": 0.7}, 0.7),
    ],
)
def test_blood_plasma_ratio_when_unknown(extra: dict[str, Any], bp: float) -> None:
    drug = Drug(**(GOOD | extra))
    assert drug.bp_ratio_or_default == pytest.approx(bp)
    assert drug.partition_inputs().bp_ratio == extra.get("bp_ratio")  # a predicted one does not enter Kp


def test_blood_plasma_ratio_follows_the_haematocrit_unless_measured() -> None:
    assert Drug(**GOOD).bp_ratio_for(0.3) == pytest.approx(1 + (0.766 - 1) * 0.3 / 0.45)
    assert Drug(**GOOD, bp_ratio=0.7).bp_ratio_for(0.3) == 0.7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", 3),
        ("mw_g_mol", 0.0),
        ("mw_g_mol", -1.0),
        ("mw_g_mol", "heavy"),
        ("mw_g_mol", None),
        ("logp", math.nan),
        ("logp", 99.0),
        ("logp", True),
        ("fup", 0.0),
        ("fup", 1.0001),
        ("fup", math.inf),
        ("bp_ratio", 0.0),
        ("clint_ul_min_million_cells", -0.1),
        ("clint_l_h", -1.0),
        ("cl_hepatic_l_h", -1.0),
        ("cl_total_l_h", -1.0),
        ("cl_renal_l_h", -1.0),
        ("pka_acid", (99.0,)),
        ("pka_acid", ("x",)),
        ("pka_base", (math.nan,)),
        ("kp", 3.0),
        ("clint_ul_min_mg", -1.0),
        ("cl_secretion_l_h", math.nan),
        ("assay_concentration", 0.0),
        ("assay_concentration", None),
        ("dispersion_number", 0.0),
        ("liver_model", "stirred"),
        ("ka_1_h", 0.0),
        ("ka_1_h", 1001.0),
        ("lag_h", -0.1),
        ("fa", 0.0),
        ("fa", 1.1),
        ("fg", -0.1),
        ("fg", None),
        ("ps_l_h", 1.0),
        ("saturable", 1.0),
        ("saturable", ({"name": "a"},)),
    ],
)
def test_value_refused(field: str, value: object) -> None:
    with pytest.raises(InputError) as error:
        Drug(**(GOOD | {field: value}))
    assert error.value.field == field
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("organ", "value"),
    [
        ("liver", 0.0),
        ("liver", 1e-15),
        ("liver", 9.9e-5),
        ("liver", 1.1e6),
        ("liver", "a"),
        ("blood", 1.0),
        ("tail", 1.0),
    ],
)
def test_override_refused(organ: str, value: object) -> None:
    with pytest.raises(InputError) as error:
        Drug(**(GOOD | {"kp": {organ: value}}))
    assert error.value.field == f"kp.{organ}"


def test_kp_may_reach_its_limits() -> None:
    assert Drug(**(GOOD | {"kp": {"liver": 1e-4, "brain": 1e6}})).kp == {"liver": 1e-4, "brain": 1e6}
    with pytest.raises(InputError, match=re.escape("kp.liver is not allowed (got 1e-15); allowed: [0.0001, 1e+06]")):
        Drug(**(GOOD | {"kp": {"liver": 1e-15}}))


@pytest.mark.parametrize(("organ", "value"), [("brain", -1.0), ("brain", 2e6), ("brain", "a"), ("blood", 1.0)])
def test_permeability_refused(organ: str, value: object) -> None:
    with pytest.raises(InputError) as error:
        Drug(**GOOD, ps_l_h={organ: value})
    assert error.value.field == f"ps_l_h.{organ}"


def test_absorbed_fraction() -> None:
    assert Drug(**GOOD, fa=0.8, fg=0.5).f_abs == pytest.approx(0.4)
    assert Drug(**GOOD).f_abs == 1.0


def test_assay_binding_is_measured_or_predicted() -> None:
    base = GOOD | {"logp": 3.0, "pka_base": (9.0,)}
    assert Drug(**base, clint_ul_min_mg=10.0, fu_inc=0.3).fu_inc_or_default == 0.3
    assert Drug(**base, clint_ul_min_mg=10.0).fu_inc_or_default == pytest.approx(fu_microsomes(3.0, 1.0, (), (9.0,)))
    cells = Drug(**base, clint_ul_min_million_cells=10.0, assay_concentration=2.0)
    assert cells.fu_inc_or_default == pytest.approx(fu_hepatocytes(3.0, 2.0, (), (9.0,)))


def test_clint_of_a_liver() -> None:
    assert Drug(**GOOD).clint_in(1.8) is None
    assert Drug(**GOOD, clint_l_h=7.0).clint_in(0.4) == 7.0
    assert Drug(**GOOD, saturable=(PATHWAY,)).clint_in(1.8) == 0.0
    measured = Drug(**GOOD, clint_ul_min_million_cells=10.0, fu_inc=0.5)
    assert measured.clint_in(1.8) == pytest.approx(10 / 0.5 * 99 * 1800 * 60 / 1e6)
    assert Drug(**GOOD, clint_ul_min_mg=10.0, fu_inc=1.0).clint_in(1.5) == pytest.approx(10 * 40 * 1500 * 60 / 1e6)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"fu_inc": 0.5}, "fu_inc has no in-vitro clearance to go with"),
        ({"fu_inc": 0.5, "clint_l_h": 3.0}, "fu_inc has no in-vitro clearance to go with"),
        ({"cl_renal_l_h": 1.0, "cl_secretion_l_h": 1.0}, "cl_renal_l_h and cl_secretion_l_h say the same thing twice"),
        ({"cl_total_l_h": 9.0, "saturable": (PATHWAY,)}, "cl_total_l_h and saturable say the same thing twice"),
        ({"liver_model": "dispersion", "saturable": (PATHWAY,)}, "liver_model does not go with saturable pathways"),
        ({"saturable": (PATHWAY, PATHWAY)}, "saturable name is there twice"),
    ],
)
def test_contradictions_refused(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Drug(**GOOD, **extra)


def test_saturable_tables_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "drug.toml"
    path.write_text(
        'name = "a"\nmw_g_mol = 250\nlogp = 1\nfup = 0.1\nclint_l_h = 2\n'
        '[[saturable]]\nname = "CYP2C9"\nvmax_mg_h = 30\nkm_u_mg_l = 0.5\n'
        '[[saturable]]\nname = "CYP2C19"\nvmax_pmol_min_mg = 100\nkm_um = 40\nfu_inc = 0.5\n'
    )
    first, second = Drug.from_toml(path).saturable
    assert first == SaturablePathway("CYP2C9", 30.0, 0.5)
    assert second.km_u_mg_l == pytest.approx(40 * 0.5 * 250 / 1000)
    path.write_text(path.read_text() + "vmax_mg_h = 3\n")
    with pytest.raises(InputError, match="drug.toml: saturable vmax_mg_h and vmax_pmol_min_mg say the same"):
        Drug.from_toml(path)


def test_two_hepatic_clearances_refused() -> None:
    with pytest.raises(InputError, match="clint_l_h and cl_total_l_h say the same thing twice"):
        Drug(**GOOD, clint_l_h=3.0, cl_total_l_h=4.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "a"\nmw_g_mol = 3.0\nlogp = 1.0\nfup = nan\n', "fup is not finite"),
        ('name = "a"\nmw_g_mol = 3.0\nlogp = 1.0\nfup = 1.5\n', "fup is not allowed (got 1.5); allowed: (0, 1]"),
        ('name = "a"\nmw_g_mol = 3.0\nlogp = 1.0\nfup = 0.5\nlogD = 3.0\n', "logD is no known key"),
        ('name = "a"\nmw_g_mol = 3.0\nlogp = 1.0\n', "fup is missing"),
        ("mw_g_mol = 3.0\nlogp = 1.0\nfup = 0.1\n", "name is missing"),
        ("name = \n", "is no valid TOML"),
    ],
)
def test_bad_toml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "drug.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)) as error:
        Drug.from_toml(path)
    assert "drug.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_toml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="drug file cannot be read"):
        Drug.from_toml(tmp_path / "nothing.toml")
    with pytest.raises(InputError, match="drug file cannot be read"):
        Drug.from_toml(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(InputError, match="is no valid TOML"):
        Drug.from_toml(binary)

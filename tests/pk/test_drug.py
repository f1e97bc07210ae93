"""Drug: range checks, defaults, TOML reading and one clear line for each bad input."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from perfuse.errors import InputError
from perfuse.pk.drug import Drug

GOOD: dict[str, Any] = {"name": "x", "mw_g_mol": 300.0, "logp": 2.0, "fup": 0.1}


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


def test_numbers_become_floats_and_single_pka_a_list() -> None:
    drug = Drug(**(GOOD | {"mw_g_mol": 300, "pka_acid": 4, "pka_base": [8, 9.5]}))
    assert isinstance(drug.mw_g_mol, float)
    assert drug.pka_acid == (4.0,)
    assert drug.pka_base == (8.0, 9.5)


@pytest.mark.parametrize(
    ("extra", "bp"),
    [
        ({"pka_acid": (4.0,)}, 0.55),
        ({"pka_base": (9.0,)}, 1.0),
        ({}, 1.0),
        ({"pka_acid": (3.0,), "pka_base": (9.0,)}, 1.0),
        ({"pka_acid": (4.0,), "bp_ratio": 0.7}, 0.7),
    ],
)
def test_blood_plasma_ratio_when_unknown(extra: dict[str, Any], bp: float) -> None:
    drug = Drug(**(GOOD | extra))
    assert drug.bp_ratio_or_default == bp
    assert drug.partition_inputs().bp_ratio == bp


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

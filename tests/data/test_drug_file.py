"""Drug files: text with units becomes the numbers of the keys; what has no unit, or the wrong one, is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from perfuse.data.drug_file import quantity, read_drug_file
from perfuse.errors import InputError

DRUG = 'name = "x"\nmw_g_mol = 250\nlogp = 1\nfup = 0.1\n'


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (3, "mg", 3.0),
        ("50 mg", "mg", 50.0),
        ("0.05 g", "mg", 50.0),
        ("2 mg/kg", "mg", 160.0),
        ("400 ug / kg", "mg", 32.0),
        ("200 umol", "mg", 50.0),
        ("1.5 h", "h", 1.5),
        ("90 min", "h", 1.5),
        ("50 uM", "mg/L", 12.5),
        ("50 ng/mL", "mg/L", 0.05),
        ("2 mM", "umol/L", 2000.0),
        ("100 mL/min", "L/h", 6.0),
        ("5 mL/min/kg", "L/h", 24.0),
        ("1e-2 1/min", "1/h", 0.6),
        ("0.6 /h", "1/h", 0.6),
        ("0.6 h^-1", "1/h", 0.6),
        ("80000 g", "kg", 80.0),
    ],
)
def test_quantities(value: object, unit: str, expected: float) -> None:
    assert quantity("x", value, unit, mw_g_mol=250.0, body_weight_kg=80.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "unit", "message"),
    [
        ("much", "mg", "x is not a number, nor one with a unit"),
        ("50", "mg", "x is not a number, nor one with a unit"),
        ("50 parsec", "mg", "x_unit is of another kind"),
        ("50 blub", "mg", "x_unit is unknown"),
        ("50 h", "mg", "x_unit is of another kind"),
        ("2 mg/kg", "mg", "x is per kg of body weight.*give body_weight_kg"),
        ("5 uM", "mg/L", "x_unit is molar and needs a molecular weight"),
        ("5 h", "1/h", "x_unit is no unit of a rate constant"),
        ("5 1/mg", "1/h", "x_unit is of another kind"),
        ("1e999 mg", "mg", "x is not finite"),
        (True, "mg", "x is not a number"),
    ],
)
def test_quantities_refused(value: object, unit: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        quantity("x", value, unit)
    assert "\n" not in str(error.value)


def test_a_file_with_units(tmp_path: Path) -> None:
    path = tmp_path / "drug.toml"
    path.write_text(
        DRUG + 'ka_1_h = "0.02 1/min"\nlag_h = "15 min"\ncl_renal_l_h = "10 mL/min"\nclint_l_h = 2\n'
        'ps_l_h.brain = "50 mL/min"\nbody_weight_kg = "80 kg"\n'
        '[[saturable]]\nname = "a"\nvmax_mg_h = "1 mg/min"\nkm_u_mg_l = "2 uM"\n'
        '[[dose]]\namount_mg = "2 mg/kg"\nroute = "oral"\n[[dose]]\namount_mg = 5\ntime_h = "720 min"\n'
    )
    drug, regimen = read_drug_file(path)
    assert (drug.ka_1_h, drug.lag_h, drug.cl_renal_l_h) == pytest.approx((1.2, 0.25, 0.6))
    assert drug.ps_l_h == {"brain": pytest.approx(3.0)}
    assert (drug.saturable[0].vmax_mg_h, drug.saturable[0].km_u_mg_l) == pytest.approx((60.0, 0.5))
    assert [(d.time_h, d.amount_mg, d.route) for d in regimen.doses] == [(0.0, 160.0, "oral"), (12.0, 5.0, "iv_bolus")]
    assert regimen.body_weight_kg == 80.0
    heavier, _ = read_drug_file(path, 100.0)[1].doses
    assert heavier.amount_mg == 200.0


def test_one_oral_dose_in_short(tmp_path: Path) -> None:
    path = tmp_path / "drug.toml"
    path.write_text(DRUG + 'clint_l_h = 1\nka_1_h = 1\ndose_mg = 5\nroute = "oral"\n')
    assert [(d.amount_mg, d.route) for d in read_drug_file(path)[1].doses] == [(5.0, "oral")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('route = "oral"\n', "route needs a dose"),
        ('dose_mg = "2 mg/kg"\n', "dose_mg is per kg of body weight"),
        ('dose_mg = 2\nroute = "oral"\nduration_h = 1\n', "duration_h contradicts the route"),
        ('[[dose]]\namount_mg = "2 h"\n', "dose 1: amount_mg_unit is of another kind"),
        (
            '[[saturable]]\nname = "a"\nvmax_mg_h = "2 h"\nkm_u_mg_l = 1\n',
            "saturable vmax_mg_h_unit is of another kind",
        ),
        ("saturable = [3]\n", "saturable is no table"),
        ("saturable = 3\n", "saturable is no list of tables"),
        ('ps_l_h.brain = "3 mg"\n', "ps_l_h.brain_unit is of another kind"),
        ('fup = "10 %"\n', "no valid TOML"),  # a key twice
        ('bp_ratio = "1"\n', "bp_ratio is not a number"),
    ],
)
def test_files_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "drug.toml"
    path.write_text(DRUG + text)
    with pytest.raises(InputError, match=message) as error:
        read_drug_file(path)
    assert "drug.toml" in str(error.value) and "\n" not in str(error.value)

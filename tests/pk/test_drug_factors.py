"""What a condition does to a drug: enzymes, binding, and what it must leave alone."""

from __future__ import annotations

from typing import Any

import pytest

from perfuse.errors import InputError
from perfuse.pk.drug import Drug, SaturablePathway
from perfuse.pk.drug_factors import NORMAL, DrugFactors

HALF = DrugFactors({"CYP3A4": 0.5, "CYP2D6": 0.2}, albumin=0.5)


def _drug(**more: Any) -> Drug:
    return Drug(name="drug", mw_g_mol=300, logp=2, fup=0.1, **more)


def test_less_binding_protein_frees_drug() -> None:
    assert HALF.fup(0.5) == pytest.approx(1 / 1.5)
    assert HALF.fup(0.5, "alpha1_acid_glycoprotein") == 0.5
    assert HALF.fup(1e-4) == pytest.approx(2e-4, rel=1e-3)  # a bound drug: in inverse proportion
    assert HALF.fup(1.0) == 1.0


def test_contributions_of_enzymes_add_up() -> None:
    assert HALF.clint_factor({}) == 1
    assert HALF.clint_factor({"CYP3A4": 1.0}) == pytest.approx(0.5)
    assert HALF.clint_factor({"CYP3A4": 0.6, "CYP2D6": 0.3}) == pytest.approx(0.3 + 0.06 + 0.1)
    assert HALF.clint_factor({"CYP1A2": 1.0}) == 1  # not named: as it was
    assert HALF.clint_factor({"CYP3A4": 0.7, "CYP1A2": 0.2, "CYP2C9": 0.1}) == pytest.approx(0.65)


def test_in_vitro_clearance_and_pathways_of_that_name_change_and_nothing_else() -> None:
    pathways = (SaturablePathway("CYP2D6", 10.0, 1.0), SaturablePathway("UGT", 4.0, 2.0))
    drug = _drug(clint_ul_min_million_cells=20.0, saturable=pathways, cl_renal_l_h=1.0, kp={"liver": 3.0})
    ill = HALF.applied_to(drug, {"CYP3A4": 1.0}, "albumin")
    assert ill.clint_ul_min_million_cells == pytest.approx(10)
    assert [p.vmax_mg_h for p in ill.saturable] == pytest.approx([2.0, 4.0])
    assert ill.fup == pytest.approx(HALF.fup(0.1))
    assert (ill.cl_renal_l_h, ill.kp, ill.name) == (1.0, {"liver": 3.0}, "drug")
    assert ill.fu_inc_or_default == drug.fu_inc_or_default
    microsomes = HALF.applied_to(_drug(clint_ul_min_mg=8.0), {"CYP3A4": 0.5})
    assert (microsomes.clint_ul_min_mg, microsomes.fup) == (pytest.approx(6), 0.1)


@pytest.mark.parametrize("field", ["clint_l_h", "cl_hepatic_l_h", "cl_total_l_h"])
def test_clearances_stated_for_the_person_stay(field: str) -> None:
    drug = _drug(**{field: 5.0})
    assert getattr(HALF.applied_to(drug, {"CYP3A4": 1.0}), field) == 5.0


def test_health_changes_nothing() -> None:
    drug = _drug(clint_ul_min_mg=8.0, saturable=(SaturablePathway("CYP2D6", 10.0, 1.0),))
    assert NORMAL.applied_to(drug, {"CYP3A4": 1.0}, "albumin") == drug


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"CYP9Z9": 0.5}, "enzyme is unknown"), ({"CYP3A4": 1.2}, "fraction of CYP3A4"),
        ({"CYP3A4": -0.1}, "fraction of CYP3A4"), ({"CYP3A4": float("nan")}, "fraction of CYP3A4"),
        ({"CYP3A4": 0.7, "CYP2D6": 0.4}, "sum to more than 1"),
    ],
)  # fmt: skip
def test_impossible_contributions_are_refused(fractions: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HALF.clint_factor(fractions)


@pytest.mark.parametrize("arguments", [(0.0, "albumin"), (1.2, "albumin"), (0.5, "lipoprotein")])
def test_impossible_binding_is_refused(arguments: tuple[float, str]) -> None:
    with pytest.raises(InputError):
        HALF.fup(*arguments)

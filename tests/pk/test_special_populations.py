"""Obesity, renal and hepatic impairment: flows stay balanced, volumes sum, factors are the published ones."""

from __future__ import annotations

import numpy as np
import pytest

from perfuse.errors import InputError
from perfuse.pk.growth import reference_person
from perfuse.pk.physiology import ORGAN_INDEX, check_flow_balance, human_reference
from perfuse.pk.special_populations import (
    DrugFactors,
    hepatic_impairment,
    lean_body_weight_kg,
    obese,
    renal_impairment,
)

MAN = reference_person(40, "male")


@pytest.mark.parametrize(("severity", "gfr_ml_min"), [("mild", 75), ("moderate", 45), ("severe", 22)])
def test_renal_impairment(severity: str, gfr_ml_min: float) -> None:
    ill, factors = renal_impairment(MAN, severity)
    kidney = ORGAN_INDEX["kidney"]
    assert ill.gfr_l_h / MAN.gfr_l_h == pytest.approx(gfr_ml_min / 120)
    assert ill.flow_l_h[kidney] / MAN.flow_l_h[kidney] == pytest.approx(gfr_ml_min / 120)
    assert ill.cardiac_output_l_h == MAN.cardiac_output_l_h
    check_flow_balance(ill.flow_l_h)
    assert ill.volume_l is MAN.volume_l
    assert factors.fup(0.3) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("grade", "portal", "artery", "liver"), [("A", 0.40, 1.3, 0.69), ("B", 0.36, 2.3, 0.55), ("C", 0.04, 3.4, 0.28)]
)
def test_hepatic_impairment(grade: str, portal: float, artery: float, liver: float) -> None:
    ill, factors = hepatic_impairment(MAN, grade)
    check_flow_balance(ill.flow_l_h)
    flow, before = ill.flow_l_h, MAN.flow_l_h
    i = ORGAN_INDEX
    portal_organs = [i["gut"], i["spleen"], i["pancreas"]]
    np.testing.assert_allclose(flow[portal_organs] / before[portal_organs], portal)
    arterial = (flow[i["liver"]] - flow[portal_organs].sum()) / (before[i["liver"]] - before[portal_organs].sum())
    assert arterial == pytest.approx(artery)
    assert ill.volume_l[i["liver"]] / MAN.volume_l[i["liver"]] == pytest.approx(liver)
    assert ill.volume_l.sum() == pytest.approx(MAN.body_weight_kg)
    assert factors.fup(0.01) > 0.01
    assert factors.clint["CYP3A4"] <= 1
    assert ill.haematocrit < MAN.haematocrit


def test_less_binding_protein_frees_drug() -> None:
    half = DrugFactors({}, albumin=0.5)
    assert half.fup(0.5) == pytest.approx(1 / 1.5)
    assert half.fup(0.5, "alpha1_acid_glycoprotein") == 0.5
    for wrong in ((0.0, "albumin"), (1.2, "albumin"), (0.5, "lipoprotein")):
        with pytest.raises(InputError):
            half.fup(*wrong)


def test_obesity_puts_most_of_the_excess_into_fat() -> None:
    heavy, _ = obese(MAN, 140.0)
    assert heavy.volume_l.sum() == pytest.approx(140)
    gained = heavy.volume_l - MAN.volume_l
    assert gained[ORGAN_INDEX["adipose"]] > 0.6 * (140 - 73)
    check_flow_balance(heavy.flow_l_h)
    assert heavy.cardiac_output_l_h / MAN.cardiac_output_l_h == pytest.approx(np.sqrt(140 / 73))
    np.testing.assert_allclose(obese(MAN, MAN.body_weight_kg)[0].volume_l, MAN.volume_l)


def test_lean_body_weight_of_janmahasatian() -> None:
    """A man of 70 kg and 175 cm: BMI 22.86, 9270 x 70 / (6680 + 216 x 22.86) = 55.9 kg."""
    assert lean_body_weight_kg(70, 175, "male") == pytest.approx(9270 * 70 / (6680 + 216 * 70 / 1.75**2))
    assert lean_body_weight_kg(70, 175, "male") == pytest.approx(55.9, abs=0.1)
    assert lean_body_weight_kg(60, 163, "female") == pytest.approx(38.9, abs=0.3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: renal_impairment(MAN, "bad"), "renal is unknown"),
        (lambda: hepatic_impairment(MAN, "D"), "hepatic is unknown"),
        (lambda: obese(MAN, 50.0), "body_weight_kg"),
        (lambda: obese(MAN, 301.0), "body_weight_kg"),
        (lambda: obese(human_reference(70), 120.0), "are needed for lean body weight"),
    ],
)  # fmt: skip
def test_unknown_conditions_are_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]

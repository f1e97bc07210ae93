"""Obesity, renal and hepatic impairment: flows stay balanced, volumes sum, factors are the published ones."""

from __future__ import annotations

import numpy as np
import pytest

from perfuse.errors import InputError
from perfuse.pk.drug_factors import ENZYMES
from perfuse.pk.growth import reference_person
from perfuse.pk.physiology import ORGAN_INDEX, check_flow_balance, human_reference
from perfuse.pk.special_populations import (
    hepatic_impairment,
    lean_body_weight_kg,
    obese,
    renal_class,
    renal_impairment,
)

MAN = reference_person(35, "male")


@pytest.mark.parametrize(
    ("severity", "gfr_ml_min", "haematocrit_percent", "fup_ratio"),
    [("mild", 75, 45.2, 1.0), ("moderate", 45, 43.6, 1.07), ("severe", 22, 41.7, 1.16), ("failure", 7.5, 34.3, 1.55)],
)
def test_renal_impairment(severity: str, gfr_ml_min: float, haematocrit_percent: float, fup_ratio: float) -> None:
    ill, factors = renal_impairment(MAN, severity)
    kidney, muscle, skin = (ORGAN_INDEX[o] for o in ("kidney", "muscle", "skin"))
    assert ill.gfr_l_h / MAN.gfr_l_h == pytest.approx(gfr_ml_min / 120)
    assert ill.flow_l_h[kidney] / MAN.flow_l_h[kidney] == pytest.approx(gfr_ml_min / 120)
    assert ill.cardiac_output_l_h == MAN.cardiac_output_l_h
    assert ill.flow_l_h[muscle] / ill.flow_l_h[skin] == pytest.approx(MAN.flow_l_h[muscle] / MAN.flow_l_h[skin])
    assert ill.flow_l_h[ORGAN_INDEX["liver"]] == MAN.flow_l_h[ORGAN_INDEX["liver"]]
    assert ill.portal_flow_l_h == MAN.portal_flow_l_h
    check_flow_balance(ill.flow_l_h)
    assert ill.volume_l is MAN.volume_l
    assert ill.haematocrit / MAN.haematocrit == pytest.approx(haematocrit_percent / 45.5)
    assert factors.fup(1e-5) / 1e-5 == pytest.approx(fup_ratio, rel=1e-4)
    assert factors.fup(0.97) < 1
    assert factors.clint == {}


def test_a_measured_gfr_has_the_class_it_lies_in() -> None:
    for gfr_ml_min, severity in ((60, "mild"), (59.9, "moderate"), (30, "moderate"), (15, "severe"), (14, "failure")):
        assert renal_class(gfr_ml_min) == severity
        ill, factors = renal_impairment(MAN, gfr_ml_min=gfr_ml_min)
        of_class, class_factors = renal_impairment(MAN, severity)
        assert (ill.haematocrit, factors) == (of_class.haematocrit, class_factors)
        assert ill.gfr_l_h / MAN.gfr_l_h == pytest.approx(gfr_ml_min / 120)
    nearly, factors = renal_impairment(MAN, gfr_ml_min=100)
    assert (nearly.haematocrit, factors.albumin) == (MAN.haematocrit, 1.0)


def test_age_and_disease_do_not_count_twice() -> None:
    old, young = reference_person(80, "female"), reference_person(30, "female")
    assert renal_impairment(old, "severe")[0].gfr_l_h == pytest.approx(
        renal_impairment(young, "severe")[0].gfr_l_h, rel=1e-4
    )
    assert renal_impairment(old, gfr_ml_min=110)[0].gfr_l_h == old.gfr_l_h  # has less already
    nobody = human_reference(70)  # neither age nor sex
    assert renal_impairment(nobody, "moderate")[0].gfr_ml_min == pytest.approx(45)


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
    assert ill.cardiac_output_l_h > MAN.cardiac_output_l_h
    assert factors.fup(0.01) > 0.01
    assert set(factors.clint) == set(ENZYMES)
    assert ill.haematocrit < MAN.haematocrit


def test_obesity_puts_most_of_the_excess_into_fat() -> None:
    heavy, _ = obese(MAN, 140.0)
    assert heavy.volume_l.sum() == pytest.approx(140)
    gained = heavy.volume_l - MAN.volume_l
    assert gained[ORGAN_INDEX["adipose"]] > 0.6 * (140 - 73)
    check_flow_balance(heavy.flow_l_h)
    assert heavy.cardiac_output_l_h / MAN.cardiac_output_l_h == pytest.approx(np.sqrt(140 / 73))
    brain, liver, muscle = (ORGAN_INDEX[o] for o in ("brain", "liver", "muscle"))
    assert (heavy.volume_l[brain], heavy.flow_l_h[brain]) == (MAN.volume_l[brain], MAN.flow_l_h[brain])
    lean = lean_body_weight_kg(140, 176, "male") / lean_body_weight_kg(73, 176, "male")
    np.testing.assert_allclose(heavy.volume_l[[liver, muscle]] / MAN.volume_l[[liver, muscle]], lean)
    fat = ORGAN_INDEX["adipose"]
    assert heavy.flow_l_h[fat] / heavy.volume_l[fat] < MAN.flow_l_h[fat] / MAN.volume_l[fat]
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
        (lambda: renal_impairment(MAN), "give one of them"),
        (lambda: renal_impairment(MAN, "mild", gfr_ml_min=70), "give one of them"),
        (lambda: renal_impairment(MAN, gfr_ml_min=0), "gfr_ml_min"),
        (lambda: renal_impairment(MAN, gfr_ml_min=121), "gfr_ml_min"),
        (lambda: renal_impairment(MAN, gfr_ml_min=float("nan")), "gfr_ml_min"),
        (lambda: hepatic_impairment(MAN, "D"), "hepatic is unknown"),
        (lambda: obese(reference_person(12, "male"), 90.0), "age_year"),
        (lambda: obese(MAN, 50.0), "body_weight_kg"),
        (lambda: obese(MAN, 301.0), "body_weight_kg"),
        (lambda: obese(human_reference(70), 120.0), "are needed for lean body weight"),
    ],
)  # fmt: skip
def test_unknown_conditions_are_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]

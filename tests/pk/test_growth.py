"""Reference persons by age and sex: ICRP 89's figures at its ages, smooth and balanced between them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from perfuse.errors import InputError
from perfuse.pk import anatomy
from perfuse.pk.growth import for_person, gfr_ageing, gfr_maturation, reference_bodies, reference_person
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, check_flow_balance, human_reference, rat_reference


@pytest.mark.parametrize("sex", ["male", "female"])
def test_reference_ages_have_icrp_89s_figures(sex: str) -> None:
    for a, age in enumerate((5.0, 10.0, 15.0, 35.0), start=1):
        person = reference_person(age, sex)
        assert person.body_weight_kg == pytest.approx(anatomy.BODY_WEIGHT_KG[sex][a])
        assert person.height_cm == pytest.approx(anatomy.HEIGHT_CM[sex][a])
        assert person.cardiac_output_l_h == pytest.approx(anatomy.CARDIAC_OUTPUT_L_MIN[sex][a] * 60)
        mass = anatomy.organ_mass_kg(sex)
        for organ in ORGANS:
            assert person.volume_l[ORGAN_INDEX[organ]] == pytest.approx(mass[organ][a], rel=1e-9), organ
        assert person.volume_l.sum() == pytest.approx(person.body_weight_kg)


def test_the_adult_man_is_the_reference_that_was_there_before() -> None:
    """``human_reference`` keeps 378 L/h at 70 kg; the organs and shares are the same man's."""
    man, before = reference_person(30, "male"), human_reference(73.0)
    np.testing.assert_allclose(man.volume_l, before.volume_l, rtol=1e-9)
    np.testing.assert_allclose(man.flow_l_h / man.cardiac_output_l_h, before.flow_l_h / before.cardiac_output_l_h)


@pytest.mark.parametrize("sex", ["male", "female"])
def test_between_the_ages_everything_is_positive_balanced_and_smooth(sex: str) -> None:
    ages = np.linspace(2, 25, 300)
    bodies = reference_bodies(ages, sex)
    check_flow_balance(bodies.flow_l_h)
    np.testing.assert_allclose(bodies.volume_l.sum(1), bodies.body_weight_kg)
    flow = np.delete(bodies.flow_l_h, ORGAN_INDEX["blood"], 1)
    assert (flow > 0).all()
    assert (bodies.volume_l > 0).all()
    assert (np.diff(bodies.body_weight_kg) >= -1e-9).all()
    assert np.abs(np.diff(np.log(flow), axis=0)).max() < 0.06  # 28 days at a time: no jump at an age of the table
    weight_ratio = bodies.flow_l_h[:, ORGAN_INDEX["brain"]] / bodies.volume_l[:, ORGAN_INDEX["brain"]]
    at_five = np.argmin(np.abs(ages - 5))
    assert weight_ratio[at_five] == pytest.approx(71 * 10 * 60 / 1000, rel=0.01)  # Chiron 1992


_INCH_CM, _POUND_KG = 2.54, 0.45359237
NHANES_II_MEDIAN = {  # ages 3, 6, 9, 12, 15, 18 (completed years): height in inches, weight in pounds
    "male": ((38.9, 47.2, 53.6, 59.8, 67.3, 69.6), (34.1, 48.6, 66.5, 93.8, 132.6, 155.3)),
    "female": ((38.4, 46.6, 53.1, 61.0, 64.2, 64.1), (32.6, 47.0, 65.5, 100.1, 117.6, 124.5)),
}
"""Of the United States, 1976-1980: NCHS (Najjar MF, Rowland M. Vital Health Stat 11 1987;238)."""


@pytest.mark.parametrize("sex", ["male", "female"])
def test_between_the_ages_children_are_as_large_as_those_measured(sex: str) -> None:
    height, weight = (np.asarray(values) for values in NHANES_II_MEDIAN[sex])
    bodies = reference_bodies(np.asarray([3, 6, 9, 12, 15, 18]) + 0.5, sex)
    np.testing.assert_allclose(bodies.height_cm, height * _INCH_CM, rtol=0.03)
    np.testing.assert_allclose(bodies.body_weight_kg, weight * _POUND_KG, rtol=0.08)


@pytest.mark.parametrize("sex", ["male", "female"])
def test_childrens_circulation_is_plausible_per_body_surface(sex: str) -> None:
    """Cardiac index 3-5 L/min per m2 at rest, GFR about 90-130 mL/min per 1.73 m2 from two years on."""
    bodies = reference_bodies(np.linspace(2, 20, 50), sex)
    surface_m2 = np.sqrt(bodies.height_cm * bodies.body_weight_kg / 3600)
    index = bodies.flow_l_h[:, ORGAN_INDEX["lung"]] / 60 / surface_m2
    assert (index > 3).all()
    assert (index < 5).all()
    gfr = bodies.gfr_l_h * 1000 / 60 / surface_m2 * 1.73
    assert (gfr > 90).all()
    assert (gfr < 130).all()


def test_filtration_declines_from_35_years_on() -> None:
    for sex, per_decade in (("male", 6.6), ("female", 7.7)):
        assert gfr_ageing(20.0, sex) == gfr_ageing(35.0, sex) == 1
        assert gfr_ageing(75.0, sex) == pytest.approx(1 - 4 * per_decade / 100)
        young, old = reference_person(35, sex), reference_person(65, sex)
        assert old.gfr_l_h / young.gfr_l_h == pytest.approx(1 - 3 * per_decade / 100, rel=1e-4)
        np.testing.assert_array_equal(old.volume_l, young.volume_l)
        assert reference_person(100, sex).gfr_l_h > 0


def test_filtration_matures_within_the_first_two_years() -> None:
    assert gfr_maturation(2.0) == pytest.approx(0.977, abs=0.002)
    assert gfr_maturation(40.0) == pytest.approx(1, abs=1e-4)
    assert reference_person(35, "male").gfr_l_h == pytest.approx(7.2 * (73 / 70) ** 0.75, rel=1e-4)


def test_a_person_is_scaled_to_a_weight() -> None:
    heavy, light = for_person(8, "female", 30.0), for_person(8, "female", 20.0, height_cm=120)
    np.testing.assert_allclose(heavy.volume_l, light.volume_l * 1.5)
    np.testing.assert_allclose(heavy.flow_l_h, light.flow_l_h * 1.5**0.75)
    assert light.height_cm == 120
    assert heavy.gfr_l_h == pytest.approx(light.gfr_l_h * 1.5**0.75)
    assert heavy.volume_l.sum() == pytest.approx(30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.5, "male"), r"age_year is not allowed \(got 1.5 years\); allowed: \[2, 100\]"),
        ((float("nan"), "male"), "age_year"),
        ((30, "other"), "sex is unknown"),
        ((30, "male", 0.0), "body_weight_kg"),
        ((30, "male", 500.0), "body_weight_kg"),
        ((30, "male", 70.0, 20.0), "height_cm"),
    ],
)
def test_what_growth_does_not_cover_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        for_person(*arguments)


def test_the_rat_adds_up() -> None:
    rat = rat_reference()
    assert rat.volume_l.sum() == pytest.approx(0.25)
    check_flow_balance(rat.flow_l_h)
    assert (rat.volume_l > 0).all()
    assert rat_reference(0.5).cardiac_output_l_h == pytest.approx(rat.cardiac_output_l_h * 2**0.75)
    assert rat.species == "rat"


def _rows(path: Path, key: str) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8") as handle:
        return {row[key]: row for row in csv.DictReader(handle)}


@pytest.mark.real_data
def test_the_rat_agrees_with_an_independent_table(perfuse_data: Path) -> None:
    rows = _rows(perfuse_data / "reference_physiology_rat_httk.csv", "organ")
    rat, portal = rat_reference(), ("gut", "pancreas")
    for organ in ("liver", "kidney", "brain", "heart", "muscle", "adipose", "skin", "bone", "spleen"):
        i = ORGAN_INDEX[organ]
        assert rat.volume_l[i] == pytest.approx(float(rows[organ]["volume_L_0p25kg_rat"]), rel=2e-3), organ
        assert rat.flow_l_h[i] == pytest.approx(float(rows[organ]["flow_L_per_h_0p25kg_rat"]), rel=2e-3), organ
    for organ in ("lung", "gut"):
        assert rat.volume_l[ORGAN_INDEX[organ]] == pytest.approx(float(rows[organ]["volume_L_0p25kg_rat"]), rel=2e-3)
    gut_flow = rat.flow_l_h[[ORGAN_INDEX[o] for o in portal]].sum()
    assert gut_flow == pytest.approx(float(rows["gut"]["flow_L_per_h_0p25kg_rat"]), rel=2e-3)


@pytest.mark.real_data
def test_the_whole_rat_agrees_with_an_independent_table(perfuse_data: Path) -> None:
    rows = _rows(perfuse_data / "httk_physiology_human_rat.csv", "Parameter")
    rat, of_weight = rat_reference(), 0.25**0.75 * 60 / 1000
    assert rat.cardiac_output_l_h == pytest.approx(float(rows["Cardiac Output"]["Rat"]) * of_weight, rel=2e-3)
    assert rat.gfr_l_h == pytest.approx(float(rows["GFR"]["Rat"]) * of_weight, rel=2e-3)
    assert rat.haematocrit == float(rows["Hematocrit"]["Rat"])
    plasma_ml = rat.volume_l[ORGAN_INDEX["blood"]] * 1000 * (1 - rat.haematocrit)
    assert plasma_ml == pytest.approx(float(rows["Plasma Volume"]["Rat"]) * 0.25, rel=5e-3)


@pytest.mark.real_data
def test_the_man_is_icrp_89s_and_lies_near_an_independent_one(perfuse_data: Path) -> None:
    rows = _rows(perfuse_data / "reference_physiology_14_organs_human.csv", "organ")
    man = reference_person(30, "male")
    for organ in ORGANS:
        i = ORGAN_INDEX[organ]
        assert man.volume_l[i] == pytest.approx(float(rows[organ]["icrp89_male_mass_kg_73kg"])), organ
        if organ != "blood":
            percent = float(rows[organ]["icrp89_flow_percent_of_cardiac_output"])
            assert man.flow_l_h[i] == pytest.approx(percent / 100 * 390), organ
    of_70_kg = man.scaled(70.0)
    for organ in ("blood", "liver", "kidney", "brain", "heart", "lung", "muscle", "gut"):
        other = float(rows[organ]["httk_volume_L_70kg"])
        assert of_70_kg.volume_l[ORGAN_INDEX[organ]] == pytest.approx(other, rel=0.06), organ
    for organ in ("liver", "kidney", "brain", "heart", "muscle", "lung"):  # another cardiac output: 5.6 L/min
        other = float(rows[organ]["httk_flow_L_per_h_70kg"]) / 336
        assert of_70_kg.flow_l_h[ORGAN_INDEX[organ]] / of_70_kg.cardiac_output_l_h == pytest.approx(other, rel=0.27)


@pytest.mark.real_data
def test_the_whole_man_lies_near_an_independent_one(perfuse_data: Path) -> None:
    rows = _rows(perfuse_data / "httk_physiology_human_rat.csv", "Parameter")
    man, of_weight = reference_person(30, "male").scaled(70.0), 70**0.75
    assert man.gfr_ml_min == pytest.approx(float(rows["GFR"]["Human"]) * of_weight, rel=0.05)
    assert man.haematocrit == pytest.approx(float(rows["Hematocrit"]["Human"]), rel=0.02)
    plasma_ml_kg = man.volume_l[ORGAN_INDEX["blood"]] / 70 * 1000 * (1 - man.haematocrit)
    assert plasma_ml_kg == pytest.approx(float(rows["Plasma Volume"]["Human"]), rel=0.05)
    assert man.cardiac_output_l_h / 0.06 == pytest.approx(float(rows["Cardiac Output"]["Human"]) * of_weight, rel=0.15)

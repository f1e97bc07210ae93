"""Reference persons by age and sex: ICRP 89's figures at its ages, smooth and balanced between them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from perfuse.errors import InputError
from perfuse.pk import anatomy
from perfuse.pk.growth import for_person, gfr_maturation, reference_bodies, reference_person
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


@pytest.mark.real_data
def test_the_rat_agrees_with_an_independent_table(perfuse_data: Path) -> None:
    with (perfuse_data / "reference_physiology_rat_httk.csv").open(encoding="utf-8") as handle:
        rows = {row["organ"]: row for row in csv.DictReader(handle)}
    rat = rat_reference()
    for organ in ("liver", "kidney", "brain", "heart", "muscle", "adipose", "skin", "bone", "spleen"):
        i = ORGAN_INDEX[organ]
        assert rat.volume_l[i] == pytest.approx(float(rows[organ]["volume_L_0p25kg_rat"]), rel=2e-3), organ
        assert rat.flow_l_h[i] == pytest.approx(float(rows[organ]["flow_L_per_h_0p25kg_rat"]), rel=2e-3), organ


@pytest.mark.real_data
def test_adult_flows_lie_near_an_independent_table(perfuse_data: Path) -> None:
    with (perfuse_data / "reference_physiology_14_organs_human.csv").open(encoding="utf-8") as handle:
        rows = {row["organ"]: row for row in csv.DictReader(handle)}
    man = reference_person(30, "male").scaled(70.0)
    for organ in ("liver", "kidney", "brain", "muscle", "heart"):
        other = float(rows[organ]["httk_flow_L_per_h_70kg"])
        assert 0.6 < man.flow_l_h[ORGAN_INDEX[organ]] / other < 1.6, organ

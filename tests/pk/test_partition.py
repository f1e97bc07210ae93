"""Partition coefficients: published values, limits, monotonicity, ionisation, refusals, measured Kp."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse.errors import InputError
from perfuse.pk import partition
from perfuse.pk.partition import HUMAN_COMPOSITION, KP_METHODS, PLASMA_COMPOSITION, PartitionInputs
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, human_reference

LIPID_METHODS = ("poulin-theil", "berezhkovskiy")


def test_every_tissue_has_a_composition() -> None:
    assert set(HUMAN_COMPOSITION) == set(ORGANS) - {"blood", "other"}
    for c in (*HUMAN_COMPOSITION.values(), PLASMA_COMPOSITION):
        assert c.water + c.neutral_lipid + c.phospholipid < 1


def test_poulin_theil_reproduces_voriconazole() -> None:
    # Voriconazole (logP 2.56, pKa 1.76, fup 0.42) by Poulin & Theil as printed in the voriconazole model of the
    # repository metrumresearchgroup/bioPBPK (after Zane NR, Thakker DR. Clin Pharmacokinet 2014;53:1171-1182).
    published = {
        "adipose": 9.89, "bone": 7.91, "brain": 7.35, "gut": 5.82, "heart": 1.95, "kidney": 2.9, "liver": 4.66,
        "lung": 0.83, "muscle": 2.94, "skin": 3.53, "spleen": 2.96,
    }  # fmt: skip
    kp = partition.kp_poulin_theil(PartitionInputs(2.56, 0.42, pka_base=(1.76,)))
    for tissue, value in published.items():
        assert kp[tissue] == pytest.approx(value, abs=0.0051 if value != 2.9 else 0.051), tissue


@pytest.mark.parametrize("method", LIPID_METHODS)
def test_hydrophilic_unbound_limit_is_water_ratio(method: str) -> None:
    kp = KP_METHODS[method](PartitionInputs(-15.0, 1.0))
    for tissue, c in HUMAN_COMPOSITION.items():
        p = PLASMA_COMPOSITION
        assert kp[tissue] == pytest.approx(
            (c.water + 0.7 * c.phospholipid) / (p.water + 0.7 * p.phospholipid), rel=1e-9
        )


@pytest.mark.parametrize("method", LIPID_METHODS)
def test_lipophilic_limit_is_lipid_ratio(method: str) -> None:
    kp = KP_METHODS[method](PartitionInputs(15.0, 1.0))
    for tissue, c in HUMAN_COMPOSITION.items():
        p = PLASMA_COMPOSITION
        expected = (c.neutral_lipid + 0.3 * c.phospholipid) / (p.neutral_lipid + 0.3 * p.phospholipid)
        assert kp[tissue] == pytest.approx(expected, rel=1e-6)


def test_methods_agree_without_binding() -> None:
    drug = PartitionInputs(2.0, 1.0, pka_acid=(4.0,))
    assert partition.kp_poulin_theil(drug) == pytest.approx(partition.kp_berezhkovskiy(drug), rel=1e-12)


@pytest.mark.parametrize("method", LIPID_METHODS)
def test_monotone_in_lipophilicity_and_binding(method: str) -> None:
    by_logp = [KP_METHODS[method](PartitionInputs(logp, 0.5)) for logp in np.linspace(-2, 6, 9)]
    by_fup = [KP_METHODS[method](PartitionInputs(1.0, fup)) for fup in (0.01, 0.1, 0.3, 1.0)]
    for tissue in ("muscle", "brain", "adipose", "liver"):
        assert all(a[tissue] < b[tissue] for a, b in zip(by_logp, by_logp[1:], strict=False))
        assert all(a[tissue] < b[tissue] for a, b in zip(by_fup, by_fup[1:], strict=False))


@pytest.mark.parametrize("method", LIPID_METHODS)
def test_ionisation_lowers_adipose_only(method: str) -> None:
    neutral = KP_METHODS[method](PartitionInputs(3.0, 0.3))
    base = KP_METHODS[method](PartitionInputs(3.0, 0.3, pka_base=(9.4,)))
    assert base["adipose"] < 0.1 * neutral["adipose"]
    assert {t: v for t, v in base.items() if t != "adipose"} == {t: v for t, v in neutral.items() if t != "adipose"}


@pytest.mark.parametrize("method", LIPID_METHODS)
@pytest.mark.parametrize(
    ("drug", "low", "high"),
    [
        (PartitionInputs(3.9, 0.03, pka_base=(6.0,)), 0.05, 50.0),  # midazolam: lipophilic, bound
        (PartitionInputs(-0.02, 0.6, pka_acid=(8.8,)), 0.1, 2.0),  # theophylline: stays in water
        # An acid on albumin. Measured Kp of such acids are mostly below 1: the methods ignore ionisation outside
        # adipose and overpredict them, a published weakness that is stated in the module and not hidden here.
        (PartitionInputs(4.3, 0.01, pka_acid=(4.5,)), 0.02, 15.0),
        (PartitionInputs(3.8, 0.015, pka_acid=(11.0,)), 0.05, 100.0),  # propofol
    ],
)
def test_known_drugs_lie_in_plausible_ranges(method: str, drug: PartitionInputs, low: float, high: float) -> None:
    kp = partition.tissue_plasma_kp(drug, method)
    assert ((kp[1:] > low) & (kp[1:] < high)).all()


def test_organ_vector_other_and_overrides() -> None:
    drug = PartitionInputs(2.0, 0.2)
    kp = partition.tissue_plasma_kp(drug, "poulin-theil")
    assert kp.shape == (len(ORGANS),)
    assert kp[0] == 1.0
    volume = human_reference().volume_l[1:-1]
    assert kp[-1] == pytest.approx(float((kp[1:-1] * volume).sum() / volume.sum()))
    fixed = partition.tissue_plasma_kp(drug, "poulin-theil", {"liver": 20.0})
    assert fixed[ORGAN_INDEX["liver"]] == 20.0
    assert fixed[-1] > kp[-1]
    assert partition.tissue_plasma_kp(drug, "poulin-theil", {"other": 3.0})[-1] == 3.0


def test_fraction_unionised() -> None:
    assert partition.fraction_unionised((), ()) == 1.0
    assert partition.fraction_unionised((7.4,), ()) == pytest.approx(0.5)
    assert partition.fraction_unionised((), (7.4,)) == pytest.approx(0.5)
    assert partition.fraction_unionised((4.4,), ()) == pytest.approx(1 / 1001)
    assert partition.fraction_unionised((), (9.4,)) == pytest.approx(1 / 101)
    zwitterion = 1 / (1 + 10**3.4 + 10**2 + 10**5.4)  # Rodgers & Rowland 2006: acid 4, base 9.4
    assert partition.fraction_unionised((4.0,), (9.4,)) == pytest.approx(zwitterion)
    diprotic = 1 / (1 + 10**3.4 + 10**4.8)
    assert partition.fraction_unionised((6.0, 4.0), ()) == pytest.approx(diprotic)  # order of the list is no matter
    assert partition.fraction_unionised((4.0, 6.0), ()) == pytest.approx(diprotic)
    assert partition.fraction_unionised((-6.5, -6.0, -5.0), (15.0, 14.0)) > 0  # no overflow, no zero
    assert partition.fraction_unionised((), (9.4,), ph=9.4) == pytest.approx(0.5)


def test_ion_class() -> None:
    assert partition.ion_class((4.5,), ()) == "acid"
    assert partition.ion_class((), (9.0,)) == "base"
    assert partition.ion_class((9.5,), (4.0,)) == "neutral"
    assert partition.ion_class((3.2,), (8.0,)) == "zwitterion"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"logp": math.nan}, "logp"),
        ({"logp": 16.0}, "logp"),
        ({"fup": 0.0}, "fup"),
        ({"fup": 1.01}, "fup"),
        ({"pka_acid": (99.0,)}, "pka_acid"),
        ({"pka_base": (math.inf,)}, "pka_base"),
        ({"bp_ratio": 0.0}, "bp_ratio"),
    ],
)
def test_inputs_refused(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as error:
        PartitionInputs(**({"logp": 1.0, "fup": 0.5} | arguments))
    assert error.value.field == field


def test_arguments_refused() -> None:
    drug = PartitionInputs(1.0, 0.5)
    with pytest.raises(InputError, match="kp_method is unknown .got magic."):
        partition.tissue_plasma_kp(drug, "magic")
    with pytest.raises(InputError, match="kp.tail is no organ"):
        partition.tissue_plasma_kp(drug, overrides={"tail": 1.0})
    with pytest.raises(InputError, match="kp.blood is no organ"):
        partition.tissue_plasma_kp(drug, overrides={"blood": 1.0})
    with pytest.raises(InputError, match="kp.liver"):
        partition.tissue_plasma_kp(drug, overrides={"liver": -1.0})
    for value in (1e-15, 1e7):
        with pytest.raises(InputError, match=r"kp.liver is not allowed.*allowed: .0.0001, 1e\+06."):
            partition.tissue_plasma_kp(drug, overrides={"liver": value})


def test_a_prediction_that_cannot_be_is_refused_and_may_be_replaced() -> None:
    bound = PartitionInputs(-2.0, 1e-6)
    with pytest.raises(InputError, match="kp.adipose as poulin-theil predicts it cannot.*give a measured"):
        partition.tissue_plasma_kp(bound, "poulin-theil")
    assert partition.tissue_plasma_kp(bound, "poulin-theil", {"adipose": 0.2})[ORGANS.index("adipose")] == 0.2
    with pytest.raises(InputError, match="fup"):
        partition.fraction_unbound_tissue(0.0)
    with pytest.raises(InputError, match="ph"):
        partition.fraction_unionised((4.0,), (), ph=15.0)
    with pytest.raises(InputError, match="ph"):
        partition.ion_class((4.0,), (), ph=-1.0)
    with pytest.raises(InputError, match="pka_acid"):
        partition.fraction_unionised((math.nan,), ())


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part.strip())


@pytest.mark.real_data
@pytest.mark.parametrize(("method", "bound"), [("poulin-theil", 4.2), ("berezhkovskiy", 4.0)])
def test_measured_partition_coefficients(perfuse_data: Path, method: str, bound: float) -> None:
    """Human composition against (mostly rat) measured Kp; measured on 760 values of 105 drugs: 3.76 and 3.60."""
    errors: dict[str, list[float]] = {}
    with (perfuse_data / "kp_observed.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            observed, fup = float(row["kp_tissue_to_plasma_observed"] or 0), float(row["fup_fraction"] or 0)
            if observed <= 0 or fup <= 0 or not row["logp"] or row["tissue"] not in HUMAN_COMPOSITION:
                continue
            pka = _numbers(row["httk_pka_donor_acid_list"]), _numbers(row["httk_pka_acceptor_base_list"])
            kp = KP_METHODS[method](PartitionInputs(float(row["logp"]), fup, *pka))[row["tissue"]]
            errors.setdefault(row["compound"], []).append(abs(math.log(kp / observed)))
    gmfe = math.exp(np.mean([np.mean(e) for e in errors.values()]))
    print(f"{method}: GMFE {gmfe:.3f}, drugs weighing equally, {sum(map(len, errors.values()))} values")
    assert sum(map(len, errors.values())) > 700
    assert 1.0 < gmfe < bound

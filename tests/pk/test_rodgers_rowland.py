"""Rodgers & Rowland, Schmitt and PK-Sim standard: formulas written again by hand, limits, and measured coefficients."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from perfuse.pk.composition import CELLULAR_COMPOSITION, HUMAN_PROTEIN_COMPOSITION, RAT_PROTEIN_COMPOSITION
from perfuse.pk.ionisation import unionised_fraction
from perfuse.pk.partition import KP_METHODS, PartitionInputs, rodgers_rowland_kp
from perfuse.pk.physiology import ORGANS


def test_strong_base_by_hand() -> None:
    """Imipramine-like: pKa 9.5, log P 4.8, fup 0.18, B:P 1.5; muscle, every step written out."""
    x, y, z = (10 ** (9.5 - ph) for ph in (7.0, 7.4, 7.22))
    p = 10**4.8
    kpu_bc = (1.5 - 0.55) / (0.45 * 0.18)
    ka_ap = (
        (kpu_bc - (1 + z) / (1 + y) * 0.603 - (p * 0.0017 + (0.3 * p + 0.7) * 0.0029) / (1 + y)) * (1 + y) / (0.5 * z)
    )
    kpu = (
        0.118 + (1 + x) / (1 + y) * 0.630 + (p * 0.01 + (0.3 * p + 0.7) * 0.0072) / (1 + y) + ka_ap * 1.53 * x / (1 + y)
    )
    ours = KP_METHODS["rodgers-rowland"](PartitionInputs(4.8, 0.18, (), (9.5,), 1.5))
    assert ours["muscle"] == pytest.approx(kpu * 0.18, rel=1e-12)
    assert ka_ap > 0


def test_acid_and_neutral_by_hand() -> None:
    p = 10**2.7
    x, y = (10 ** (ph - 5.0) for ph in (7.0, 7.4))
    ka = 1 / 0.01 - 1 - (p * 0.0023 + (0.3 * p + 0.7) * 0.0013) / (1 + y)
    kpu = 0.161 + (1 + x) / (1 + y) * 0.573 + (p * 0.0135 + (0.3 * p + 0.7) * 0.0238) / (1 + y) + ka * 0.086
    assert KP_METHODS["rodgers-rowland"](PartitionInputs(2.7, 0.01, (5.0,)))["liver"] == pytest.approx(kpu * 0.01)
    oil = 10 ** (1.115 * 2.0 - 1.35)
    ka = 1 / 0.5 - 1 - (100 * 0.0023 + 30.7 * 0.0013)
    kpu = 0.135 + 0.017 + oil * 0.853 + (0.3 * oil + 0.7) * 0.0016 + ka * 0.068
    assert KP_METHODS["rodgers-rowland"](PartitionInputs(2.0, 0.5))["adipose"] == pytest.approx(kpu * 0.5)


def test_a_binding_constant_below_zero_counts_as_none() -> None:
    """B:P of 0.56 says that the base stays out of red cells: nothing is left to bind to acidic phospholipids."""
    low, lower = (KP_METHODS["rodgers-rowland"](PartitionInputs(1.0, 0.5, (), (9.0,), bp)) for bp in (0.6, 0.56))
    assert low == lower
    assert all(value > 0 for value in low.values())


def test_many_drugs_at_once_equal_one_by_one() -> None:
    drugs = [
        PartitionInputs(1.0, 0.3),
        PartitionInputs(3.0, 0.05, (4.0,), (), 0.6),
        PartitionInputs(2.0, 0.4, (3.0, 9.0), (8.5, 10.0), 1.2),
    ]
    pad = lambda values: [*values, *[np.nan] * (2 - len(values))]  # noqa: E731
    together = rodgers_rowland_kp(
        np.asarray([d.logp for d in drugs]), np.asarray([pad(d.pka_acid) for d in drugs]),
        np.asarray([pad(d.pka_base) for d in drugs]), np.asarray([d.fup for d in drugs]),
        np.asarray([d.bp_ratio for d in drugs]),
    )  # fmt: skip
    for row, drug in zip(together, drugs, strict=True):
        alone = KP_METHODS["rodgers-rowland"](drug)
        for tissue, value in alone.items():
            assert row[ORGANS.index(tissue)] == pytest.approx(value, rel=1e-12)
        assert min(alone.values()) <= row[ORGANS.index("other")] <= max(alone.values())
        assert row[0] == 1


def test_schmitt_by_hand_and_its_tables() -> None:
    """A neutral: no pH plays a part. Rat muscle."""
    logp, fup = 2.0, 0.5
    membrane = 10 ** (1.294 + 0.304 * logp)
    cells = 0.7768 + 0.02319 * (100 * 0.5339 + membrane * (0.3844 + 0.08169)) + 0.2 * (0.163 + 0.0221 * membrane)
    kpu = 0.124 * (0.935 + 0.37 * (1 / fup - 0.945)) + 0.876 * cells
    drug = PartitionInputs(logp, fup, species="rat")
    assert KP_METHODS["schmitt"](drug)["muscle"] == pytest.approx(kpu * fup, rel=1e-12)
    for table in (HUMAN_PROTEIN_COMPOSITION, RAT_PROTEIN_COMPOSITION):
        for tissue, c in table.items():
            assert c.cells + c.interstitium == pytest.approx(1, abs=0.005), tissue
            assert c.neutral_lipid + c.neutral_phospholipid + c.acidic_phospholipid == pytest.approx(1, abs=0.01), (
                tissue
            )
            assert c.water + c.lipid + c.protein < 1.01, tissue
    for tissue, row in CELLULAR_COMPOSITION.items():
        assert (
            row.extracellular_water + row.intracellular_water + row.neutral_lipid + row.neutral_phospholipid < 1.01
        ), tissue


def test_pk_sim_standard_by_hand() -> None:
    k = 10**1.5
    water, lipid, protein = 0.85 * 0.7991 + 0.15 * 0.935, 0.85 * 0.02387, 0.85 * 0.177 + 0.15 * 0.37 * 0.07
    expected = (water + k * lipid + 5 * (0.81 + 0.11 * k) / 24.92 * protein) * 0.3
    assert KP_METHODS["pk-sim-standard"](PartitionInputs(1.5, 0.3))["muscle"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", KP_METHODS)
def test_lipophilic_neutrals_partition_more_into_fat_and_all_are_positive(method: str) -> None:
    adipose = [KP_METHODS[method](PartitionInputs(logp, 0.2))["adipose"] for logp in (-2.0, 0.0, 2.0, 4.0)]
    assert adipose == sorted(adipose)
    for drug in (PartitionInputs(-5, 1.0), PartitionInputs(8, 0.001, (3.0,), (10.0,), 0.5)):
        assert all(math.isfinite(v) and v > 0 for v in KP_METHODS[method](drug).values())


def test_unionised_fraction_of_arrays() -> None:
    acid = np.asarray([[np.nan, np.nan], [4.4, np.nan], [np.nan, np.nan], [3.4, 8.4]])
    base = np.asarray([[np.nan, np.nan], [np.nan, np.nan], [8.4, np.nan], [np.nan, np.nan]])
    expected = [1, 1 / (1 + 10**3), 1 / 11, 1 / (1 + 10**4 + 10**3)]
    np.testing.assert_allclose(unionised_fraction(acid, base), expected, rtol=1e-12)


@pytest.mark.real_data
@pytest.mark.parametrize(("method", "bound"), [("rodgers-rowland", 3.4), ("schmitt", 3.5), ("pk-sim-standard", 7.3)])
def test_measured_partition_coefficients(perfuse_data: Path, method: str, bound: float) -> None:
    """Geometric mean fold error over the values of tissues that the method has; a regression shows."""
    with (perfuse_data / "kp_observed.csv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    numbers = lambda text: tuple(float(x) for x in text.split(",") if x)  # noqa: E731
    errors = []
    for row in rows:
        if (
            min(float(row[name] or 0) for name in ("fup_fraction", "kp_tissue_to_plasma_observed")) <= 0
            or not row["logp"]
        ):
            continue
        drug = PartitionInputs(
            float(row["logp"]), float(row["fup_fraction"]), numbers(row["httk_pka_donor_acid_list"]),
            numbers(row["httk_pka_acceptor_base_list"]), float(row["httk_rat_blood_to_plasma_ratio"] or 1.0), "rat",
        )  # fmt: skip
        predicted = KP_METHODS[method](drug).get(row["tissue"])
        if predicted is not None:
            errors.append(abs(math.log(predicted / float(row["kp_tissue_to_plasma_observed"]))))
    assert len(errors) > 700
    assert 2 < math.exp(np.mean(errors)) < bound

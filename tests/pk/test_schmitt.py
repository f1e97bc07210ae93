"""Schmitt and PK-Sim standard: formulas written again by hand, values that PK-Sim gave, ionisation, tables."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from perfuse.pk.composition import HUMAN_PROTEIN_COMPOSITION, PK_SIM_COMPOSITION, RAT_PROTEIN_COMPOSITION
from perfuse.pk.partition import PartitionInputs, kp_pk_sim_standard, kp_schmitt
from perfuse.pk.physiology import ORGANS
from perfuse.pk.schmitt import charge_fractions

# What PK-Sim gave, taken from the data with which Utsey K, et al. (Drug Metab Dispos 2020;48:903-916) check their code.
PK_SIM_TISSUES = (
    "bone", "brain", "adipose", "heart", "kidney", "gut", "liver", "lung", "muscle", "pancreas", "skin", "spleen",
)  # fmt: skip
PK_SIM_KP = [
    (1.87, 0.79, (16.44, 7.2, 47.04, 6.67, 3.9, 4.45, 4.89, 1.48, 1.65, 5.43, 6.75, 1.83)),  # acebutolol
    (2.4, 0.28, (19.41, 8.09, 56.39, 7.51, 4.15, 4.79, 5.36, 1.22, 1.42, 6.03, 7.66, 1.65)),  # triazolam
    (0.77, 0.5, (1.06, 0.74, 2.44, 0.68, 0.57, 0.6, 0.6, 0.46, 0.47, 0.61, 0.64, 0.46)),  # ethoxybenzamide
    (0.1, 0.66, (0.56, 0.63, 0.77, 0.59, 0.58, 0.59, 0.57, 0.56, 0.57, 0.55, 0.52, 0.55)),  # enoxacin
]


@pytest.mark.parametrize(("logp", "fup", "kp"), PK_SIM_KP)
def test_pk_sim_standard_is_what_pk_sim_gave(logp: float, fup: float, kp: tuple[float, ...]) -> None:
    ours = kp_pk_sim_standard(PartitionInputs(logp, fup))
    for tissue, value in zip(PK_SIM_TISSUES, kp, strict=True):
        assert ours[tissue] == pytest.approx(value, rel=0.002, abs=0.0101), tissue


def test_pk_sim_standard_knows_neither_charge_nor_species() -> None:
    neutral = kp_pk_sim_standard(PartitionInputs(1.5, 0.3))
    assert neutral == kp_pk_sim_standard(PartitionInputs(1.5, 0.3, (4.0,), (9.0,), 2.0, "rat"))


def test_schmitt_neutral_by_hand() -> None:
    """No pH plays a part. Rat muscle."""
    logp, fup = 2.0, 0.5
    membrane = 10 ** (1.294 + 0.304 * logp)
    cells = 0.7768 + 0.02319 * (100 * 0.5339 + membrane * (0.3844 + 0.08169)) + 0.2 * (0.163 + 0.0221 * membrane)
    kpu = 0.124 * (0.935 + 0.37 * (1 / fup - 0.945)) + 0.876 * cells
    drug = PartitionInputs(logp, fup, species="rat")
    assert kp_schmitt(drug)["muscle"] == pytest.approx(kpu * fup, rel=1e-12)


@pytest.mark.parametrize(("acid", "base"), [((4.5,), ()), ((), (9.2,)), ((5.7,), (8.7,))])
def test_schmitt_ionised_by_hand(acid: tuple[float, ...], base: tuple[float, ...]) -> None:
    """Human lung (pH 6.6), log P 2.5, fup 0.2: an acid, a base, and a zwitterion whose both charges cancel."""
    shares = {}
    for ph in (6.6, 7.4):
        anion = 1 / (1 + 10 ** (acid[0] - ph)) if acid else 0.0
        cation = 1 / (1 + 10 ** (ph - base[0])) if base else 0.0
        shares[ph] = (1 - anion) * (1 - cation) + anion * cation, cation * (1 - anion), anion * (1 - cation)
    d = {ph: u + 1e-3 * (plus + minus) for ph, (u, plus, minus) in shares.items()}
    u, plus, minus = shares[6.6]
    membrane = 10 ** (1.294 + 0.304 * 2.5)
    lipid = 0.3 * 10**2.5 * d[6.6] + 0.56 * membrane + 0.14 * membrane * (u + 20 * plus + 0.05 * minus)
    cells = 0.8038 + 0.01316 * lipid + 0.183 * (0.163 + 0.0221 * membrane)
    kpu = 0.2 * (0.935 + 0.37 * (1 / 0.2 - 0.945)) + 0.8 * d[7.4] / d[6.6] * cells
    assert kp_schmitt(PartitionInputs(2.5, 0.2, acid, base))["lung"] == pytest.approx(kpu * 0.2, rel=1e-9)


def test_charges_sum_to_one_and_survive_extreme_pka() -> None:
    for drug in (
        PartitionInputs(0, 1, (3.0, 5.0), (8.0, 11.0)), PartitionInputs(0, 1, (-20.0,)), PartitionInputs(0, 1),
        PartitionInputs(0, 1, (), (30.0, 29.0)),
    ):  # fmt: skip
        charge = charge_fractions(drug, 7.0)
        assert charge.uncharged + charge.cationic + charge.anionic == pytest.approx(1, rel=1e-12)
        assert charge.uncharged > 0


def test_tables() -> None:
    for table in (HUMAN_PROTEIN_COMPOSITION, RAT_PROTEIN_COMPOSITION):
        for tissue, c in table.items():
            assert c.cells + c.interstitium == pytest.approx(1, abs=0.005), tissue
            shares = c.neutral_lipid + c.neutral_phospholipid + c.acidic_phospholipid
            assert shares == pytest.approx(1, abs=0.01), tissue
            assert c.water + c.lipid + c.protein < 1.01, tissue
    for tissue, w in PK_SIM_COMPOSITION.items():
        assert 0.9 < w.water + w.lipid + w.protein < 1.01, tissue
    assert set(PK_SIM_COMPOSITION) == set(ORGANS) - {"blood", "other"}


@pytest.mark.real_data
def test_tables_are_those_of_httk(perfuse_data: Path) -> None:
    """Figure by figure what the R package httk tabulates (Schmitt 2008, Ruark 2014)."""
    names = {
        "Fcell": "cells", "Fint": "interstitium", "FWc": "water", "FLc": "lipid", "FPc": "protein",
        "Fn_Lc": "neutral_lipid", "Fn_PLc": "neutral_phospholipid", "Fa_PLc": "acidic_phospholipid", "pH": "ph",
    }  # fmt: skip
    tables = {"Human": HUMAN_PROTEIN_COMPOSITION, "Rat": RAT_PROTEIN_COMPOSITION}
    compared = 0
    with (perfuse_data / "httk_tissue_data_human_rat.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            composition = tables[row["species"]].get(row["tissue"])
            if row["variable"] in names and composition is not None:
                assert getattr(composition, names[row["variable"]]) == pytest.approx(float(row["value"])), row
                compared += 1
    assert compared == 2 * 11 * len(names)

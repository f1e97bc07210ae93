"""Predicted blood:plasma ratio: limits, refusals, and how good it is on measured values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from perfuse.errors import InputError
from perfuse.pk.blood_binding import (
    HAEMATOCRIT,
    RBC_BINDING_CAPACITY,
    RBC_UNBOUND_PARTITION,
    blood_plasma_ratio,
    fraction_unbound_blood,
    rbc_unbound_partition,
)
from perfuse.pk.partition import ion_class


def test_bound_acid_stays_out_of_red_cells() -> None:
    # Obach RS. Drug Metab Dispos 1997;25:1359-1369 takes 0.55 for warfarin
    assert blood_plasma_ratio("acid", 0.01) == pytest.approx(1 - HAEMATOCRIT, abs=0.02)


def test_unbound_drug_distributes_by_red_cell_partitioning() -> None:
    for name in RBC_BINDING_CAPACITY:
        assert blood_plasma_ratio(name, 1.0) == pytest.approx(1 + 0.45 * 0.2)
        assert rbc_unbound_partition(name, 1.0) == RBC_UNBOUND_PARTITION


def test_definition_holds() -> None:
    kpu = rbc_unbound_partition("base", 0.03)
    assert blood_plasma_ratio("base", 0.03, 0.4) == pytest.approx(1 + 0.4 * (0.03 * kpu - 1))
    assert fraction_unbound_blood(0.1, 0.8) == pytest.approx(0.125)


def test_within_what_was_observed() -> None:
    # Uchimura T et al. 2010: 0.52 to 2.00 in 96 drugs
    values = [blood_plasma_ratio(c, f) for c in RBC_BINDING_CAPACITY for f in np.geomspace(1e-4, 1, 30)]
    assert 0.52 <= min(values) and max(values) <= 2.0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((0.0, 0.4), "fup"),
        ((1.1, 0.4), "fup"),
        ((math.nan, 0.4), "fup"),
        ((0.5, 0.0), "haematocrit"),
        ((0.5, 1.0), "haematocrit"),
    ],
)
def test_refused(arguments: tuple[float, float], field: str) -> None:
    with pytest.raises(InputError) as error:
        blood_plasma_ratio("acid", *arguments)
    assert error.value.field == field


def test_fraction_in_blood_refused() -> None:
    with pytest.raises(InputError, match="bp_ratio"):
        fraction_unbound_blood(0.5, 0.0)


@pytest.mark.real_data
def test_predicted_ratio_against_measured(perfuse_data: Path) -> None:
    """The default beats BP = 1 and the best constant per class on 267 compounds, and its fit does not lean on them."""
    polars = pytest.importorskip("polars")
    table = polars.read_csv(perfuse_data / "httk_inputs.csv", infer_schema_length=None)
    rows = table.drop_nulls(["human_blood_to_plasma_ratio", "human_fup_fraction", "logp_octanol_water"])
    pka = lambda text: tuple(float(x) for x in str(text).split(",")) if text is not None else ()  # noqa: E731
    compounds = [
        (ion_class(pka(r["pka_donor_acid_list"]), pka(r["pka_acceptor_base_list"])), float(r["human_fup_fraction"]),
         float(r["human_blood_to_plasma_ratio"]))
        for r in rows.iter_rows(named=True) if 0 < float(r["human_fup_fraction"]) <= 1
    ]  # fmt: skip
    classes, fup, observed = (np.asarray(column) for column in zip(*compounds, strict=True))
    gmfe = lambda predicted: float(np.exp(np.abs(np.log(predicted / observed)).mean()))  # noqa: E731
    predicted = np.asarray([blood_plasma_ratio(c, f) for c, f in zip(classes, fup, strict=True)])
    best_constant = np.empty_like(observed)
    for name in np.unique(classes):
        best_constant[classes == name] = np.median(observed[classes == name])
    assert len(observed) > 250
    assert gmfe(predicted) == pytest.approx(1.20, abs=0.01)
    assert gmfe(best_constant) == pytest.approx(1.26, abs=0.01)
    assert gmfe(np.ones_like(observed)) == pytest.approx(1.32, abs=0.01)

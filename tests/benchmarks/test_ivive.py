"""The judging arithmetic is right, and the published figures are what the script gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import ivive
from perfuse.pk.clearance import hepatic_clearance, scale_hepatocyte_clint
from perfuse.pk.drug import Drug
from perfuse.pk.physiology import ORGAN_INDEX, human_reference


def test_judged_by_hand() -> None:
    cells = ivive.judged("x", np.asarray([2.0, 1.0, 8.0]), np.asarray([1.0, 1.0, 2.0]))
    assert cells[:2] == ["x", "3"]
    assert cells[2].startswith("2.00 ")  # (ln 2 + 0 + ln 4) / 3 = ln 2
    assert cells[3:] == ["67%", "67%", "2.00"]


def test_scaled_clearance_by_hand() -> None:
    drug = Drug(name="x", mw_g_mol=300, logp=1, fup=0.2, bp_ratio=0.8, clint_ul_min_million_cells=10, fu_inc=0.5)
    body = human_reference(70.0)
    liver_l, flow = (float(a[ORGAN_INDEX["liver"]]) for a in (body.volume_l, body.flow_l_h))
    blood = hepatic_clearance(scale_hepatocyte_clint(20.0, liver_l), 0.2, 0.8, flow)
    assert ivive.scaled_clearance(drug) == pytest.approx(0.8 * blood + 7.2 * 0.2)


def test_cross_validation_does_not_see_what_it_predicts() -> None:
    rng = np.random.default_rng(1)
    data = {"ion": np.full(60, "acid"), "fup": rng.uniform(0, 1, 60), "bp": rng.permutation(np.arange(60.0) + 1)}
    predicted = ivive.cross_validated(data, lambda p, f: np.full_like(f, p[0]), (20.0,))
    assert len(np.unique(predicted.round(6))) > 1  # a constant per fold, from the other folds
    assert not np.isclose(predicted, data["bp"]).all()


@pytest.mark.real_data
def test_published_tables(perfuse_data: Path) -> None:
    """The rows that docs/clearance.md shows and talks about."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "clearance.md").read_text(encoding="utf-8")
    clearance = ivive.clearance_tables(perfuse_data / "human_iv_summary.csv")
    blood = ivive.blood_binding_table(perfuse_data / "httk_inputs.csv")
    for line in (*clearance.splitlines(), *blood.splitlines()):
        assert line in page, line

"""The mask, the floor and the clocks that metrics and calibration share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from perfuse.data.scoring import FLOOR_FRACTION_OF_LOQ, first_dose_h, floored, scored_mask, since_last_dose_h
from perfuse.data.table import CurveTable


@pytest.fixture
def one(t1_table: CurveTable) -> CurveTable:
    """One curve at 0, 2, 4, 12 and 20 h, with doses at 1, 4 and 12 h and a row of padding."""
    table = t1_table.take([0])
    time = np.asarray([[0.0, 2.0, 4.0, 12.0, 20.0]])
    conc = np.full((1, 14, 5), 10.0)
    return replace(
        table, time_h=time, conc_mg_l=conc, censored=np.zeros(conc.shape, dtype=bool), loq_mg_l=np.asarray([1.0]),
        dose_time_h=np.asarray([[1.0, 4.0, 12.0, 0.0]]), dose_mg=np.asarray([[5.0, 5.0, 5.0, 0.0]]),
        dose_duration_h=np.zeros((1, 4)), dose_route=np.zeros((1, 4), dtype=np.int8),
    )  # fmt: skip


def test_time_since_the_last_dose(one: CurveTable) -> None:
    """At the time of a dose the value before it is reported, so the dose before counts; padding never does."""
    assert first_dose_h(one).tolist() == [1.0]
    assert since_last_dose_h(one).tolist() == [[-1.0, 1.0, 3.0, 8.0, 8.0]]


def test_what_is_scored(one: CurveTable) -> None:
    conc = one.conc_mg_l.copy()
    conc[0, 0, 1], conc[0, 1, 2] = 0.999, np.nan
    censored = one.censored.copy()
    censored[0, 2, 3] = True
    mask = scored_mask(replace(one, conc_mg_l=conc, censored=censored))
    assert not mask[..., 0].any()  # t = 0
    assert not mask[0, 0, 1] and not mask[0, 1, 2] and not mask[0, 2, 3]
    assert mask.sum() == 14 * 4 - 3


def test_the_floor(one: CurveTable) -> None:
    pred = np.full(one.conc_mg_l.shape, 5.0)
    pred[0, 0] = [-1.0, 0.0, np.nan, np.inf, 2.0]
    assert floored(one, pred)[0, 0].tolist() == [FLOOR_FRACTION_OF_LOQ] * 4 + [2.0]
    assert (floored(one, pred)[0, 1:] == 5.0).all()

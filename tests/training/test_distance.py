"""The distance to the training drugs: percentiles that mean something, what counts as outside, and its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from perfuse.data.simulate import simulate_task
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.training.distance import TrainingDistance, distance_from, fit_distance
from perfuse.training.distance_file import DISTANCE_FILE, load_distance, save_distance
from perfuse.training.drug_features import drug_features, feature_names


@pytest.fixture(scope="module")
def table() -> CurveTable:
    return simulate_task("T1", 400, seed=6)


@pytest.fixture(scope="module")
def distance(table: CurveTable) -> TrainingDistance:
    found = fit_distance(table, np.arange(250), 0)
    assert found is not None
    return found


def test_fresh_drugs_of_the_same_kind_are_spread_over_all_percentiles(
    table: CurveTable, distance: TrainingDistance
) -> None:
    percentile = distance.measure(table.take(np.arange(250, 400))).percentile
    assert np.quantile(percentile, [0.25, 0.5, 0.75]) == pytest.approx([25, 50, 75], abs=12)
    assert (percentile > 99).mean() < 0.06


def test_a_training_drug_is_nearer_than_any_other(table: CurveTable, distance: TrainingDistance) -> None:
    one = table.take([0])
    itself = replace(distance, neighbours=1).measure(one)
    assert itself.distance[0] == pytest.approx(0.0, abs=1e-5) and itself.percentile[0] < 5


def test_far_drugs_are_outside(table: CurveTable, distance: TrainingDistance) -> None:
    one = table.take([300])
    shifted = [distance.measure(replace(one, elimination_l_h=one.elimination_l_h * f)) for f in (1.0, 10.0, 1000.0)]
    assert shifted[0].distance[0] < shifted[1].distance[0] < shifted[2].distance[0]
    assert shifted[2].percentile[0] == 100.0


def test_what_never_varied_in_training_and_differs_is_outside(table: CurveTable, distance: TrainingDistance) -> None:
    one = table.take([300])
    assert not distance.measure(one).differing.any()
    other = distance.measure(replace(one, bp_ratio=one.bp_ratio * 1.1))
    assert other.percentile[0] == 100.0
    assert [distance.names[i] for i in np.flatnonzero(other.differing[0])] == ["bp_ratio"]


def test_the_dose_does_not_count_in_linear_kinetics(table: CurveTable, distance: TrainingDistance) -> None:
    one = table.take([300])
    more = replace(one, dose_mg=one.dose_mg * 50)
    assert distance.measure(more).distance == pytest.approx(distance.measure(one).distance)


def test_in_saturable_kinetics_it_does() -> None:
    saturable = simulate_task("T4", 40, seed=0)
    names = feature_names(saturable.topology)
    features = drug_features(saturable, with_descriptors=False)
    at = names.index("dose_if_saturable")
    assert features.shape == (40, len(names)) == (40, len(set(names)))
    assert features[:, at] == pytest.approx(np.log(saturable.dose_mg.sum(axis=1)))


def test_descriptors_stand_in_where_kp_is_not_given() -> None:
    described = simulate_task("T7", 60, seed=0)
    found = fit_distance(described, np.arange(40), 0)
    assert found is not None and found.with_descriptors
    at = found.names.index("logp")
    assert found.sd[at] > 0.1 and found.sd[found.names.index("kp_brain")] == 0
    one = described.take([50])
    assert found.measure(replace(one, logp=one.logp + 30)).percentile[0] == 100.0


def test_one_curve_of_each_drug_counts_whatever_the_order(table: CurveTable) -> None:
    names = np.asarray([f"d{i // 4}" for i in range(80)])
    twice = replace(table.take(np.arange(80)), compound_id=names)
    a, b = (fit_distance(twice, rows, 3) for rows in (np.arange(80), np.arange(80)[::-1]))
    assert a is not None and b is not None and len(a.own) == 20
    assert np.array_equal(a.reference, b.reference)
    assert fit_distance(twice, np.arange(8), 0) is None  # two drugs are no cloud


def test_the_file(table: CurveTable, distance: TrainingDistance, tmp_path: Path) -> None:
    assert load_distance(tmp_path, "key", table.topology) is None
    save_distance(tmp_path, distance, "key")
    again = load_distance(tmp_path, "key", table.topology)
    assert again is not None
    assert np.array_equal(again.measure(table).percentile, distance.measure(table).percentile)
    assert load_distance(tmp_path, "other training drugs", table.topology) is None


def test_a_damaged_file_is_refused(table: CurveTable, distance: TrainingDistance, tmp_path: Path) -> None:
    save_distance(tmp_path, distance, "key")
    path = tmp_path / DISTANCE_FILE
    whole = path.read_bytes()
    for data in (b"", whole[:100], whole[:-8], b"\x08" + bytes(7) + b'{"a":1} '):
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"{DISTANCE_FILE} is damaged"):
            load_distance(tmp_path, "key", table.topology)
    save_distance(tmp_path, replace(distance, mean=np.full_like(distance.mean, np.nan)), "key")
    with pytest.raises(InputError, match="mean does not fit"):
        load_distance(tmp_path, "key", table.topology)
    save_distance(tmp_path, replace(distance, mean=np.full_like(distance.mean, 1e300)), "key")
    with pytest.raises(InputError, match="mean does not fit"):
        load_distance(tmp_path, "key", table.topology)
    save_distance(tmp_path, replace(distance, own=-distance.own), "key")
    with pytest.raises(InputError, match="holds values that cannot be"):
        load_distance(tmp_path, "key", table.topology)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors | {"mean": tensors["mean"].to(torch.bfloat16)}, "mean does not fit"),
        (lambda tensors: tensors | {"own": torch.zeros((), dtype=torch.float64)}, "of another version"),
        (lambda tensors: tensors | {"own": torch.zeros((), dtype=torch.bfloat16)}, "of another version"),
        (lambda tensors: {}, "of another version"),
    ],
)
def test_forged_tensors_are_refused_in_one_line(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], says: str, table: CurveTable,
    distance: TrainingDistance,
) -> None:  # fmt: skip
    with pytest.raises(InputError, match=says) as caught:
        distance_from(change(distance.tensors()), distance.names, False, 5, table.topology, "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("neighbours", ["Infinity", "1e999", "NaN", "-1", "1" + 30 * "0", "[]", "null"])
def test_forged_numbers_of_neighbours_are_refused(
    neighbours: str, table: CurveTable, distance: TrainingDistance, tmp_path: Path
) -> None:
    about = json.dumps({"features": list(distance.names), "with_descriptors": False, "training": "key"})
    about = about[:-1] + f', "neighbours": {neighbours}}}'
    (tmp_path / DISTANCE_FILE).write_bytes(save(distance.tensors(), metadata={"about": about}))
    with pytest.raises(InputError, match="is damaged") as caught:
        load_distance(tmp_path, "key", table.topology)
    assert "\n" not in str(caught.value)

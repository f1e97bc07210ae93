"""Calibrated intervals of a made-up model whose errors are known: coverage, scale, refusals, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from perfuse.data.simulate import simulate_task
from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.training.calibration import DEMANDED_DRUGS, Calibration, fit_calibration, least_calibration_drugs
from perfuse.training.calibration_file import (
    RECORD_FILE,
    TENSOR_FILE,
    CalibrationRecord,
    load_calibration,
    save_calibration,
)
from perfuse.training.conformal import LEVELS
from perfuse.training.distance import TrainingDistance, fit_distance

Predict = Callable[[CurveTable], np.ndarray]
N_TRAIN, N_CALIBRATION, N_TEST = 200, 600, 500
WEIGHTS = "0" * 64


def true_scale(table: CurveTable) -> np.ndarray:
    """Standard deviation of the made-up model's error of ln C: by organ, time, and the drug's clearance."""
    organ = np.linspace(0.01, 0.3, 14)[None, :, None]
    time = (1 + np.nan_to_num(table.time_h))[:, None, :] ** 0.3
    drug = (table.elimination_l_h.sum(axis=1) / 10.0)[:, None, None] ** 0.5
    return organ * time * drug


def predict(table: CurveTable) -> np.ndarray:
    """The truth times a random error, which depends on the curve's name alone; correlated within a curve."""
    out = np.empty_like(table.conc_mg_l)
    scale = true_scale(table)
    for i, name in enumerate(table.curve_id.tolist()):
        random = np.random.default_rng(abs(hash_of(name)))
        error = 0.6 * random.normal() + 0.8 * random.normal(size=table.conc_mg_l.shape[1:])
        out[i] = table.conc_mg_l[i] * np.exp(scale[i] * error)
    return out


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode()[-7:], "big")


@pytest.fixture(scope="module")
def table() -> CurveTable:
    """1,300 curves of T1 at 12 times."""
    whole = simulate_task("T1", N_TRAIN + N_CALIBRATION + N_TEST, seed=5)
    at = np.r_[0, 1, 2, 4, 7, 11, 20, 32, 45, 60, 80, 99]
    return replace(
        whole, time_h=whole.time_h[:, at], conc_mg_l=whole.conc_mg_l[..., at], censored=whole.censored[..., at]
    )


@pytest.fixture(scope="module")
def distance(table: CurveTable) -> TrainingDistance:
    found = fit_distance(table, np.arange(N_TRAIN), 0)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def calibration(table: CurveTable, distance: TrainingDistance) -> Calibration:
    return fit_calibration(predict, table, np.arange(N_TRAIN, N_TRAIN + N_CALIBRATION), distance, 0)


@pytest.fixture(scope="module")
def fresh(table: CurveTable) -> CurveTable:
    return table.take(np.arange(N_TRAIN + N_CALIBRATION, len(table)))


def coverage(calibration: Calibration, table: CurveTable, level: float = 0.9) -> np.ndarray:
    """Share inside, ``(C, O)``; NaN where no value counts."""
    lower, upper = calibration.bounds(table, predict(table), level)
    counts = (table.time_h > 0)[:, None] & (table.conc_mg_l >= table.loq_mg_l[:, None, None])
    inside = (table.conc_mg_l >= lower) & (table.conc_mg_l <= upper) & counts
    n = counts.sum(axis=2)
    return np.where(n > 0, inside.sum(axis=2) / np.maximum(n, 1), np.nan)


def test_intervals_cover_what_they_promise_on_fresh_drugs(calibration: Calibration, fresh: CurveTable) -> None:
    for level, low, high in ((0.5, 0.46, 0.54), (0.8, 0.77, 0.83), (0.9, 0.88, 0.92), (0.95, 0.935, 0.965)):
        assert low < np.nanmean(coverage(calibration, fresh, level)) < high
    organs = np.nanmean(coverage(calibration, fresh), axis=0)
    assert organs.min() > 0.85 and organs.max() < 0.95


def test_the_scale_follows_the_errors(calibration: Calibration, fresh: CurveTable) -> None:
    """Within a factor of 1.6 of the true scale nearly everywhere, over a range of more than a hundredfold."""
    width = calibration.half_widths(fresh, predict(fresh))[LEVELS.index(0.9)]
    ratio = width[..., 1:] / (1.645 * true_scale(fresh)[..., 1:])  # 1.645: 95th percentile of the normal distribution
    assert true_scale(fresh).max() > 100 * true_scale(fresh).min()
    assert np.quantile(ratio, 0.05) > 1 / 1.6 and np.quantile(ratio, 0.95) < 1.6
    assert 0.9 < np.median(ratio) < 1.15


def test_one_width_for_all_would_fail_in_single_organs(calibration: Calibration, fresh: CurveTable) -> None:
    """The same conformal step without a scale and without organs: what the coverage per organ is worth."""
    pred = predict(fresh)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(np.log(pred / fresh.conc_mg_l))[..., 1:]
    inside = (error <= np.nanquantile(error, 0.9)).mean(axis=(0, 2))
    assert inside.min() < 0.85 and inside.max() > 0.95


def test_no_interval_at_the_dose_and_every_one_holds_its_prediction(
    calibration: Calibration, fresh: CurveTable
) -> None:
    pred = predict(fresh)
    lower, upper = calibration.bounds(fresh, pred)
    assert np.isnan(lower[..., 0]).all() and np.isnan(upper[..., 0]).all()
    assert (
        (lower[..., 1:] <= pred[..., 1:]).all()
        and (upper[..., 1:] >= pred[..., 1:]).all()
        and (lower[..., 1:] >= 0).all()
    )
    tiny = np.full_like(pred, 1e-30)  # far below the LOQ: the interval still holds it
    lower, upper = calibration.bounds(fresh, tiny)
    assert (lower[..., 1:] <= tiny[..., 1:]).all() and (upper[..., 1:] > fresh.loq_mg_l[:, None, None] / 100).all()
    narrow, wide = (calibration.bounds(fresh, pred, level) for level in (0.5, 0.95))
    assert (wide[1][..., 1:] >= narrow[1][..., 1:]).all()


def test_the_order_of_rows_does_not_decide(table: CurveTable, distance: TrainingDistance) -> None:
    rows = np.arange(N_TRAIN, N_TRAIN + 40)
    a = fit_calibration(predict, table, rows, distance, 1, allow_few=True)
    b = fit_calibration(predict, table, rows[::-1], distance, 1, allow_few=True)
    c = fit_calibration(predict, table, rows, distance, 2, allow_few=True)
    assert a.quantiles == pytest.approx(b.quantiles, rel=1e-6)
    assert not np.allclose(a.quantiles, c.quantiles, rtol=1e-3)


def test_many_curves_of_a_drug_are_one_drug(table: CurveTable, distance: TrainingDistance) -> None:
    """40 curves under 8 names are 8 drugs: too few for 90 %, though not for the count of curves."""
    part = table.take(np.arange(N_TRAIN, N_TRAIN + 40))
    names = np.asarray([f"d{i % 8}" for i in range(40)])
    few = replace(part, compound_id=names, group_id=names)
    with pytest.raises(InputError, match=r"too few drugs .* \(got 8 drugs\)"):
        fit_calibration(predict, few, np.arange(40), distance, 0, allow_few=True)


def test_fewer_than_500_drugs_are_refused_unless_allowed(table: CurveTable, distance: TrainingDistance) -> None:
    rows = np.arange(N_TRAIN, N_TRAIN + 60)
    with pytest.raises(InputError, match="too few drugs to calibrate 90% intervals .got 60 drugs.*>= 500.*--allow-few"):
        fit_calibration(predict, table, rows, distance, 0)
    found = fit_calibration(predict, table, rows, distance, 0, allow_few=True)
    assert found.n_drugs == 60 and "60 drugs, fewer than the 500" in found.doubt
    assert found.pooled_organs  # no organ has 100 drugs
    least = least_calibration_drugs(0.9)
    assert fit_calibration(predict, table, rows[:least], distance, 0, allow_few=True).levels == (0.5, 0.8, 0.9)
    with pytest.raises(InputError, match=f"got {least - 1} drugs.; allowed: >= {least}"):
        fit_calibration(predict, table, rows[: least - 1], distance, 0, allow_few=True)
    with pytest.raises(InputError, match="got 0 drugs"):
        fit_calibration(predict, table, rows[:0], distance, 0)


def test_enough_drugs_leave_no_doubt(calibration: Calibration) -> None:
    assert calibration.n_drugs == N_CALIBRATION >= DEMANDED_DRUGS and calibration.doubt == ""
    assert calibration.pooled_organs == calibration.organs_without == ()
    assert 0.001 < calibration.coverage_se[LEVELS.index(0.9)] < 0.02


def test_an_organ_without_values_has_no_interval(table: CurveTable, distance: TrainingDistance) -> None:
    part = table.take(np.arange(N_TRAIN, N_TRAIN + 60))
    conc = part.conc_mg_l.copy()
    conc[:, 3] = np.nan
    found = fit_calibration(predict, replace(part, conc_mg_l=conc), np.arange(60), distance, 0, allow_few=True)
    assert found.organs_without == ("brain",)
    lower, upper = found.bounds(part, predict(part))
    assert np.isnan(lower[:, 3]).all() and np.isfinite(upper[:, 2, 1:]).all()


def test_a_prediction_that_is_no_number_is_refused(table: CurveTable, distance: TrainingDistance) -> None:
    with pytest.raises(PerfuseError, match="not finite"):
        fit_calibration(lambda t: np.full_like(t.conc_mg_l, np.nan), table, np.arange(60), distance, 0, allow_few=True)


def test_a_level_that_was_not_calibrated_is_refused(calibration: Calibration, fresh: CurveTable) -> None:
    with pytest.raises(InputError, match="level is not calibrated .got 0.99.*0.5, 0.8, 0.9, 0.95"):
        calibration.bounds(fresh, predict(fresh), 0.99)


def test_outside_of_training_features_only_widen(calibration: Calibration, fresh: CurveTable) -> None:
    """A drug whose clearance is tiny beyond all training: inside it would narrow its interval, outside it must not."""
    far = replace(fresh, elimination_l_h=fresh.elimination_l_h * 1e-4)
    measured = calibration.distance.measure(far)
    assert (measured.percentile > 99).all()
    features = np.zeros((len(far), measured.z.shape[1] + 1))
    pred = predict(fresh)
    wide = calibration.half_widths(far, pred)[2, ..., 1:]
    at_mean = calibration.scale.curves(features, np.zeros(len(far), dtype=bool))
    assert np.isfinite(wide).all() and np.isfinite(at_mean).all()
    z = np.column_stack((np.zeros(len(far)), measured.z))
    inside, outside = (calibration.scale.curves(z, np.full(len(far), flag)) for flag in (False, True))
    assert (outside >= inside).all() and (outside > inside).any()


# --- files


def record(calibration: Calibration, **changes: object) -> CalibrationRecord:
    c = calibration
    values: dict[str, object] = {
        "code_version": "test", "model_sha256": WEIGHTS, "topology": "hub", "levels": list(c.levels),
        "features": list(c.distance.names), "with_descriptors": c.distance.with_descriptors,
        "neighbours": c.distance.neighbours, "n_drugs": c.n_drugs, "n_scale_drugs": c.n_scale_drugs,
        "n_curves": c.n_curves, "n_values": c.n_values, "seed": 0, "data_path": "data", "data_sha256": "1",
        "compound_ids": ["a"], "group_ids": ["b"],
    }  # fmt: skip
    return CalibrationRecord.model_validate(values | changes)


def test_what_is_saved_is_read_back(calibration: Calibration, fresh: CurveTable, tmp_path: Path) -> None:
    assert load_calibration(tmp_path, WEIGHTS, fresh.topology) is None
    save_calibration(tmp_path, calibration, record(calibration))
    found = load_calibration(tmp_path, WEIGHTS, fresh.topology)
    assert found is not None
    again, kept = found
    assert kept.compound_ids == ["a"] and again.levels == calibration.levels and again.n_drugs == calibration.n_drugs
    pred = predict(fresh)
    for one, other in zip(calibration.bounds(fresh, pred), again.bounds(fresh, pred), strict=True):
        assert np.array_equal(one, other, equal_nan=True)


def test_other_weights_are_refused(calibration: Calibration, fresh: CurveTable, tmp_path: Path) -> None:
    save_calibration(tmp_path, calibration, record(calibration))
    with pytest.raises(InputError, match="calibration belongs to other weights .*perfuse calibrate"):
        load_calibration(tmp_path, "1" * 64, fresh.topology)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / TENSOR_FILE).unlink(), "calibration.safetensors is missing"),
        (lambda f: (f / TENSOR_FILE).write_bytes(b"x"), "is damaged: the sha256"),
        (lambda f: (f / RECORD_FILE).write_text("{"), "calibration.json is not allowed"),
        (lambda f: edit(f, n_drugs="many"), "calibration.json: n_drugs is not allowed"),
        (lambda f: edit(f, schema_version=9), "calibration.json: schema_version is not allowed"),
        (lambda f: edit(f, topology="circulation"), "is of another organ graph"),
        (lambda f: edit(f, neighbours=0), "neighbours"),
        (lambda f: edit(f, levels=[0.5, 0.8, 0.9]), "does not fit: quantiles"),
        (lambda f: edit(f, levels=[0.5, 0.8, 0.9, 0.99]), "levels that are not this version's"),
        (lambda f: edit(f, features=["a"]), "of another version"),
    ],
)
def test_damaged_files_are_refused_in_one_line(
    change: Callable[[Path], object], says: str, calibration: Calibration, fresh: CurveTable, tmp_path: Path
) -> None:
    save_calibration(tmp_path, calibration, record(calibration))
    change(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        load_calibration(tmp_path, WEIGHTS, fresh.topology)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"quantiles": lambda q: -q}, "quantiles that cannot be"),
        ({"quantiles": lambda q: q[::-1].copy()}, "quantiles that cannot be"),
        ({"quantiles": lambda q: np.full_like(q, np.inf)}, "quantiles that cannot be"),
        ({"quantiles": lambda q: np.full_like(q, np.nan)}, "quantiles that cannot be"),
        ({"quantiles": lambda q: np.full_like(q, 1e300)}, "quantiles that cannot be"),
        ({"quantiles": lambda q: np.where(np.arange(q.shape[1]) == 3, np.nan, q)}, "quantiles that cannot be"),
        ({"organ_drugs": lambda n: np.where(np.arange(len(n)) == 3, 0, n)}, "quantiles that cannot be"),
        (
            {"organ_drugs": lambda n: 0 * n, "quantiles": lambda q: np.full_like(q, np.nan)},
            "numbers of drugs that cannot",
        ),
        ({"organ_drugs": lambda n: -n}, "numbers of drugs that cannot be"),
        ({"organ_drugs": lambda n: n + 10**6}, "numbers of drugs that cannot be"),
        ({"coverage_se": lambda q: q[:2].copy()}, "does not fit: coverage_se"),
        ({"coverage_se": lambda q: np.full_like(q, np.inf)}, "coverage_se is not within"),
    ],
)
def test_forged_tensors_are_refused(
    changes: dict[str, Callable[[np.ndarray], np.ndarray]], says: str, calibration: Calibration, fresh: CurveTable,
    tmp_path: Path,
) -> None:  # fmt: skip
    forged = replace(calibration, **{name: change(getattr(calibration, name)) for name, change in changes.items()})
    save_calibration(tmp_path, forged, record(calibration))
    with pytest.raises(InputError, match=says):
        load_calibration(tmp_path, WEIGHTS, fresh.topology)


def test_a_scale_that_is_not_finite_is_refused(calibration: Calibration, fresh: CurveTable, tmp_path: Path) -> None:
    scale = replace(calibration.scale, level=np.full_like(calibration.scale.level, np.nan))
    save_calibration(tmp_path, replace(calibration, scale=scale), record(calibration))
    with pytest.raises(InputError, match="scale.level is not finite"):
        load_calibration(tmp_path, WEIGHTS, fresh.topology)


@pytest.mark.parametrize(("name", "value"), [("table", 1e300), ("level", -1e5), ("drug", 101.0), ("spread", 1e9)])
def test_a_scale_beyond_reason_is_refused(
    name: str, value: float, calibration: Calibration, fresh: CurveTable, tmp_path: Path
) -> None:
    scale = replace(calibration.scale, **{name: np.full_like(getattr(calibration.scale, name), value)})
    save_calibration(tmp_path, replace(calibration, scale=scale), record(calibration))
    with pytest.raises(InputError, match=rf"scale\.{name} is beyond 100"):
        load_calibration(tmp_path, WEIGHTS, fresh.topology)


def test_tensors_of_a_type_that_numpy_lacks_are_refused(
    calibration: Calibration, fresh: CurveTable, tmp_path: Path
) -> None:
    save_calibration(tmp_path, calibration, record(calibration))
    whole = load_file(tmp_path / TENSOR_FILE)
    for name in ("quantiles", "scale.table", "distance.mean"):
        data = save(whole | {name: whole[name].to(torch.bfloat16)})
        (tmp_path / TENSOR_FILE).write_bytes(data)
        edit(tmp_path, calibration_sha256=sha256(data).hexdigest())
        with pytest.raises(InputError, match="does not fit") as caught:
            load_calibration(tmp_path, WEIGHTS, fresh.topology)
        assert "\n" not in str(caught.value)


def test_any_scale_that_can_be_stored_gives_intervals_that_are_numbers(
    calibration: Calibration, fresh: CurveTable, tmp_path: Path
) -> None:
    pred = predict(fresh)
    for value in (100.0, -100.0):
        scale = replace(calibration.scale, table=np.full_like(calibration.scale.table, value))
        save_calibration(tmp_path, replace(calibration, scale=scale), record(calibration))
        found = load_calibration(tmp_path, WEIGHTS, fresh.topology)
        assert found is not None
        lower, upper = (end[..., 1:] for end in found[0].bounds(fresh, pred))
        assert np.isfinite(upper).all() and (lower >= 0).all() and (lower <= upper).all()


def edit(folder: Path, **changes: object) -> None:
    """Change keys of the JSON."""
    path = folder / RECORD_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

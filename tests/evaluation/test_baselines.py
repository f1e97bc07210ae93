"""Trivial baselines and the closed fit of ``loglinear-rates``."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from perfuse.data.table import CurveTable
from perfuse.evaluation.baselines import (
    LogLinear,
    MeanCurve,
    NearestNeighbours,
    Unavailable,
    fit_baselines,
    from_grid,
    grid_curves,
    log_features,
)
from perfuse.evaluation.metrics import MetricAccumulator
from perfuse.evaluation.rates_baseline import (
    NAME,
    RatesBaseline,
    _digest,
    _load,
    fit_rates,
    rates_baseline,
    sample_rows,
)


def gmfe(table: CurveTable, pred: np.ndarray) -> float:
    metrics = MetricAccumulator(table.compound_id)
    metrics.update(table, pred)
    return metrics.overall()["gmfe"] or np.nan


@pytest.fixture(scope="module")
def split(t1_table: CurveTable) -> tuple[CurveTable, CurveTable]:
    return t1_table.take(range(30)), t1_table.take(range(30, 40))


def test_mean_curve_is_the_geometric_mean_per_dose(split: tuple[CurveTable, CurveTable]) -> None:
    train, test = split
    pred = MeanCurve.fit(grid_curves(train)).predict(test)
    floored = np.maximum(train.conc_mg_l, train.loq_mg_l[:, None, None])
    want = np.exp(np.log(floored / train.dose_mg[:, :, None]).mean(axis=0))
    assert pred[:, :, 1:] == pytest.approx(want[None, :, 1:] * test.dose_mg[:, :, None], rel=1e-5)


def test_neighbours_of_a_training_curve_are_its_copies(split: tuple[CurveTable, CurveTable]) -> None:
    train, test = split
    five = train.take([0, 0, 0, 0, 0, *range(1, 30)])
    pred = NearestNeighbours.fit(five, grid_curves(five)).predict(train.take([0]))
    assert gmfe(train.take([0]), pred) == pytest.approx(1, abs=1e-5)
    few = train.take([0, 1, 2])
    assert np.isfinite(NearestNeighbours.fit(few, grid_curves(few)).predict(test)).all()  # fewer than five


def test_log_linear_recovers_a_log_linear_truth(split: tuple[CurveTable, CurveTable]) -> None:
    def power_law(table: CurveTable) -> CurveTable:
        factor = np.exp(0.7 * np.log(table.elimination_l_h[:, 0]) - 0.2 * np.log(table.kp[:, 7])) * table.dose_mg[:, 0]
        return replace(table, conc_mg_l=np.broadcast_to(factor[:, None, None], table.conc_mg_l.shape).copy())

    train, test = (power_law(t) for t in split)
    model = LogLinear.fit(train, grid_curves(train))
    assert not isinstance(model, Unavailable)
    assert gmfe(test, model.predict(test)) == pytest.approx(1, abs=1e-4)


def test_log_linear_says_when_it_has_too_few_curves(split: tuple[CurveTable, CurveTable]) -> None:
    few = split[0].take(range(10))
    got = LogLinear.fit(few, grid_curves(few))
    assert isinstance(got, Unavailable) and "needs 17 training curves" in got.reason and "has 10" in got.reason


def test_order_on_fresh_curves(split: tuple[CurveTable, CurveTable]) -> None:
    from perfuse.data.simulate import simulate_task

    train, test = simulate_task("T1", 400, 1), simulate_task("T1", 60, 2)
    mean, near, linear = (gmfe(test, b.predict(test)) for b in fit_baselines(train))  # type: ignore[union-attr]
    assert linear < near < mean and 1.3 < linear < 1.7 and 2.2 < mean < 3.2  # 1.47 and 2.60 on 18,000 curves


def test_times_off_the_grid_and_beyond(split: tuple[CurveTable, CurveTable]) -> None:
    train, _ = split
    grid = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    log_conc = np.broadcast_to(-0.5 * grid, (1, 14, 5))
    table = replace(
        train.take([0]), time_h=np.array([[0.0, 0.5, 1.5, 5.0, 9.0]]), loq_mg_l=np.array([1e-12]),
        conc_mg_l=np.ones((1, 14, 5)), censored=np.zeros((1, 14, 5), bool), dose_mg=np.array([[1.0]]),
    )  # fmt: skip
    assert from_grid(grid, log_conc, table)[0, 3] == pytest.approx(np.exp([-0.5, -0.5, -0.75, -2.5, -4.5]))
    rising = from_grid(grid, -log_conc, table)[0, 3]
    assert rising[-1] == pytest.approx(rising[-2])  # never rises beyond the grid


def test_total_dose_and_time_since_the_first_dose(split: tuple[CurveTable, CurveTable]) -> None:
    train, test = split
    model = MeanCurve.fit(grid_curves(train))
    later = replace(
        test, dose_time_h=np.tile([[3.0, 5.0]], (10, 1)), dose_mg=np.repeat(test.dose_mg / 2, 2, axis=1),
        dose_duration_h=np.ones((10, 2)), time_h=test.time_h + 3,
    )  # fmt: skip
    assert model.predict(later) == pytest.approx(model.predict(test))


def test_plasma_and_blood_are_not_mixed(t2_table: CurveTable) -> None:
    t2_table = replace(t2_table, loq_mg_l=np.full(40, 1e-30))  # floors would differ between matrices
    plasma = replace(
        t2_table, matrix=np.full(40, "plasma"),
        conc_mg_l=np.concatenate((t2_table.conc_mg_l[:, :1] / t2_table.bp_ratio[:, None, None],
                                  t2_table.conc_mg_l[:, 1:]), 1),
    )  # fmt: skip
    blood_model, plasma_model = MeanCurve.fit(grid_curves(t2_table)), MeanCurve.fit(grid_curves(plasma))
    assert plasma_model.predict(t2_table)[:, 0, 1:] == pytest.approx(blood_model.predict(t2_table)[:, 0, 1:], rel=1e-5)
    ratio = blood_model.predict(plasma)[:, 0, 5] / blood_model.predict(t2_table)[:, 0, 5]
    assert ratio == pytest.approx(1 / t2_table.bp_ratio)


def test_sparse_plasma_only_training_data(t1_table: CurveTable, rng: np.random.Generator) -> None:
    conc = t1_table.conc_mg_l.copy()
    conc[:, 1:] = np.nan
    conc[:, 0][rng.random(conc[:, 0].shape) < 0.9] = np.nan
    conc[0, 0] = np.nan
    time = t1_table.time_h + rng.uniform(0.01, 0.1, (40, 1))  # everyone has times of their own
    sparse = replace(t1_table, conc_mg_l=conc, time_h=time)
    mean, near, _ = fit_baselines(sparse)
    for baseline in (mean, near):
        pred = baseline.predict(t1_table)  # type: ignore[union-attr]
        assert np.isfinite(pred[:, 0]).all() and np.isnan(pred[:, 1:]).all()  # organs never seen: no guess
    empty = replace(t1_table, conc_mg_l=np.full_like(conc, np.nan))
    assert all(isinstance(b, Unavailable) and "no training curve" in b.reason for b in fit_baselines(empty))


def test_features_leave_the_dose_out_and_stand_zero_clearance(t1_table: CurveTable) -> None:
    no_renal = replace(t1_table, elimination_l_h=t1_table.elimination_l_h * [1, 0])
    assert not np.isinf(log_features(no_renal)).any()
    assert np.array_equal(
        log_features(replace(t1_table, dose_mg=9 * t1_table.dose_mg)), log_features(t1_table), equal_nan=True
    )


@pytest.mark.parametrize("name", ["t1_table", "t2_table"])
def test_rates_fit_is_all_but_exact_on_unseen_curves(name: str, request: pytest.FixtureRequest) -> None:
    table: CurveTable = request.getfixturevalue(name)
    fitted = fit_rates(table.take(range(30)))
    assert isinstance(fitted, RatesBaseline)
    test = table.take(range(30, 40))
    assert gmfe(test, fitted.predict(test)) < 1.001


def test_rates_fit_keeps_time_and_says_when_it_cannot(t1_table: CurveTable) -> None:
    hurried = fit_rates(t1_table, max_seconds=0.0)
    assert isinstance(hurried, Unavailable)  # not one evaluation was allowed
    empty = replace(t1_table, conc_mg_l=np.full_like(t1_table.conc_mg_l, np.nan))
    assert isinstance(fit_rates(empty), Unavailable)


def test_rates_cache_is_used_for_the_same_curves_only(t1_table: CurveTable, tmp_path: Path) -> None:
    few = t1_table.take(range(8))
    first = rates_baseline(few, "a" * 64, tmp_path / "baselines")
    files = list((tmp_path / "baselines").iterdir())
    assert len(files) == 1 and files[0].name.startswith(NAME)
    again = rates_baseline(few, "a" * 64, tmp_path / "baselines")
    assert isinstance(first, RatesBaseline) and isinstance(again, RatesBaseline)
    assert again.facts == first.facts and (again.predict(few) == first.predict(few)).all()
    rates_baseline(few, "b" * 64, tmp_path / "baselines")
    assert len(list((tmp_path / "baselines").iterdir())) == 2
    files[0].write_bytes(b"cut short")
    assert isinstance(rates_baseline(few, "a" * 64, tmp_path / "baselines"), RatesBaseline)  # fitted anew
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert isinstance(rates_baseline(few, "a" * 64, blocked), RatesBaseline)  # nowhere to keep it: no failure


def test_a_damaged_fit_in_the_cache_is_made_anew(t1_table: CurveTable, tmp_path: Path) -> None:
    few = t1_table.take(range(8))
    first = rates_baseline(few, "a" * 64, tmp_path)
    assert isinstance(first, RatesBaseline)
    path = next(tmp_path.iterdir())
    whole = path.read_bytes()
    with safe_open(path, "pt") as file:
        kept, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert _load(path, few) is not None
    name = max(tensors, key=lambda n: tensors[n].numel() * tensors[n].is_floating_point())
    other, unknown = tensors | {name: tensors[name] + 0.1}, tensors | {name: tensors[name] * np.nan}
    facts = kept["facts"]
    for data in (
        whole[:-1] + bytes([whole[-1] ^ 1]),  # one bit
        save(other, metadata=kept),
        save(tensors, metadata={"facts": facts}),  # of a version that stored no sha256
        save(tensors, metadata=kept | {"facts": "{}"}),
        save({**tensors, name: tensors[name].to(torch.bfloat16)}, metadata=kept),
        save(unknown, metadata={"facts": facts, "sha256": _digest(unknown, facts)}),
    ):
        path.write_bytes(data)
        assert _load(path, few) is None
    again = rates_baseline(few, "a" * 64, tmp_path)
    assert isinstance(again, RatesBaseline) and _load(path, few) is not None
    np.testing.assert_allclose(again.predict(few), first.predict(few), rtol=1e-3)


def test_sampled_rows_are_stable_sorted_and_limited() -> None:
    rows = np.arange(1000)
    some = sample_rows(rows, 50)
    assert len(set(some)) == 50 and (np.diff(some) > 0).all() and (some == sample_rows(rows, 50)).all()
    assert (sample_rows(rows, 2000) == rows).all()


@pytest.mark.parametrize("task", ["T3", "T4", "T7"])
def test_baselines_on_oral_saturable_and_descriptor_data(task: str) -> None:
    from perfuse.data.simulate import simulate_task

    train, test = simulate_task(task, 240, 1), simulate_task(task, 40, 2)
    fitted = fit_baselines(train)
    assert not [b for b in fitted if isinstance(b, Unavailable)]
    mean, near, linear = (gmfe(test, b.predict(test)) for b in fitted)  # type: ignore[union-attr]
    assert near < mean and np.isfinite(linear)


def test_features_tell_regimens_and_descriptors_apart() -> None:
    from perfuse.data.simulate import simulate_task

    oral = simulate_task("T3", 40, 1)
    again = replace(oral, ka_1_h=2 * oral.ka_1_h, dose_time_h=1.5 * oral.dose_time_h)
    assert (np.nan_to_num(log_features(again)) != np.nan_to_num(log_features(oral))).any(axis=0).sum() == 2
    molecules = simulate_task("T7", 40, 1)
    assert not np.array_equal(
        log_features(replace(molecules, logp=molecules.logp + 1)), log_features(molecules), equal_nan=True
    )


def test_log_linear_leaves_out_times_that_few_curves_reach(split: tuple[CurveTable, CurveTable]) -> None:
    train = split[0]
    late = train.conc_mg_l.copy()
    late[:20, :, 60:] = np.nan
    curves = grid_curves(replace(train, conc_mg_l=late))
    model = LogLinear.fit(train, curves)
    assert not isinstance(model, Unavailable) and len(model.grid_h) == 59  # 10 curves after that; t = 0 is no grid time
    late[:20, :, 30:] = np.nan
    assert isinstance(LogLinear.fit(train, grid_curves(replace(train, conc_mg_l=late))), Unavailable)


def test_rates_say_what_they_cannot_model(t1_table: CurveTable, monkeypatch: pytest.MonkeyPatch) -> None:
    from perfuse.models.flux import LoglinearRates

    monkeypatch.setattr(LoglinearRates, "models_oral", False)
    oral = replace(t1_table, dose_route=np.ones_like(t1_table.dose_route), ka_1_h=np.ones(len(t1_table)))
    got = fit_rates(oral)
    assert isinstance(got, Unavailable) and "is not modelled by loglinear-rates" in got.reason


def test_rates_fit_stops_at_its_limit_of_evaluations(t1_table: CurveTable) -> None:
    fitted = fit_rates(t1_table.take(range(10)), max_evaluations=5)
    assert isinstance(fitted, RatesBaseline) and 1 <= int(fitted.facts["evaluations"]) <= 6

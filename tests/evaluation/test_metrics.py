"""Metrics against hand-made numbers and plain loops."""

from dataclasses import replace

import numpy as np
import pytest

from perfuse.data.table import CurveTable
from perfuse.errors import PerfuseError
from perfuse.evaluation.metrics import WINDOWS, MetricAccumulator, scored_mask
from perfuse.pk.exposure import exposure
from perfuse.pk.physiology import ORGANS


def judge(table: CurveTable, pred: np.ndarray) -> MetricAccumulator:
    metrics = MetricAccumulator(table.compound_id)
    metrics.update(table, pred)
    return metrics


def test_a_perfect_prediction(t1_table: CurveTable) -> None:
    m = judge(t1_table, t1_table.conc_mg_l)
    s = m.overall()
    assert s["gmfe"] == s["bias"] == s["r2"] == s["r2_log"] == s["within_1_25"] == 1
    assert s["rmse"] == s["mae"] == s["mape"] == 0
    assert all(e["gmfe"] == e["within_2"] == 1 for e in m.exposure().values())
    assert m.exposure()["cmax"]["n"] == 40 * 14 and m.counts()["n_curves"] == 40


def test_a_constant_factor(t1_table: CurveTable) -> None:
    for factor in (1.2, 1 / 1.2):
        s = judge(t1_table, factor * t1_table.conc_mg_l).overall()
        assert s["gmfe"] == pytest.approx(1.2, rel=1e-9) and s["bias"] == pytest.approx(factor, rel=1e-9)
        assert s["within_1_25"] == s["within_2"] == 1
        assert s["mape"] == pytest.approx(100 * abs(factor - 1))
    s = judge(t1_table, 2 * t1_table.conc_mg_l).overall()
    assert s["within_1_5"] == 0 and s["within_2"] == 1  # the limit itself is inside


def test_every_number_against_a_plain_loop(t1_table: CurveTable, rng: np.random.Generator) -> None:
    table = replace(t1_table, compound_id=np.asarray([f"d{i % 7}" for i in range(40)]))
    pred = table.conc_mg_l * np.exp(rng.normal(0, 0.6, table.conc_mg_l.shape))
    pred[3] = 0  # to be floored, not dropped
    logs: dict[str, list[float]] = {}
    pooled = []
    for c in range(40):
        for o in range(14):
            for k in range(table.time_h.shape[1]):
                y = table.conc_mg_l[c, o, k]
                if table.time_h[c, k] > 0 and y >= table.loq_mg_l[c]:
                    p = max(pred[c, o, k], table.loq_mg_l[c] / 100)
                    logs.setdefault(table.compound_id[c], []).append(abs(np.log(p / y)))
                    pooled.append((p, y))
    p, y = np.array(pooled).T
    s = judge(table, pred).overall()
    by_drug = [np.array(v) for v in logs.values()]
    assert s["gmfe"] == pytest.approx(np.exp(np.mean([v.mean() for v in by_drug])), rel=1e-10)
    for key, limit in (("within_1_25", 1.25), ("within_1_5", 1.5), ("within_2", 2)):
        assert s[key] == pytest.approx(np.mean([(v <= np.log(limit)).mean() for v in by_drug]), rel=1e-10)
    assert s["r2"] == pytest.approx(1 - ((p - y) ** 2).sum() / ((y - y.mean()) ** 2).sum(), rel=1e-8)
    ly, lp = np.log(y), np.log(p)
    assert s["r2_log"] == pytest.approx(1 - ((lp - ly) ** 2).sum() / ((ly - ly.mean()) ** 2).sum(), rel=1e-8)
    assert s["rmse"] == pytest.approx(np.sqrt(((p - y) ** 2).mean())) and s["mae"] == pytest.approx(abs(p - y).mean())
    assert s["mape"] == pytest.approx(100 * (abs(p - y) / y).mean()) and s["n_values"] == len(y)


def test_drugs_weigh_equally_whatever_their_number_of_curves(t1_table: CurveTable) -> None:
    table = replace(t1_table, compound_id=np.asarray(["a"] + ["b"] * 39))
    pred = table.conc_mg_l.copy()
    pred[0] *= 4
    assert judge(table, pred).overall()["gmfe"] == pytest.approx(2.0)  # sqrt(4 * 1)


def test_time_zero_does_not_count(t1_table: CurveTable) -> None:
    pred = t1_table.conc_mg_l.copy()
    pred[..., 0] = 1e9
    m = judge(t1_table, pred)
    assert t1_table.time_h[0, 0] == 0 and m.overall()["gmfe"] == 1 and m.exposure()["cmax"]["gmfe"] == 1


def test_parts_add_up_and_batches_do_not_matter(t1_table: CurveTable, rng: np.random.Generator) -> None:
    pred = t1_table.conc_mg_l * np.exp(rng.normal(0, 0.3, t1_table.conc_mg_l.shape))
    whole = judge(t1_table, pred)
    parts = MetricAccumulator(t1_table.compound_id)
    for rows in np.array_split(np.arange(40), 7):
        parts.update(t1_table.take(rows), pred[rows])
    assert parts.overall() == pytest.approx(whole.overall(), rel=1e-12)
    assert parts.exposure()["auc"] == pytest.approx(whole.exposure()["auc"], rel=1e-12)
    assert sum(s["n_values"] for s in whole.per_organ().values()) == whole.overall()["n_values"]
    assert sum(s["n_values"] for s in whole.per_window().values()) == whole.overall()["n_values"]
    assert set(whole.per_organ()) == set(ORGANS)


def test_windows_count_from_the_first_dose(t1_table: CurveTable) -> None:
    table = replace(t1_table, dose_time_h=t1_table.dose_time_h + 2, time_h=t1_table.time_h + 2)
    assert list(judge(table, table.conc_mg_l).per_window()) == [w[0] for w in WINDOWS[:-1]]
    time = np.array([1.0, 1.0001, 4, 24, 24.1])
    short = replace(
        t1_table.take([0]), time_h=time[None], conc_mg_l=np.ones((1, 14, 5)), censored=np.zeros((1, 14, 5), bool)
    )
    windows = judge(short, short.conc_mg_l).per_window()
    assert {k: v["n_values"] // 14 for k, v in windows.items()} == {"0-1 h": 1, "1-4 h": 2, "12-24 h": 1, ">24 h": 1}


def test_censored_values_are_counted_apart(t1_table: CurveTable) -> None:
    censored = np.zeros_like(t1_table.censored)
    censored[:, 0, -2:] = True
    conc = t1_table.conc_mg_l.copy()
    conc[:, 0, -2:] = 1e-3  # the LLOQ
    table = replace(t1_table, conc_mg_l=conc, censored=censored)
    pred = conc.copy()
    pred[:30, 0, -2:] = 1e-4
    pred[30:, 0, -2:] = 1.0
    m = judge(table, pred)
    assert m.overall()["gmfe"] == 1 and not scored_mask(table)[:, 0, -2:].any()
    assert m.counts()["n_censored"] == 80 and m.counts()["censored_predicted_below_lloq"] == 0.75


def test_exposure_uses_both_curves_at_the_observed_times(t1_table: CurveTable) -> None:
    conc = t1_table.conc_mg_l.copy()
    keep = np.zeros(conc.shape[-1], bool)
    keep[[5, 9, 20, 40, 60]] = True
    conc[..., ~keep] = np.nan
    table = replace(t1_table, conc_mg_l=conc)
    pred = np.where(keep, 1.5 * t1_table.conc_mg_l, 1e6)  # wild where nobody looked
    e = judge(table, pred).exposure()
    assert e["cmax"]["gmfe"] == pytest.approx(1.5) and e["auc"]["gmfe"] == pytest.approx(1.5)
    assert e["half_life"]["gmfe"] == pytest.approx(1.0)
    mask = scored_mask(table)
    seen = exposure(table.time_h[:, None], np.where(mask, conc, np.nan))
    assert e["half_life"]["n"] == int((seen.half_life_h > 0).sum()) > 100


def test_half_life_of_a_steep_prediction_is_not_flattened_by_the_floor(t1_table: CurveTable) -> None:
    time = np.array([[1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]])
    decay = lambda k: np.broadcast_to(100 * np.exp(-k * time)[:, None], (1, 14, 7)).copy()  # noqa: E731
    table = replace(
        t1_table.take([0]), time_h=time, conc_mg_l=decay(0.2), censored=np.zeros((1, 14, 7), bool),
        loq_mg_l=np.array([1.0]),
    )  # fmt: skip
    steep = judge(table, decay(2.0))  # 0.01, the floor, is met after 4 h
    assert (decay(2.0)[0, 0] < 0.01).sum() == 4
    half_life = steep.exposure()["half_life"]
    assert half_life["n"] == 14 and half_life["gmfe"] == pytest.approx(10) and half_life["bias"] == pytest.approx(0.1)
    gone = decay(2.0)
    gone[..., 4:] = [0.0, -1e-9, 0.0]  # underflow: no points of the slope
    assert judge(table, gone).exposure()["half_life"]["gmfe"] == pytest.approx(10)
    assert steep.exposure()["auc"]["n"] == 14 and steep.overall()["n_values"] == 98  # floored, never dropped


def test_interval_holds_the_estimate_and_needs_drugs(t1_table: CurveTable, rng: np.random.Generator) -> None:
    pred = t1_table.conc_mg_l * np.exp(rng.normal(0, 0.3, (40, 1, 1)))
    m = judge(t1_table, pred)
    low, high = m.gmfe_interval() or [0, 0]
    assert low < (m.overall()["gmfe"] or 0) < high
    assert judge(t1_table.take([0, 1]), pred[:2]).gmfe_interval() is None


def test_paired_interval_sees_what_separate_ones_do_not(t1_table: CurveTable, rng: np.random.Generator) -> None:
    noise = np.exp(rng.normal(0, 1.0, (40, 1, 1)))  # drugs differ a lot, the second model is always a bit worse
    a = judge(t1_table, t1_table.conc_mg_l * noise)
    b = judge(t1_table, t1_table.conc_mg_l * noise**1.1)
    low, high = a.ratio_interval(b) or [0, 9]
    assert low < high < 1
    assert (a.gmfe_interval() or [9])[0] < (b.gmfe_interval() or [0])[0] < (a.gmfe_interval() or [0, 0])[1]
    assert a.ratio_interval(a) == [1, 1]


def test_nothing_to_score_gives_none_not_nan(t1_table: CurveTable) -> None:
    table = replace(t1_table, conc_mg_l=np.full_like(t1_table.conc_mg_l, np.nan))
    m = judge(table, t1_table.conc_mg_l)
    assert m.overall()["gmfe"] is None and m.overall()["r2"] is None and m.overall()["n_values"] == 0
    assert m.per_organ() == {} and m.exposure()["auc"] == {"gmfe": None, "bias": None, "within_2": None, "n": 0}
    assert m.counts()["n_curves"] == 0 and m.counts()["censored_predicted_below_lloq"] is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_prediction_that_is_not_finite_is_refused_by_name(t1_table: CurveTable, bad: float) -> None:
    pred = t1_table.conc_mg_l.copy()
    pred[4, 2, 10] = bad
    with pytest.raises(PerfuseError, match=rf"curve {t1_table.curve_id[4]}, kidney at .* not finite"):
        judge(t1_table, pred)

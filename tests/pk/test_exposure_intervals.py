"""Areas over chosen intervals, and curves of many doses against the closed forms of a one-compartment body."""

import numpy as np
import pytest

from perfuse.errors import InputError
from perfuse.pk.exposure import exposure
from perfuse.pk.exposure_reasons import Reason
from perfuse.pk.exposure_rules import NcaRules
from perfuse.pk.interval_exposure import IntervalExposure, dose_intervals, steady_state_exposure
from perfuse.pk.partial_exposure import partial_exposure

RATE, VOLUME, DOSE, TAU, N = 0.1, 20.0, 100.0, 8.0, 12
DOSE_TIMES = TAU * np.arange(N)


def bolus_train(t):
    since = t[:, None] - DOSE_TIMES
    given = (since > 0) | ((since == 0) & (DOSE_TIMES == 0))  # at a later dose: the value before it
    return (np.where(given, np.exp(-RATE * np.maximum(since, 0)), 0) * DOSE / VOLUME).sum(1)


def infusion_train(t, duration=2.0):
    since = np.maximum(t[:, None] - DOSE_TIMES, 0)
    running = np.minimum(since, duration)
    return (DOSE / duration / (VOLUME * RATE) * -np.expm1(-RATE * running) * np.exp(-RATE * (since - running))).sum(1)


SPARSE = np.unique(
    np.concatenate([TAU * i + np.array([0, 0.5, 1, 2, 4, 6]) for i in range(N)] + [np.arange(96, 140, 4.0)])
)


@pytest.mark.parametrize("method", ["lin-up/log-down", "lin-log"])
def test_a_part_of_an_exponential_is_exact_wherever_it_begins_and_ends(method):
    t = np.array([0.0, 1, 2, 5, 9])
    k = 0.3
    rules = NcaRules(auc_method=method)
    for start, end in ((0, 9), (0.3, 4.1), (2, 5), (6, 7), (5.5, 12), (10, 15), (0, np.inf)):
        got = partial_exposure(t, np.exp(-k * t), start, end, rules=rules, beyond="lambda_z", lambda_z_1_h=k)
        upper = 0.0 if np.isinf(end) else np.exp(-k * end)
        moment = [np.exp(-k * x) * (x / k + 1 / k**2) if np.isfinite(x) else 0.0 for x in (start, end)]
        assert got.auc_mg_h_l == pytest.approx((np.exp(-k * start) - upper) / k, rel=1e-12)
        assert got.aumc_mg_h2_l == pytest.approx(moment[0] - moment[1], rel=1e-10)
        assert got.c_start_mg_l == pytest.approx(np.exp(-k * start), rel=1e-12)
        assert got.c_end_mg_l == pytest.approx(upper, rel=1e-12)
        beyond = (np.exp(-k * max(start, 9)) - upper) / k if end > 9 else 0.0
        assert got.extrapolated_fraction == pytest.approx(beyond / got.auc_mg_h_l, rel=1e-9)


def test_parts_add_up_to_the_whole_by_every_method():
    rng = np.random.default_rng(0)
    t, c = np.cumsum(rng.uniform(0.2, 2, (20, 10)), axis=1), rng.uniform(0.1, 5, (20, 10))
    cut = t[:, 0] + rng.uniform(0.05, 0.95, 20) * (t[:, -1] - t[:, 0])
    for method in ("linear", "lin-up/log-down", "lin-log"):
        rules = NcaRules(auc_method=method, aumc_rule="exact")
        left = partial_exposure(t, c, t[:, 0], cut, rules=rules)
        right = partial_exposure(t, c, cut, t[:, -1], rules=rules)
        whole = exposure(t, c, rules=rules)
        assert left.auc_mg_h_l + right.auc_mg_h_l == pytest.approx(whole.auc_last_mg_h_l, rel=1e-10)
        assert left.aumc_mg_h2_l + right.aumc_mg_h2_l == pytest.approx(whole.aumc_last_mg_h2_l, rel=1e-10)
        assert left.c_end_mg_l == pytest.approx(right.c_start_mg_l)


def test_linear_interpolation_by_hand_and_the_rule_for_time_zero():
    t, c = np.array([1.0, 3, 5]), np.array([2.0, 6, 1])
    linear = NcaRules(auc_method="linear")
    got = partial_exposure(t, c, 2, 4, rules=linear)
    assert (got.c_start_mg_l, got.c_end_mg_l, got.auc_mg_h_l) == pytest.approx((4, 3.5, 5 + 4.75))
    assert partial_exposure(t, c, 0, 2, rules=linear, time_zero="zero").auc_mg_h_l == pytest.approx(1 + 3)


def test_an_interval_that_leaves_the_curve_is_not_available_unless_told_how():
    t, c = np.array([1.0, 2, 3, 4]), np.array([8.0, 4, 2, 1])
    early, late = partial_exposure(t, c, 0, 2), partial_exposure(t, c, 2, 5)
    assert early.reason == Reason.START and np.isnan(early.auc_mg_h_l)
    assert late.reason == Reason.BEYOND and "lambda_z" in str(late.why())
    assert partial_exposure(t, c, 2, 5, beyond="last").auc_mg_h_l == pytest.approx(3 / np.log(2))
    assert partial_exposure(t, c, 2, 5, beyond="lambda_z").reason == Reason.BEYOND  # no slope, no answer
    assert partial_exposure(t, np.full(4, np.nan), 2, 3).reason == Reason.NO_DATA
    assert partial_exposure(t, np.zeros(4), 2, 3).reason == Reason.ALL_BLQ


def test_repeated_boluses_reach_the_closed_forms():
    found = dose_intervals(SPARSE, bolus_train(SPARSE), DOSE_TIMES, dose_mg=DOSE)
    k = np.arange(1, N + 1)
    build_up = -np.expm1(-k * RATE * TAU) / -np.expm1(-RATE * TAU)
    first = DOSE / (VOLUME * RATE) * -np.expm1(-RATE * TAU)
    assert found.auc_tau_mg_h_l == pytest.approx(first * build_up, rel=1e-10)
    assert found.accumulation_auc == pytest.approx(build_up, rel=1e-10)
    assert found.accumulation_predicted == pytest.approx(1 / -np.expm1(-RATE * TAU), rel=1e-10)
    assert found.fraction_of_steady_state == pytest.approx(-np.expm1(-k * RATE * TAU), rel=1e-10)
    assert found.ctrough_mg_l == pytest.approx(DOSE / VOLUME * build_up * np.exp(-RATE * TAU), rel=1e-10)
    assert found.cmin_mg_l == pytest.approx(found.ctrough_mg_l) and (found.tmin_h == TAU).all()
    assert found.cavg_mg_l == pytest.approx(found.auc_tau_mg_h_l / TAU)
    assert found.cmax_mg_l[0] == DOSE / VOLUME and found.tmax_h[0] == 0  # C(0+) was given
    assert (found.tmax_h[1:] == 0.5).all()  # observed: the value at the dose is the one before it
    assert found.fluctuation == pytest.approx((found.cmax_mg_l - found.cmin_mg_l) / found.cavg_mg_l)
    assert found.swing == pytest.approx(found.peak_trough_ratio - 1)
    steady = found.fraction_of_steady_state >= 0.95
    assert steady.any() and not steady.all()
    assert (np.isnan(found.cl_ss_l_h) == ~steady).all() and (found.why("cl_ss_l_h")[~steady] != "").all()
    assert found.cl_ss_l_h[-1] == pytest.approx(VOLUME * RATE, rel=1e-4)  # 1 - exp(-9.6) from steady


def test_steady_state_is_exact_to_1e_8_for_bolus_and_infusion():
    t = np.linspace(0, TAU, 40001)
    peak = DOSE / VOLUME / -np.expm1(-RATE * TAU)
    auc = DOSE / (VOLUME * RATE)
    bolus = steady_state_exposure(t, peak * np.exp(-RATE * t), TAU, dose_mg=DOSE, lambda_z_1_h=RATE)
    duration = 2.0
    top = DOSE / duration / (VOLUME * RATE)
    trough = top * np.expm1(RATE * duration) * np.exp(-RATE * TAU) / -np.expm1(-RATE * TAU)
    during = trough * np.exp(-RATE * t) + top * -np.expm1(-RATE * t)
    at_end = trough * np.exp(-RATE * duration) + top * -np.expm1(-RATE * duration)
    infused = np.where(t <= duration, during, at_end * np.exp(-RATE * (t - duration)))
    infusion = steady_state_exposure(
        t, infused, TAU, dose_mg=DOSE, duration_h=duration, lambda_z_1_h=RATE, rules=NcaRules(aumc_rule="exact")
    )
    for found in (bolus, infusion):
        assert found.auc_tau_mg_h_l[0] == pytest.approx(auc, rel=1e-8)
        assert found.cl_ss_l_h[0] == pytest.approx(VOLUME * RATE, rel=1e-8)
        assert found.mrt_ss_h[0] == pytest.approx(1 / RATE, rel=1e-8)
    assert bolus.mrt_ss_h[0] == pytest.approx(1 / RATE, rel=1e-10)
    assert bolus.cl_ss_l_h[0] == pytest.approx(VOLUME * RATE, rel=1e-10)


def test_a_last_sample_a_little_early_or_late_still_gives_the_whole_interval():
    k, c = 0.2, lambda t: 5 * np.exp(-0.2 * t)
    for last in (7.9, 8.2):
        t = np.array([0.0, 1, 2, 4, 6, last])
        found = steady_state_exposure(t, c(t), 8.0, dose_mg=1.0)
        assert found.auc_tau_mg_h_l[0] == pytest.approx(5 * -np.expm1(-k * 8) / k, rel=1e-10)
        assert found.ctrough_mg_l[0] == pytest.approx(c(8.0), rel=1e-10)


def test_a_dose_not_sampled_at_its_time_is_not_interpolated_across():
    t = SPARSE[SPARSE != 2 * TAU]
    found = dose_intervals(t, infusion_train(t), DOSE_TIMES, dose_mg=DOSE, duration_h=2.0)
    full = dose_intervals(SPARSE, infusion_train(SPARSE), DOSE_TIMES, dose_mg=DOSE, duration_h=2.0)
    assert found.auc_tau_mg_h_l[1] == pytest.approx(full.auc_tau_mg_h_l[1], rel=1e-10)  # its end by lambda_z
    assert found.reason("auc_tau_mg_h_l")[2] == Reason.START
    filled = dose_intervals(t, infusion_train(t), DOSE_TIMES, dose_mg=DOSE, duration_h=2.0, missing_start="cmin")
    assert filled.auc_tau_mg_h_l[2] == pytest.approx(full.auc_tau_mg_h_l[2], rel=0.05)


def test_by_mouth_and_tissue_and_unknown_lengths():
    c = infusion_train(SPARSE)
    oral = dose_intervals(SPARSE, c, DOSE_TIMES, dose_mg=DOSE, extravascular=True)
    assert oral.cl_f_ss_l_h[-1] == pytest.approx(VOLUME * RATE, rel=0.02) and np.isnan(oral.cl_ss_l_h).all()
    assert oral.why("mrt_ss_h")[-1] == "not defined for this route"
    slow = dose_intervals(SPARSE, c, DOSE_TIMES, dose_mg=DOSE, tissue=True)
    assert slow.auc_tau_mg_h_l == pytest.approx(oral.auc_tau_mg_h_l)  # no C(0+) is put in front of a tissue
    single = dose_intervals(SPARSE, c, [0.0], dose_mg=DOSE)
    assert single.reason("auc_tau_mg_h_l")[0] == Reason.NO_TAU and np.isnan(single.cmin_mg_l[0]) == (
        single.n_points[0] == 0
    )


def test_unequal_doses_or_intervals_are_not_taken_for_steady():
    c = bolus_train(SPARSE)
    amounts = np.where(np.arange(N) == 3, 2 * DOSE, DOSE)
    assert np.isnan(dose_intervals(SPARSE, c, DOSE_TIMES, dose_mg=amounts).cl_ss_l_h).all()
    told = dose_intervals(SPARSE, c, DOSE_TIMES, dose_mg=amounts, steady_state=True)
    assert np.isfinite(told.cl_ss_l_h).all()


def test_rows_and_padding_do_not_influence_each_other():
    t = np.stack([SPARSE, SPARSE])
    c = np.stack([bolus_train(SPARSE), bolus_train(SPARSE)])
    starts = np.stack([DOSE_TIMES, DOSE_TIMES])
    starts[1, 5:] = np.nan
    c[1, SPARSE > 40] = np.nan
    both = dose_intervals(t, c, starts, dose_mg=DOSE)
    alone = dose_intervals(SPARSE, c[1], DOSE_TIMES[:5], dose_mg=DOSE)
    for name in IntervalExposure.__annotations__:
        if name != "causes":
            got, want = getattr(both, name), getattr(alone, name)
            assert got[1, :5] == pytest.approx(want, rel=1e-12, nan_ok=True), name
    assert np.isnan(both.auc_tau_mg_h_l[1, 5:]).all() and (both.reason("auc_tau_mg_h_l")[1, 5:] == Reason.NO_TAU).all()


def test_every_missing_field_of_an_interval_has_a_reason():
    rng = np.random.default_rng(2)
    c = np.stack([infusion_train(SPARSE)] * 30) * np.exp(rng.normal(0, 0.3, (30, len(SPARSE))))
    c[rng.random(c.shape) < rng.uniform(0, 1, (30, 1))] = np.nan
    found = dose_intervals(SPARSE, c, DOSE_TIMES, dose_mg=DOSE, duration_h=2.0, loq_mg_l=3.0)
    missing_at_all = 0
    for name in IntervalExposure.__annotations__:
        if name in ("start_h", "tau_h", "n_points", "lambda_z_1_h", "causes"):
            continue
        missing = np.isnan(getattr(found, name))
        assert (missing == (found.reason(name) != 0)).all(), name
        missing_at_all += int(missing.sum())
    assert missing_at_all > 500


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: partial_exposure(SPARSE, bolus_train(SPARSE), 4, 4), "end_h does not lie after start_h"),
        (lambda: partial_exposure(SPARSE, bolus_train(SPARSE), 0, 4, beyond="guess"), "beyond is unknown"),
        (lambda: dose_intervals(SPARSE, bolus_train(SPARSE), [0.0, 8, 8]), "dose_time_h"),
        (lambda: dose_intervals(SPARSE, bolus_train(SPARSE), []), "dose_time_h is empty"),
        (lambda: dose_intervals(SPARSE, bolus_train(SPARSE), [0.0], tau_h=-1), "tau_h"),
        (lambda: dose_intervals(SPARSE, bolus_train(SPARSE), [0.0], missing_start="zero"), "missing_start"),
        (lambda: dose_intervals(SPARSE, bolus_train(SPARSE), [0.0], tau_h=8).reason("x"), "parameter is unknown"),
    ],
)
def test_bad_input_is_refused(call, match):
    with pytest.raises(InputError, match=match):
        call()

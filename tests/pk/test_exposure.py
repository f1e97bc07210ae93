"""Exposure against closed forms, PKNCA's rules on hand-made cases, and refusals."""

import time

import numpy as np
import pytest

from perfuse.errors import InputError
from perfuse.pk.exposure import exposure

DOSE_MG, VOLUME_L, RATE_1_H = 100.0, 20.0, 0.3


def bolus(t):
    return DOSE_MG / VOLUME_L * np.exp(-RATE_1_H * t)


def test_one_compartment_bolus_is_exact():
    t = np.array([0.0, 0.5, 1, 2, 4, 8, 12, 24])
    e = exposure(t, bolus(t), dose_mg=DOSE_MG)
    auc = DOSE_MG / (VOLUME_L * RATE_1_H)
    assert e.auc_inf_mg_h_l == pytest.approx(auc, rel=1e-12)  # log trapezoids are exact on an exponential
    assert e.auc_last_mg_h_l == pytest.approx(auc * (1 - np.exp(-RATE_1_H * 24)), rel=1e-12)
    assert e.half_life_h == pytest.approx(np.log(2) / RATE_1_H, rel=1e-12)
    assert e.cl_l_h == pytest.approx(VOLUME_L * RATE_1_H, rel=1e-12)
    assert e.vss_l == pytest.approx(VOLUME_L, rel=1e-10)
    assert e.mrt_h == pytest.approx(1 / RATE_1_H, rel=1e-10)
    assert e.cmax_mg_l == 5.0 and e.tmax_h == 0.0 and e.tlast_h == 24.0
    assert e.lambda_z_points == 7  # Tmax itself is not used, every later point is
    assert e.span_ratio == pytest.approx(23.5 * RATE_1_H / np.log(2))


def test_bolus_without_time_zero_is_back_extrapolated_only_on_request():
    t = np.array([0.5, 1, 2, 4, 8, 12, 24])
    full = exposure(t, bolus(t), dose_mg=DOSE_MG, time_zero="bolus")
    assert full.auc_inf_mg_h_l == pytest.approx(DOSE_MG / (VOLUME_L * RATE_1_H), rel=1e-12)
    assert full.cmax_mg_l == pytest.approx(bolus(0.5))  # observed, not C(0+)
    bare = exposure(t, bolus(t))
    assert bare.auc_last_mg_h_l == pytest.approx((bolus(0.5) - bolus(24.0)) / RATE_1_H, rel=1e-12)
    assert np.isnan(bare.cl_l_h)  # no dose, no clearance
    rising = exposure(t[:3], np.array([1.0, 2, 3]), time_zero="bolus")
    assert rising.auc_last_mg_h_l == pytest.approx(0.5 * 1 + 0.5 * 1.5 + 1 * 2.5)  # C1 where it does not fall


def test_infusion_mrt_subtracts_half_the_duration():
    k, duration = RATE_1_H, 2.0
    t = np.concatenate((np.linspace(0, 2, 2001), np.linspace(2.01, 40, 2000)))
    rate = DOSE_MG / duration
    peak = rate / (VOLUME_L * k) * (1 - np.exp(-k * duration))
    c = np.where(t <= duration, rate / (VOLUME_L * k) * (1 - np.exp(-k * t)), peak * np.exp(-k * (t - duration)))
    e = exposure(t, c, dose_mg=DOSE_MG, duration_h=duration)
    assert e.cl_l_h == pytest.approx(VOLUME_L * k, rel=1e-5)
    assert e.mrt_h == pytest.approx(1 / k, rel=1e-5)
    assert e.tmax_h == duration
    late = exposure(t[500:], c[500:], time_zero="zero")
    assert late.auc_last_mg_h_l > exposure(t[500:], c[500:]).auc_last_mg_h_l


def test_linear_up_log_down_by_hand():
    e = exposure(np.array([0.0, 1, 2, 4]), np.array([0.0, 4, 4, 1]))
    assert e.auc_last_mg_h_l == pytest.approx(0.5 * 4 + 4 + 2 * 3 / np.log(4), rel=1e-12)


def test_moment_is_continuous_where_the_curve_is_almost_flat():
    t = np.linspace(0, 10, 11)
    by_decay = [exposure(t, np.exp(-k * t), min_adjusted_r2=0).mrt_h * k for k in (1e-4, 1e-3, 1e-2, 0.1)]
    assert by_decay == pytest.approx([1] * 4, rel=1e-9)


def test_terminal_slope_takes_the_best_tail_after_tmax():
    t = np.array([0.0, 1, 2, 3, 4, 6, 8, 12])
    c = 10 * np.exp(-2.0 * t) + 1.0 * np.exp(-0.1 * t)  # the first points belong to the fast phase
    e = exposure(t, c)
    assert e.lambda_z_1_h == pytest.approx(0.1, rel=0.01)
    assert 3 <= e.lambda_z_points < 7
    exact = exposure(t, np.exp(-0.1 * t))
    assert exact.lambda_z_points == 7  # all tails fit equally well: more points win


def test_terminal_slope_matches_a_plain_loop():
    rng = np.random.default_rng(3)
    t = np.sort(rng.uniform(0, 24, (40, 12)), axis=1)
    c = np.exp(rng.normal(0, 0.3, (40, 12)) - 0.1 * t)
    got = exposure(t, c, min_adjusted_r2=-10)
    for i in range(40):
        start, fits = int(np.argmax(c[i])) + 1, []
        for k in range(start, 12 - 2):
            x, y = t[i, k:], np.log(c[i, k:])
            slope, _ = np.polyfit(x, y, 1)
            r2 = np.corrcoef(x, y)[0, 1] ** 2
            fits.append((1 - (1 - r2) * (len(x) - 1) / (len(x) - 2), len(x), -slope))
        best = max((f[0] for f in fits), default=np.nan)
        good = [f for f in fits if f[0] > best - 1e-4 and f[2] > 0]
        want = max(good, key=lambda f: f[1])[2] if good else np.nan
        assert got.lambda_z_1_h[i] == pytest.approx(want, rel=1e-8, nan_ok=True)


@pytest.mark.parametrize(
    ("c", "why"),
    [
        ([5.0, 4, 3], "two points after Tmax"),
        ([1.0, 2, 3, 4, 5, 6], "still rising"),
        ([9.0, 5, 5, 5, 5, 5], "flat"),
        ([9.0, 5, 0.5, 6, 0.4, 5, 0.6], "scattered: adjusted R2 below 0.9"),
        ([np.nan] * 5, "nothing observed"),
        ([3.0, np.nan, np.nan, np.nan], "one point"),
    ],
)
def test_half_life_is_not_available_rather_than_guessed(c, why):
    t = np.arange(len(c), dtype=float)
    e = exposure(t, np.array(c), dose_mg=1.0)
    for name in ("half_life_h", "lambda_z_1_h", "auc_inf_mg_h_l", "cl_l_h", "vss_l", "mrt_h"):
        assert np.isnan(getattr(e, name)), f"{name}: {why}"


def test_a_refused_slope_still_reports_its_fit_and_span():
    t = np.arange(7.0)
    c = np.array([9.0, 5, 3.6, 4.4, 2.6, 3.0, 2.0])
    e = exposure(t, c, min_adjusted_r2=0.999)
    assert np.isnan(e.half_life_h) and e.lambda_z_points >= 3 and 0 < e.lambda_z_adjusted_r2 < 0.999
    assert exposure(t, c, min_adjusted_r2=0.5).half_life_h > 0
    assert np.isnan(exposure(t, c, min_adjusted_r2=0.5, min_span_ratio=50).half_life_h)


def test_values_below_loq_end_the_curve_and_gaps_are_spanned():
    t = np.array([0.0, 1, 2, 3, 4, 6, 8])
    c = np.array([0.0, 8, 4, np.nan, 1, 0.01, 0])
    e = exposure(t, c, loq_mg_l=0.1)
    assert e.tlast_h == 4 and e.clast_mg_l == 1 and e.n_points == 4
    want = 0.5 * 8 + (8 - 4) / np.log(2) + 2 * (4 - 1) / np.log(4)
    assert e.auc_last_mg_h_l == pytest.approx(want, rel=1e-12)
    empty = exposure(t, np.full(7, 0.01), loq_mg_l=0.1)
    assert empty.n_points == 0 and np.isnan(empty.cmax_mg_l) and np.isnan(empty.auc_last_mg_h_l)


def test_rows_do_not_influence_each_other_and_padding_does_not_count():
    rng = np.random.default_rng(0)
    t = np.linspace(0.5, 24, 9)
    c = np.exp(rng.normal(0, 0.05, (3, 14, 9)) - 0.2 * t)
    c[1, 2, 3:6] = np.nan
    together = exposure(t, c, dose_mg=np.array([[10.0], [20], [30]]))
    padded = exposure(np.append(t, [np.nan] * 2), np.append(c[1, 2], [np.nan] * 2), dose_mg=20)
    for name in ("auc_inf_mg_h_l", "half_life_h", "vss_l", "cmax_mg_l", "lambda_z_points"):
        assert getattr(together, name).shape == (3, 14)
        assert getattr(together, name)[1, 2] == pytest.approx(getattr(padded, name), rel=1e-12)


@pytest.mark.parametrize(
    ("time_h", "conc", "kind", "match"),
    [
        ([0.0, 2, 1], [1.0, 1, 1], "observed", "strictly increasing"),
        ([0.0, 1], [1.0, -1], "observed", "negative"),
        ([0.0, 1], [1.0, 1], "guess", "unknown"),
        ([], [], "observed", "empty"),
    ],
)
def test_bad_input_is_refused(time_h, conc, kind, match):
    with pytest.raises(InputError, match=match):
        exposure(np.array(time_h), np.array(conc), time_zero=kind)


def test_thousands_of_curves_take_seconds_at_most():
    t = np.linspace(0.24, 24, 100)
    rate = np.random.default_rng(0).uniform(0.05, 1, (2000, 14, 1))
    began = time.perf_counter()
    e = exposure(t, np.exp(-rate * t))
    assert time.perf_counter() - began < 6  # about 1 s when alone on the machine
    assert np.allclose(e.half_life_h, np.log(2) / rate[..., 0])

"""The options of an analysis: area methods, points chosen by hand, BLQ rules, thresholds, reasons, flags, routes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.errors import InputError
from perfuse.pk.bioavailability import bioavailability, mean_absorption_time
from perfuse.pk.exposure import Exposure, exposure
from perfuse.pk.exposure_reasons import Flag, Reason, flag_text, reason_text
from perfuse.pk.exposure_rules import BLQ_RULES, BlqRule, NcaRules, blq_rule, nca_rules

T8 = np.arange(8.0)


def test_area_methods_by_hand():
    t, c = np.array([0.0, 1, 2, 3, 5]), np.array([0.0, 4, 2, 3, 1])
    log = {(4, 2): 2 / np.log(2), (2, 3): 1 / np.log(1.5), (3, 1): 2 * 2 / np.log(3)}
    want = {
        "linear": 2 + 3 + 2.5 + 4,
        "lin-up/log-down": 2 + log[4, 2] + 2.5 + log[3, 1],
        "lin-log": 2 + log[4, 2] + log[2, 3] + log[3, 1],
    }
    for method, area in want.items():
        got = exposure(t, c, rules=NcaRules(auc_method=method)).auc_last_mg_h_l
        assert got == pytest.approx(area, rel=1e-12), method


def test_rising_logarithmic_pieces_have_the_exact_moment():
    t = np.array([0.0, 1, 2, 4])
    c = np.array([9.0, 1, np.exp(0.7), np.exp(2.1)])  # exp(0.7 (t - 1)) from t = 1
    found = exposure(t, c, rules=NcaRules(auc_method="lin-log"))
    first = exposure(t[:2], c[:2], rules=NcaRules(auc_method="lin-log"))
    k = 0.7
    area = (np.exp(3 * k) - 1) / k
    moment = (4 * np.exp(3 * k) - 1) / k - (np.exp(3 * k) - 1) / k**2
    assert found.auc_last_mg_h_l - first.auc_last_mg_h_l == pytest.approx(area, rel=1e-12)
    assert found.aumc_last_mg_h2_l - first.aumc_last_mg_h2_l == pytest.approx(moment, rel=1e-12)


def test_the_two_rules_for_the_moment_of_a_straight_piece():
    t, c = np.array([1.0, 3.0]), np.array([2.0, 6.0])
    rule = exposure(t, c).aumc_last_mg_h2_l
    exact = exposure(t, c, rules=NcaRules(aumc_rule="exact")).aumc_last_mg_h2_l
    assert rule == pytest.approx(2 * (1 * 2 + 3 * 6) / 2)  # what PKNCA and WinNonlin take
    assert exact == pytest.approx((2 * 27 / 3) - (2 * 1 / 3), rel=1e-12)  # the integral of t x 2t


def test_closed_forms_of_an_infusion_to_1e_8():
    k, duration, volume, dose = 0.3, 2.0, 20.0, 100.0
    t = np.concatenate((np.linspace(0, duration, 20001), np.linspace(duration, 60, 200)[1:]))
    rate = dose / duration / (volume * k)
    c = np.where(t <= duration, rate * -np.expm1(-k * t), rate * np.expm1(k * duration) * np.exp(-k * t))
    found = exposure(t, c, dose_mg=dose, duration_h=duration, rules=NcaRules(aumc_rule="exact"))
    assert found.cl_l_h == pytest.approx(volume * k, rel=1e-8)
    assert found.mrt_h == pytest.approx(1 / k, rel=1e-8)
    assert found.vss_l == pytest.approx(volume, rel=1e-8)
    assert found.mtt_h == pytest.approx(1 / k + duration / 2, rel=1e-8)
    assert found.vz_l == pytest.approx(volume, rel=1e-8)


def test_closed_forms_of_a_two_exponential_bolus_to_1e_8():
    a, alpha, b, beta, dose = 8.0, 2.0, 2.0, 0.1, 50.0
    t = np.concatenate((np.linspace(0, 12, 40001), np.linspace(12, 300, 2000)[1:]))
    c = a * np.exp(-alpha * t) + b * np.exp(-beta * t)
    found = exposure(t, c, dose_mg=dose, slope_points=t > 60)  # by itself the longest tied tail, a little too steep
    auc, aumc = a / alpha + b / beta, a / alpha**2 + b / beta**2
    assert found.auc_inf_mg_h_l == pytest.approx(auc, rel=1e-8)
    assert found.cl_l_h == pytest.approx(dose / auc, rel=1e-8)
    assert found.mrt_h == pytest.approx(aumc / auc, rel=1e-8)
    assert found.vss_l == pytest.approx(dose * aumc / auc**2, rel=1e-8)
    assert found.vz_l == pytest.approx(dose / (auc * beta), rel=1e-8)


@settings(max_examples=25, deadline=None)
@given(
    factor=st.floats(1e-3, 1e3), shift=st.floats(0.5, 3),
    method=st.sampled_from(["linear", "lin-up/log-down", "lin-log"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_linear_in_dose_and_in_time(factor, shift, method, seed):
    rng = np.random.default_rng(seed)
    t = np.cumsum(rng.uniform(0.2, 3, 12))
    c = np.exp(rng.normal(0, 0.2, 12) - 0.15 * t)
    rules = NcaRules(auc_method=method, min_adjusted_r2=-np.inf)
    one = exposure(t, c, dose_mg=5.0, time_zero="bolus", rules=rules)
    more = exposure(t, factor * c, dose_mg=5.0 * factor, time_zero="bolus", rules=rules)
    slow = exposure(shift * t, c, dose_mg=5.0, time_zero="bolus", rules=rules)
    for name, by_dose, by_time in (
        ("auc_inf_mg_h_l", factor, shift), ("cl_l_h", 1, 1 / shift), ("vss_l", 1, 1), ("vz_l", 1, 1),
        ("mrt_h", 1, shift), ("half_life_h", 1, shift), ("c0_mg_l", factor, 1), ("extrapolated_fraction", 1, 1),
    ):  # fmt: skip
        base = getattr(one, name)
        assert getattr(more, name) == pytest.approx(base * by_dose, rel=1e-9, nan_ok=True)
        assert getattr(slow, name) == pytest.approx(base * by_time, rel=1e-9, nan_ok=True)


def test_points_chosen_and_refused_by_hand():
    c = np.array([10, 6, 4, 2.5, 9, 1.2, 0.8, 0.5])
    automatic = exposure(T8, c)
    without = exposure(T8, c, not_slope_points=T8 == 4)
    assert without.lambda_z_adjusted_r2 > automatic.lambda_z_adjusted_r2 or automatic.lambda_z_points < 4
    assert without.auc_last_mg_h_l == automatic.auc_last_mg_h_l  # the area still has the point
    chosen = exposure(T8, c, slope_points=np.isin(T8, [1, 3, 5]))
    slope, intercept = np.polyfit([1, 3, 5], np.log([6, 2.5, 1.2]), 1)
    assert chosen.lambda_z_1_h == pytest.approx(-slope, rel=1e-12) and chosen.lambda_z_points == 3
    assert chosen.clast_pred_mg_l == pytest.approx(np.exp(intercept + slope * 7), rel=1e-12)
    assert (chosen.lambda_z_first_h, chosen.lambda_z_last_h) == (1, 5)
    assert chosen.span_ratio == pytest.approx(4 * -slope / np.log(2))
    rows = exposure(T8, np.stack([c, c]), slope_points=np.stack([np.isin(T8, [1, 3, 5]), np.zeros(8, bool)]))
    assert rows.lambda_z_1_h[0] == chosen.lambda_z_1_h and rows.lambda_z_1_h[1] == automatic.lambda_z_1_h


def test_the_users_own_points_are_not_held_against_the_thresholds_but_must_fall_and_be_enough():
    c = np.array([10, 6, 2, 5, 1, 4, 1, 3.0])
    chosen = T8 >= 1
    assert np.isnan(exposure(T8, c, min_adjusted_r2=0.9).half_life_h)
    assert exposure(T8, c, slope_points=chosen, min_adjusted_r2=0.9, min_span_ratio=5).half_life_h > 0
    two = exposure(T8, c, slope_points=T8 >= 6)
    assert two.reason("half_life_h") == Reason.FEW_POINTS
    rising = exposure(T8, c, slope_points=np.isin(T8, [4, 5, 7]))
    assert rising.reason("half_life_h") == Reason.NOT_FALLING


def test_points_by_hand_follow_their_values_when_absent_ones_are_removed():
    t = np.concatenate((T8, [8.0]))
    c = np.array([10, np.nan, 6, 4, np.nan, 2.5, 9, 1.2, 0.8])
    chosen = np.isin(t, [2, 5, 8])
    slope = np.polyfit([2, 5, 8], np.log([6, 2.5, 0.8]), 1)[0]
    assert exposure(t, c, slope_points=chosen).lambda_z_1_h == pytest.approx(-slope, rel=1e-12)


BLQ_CURVE = np.array([0.0, 0.1, 4.0, 0.1, 2.0, 1.0, 0.1, 0.0])  # LOQ 0.2


@pytest.mark.parametrize(
    ("rule", "t", "c"),
    [
        ("pknca", [0, 1, 2, 4, 5], [0, 0, 4, 2, 1]),
        ("M1", [2, 4, 5], [4, 2, 1]),
        ("M5", range(8), [0.1, 0.1, 4, 0.1, 2, 1, 0.1, 0.1]),
        ("M6", range(1, 7), [0.1, 4, 0.1, 2, 1, 0.1]),
        ("M7", range(6), [0, 0, 4, 0, 2, 1]),
        (BlqRule("drop", 0.05, 0.05), range(2, 8), [4, 0.05, 2, 1, 0.05, 0.05]),
        (BlqRule("zero", "zero", 0.0), range(6), [0, 0, 4, 0, 2, 1]),
    ],
)
def test_values_below_the_limit_by_place(rule, t, c):
    rules = NcaRules(blq=blq_rule(rule), min_adjusted_r2=-np.inf)
    got = exposure(T8, BLQ_CURVE, loq_mg_l=0.2, rules=rules)
    want = exposure(
        np.array(t, float), np.array(c, float), rules=NcaRules(blq=BLQ_RULES["M7"], min_adjusted_r2=-np.inf)
    )
    for name in ("n_points", "auc_last_mg_h_l", "tlast_h", "lambda_z_1_h", "lambda_z_points", "cmax_mg_l"):
        assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-12, nan_ok=True), name


def test_auc_all_ends_at_the_first_zero_kept_after_the_last_value():
    kept = exposure(T8, BLQ_CURVE, loq_mg_l=0.2)
    assert kept.auc_all_mg_h_l == pytest.approx(kept.auc_last_mg_h_l + 0.5)
    dropped = exposure(T8, BLQ_CURVE, loq_mg_l=0.2, rules=NcaRules(blq=BLQ_RULES["M1"]))
    assert dropped.auc_all_mg_h_l == dropped.auc_last_mg_h_l


@pytest.mark.parametrize("rule", list(BLQ_RULES))
def test_a_curve_below_the_limit_throughout_is_not_made_up(rule):
    found = exposure(T8, np.full((2, 8), 0.1), loq_mg_l=0.2, rules=NcaRules(blq=BLQ_RULES[rule]))
    assert (found.n_points == 0).all() and np.isnan(found.cmax_mg_l).all() and np.isnan(found.auc_last_mg_h_l).all()
    assert found.why("auc_inf_mg_h_l").tolist() == ["every value is below the limit of quantification"] * 2


def test_c0_is_reported_with_its_share_of_the_area():
    t = np.array([0.5, 1, 2, 4, 8, 16])
    c = 10 * np.exp(-0.4 * t)
    found = exposure(t, c, dose_mg=10.0, time_zero="bolus")
    assert found.c0_mg_l == pytest.approx(10, rel=1e-12)
    assert found.back_extrapolated_fraction == pytest.approx(1 - np.exp(-0.2), rel=1e-10)
    predose = exposure(np.append(0.0, t), np.append(0.0, c), dose_mg=10.0, time_zero="bolus")
    assert predose.c0_mg_l == pytest.approx(10, rel=1e-12) and predose.n_points == 6
    assert predose.vss_l == pytest.approx(1, rel=1e-10)
    bare = exposure(t, c)
    assert bare.reason("c0_mg_l") == Reason.NO_C0 and bare.back_extrapolated_fraction == 0


def test_each_curve_may_have_its_own_time_zero():
    t, c = np.array([1.0, 2, 3, 4, 5]), np.exp(-np.array([1.0, 2, 3, 4, 5]))
    words = np.array(["observed", "bolus", "zero"])
    together = exposure(t, np.stack([c] * 3), time_zero=words)
    for i, word in enumerate(words):
        assert together.auc_last_mg_h_l[i] == exposure(t, c, time_zero=str(word)).auc_last_mg_h_l


def test_by_mouth_clearance_is_over_f_and_mrt_needs_the_absorption_time():
    k, ka, dose, f, volume = 0.2, 1.5, 100.0, 0.6, 30.0
    t = np.concatenate((np.linspace(0, 8, 8001), np.linspace(8, 100, 500)[1:]))
    c = f * dose * ka / (volume * (ka - k)) * (np.exp(-k * t) - np.exp(-ka * t))
    found = exposure(t, c, dose_mg=dose, extravascular=True)
    assert found.cl_f_l_h == pytest.approx(volume * k / f, rel=1e-5)
    assert found.vz_f_l == pytest.approx(volume / f, rel=5e-3)  # the longest tied tail still holds some absorption
    assert found.mtt_h == pytest.approx(1 / k + 1 / ka, rel=1e-5)
    assert np.isnan(found.cl_l_h) and found.why("cl_l_h") == "not defined for this route"
    assert np.isnan(found.mrt_h) and found.why("mrt_h") == "the mean absorption time is not known"
    known = exposure(t, c, dose_mg=dose, extravascular=True, mat_h=1 / ka)
    assert known.mrt_h == pytest.approx(1 / k, rel=1e-5)
    iv = exposure(t, dose / volume * np.exp(-k * t), dose_mg=dose)
    assert bioavailability(found.auc_inf_mg_h_l, dose, iv.auc_inf_mg_h_l, dose) == pytest.approx(f, rel=1e-5)
    assert mean_absorption_time(found.mtt_h, iv.mrt_h) == pytest.approx(1 / ka, rel=1e-4)
    assert np.isnan(mean_absorption_time(2.0, 3.0))
    assert iv.why("cl_f_l_h") == "not defined for this route"


@pytest.mark.parametrize(
    ("c", "options", "field", "reason"),
    [
        ([np.nan] * 8, {}, "auc_inf_mg_h_l", Reason.NO_DATA),
        ([3, *[np.nan] * 7], {}, "auc_last_mg_h_l", Reason.ONE_POINT),
        ([1, 5, 4, 3, *[np.nan] * 4], {}, "half_life_h", Reason.FEW_POINTS),
        ([9, 5, 5, 5, 5, 5, 5, 5], {}, "half_life_h", Reason.NOT_FALLING),
        ([10, 6, 2, 5, 1, 4, 1, 3], {}, "cl_l_h", Reason.POOR_FIT),
        ([9, 8, 7.5, 7, 6.6, 6.2, 5.8, 5.5], {"min_span_ratio": 2.0}, "vss_l", Reason.SHORT_SPAN),
        ([9, 8, 7.5, 7, 6.6, 6.2, 5.8, 5.5], {"rules": NcaRules(max_extrapolated_fraction=0.2)}, "mrt_h",
         Reason.EXTRAPOLATION),
        ([9, 6, 4, 3, 2, 1.4, 1, 0.7], {"dose_mg": np.nan}, "vz_l", Reason.NO_DOSE),
        ([9, 6, 4, 3, 2, 1.4, 1, 0.7], {"duration_h": 50.0}, "vss_l", Reason.NOT_POSITIVE),
    ],
)  # fmt: skip
def test_what_is_missing_says_why(c, options, field, reason):
    found = exposure(T8, np.array(c, float), **{"dose_mg": 1.0, **options})
    assert np.isnan(getattr(found, field)) and found.reason(field) == reason
    assert found.why(field) == reason_text(np.array(reason)) != ""


def test_every_missing_field_of_random_curves_has_a_reason_and_no_other_does():
    rng = np.random.default_rng(5)
    c = np.exp(rng.normal(0, 0.5, (300, 8)) - 0.4 * T8)
    c[rng.random(c.shape) < rng.uniform(0, 1, (300, 1))] = np.nan
    c[rng.random(c.shape) < 0.2] = 0
    found = exposure(
        T8 + 0.5, c, dose_mg=np.where(rng.random(300) < 0.3, np.nan, 2), extravascular=rng.random(300) < 0.3,
        time_zero=rng.choice(["observed", "bolus", "zero"], 300), rules=NcaRules(max_extrapolated_fraction=0.3),
    )  # fmt: skip
    checked = 0
    for name in Exposure.__annotations__:
        if name in ("n_points", "lambda_z_points", "flags", "causes"):
            continue
        missing = np.isnan(getattr(found, name))
        assert ((found.reason(name) != 0) == missing).all(), name
        checked += int(missing.sum())
    assert checked > 1000


def test_what_is_refused_takes_all_that_rests_on_it_along():
    c = np.array([9, 8, 7.5, 7, 6.6, 6.2, 5.8, 5.5])
    found = exposure(T8, c, dose_mg=1.0, rules=NcaRules(max_extrapolated_fraction=0.2))
    for name in ("auc_inf_mg_h_l", "auc_inf_pred_mg_h_l", "aumc_inf_mg_h2_l", "cl_l_h", "vz_l", "vss_l", "mrt_h"):
        assert np.isnan(getattr(found, name)), name
    assert found.half_life_h > 0 and found.extrapolated_fraction > 0.2  # the slope itself was not refused


def test_flags_tell_what_to_be_careful_about():
    short = exposure(T8, np.array([9, 8, 7.5, 7, 6.6, 6.2, 5.8, 5.5]))
    assert short.flags == Flag.SPAN | Flag.EXTRAPOLATED
    assert flag_text(int(short.flags)) == "slope spans < 2 half-lives; > 20 % of AUC_inf extrapolated"
    late = exposure(T8 + 2, np.exp(-1.0 * T8), time_zero="bolus")
    assert late.flags == Flag.BACK_EXTRAPOLATED
    first = exposure(T8, np.array([0, 9, 5, 3, 2, 1, 0.5, 0.2]), extravascular=True)
    assert first.flags == Flag.CMAX_FIRST
    assert exposure(T8, np.exp(-T8)).flags == 0 and flag_text(0) == ""


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: NcaRules(auc_method="log"), "auc_method is unknown"),
        (lambda: NcaRules(aumc_rule="log"), "aumc_rule is unknown"),
        (lambda: NcaRules(cmax_in_slope="maybe"), "cmax_in_slope is unknown"),
        (lambda: NcaRules(min_points=2), "min_points"),
        (lambda: NcaRules(r2_tie=-1), "r2_tie"),
        (lambda: NcaRules(max_extrapolated_fraction=20), "max_extrapolated_fraction"),
        (lambda: BlqRule(middle="loq/2 once"), "blq middle is unknown"),
        (lambda: BlqRule(first="keep"), "blq first is unknown"),
        (lambda: BlqRule(last=-1.0), "blq last"),
        (lambda: BlqRule(last=np.inf), "blq last"),
        (lambda: blq_rule("M3"), "blq is unknown"),
        (lambda: nca_rules("phoenix"), "rules is unknown"),
        (lambda: nca_rules(min_adjusted_r2=2.0), "min_adjusted_r2"),
        (lambda: exposure(T8, np.exp(-T8), dose_mg=-1.0), "dose_mg is negative"),
        (lambda: exposure(T8, np.exp(-T8), duration_h=-1.0), "duration_h is negative"),
        (lambda: exposure(T8, np.exp(-T8), time_zero=np.array("late")), "time_zero is unknown"),
        (lambda: exposure(T8, np.exp(-T8)).reason("colour"), "parameter is unknown"),
        (lambda: bioavailability(0.0, 1.0, 1.0, 1.0), "auc_extravascular_mg_h_l"),
        (lambda: bioavailability(1.0, 1.0, 1.0, -1.0), "dose_intravenous_mg"),
    ],
)
def test_bad_rules_are_refused(make, match):
    with pytest.raises(InputError, match=match):
        make()

"""Exposure of whole tables and files: rows, reasons, doses, and what is refused."""

import numpy as np
import polars as pl
import pytest

from perfuse.data.importers.tidy import read_tidy, write_tidy
from perfuse.errors import InputError
from perfuse.evaluation.nca import INTERVAL_COLUMNS, SINGLE_COLUMNS, nca_table
from perfuse.evaluation.nca_file import nca_file
from perfuse.pk.exposure import exposure

T = np.array([0.0, 0.5, 1, 2, 4, 8, 12, 24])


def table_of(conc, **options):
    return nca_table(T, conc, ["a", "b"], ["blood", "liver"], **options)


def two_curves():
    blood, liver = 5 * np.exp(-0.3 * T), 4 * (np.exp(-0.3 * T) - np.exp(-2 * T))
    return np.stack([[blood, liver], [2 * blood, np.full(8, np.nan)]])


def test_one_row_per_curve_and_organ_with_a_value():
    frame = table_of(two_curves(), dose_mg=np.array([[100.0], [200.0]]), drug=["x", "y"])
    assert frame.select("curve_id", "drug", "organ", "matrix").rows() == [
        ("a", "x", "blood", "plasma"), ("a", "x", "liver", "tissue_homogenate"), ("b", "y", "blood", "plasma"),
    ]  # fmt: skip
    assert frame["cl_l_h"].to_list() == pytest.approx([6.0, None, 6.0])
    assert frame["vss_l"].to_list() == pytest.approx([20.0, None, 20.0])
    liver = frame.row(1, named=True)
    assert liver["mrt_h"] is None and liver["mtt_h"] > 1 / 0.3 and liver["c0_mg_l"] == 0
    assert "cl_l_h" in liver["not_available"] and "defined for blood, plasma and serum only" in liver["not_available"]
    assert frame["not_available"][0] == "" and frame["route"].to_list() == ["iv_bolus"] * 3
    assert frame.select(INTERVAL_COLUMNS).null_count().row(0) == (3,) * len(INTERVAL_COLUMNS)


def test_numbers_are_those_of_exposure_under_the_same_rules():
    conc = two_curves()
    conc[0, 0, :2] = np.nan  # time 0 absent: a bolus in blood is extrapolated back
    frame = table_of(conc, dose_mg=100.0, rules="winnonlin")
    want = exposure(T, conc[0, 0], dose_mg=100.0, time_zero="bolus", rules="winnonlin")
    for name in SINGLE_COLUMNS:
        value = frame[name][0]
        assert (np.nan if value is None else value) == pytest.approx(float(getattr(want, name)), nan_ok=True), name


def test_many_doses_give_one_row_per_interval():
    times = np.arange(0.0, 49, 2)
    since = times[:, None] - np.array([0.0, 12, 24])
    c = np.where((since > 0) | ((since == 0) & (times[:, None] == 0)), np.exp(-0.2 * np.maximum(since, 0)), 0).sum(1)
    dose = np.array([[100.0, 100, 100, 0]])  # the last one pads
    frame = nca_table(times, c[None, None], ["a"], ["blood"], dose_mg=dose, dose_time_h=[0.0, 12, 24, 0])
    assert frame["dose_number"].to_list() == [1, 2, 3] and frame["dose_time_h"].to_list() == [0, 12, 24]
    assert frame["n_doses"].to_list() == [3] * 3 and frame["tau_h"].to_list() == [12] * 3
    assert frame["half_life_h"].to_list() == pytest.approx([np.log(2) / 0.2] * 3, rel=1e-9)
    assert frame["auc_tau_mg_h_l"][0] == pytest.approx(-np.expm1(-2.4) / 0.2, rel=1e-10)
    assert frame["accumulation_auc"][1] == pytest.approx(1 + np.exp(-2.4), rel=1e-10)
    assert frame["cl_ss_l_h"].to_list()[:1] == [None] and "steady state" in frame["not_available"][0]
    assert frame["auc_inf_mg_h_l"].to_list() == [None] * 3
    longer = nca_table(times, c[None, None], ["a"], ["blood"], dose_mg=dose, dose_time_h=[0.0, 12, 24, 0], tau_h=24.0)
    assert longer["tau_h"].to_list() == [12, 12, 24]


def test_doses_at_one_time_are_one_unless_they_differ():
    conc = two_curves()[:1]
    frame = nca_table(T, conc, ["a"], ["blood", "liver"], dose_mg=[[60.0, 40.0]], dose_time_h=[0.0, 0.0])
    assert frame["n_doses"].to_list() == [1, 1] and frame["cl_l_h"][0] == pytest.approx(6.0)
    mixed = nca_table(T, conc, ["a"], ["blood", "liver"], dose_mg=[[60.0, 40.0]], dose_time_h=[0.0, 0.0],
                      duration_h=[0.0, 2.0])  # fmt: skip
    assert mixed["cl_l_h"][0] is None
    assert "doses of several routes or durations at one time" in mixed["not_available"][0]


def test_values_before_the_dose_do_not_count():
    conc = np.concatenate(([3.0], 5 * np.exp(-0.3 * T)))[None, None]
    frame = nca_table(np.concatenate(([1.0], T + 2)), conc, ["a"], ["blood"], dose_mg=100.0, dose_time_h=2.0)
    assert frame["tmax_h"][0] == 0 and frame["cl_l_h"][0] == pytest.approx(6.0)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="does not fit curve_id and organs"):
        nca_table(T, two_curves(), ["a"], ["blood", "liver"])


def test_a_dataset_and_its_tidy_table_give_the_same(t1_table, t1_dataset, tmp_path):
    report = nca_file(t1_dataset, tmp_path / "a.csv")
    assert report.n_curves == 40 and report.n_rows == 40 * 14
    assert report.lines() == [f"40 curves, 560 rows, {report.n_half_life} with a half-life: {tmp_path / 'a.csv'}"]
    frame = pl.read_csv(tmp_path / "a.csv", infer_schema_length=None)
    blood = frame.filter(pl.col("organ") == "blood")
    want = exposure(
        t1_table.time_h, t1_table.conc_mg_l[:, 0], loq_mg_l=t1_table.loq_mg_l, dose_mg=t1_table.dose_mg[:, 0]
    )
    assert blood["curve_id"].to_list() == t1_table.curve_id.tolist()
    for name in ("cl_l_h", "vss_l", "half_life_h", "auc_all_mg_h_l"):
        assert blood[name].to_numpy() == pytest.approx(getattr(want, name), rel=1e-12, nan_ok=True)
    write_tidy(read_tidy(write_tidy(t1_table, tmp_path / "t.csv")), tmp_path / "tidy.csv")
    nca_file(tmp_path / "tidy.csv", tmp_path / "b.parquet", organs=["blood"])
    again = pl.read_parquet(tmp_path / "b.parquet").sort("curve_id")
    assert again["auc_last_mg_h_l"].to_numpy() == pytest.approx(blood.sort("curve_id")["auc_last_mg_h_l"].to_numpy())


def predictions(path):
    rows = [
        {"curve_id": i, "drug": "x", "organ": o, "matrix": m, "time_h": t, "conc_mg_l": c, "outside_training": False}
        for i, scale in (("b", 1.0), ("a", 2.0))
        for o, m, shift in (("blood", "plasma", 1.0), ("liver", "tissue_homogenate", 3.0))
        for t, c in zip(T, scale * shift * 5 * np.exp(-0.3 * T), strict=True)
    ]
    pl.DataFrame(rows).write_csv(path)
    return path


def test_predictions_take_the_dose_from_the_user(tmp_path):
    source = predictions(tmp_path / "p.csv")
    nca_file(source, tmp_path / "out.csv", dose_mg=100.0)
    frame = pl.read_csv(tmp_path / "out.csv")
    assert frame.select("curve_id", "organ").rows() == [("a", "blood"), ("a", "liver"), ("b", "blood"), ("b", "liver")]
    assert frame["cl_l_h"].to_list() == pytest.approx([3.0, None, 6.0, None])
    nca_file(source, tmp_path / "out.csv", force=True, organs=["liver"], route="oral", dose_mg=100.0)
    assert pl.read_csv(tmp_path / "out.csv")["organ"].to_list() == ["liver"] * 2
    nca_file(source, tmp_path / "none.csv")
    text = pl.read_csv(tmp_path / "none.csv")["not_available"][0]
    assert "cl_l_h, vz_l, vss_l: the dose is not given" in text


def test_options_reach_the_rules(tmp_path):
    source = predictions(tmp_path / "p.csv")
    nca_file(source, tmp_path / "a.csv", auc_method="linear", min_span_ratio=50, max_extrapolated_fraction=0.5,
             blq="M1", loq_mg_l=0.05)  # fmt: skip
    frame = pl.read_csv(tmp_path / "a.csv")
    assert frame["half_life_h"].to_list() == [None] * 4 and "spans too few" in frame["not_available"][0]
    c = 10 * np.exp(-0.3 * T)
    seen = c >= 0.05
    assert frame["auc_last_mg_h_l"][0] == pytest.approx(np.trapezoid(c[seen], T[seen]))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"organs": ["toe"]}, "organs is unknown"),
        ({"rules": "phoenix"}, "rules is unknown"),
        ({"blq": "M3"}, "blq is unknown"),
        ({"auc_method": "log"}, "auc_method is unknown"),
        ({"max_extrapolated_fraction": 20.0}, "max_extrapolated_fraction"),
        ({"loq_mg_l": -1.0}, "loq_mg_l"),
        ({"tau_h": 0.0}, "tau_h"),
        ({"dose_mg": 0.0}, "dose_mg"),
        ({"route": "nose"}, "route is unknown"),
        ({"route": "iv_infusion"}, "contradicts the route"),
        ({"route": "oral", "duration_h": 2.0}, "contradicts the route"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(options, match, tmp_path):
    source = predictions(tmp_path / "p.csv")
    with pytest.raises(InputError, match=match):
        nca_file(source, tmp_path / "out.csv", **options)
    assert not (tmp_path / "out.csv").exists()


def test_bad_files_are_refused(t1_dataset, tmp_path):
    source = predictions(tmp_path / "p.csv")
    (tmp_path / "there.csv").write_text("x")
    with pytest.raises(InputError, match="exists already"):
        nca_file(source, tmp_path / "there.csv")
    with pytest.raises(InputError, match="unknown kind"):
        nca_file(source, tmp_path / "out.txt")
    with pytest.raises(InputError, match="are in the data"):
        nca_file(t1_dataset, tmp_path / "out.csv", dose_mg=5.0)
    with pytest.raises(InputError, match="does not exist"):
        nca_file(tmp_path / "no.csv", tmp_path / "out.csv")
    (tmp_path / "text.csv").write_text("curve_id,organ,time_h,conc_mg_l\na,blood,0,high\n")
    with pytest.raises(InputError, match="conc_mg_l is not a number"):
        nca_file(tmp_path / "text.csv", tmp_path / "out.csv")
    (tmp_path / "empty.csv").write_text("curve_id,organ,time_h,conc_mg_l\na,blood,0,\n")
    with pytest.raises(InputError, match="is not a number|holds no concentration"):
        nca_file(tmp_path / "empty.csv", tmp_path / "out.csv")


@pytest.mark.real_data
def test_measured_human_curves_agree_with_the_clearance_that_comes_with_them(perfuse_data, tmp_path):
    """The data's own NCA column (linear-up/log-down, ours differ in the slope's rules) on well-sampled curves."""
    nca_file(perfuse_data / "human_iv_curves.csv", tmp_path / "out.csv")
    found = pl.read_csv(tmp_path / "out.csv", infer_schema_length=None)
    given = (
        pl.read_csv(perfuse_data / "human_iv_curves.csv", infer_schema_length=None)
        .group_by("curve_id").agg(pl.first("nca_cl_or_clF_L_per_h_per_kg"), pl.first("body_weight_used_kg"))
    )  # fmt: skip
    both = found.join(given, on="curve_id").filter(
        (pl.col("extrapolated_fraction") < 0.2) & pl.col("cl_l_h").is_not_null()
    )
    ratio = both["cl_l_h"] / (both["nca_cl_or_clF_L_per_h_per_kg"] * both["body_weight_used_kg"])
    assert len(ratio.drop_nulls()) > 40
    assert 0.95 < ratio.drop_nulls().median() < 1.05

"""Prediction files: tidy, whole or not at all, with a word on the training range."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from perfuse.data.drug_file import read_drug_file
from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation.predict import predict_file
from perfuse.evaluation.runs import open_run
from perfuse.evaluation.training_distance import training_distance
from perfuse.training.distance import TrainingDistance
from perfuse.training.distance_file import DISTANCE_FILE

DRUG = 'name = "x"\nmw_g_mol = 300.0\nlogp = 2.0\nfup = 0.3\nclint_ul_min_million_cells = 10.0\n'
COLUMNS = [
    "curve_id", "drug", "organ", "matrix", "time_h", "conc_mg_l", "lower_90", "upper_90", "outside_training",
    "training_distance_percentile",
]  # fmt: skip


@pytest.fixture
def drug(tmp_path: Path) -> Path:
    path = tmp_path / "drug.toml"
    path.write_text(DRUG + "dose_mg = 100\n")
    return path


def test_a_drug_becomes_fourteen_organ_curves(rates_run: Path, drug: Path, tmp_path: Path) -> None:
    report = predict_file(rates_run, drug, tmp_path / "out.csv")
    frame = pl.read_csv(tmp_path / "out.csv")
    assert frame.columns == COLUMNS and len(frame) == 1400 == report.n_rows and report.n_curves == 1
    assert frame["organ"].n_unique() == 14 and frame["conc_mg_l"].min() >= 0
    assert frame.filter(pl.col("organ") == "blood")["matrix"].unique().to_list() == ["plasma"]
    assert frame.filter(pl.col("organ") == "liver")["matrix"].unique().to_list() == ["tissue_homogenate"]
    assert frame["time_h"].max() == 24 and "1 curves, 1400 rows" in report.lines()[0]


def test_doses_scale_and_parquet_keeps_types(rates_run: Path, drug: Path, tmp_path: Path) -> None:
    time = [0.5, 1.0, 30.0]
    predict_file(rates_run, drug, tmp_path / "a.parquet", time_h=time)
    predict_file(rates_run, drug, tmp_path / "b.parquet", time_h=time, dose_mg=200, matrix="blood_venous")
    a, b = (pl.read_parquet(tmp_path / f"{n}.parquet") for n in "ab")
    assert a.columns == COLUMNS and a["outside_training"].dtype == pl.Boolean
    ratio = (b["conc_mg_l"] / a["conc_mg_l"]).to_numpy().reshape(14, 3)
    assert ratio[1:] == pytest.approx(2.0)  # tissues: linear in dose
    assert ratio[0] == pytest.approx(2.0 * ratio[0, 0] / 2)  # blood against plasma: B:P as well
    assert a["time_h"].unique().sort().to_list() == time


def test_a_csv_of_drugs_and_doses(rates_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text(
        "name,mw_g_mol,logp,fup,clint_ul_min_million_cells,dose_mg,dose_time_h\n"
        "a,300,2,0.3,10,100,0\na,300,2,0.3,10,50,12\nb,400,1,0.9,2,10,0\n"
    )
    report = predict_file(rates_run, path, tmp_path / "out.csv", time_h=[1.0, 13.0], batch_size=1)
    assert report.n_curves == 2
    assert pl.read_csv(tmp_path / "out.csv")["curve_id"].unique().sort().to_list() == ["a", "b"]
    with pytest.raises(InputError, match="belong into the CSV"):
        predict_file(rates_run, path, tmp_path / "out2.csv", dose_mg=5)


def test_inputs_outside_the_training_range_are_flagged(rates_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(DRUG + "dose_mg = 100\nkp.brain = 90000.0\n")
    report = predict_file(rates_run, path, tmp_path / "out.csv")
    assert "kp_brain" in report.outside["x"] and "fup (constant in training)" in report.outside["x"]
    assert pl.read_csv(tmp_path / "out.csv")["outside_training"].all()
    assert any("outside the training range: x: " in line for line in report.lines())


def test_training_range_in_numbers(rates_run: Path, t1_table: object) -> None:
    known = training_distance(open_run(rates_run))
    assert isinstance(known, TrainingDistance)
    table = t1_table.take([0, 1])  # type: ignore[attr-defined]
    assert known.outside_range(known.measure(table)) == ["", ""]
    at = known.names.index("cl_hepatic_l_h")
    table.elimination_l_h[1, 0] = np.exp(known.mean[at] + 4.5 * known.sd[at])
    assert known.outside_range(known.measure(table)) == ["", "cl_hepatic_l_h (4.5 sd)"]


def test_the_range_outlives_the_training_data(run_maker: object, t1_table: object, tmp_path: Path, drug: Path) -> None:
    from perfuse.data.store import write_dataset

    data = write_dataset([t1_table], tmp_path / "data", generator={}, seed=0)  # type: ignore[list-item]
    from perfuse.data.sources import open_source

    run = run_maker(tmp_path / "run", open_source(data), data, "mlp")  # type: ignore[operator]
    data.rename(tmp_path / "moved")
    report = predict_file(run, drug, tmp_path / "a.csv")
    assert report.caveat and pl.read_csv(tmp_path / "a.csv")["outside_training"].null_count() == 1400
    (tmp_path / "moved").rename(data)
    predict_file(run, drug, tmp_path / "b.csv")
    data.rename(tmp_path / "moved")
    assert predict_file(run, drug, tmp_path / "c.csv").caveat == ""
    (run / DISTANCE_FILE).write_text("{}")
    with pytest.raises(InputError, match=f"{DISTANCE_FILE} is damaged"):
        predict_file(run, drug, tmp_path / "d.csv")
    assert not (tmp_path / "d.csv").exists()


def test_an_existing_file_is_kept_unless_forced(rates_run: Path, drug: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        predict_file(rates_run, drug, out)
    assert out.read_text() == "mine"
    predict_file(rates_run, drug, out, force=True)
    assert out.read_text().startswith("curve_id")


def test_regimens_in_toml(tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_text(
        DRUG + 'body_weight_kg = 80\nmatrix = "serum"\n[[dose]]\namount_mg = 5\n[[dose]]\namount_mg = 6\ntime_h = 12\n'
        "duration_h = 2\n"
    )
    _, regimen = read_drug_file(path)
    assert [(d.time_h, d.amount_mg, d.duration_h, d.route) for d in regimen.doses] == [
        (0, 5, 0, "iv_bolus"), (12, 6, 2, "iv_infusion"),
    ]  # fmt: skip
    assert regimen.body_weight_kg == 80 and regimen.matrix == "serum"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (DRUG, "dose_mg is missing"),
        (DRUG + "dose_mg = -1\n", "amount_mg"),
        (DRUG + 'dose_mg = "much"\n', "is not a number"),
        (DRUG + "duration_h = 1\n", "needs a dose"),
        (DRUG + "dose_mg = 1\n[[dose]]\namount_mg = 1\n", "say the same thing twice"),
        (DRUG + "dose = 3\n", "no list of tables"),
        (DRUG + "[[dose]]\ntime_h = 1\n", "amount_mg is missing"),
        (DRUG + "[[dose]]\namount_mg = 1\nwhen = 3\n", "when is no known key"),
        (DRUG + '[[dose]]\namount_mg = 1\nroute = "oral"\n', "ka_1_h is missing.*absorption rate"),
        (DRUG + '[[dose]]\namount_mg = 1\nroute = "nasal"\n', "route is not modelled"),
        (DRUG + "[[dose]]\namount_mg = 1\nroute = 3\n", "route is no text"),
        (DRUG + "dose_mg = 1\nmatrix = 3\n", "matrix is no text"),
        (DRUG + 'dose_mg = 1\nmatrix = "tears"\n', "matrix is unknown"),
        (DRUG + 'dose_mg = 1\nmatrix = ""\n', "matrix is unknown"),
        (DRUG + 'dose_mg = 1\nmatrix = "blood_arterial"\n', "matrix cannot be modelled.*reported blood is venous"),
        (DRUG + 'dose_mg = 1\nmatrix = "tissue_homogenate"\n', "matrix does not fit blood"),
        (DRUG + "dose_mg = 1\nbody_weight_kg = -5\n", "body_weight_kg"),
        (DRUG + "dose_mg = 1\nbody_weight_kg = 0\n", "body_weight_kg is not allowed .got 0 kg."),
        (DRUG + "dose_mg = 1\nkp.liver = 1e-15\n", "kp.liver is not allowed"),
        (DRUG + "dose_mg = 1\nwrong = 1\n", "wrong is no known key"),
        (DRUG.replace("0.3", "3.0") + "dose_mg = 1\n", "fup"),
        ("name = ", "no valid TOML"),
    ],
)
def test_bad_drug_files_are_refused(rates_run: Path, tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "d.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=match) as error:
        predict_file(rates_run, path, tmp_path / "out.csv")
    assert "\n" not in str(error.value) and not (tmp_path / "out.csv").exists()


def test_bad_arguments_are_refused(rates_run: Path, drug: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    cases = [
        ((rates_run, drug, tmp_path / "out.xlsx"), {}, "unknown kind"),
        ((rates_run, tmp_path / "d.smi", out), {}, "unknown kind"),
        ((rates_run, tmp_path / "gone.toml", out), {}, "cannot be read"),
        ((tmp_path / "gone", drug, out), {}, "does not exist"),
        ((rates_run, drug, out), {"time_h": [2.0, 1.0]}, "not increasing"),
        ((rates_run, drug, out), {"time_h": [-1.0]}, "negative or not finite"),
        ((rates_run, drug, out), {"duration_h": 1.0}, "needs a dose"),
        ((rates_run, drug, out), {"dose_mg": 0.0}, "amount_mg"),
        ((rates_run, drug, out), {"body_weight_kg": 900.0}, "body_weight_kg"),
        ((rates_run, drug, out), {"body_weight_kg": 0.0}, "body_weight_kg is not allowed .got 0 kg."),
        ((rates_run, drug, out), {"matrix": "arterial_plasma"}, "matrix cannot be modelled.*reported blood is venous"),
        ((rates_run, drug, out), {"matrix": ""}, "matrix is unknown"),
    ]
    for paths, options, match in cases:
        with pytest.raises(InputError, match=match):
            predict_file(*paths, **options)  # type: ignore[arg-type]
    assert not out.exists()


def test_a_prediction_that_is_not_finite_leaves_nothing(
    rates_run: Path, drug: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "perfuse.evaluation.predict.model_predictor", lambda *_: lambda t: np.full(t.conc_mg_l.shape, np.nan)
    )
    with pytest.raises(PerfuseError, match="curve x, blood at 0 h is not finite"):
        predict_file(rates_run, drug, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()

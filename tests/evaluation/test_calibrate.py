"""``perfuse calibrate`` end to end: what it leaves, what evaluate, predict, report and info make of it; refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from perfuse.cli import run as perfuse
from perfuse.data.simulate import simulate_task
from perfuse.data.sources import open_source
from perfuse.data.store import write_dataset
from perfuse.errors import InputError
from perfuse.evaluation.calibrate import calibrate_run
from perfuse.evaluation.coverage import NOT_CALIBRATED, coverage_sentence
from perfuse.evaluation.evaluate import evaluate_run
from perfuse.evaluation.predict import predict_file
from perfuse.evaluation.report import build_report
from perfuse.evaluation.runs import open_run
from perfuse.info import describe
from perfuse.pk.physiology import ORGANS

DRUG = (
    'name = "x"\nmw_g_mol = 300.0\nlogp = 2.0\nfup = 1.0\nbp_ratio = 1.0\ncl_hepatic_l_h = 7.4\ncl_renal_l_h = 4.5\n'
    "dose_mg = 100\n"
)
Capture = pytest.CaptureFixture[str]


def few_times(task: str, n: int, seed: int, folder: Path) -> Path:
    """A dataset of a task at ten of its times, so that tests stay fast."""
    table = simulate_task(task, n, seed=seed)
    at = np.r_[0, 1, 3, 6, 11, 20, 35, 55, 75, 99]
    table = replace(
        table, time_h=table.time_h[:, at], conc_mg_l=table.conc_mg_l[..., at], censored=table.censored[..., at]
    )
    return write_dataset([table], folder, generator={"task": task}, seed=seed)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Drugs to train on, to calibrate on, and fresh ones."""
    folder = tmp_path_factory.mktemp("calibrate")
    sizes = {"training": (60, 1), "calibration": (600, 2), "fresh": (400, 3), "few": (60, 4)}
    return {name: few_times("T1", n, seed, folder / name) for name, (n, seed) in sizes.items()}


@pytest.fixture(scope="module")
def calibrated(data: dict[str, Path], run_maker: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never learned anything, calibrated: its intervals must hold all the same."""
    run = run_maker(tmp_path_factory.mktemp("run") / "mlp", open_source(data["training"]), data["training"], "mlp")
    report = calibrate_run(run, data["calibration"])
    assert report.path == run / "best" / "calibration.json" and report.calibration.n_drugs == 600
    assert "50%, 80%, 90%, 95% intervals from 600 drugs, 600 curves" in report.lines()[0]
    return run


@pytest.fixture
def copy(calibrated: Path, tmp_path: Path) -> Path:
    """A copy of the calibrated run that a test may break."""
    return Path(shutil.copytree(calibrated, tmp_path / "run"))


def test_intervals_hold_on_fresh_drugs_and_in_each_organ(calibrated: Path, data: dict[str, Path]) -> None:
    e = evaluate_run(calibrated, data["fresh"], baselines=False, save=False)
    coverage = e["coverage"]
    assert coverage["calibrated"] and coverage["note"] == "" and coverage["drugs"] == 600
    overall = coverage["overall"]
    assert overall is not None and overall["n_values"] == e["n_values"]
    assert 0.87 < (overall["coverage_90"] or 0) < 0.93 and 0.44 < (overall["coverage_50"] or 0) < 0.56
    assert (overall["coverage_50"] or 0) < (overall["coverage_80"] or 0) < (overall["coverage_95"] or 0) < 0.98
    assert set(coverage["per_organ"]) == set(ORGANS) and set(coverage["windows"]) == set(e["windows"])
    organs = [s["coverage_90"] or 0 for s in coverage["per_organ"].values()]
    assert min(organs) > 0.84 and max(organs) < 0.955
    assert sum(s["n_values"] for s in coverage["windows"].values()) == e["n_values"]
    assert (overall["fold_width_90"] or 0) > 2 > 20 * (overall["coverage_90_se"] or 1)  # an untrained model is unsure
    distance = e["training_distance"]
    assert distance["note"] == "" and 0 < (distance["median_percentile"] or 0) < 100
    assert "calibrated on 600 drugs, contain" in coverage_sentence(coverage)


def test_calibration_drugs_are_not_judged_on(calibrated: Path, data: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no curve that the run has not seen.*calibrated on: 600"):
        evaluate_run(calibrated, data["calibration"], baselines=False, save=False)
    table = open_source(data["calibration"]).take(np.arange(3))
    renamed = replace(table, compound_id=np.asarray(["a", "b", "c"]))  # other names, the same drug parameters
    same = write_dataset([renamed], tmp_path / "same", generator={}, seed=None)
    with pytest.raises(InputError, match="calibrated on: 3"):
        evaluate_run(calibrated, same, baselines=False, save=False)


def test_predictions_carry_intervals_and_distance(calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "drug.toml").write_text(DRUG)
    report = predict_file(calibrated, tmp_path / "drug.toml", tmp_path / "out.csv", time_h=[0.0, 1.0, 8.0])
    frame = pl.read_csv(tmp_path / "out.csv")
    late = frame.filter(pl.col("time_h") > 0)
    assert frame.filter(pl.col("time_h") == 0)["lower_90"].null_count() == 14
    assert (late["lower_90"] <= late["conc_mg_l"]).all() and (late["upper_90"] >= late["conc_mg_l"]).all()
    assert late["lower_90"].null_count() == late["upper_90"].null_count() == 0
    percentile = frame["training_distance_percentile"]
    assert percentile.n_unique() == 1 and 0 <= percentile[0] <= 100
    assert report.intervals == "" and report.caveat == ""


def test_a_far_drug_is_named(calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "drug.toml").write_text(DRUG.replace("7.4", "74") + "kp.brain = 900.0\n")
    report = predict_file(calibrated, tmp_path / "drug.toml", tmp_path / "out.parquet", time_h=[1.0])
    assert report.distant == {"x": 100.0}
    assert "far from the training drugs: x: percentile 100" in "\n".join(report.lines())
    assert pl.read_parquet(tmp_path / "out.parquet")["training_distance_percentile"].unique().to_list() == [100.0]


def test_a_run_without_calibration_says_so(copy: Path, data: dict[str, Path], tmp_path: Path) -> None:
    (copy / "best" / "calibration.json").unlink()
    e = evaluate_run(copy, data["few"], baselines=False)
    assert e["coverage"] == {
        "calibrated": False, "note": NOT_CALIBRATED, "drugs": None, "overall": None, "per_organ": {}, "windows": {},
    }  # fmt: skip
    assert e["training_distance"]["median_percentile"] is not None  # the distance needs no calibration
    (tmp_path / "drug.toml").write_text(DRUG)
    report = predict_file(copy, tmp_path / "drug.toml", tmp_path / "out.csv", time_h=[1.0])
    frame = pl.read_csv(tmp_path / "out.csv")
    assert frame["lower_90"].null_count() == frame["upper_90"].null_count() == 14
    assert frame["training_distance_percentile"].null_count() == 0 and report.intervals == NOT_CALIBRATED
    assert "not calibrated" in build_report(copy).read_text(encoding="utf-8")


def test_the_report_shows_coverage(copy: Path, data: dict[str, Path]) -> None:
    evaluate_run(copy, data["fresh"], baselines=False)
    page = build_report(copy).read_text(encoding="utf-8")
    assert "Coverage of the 90 % intervals" in page and "calibrated on 600 drugs, contain" in page
    assert "Distance to the training drugs: the median judged curve" in page and "not calibrated" not in page


def test_info_names_the_calibration(copy: Path) -> None:
    facts = describe(copy / "best")["calibration"]
    assert facts["n_drugs"] == 600 and facts["weights"] == "these" and facts["sha256"] == "as in calibration.json"
    assert describe(copy)["best"]["calibration"] == facts
    (copy / "best" / "calibration.safetensors").write_bytes(b"")
    edit(copy, model_sha256="0" * 64)
    broken = describe(copy / "best")["calibration"]
    assert broken["weights"].startswith("OTHERS") and broken["sha256"].startswith("NOT")


def test_other_weights_are_refused_until_calibrated_again(copy: Path, data: dict[str, Path], capsys: Capture) -> None:
    edit(copy, model_sha256="0" * 64)
    assert perfuse(["evaluate", str(copy), str(data["few"])]) == 2
    assert "calibration belongs to other weights than the checkpoint's" in capsys.readouterr().err
    assert perfuse(["calibrate", str(copy), str(data["calibration"]), "--quiet"]) == 0
    assert open_run(copy).calibration is not None
    assert capsys.readouterr().out == ""


def test_a_new_checkpoint_drops_the_calibration(copy: Path) -> None:
    from perfuse.training.checkpoint import load_checkpoint, save_checkpoint

    old = load_checkpoint(copy / "best", with_optimizer=True)
    save_checkpoint(copy / "best", old.state, old.model, old.optimizer)
    assert open_run(copy).calibration is None


def test_few_drugs_need_a_flag_and_leave_a_doubt(copy: Path, data: dict[str, Path], capsys: Capture) -> None:
    before = (copy / "best" / "calibration.json").read_bytes()
    assert perfuse(["calibrate", str(copy), str(data["few"])]) == 2
    error = capsys.readouterr().err
    assert (
        "too few drugs to calibrate 90% intervals (got 60 drugs); allowed: >= 500" in error and "--allow-few" in error
    )
    assert (copy / "best" / "calibration.json").read_bytes() == before
    assert perfuse(["calibrate", str(copy), str(data["few"]), "--allow-few"]) == 0
    assert "warning: calibrated on 60 drugs, fewer than the 500" in capsys.readouterr().out
    coverage = evaluate_run(copy, data["fresh"], baselines=False, save=False)["coverage"]
    assert "60 drugs, fewer than the 500" in coverage["note"] and "coverage may be off" in coverage_sentence(coverage)


def test_the_runs_own_data_without_a_calibration_part_is_refused(
    calibrated: Path, data: dict[str, Path], capsys: Capture
) -> None:
    assert perfuse(["calibrate", str(calibrated), str(data["training"])]) == 2
    error = capsys.readouterr().err
    assert "it kept no calibration split" in error and "split.calibration_fraction > 0" in error


@pytest.mark.parametrize("model", ["lstm", "mlp"])
def test_from_training_to_intervals_on_one_data_set(
    data: dict[str, Path], model: str, tmp_path: Path, capsys: Capture
) -> None:
    run, source = tmp_path / "run", str(data["calibration"])
    small = ["--hidden", "8", "--layers", "1"]
    line = [
        "train",
        source,
        "--out",
        str(run),
        "--model",
        model,
        "--epochs",
        "1",
        "--calibration-fraction",
        "0.1",
        *small,
    ]
    assert perfuse([*line, "--no-tensorboard"]) == 0
    assert "next: perfuse calibrate" in capsys.readouterr().out
    assert perfuse(["calibrate", str(run), source, "--allow-few"]) == 0
    out = capsys.readouterr().out
    assert "intervals from 60 drugs, 60 curves" in out and "(calibration split)" in out
    e = evaluate_run(run, Path(source), baselines=False)
    assert e["n_curves"] == 60 and e["data"]["scope"] == "test split"  # a tenth: calibration drugs are others
    assert 0.7 < ((e["coverage"]["overall"] or {}).get("coverage_90") or 0) <= 1
    kept = json.loads((run / "best" / "calibration.json").read_text())
    opened = open_run(run)
    assert set(kept["compound_ids"]) == opened.calibration_compounds
    assert not opened.calibration_compounds & (opened.seen_compounds | opened.test_compounds)


def test_without_training_drugs_there_is_no_calibration(
    data: dict[str, Path], run_maker: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(data["training"], moved)
    run = run_maker(tmp_path / "run", open_source(moved), moved, "mlp")
    shutil.rmtree(moved)
    assert perfuse(["calibrate", str(run), str(data["calibration"])]) == 2
    assert "the distance to its training drugs is not known; hint: the run's training data" in capsys.readouterr().err
    e = evaluate_run(run, data["few"], baselines=False, save=False)
    assert e["training_distance"]["median_percentile"] is None and "not at hand" in e["training_distance"]["note"]


def edit(run: Path, **changes: object) -> None:
    """Change keys of a run's ``calibration.json``."""
    path = run / "best" / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

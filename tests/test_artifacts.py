"""What published versions wrote is read by this one and gives the same numbers: see tests/artifacts/README.md."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from perfuse.config import MODEL_CONFIGS
from perfuse.data import store
from perfuse.data.sources import open_source
from perfuse.data.store import CurveStore
from perfuse.data.table import CurveTable, to_batch
from perfuse.errors import InputError
from perfuse.evaluation import evaluate, export
from perfuse.evaluation.report import build_report
from perfuse.evaluation.results import load_evaluation
from perfuse.evaluation.runs import open_run
from perfuse.evaluation.stored import check_evaluation
from perfuse.info import describe
from perfuse.models.exported import INPUTS
from perfuse.training import record
from perfuse.training.calibration_file import CalibrationRecord
from perfuse.training.load import load_model
from perfuse.training.resume import stored_config
from perfuse.training.run import train

ARTIFACTS = Path(__file__).resolve().parent / "artifacts"
RTOL = 1e-6
"""Of predictions. Vector instructions of one machine (none, AVX2, AVX-512) differ by up to 9e-8."""
ROWS = (0, 3, 7, 11)
"""What ``scripts/make_artifacts.py`` kept the values of."""
DATASETS = sorted(p for p in ARTIFACTS.glob("dataset-*/*") if p.is_dir())
CHECKPOINTS = sorted(p for p in ARTIFACTS.glob("checkpoint-*/*") if p.is_dir())
WHOLE = [p for p in CHECKPOINTS if (p / "best").is_dir()]
CALIBRATED = [p for p in CHECKPOINTS if (p / "last" / "calibration.json").is_file()]
REFUSED = sorted(ARTIFACTS.glob("refused/*"))
pytestmark = pytest.mark.skipif(not ARTIFACTS.is_dir(), reason="artifacts are in the repository, not in packages")


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def expected(path: Path) -> dict[str, np.ndarray]:
    with np.load(path.with_name(f"{path.name}-expected.npz"), allow_pickle=False) as stored:
        return dict(stored)


def data_of(run: Path) -> Path:
    return ARTIFACTS / "dataset-2" / run.with_name(f"{run.name}.txt").read_text(encoding="utf-8").strip()


def rows_of(run: Path) -> CurveTable:
    return CurveStore.open(data_of(run)).take(ROWS)


@pytest.mark.parametrize("folder", DATASETS, ids=name_of)
def test_a_dataset_of_every_schema_reads_as_it_was_written(folder: Path) -> None:
    table = CurveStore.open(folder, verify=True).take(ROWS)
    for column, values in expected(folder).items():
        np.testing.assert_array_equal(table.column(column), values, column)


@pytest.mark.parametrize("run", CHECKPOINTS, ids=name_of)
def test_a_checkpoint_of_every_schema_predicts_what_it_did(run: Path) -> None:
    table = rows_of(run)
    with torch.inference_mode():
        predicted = load_model(run).model(to_batch(table)).to(torch.float64).numpy()
    wanted = expected(run)["conc_mg_l"]
    assert wanted.shape == table.conc_mg_l.shape and wanted.max() > 0.1
    np.testing.assert_allclose(predicted, wanted, rtol=RTOL, atol=0)


@pytest.mark.parametrize("run", CALIBRATED, ids=name_of)
def test_a_calibration_of_every_schema_gives_the_intervals_it_did(run: Path) -> None:
    table, wanted = rows_of(run), expected(run)
    calibration = open_run(run).calibration
    assert calibration is not None
    for name, bound in zip(("lower", "upper"), calibration.bounds(table, wanted["conc_mg_l"]), strict=True):
        np.testing.assert_allclose(bound, wanted[f"{name}_mg_l"], rtol=RTOL, atol=0)
    assert (wanted["upper_mg_l"] > wanted["lower_mg_l"]).any()


@pytest.mark.parametrize("run", WHOLE, ids=name_of)
def test_a_run_of_every_schema_can_be_looked_at_and_continued(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    assert describe(copy / "last")["kind"] == "checkpoint"
    config = stored_config(copy)
    before = load_model(copy / "last").meta.progress
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 10})})
    result = train(open_source(data_of(run)), longer, copy, resume=True)
    assert before.step == 16 and result.steps == 20
    after = load_model(copy / "last").meta
    assert after.schema_version == record.SCHEMA_VERSION and after.featuriser is not None
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 11))


@pytest.mark.parametrize("folder", sorted(ARTIFACTS.glob("evaluation-*")), ids=lambda p: p.name)
def test_an_evaluation_of_every_schema_reads_and_enters_a_report(folder: Path, tmp_path: Path) -> None:
    stored, curves = load_evaluation(folder)
    evaluation = check_evaluation(stored, str(folder))
    assert evaluation["n_values"] > 0 and curves.density.sum() > 0
    run = Path(shutil.copytree(WHOLE[0], tmp_path / "run"))
    shutil.copytree(folder, run / "evaluation")
    assert f"{evaluation['gmfe']:.3f}" in build_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(ARTIFACTS.glob("export-*/model.*")), ids=name_of)
def test_an_exported_model_of_every_schema_runs(path: Path, tmp_path: Path) -> None:
    kind = path.suffixes[0].removeprefix(".")
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    (tmp_path / "model").write_bytes(gzip.decompress(path.read_bytes()))
    with np.load(path.parent / "expected.npz", allow_pickle=False) as stored:
        inputs = tuple(torch.from_numpy(stored[name]) for name in INPUTS)
        wanted = stored["conc_mg_l"]
    found = export.runner(tmp_path / "model", kind, threads=1)(inputs)
    assert export.largest_error(found, torch.from_numpy(wanted)) < RTOL


@pytest.mark.parametrize("run", REFUSED, ids=lambda p: p.name)
def test_checkpoints_that_cannot_be_upgraded_are_refused_in_one_line(run: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_model(run)
    text = str(caught.value)
    assert "is missing: it is of another model or version" in text and "train again" in text
    assert "\n" not in text and len(text) < 300


def test_the_current_version_of_every_schema_has_a_stored_artifact() -> None:
    """Fails when a schema changes without one: scripts/make_artifacts.py makes it."""
    newest = {
        "dataset": store.SCHEMA_VERSION, "checkpoint": record.SCHEMA_VERSION, "evaluation": evaluate.SCHEMA_VERSION,
        "export": export.SCHEMA_VERSION,
    }  # fmt: skip
    missing = [f"{kind}-{n}" for kind, n in newest.items() if not (ARTIFACTS / f"{kind}-{n}" / "about.json").is_file()]
    assert missing == []
    calibrations = {json.loads((r / "last" / "calibration.json").read_text())["schema_version"] for r in CALIBRATED}
    assert CalibrationRecord.model_fields["schema_version"].default in calibrations
    for kind, versions in (("dataset", store.SCHEMA_VERSION), ("checkpoint", record.SCHEMA_VERSION)):
        assert all((ARTIFACTS / f"{kind}-{n}").is_dir() for n in range(1, versions + 1))


def test_checkpoints_are_of_every_model_and_say_what_they_read() -> None:
    names = {json.loads((r / "last" / "state.json").read_text())["config"]["model"]["name"] for r in CHECKPOINTS}
    assert names == set(MODEL_CONFIGS)
    recorded = {r.parent.name: load_model(r / "last").meta.featuriser for r in CHECKPOINTS}
    assert recorded["checkpoint-1"] is None
    assert all(recorded[f"checkpoint-{n}"] is not None for n in range(2, record.SCHEMA_VERSION + 1))


def test_artifacts_are_small_and_each_is_described() -> None:
    sizes = {path: path.stat().st_size for path in ARTIFACTS.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 60_000
    assert sum(sizes.values()) < 950_000
    readme = (ARTIFACTS / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in ARTIFACTS.iterdir() if p.is_dir() and f"`{p.name}`" not in readme] == []


@pytest.mark.parametrize("change", ["order", "unit", "constant"])
def test_a_checkpoint_that_read_something_else_is_refused(change: str, tmp_path: Path) -> None:
    """As a version that listed organs, or computed a column, otherwise would have written it."""
    run = Path(shutil.copytree(ARTIFACTS / f"checkpoint-{record.SCHEMA_VERSION}" / "mlp", tmp_path / "run"))
    for name in ("best", "last"):
        path = run / name / "state.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        reads = state["featuriser"]
        if change == "order":
            nodes = reads["nodes"]["$tuple"]
            nodes[1], nodes[2] = nodes[2], nodes[1]
        elif change == "unit":
            reads["features"]["flat"]["$tuple"][0]["unit"] = "mL"
        else:
            reads["constants"]["ph_plasma"] = 7.0
        path.write_text(json.dumps(state), encoding="utf-8")
    words = {
        "order": "featuriser: nodes, number 2 is not what this version reads",
        "unit": "featuriser: features of flat, number 1 is not what this version reads (got ln volume",
        "constant": "featuriser: constant ph_plasma is not what this version reads (got 7)",
    }[change]
    with pytest.raises(InputError) as caught:
        load_model(run)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError) as caught:
        train(open_source(data_of(ARTIFACTS / f"checkpoint-{record.SCHEMA_VERSION}" / "mlp")), stored_config(run), run,
              resume=True)  # fmt: skip
    assert words in str(caught.value)

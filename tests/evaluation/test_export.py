"""Exported models: equal to the model itself, for any number of curves, or one clear line why not."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from perfuse.cli import run
from perfuse.data.simulate import simulate_task
from perfuse.data.table import CurveTable, to_batch
from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation import export
from perfuse.evaluation.export import export_run, runner
from perfuse.evaluation.runs import open_run
from perfuse.models.exported import tensors_of


@pytest.fixture(scope="module")
def other_curves() -> CurveTable:
    return simulate_task("T1", 3, seed=99)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_the_file_gives_the_models_curves_for_any_number_of_them(
    kind: str, rates_run: Path, t1_dataset: Path, other_curves: CurveTable, tmp_path: Path
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    out = tmp_path / f"model.{kind}"
    report = export_run(rates_run, t1_dataset, out, kind)  # type: ignore[arg-type]
    assert report.largest_error < 1e-7
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert str(Path(export.__file__).parents[1]).encode() not in out.read_bytes(), "it names folders of this machine"
    assert f"{out}: one bolus at time 0, 100 times from 0 to 24 h" in report.line()
    model, again = open_run(rates_run).model, runner(out, kind, threads=1)
    for n in (1, 3):
        batch = to_batch(other_curves.take(np.arange(n)))
        with torch.inference_mode():
            torch.testing.assert_close(again(tensors_of(batch)), model(batch), rtol=1e-6, atol=1e-9)


def test_one_curve_is_enough_to_export_on(
    rates_run: Path, other_curves: CurveTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = SimpleNamespace(source=other_curves.take(np.arange(1)))
    monkeypatch.setattr(export, "open_judged_data", lambda path, topology: one)
    report = export_run(rates_run, tmp_path / "data", tmp_path / "model.pt2", "pt2")
    assert report.curves == 1 and report.largest_error < 1e-7
    batch = to_batch(other_curves)
    with torch.inference_mode():
        expected = open_run(rates_run).model(batch)
    found = runner(tmp_path / "model.pt2", "pt2")(tensors_of(batch))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_a_file_that_differs_is_refused(
    rates_run: Path, t1_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.pt2"
    monkeypatch.setattr(export, "write_model", lambda _curves, _example, path, _kind: path.write_bytes(b""))
    monkeypatch.setattr(export, "runner", lambda _path, _kind: lambda inputs: inputs[0][:, :, None].expand(-1, -1, 100))
    with pytest.raises(
        PerfuseError, match=r"differs from .* of an organ's peak \(allowed: 1e-05\); nothing was written"
    ):
        export_run(rates_run, t1_dataset, out, "pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"time_h": lambda x: x**1.01}, "time_h is no even grid that all curves share"),
        ({"dose_time_h": lambda x: x + 1}, "doses are not one bolus at time 0 each"),
        ({"vmax_mg_h": lambda x: np.ones((len(x), 1)), "km_u_mg_l": lambda x: np.ones((len(x), 1))}, "saturable"),
    ],
)
def test_curves_that_cannot_be_exported_are_named(
    columns: dict[str, Callable[[np.ndarray], np.ndarray]], says: str, rates_run: Path, other_curves: CurveTable,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    table = replace(other_curves, **{name: change(getattr(other_curves, name)) for name, change in columns.items()})
    monkeypatch.setattr(export, "open_judged_data", lambda path, topology: SimpleNamespace(source=table))
    with pytest.raises(InputError, match=says):
        export_run(rates_run, tmp_path / "data", tmp_path / "m", "pt2")


def test_missing_packages_are_named(
    rates_run: Path, t1_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PerfuseError, match=r"^onnxruntime is not installed: pip install 'perfuse\[export\]'"):
        export_run(rates_run, t1_dataset, tmp_path / "m", "onnx")


def test_what_cannot_be_exported_is_named(
    rates_run: Path, untrained_run: Path, t1_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(untrained_run), str(tmp_path / "m"), "--data", str(t1_dataset), "--to", "pt2"]) == 2
    error = capsys.readouterr().err
    assert error == "perfuse: error: model cannot be exported (got mlp); allowed: flux, loglinear-rates\n"
    with pytest.raises(InputError, match="tolerance"):
        export_run(rates_run, t1_dataset, tmp_path / "m", "pt2", tolerance=0.0)
    assert not (tmp_path / "m").exists()

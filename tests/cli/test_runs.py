"""One run id from the log to the report, and ``perfuse runs`` by its own command line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perfuse.cli import run
from perfuse.cli_options import TrainOptions, build_config

Capture = pytest.CaptureFixture[str]


def perfuse(*arguments: str | Path) -> None:
    assert run([str(a) for a in arguments]) == 0


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, t1_dataset: Path) -> Path:
    """Two judged runs; ``a`` was resumed once."""
    folder = tmp_path_factory.mktemp("two")
    small = ("--model", "mlp", "--hidden", "8", "--batch-size", "8", "--no-tensorboard", "--quiet")
    perfuse("train", t1_dataset, "--out", folder / "a", "--epochs", "2", *small)
    perfuse("train", t1_dataset, "--out", folder / "a", "--resume", "--epochs", "3", "--quiet")
    perfuse("train", t1_dataset, "--out", folder / "b", "--epochs", "3", "--lr", "0.1", *small)
    for name in "ab":
        perfuse("evaluate", folder / name, t1_dataset, "--no-baselines", "--quiet")
    return folder


def listed(capsys: Capture, *arguments: str | Path) -> Any:
    capsys.readouterr()
    perfuse("runs", *arguments, "--json")
    return json.loads(capsys.readouterr().out)


def test_one_id_goes_through_everything(two: Path, t1_dataset: Path, capsys: Capture) -> None:
    folder = two / "a"
    provenance = json.loads((folder / "provenance.json").read_text())
    run_id = provenance["run_id"]
    assert len(run_id) == 32
    assert [s["session"] for s in provenance["sessions"]] == [1, 2]
    for name in ("log.jsonl", "metrics.jsonl"):
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        assert {line["run_id"] for line in lines} == {run_id}
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [(e["event"], e["session"]) for e in log if e["event"] in ("run_started", "resumed", "ended")] == [
        ("run_started", 1), ("ended", 1), ("resumed", 2), ("ended", 2)
    ]  # fmt: skip
    evaluation = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert evaluation["model"]["run_id"] == evaluation["provenance"]["reproduction"]["run_id"] == run_id
    assert len(evaluation["model"]["weights_sha256"]) == len(evaluation["data"]["rows_sha256"]) == 64
    perfuse("report", folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert run_id in page
    assert "bitwise: every byte" in page
    assert "resumed at step" in page
    commands = evaluation["provenance"]["reproduction"]["commands"]
    assert len(commands) == 2
    capsys.readouterr()
    perfuse("info", folder)
    text = capsys.readouterr().out
    assert f"run_id: {run_id}" in text
    assert all(command in text for command in commands)  # whole, however long
    perfuse("evaluate", folder, t1_dataset, "--out", two / "elsewhere", "--no-baselines")
    text = capsys.readouterr().out
    assert f"Run id {run_id}" in text
    assert all(command in text for command in commands)


def test_train_prints_how_to_do_it_again(two: Path, t1_dataset: Path, capsys: Capture) -> None:
    out = two.parent / "spoken"
    capsys.readouterr()
    options = ("--model", "mlp", "--epochs", "1", "--no-tensorboard", "--log-json")
    perfuse("train", t1_dataset, "--out", out, *options)
    said = capsys.readouterr()
    (command,) = [line.strip() for line in said.out.splitlines() if line.startswith("  perfuse train")]
    assert shlex.split(command)[:3] == ["perfuse", "train", str(t1_dataset)]
    events = [json.loads(line) for line in said.err.splitlines()]
    assert events == [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["run_started", "ended"]


def test_a_run_that_fails_leaves_the_reason(two: Path, t1_dataset: Path, capsys: Capture) -> None:
    out = two.parent / "failed"
    assert run(["train", str(t1_dataset), "--out", str(out), "--model", "mlp", "--max-minutes", "1e-6", "--quiet"]) == 1
    (entry,) = listed(capsys, out)
    assert entry["status"] == "failed"
    assert "used up before the first step" in entry["detail"]


def test_the_list(two: Path, capsys: Capture) -> None:
    a, b = listed(capsys, two)
    assert [Path(e["path"]).name for e in (a, b)] == ["a", "b"]
    for entry in (a, b):
        assert (entry["status"], entry["model"], entry["epochs"], entry["train_curves"]) == ("completed", "mlp", 3, 32)
        assert entry["test_gmfe"] > 1
        assert entry["test_note"] == ""
    best = "a" if a["best_val_loss"] < b["best_val_loss"] else "b"
    assert Path(listed(capsys, two, "--sort", "val_loss")[0]["path"]).name == best
    assert listed(capsys, two, "--depth", "0") == []
    perfuse("runs", two)
    text = capsys.readouterr().out
    assert a["run_id"][:8] in text
    assert b["run_id"][:8] in text


def test_the_comparison(two: Path, capsys: Capture) -> None:
    done = listed(capsys, two / "a", two / "b", "--compare")
    assert done["differences"] == {"optimizer.lr": [0.005, 0.1]}
    assert (done["same_split"], done["same_test"]) == (True, True)
    assert done["best"] in (str(two / "a"), str(two / "b"))
    perfuse("runs", two, "--compare")
    text = capsys.readouterr().out
    assert "optimizer.lr" in text
    assert "* lowest test GMFE" in text


def test_listing_loads_no_torch() -> None:
    code = "import sys, perfuse.cli_runs, perfuse.evaluation.run_table; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_nothing_found(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    perfuse("runs")
    assert capsys.readouterr().out == "no run in ., 4 levels deep\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent"], "FOLDER does not exist (got absent)"),
        ([".", "--compare"], "--compare needs two runs that can be read (got 0 run)"),
        ([".", "--depth", "99"], "--depth is not allowed (got 99); allowed: 0 to 32"),
        ([".", "--depth", "-1"], "--depth is not allowed (got -1); allowed: 0 to 32"),
        ([".", "--sort", "name"], '--sort. Choose from: "val_loss", "gmfe", "time".'),
    ],
)
def test_wrong_command_lines(
    arguments: list[str], says: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["runs", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_number_of_steps_takes_the_place_of_a_budget(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text("[training]\nmax_minutes = 5.0\n")
    assert build_config(TrainOptions(max_steps=7), file).training.max_minutes is None
    both = build_config(TrainOptions(max_steps=7, max_minutes=2.0), file).training
    assert (both.max_steps, both.max_minutes) == (7, 2.0)
    assert build_config(TrainOptions(), file).training.max_minutes == 5.0

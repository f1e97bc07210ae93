"""Listing and comparing runs: every state that a run may be in, and nothing concluded that the figures do not bear."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from perfuse.errors import InputError
from perfuse.evaluation.run_compare import compare_runs, sorted_runs
from perfuse.evaluation.run_list import QUIET_S, list_runs, read_run
from perfuse.evaluation.run_table import duration, print_comparison, print_runs
from perfuse.training import state as typed_json

NOW = 1_800_000_000.0
OLD = NOW - 10 * QUIET_S


def state(**changes: Any) -> dict[str, Any]:
    """What the lists read of a checkpoint's state."""
    rows = {name: {"n_curves": 8, "rows_hash": f"{name} rows"} for name in ("train", "validation", "test")}
    return {
        "run_id": "ab" * 16, "code_version": "1", "files": {"model.safetensors": "w" * 64},
        "data": {"path": "/somewhere/curves", "content_hash": "d" * 64}, "split": rows,
        "config": {
            "seed": 0, "model": {"name": "flux", "prior": "none"}, "loss": {"kind": "log_mse"},
            "optimizer": {"lr": 0.1}, "training": {"epochs": 4, "tensorboard": True},
        },
        "plan": {"total_steps": 40},
        "progress": {
            "epoch": 4, "step": 40, "stopped": "completed", "best_val_loss": 0.5, "elapsed_s": 12.0,
        },
    } | changes  # fmt: skip


def make(run: Path, content: Any = None, event: str = "ended", age_s: float = OLD, **fields: Any) -> Path:
    """A run folder whose files were written at ``age_s``."""
    content = content or state()
    (run / "last").mkdir(parents=True)
    (run / "config.toml").touch()
    files = {run / "last" / "state.json": typed_json.dumps(content)}
    if event:
        files[run / "log.jsonl"] = json.dumps({"event": event, "fields": fields}) + "\n"
    for path, text in files.items():
        path.write_text(text)
        os.utime(path, (age_s, age_s))
    return run


def judge(run: Path, gmfe: float, rows: str = "r" * 64, weights: str = "w" * 64, scope: str = "test split") -> Path:
    """Add an evaluation."""
    (run / "evaluation").mkdir()
    content = {
        "gmfe": gmfe, "gmfe_ci95": [gmfe - 0.01, gmfe + 0.01], "n_curves": 8, "model": {"weights_sha256": weights},
        "data": {"sha256": "d" * 64, "rows_sha256": rows, "scope": scope},
    }  # fmt: skip
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(content))
    return run


def running(**progress: Any) -> dict[str, Any]:
    return state(progress={"epoch": 2, "step": 20, "stopped": "", "elapsed_s": 6.0} | progress)


@pytest.mark.parametrize(
    ("content", "event", "written", "status", "detail"),
    [
        (state(), "ended", OLD, "completed", ""),
        (state(progress={"stopped": "early"}), "ended", NOW, "early", ""),
        (state(progress={"stopped": "deadline"}), "", NOW, "deadline", ""),
        (state(), "resumed", NOW - 5, "running", "step 40 of 40; last sign of life 5 s ago"),
        (running(), "validated", NOW - 30, "running", "step 20 of 40; last sign of life 30 s ago"),
        (running(), "", NOW - 30, "running", "step 20 of 40; last sign of life 30 s ago"),
        (running(), "validated", OLD, "interrupted", "--resume continues at step 20 of 40"),
        (running(), "interrupted", NOW, "interrupted", "--resume continues at step 20 of 40"),
        (running(), "failed", NOW, "failed", "no luck; --resume continues at step 20 of 40"),
        (running(), "rank_lost", NOW, "failed", "no luck; --resume continues at step 20 of 40"),
        (running(), "alive", NOW + 60, "running", "step 20 of 40; last sign of life 0 s ago"),  # another clock
    ],
)
def test_states_of_a_run(
    content: dict[str, Any], event: str, written: float, status: str, detail: str, tmp_path: Path
) -> None:
    entry = read_run(make(tmp_path / "run", content, event, written, error="no\nluck"), NOW)
    assert (entry.status, entry.detail) == (status, detail)


def test_a_run_that_has_saved_nothing(tmp_path: Path) -> None:
    for event, age, status in (
        ("run_started", NOW, "running"),
        ("run_started", OLD, "interrupted"),
        ("failed", NOW, "failed"),
    ):
        run = tmp_path / f"{event}{status}"
        run.mkdir()
        (run / "config.toml").touch()
        (run / "log.jsonl").write_text(
            json.dumps({"event": event, "run_id": "cd" * 16, "fields": {"error": "no"}}) + "\n"
        )
        os.utime(run / "log.jsonl", (age, age))
        (entry,) = list_runs([run], now=NOW)
        assert (entry.status, entry.run_id) == (status, "cd" * 16)
        assert "nothing" in entry.detail


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "no valid JSON"), ("[1]", "holds no object"), ("{}", "no configuration"), ("[" * 100_000, "valid JSON"),
        ('{"a": {"$pickle": "x"}}', "unknown tag"), ('{"config": 3, "progress": []}', "holds no configuration"),
    ],
)  # fmt: skip
def test_a_broken_run_is_listed_with_the_reason(text: str, reason: str, tmp_path: Path) -> None:
    make(tmp_path / "good")
    (make(tmp_path / "bad") / "last" / "state.json").write_text(text)
    bad, good = list_runs([tmp_path], now=NOW)
    assert (bad.status, good.status) == ("unreadable", "completed")
    assert reason in bad.detail
    json.dumps([bad.plain(), good.plain()], allow_nan=False)


def test_best_stands_in_for_a_broken_last(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    (run / "best").mkdir()
    (run / "best" / "state.json").write_text(typed_json.dumps(running(best_val_loss=0.25)))
    (run / "last" / "state.json").write_text("{")
    entry = read_run(run, NOW)
    assert (entry.steps, entry.best_val_loss) == (20, 0.25)


def test_wrong_types_count_as_not_recorded(tmp_path: Path) -> None:
    odd = state(
        run_id=3, code_version=None, files=[], data="x", split={"train": 1}, plan=None,
        progress={"epoch": True, "step": "3", "best_val_loss": float("inf"), "elapsed_s": 10**400, "stopped": 3},
    )  # fmt: skip
    entry = read_run(make(tmp_path / "run", odd), NOW)
    shown = entry.plain()
    assert [shown[k] for k in ("run_id", "epochs", "steps", "best_val_loss", "seconds", "train_curves")] == [None] * 6
    assert entry.status == "interrupted"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"data": 3}', '{"data": {"scope": "other"}}', "[" * 100_000])
def test_a_damaged_evaluation_is_none(text: str, tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "evaluation.json").write_text(text)
    assert read_run(run, NOW).test is None


def test_an_evaluation_of_earlier_weights_does_not_count(tmp_path: Path) -> None:
    entry = read_run(judge(make(tmp_path / "run"), 1.1, weights="v" * 64), NOW)
    assert entry.test is not None
    assert (entry.test.note, entry.test_gmfe) == ("of earlier weights", None)
    assert read_run(judge(make(tmp_path / "other"), 1.1), NOW).test_gmfe == 1.1


def test_folders_are_searched_to_a_depth_without_links(tmp_path: Path) -> None:
    make(tmp_path / "a" / "b" / "run")
    make(tmp_path / "a" / "run" / "inside")  # below a run nothing is looked for
    make(tmp_path / "a" / "run" / "x" / "run")
    os.rename(tmp_path / "a" / "run" / "inside" / "last", tmp_path / "a" / "run" / "last")
    make(tmp_path / ".hidden" / "run")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [e.path.relative_to(tmp_path).as_posix() for e in list_runs([tmp_path], now=NOW)]
    assert found == ["a/b/run", "a/run"]
    assert [e.path.name for e in list_runs([tmp_path], depth=2, now=NOW)] == ["run"]
    assert list_runs([tmp_path], depth=1, now=NOW) == []
    assert len(list_runs([tmp_path, tmp_path / "a" / "run", tmp_path], now=NOW)) == 2  # each once


def test_a_folder_that_cannot_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "good")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    entries = list_runs([tmp_path], now=NOW)
    assert [(e.path.name, e.status, e.detail) for e in entries] == [
        ("closed", "unreadable", "Permission denied"), ("good", "completed", "")
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "problem"), [("none", "does not exist"), ("file", "is no folder")])
def test_folders_that_are_none(name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"FOLDER {problem}"):
        list_runs([tmp_path / name])


def test_sorting(tmp_path: Path) -> None:
    judge(make(tmp_path / "a", state(progress={"best_val_loss": 2.0, "elapsed_s": 1.0})), 1.5)
    judge(make(tmp_path / "b", state(progress={"best_val_loss": 1.0, "elapsed_s": 3.0})), 1.9)
    make(tmp_path / "c", state(progress={"elapsed_s": 2.0}))
    entries = list_runs([tmp_path], now=NOW)
    for by, order in (("", "abc"), ("val_loss", "bac"), ("gmfe", "abc"), ("time", "acb")):
        assert "".join(e.path.name for e in sorted_runs(entries, by)) == order


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., list[Any]]:
    """``pair(change)``: two judged runs, the second one changed."""

    def make_pair(change: Callable[[dict[str, Any]], None] = lambda s: None, **evaluation: Any) -> list[Any]:
        other = state(run_id="cd" * 16)
        other["config"]["optimizer"] = {"lr": 0.2}
        change(other)
        judge(make(tmp_path / "a"), 1.2)
        judge(make(tmp_path / "b", other), **({"gmfe": 1.1} | evaluation))
        return list_runs([tmp_path], now=NOW)

    return make_pair


def test_runs_on_the_same_curves_are_ranked(pair: Callable[..., list[Any]]) -> None:
    done = compare_runs(pair())
    assert (done.same_data, done.same_split, done.same_test, done.best) == (True, True, True, 1)
    assert done.differences == (("optimizer.lr", (0.1, 0.2)),)
    assert "perfuse evaluate" in done.remarks[-1]
    assert "--against" in done.remarks[-1]
    assert done.plain()["best"] == str(done.entries[1].path)


def test_runs_judged_on_other_curves_are_not_ranked(pair: Callable[..., list[Any]]) -> None:
    done = compare_runs(pair(rows="s" * 64))
    assert (done.best, done.same_test) == (None, False)
    assert "different curves, so none can be called better" in done.remarks[-1]


def test_runs_without_an_evaluation_of_their_weights_are_not_ranked(pair: Callable[..., list[Any]]) -> None:
    done = compare_runs(pair(weights="v" * 64))
    assert done.best is None
    assert "b has one of earlier weights only" in done.remarks[-1]


def test_equal_figures_have_no_winner(pair: Callable[..., list[Any]]) -> None:
    done = compare_runs(pair(gmfe=1.2))
    assert (done.best, done.same_test) == (None, True)


@pytest.mark.parametrize(
    ("change", "remark", "same_data"),
    [
        (lambda s: s["data"].update(content_hash="e" * 64), "Trained on different data.", False),
        (lambda s: s["split"]["train"].update(rows_hash="x"), "The same data, divided differently", True),
    ],
)
def test_other_data_or_another_split_are_said(
    change: Callable[[dict[str, Any]], None], remark: str, same_data: bool, pair: Callable[..., list[Any]]
) -> None:
    done = compare_runs(pair(change))
    assert (done.same_data, done.same_split) == (same_data, False)
    assert remark in done.remarks[0]
    assert "on different curves: they may not be compared" in done.remarks[1]


def test_other_losses_are_said(pair: Callable[..., list[Any]]) -> None:
    done = compare_runs(pair(lambda s: s["config"]["loss"].update(kind="mse")))
    assert "of different kinds: they may not be compared" in done.remarks[1]


def test_a_single_run_is_nothing_to_compare(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (make(tmp_path / "b") / "last" / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"--compare needs two runs that can be read .*b: "):
        compare_runs(list_runs([tmp_path], now=NOW))


def shown(show: Callable[[Any, Console], None], what: Any) -> str:
    out = StringIO()
    show(what, Console(file=out, width=160))
    return out.getvalue()


def test_tables(pair: Callable[..., list[Any]]) -> None:
    entries = pair(weights="v" * 64)
    text = shown(print_runs, entries)
    assert "flux (prior none)" in text
    assert "curves dddddd" in text
    assert "outdated" in text
    text = shown(print_comparison, compare_runs(entries))
    assert "optimizer.lr" in text
    assert "tensorboard" not in text
    assert "1.190 to 1.210" in text


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    evil = state(data={"path": "/x/[red]\x1b[2J\u202e", "content_hash": "d" * 64})
    run = make(tmp_path / "run", evil, "failed", error="\x1b[2J")
    text = shown(print_runs, [read_run(run, NOW)])
    assert "[red]?[2J?" in text
    assert "\x1b" not in text


def test_durations() -> None:
    assert [duration(s) for s in (None, 1.26, 99.0, 150.0, 90_000.0)] == ["-", "1.3 s", "99.0 s", "2 min", "25.0 h"]

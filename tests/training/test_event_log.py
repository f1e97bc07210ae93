"""``log.jsonl``: whole lines, bounded size, and no trouble for the training."""

from __future__ import annotations

import io
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.training.event_log import EventLog, json_value
from perfuse.training.logs import RunLogs

RUN_ID = "0123456789abcdef0123456789abcdef"


def events(run: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_a_line_says_when_where_and_what(tmp_path: Path) -> None:
    echo = io.StringIO()
    log = EventLog(tmp_path, RUN_ID, session=3, clock=lambda: 12.34567, echo=echo)
    log.write("validated", {"val_loss": math.nan, "step": 7, "where": Path("a/b"), "organs": {"liver": math.inf}})
    log.write("skipped_step", {})
    log.write("skipped_step", {}, "error")
    log.close()
    first, second, third = events(tmp_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("utc"))
    assert first == {
        "time_s": 12.346, "run_id": RUN_ID, "session": 3, "rank": 0, "level": "info", "event": "validated",
        "fields": {"val_loss": None, "step": 7, "where": "a/b", "organs": {"liver": None}},
    }  # fmt: skip
    assert (second["level"], third["level"]) == ("warning", "error")
    assert echo.getvalue() == (tmp_path / "log.jsonl").read_text()


def test_what_json_lacks_is_put_into_it() -> None:
    deep: list[Any] = []
    for _ in range(10):
        deep = [deep]
    values = [np.float32(0.5), np.float64(math.nan), torch.tensor(2), np.arange(2), {1}, "x" * 5000, deep, 10**400]
    plain = json_value(values)
    text = json.dumps(plain, allow_nan=False)
    assert isinstance(plain, list)
    assert plain[:5] == [0.5, None, 2, "[0 1]", [1]]
    assert len(plain[5]) == 2000
    assert plain[-1] == "1" + 400 * "0"
    assert len(text) < 4000
    assert json_value(list(range(1000))) == list(range(200))


def test_half_a_line_of_a_crash_is_dropped(tmp_path: Path) -> None:
    log = EventLog(tmp_path, RUN_ID)
    log.write("run_started", {})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"utc": "2026-')
    log = EventLog(tmp_path, RUN_ID, session=2)
    log.write("resumed", {})
    log.close()
    assert [(e["event"], e["session"]) for e in events(tmp_path)] == [
        ("run_started", 1), ("log_cut", 2), ("resumed", 2)
    ]  # fmt: skip
    assert events(tmp_path)[1]["fields"] == {"bytes": 14}


def test_a_fresh_log_is_empty(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("of another run\n")
    EventLog(tmp_path, RUN_ID, fresh=True).close()
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_it_does_not_grow_without_bound(tmp_path: Path) -> None:
    log = EventLog(tmp_path, RUN_ID, max_bytes=2000)
    for i in range(100):
        log.write("alive", {"i": i})
    log.close()
    sizes = [(tmp_path / name).stat().st_size for name in ("log.jsonl", "log.1.jsonl")]
    assert max(sizes) <= 2000
    kept = [e["fields"]["i"] for name in ("log.1.jsonl", "log.jsonl") for e in events(tmp_path, name)]
    assert kept == list(range(kept[0], 100))  # the newest, none missing


def test_a_huge_line_is_left_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path, RUN_ID)
    log.write("odd", {str(i): "x" * 2000 for i in range(100)})
    log.close()
    (line,) = events(tmp_path)
    assert "too long" in line["fields"]["left_out"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_once_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = EventLog(tmp_path, RUN_ID)
    good, full = log._file, os.open("/dev/full", os.O_RDWR)
    log._file = full
    for _ in range(3):
        log.write("alive", {})
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "log.jsonl cannot be written (No space left on device); training goes on" in said
    log._file = good
    log.write("alive", {})
    log.close()
    os.close(full)
    assert [e.get("lines_lost") for e in events(tmp_path)] == [3]


def test_half_a_written_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path, RUN_ID)
    log.write("one", {})
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:10]))
        log.write("two", {})
    log.write("three", {})
    log.close()
    assert [(e["event"], e.get("lines_lost")) for e in events(tmp_path)] == [("one", None), ("three", 1)]


def test_a_log_that_cannot_be_opened_does_not_stop_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").mkdir()
    logs = RunLogs(tmp_path, tensorboard=False, run_id=RUN_ID)
    logs.event("run_started")
    logs.write({"step": 1, "epoch": 1})
    logs.close()
    assert "log.jsonl cannot be written (Is a directory)" in capsys.readouterr().err
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"run_id": RUN_ID, "step": 1, "epoch": 1}


def test_a_closed_terminal_is_no_trouble(tmp_path: Path) -> None:
    echo = io.StringIO()
    echo.close()
    log = EventLog(tmp_path, RUN_ID, echo=echo)
    log.write("one", {})
    log.close()
    assert len(events(tmp_path)) == 1


def test_a_quiet_run_says_that_it_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("perfuse.training.logs.time.monotonic", lambda: now)
    logs = RunLogs(tmp_path, tensorboard=False, run_id=RUN_ID)
    for now in (1000.0, 1001.0, 1059.0, 1061.0, 1062.0):
        logs.alive(step=int(now))
    logs.event("validated")
    now = 1100.0
    logs.alive(step=0)
    logs.close()
    assert [(e["event"], e["fields"].get("step")) for e in events(tmp_path)] == [
        ("alive", 1000), ("alive", 1061), ("validated", None)
    ]  # fmt: skip

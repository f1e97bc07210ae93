from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from perfuse.errors import InputError, PerfuseError
from perfuse.training.logs import RunLogs, truncate_metrics


def line(step: int, **more: object) -> dict[str, object]:
    return {
        "epoch": step,
        "step": step,
        "train_loss": 1.0,
        "val_loss": 2.0,
        "val_loss_per_organ": {"liver": 1.0},
    } | more


def steps(run: Path) -> list[int]:
    return [json.loads(text)["step"] for text in (run / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_appended_and_nan_becomes_null(tmp_path: Path) -> None:
    logs = RunLogs(tmp_path, tensorboard=False)
    logs.write(line(1, val_loss=math.nan, val_loss_per_organ={"liver": math.inf}))  # type: ignore[arg-type]
    logs.write(line(2))  # type: ignore[arg-type]
    logs.note("skipped_step", 1.0, 2)
    logs.close()
    logs.close()
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["val_loss"] is None
    assert first["val_loss_per_organ"] == {"liver": None}
    assert steps(tmp_path) == [1, 2]


def test_resuming_drops_later_lines_and_a_line_cut_short(tmp_path: Path) -> None:
    logs = RunLogs(tmp_path, tensorboard=False)
    for i in (1, 2, 3):
        logs.write(line(i))  # type: ignore[arg-type]
    logs.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "st')
    logs = RunLogs(tmp_path, tensorboard=False, resume_after=2)
    logs.write(line(9))  # type: ignore[arg-type]
    logs.close()
    assert steps(tmp_path) == [1, 2, 9]


def test_a_broken_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl line 2 is no JSON object"):
        truncate_metrics(path, 5)
    assert path.read_text().startswith('{"step": 1}\nnonsense')


def test_a_missing_file_is_nothing_to_truncate(tmp_path: Path) -> None:
    truncate_metrics(tmp_path / "metrics.jsonl", 5)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_tensorboard_holds_the_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = RunLogs(tmp_path, tensorboard=True)
    logs.write(line(1))  # type: ignore[arg-type]
    logs.note("skipped_step", 4.0, 1)
    logs.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train_loss", "val_loss", "val_loss/liver", "skipped_step"}
    assert events.Scalars("val_loss")[0].value == 2.0


def test_a_full_disk_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    logs = RunLogs(tmp_path, tensorboard=False)
    with pytest.raises(PerfuseError, match=r"cannot write .*metrics.jsonl: No space left"):
        logs.write(line(1))  # type: ignore[arg-type]
    logs.close()

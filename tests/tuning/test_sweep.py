"""The course of a sweep, with trials that only pretend to train."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfuse.config import load_config
from perfuse.errors import InputError
from perfuse.tuning.record import BEST_FILE, SWEEP_FILE, TRIALS_FILE, Ended, TrialRecord, read_sweep, read_trials
from perfuse.tuning.sweep import Sweep

pytest.importorskip("optuna", reason="optuna is an extra")


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


def facts(trials: list[TrialRecord]) -> list[tuple[object, ...]]:
    return [(t.number, t.values, t.rungs, t.ended) for t in trials]


def test_a_sweep_ends_some_early_and_keeps_the_best(tmp_path: Path, opened: Any, run_all: Any) -> None:
    notes: list[str] = []
    with opened(tmp_path, 12, note=notes.append) as sweep:
        run_all(sweep)
        assert not sweep.has_more and sweep.next_trial() is None
        best = sweep.best()
    statuses = [t.ended.status for t in sweep.trials]
    assert len(statuses) == 12 and statuses.count("completed") >= 3 and statuses.count("terminated") >= 4
    assert best.ended.val_loss == min(t.ended.val_loss for t in sweep.trials if t.ended.status == "completed")
    assert len(notes) == 12 and "ended early at 10%" in "".join(notes)
    chosen = load_config(tmp_path / BEST_FILE)
    assert (chosen.optimizer.lr, chosen.model.hidden) == (best.values["optimizer.lr"], best.values["model.hidden"])
    assert chosen.training.epochs == 10 and chosen.training.tensorboard


@pytest.mark.parametrize("lines", range(1, 24, 3))
def test_killed_after_any_line_it_goes_on_to_the_same_end(
    lines: int, tmp_path: Path, opened: Any, run_all: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "whole", 8) as sweep:
        whole = facts(run_all(sweep).trials)
    written = 0

    def dying(write: Callable[..., None]) -> Callable[..., None]:
        def after(event: object) -> None:
            nonlocal written
            write(event)
            written += 1
            if written == lines:
                raise Killed

        return after

    with opened(tmp_path / "killed", 8) as sweep:
        monkeypatch.setattr(sweep._journal, "write", dying(sweep._journal.write))
        with pytest.raises(Killed):
            run_all(sweep)
    with (tmp_path / "killed" / TRIALS_FILE).open("a") as file:
        file.write('{"event":"ended","num')  # and a line cut short
    with opened(tmp_path / "killed", 8) as sweep:
        assert facts(run_all(sweep).trials) == whole
    _, space = read_sweep(tmp_path / "killed")
    assert facts(read_trials(tmp_path / "killed", space)) == whole


def test_bad_configurations_fail_and_do_not_end_the_sweep(
    tmp_path: Path, opened: Any, run_all: Any, pretend: Any
) -> None:
    def some_fail(spec: Any, at_rung: Any) -> Any:
        if spec.number % 2:
            return Ended(number=spec.number, status="failed", reason="the loss is not finite")
        return pretend(spec, at_rung)

    with opened(tmp_path, 6) as sweep:
        run_all(sweep, some_fail)
        assert [t.ended.status == "failed" for t in sweep.trials] == [False, True] * 3
        assert sweep.best() is not None and sweep.best().number % 2 == 0


def test_values_that_do_not_go_together_fail_before_they_run(tmp_path: Path, opened: Any, run_all: Any) -> None:
    space = {"schedule": {"patience": {"low": 0, "high": 3}}, "model": {"hidden": {"choices": [8, 16]}}}
    ran: list[int] = []

    def run(spec: Any, at_rung: Any) -> Ended:
        ran.append(spec.number)
        return Ended(number=spec.number, status="completed", val_loss=1.0, progress=1)

    with opened(tmp_path, 4, space=space) as sweep:
        original = sweep._spec

        def refuse_some(trial: TrialRecord) -> Any:
            if trial.number == 1:
                raise InputError("model.hidden", "must be a multiple of heads")
            return original(trial)

        sweep._spec = refuse_some
        run_all(sweep, run)
    assert ran == [0, 2, 3]
    assert sweep.trials[1].ended.reason.startswith("model.hidden must be")


def test_lost_trials_stop_the_sweep_and_are_taken_up_again(tmp_path: Path, opened: Any, run_all: Any) -> None:
    def lose(spec: Any, at_rung: Any) -> Ended:
        return Ended(number=spec.number, status="lost", reason="no space left on device")

    with opened(tmp_path, 8) as sweep:
        run_all(sweep, lose)
        assert sweep.is_lost and "no space left" in sweep.stopped_because and len(sweep.trials) == 3
    with opened(tmp_path, 8) as sweep:
        run_all(sweep)
        assert len(sweep.trials) == 8 and not any(t.is_open for t in sweep.trials)


def test_no_more_than_so_many_run_at_a_time(tmp_path: Path, opened: Any) -> None:
    with opened(tmp_path, 5, concurrent=2) as sweep:
        first, second = sweep.next_trial(), sweep.next_trial()
        assert sweep.next_trial() is None and sweep.has_more
        sweep.ended(Ended(number=second.number, status="completed", val_loss=1.0, progress=1))
        assert sweep.next_trial().number == 2
        sweep.stop("enough")
        sweep.released(first.number)
        assert sweep.next_trial() is None and not sweep.has_more
    with opened(tmp_path, 5) as sweep:
        assert [sweep.next_trial().number, sweep.trials[0].ended] == [0, None]


def test_the_wall_clock_stops_it(tmp_path: Path, opened: Any, run_all: Any) -> None:
    with opened(tmp_path, 5, max_minutes=1e-9) as sweep:
        assert run_all(sweep).trials == [] and sweep.stopped_because == "the wall-clock budget is used up"


def test_a_terminated_trial_is_chosen_only_where_none_came_to_its_end(tmp_path: Path, opened: Any) -> None:
    with opened(tmp_path, 3) as sweep:
        for status, loss in (("terminated", 0.1), ("completed", 0.5)):
            number = sweep.next_trial().number
            sweep.ended(Ended(number=number, status=status, val_loss=loss, progress=0.1))
            assert sweep.best().number == number


LINE = json.dumps({"event": "started", "number": 0, "values": {"model.hidden": 8, "optimizer.lr": 0.01}})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LINE, "garbage"], "line 2"),
        ([LINE, "[]"], "line 2"),
        ([LINE, LINE], "started does not fit the sweep"),
        ([LINE.replace("0.01", "5.0")], "started does not fit the sweep"),
        ([LINE.replace('"number": 0', '"number": -1')], "greater than or equal to 0"),
        ([LINE, '{"event": "ended", "number": 4, "status": "failed"}'], "ended is of a trial that was not started"),
        ([LINE, '{"event": "ended", "number": 0, "status": "won"}'], "line 2"),
        ([LINE, '{"event": "ended", "number": 0, "status": "completed", "val_loss": NaN}'], "line 2"),
        ([LINE, '{"event": "rung", "number": 0, "rung": 9, "val_loss": 1, "goes_on": true}'], "line 2"),
        ([LINE, '{"event": "ended", "number": 0, "status": "failed", "run": "/etc"}'], "line 2"),
    ],
)
def test_a_damaged_journal_is_refused_by_its_line(lines: list[str], message: str, tmp_path: Path, opened: Any) -> None:
    with opened(tmp_path, 1):
        pass
    (tmp_path / TRIALS_FILE).write_text("\n".join(lines) + "\n")
    _, space = read_sweep(tmp_path)
    with pytest.raises(InputError) as caught:
        read_trials(tmp_path, space)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", 2), ("seed", -1), ("config", {"model": {"name": "oracle"}}), ("data_sha256", "../x"),
        ("n_train", 0), ("extra", 1), ("space", {}), ("space", {"optimizer": {"lr": {"low": 1, "high": 99}}}),
        ("space", {"seed": {"choices": [1, 2]}}),
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused_by_its_key(key: str, value: object, tmp_path: Path, opened: Any) -> None:
    with opened(tmp_path, 1):
        pass
    file = tmp_path / SWEEP_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(InputError, match=SWEEP_FILE):
        read_sweep(tmp_path)


def test_a_pickle_in_its_place_is_refused_not_loaded(tmp_path: Path, opened: Any) -> None:
    with opened(tmp_path, 1):
        pass
    (tmp_path / SWEEP_FILE).write_bytes(pickle.dumps({"seed": 0}))
    with pytest.raises(InputError, match=SWEEP_FILE):
        read_sweep(tmp_path)


def test_what_is_told_of_losses_survives_the_record(tmp_path: Path, opened: Any) -> None:
    loss = math.pi * 1e-7
    with opened(tmp_path, 1) as sweep:
        values = sweep.next_trial() and sweep.trials[0].values
        sweep.ended(Ended(number=0, status="completed", val_loss=loss, progress=1))
    with opened(tmp_path, 1) as again:
        assert isinstance(again, Sweep)
        assert again.trials[0].ended.val_loss == loss and again.trials[0].values == values

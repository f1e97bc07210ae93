"""One trial in this process: rungs, leaving and going on, failing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfuse.config import parse_config, resolve
from perfuse.data.locks import take_lock
from perfuse.data.sources import open_source, source_hash
from perfuse.training.checkpoint import load_checkpoint
from perfuse.tuning import trial as trial_module
from perfuse.tuning.record import Ended
from perfuse.tuning.trial import TrialSpec, fraction_done, run_trial

CONFIG: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": 8, "layers": 1, "knots": 8},
    "training": {"epochs": 10, "batch_size": 16, "device": "cpu", "tensorboard": False},
}


@pytest.fixture
def spec(t1_dataset: Path, tmp_path: Path) -> Callable[..., TrialSpec]:
    def make(name: str = "0000", **sections: Any) -> TrialSpec:
        config = {key: {**value, **sections.pop(key, {})} for key, value in CONFIG.items()} | sections
        data_sha256 = source_hash(open_source(t1_dataset, verify=False))
        return TrialSpec(3, str(tmp_path / name), str(t1_dataset), data_sha256, config)

    return make


def always(rung: int, so_far: Ended) -> bool:
    return True


def test_it_stands_at_each_rung_and_leaves_a_run_folder(spec: Callable[..., TrialSpec], tmp_path: Path) -> None:
    heard: list[tuple[int, Ended]] = []

    def hear(rung: int, so_far: Ended) -> bool:
        heard.append((rung, so_far))
        return True

    ended = run_trial(spec(), hear)
    assert ended is not None
    assert [(rung, e.progress, e.epochs, e.status) for rung, e in heard] == [
        (0, 0.1, 1, "terminated"), (1, 0.3, 3, "terminated")
    ]  # fmt: skip
    assert (ended.number, ended.status, ended.progress, ended.epochs) == (3, "completed", 1.0, 10)
    state = load_checkpoint(tmp_path / "0000" / "best").state
    assert state.progress.best_val_loss == ended.val_loss
    assert ended.val_loss is not None and heard[1][1].val_loss is not None and ended.val_loss <= heard[1][1].val_loss


def test_terminated_it_has_saved(spec: Callable[..., TrialSpec], tmp_path: Path) -> None:
    assert run_trial(spec(), lambda rung, so_far: rung == 0) is None
    assert load_checkpoint(tmp_path / "0000" / "last").state.progress.best_epoch <= 2


@pytest.mark.parametrize("validations", [1, 4])
def test_told_to_leave_it_goes_on_later_to_the_same_end(validations: int, spec: Callable[..., TrialSpec]) -> None:
    whole = run_trial(spec("whole"), always)
    asked, rungs = 0, []

    def leave() -> bool:
        nonlocal asked
        asked += 1
        return asked == validations

    def hear(rung: int, so_far: Ended) -> bool:
        rungs.append(rung)
        return True

    assert run_trial(spec("cut"), always, leave) is None
    ended = run_trial(spec("cut"), hear)
    assert whole is not None and ended is not None
    assert ended.model_copy(update={"seconds": whole.seconds}) == whole
    assert rungs == [0, 1]
    again = run_trial(spec("cut"), always)
    assert again is not None and again.val_loss == whole.val_loss, "a finished trial says its end again"


def test_left_at_a_rung_it_is_judged_there_later_by_the_same_loss(spec: Callable[..., TrialSpec]) -> None:
    heard: list[Ended] = []

    def hear(rung: int, so_far: Ended) -> bool:
        heard.append(so_far)
        return len(heard) != 2

    assert run_trial(spec(), hear) is None
    first = heard[:]
    heard.clear()
    assert run_trial(spec(), lambda rung, so_far: bool(heard.append(so_far) or True)) is not None
    assert heard == first


def test_a_configuration_that_cannot_be_used_fails(spec: Callable[..., TrialSpec]) -> None:
    ended = run_trial(spec(split={"validation_fraction": 0.98, "test_fraction": 0.01}), always)
    assert ended is not None and ended.status == "failed" and "leaves no compound for training" in ended.reason


def test_what_ends_a_trial_is_said_in_one_line(spec: Callable[..., TrialSpec], monkeypatch: Any) -> None:
    from perfuse.errors import InputError, PerfuseError
    from perfuse.training.loop import NonFiniteError

    for error, status in (
        (InputError("training split", "has no value that counts"), "failed"),
        (NonFiniteError("the loss is\nnot finite"), "failed"), (RuntimeError("can't allocate memory"), "failed"),
        (PerfuseError("cannot write the run: disk full"), "lost"), (OSError(28, "No space left on device"), "lost"),
    ):  # fmt: skip

        def broken(*args: object, raised: Exception = error, **kwargs: object) -> None:
            raise raised

        monkeypatch.setattr("perfuse.training.run.train", broken)
        ended = run_trial(spec(), always)
        assert ended is not None and ended.status == status and ended.val_loss is None
        assert ended.reason and "\n" not in ended.reason


def test_data_that_are_gone_or_have_changed_lose_the_trial(spec: Callable[..., TrialSpec]) -> None:
    from dataclasses import replace

    for bad in (replace(spec(), data="/nowhere"), replace(spec(), data_sha256="0" * 64)):
        ended = run_trial(bad, always)
        assert ended is not None and ended.status == "lost" and ended.reason


def test_a_process_of_before_is_waited_for(spec: Callable[..., TrialSpec], monkeypatch: Any) -> None:
    monkeypatch.setattr(trial_module, "_LOCK_WAIT_S", 0.3)
    one = spec()
    Path(one.folder).mkdir()
    lock = take_lock(Path(one.folder) / ".trial.lock")
    assert lock is not None
    with lock:
        ended = run_trial(one, always)
    assert ended is not None and "still training" in ended.reason and ended.status == "lost"


def test_progress_is_of_minutes_where_there_is_a_budget() -> None:
    config = resolve(parse_config({"training": {"epochs": 20}}), 100)
    assert fraction_done(config, 5, 99.0) == 0.25
    config = resolve(parse_config({"training": {"max_minutes": 2}}), 100)
    assert fraction_done(config, 5, 30.0) == 0.25

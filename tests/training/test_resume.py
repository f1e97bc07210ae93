"""Stopping anywhere and going on gives, bit for bit, what an uninterrupted run gives."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perfuse.config import RunConfig
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.training.checkpoint import load_checkpoint
from perfuse.training.interrupt import Interrupted, Interruption
from perfuse.training.resume import stored_config
from perfuse.training.run import train

MakeConfig = Callable[..., RunConfig]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def assert_same_run(a: Path, b: Path, lines: Callable[[Path], list[dict[str, Any]]]) -> None:
    for name in ("best", "last"):
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (a / name / file).read_bytes() == (b / name / file).read_bytes(), f"{name}/{file}"
        one, two = load_checkpoint(a / name).state, load_checkpoint(b / name).state
        assert one.rng == two.rng
        assert one.plateau == two.plateau
        assert one.validation == two.validation
        ignored = {"elapsed_s": 0.0}
        assert one.progress.model_copy(update=ignored) == two.progress.model_copy(update=ignored)
    assert lines(a) == lines(b)


@pytest.mark.parametrize("model", ["flux", "loglinear-rates", "recurrent", "lstm", "mlp"])
@pytest.mark.parametrize(("step", "precision"), [(5, "32"), (6, "32"), (5, "bf16")])
def test_resume_is_bitwise(
    model: str,
    step: int,
    precision: str,
    small_table: CurveTable,
    config: MakeConfig,
    tmp_path: Path,
    stop_at: Any,
    lines: Any,
) -> None:
    """Dropout, EMA, clipping, accumulation, plateau and mixed precision together.

    With 3 steps an epoch, 5 is mid-epoch and 6 its end.
    """
    c = config(
        model, schedule={"kind": "plateau", "patience": 0, "warmup_steps": 4}, optimizer={"clip": 0.3},
        training={"epochs": 4, "batch_size": 3, "accumulate": 2, "ema_decay": 0.8, "precision": precision},
    )  # fmt: skip
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(small_table, c, straight)
    stop_at(step, interrupt)
    with pytest.raises(Interrupted) as caught:
        train(small_table, c, broken)
    assert caught.value.exit_code == 130
    assert f"stopped by SIGINT: saved after step {step}; the same command with --resume" in str(caught.value)
    stop_at(None)
    train(small_table, c, broken, resume=True)
    assert_same_run(straight, broken, lines)


def test_resume_is_bitwise_with_cosine_and_a_loss_scale(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any, lines: Any,
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Any], use_model: Any,
) -> None:  # fmt: skip
    from perfuse.training.precision import LossScaler

    monkeypatch.setattr(
        "perfuse.training.session.LossScaler",
        lambda device, enabled: LossScaler(device, True, init_scale=2.0**127, growth_interval=5),
    )
    use_model(models["steep"])
    c = config("mlp", training={"epochs": 5})
    train(small_table, c, tmp_path / "straight")
    stop_at(7, interrupt)
    with pytest.raises(Interrupted):
        train(small_table, c, tmp_path / "broken")
    stop_at(None)
    train(small_table, c, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "broken", lines)
    a, b = (load_checkpoint(tmp_path / name / "last").state.scaler for name in ("straight", "broken"))
    assert a == b
    assert a["scale"] != 2.0**127


def test_lines_after_the_checkpoint_are_dropped(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any, lines: Any
) -> None:
    """A crash loses the steps since `last`, but not the lines written meanwhile: they must not come twice."""
    c = config("mlp", training={"epochs": 4})
    train(small_table, c, tmp_path / "straight")

    class Crash(BaseException):
        pass

    def crash() -> None:
        raise Crash

    stop_at(11, crash)
    with pytest.raises(Crash):
        train(small_table, c, tmp_path / "broken")
    assert len(lines(tmp_path / "broken")) == 2
    assert load_checkpoint(tmp_path / "broken" / "last").state.progress.step == 0
    stop_at(None)
    train(small_table, c, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "broken", lines)


def test_a_stop_during_validation_validates_again(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Any, metric_of: Any
) -> None:
    c = config("mlp", training={"epochs": 2})

    def measure(action: Callable[[], None]) -> Any:
        def metrics() -> dict[str, float]:
            action()
            return {"n": 1.0}

        return metric_of(metrics)

    train(small_table, c, tmp_path / "straight", validate=measure(lambda: None))
    with pytest.raises(Interrupted):
        train(small_table, c, tmp_path / "broken", validate=measure(interrupt))
    train(small_table, c, tmp_path / "broken", resume=True, validate=measure(lambda: None))
    assert_same_run(tmp_path / "straight", tmp_path / "broken", lines)


def test_more_epochs_may_be_asked_for(small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Any) -> None:
    first = train(small_table, config("mlp", training={"epochs": 2}), tmp_path / "run")
    again = train(small_table, config("mlp", training={"epochs": 2}), tmp_path / "run", resume=True)
    assert (first.steps, again.steps) == (8, 8)  # nothing left to do
    more = train(small_table, config("mlp", training={"epochs": 4}), tmp_path / "run", resume=True)
    assert (more.steps, more.epochs) == (16, 4)
    assert [r["epoch"] for r in lines(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_budget_may_be_raised(small_table: CurveTable, config: MakeConfig, tmp_path: Path) -> None:
    def budget(minutes: float) -> RunConfig:
        return config("mlp", training={"epochs": None, "max_minutes": minutes})

    first = train(small_table, budget(0.03), tmp_path / "run")
    spent = load_checkpoint(tmp_path / "run" / "last").state.progress.elapsed_s
    more = train(small_table, budget((spent + 3) / 60), tmp_path / "run", resume=True)
    assert more.steps > first.steps
    assert more.seconds < spent + 5


def test_the_stored_configuration_continues_a_run(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any
) -> None:
    stop_at(3, interrupt)
    with pytest.raises(Interrupted):
        train(small_table, config("lstm", seed=7), tmp_path / "run")
    stop_at(None)
    stored = stored_config(tmp_path / "run")
    assert (stored.model.name, stored.seed) == ("lstm", 7)
    assert train(small_table, stored, tmp_path / "run", resume=True).ending == "completed"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "lstm"}, r"--resume: model.name has changed \(got lstm\); allowed: mlp"),
        ({"model_options": {"hidden": 9}}, r"model.hidden has changed \(got 9\); allowed: 8"),
        ({"loss": {"kind": "log_huber"}}, r"loss.kind has changed \(got log_huber\); allowed: log_mse"),
        ({"loss": {"organ_weight": {"skin": 2}}}, "loss.organ_weight has changed"),
        ({"seed": 5}, "seed has changed"),
        ({"optimizer": {"lr": 0.5}}, "optimizer.lr has changed"),
        ({"training": {"batch_size": 5}}, "training.batch_size has changed"),
        ({"training": {"ema_decay": 0.5}}, "training.ema_decay has changed"),
        ({"split": {"test_fraction": 0.2}}, "split.test_fraction has changed"),
    ],
)
def test_what_must_not_change_is_refused_by_name(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    run = tmp_path / "run"
    train(small_table, config("mlp", training={"epochs": 1}), run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=words):
        train(small_table, config(**({"model": "mlp"} | change)), run, resume=True)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_other_data_are_refused(small_table: CurveTable, config: MakeConfig, tmp_path: Path) -> None:
    train(small_table, config("mlp", training={"epochs": 1}), tmp_path / "run", data_path="first.npz")
    other = replace(small_table, conc_mg_l=small_table.conc_mg_l * 1.0001)
    with pytest.raises(InputError, match=r"--resume: data is not what the run was trained on .*first.npz"):
        train(other, config("mlp"), tmp_path / "run", resume=True)


def test_a_folder_without_a_run_cannot_be_resumed(small_table: CurveTable, config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--resume found no run to continue"):
        train(small_table, config("mlp"), tmp_path, resume=True)
    with pytest.raises(InputError, match="--resume found no run"):
        stored_config(tmp_path)


# -- signals -------------------------------------------------------------------------------------------------------


def test_sigterm_saves_and_exits_with_143(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any
) -> None:
    stop_at(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped by SIGTERM") as caught:
        train(small_table, config("mlp"), tmp_path / "run")
    assert caught.value.exit_code == 143
    assert load_checkpoint(tmp_path / "run" / "last").state.progress.step == 2


def test_a_second_signal_aborts_at_once(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any
) -> None:
    before = signal.getsignal(signal.SIGINT)

    def twice() -> None:
        interrupt()
        interrupt()

    stop_at(2, twice)
    with pytest.raises(KeyboardInterrupt):
        train(small_table, config("mlp"), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last").state.progress.step == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_are_put_back_and_the_first_signal_is_announced() -> None:
    before = signal.getsignal(signal.SIGTERM)
    said: list[str] = []
    with Interruption(said.append) as interruption:
        assert interruption.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert "SIGTERM: finishing the step and saving" in said[0]


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    import threading

    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with Interruption():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]

"""The printed command makes the run again: the same weights, byte for byte, where that is what it says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfuse.cli import run as perfuse
from perfuse.config import RunConfig
from perfuse.data.sources import open_source
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.training import state as typed_json
from perfuse.training.provenance import begin_session
from perfuse.training.reproduce import reproduction
from perfuse.training.run import train
from perfuse.training.run_facts import RunFacts, read_facts

Config = Callable[..., RunConfig]
Stop = Callable[..., None]
ID = "ab" * 16


def weights(run: Path, name: str = "last") -> bytes:
    return (run / name / "model.safetensors").read_bytes()


def again(run: Path) -> Path:
    """Give the printed commands; returns the new run."""
    made = reproduction(run)
    for command in made.commands:
        words = shlex.split(command)
        assert words[0] == "perfuse"
        assert perfuse([*words[1:], "--quiet"]) == 0
    return Path(made.new_run)


def trained(data: Path, config: RunConfig, out: Path, **options: Any) -> None:
    train(open_source(data), config, out, data_path=str(data), **options)


def test_a_run_of_fixed_length(config: Config, t1_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run"  # a space: the command must be quoted
    trained(t1_dataset, config("mlp", seed=7), run)
    made = reproduction(run)
    assert (made.level.code, made.seed, made.run_id) == ("bitwise", 7, read_facts(run / "last").run_id)
    assert made.data_sha256 == open_source(t1_dataset).content_hash
    assert made.lines()[2] == f"  {made.commands[0]}"
    other = again(run)
    assert weights(other) == weights(run)
    assert weights(other, "best") == weights(run, "best")
    assert reproduction(other).run_id != made.run_id


def test_an_interrupted_run_is_made_in_one_piece(
    config: Config, t1_dataset: Path, tmp_path: Path, stop_at: Stop
) -> None:
    import os
    import signal

    from perfuse.training.interrupt import Interrupted

    run = tmp_path / "run"
    stop_at(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        trained(t1_dataset, config("mlp"), run)
    stop_at(None)
    trained(t1_dataset, config("mlp"), run, resume=True)
    assert len(reproduction(run).commands) == 1
    assert weights(again(run)) == weights(run)


def test_a_prolonged_run_is_made_in_its_stages(config: Config, t1_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained(t1_dataset, config("mlp"), run)
    trained(t1_dataset, config("mlp", training={"epochs": 5}), run, resume=True)
    made = reproduction(run)
    assert made.level.code == "bitwise"
    assert ["--epochs 3" in c for c in made.commands] == [True, False]
    assert ["--resume" in c for c in made.commands] == [False, True]
    assert weights(again(run)) == weights(run)


def test_a_budget_is_made_again_by_its_number_of_steps(
    config: Config, t1_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is made up, so that the test does not depend on the machine's speed."""
    run = tmp_path / "run"
    fixed = {"total_steps": 160, "validate_every_epochs": 7, "step_s": 1e-3}
    with monkeypatch.context() as patch:
        patch.setattr("perfuse.training.budget.StepTimer.is_enough", lambda self, _: len(self._durations) == 23)
        patch.setattr("perfuse.training.loop.planned", lambda plan, *_: plan.model_copy(update=fixed))
        patch.setattr("perfuse.training.budget.Pace.affordable_total", lambda *_: None)
        trained(t1_dataset, config("mlp", training={"epochs": None, "max_minutes": 5.0}), run)
    facts = read_facts(run / "last")
    steps = facts.progress["step"]
    assert facts.progress["stopped"] == "completed"
    assert (steps, facts.plan["cosine_start"]) == (160, 23)
    made = reproduction(run)
    assert made.level.code == "bitwise"
    assert "only a run with that number is equal" in made.level.text
    assert f"--max-steps {steps} --cosine-start {facts.plan['cosine_start']} --validate-every" in made.commands[0]
    other = again(run)
    assert read_facts(other / "last").progress["step"] == steps
    assert weights(other) == weights(run)


@pytest.mark.parametrize(
    ("training", "steps"), [({"epochs": None, "max_steps": 7}, 7), ({"max_steps": 7}, 7), ({"max_steps": 1000}, 12)]
)
def test_a_number_of_steps_ends_a_run(
    training: dict[str, Any], steps: int, config: Config, small_table: CurveTable, tmp_path: Path
) -> None:
    """The schedule spans them: the last step has the last rate of the cosine. (16 curves, 4 at a time, 3 epochs.)"""
    made = config("mlp", training=training, schedule={"final_fraction": 0.125, "warmup_steps": 0, "cosine_start": 2})
    result = train(small_table, made, tmp_path / "run")
    assert (result.ending, result.steps) == ("completed", steps)
    facts = read_facts(tmp_path / "run" / "last")
    assert (facts.plan["total_steps"], facts.plan["cosine_start"]) == (steps, 2)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["lr"] == pytest.approx(0.125 * made.optimizer.lr if made.optimizer.lr else 0.125 * 5e-3)


def test_more_steps_prolong_a_run(config: Config, small_table: CurveTable, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small_table, config("mlp", training={"epochs": None, "max_steps": 3}), run)
    result = train(small_table, config("mlp", training={"epochs": None, "max_steps": 5}), run, resume=True)
    assert (result.ending, result.steps) == ("completed", 5)
    assert "--max-steps 3" in reproduction(run).commands[0]


def state_of(run: Path, change: Callable[[dict[str, Any]], None]) -> RunFacts:
    """The facts of a run's ``last``, with something changed."""
    facts = read_facts(run / "last")
    change(facts.state)
    return facts


@pytest.fixture(scope="module")
def budget_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with a budget of five minutes leaves, as far as the command is concerned."""
    run = tmp_path_factory.mktemp("runs") / "run"
    (run / "last").mkdir(parents=True)
    (run / "last" / "state.json").write_text(
        typed_json.dumps(
            {
                "run_id": ID,
                "data": {"path": "data", "content_hash": "d" * 64},
                "config": {
                    "seed": 0, "model": {"name": "mlp"}, "schedule": {"kind": "cosine"},
                    "training": {"max_minutes": 5.0, "device": "auto"},
                },
                "plan": {"total_steps": 400, "cosine_start": 30, "validate_every_epochs": 2, "changes": 0},
                "progress": {"step": 400, "stopped": "completed"},
            }
        )
    )  # fmt: skip
    begin_session(run, run_id=ID, config=RunConfig.model_validate({"training": {"max_minutes": 5.0}}), device="cpu")
    return run


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s["progress"].update(stopped="deadline", step=300), "ended it at step 300 of 400"),
        (lambda s: s["progress"].update(stopped=""), "or an interruption, ended it"),
        (lambda s: s["plan"].update(changes=1), "planned number of steps was changed"),
        (lambda s: s["plan"].update(total_steps=60), "so short"),
        (lambda s: s["plan"].update(cosine_start=200), "so short"),
        (lambda s: s["plan"].update(start_was_cut=True), "Gauss-Newton start"),
        (lambda s: s["config"]["schedule"].update(kind="plateau"), "plateau"),
    ],
)
def test_what_the_clock_has_changed_is_said(
    budget_run: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    assert reproduction(budget_run).level.code == "bitwise"
    level = reproduction(budget_run, state_of(budget_run, change)).level
    assert level.code == "approximate"
    assert reason in level.text


def test_sessions_that_differ_are_equal_to_rounding(budget_run: Path, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(budget_run, tmp_path / "run"))
    record = json.loads((run / "provenance.json").read_text())
    record["sessions"].append({**record["sessions"][0], "threads": 99, "processes": 2, "resumed_at_step": 10})
    (run / "provenance.json").write_text(json.dumps(record))
    level = reproduction(run).level
    assert level.code == "rounding"
    assert "processes, threads" in level.text


def test_a_length_changed_by_the_clock_midway(budget_run: Path, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(budget_run, tmp_path / "run"))
    longer = RunConfig.model_validate({"training": {"max_minutes": 9.0}})
    begin_session(run, run_id=ID, config=longer, device="cpu", resumed_at_step=400, resumed_after="completed")
    made = reproduction(run)
    assert len(made.commands) == 1
    assert "the length of the run was changed on the way" in made.level.text


def test_names_cannot_steer_the_shell_or_the_terminal(budget_run: Path) -> None:
    evil = state_of(budget_run, lambda s: s["data"].update(path="x; rm -rf ~"))
    assert shlex.split(reproduction(budget_run, evil).commands[0])[2] == "x; rm -rf ~"
    evil = state_of(budget_run, lambda s: s["data"].update(path="\x1b[2J"))
    assert shlex.split(reproduction(budget_run, evil).commands[0])[2] == "DATA"
    evil = state_of(budget_run, lambda s: s["data"].update(path="s3://me:hush@host/d"))
    assert "hush" not in reproduction(budget_run, evil).commands[0]


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkpoint was not found"):
        reproduction(tmp_path)

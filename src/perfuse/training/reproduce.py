"""The command that makes a run again, and how equal the outcome will be.

A run of fixed length is made again by its own configuration. One with a wall-clock budget measured its length once:
it is made again with that number of steps, the cosine beginning where it began. A run that was prolonged after it had
ended is made again in the same stages.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perfuse.errors import InputError
from perfuse.training.determinism import Determinism, determinism, weaker
from perfuse.training.machine import without_secrets
from perfuse.training.provenance import LENGTH_KEYS, sessions_of
from perfuse.training.run_facts import Plain, RunFacts, number, read_facts, table, text, whole

_FLAGS = {
    "epochs": "--epochs", "max_steps": "--max-steps", "max_minutes": "--max-minutes",
    "early_stopping_patience": "--early-stopping", "validate_every_epochs": "--validate-every",
}  # fmt: skip
_FEW_STEPS = 100
"""Below it the warm-up depends on the length of the run, which a budget does not know when it begins."""
_MOST_TIMED = 0.4
"""Flux's network rests for this share of a run, and while a budget's length is open: then that must be the shorter."""
_SAME = ("device", "processes", "threads", "processor", "packages", "perfuse", "git_commit")
"""What two sessions must share for a rerun in one piece to be bitwise equal."""


@dataclass(frozen=True)
class Reproduction:
    """How to make a run again.

    Attributes:
        commands: Shell lines, in order.
        level: How equal the outcome is.
        data_sha256: Content hash that the data must have.
        seed: The run's.
        run_id: Of the run that is made again; '' where it has none.
        new_run: Folder that the commands write.
    """

    commands: tuple[str, ...]
    level: Determinism
    data_sha256: str
    seed: int | None
    run_id: str = ""
    new_run: str = "RUN"

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"run id: {self.run_id or 'none'}", "to reproduce:", *(f"  {command}" for command in self.commands)]
        return [*lines, f"  data sha256 {self.data_sha256 or 'not recorded'}", f"  {self.level.line()}"]

    def plain(self) -> dict[str, object]:
        """For JSON."""
        level = {"code": self.level.code, "text": self.level.text}
        return {
            "run_id": self.run_id or None, "commands": list(self.commands), "data_sha256": self.data_sha256,
            "seed": self.seed, "determinism": level,
        }  # fmt: skip


def reproduction(run: Path, facts: RunFacts | None = None) -> Reproduction:
    """How to make a run again.

    Args:
        run: Folder of the run.
        facts: Of its ``last`` checkpoint (else ``best``), if they have been read.

    Raises:
        InputError: if the run has no readable checkpoint.
    """
    facts = facts or last_facts(run)
    sessions = sessions_of(run, facts.run_id)
    stages = _stages(sessions)
    level, reasons = _level(facts, sessions, stages), _deviations(facts, sessions, stages)
    exact_stages = len(stages) > 1 and not reasons
    commands = _staged(run, facts, sessions, stages) if exact_stages else (_single(run, facts, sessions),)
    if reasons:
        code = "approximate"
        level = Determinism(code, f"{weaker(code)}: {'; '.join(reasons)}", level.is_length_fixed)  # type: ignore[arg-type]
    commands = tuple(without_secrets(command) for command in commands)
    return Reproduction(commands, level, facts.data_sha256, whole(facts.config, "seed"), facts.run_id, _new(run))


def last_facts(run: Path) -> RunFacts:
    """Facts of where a run stopped: of ``last``, else of ``best``.

    Raises:
        InputError: if neither can be read.
    """
    try:
        return read_facts(run / "last")
    except InputError:
        return read_facts(run / "best")


def _training(facts: RunFacts) -> dict[str, object]:
    return table(facts.config, "training")


def _has_budget(facts: RunFacts) -> bool:
    return number(_training(facts), "max_minutes") is not None


def _stages(sessions: Sequence[Plain]) -> list[dict[str, object]]:
    """The sessions at which the length of the run was set or changed."""
    stages: list[dict[str, object]] = []
    for session in sessions:
        if not stages or table(session, "length") != table(stages[-1], "length"):
            stages.append(dict(session))
    return stages


def _level(facts: RunFacts, sessions: Sequence[Plain], stages: Sequence[Plain]) -> Determinism:
    first = sessions[0] if sessions else {}
    device = text(first, "device") or text(_training(facts), "device")
    processes = max((whole(s, "processes") or 1 for s in sessions), default=whole(_training(facts), "devices") or 1)
    has_dropout = bool(number(table(facts.config, "model"), "dropout"))
    level = determinism(
        "cpu" if device == "auto" else device or "cpu", processes, _has_budget(facts), whole(first, "threads"),
        has_dropout=has_dropout,
    )  # fmt: skip
    changed = [key for key in _SAME if len({repr(s.get(key)) for s in sessions}) > 1]
    if changed and level.code != "rounding":
        return Determinism(
            "rounding", f"another run differs by rounding: the sessions of this one differ in {', '.join(changed)}",
            level.is_length_fixed,
        )  # fmt: skip
    return level


def _deviations(facts: RunFacts, sessions: Sequence[Plain], stages: Sequence[Plain]) -> list[str]:
    """Why no command gives the same learning rates at every step; empty when one does."""
    reasons = []
    plan, progress = facts.plan, facts.progress
    total, step = whole(plan, "total_steps"), whole(progress, "step") or 0
    if len(stages) > 1 and not all(_is_plain_stage(s) for s in stages):
        reasons.append("the length of the run was changed on the way")
    if not _has_budget(facts):
        return reasons
    if total is None or text(progress, "stopped") in ("", "deadline"):
        reasons.append(f"the clock, or an interruption, ended it at step {step} of {total or 'an open number'}")
    if whole(plan, "changes"):
        reasons.append("its planned number of steps was changed on the way, since the machine's speed had changed")
    if total is not None and (total < _FEW_STEPS or (whole(plan, "cosine_start") or 0) > _MOST_TIMED * total):
        reasons.append("the run was so short that warm-up, or what rests at first, depended on its length")
    if text(table(facts.config, "schedule"), "kind") == "plateau":
        reasons.append("the plateau rule saw one more validation, which a budget uses to take the time")
    if plan.get("start_was_cut") is True:
        reasons.append("the clock cut the Gauss-Newton start short")
    return reasons


def _is_plain_stage(stage: Plain) -> bool:
    """Whether a stage began afresh or after the one before had ended, with a length that no clock measured."""
    if number(table(stage, "length"), "max_minutes") is not None:
        return False
    return stage.get("resumed_at_step") is None or text(stage, "resumed_after") in ("completed", "early")


def _new(run: Path) -> str:
    return f"{run}-again"


def _command(run: Path, facts: RunFacts, sessions: Sequence[Plain]) -> list[str]:
    data = facts.data_path if facts.data_path.isprintable() else ""
    words = ["perfuse", "train", data or "DATA", "--out", _new(run), "--config", f"{run}/config.toml"]
    first = sessions[0] if sessions else {}
    training = _training(facts)
    device = text(first, "device")
    if text(training, "device") == "auto" and device in ("cpu", "cuda"):
        words += ["--device", device]
    processes = whole(first, "processes") or 1
    if training.get("devices") is None and processes > 1:
        words += ["--devices", str(processes)]
    return words


def _single(run: Path, facts: RunFacts, sessions: Sequence[Plain]) -> str:
    words = _command(run, facts, sessions)
    if _has_budget(facts):
        plan, progress = facts.plan, facts.progress
        total = whole(plan, "total_steps")
        if total is None or text(progress, "stopped") in ("", "deadline"):
            total = whole(progress, "step") or 1
        words += ["--max-steps", str(total), "--cosine-start", str(whole(plan, "cosine_start") or 0)]
        words += ["--validate-every", str(whole(plan, "validate_every_epochs") or 1)]
    return shlex.join(words)


def _staged(run: Path, facts: RunFacts, sessions: Sequence[Plain], stages: Sequence[Plain]) -> tuple[str, ...]:
    base = _command(run, facts, sessions)
    commands = []
    now = {key: _training(facts).get(key) for key in LENGTH_KEYS}
    for i, stage in enumerate(stages):
        length = table(stage, "length")
        changed = [key for key in LENGTH_KEYS if length.get(key) is not None and length.get(key) != now.get(key)]
        flags = [word for key in changed for word in (_FLAGS[key], str(length[key]))]
        commands.append(shlex.join([*base, *flags, *(["--resume"] if i else [])]))
    return tuple(commands)

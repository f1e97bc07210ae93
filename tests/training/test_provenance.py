"""How a run was made: commit, versions, sessions, and the level of determinism."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perfuse.config import RunConfig
from perfuse.training.determinism import determinism
from perfuse.training.machine import command_line, git_commit, provenance, without_secrets
from perfuse.training.provenance import begin_session, read_provenance, sessions_of

ID = "ab" * 16
COMMIT, OTHER = "1" * 40, "2" * 40
Config = Callable[..., RunConfig]


def checkout(root: Path) -> Path:
    """A folder that looks like a checkout; returns its package."""
    (root / "src" / "perfuse").mkdir(parents=True)
    (root / ".git" / "refs" / "heads").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    (root / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    return root / "src" / "perfuse"


def test_the_commit_is_read_without_git(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    git = tmp_path / ".git"
    assert git_commit(package) is None
    (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{OTHER} refs/heads/side\n{COMMIT} refs/heads/main\n")
    assert git_commit(package) == COMMIT
    (git / "refs" / "heads" / "main").write_text(OTHER + "\n")  # newer than the packed one
    assert git_commit(package) == OTHER
    (git / "HEAD").write_text(COMMIT)
    assert git_commit(package) == COMMIT


def test_a_work_tree_is_followed(tmp_path: Path) -> None:
    package = checkout(tmp_path / "tree")
    main = tmp_path / "main" / ".git"
    (main / "worktrees" / "tree").mkdir(parents=True)
    (main / "worktrees" / "tree" / "HEAD").write_text("ref: refs/heads/main\n")
    (main / "worktrees" / "tree" / "commondir").write_text("../..\n")
    (main / "refs" / "heads").mkdir(parents=True)
    (main / "refs" / "heads" / "main").write_text(COMMIT)
    import shutil

    shutil.rmtree(tmp_path / "tree" / ".git")
    (tmp_path / "tree" / ".git").write_text(f"gitdir: {main}/worktrees/tree\n")
    assert git_commit(package) == COMMIT


@pytest.mark.parametrize("head", ["ref: refs/../../../etc/passwd", "ref: /etc/passwd", "no commit", "", "\0"])
def test_a_forged_head_names_nothing(head: str, tmp_path: Path) -> None:
    package = checkout(tmp_path)
    (tmp_path / ".git" / "HEAD").write_text(head)
    assert git_commit(package) is None


def test_an_installed_package_has_no_commit(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    (tmp_path / ".git" / "HEAD").write_text(COMMIT)
    (tmp_path / "pyproject.toml").unlink()
    assert git_commit(package) is None


def test_secrets_in_urls_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/perfuse", "train", "s3://me:hush@host/a b?X-Token=hush&n=1", "--out", "r"])
    assert command_line() == "perfuse train 's3://***@host/a b?X-Token=***&n=1' --out r"
    assert without_secrets("https://host/a?sig=hush") == "https://host/a?sig=***"
    assert without_secrets("perfuse train a@b --out c") == "perfuse train a@b --out c"


def test_the_record_of_an_evaluation_is_complete() -> None:
    made = provenance()
    assert {
        "perfuse",
        "git_commit",
        "python",
        "packages",
        "system",
        "processor",
        "cores",
        "created_utc",
        "command",
    } == set(made)
    json.dumps(made, allow_nan=False)


def test_every_session_is_kept(config: Config, tmp_path: Path) -> None:
    begin = {"run_id": ID, "device": "cpu", "data_sha256": "d" * 64}
    assert begin_session(tmp_path, config=config(), **begin) == 1  # type: ignore[arg-type]
    longer = config(training={"epochs": 9})
    for number in (2, 3):
        done = begin_session(
            tmp_path, config=longer, resumed_at_step=5, resumed_after="completed", processes=number, **begin,  # type: ignore[arg-type]
        )  # fmt: skip
        assert done == number
    first, second, third = sessions_of(tmp_path, ID)
    assert (first["resumed_at_step"], second["resumed_at_step"]) == (None, 5)
    assert [s["length"]["epochs"] for s in (first, second, third)] == [3, 9, 9]  # type: ignore[index]
    assert [s["determinism"]["code"] for s in (first, third)] == ["bitwise", "bitwise-per-process-count"]  # type: ignore[index]
    assert first["threads"]
    assert read_provenance(tmp_path)["data_sha256"] == "d" * 64
    assert sessions_of(tmp_path, "of another") == []


def test_many_sessions_leave_the_first_and_the_newest(config: Config, tmp_path: Path) -> None:
    begin_session(tmp_path, run_id=ID, config=config(), device="cpu")
    path = tmp_path / "provenance.json"
    record = json.loads(path.read_text())
    record["sessions"] = [{**record["sessions"][0], "session": i} for i in range(1, 501)]
    path.write_text(json.dumps(record))
    assert begin_session(tmp_path, run_id=ID, config=config(), device="cpu", resumed_at_step=1) == 501
    numbers = [s["session"] for s in sessions_of(tmp_path)]
    assert (len(numbers), numbers[0], numbers[1], numbers[-1]) == (200, 1, 303, 501)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"sessions": 3}', '{"sessions": [1, null]}', "[" * 100_000])
def test_a_damaged_record_stops_nothing(text: str, config: Config, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(text)
    assert sessions_of(tmp_path) == []
    assert begin_session(tmp_path, run_id=ID, config=config(), device="cpu", resumed_at_step=4) == 2
    assert len(sessions_of(tmp_path, ID)) == 1


@pytest.mark.parametrize(
    ("device", "processes", "code"),
    [("cpu", 1, "bitwise"), ("cpu", 2, "bitwise-per-process-count"), ("cuda", 1, "rounding"), ("cuda", 8, "rounding")],
)
def test_levels(device: str, processes: int, code: str) -> None:
    level = determinism(device, processes, has_budget=False, threads=4)
    assert (level.code, level.is_length_fixed) == (code, True)
    assert ("4 threads" in level.text) == (device == "cpu")
    timed = determinism(device, processes, has_budget=True)
    assert timed.text.endswith("was fixed from measured time, so only a run with that number is equal")
    assert not timed.is_length_fixed
    masks = determinism(device, processes, False, has_dropout=True).text
    assert ("dropout" in masks) == (code == "bitwise-per-process-count")

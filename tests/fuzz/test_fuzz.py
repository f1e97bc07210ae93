"""A small, repeatable share of the fuzzing: a few edits of valid files for every reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzz.guard import refuse_line
from fuzz.mutate import EDITS, mutated
from fuzz.targets import TARGETS, Target, target
from perfuse.errors import PerfuseError

EXAMPLES = 15


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Target]:
    """``make(name)``: the target, its files in the test's own folder; what it changes elsewhere is put back."""
    from perfuse.data import study_people

    monkeypatch.setattr(study_people, "MAX_PEOPLE", study_people.MAX_PEOPLE)
    monkeypatch.setenv("PERFUSE_CACHE_DIR", str(tmp_path / "cache"))
    return lambda name: target(name, tmp_path / "fuzz")


def refused_or_read(made: Target, data: bytes) -> None:
    said = "read"
    try:
        made.read(data)
    except PerfuseError as error:
        said = str(error)
    assert refuse_line(said) == ""


@pytest.mark.parametrize("name", TARGETS)
def test_readers_take_damaged_files(name: str, make: Callable[[str], Target]) -> None:
    made = make(name)
    for data in made.seeds:
        made.read(data)

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(made.seeds), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3))
    def check(data: bytes, edits: list[int]) -> None:
        refused_or_read(made, mutated(data, made.kind, edits))

    check()


@pytest.mark.parametrize("kind", EDITS)
def test_edits_change_files_and_are_named_by_their_numbers(kind: str) -> None:
    data = b"a,b\n1,2\n3,4\n" * 3
    found = {mutated(data, kind, [edit]) for edit in range(40)}
    assert len(found) > 10
    assert mutated(data, kind, [1, 2, 3]) == mutated(data, kind, [1, 2, 3])


def test_messages_of_several_lines_are_findings() -> None:
    assert refuse_line("a\nb") and refuse_line("\x1b[2J") and refuse_line("a" * 5000) and refuse_line("")
    assert refuse_line("table cannot be read") == ""

"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from perfuse.errors import PerfuseError
from perfuse.files import replacing, write_atomic


def test_a_file_is_replaced_whole_with_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    plain = tmp_path / "plain"
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, b"old")
    with (
        pytest.raises(PerfuseError, match=r"a.txt cannot be written \(No space left on device\)"),
        replacing(path) as part,
    ):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyError), replacing(path):
        raise KeyError("another error passes through")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

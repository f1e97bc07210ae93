"""Files appear whole or not at all, and TOML is read or refused in one line."""

from pathlib import Path

import pytest

from perfuse.errors import InputError, PerfuseError
from perfuse.files import read_toml, replacing, write_atomic


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


def test_toml_becomes_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('name = "µ"\n[part]\nlist = [1, 2.5]\n', encoding="utf-8")
    assert read_toml(path, "--config") == {"name": "µ", "part": {"list": [1, 2.5]}}


@pytest.mark.parametrize(
    "content", [b"a = ", b"a = 1\na = 2\n", b"\xff\xfea = 1", b"a = " + b"9" * 5000, b"a = " + b"[" * 100_000]
)
def test_what_is_no_toml_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^--config is no valid TOML \(got .*a.toml\); hint: ") as error:
        read_toml(path, "--config")
    assert "\n" not in str(error.value)


def test_toml_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputError, match="^drug file cannot be read"):
            read_toml(path, "drug file")


def test_a_byte_order_mark_is_no_part_of_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("a = 1", encoding="utf-8-sig")
    assert read_toml(path, "--config") == {"a": 1}

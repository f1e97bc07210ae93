"""The cache of remote datasets: who may remove what, downloads that go wrong, places that cannot be reached."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perfuse.data import remote
from perfuse.data.locks import take_lock
from perfuse.data.simulation import simulate_dataset
from perfuse.data.sources import open_source
from perfuse.errors import InputError, PerfuseError

READER = """
import sys
from perfuse.data.sources import open_source
source = open_source(sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
print(len(source.take(range(len(source)))), flush=True)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(remote.CACHE_DIR_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(folder: Path, seed: int) -> str:
    simulate_dataset("T1", 60, seed, folder, 32)
    return folder.as_uri()


def datasets(cache: Path) -> set[str]:
    return {f.name for f in cache.iterdir() if f.is_dir()}


def test_what_another_process_reads_is_not_removed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make(tmp_path / "a", 1), make(tmp_path / "b", 2)
    size = sum(f.stat().st_size for f in (tmp_path / "a").iterdir())
    monkeypatch.setenv(remote.CACHE_GB_VARIABLE, str(1.5 * size / 1e9))
    reader = subprocess.Popen([sys.executable, "-c", READER, first], env=os.environ, text=True, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)  # fmt: skip
    assert reader.stdout is not None
    assert reader.stdout.readline() == "open\n"
    before = datasets(cache)
    with pytest.raises(InputError, match="does not fit beside those that other processes read"):
        open_source(second)
    assert datasets(cache) == before
    assert reader.communicate("go on\n", timeout=60)[0] == "60\n"
    assert len(open_source(second)) == 60  # its lock went with it
    assert len(datasets(cache)) == 1
    assert datasets(cache).isdisjoint(before)
    assert {f.name.rpartition(".")[0] for f in cache.glob("*.use")} == datasets(cache)


def test_what_another_process_fills_counts_whole_and_stays(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make(tmp_path / "a", 1)
    filled = remote.fetch_dataset(url)
    assert remote._removed(filled)
    filled.mkdir()
    (filled / "manifest.json").write_bytes((tmp_path / "a" / "manifest.json").read_bytes())
    size = sum(f.stat().st_size for f in (tmp_path / "a").glob("*.arrow"))
    assert remote._size(filled) == size  # not one shard is there yet
    filler = take_lock(remote._lock_of(filled))
    assert filler is not None
    with filler:
        assert not remote._removed(filled)
    assert filled.is_dir()
    assert remote._removed(filled)
    assert not filled.exists()


class Failing:
    """A file system of which some reads of the first shard fail, or are cut short (others come on other threads)."""

    def __init__(self, fs: Any, failures: list[Exception | None]) -> None:
        self.fs, self.failures, self.opened = fs, failures, 0

    def invalidate_cache(self) -> None:
        self.fs.invalidate_cache()

    def open(self, path: str, mode: str) -> Any:
        handle = self.fs.open(path, mode)
        if path.endswith(".arrow"):
            self.opened += 1
            if self.failures and path.endswith("shard-00000.arrow"):
                failure = self.failures.pop(0)
                if failure is not None:
                    raise failure
                handle.seek(8)  # what is read is too short
        return handle


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ([None], None), ([TimeoutError("slow")], None), ([RuntimeError("403 of a cloud's own kind")], None),
        ([None, None], "shard is not what its manifest says"), ([TimeoutError("slow")] * 2, "cannot be read: slow"),
        ([RuntimeError("403 of a cloud's own kind")] * 2, "cannot be read: 403 of a cloud's own kind"),
    ],
)  # fmt: skip
def test_a_download_is_tried_twice(
    failures: list[Exception | None], message: str | None, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make(tmp_path / "a", 1)
    fs, root = remote.file_system(url)
    failing = Failing(fs, list(failures))
    monkeypatch.setattr(remote, "file_system", lambda _: (failing, root))
    if message is None:
        assert len(open_source(url)) == 60
        assert failing.opened == 3  # two shards, one of them twice
    else:
        with pytest.raises(PerfuseError, match=message):
            open_source(url)
    assert not list(cache.rglob("*.part"))


def test_a_host_that_cannot_be_reached_is_not_a_missing_dataset() -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    with pytest.raises(PerfuseError, match=r"http://127\.0\.0\.1:9/x cannot be read: .*onnect") as raised:
        open_source("http://127.0.0.1:9/x")
    assert not isinstance(raised.value, InputError)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = make(tmp_path / "a", 1)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(remote.CACHE_DIR_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(PerfuseError, match="cannot be written"):
        open_source(url)

"""Datasets larger than the cache, read from a URL: what is fetched when, what stays, and what goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse.config import SplitConfig
from perfuse.data import order, remote, streamed
from perfuse.data.loader import CurveLoader
from perfuse.data.simulate import simulate_task
from perfuse.data.sources import open_source, source_hash
from perfuse.data.split import split_curves
from perfuse.data.store import CurveStore, write_dataset
from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.training.record import split_record

N, PER_SHARD = 96, 4
ROOM_SHARDS = 7


@pytest.fixture(scope="module")
def table() -> CurveTable:
    return simulate_task("T1", N, seed=0)


@pytest.fixture(scope="module")
def far(table: CurveTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = (table.take(np.arange(i, i + PER_SHARD)) for i in range(0, N, PER_SHARD))
    return write_dataset(parts, tmp_path_factory.mktemp("far") / "data", generator={}, seed=0)


@pytest.fixture
def place(far: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    import shutil

    return Path(shutil.copytree(far, tmp_path / "far"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache with room for seven of 24 shards, in windows of two."""
    monkeypatch.setattr(order, "WINDOW_SHARDS", 2)
    monkeypatch.setattr(order, "WINDOW_CURVES", 2 * PER_SHARD)
    monkeypatch.setattr(streamed, "_TRY_AGAIN_AFTER_S", 0.01)
    monkeypatch.setenv(remote.CACHE_DIR_VARIABLE, str(tmp_path / "cache"))
    manifest = CurveStore.open(far).manifest
    limit = ROOM_SHARDS * manifest.shards[0].bytes + remote.index_bytes(manifest)
    monkeypatch.setenv(remote.CACHE_GB_VARIABLE, f"{(limit + 1000) / 1e9:.9f}")
    yield tmp_path / "cache"
    wait_for(lambda: not fetch_threads())


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def fetch_threads() -> int:
    return sum(t.name == "perfuse-fetch" for t in threading.enumerate())


def kept(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*.arrow") if path.name.startswith("shard")}


def loader(source: Any, seed: int = 1, **options: Any) -> CurveLoader:
    return CurveLoader(source, np.arange(3, N), 5, seed, cache_bytes=0, **options)


def test_every_curve_comes_once_with_its_values_and_the_cache_stays_small(
    table: CurveTable, far: Path, cache: Path
) -> None:
    source = open_source(far.as_uri())
    assert len(kept(cache)) <= ROOM_SHARDS
    for epoch in range(2):
        rows = []
        for loaded in loader(source).epoch(epoch):
            rows += loaded.rows.tolist()
            assert loaded.curve_id.tolist() == table.curve_id[loaded.rows].tolist()
            assert np.array_equal(loaded.batch.conc_mg_l.numpy(), table.conc_mg_l[loaded.rows])
            assert len(kept(cache)) <= ROOM_SHARDS
        assert sorted(rows) == list(range(3, N))


def test_order_and_split_are_those_of_a_local_copy(far: Path) -> None:
    local, source = open_source(far), open_source(far.as_uri())
    assert source_hash(source) == source_hash(local)
    whole = [b.rows.tolist() for b in loader(local).epoch(3)]
    assert [b.rows.tolist() for b in loader(source).epoch(3)] == whole
    for start in (1, 9, len(whole) - 1):  # resumed
        assert [b.rows.tolist() for b in loader(source).epoch(3, start)] == whole[start:]
    shares = [list(loader(source, rank=r, world_size=2).epoch(3)) for r in range(2)]
    assert [a.rows.tolist() for a in shares[0]] == [rows[0::2] for rows in whole]
    assert [b.rows.tolist() for b in shares[1]] == [rows[1::2] for rows in whole]
    splits = [split_curves(s, SplitConfig(), 0) for s in (local, source)]
    assert [p.tolist() for p in splits[0].parts().values()] == [p.tolist() for p in splits[1].parts().values()]
    assert split_record(local, splits[0]) == split_record(source, splits[1])


def test_whole_columns_come_from_the_index_without_a_fetch(
    table: CurveTable, far: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_source(far.as_uri())
    assert len(list(cache.rglob("index-*.arrow"))) == 1

    def refuse(*_: Any) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(streamed, "fetch_shard", refuse)
    again = open_source(far.as_uri())  # nor does opening it again
    for name in ("compound_id", "group_id", "curve_id", "kp", "dose_mg", "dose_route"):
        assert np.array_equal(again.column(name), table.column(name)), name
    few = again.take([90, 2, 2], without=("time_h", "conc_mg_l", "censored"))  # type: ignore[call-arg]
    assert few.kp.tolist() == table.kp[[90, 2, 2]].tolist()


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_a_damaged_index_is_made_again(far: Path, cache: Path, harm: str) -> None:
    open_source(far.as_uri())
    (index,) = cache.rglob("index-*.arrow")
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    index.write_bytes(bytes(content) if harm == "flip" else bytes(content[: len(content) // 2]))
    assert open_source(far.as_uri()).column("kp").shape == (N, 14)
    assert [i.name for i in cache.rglob("index-*.arrow")] == [index.name]


def test_shards_are_fetched_ahead(far: Path, cache: Path) -> None:
    source = open_source(far.as_uri())
    assert isinstance(source, CurveStore)
    wait_for(lambda: not fetch_threads())
    far_ahead = [3, 9, 4]
    source.expect(far_ahead)
    wait_for(lambda: {f"shard-{i:05d}.arrow" for i in far_ahead} <= kept(cache))
    source.expect([11, 12, 13, 14, 15, 16, 17, 18, 19])  # more than there is room for: no more than fits, in order
    wait_for(lambda: {f"shard-{i:05d}.arrow" for i in range(11, 18)} <= kept(cache))
    wait_for(lambda: not fetch_threads())
    assert kept(cache) == {f"shard-{i:05d}.arrow" for i in range(11, 18)}


def test_the_least_recently_used_go_first(far: Path, cache: Path) -> None:
    source = open_source(far.as_uri())
    assert isinstance(source, CurveStore)
    source.expect([])
    for i in (0, 1, 2, 3, 4, 5, 6, 0, 1, 7, 8):
        source.take([i * PER_SHARD])
    assert kept(cache) == {f"shard-{i:05d}.arrow" for i in (0, 1, 4, 5, 6, 7, 8)}


@pytest.mark.parametrize(
    ("harm", "message"),
    [("vanish", "shard is missing .got {}"), ("corrupt", "shard is not what its manifest says .*got {}")],
)
def test_a_shard_that_goes_wrong_in_mid_epoch_is_named(place: Path, cache: Path, harm: str, message: str) -> None:
    source = open_source(place.as_uri())
    wait_for(lambda: not fetch_threads())
    batches = loader(source, seed=2)
    order_of_shards = [i for w in batches._order.windows(0) for i in batches._order.shard_numbers(w)]
    last = [i for i in order_of_shards if f"shard-{i:05d}.arrow" not in kept(cache)][-1]
    shard = place / f"shard-{last:05d}.arrow"
    if harm == "vanish":
        shard.unlink()
    else:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(bytes(content))
    seen: list[int] = []
    with pytest.raises(InputError, match=message.format(shard.name)) as raised:
        for loaded in batches.epoch(0):
            seen += loaded.rows.tolist()
    assert "\n" not in str(raised.value)
    assert len(seen) >= order_of_shards.index(last) * PER_SHARD - 10 - PER_SHARD  # it was read on until then
    assert last not in {row // PER_SHARD for row in seen}
    assert not any(t.name == "perfuse-loader" for t in threading.enumerate())


def test_a_shard_is_asked_for_again_before_giving_up(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(far.as_uri())
    real, failed = streamed.fetch_shard, set()

    def failing(*arguments: Any) -> None:
        if arguments[1] not in failed:
            failed.add(arguments[1])
            raise PerfuseError("the network is down")
        real(*arguments)

    monkeypatch.setattr(streamed, "fetch_shard", failing)
    assert sorted(r for b in loader(source).epoch(0) for r in b.rows) == list(range(3, N))
    assert len(failed) >= 24 - ROOM_SHARDS


def test_a_place_that_is_gone_for_good_is_one_line(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(far.as_uri())

    def failing(*_: Any) -> None:
        raise PerfuseError("the network is down")

    monkeypatch.setattr(streamed, "fetch_shard", failing)
    with pytest.raises(PerfuseError, match="the network is down"):
        list(loader(source).epoch(0))


def test_a_cache_too_small_for_two_windows_is_refused(far: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (far / "shard-00000.arrow").stat().st_size
    monkeypatch.setenv(remote.CACHE_GB_VARIABLE, f"{3 * size / 1e9:.9f}")
    with pytest.raises(InputError, match=f"what is shuffled together is larger .*raise {remote.CACHE_GB_VARIABLE}"):
        open_source(far.as_uri())


def test_the_first_pass_checks_every_curve(table: CurveTable, far: Path) -> None:
    seen: list[str] = []

    def check(curves: CurveTable) -> None:
        seen.extend(curves.curve_id.tolist())
        if "T1-0-50" in seen:
            raise InputError("fup", value=2.0)

    with pytest.raises(InputError, match="fup is not allowed .got 2"):
        remote.open_remote(far.as_uri(), check)
    assert seen == table.curve_id[:52].tolist()
    seen.clear()
    remote.open_remote(far.as_uri(), lambda curves: seen.extend(curves.curve_id.tolist()))  # no index was left
    assert seen == table.curve_id.tolist()


def test_a_file_that_another_process_removed_does_not_stay_mapped(far: Path) -> None:
    """Two readers of one cache, as two processes of a run: deleted files that are still mapped keep their room."""
    pair = open_source(far.as_uri()), open_source(far.as_uri())
    readers = [loader(source, rank=r, world_size=2) for r, source in enumerate(pair)]
    for epoch in range(2):
        for _ in zip(*(reader.epoch(epoch) for reader in readers), strict=True):
            pass
    wait_for(lambda: not fetch_threads())
    assert all(len(source._shards._mapped) <= ROOM_SHARDS + 2 for source in pair)  # type: ignore[attr-defined]


def test_a_place_in_memory_works_too(table: CurveTable, far: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in far.iterdir():
        memory.pipe_file(f"/streamed/{path.name}", path.read_bytes())
    try:
        source = open_source("memory://streamed")
        rows = sorted(r for b in loader(source).epoch(0) for r in b.rows)
        assert rows == list(range(3, N))
    finally:
        memory.rm("/streamed", recursive=True)

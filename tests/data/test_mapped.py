"""Local datasets while they are read: files that go or change, more shards than maps, memory that does not grow."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perfuse.data import mapped, order, store
from perfuse.data.loader import CurveLoader
from perfuse.data.simulate import simulate_task
from perfuse.data.sources import open_source
from perfuse.data.store import CurveStore, write_dataset
from perfuse.data.table import CurveTable
from perfuse.errors import InputError

N, PER_SHARD = 40, 5


@pytest.fixture(scope="module")
def table() -> CurveTable:
    return simulate_task("T1", N, seed=0)


@pytest.fixture
def dataset(table: CurveTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight shards, looked at before every read."""
    monkeypatch.setattr(mapped, "_LOOK_EVERY_S", -1.0)
    monkeypatch.setattr(mapped, "_TRY_AGAIN_AFTER_S", 0.0)
    monkeypatch.setattr(store, "_JOINED_LIMIT_BYTES", 0)
    parts = (table.take(np.arange(i, i + PER_SHARD)) for i in range(0, N, PER_SHARD))
    return write_dataset(parts, tmp_path / "data", generator={}, seed=0)


def damage(path: Path) -> None:
    """Write over a byte in the file itself, and let its time tell."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(1, 1))


def test_a_shard_that_is_deleted_or_replaced_stays_readable(table: CurveTable, dataset: Path) -> None:
    source = open_source(dataset)
    (dataset / "shard-00003.arrow").unlink()
    (dataset / "shard-00004.arrow").unlink()
    (dataset / "shard-00004.arrow").write_bytes(b"another file")
    assert np.array_equal(source.take(range(N)).conc_mg_l, table.conc_mg_l)


def test_a_shard_that_is_truncated_while_it_is_read_is_named(dataset: Path) -> None:
    source = open_source(dataset)
    path = dataset / "shard-00003.arrow"
    os.truncate(path, 5000)
    batches = CurveLoader(source, np.arange(N), 4, 0, shuffle=False, cache_bytes=0).epoch(0)
    seen = []
    with pytest.raises(InputError, match=r"shard-00003\.arrow: shard was truncated") as raised:
        for loaded in batches:
            seen += loaded.rows.tolist()
    assert seen == list(range(12))  # curve 15 is the first of the shard
    assert "\n" not in str(raised.value)


def test_a_shard_that_is_written_over_while_it_is_read_is_named(dataset: Path) -> None:
    source = open_source(dataset)
    damage(dataset / "shard-00006.arrow")
    source.take(range(30))
    with pytest.raises(InputError, match=r"shard-00006\.arrow: shard has changed while it was read"):
        source.take([31])


def test_a_new_time_alone_means_nothing(table: CurveTable, dataset: Path) -> None:
    source = open_source(dataset)
    os.utime(dataset / "shard-00006.arrow", ns=(1, 1))
    assert source.take([31]).kp.tolist() == table.kp[[31]].tolist()


def test_more_shards_than_maps_are_read_as_well(
    table: CurveTable, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_MOST_MAPPED", 2)
    monkeypatch.setattr(store, "_JOINED_LIMIT_BYTES", 0)
    source = CurveStore.open(dataset, verify=True)
    for seed in range(3):
        rows = np.random.default_rng(seed).permutation(N)[:17]
        assert np.array_equal(source.take(rows).conc_mg_l, table.conc_mg_l[rows])
    assert len(source._shards._mapped) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("returns", [True, False])
def test_an_unmapped_shard_that_is_gone_is_looked_for_again(
    table: CurveTable, dataset: Path, monkeypatch: pytest.MonkeyPatch, returns: bool
) -> None:
    monkeypatch.setattr(mapped, "_MOST_MAPPED", 1)
    source = CurveStore.open(dataset)
    path = dataset / "shard-00002.arrow"
    away = path.rename(dataset / "away")
    monkeypatch.setattr("time.sleep", lambda _: away.rename(path) if returns else None)
    if returns:
        assert np.array_equal(source.take([11]).conc_mg_l, table.conc_mg_l[[11]])
    else:
        with pytest.raises(InputError, match=r"shard-00002\.arrow: shard is missing"):
            source.take([11])


def test_an_unmapped_shard_that_changed_is_refused(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_MOST_MAPPED", 1)
    source = CurveStore.open(dataset)
    damage(dataset / "shard-00002.arrow")
    with pytest.raises(InputError, match=r"shard-00002\.arrow: shard has changed since it was written"):
        source.take([11])


def test_threads_end_with_what_they_were_for(dataset: Path) -> None:
    source = open_source(dataset)  # verified on threads
    epoch = CurveLoader(source, np.arange(N), 4, 0, cache_bytes=0).epoch(0)
    next(epoch)
    epoch.close()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("perfuse")]


def rss_anon_mb() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_data(table: CurveTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """72 MB of curves, 144 kB of row numbers and names: what stays after a fifth of the epoch stays to its end."""
    monkeypatch.setattr(order, "WINDOW_SHARDS", 2)
    monkeypatch.setattr(order, "WINDOW_CURVES", 800)
    monkeypatch.setattr(store, "_JOINED_LIMIT_BYTES", 10**6)
    wide = table.take(np.arange(400) % N)

    def shards() -> Iterator[CurveTable]:
        for i in range(12):
            names = np.asarray([f"{i}-{j}" for j in range(400)])
            yield replace(wide, curve_id=names, compound_id=names)

    source = CurveStore.open(write_dataset(shards(), tmp_path / "wide", generator={}, seed=0))
    at = []
    for loaded in CurveLoader(source, np.arange(4800), 48, 0, cache_bytes=0).epoch(0):
        assert len(loaded.batch) == 48
        at.append(rss_anon_mb())
    assert max(at[20:]) - max(at[:20]) < 10

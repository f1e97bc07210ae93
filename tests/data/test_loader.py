"""The loader: every curve once an epoch, order by seed and epoch alone, resumable, errors and endings clean."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.data.batch import CurveBatch
from perfuse.data.loader import CurveLoader, LoadedBatch
from perfuse.data.simulate import simulate_task
from perfuse.data.store import CurveStore, write_dataset
from perfuse.data.table import CurveTable, to_batch
from perfuse.errors import InputError
from perfuse.pk.topology import Topology

MODES = [{"cache_bytes": 0}, {"cache_bytes": 0, "prefetch": 0}, {}, {"cache_bytes": 0, "prefetch": 9}]


@pytest.fixture(scope="module")
def table() -> CurveTable:
    return simulate_task("T1", 50, seed=0)


@pytest.fixture(scope="module")
def store(table: CurveTable, tmp_path_factory: pytest.TempPathFactory) -> CurveStore:
    parts = [table.take(np.arange(i, min(i + 16, 50))) for i in range(0, 50, 16)]
    return CurveStore.open(write_dataset(parts, tmp_path_factory.mktemp("d") / "d", generator={}, seed=0))


def visited(batches: Sequence[LoadedBatch]) -> list[list[int]]:
    return [b.rows.tolist() for b in batches]


def assert_same(a: CurveBatch, b: CurveBatch) -> None:
    for name in ("time_h", "is_plasma", "conc_mg_l", "mask", "censored", "loq_mg_l"):
        assert getattr(a, name).equal(getattr(b, name)), name
    for name in ("volume_l", "kp", "flow_l_h", "elimination_l_h", "fup", "bp_ratio"):
        assert getattr(a.system, name).equal(getattr(b.system, name)), name
    for name in ("time_h", "amount_mg", "duration_h"):
        assert getattr(a.doses, name).equal(getattr(b.doses, name)), name


@pytest.mark.parametrize("mode", MODES)
def test_every_row_comes_once_with_its_own_values(table: CurveTable, store: CurveStore, mode: dict) -> None:
    rows = np.arange(5, 48)
    loader = CurveLoader(store, rows, 8, seed=1, **mode)
    batches = list(loader.epoch(0))
    assert [len(b.rows) for b in batches] == [8, 8, 8, 8, 8, 3]
    assert len(loader) == len(batches)
    assert sorted(r for b in batches for r in b.rows) == rows.tolist()
    for b in batches:
        assert b.curve_id.tolist() == table.curve_id[b.rows].tolist()
        assert_same(b.batch, to_batch(table.take(b.rows)))


@pytest.mark.parametrize("mode", MODES)
def test_resumed_epochs_go_on_where_they_stopped(table: CurveTable, mode: dict) -> None:
    whole = list(CurveLoader(table, np.arange(50), 8, seed=1, **mode).epoch(3))
    for start in (0, 1, 5, 7):
        rest = list(CurveLoader(table, np.arange(50), 8, seed=1, **mode).epoch(3, start))
        assert visited(rest) == visited(whole)[start:]


def test_order_depends_on_seed_and_epoch_alone(table: CurveTable, store: CurveStore) -> None:
    loader = CurveLoader(table, np.arange(50), 8, seed=1)
    first = visited(list(loader.epoch(0)))
    second = visited(list(loader.epoch(1)))
    assert first != second
    assert visited(list(loader.epoch(0))) == first  # earlier epochs leave no trace
    assert visited(list(CurveLoader(store, np.arange(50), 8, seed=1, cache_bytes=0).epoch(1))) == second
    assert visited(list(CurveLoader(table, np.arange(50), 8, seed=2).epoch(0))) != first
    whole = CurveLoader(table, np.arange(50), 10, seed=1).order(0)
    assert sorted(whole[:8].tolist()) == first[0]  # nor does the batch size


def test_unshuffled_keeps_the_rows_own_order(table: CurveTable) -> None:
    rows = np.asarray([9, 2, 30, 4, 4])
    loader = CurveLoader(table, rows, 2, seed=1, shuffle=False)
    assert visited(list(loader.epoch(0))) == visited(list(loader.epoch(5))) == [[9, 2], [30, 4], [4]]


def test_a_batch_larger_than_the_data_is_one_batch(table: CurveTable) -> None:
    assert [len(b.rows) for b in CurveLoader(table, [3, 1], 64, seed=0).epoch(0)] == [2]


def test_batches_are_not_shared(table: CurveTable) -> None:
    """What a consumer does to a batch must not reach the next epoch."""
    loader = CurveLoader(table, np.arange(10), 10, seed=0, shuffle=False)
    one = next(iter(loader.epoch(0)))
    one.batch.conc_mg_l.zero_()
    assert next(iter(loader.epoch(1))).batch.conc_mg_l.amax() > 0


def tensors(batch: CurveBatch) -> dict[str, torch.Tensor]:
    parts = (batch, batch.system, batch.doses)
    return {n: v for part in parts for n, v in vars(part).items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_every_batch(table: CurveTable, store: CurveStore, mode: dict, shuffle: bool) -> None:
    rows = np.arange(5, 39)  # 34 curves: batches of 8, 8, 8, 8 and 2
    joint = list(CurveLoader(store, rows, 8, seed=1, shuffle=shuffle, **mode).epoch(2))
    for n in (2, 3, 5):
        loaders = [CurveLoader(store, rows, 8, 1, shuffle, **mode, rank=r, world_size=n) for r in range(n)]
        assert {len(loader) for loader in loaders} == {5}
        shares = [list(loader.epoch(2)) for loader in loaders]
        for b, whole in enumerate(joint):
            for r in range(n):
                share = shares[r][b]
                assert share.rows.tolist() == whole.rows[r::n].tolist()
                assert share.curve_id.tolist() == whole.curve_id[r::n].tolist()
                assert_same(share.batch, to_batch(table.take(share.rows)))
        assert visited(list(loaders[1].epoch(2, 3))) == visited(shares[1])[3:]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["table", "store"])
def test_a_process_without_a_curve_gets_an_empty_batch(
    table: CurveTable, store: CurveStore, mode: dict, kind: str
) -> None:
    source = table if kind == "table" else store
    full, empty = CurveLoader(source, np.arange(9), 8, 0, **mode, rank=1, world_size=2).epoch(0)
    assert (len(full.rows), len(empty.rows), len(empty.batch), len(empty.curve_id)) == (4, 0, 0, 0)
    had, has = tensors(full.batch), tensors(empty.batch)
    assert {n: (v.dtype, v.shape[1:]) for n, v in has.items()} == {n: (v.dtype, v.shape[1:]) for n, v in had.items()}
    assert {len(v) for v in has.values()} == {0}
    assert len(empty.batch.to("cpu")) == 0


class Slow:
    """A source that counts what it reads and fails at a chosen row."""

    def __init__(self, table: CurveTable, fails_at: int = -1) -> None:
        self.table, self.fails_at, self.reads = table, fails_at, 0

    @property
    def topology(self) -> Topology:
        return self.table.topology

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> np.ndarray:
        return self.table.column(name)

    def take(self, rows: Sequence[int] | np.ndarray) -> CurveTable:
        self.reads += 1
        if self.fails_at in np.asarray(rows):
            raise InputError("shard", "is truncated")
        return self.table.take(rows)


def loader_threads() -> int:
    return sum(t.name == "perfuse-loader" for t in threading.enumerate())


def test_an_error_in_the_background_reaches_the_consumer(table: CurveTable) -> None:
    loader = CurveLoader(Slow(table, fails_at=20), np.arange(50), 8, seed=0, shuffle=False, cache_bytes=0)
    seen = []
    with pytest.raises(InputError, match="shard is truncated"):
        seen.extend(b.rows[0] for b in loader.epoch(0))
    assert seen == [0, 8]
    assert loader_threads() == 0


def test_stopping_early_ends_the_thread(table: CurveTable) -> None:
    source = Slow(table)
    epoch = CurveLoader(source, np.arange(50), 1, seed=0, prefetch=2, cache_bytes=0).epoch(0)
    next(epoch)
    assert loader_threads() == 1
    epoch.close()
    assert loader_threads() == 0
    assert source.reads <= 5
    for _ in CurveLoader(source, np.arange(50), 1, seed=0, cache_bytes=0).epoch(0):
        break
    assert loader_threads() == 0


def test_leaving_does_not_wait_for_a_read_that_hangs(table: CurveTable, monkeypatch: pytest.MonkeyPatch) -> None:
    from perfuse.data import loader

    monkeypatch.setattr(loader, "_LEAVE_S", 0.05)
    released, real, reads = threading.Event(), CurveTable.take, [0]

    def hanging(self: CurveTable, rows: np.ndarray) -> CurveTable:
        reads[0] += threading.current_thread().name == "perfuse-loader"
        if reads[0] > 2:
            assert released.wait(60)
        return real(self, rows)

    monkeypatch.setattr(CurveTable, "take", hanging)
    epoch = CurveLoader(table, np.arange(50), 8, 0, cache_bytes=0).epoch(0)
    assert [len(next(epoch).rows) for _ in range(2)] == [8, 8]
    epoch.close()  # type: ignore[attr-defined]
    threads = [t for t in threading.enumerate() if t.name == "perfuse-loader"]
    released.set()
    assert threads  # it was hanging still
    for thread in threads:
        thread.join(20)
    assert not any(t.is_alive() for t in threads)


def test_reading_runs_ahead_but_not_far(table: CurveTable) -> None:
    source = Slow(table)
    epoch = CurveLoader(source, np.arange(50), 1, seed=0, prefetch=3, cache_bytes=0).epoch(0)
    next(epoch)
    deadline = time.monotonic() + 5
    while source.reads < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert source.reads == 5  # one handed over, three waiting, one in hand
    epoch.close()


def test_an_epoch_never_begun_starts_no_thread(table: CurveTable) -> None:
    CurveLoader(table, np.arange(50), 1, seed=0, cache_bytes=0).epoch(0)
    assert loader_threads() == 0


def test_the_cache_reads_once(table: CurveTable) -> None:
    source = Slow(table)
    loader = CurveLoader(source, np.arange(50), 8, seed=0)
    for epoch in range(3):
        assert len(list(loader.epoch(epoch))) == 7
    assert source.reads == 2  # one row to measure, then everything


def test_the_cache_stays_within_its_limit(table: CurveTable) -> None:
    source = Slow(table)
    loader = CurveLoader(source, np.arange(50), 8, seed=0, cache_bytes=100_000)
    list(loader.epoch(0))
    list(loader.epoch(1))
    assert source.reads == 1 + 2 * 7


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": []}, "rows are missing"), ({"rows": [50]}, "rows are not all"), ({"rows": [-1]}, "rows are not all"),
        ({"batch_size": 0}, "batch_size"), ({"seed": -1}, "seed"), ({"prefetch": -1}, "prefetch"),
        ({"rank": 2, "world_size": 2}, "rank is not allowed .got 2"), ({"rank": -1}, "got -1"),
        ({"world_size": 0}, "rank"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(table: CurveTable, change: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        CurveLoader(**({"source": table, "rows": [0], "batch_size": 1, "seed": 0} | change))


@pytest.mark.parametrize(("epoch", "start", "named"), [(-1, 0, "epoch"), (0, 3, "start_batch"), (0, -1, "start_batch")])
def test_bad_positions_are_refused(table: CurveTable, epoch: int, start: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        CurveLoader(table, [0, 1], 1, seed=0).epoch(epoch, start)


def test_path_argument_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="manifest"):
        CurveStore.open(tmp_path / "nowhere")


def test_a_read_that_does_not_come_can_be_left(t1_table: CurveTable, monkeypatch: pytest.MonkeyPatch) -> None:
    from perfuse.data import loader as module

    monkeypatch.setattr(module, "_ASK_S", 0.01)
    monkeypatch.setattr(module, "_LEAVE_S", 0.01)
    hang = threading.Event()

    class Hanging:
        topology = t1_table.topology
        column = t1_table.column

        def __len__(self) -> int:
            return len(t1_table)

        def take(self, rows: Any) -> CurveTable:
            hang.wait(10)
            return t1_table.take(rows)

    loader = CurveLoader(Hanging(), np.arange(8), 4, seed=0, cache_bytes=0)
    loader.should_stop = lambda: True
    with pytest.raises(module.LoadingStopped):
        next(iter(loader.epoch(0)))
    hang.set()

"""Shard-then-row orders: every row once, the same from anywhere, a window's shards alone, fixed numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from perfuse.data import order as module
from perfuse.data.order import RowOrder


class Shards:
    """A source of unequal shards, of which nothing is read."""

    def __init__(self, sizes: Sequence[int], curve_bytes: int = 1) -> None:
        self.shard_offsets = np.cumsum([0, *sizes])
        self.shard_bytes = np.asarray(sizes) * curve_bytes

    def expect(self, shards: Sequence[int]) -> None: ...


SIZES = (40, 3, 50, 45, 60, 1, 40, 40, 52, 40, 9)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_SHARDS", 2)
    monkeypatch.setattr(module, "WINDOW_CURVES", 90)


def some_rows(seed: int = 0) -> np.ndarray:
    """Two thirds of all rows, none of the third shard's."""
    rows = np.random.default_rng(seed).permutation(sum(SIZES))[: 2 * sum(SIZES) // 3]
    return np.sort(rows[(rows < 43) | (rows >= 93)])


def visited(order: RowOrder, epoch: int, start: int = 0, size: int = 7) -> list[np.ndarray]:
    return [places for places, _ in order.batches(epoch, start, size)]


@pytest.mark.parametrize("mixed", [False, True])
def test_every_place_comes_once_in_full_batches(mixed: bool) -> None:
    rows = np.random.default_rng(1).permutation(some_rows()) if mixed else some_rows()
    order = RowOrder(rows, 3, True, Shards(SIZES))
    assert order.n_windows() == 3
    batches = visited(order, 0)
    assert sorted(np.concatenate(batches)) == list(range(len(rows)))
    assert {len(b) for b in batches[:-1]} == {7}
    assert 1 <= len(batches[-1]) <= 7


def test_the_order_of_rows_in_the_request_does_not_matter() -> None:
    rows = some_rows()
    mixed = np.random.default_rng(1).permutation(rows)
    orders = [RowOrder(r, 3, True, Shards(SIZES)) for r in (rows, mixed)]
    assert [rows[b].tolist() for b in visited(orders[0], 5)] == [mixed[b].tolist() for b in visited(orders[1], 5)]


def test_an_epoch_is_the_same_from_anywhere() -> None:
    order = RowOrder(some_rows(), 3, True, Shards(SIZES))
    whole = visited(order, 2)
    for start in range(len(whole) + 1):
        rest = visited(RowOrder(some_rows(), 3, True, Shards(SIZES)), 2, start)
        assert [b.tolist() for b in rest] == [b.tolist() for b in whole[start:]]


def test_seeds_and_epochs_give_orders_of_their_own() -> None:
    source, rows = Shards(SIZES), some_rows()
    orders = {(s, e): np.concatenate(visited(RowOrder(rows, s, True, source), e)) for s in (0, 1) for e in (0, 1)}
    kept = list(orders.values())
    for i, one in enumerate(kept):
        for other in kept[i + 1 :]:
            assert (one == other).mean() < 0.1
    windows = [tuple(w.shards.tolist() for w in RowOrder(rows, 0, True, source).windows(e)) for e in range(4)]
    assert len({str(w) for w in windows}) == 4


def test_a_window_reads_its_own_shards_and_the_next_ones_are_announced() -> None:
    source, rows = Shards(SIZES), some_rows()
    order = RowOrder(rows, 3, True, source)
    windows = order.windows(1)
    assert sorted(np.concatenate([order.shard_numbers(w) for w in windows])) == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10]
    for window in windows:
        places = order.places(window, 1)
        assert len(places) == window.end - window.start
        touched = np.searchsorted(source.shard_offsets, rows[places], side="right") - 1
        assert set(touched) == set(order.shard_numbers(window))
    announced = [shards for _, shards in order.batches(1, 0, 7)]
    changes = [shards for i, shards in enumerate(announced) if i == 0 or shards is not announced[i - 1]]
    assert changes == [
        order.shard_numbers(windows[0]) + order.shard_numbers(windows[1]),
        order.shard_numbers(windows[1]) + order.shard_numbers(windows[2]),
        order.shard_numbers(windows[2]),
    ]


def test_few_curves_are_permuted_as_a_whole_as_ever() -> None:
    for sizes, n in (((40,) * 4, 160), (SIZES, 80)):  # no two windows' worth; few rows of many
        order = RowOrder(np.arange(n), 3, True, Shards(sizes))
        key = np.asarray([3, 0x10AD << 48 | 6], dtype=np.uint64)
        expected = np.random.Generator(np.random.Philox(key=key)).permutation(n)
        assert np.concatenate(visited(order, 6)).tolist() == expected.tolist()


def test_large_curves_make_smaller_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_BYTES", 1000)
    assert RowOrder(some_rows(), 3, True, Shards(SIZES, 10)).n_windows() == 3
    assert RowOrder(some_rows(), 3, True, Shards(SIZES, 13)).n_windows() == 4
    assert RowOrder(some_rows(), 3, True, Shards(SIZES, 10**6)).n_windows() == 5  # two shards each


def test_unshuffled_rows_keep_their_order() -> None:
    rows = some_rows()
    order = RowOrder(rows, 3, False, Shards(SIZES))
    assert order.n_windows() == 3
    assert np.concatenate(visited(order, 4)).tolist() == list(range(len(rows)))
    assert np.concatenate(visited(order, 4, 5)).tolist() == list(range(35, len(rows)))
    mixed = RowOrder(rows[::-1].copy(), 3, False, Shards(SIZES))
    assert np.concatenate(visited(mixed, 4)).tolist() == list(range(len(rows)))


def test_the_order_is_this_one() -> None:
    """Numbers that must never change: a run that is resumed by a later version goes on in the same order."""
    order = RowOrder(np.arange(sum(SIZES)), 11, True, Shards(SIZES))
    assert [w.shards.tolist() for w in order.windows(2)] == [[2, 6, 8], [4, 0, 1], [5, 7, 3], [9, 10]]
    assert np.concatenate(visited(order, 2))[:8].tolist() == [300, 43, 232, 316, 67, 236, 84, 288]

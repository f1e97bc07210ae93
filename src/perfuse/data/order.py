"""The order in which an epoch visits curves: a permutation, or, of many shards, shards first and rows then.

Up to 65,536 rows, or rows of shards that hold less than 131,072 curves, are permuted as a whole. Of more, the shards
are permuted, taken in windows of at least eight shards that hold 65,536 curves (fewer where they take more than 2 GiB),
and the rows of a window permuted together. So a few files at a time are read, in an order known beforehand, and
nothing that grows with the data is kept but the row numbers themselves. Every permutation comes from a counter-based
stream of its own (Philox keyed by seed and epoch; Salmon JK et al. SC '11, doi 10.1145/2063384.2063405): any place is
reached without the ones before it.

Axis legend: C the rows to visit, S the shards that hold one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from perfuse.data.manifest import Manifest

WINDOW_SHARDS = 8
WINDOW_CURVES = 65_536
WINDOW_BYTES = 2**31
_LOADER_STREAM = 0x10AD


def largest_windows_bytes(manifest: Manifest) -> int:
    """Most that two windows of a dataset, the one that is read and the one that comes next, can take on the disk."""
    sizes = sorted((shard.bytes for shard in manifest.shards), reverse=True)
    n = _n_windows(manifest.n_curves, sum(sizes), len(sizes))
    return sum(sizes[: 2 * -(-len(sizes) // n)])


def _n_windows(n_curves: int, n_bytes: int, n_shards: int) -> int:
    return max(1, min(n_shards // WINDOW_SHARDS, max(n_curves // WINDOW_CURVES, n_bytes // WINDOW_BYTES)))


@runtime_checkable
class Sharded(Protocol):
    """A source that consists of shards."""

    shard_offsets: np.ndarray
    shard_bytes: np.ndarray

    def expect(self, shards: Sequence[int]) -> None:
        """See ``Shards.expect``."""


@dataclass(frozen=True)
class Window:
    """What is shuffled together.

    Attributes:
        shards: Their numbers, in the order of the epoch; empty for a source that has none.
        start, end: Places in the epoch, of C.
        number: Of its epoch, from 0.
    """

    shards: np.ndarray
    start: int
    end: int
    number: int


class RowOrder:
    """Orders of some rows of a source.

    Args:
        rows: Row numbers, ``(C,)``.
        seed: Of all orders, in [0, 2**63).
        shuffle: False keeps the rows' own order.
        source: Where rows lie; shards count only if it is ``Sharded``.
    """

    def __init__(self, rows: np.ndarray, seed: int, shuffle: bool, source: object) -> None:
        self._n, self._seed, self._shuffle = len(rows), seed, shuffle
        self._shards = np.zeros(0, dtype=np.int64)
        self._by_shard: np.ndarray | None = None
        self._bounds = np.asarray([0, len(rows)])
        self._bytes = np.zeros(0, dtype=np.int64)
        self._curves = 0
        if isinstance(source, Sharded):
            self._lay_out(rows, source)

    def _lay_out(self, rows: np.ndarray, source: Sharded) -> None:
        """Note which places of ``rows`` each shard holds."""
        if not bool((rows[1:] >= rows[:-1]).all()):
            self._by_shard = np.argsort(rows, kind="stable")
            rows = rows[self._by_shard]
        bounds = np.searchsorted(rows, source.shard_offsets)
        self._shards = np.flatnonzero(np.diff(bounds))
        self._bounds = np.append(bounds[self._shards], len(rows))
        self._bytes = source.shard_bytes[self._shards]
        self._curves = int(np.diff(source.shard_offsets)[self._shards].sum())

    def n_windows(self) -> int:
        """Windows an epoch is divided into; 1 where everything is shuffled together (or lies in no order of files)."""
        whole = self._n <= WINDOW_CURVES if self._shuffle else self._by_shard is not None
        return 1 if whole else _n_windows(self._curves, int(self._bytes.sum()), len(self._shards))

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch, in order; as even in shards as can be."""
        n = self.n_windows()
        if n == 1:
            return [Window(self._shards, 0, self._n, 0)]
        order = np.arange(len(self._shards))
        if self._shuffle:
            order = self._random(epoch, 0).permutation(len(order))
        sizes = np.diff(self._bounds)
        windows, start = [], 0
        for number, some in enumerate(np.array_split(order, n)):
            end = start + int(sizes[some].sum())
            windows.append(Window(some, start, end, number))
            start = end
        return windows

    def places(self, window: Window, epoch: int) -> np.ndarray:
        """Positions in ``rows`` in the order in which a window visits them."""
        if not self._shuffle:
            return np.arange(window.start, window.end)
        if self.n_windows() == 1:  # the stream of old: whatever is visited as a whole keeps its order
            return self._random(epoch, None).permutation(self._n)
        places = np.concatenate([np.arange(self._bounds[s], self._bounds[s + 1]) for s in window.shards.tolist()])
        places = self._random(epoch, window.number + 1).permutation(places)
        return places if self._by_shard is None else self._by_shard[places]

    def shard_numbers(self, window: Window) -> list[int]:
        """Shards of the source that a window reads."""
        return self._shards[window.shards].tolist() if self.n_windows() > 1 else self._shards.tolist()

    def batches(self, epoch: int, start_batch: int, batch_size: int) -> Iterator[tuple[np.ndarray, list[int]]]:
        """Positions in ``rows`` of each batch from ``start_batch`` on, and the shards to expect from then on.

        The list is the same object until it changes, which is when a window is begun: it names that window's shards
        and then the next one's.
        """
        windows = self.windows(epoch)
        start = start_batch * batch_size
        left = np.zeros(0, dtype=np.int64)
        expected: list[int] = []
        for i, window in enumerate(windows):
            if window.end <= start:
                continue
            places = self.places(window, epoch)[max(start - window.start, 0) :]
            ahead = windows[i : i + 2] if len(windows) > 1 else windows
            expected = list(dict.fromkeys(s for w in ahead for s in self.shard_numbers(w)))
            if len(left):
                places = np.concatenate((left, places))
            whole = len(places) - len(places) % batch_size
            for at in range(0, whole, batch_size):
                yield places[at : at + batch_size], expected
            left = places[whole:]
        if len(left):
            yield left, expected

    def _random(self, epoch: int, number: int | None) -> np.random.Generator:
        """The stream of an epoch's shards (0), of one of its windows (from 1), or of the epoch as a whole (None)."""
        key = np.asarray([self._seed, _LOADER_STREAM << 48 | epoch], dtype=np.uint64)
        counter = 0 if number is None else np.asarray([0, 0, number, 1], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

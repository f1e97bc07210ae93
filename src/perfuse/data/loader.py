"""Batches of curves: shuffled by seed and epoch, resumable at any batch, prepared ahead on a thread.

Axis legend: B batch, C the loader's curves.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from perfuse.data.batch import CurveBatch
from perfuse.data.order import RowOrder, Sharded
from perfuse.data.table import CurveSource, to_batch
from perfuse.errors import InputError

CACHE_BYTES = 512 * 2**20
"""Curves are kept as ready tensors when they need no more than this (about 35,000 curves of 14 organs x 100 times)."""
_CHUNK_CURVES = 4096
_POLL_S, _ASK_S = 0.1, 0.5
_LEAVE_S = 5.0
"""Longest wait for the thread to end: it may hang in a read, and whoever leaves has a checkpoint to save."""

_T = TypeVar("_T")


class LoadingStopped(Exception):
    """``CurveLoader.should_stop`` said so while a batch was waited for."""


@dataclass(frozen=True)
class LoadedBatch:
    """One batch and where it came from.

    Attributes:
        rows: Row numbers in the source, ``(B,)``; none where a short batch leaves nothing for this process.
        batch: Tensors for models and loss.
        curve_id: Names, ``(B,)``.
    """

    rows: np.ndarray
    batch: CurveBatch
    curve_id: np.ndarray


def select_curves(record: _T, index: Tensor) -> _T:
    """The named curves of a ``CurveBatch`` (or of a part of one): every tensor's rows ``index``."""
    changed: dict[str, object] = {}
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = value.index_select(0, index)
        elif field.name in ("system", "doses") and is_dataclass(value):
            changed[field.name] = select_curves(value, index)
    return replace(record, **changed)  # type: ignore[type-var]


def _allocate(record: _T, n: int) -> _T:
    """The same record with every tensor ``n`` rows long, unset."""
    changed: dict[str, object] = {}
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = torch.empty((n, *value.shape[1:]), dtype=value.dtype)
        elif field.name in ("system", "doses"):
            changed[field.name] = _allocate(value, n)
    return replace(record, **changed)  # type: ignore[type-var]


def _store(target: object, source: object, at: slice) -> None:
    """Copy every tensor of ``source`` into rows ``at`` of ``target``."""
    for field in fields(source):  # type: ignore[arg-type]
        value = getattr(source, field.name)
        if isinstance(value, Tensor):
            getattr(target, field.name)[at] = value
        elif field.name in ("system", "doses"):
            _store(getattr(target, field.name), value, at)


def _tensor_bytes(record: object) -> int:
    """Bytes of all tensors of a batch."""
    total = 0
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif field.name in ("system", "doses"):
            total += _tensor_bytes(value)
    return total


class CurveLoader:
    """Batches of some rows of a source.

    The order is a function of (seed, epoch) and the data alone (``data.order``): neither the batch size, nor earlier
    epochs, nor where an epoch is resumed, nor the number of processes changes it. Within a shuffled batch rows are
    sorted (order there means nothing to training, and reading a file forwards is faster). The last batch may be short;
    no curve is dropped or repeated.

    Args:
        source: Where curves come from.
        rows: Row numbers to use, at least one.
        batch_size: Curves per batch.
        seed: Seed of the order, in [0, 2**63).
        shuffle: False keeps ``rows``' own order (validation).
        prefetch: Batches prepared ahead on a background thread; 0 prepares them when asked, as does the cache.
        cache_bytes: Keep converted tensors when all rows need no more than this (``CACHE_BYTES``); 0 never does.
        rank, world_size: Process ``rank`` of ``world_size`` that share every batch: it gets curves ``rank``,
            ``rank + world_size``, ... of each. All get equally many batches, some of them perhaps without a curve.

    Raises:
        InputError: for no rows, rows outside the source, or numbers out of range.
    """

    def __init__(
        self,
        source: CurveSource,
        rows: Sequence[int] | np.ndarray,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        prefetch: int = 2,
        cache_bytes: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.source = source
        self.rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        if not len(self.rows):
            raise InputError("rows", "are missing: there is no curve to load", allowed=">= 1")
        if self.rows.min() < 0 or self.rows.max() >= len(source):
            raise InputError(
                "rows", "are not all in the data", value=int(self.rows.max()), allowed=f"0..{len(source) - 1}"
            )
        if batch_size < 1:
            raise InputError("batch_size", value=batch_size, unit="curves", allowed=">= 1")
        if not 0 <= seed < 2**63:
            raise InputError("seed", value=seed, allowed="[0, 2**63)")
        if prefetch < 0:
            raise InputError("prefetch", value=prefetch, unit="batches", allowed=">= 0")
        if not 0 <= rank < world_size:
            raise InputError("rank", value=rank, allowed=f"0..{world_size - 1} of {world_size} processes")
        self.rank, self.world_size = rank, world_size
        self.batch_size = int(batch_size)
        self.seed = seed
        self.shuffle = shuffle
        self.prefetch = prefetch
        self._order = RowOrder(self.rows, seed, shuffle, source)
        self._cache_bytes = CACHE_BYTES if cache_bytes is None else cache_bytes
        self._cache: tuple[CurveBatch, np.ndarray] | None = None
        self._cache_tried = False
        self._lock = threading.Lock()
        self.should_stop: Callable[[], bool] = lambda: False
        """Asked now and then while a batch is not ready: a read may take long, or hang."""

    def __len__(self) -> int:
        """Batches per epoch, the same number in every process."""
        return -(-len(self.rows) // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """``(C,)`` positions in ``rows`` in the order in which an epoch visits them."""
        return np.concatenate([self._order.places(window, epoch) for window in self._order.windows(epoch)])

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[LoadedBatch]:
        """The batches of one epoch from ``start_batch`` on.

        An error while reading is raised here, in the consumer; stopping early ends the thread.

        Raises:
            InputError: for a negative epoch or a batch beyond the epoch's end.
            LoadingStopped: if ``should_stop`` said so while a batch was not ready.
        """
        if not 0 <= epoch < 2**48:
            raise InputError("epoch", value=epoch, allowed="[0, 2**48)")
        if not 0 <= start_batch <= len(self):
            raise InputError("start_batch", value=start_batch, allowed=f"0..{len(self)}")
        batches = self._batches(epoch, start_batch)
        # Cached tensors are selected in a fraction of a millisecond: a thread would only add its hand-over.
        return _ahead(batches, self.prefetch, self.should_stop) if self.prefetch and self._cached() is None else batches

    def _batches(self, epoch: int, start_batch: int) -> Iterator[LoadedBatch]:
        cache = self._cached()
        expect = self.source.expect if isinstance(self.source, Sharded) and cache is None else None
        for at, shards in self._order.batches(epoch, start_batch, self.batch_size):
            if expect is not None:
                expect(shards)
            if self.shuffle:
                at = at[np.argsort(self.rows[at], kind="stable")]
            at = at[self.rank :: self.world_size]
            rows = self.rows[at]
            if cache is not None:
                batch, names = cache
                yield LoadedBatch(rows, select_curves(batch, torch.as_tensor(at)), names[at])
            else:
                table = self.source.take(rows)
                yield LoadedBatch(rows, to_batch(table), table.curve_id)

    def _cached(self) -> tuple[CurveBatch, np.ndarray] | None:
        """All of the loader's curves as one batch, when they fit; made once, chunk by chunk."""
        with self._lock:
            if self._cache_tried or self._cache_bytes <= 0:
                return self._cache
            self._cache_tried = True
            n = len(self.rows)
            if _tensor_bytes(to_batch(self.source.take(self.rows[:1]))) * n > self._cache_bytes:
                return None
            whole: CurveBatch | None = None
            names = []
            for start in range(0, n, _CHUNK_CURVES):
                table = self.source.take(self.rows[start : start + _CHUNK_CURVES])
                chunk = to_batch(table)
                whole = whole if whole is not None else _allocate(chunk, n)
                _store(whole, chunk, slice(start, start + len(table)))
                names.append(table.curve_id)
            assert whole is not None
            self._cache = whole, np.concatenate(names)
            return self._cache


@dataclass(frozen=True)
class _Failure:
    """An error of the background thread on its way to the consumer."""

    error: BaseException


def _ahead(
    batches: Iterator[LoadedBatch], depth: int, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[LoadedBatch]:
    """The same batches, prepared up to ``depth`` ahead on a thread that ends with this generator."""
    ready: queue.Queue[LoadedBatch | _Failure | None] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: LoadedBatch | _Failure | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in batches:
                if not put(item):
                    return
            put(None)
        except BaseException as error:  # raised again in the consumer
            put(_Failure(error))

    def wait() -> LoadedBatch | _Failure | None:
        while True:
            try:
                return ready.get(timeout=_ASK_S)
            except queue.Empty:
                if should_stop():
                    raise LoadingStopped from None

    thread = threading.Thread(target=work, name="perfuse-loader", daemon=True)
    thread.start()
    try:
        while (item := wait()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join(_LEAVE_S)

"""Batches of small matrices on several threads, for decompositions that PyTorch does one matrix after another."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

_WORTH_A_THREAD = 32
"""Matrices per thread; handing over fewer costs more than it saves."""


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "perfuse-linalg")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def in_threads(function: Callable[[Tensor], tuple[Tensor, ...]], matrices: Tensor) -> tuple[Tensor, ...]:
    """``function(matrices)`` of a batch ``(B, N, N)``, in as many parts as PyTorch may use threads.

    Each matrix is worked on alone, so the result does not depend on the number of parts. No gradient is recorded.
    """
    threads = min(torch.get_num_threads(), len(matrices) // _WORTH_A_THREAD)
    if threads < 2:
        return tuple(function(matrices))

    def part(x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(function(x))

    first, *others = matrices.detach().chunk(threads)
    pending = [_pool(torch.get_num_threads()).submit(part, x) for x in others]
    parts = [part(first), *(p.result() for p in pending)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))

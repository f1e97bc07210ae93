"""Freed memory that is kept for the next step, where the C library lets us ask for it.

A step makes and frees a few dozen arrays of some megabytes. glibc gives the end of its heap back to the system as soon
as 128 KB of it are free, and takes it back at the next array, page by page and filled with zeros: a quarter of the time
of a prediction (mallopt(3): M_TRIM_THRESHOLD, M_MMAP_THRESHOLD).
"""

from __future__ import annotations

import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 256 << 20
"""How much free memory the heap may keep at its end."""
_LARGEST_ARRAY = 32 << 20
"""Arrays up to this size come from the heap; glibc allows no more."""


@cache
def keep_freed_memory() -> bool:
    """Let the C library keep up to ``KEPT_BYTES`` that have been freed; whether it agreed (only glibc does)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_ARRAY) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))

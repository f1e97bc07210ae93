"""When two names mean one compound."""

from __future__ import annotations

import re

import numpy as np

_STEREO_PREFIX = re.compile(r"^(?:\((?:r|s|rs|r,s|r/s|\+|-|±|\+/-|\+-)\)-)+")


def compound_key(name: str) -> str:
    """Lower-case name without stereo prefixes, so that enantiomers share their racemate's group.

    Names of different data sets are compared by this key; what is shown stays as it was written.
    """
    key = name.strip().lower()
    return _STEREO_PREFIX.sub("", key) or key


def compound_keys(names: np.ndarray) -> np.ndarray:
    """``compound_key`` of every name, ``(C,)`` str."""
    unique, code = np.unique(names, return_inverse=True)
    return np.asarray([compound_key(str(name)) for name in unique], dtype=str)[code]

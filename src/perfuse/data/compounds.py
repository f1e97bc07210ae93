"""When two names mean one compound."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

_STEREO_PREFIX = re.compile(r"^(?:\((?:r|s|rs|r,s|r/s|\+|-|±|\+/-|\+-)\)-)+")


def compound_key(name: str) -> str:
    """Lower-case name without stereo prefixes, so that enantiomers share their racemate's group.

    Names of different data sets are compared by this key; what is shown stays as it was written.
    """
    key = name.strip().lower()
    return _STEREO_PREFIX.sub("", key) or key


_PLAIN = r"^[!-')-~]([ -~]*[!-~])?$"
"""Printable ASCII without blanks around it that begins with no parenthesis: its key is its lower case."""


def compound_keys_of(names: pa.StringArray) -> pa.StringArray:
    """``compound_key`` of every name of an Arrow array, ``(C,)``; quick for a million plain names."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = pc.match_substring_regex(names, _PLAIN)
    lower = pc.ascii_lower(names)
    if pc.all(plain).as_py():
        return lower
    other = [compound_key(name) for name in names.filter(pc.invert(plain)).to_pylist()]
    return pc.replace_with_mask(lower, pc.invert(plain), pa.array(other, type=pa.string()))


def compound_keys(names: np.ndarray) -> np.ndarray:
    """``compound_key`` of every name, ``(C,)`` str."""
    unique, code = np.unique(names, return_inverse=True)
    return np.asarray([compound_key(str(name)) for name in unique], dtype=str)[code]

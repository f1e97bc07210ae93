"""Names of a million curves as integer codes: what comparing and grouping them needs, without a string for each.

Axis legend: C curves, N distinct names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from perfuse.data.compounds import compound_keys_of
from perfuse.data.table import CurveSource

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class NameCodes:
    """A column of names.

    Attributes:
        code: Which name each curve has, ``(C,)`` int32.
        names: The distinct names, ``(N,)``, in the order in which curves have them.
    """

    code: np.ndarray
    names: pa.StringArray

    def of(self, rows: np.ndarray) -> list[str]:
        """The distinct names of some curves, sorted."""
        import pyarrow as pa

        present = np.zeros(len(self.names), dtype=bool)
        present[self.code[rows]] = True
        names: list[str] = self.names.filter(pa.array(present)).to_pylist()
        return sorted(names)

    def rank(self) -> np.ndarray:
        """``(N,)`` place of each name in alphabetical order."""
        import pyarrow.compute as pc

        order = pc.sort_indices(self.names).to_numpy()
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        return rank

    def compounds(self) -> NameCodes:
        """The same curves by ``compound_key`` of their names."""
        written = compound_keys_of(self.names)
        if written.equals(self.names):
            return self
        keys = coded(written)
        return NameCodes(keys.code[self.code], keys.names)


def coded(names: pa.Array) -> NameCodes:
    """Codes of an Arrow array of strings."""
    encoded = names.dictionary_encode()
    return NameCodes(encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary)


def name_codes(source: CurveSource, column: str) -> NameCodes:
    """Codes of one of a source's columns of names."""
    import pyarrow as pa

    from perfuse.data.store import CurveStore

    if isinstance(source, CurveStore):
        return coded(source.names(column))
    return coded(pa.array(source.column(column).tolist(), type=pa.string()))

"""Dividing curves into training, validation, test and calibration parts without leakage.

Curves are not independent: all curves of a compound, and all curves of equal drug parameters (a parameter
group), belong together. A *unit* is a connected set of compounds and groups; units are never divided.

Axis legend: C curves, U units.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from perfuse.config import SplitConfig
from perfuse.data.names import NameCodes, coded, name_codes
from perfuse.data.table import CurveSource
from perfuse.errors import InputError

_SPLIT_STREAM = 0x5E11
"""Second half of the Philox key: keeps the split's random numbers apart from the loader's and the simulator's."""


@dataclass(frozen=True)
class Split:
    """Row numbers of the parts, int64, sorted, disjoint; ``calibration`` is empty unless it was asked for."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    calibration: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def parts(self) -> dict[str, np.ndarray]:
        """The parts by name; ``calibration`` only where there is one."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return parts | ({"calibration": self.calibration} if len(self.calibration) else {})


def curve_units(compound_id: np.ndarray, group_id: np.ndarray) -> np.ndarray:
    """``(C,)`` the unit of each curve, numbered 0..U-1.

    Two curves share a unit when a chain of equal compounds (``compound_key``: enantiomers go with their racemate) or
    equal parameter groups joins them. Units are
    numbered by their alphabetically first compound, so that the order of rows in a file does not matter.
    """
    import pyarrow as pa

    compounds, groups = (coded(pa.array(names.tolist(), type=pa.string())) for names in (compound_id, group_id))
    return joined_units(compounds.compounds(), groups)


def joined_units(compound: NameCodes, group: NameCodes) -> np.ndarray:
    """``curve_units`` of curves whose compounds (by key) and parameter groups are coded."""
    n = len(compound.names)
    size = n + len(group.names)
    ones = np.ones(len(compound.code), dtype=np.int8)
    joins = coo_matrix((ones, (compound.code, n + group.code)), shape=(size, size))
    label = connected_components(joins, directed=False)[1]
    # Labels are numbered without a gap, and every one has a compound.
    first = np.full(int(label.max(initial=-1)) + 1, n, dtype=np.int64)
    np.minimum.at(first, label[:n], compound.rank())
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[label[compound.code]]


def _part_sizes(n_units: int, config: SplitConfig, what: str) -> tuple[int, int, int]:
    """How many units validate, test and calibrate; at least one each (none only where the fraction is 0)."""
    fractions = config.validation_fraction, config.test_fraction, config.calibration_fraction
    sizes = tuple(max(1, round(fraction * n_units)) if fraction > 0 else 0 for fraction in fractions)
    if n_units - sum(sizes) < 1:
        need = 1 + sum(fraction > 0 for fraction in fractions)
        hint = "give more compounds"
        if need == 3 and n_units == 2 and config.test_fraction > 0:
            hint += ", or set split.test_fraction = 0 to keep no test part"
        elif n_units >= need:
            names = ["validation_fraction", "test_fraction"] + ["calibration_fraction"] * (fractions[2] > 0)
            hint = "lower " + " or ".join(f"split.{name}" for name in names)
        raise InputError(
            "split", f"leaves no {what} for training", value=n_units, unit=f"{what}s in the data",
            allowed=f">= {need} {what}s that share neither compound nor drug parameters", hint=hint,
        )  # fmt: skip
    return sizes[0], sizes[1], sizes[2]


def split_curves(source: CurveSource, config: SplitConfig, seed: int) -> Split:
    """Divide a source's curves; the result depends on names, configuration and seed alone.

    ``compound`` and ``group`` both divide units (see ``curve_units``), so neither a compound nor a parameter
    group is ever in two parts; fractions are fractions of units. ``random`` divides single curves and is refused
    where that would separate a compound or a group.

    Args:
        source: The curves.
        config: Kind and fractions.
        seed: Seed of the division, in [0, 2**63).

    Raises:
        InputError: for ``scaffold`` (no structures here), too few units, or a leaking ``random`` split.
    """
    if config.kind == "scaffold":
        raise InputError(
            "split.kind", "needs chemical structures (SMILES), which this data has not", value="scaffold",
            allowed="compound, group, random",
        )  # fmt: skip
    compound, group = name_codes(source, "compound_id").compounds(), name_codes(source, "group_id")
    if config.kind == "random":
        unit, what = np.arange(len(source)), "curve"
    else:
        unit, what = joined_units(compound, group), "compound"
    n_units = int(unit.max()) + 1 if len(unit) else 0
    sizes = _part_sizes(n_units, config, what)
    random = np.random.Generator(np.random.Philox(key=np.asarray([seed, _SPLIT_STREAM], dtype=np.uint64)))
    part_of_unit = np.zeros(n_units, dtype=np.int8)
    order = random.permutation(n_units)
    ends = np.cumsum(sizes)
    for i, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        part_of_unit[order[end - size : end]] = i + 1
    part = part_of_unit[unit]
    split = Split(*(np.flatnonzero(part == i).astype(np.int64) for i in range(4)))
    _refuse_leakage(source, split, compound, group)
    return split


def check_leakage(source: CurveSource, split: Split) -> None:
    """Refuse a split in which a curve, a compound or a parameter group is in two parts.

    Raises:
        InputError: naming the first compound or parameter group and its two parts.
    """
    _refuse_leakage(source, split, name_codes(source, "compound_id").compounds(), name_codes(source, "group_id"))


def _refuse_leakage(source: CurveSource, split: Split, compound: NameCodes, group: NameCodes) -> None:
    names = list(split.parts())
    rows = np.concatenate(list(split.parts().values()))
    part = np.repeat(np.arange(len(names), dtype=np.int8), [len(p) for p in split.parts().values()])
    if len(rows) and (rows.min() < 0 or rows.max() >= len(source)):
        bad = int(rows.max() if rows.max() >= len(source) else rows.min())
        raise InputError("split", "names a curve that is not in the data", value=bad, allowed=f"0..{len(source) - 1}")
    for column, label, codes in (
        ("", "curve", None), ("compound_id", "compound", compound), ("group_id", "parameter group", group)
    ):  # fmt: skip
        code = rows if codes is None else codes.code[rows]
        size = int(code.max(initial=-1)) + 1
        lowest, highest = np.full(size, len(names), dtype=np.int8), np.full(size, -1, dtype=np.int8)
        np.minimum.at(lowest, code, part)
        np.maximum.at(highest, code, part)
        if (lowest < highest).any():
            i = int(np.argmax(lowest < highest))
            raise InputError(
                "split", f"puts one {label} into two parts, {names[lowest[i]]} and {names[highest[i]]}",
                value=_named(source, column, int(rows[np.argmax(code == i)])),
                hint="use split.kind = 'compound', which keeps them together",
            )  # fmt: skip


def _named(source: CurveSource, column: str, row: int) -> object:
    """A row's compound or group, or its number."""
    return source.take([row]).column(column)[0] if column else row

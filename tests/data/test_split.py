"""Splits: fractions, repeatability, and no compound or parameter group in two parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.config import SplitConfig
from perfuse.data.simulate import simulate_task
from perfuse.data.split import Split, check_leakage, curve_units, split_curves
from perfuse.data.table import CurveTable
from perfuse.errors import InputError


@pytest.fixture(scope="module")
def table() -> CurveTable:
    return simulate_task("T1", 60, seed=0)


def named(table: CurveTable, compound: list[str], group: list[str]) -> CurveTable:
    """The first curves of a table under other names."""
    return replace(
        table.take(np.arange(len(compound))), compound_id=np.asarray(compound, str), group_id=np.asarray(group, str)
    )


def test_parts_cover_everything_once_in_order(table: CurveTable) -> None:
    split = split_curves(table, SplitConfig(validation_fraction=0.2, test_fraction=0.1), seed=3)
    assert [len(p) for p in split.parts().values()] == [42, 12, 6]
    assert sorted(np.concatenate(list(split.parts().values())).tolist()) == list(range(60))
    for part in split.parts().values():
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


def test_the_seed_decides(table: CurveTable) -> None:
    first, again, other = (split_curves(table, SplitConfig(), seed) for seed in (1, 1, 2))
    assert np.array_equal(first.validation, again.validation)
    assert np.array_equal(first.test, again.test)
    assert not np.array_equal(first.validation, other.validation)


def test_the_order_of_rows_does_not_decide(table: CurveTable) -> None:
    mixed = np.random.default_rng(0).permutation(60)
    a = split_curves(table, SplitConfig(), 1)
    shuffled = table.take(mixed)
    b = split_curves(shuffled, SplitConfig(), 1)
    assert set(table.curve_id[a.validation]) == set(shuffled.curve_id[b.validation])


@pytest.mark.parametrize("kind", ["compound", "group"])
def test_neither_compound_nor_group_is_separated(table: CurveTable, kind: str) -> None:
    compound = [f"c{i // 3}" for i in range(30)]
    group = [f"g{(i + 1) // 3}" for i in range(24)] + [f"h{i}" for i in range(6)]
    source = named(table, compound, group)  # c0-c7 are chained together by their groups; c8 and c9 stand alone
    assert len(np.unique(curve_units(source.compound_id, source.group_id))) == 3
    for seed in range(5):
        split = split_curves(source, SplitConfig(kind=kind), seed)
        assert min(len(p) for p in split.parts().values()) >= 3
        check_leakage(source, split)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=40))
def test_units_are_the_connected_sets(pairs: list[tuple[int, int]]) -> None:
    """Against a plain union-find."""
    parent: dict[str, str] = {}

    def find(x: str) -> str:
        while parent.setdefault(x, x) != x:
            x = parent[x]
        return x

    for c, g in pairs:
        parent[find(f"c{c}")] = find(f"g{g}")
    unit = curve_units(np.asarray([f"c{c}" for c, _ in pairs]), np.asarray([f"g{g}" for _, g in pairs]))
    for i, (c, _) in enumerate(pairs):
        for j, (d, _) in enumerate(pairs):
            assert (unit[i] == unit[j]) == (find(f"c{c}") == find(f"c{d}"))
    assert sorted(set(unit.tolist())) == list(range(int(unit.max()) + 1))


def test_random_needs_independent_curves(table: CurveTable) -> None:
    split = split_curves(table, SplitConfig(kind="random"), 0)
    assert len(split.validation) == 6
    source = named(table, ["same"] * 20, [f"g{i}" for i in range(20)])
    with pytest.raises(InputError, match=r"one compound into two parts.*same.*hint: use split\.kind = 'compound'"):
        split_curves(source, SplitConfig(kind="random"), 0)


def test_scaffold_needs_structures(table: CurveTable) -> None:
    with pytest.raises(InputError, match="SMILES"):
        split_curves(table, SplitConfig(kind="scaffold"), 0)


@pytest.mark.parametrize(
    ("n", "test_fraction", "works"), [(1, 0.0, False), (1, 0.1, False), (2, 0.1, False), (2, 0.0, True), (3, 0.1, True)]
)
def test_small_data_is_divided_or_refused(table: CurveTable, n: int, test_fraction: float, works: bool) -> None:
    source = table.take(np.arange(n))
    config = SplitConfig(test_fraction=test_fraction)
    if works:
        split = split_curves(source, config, 0)
        assert len(split.train) == len(split.validation) == 1
        assert len(split.test) == (test_fraction > 0)
    else:
        with pytest.raises(InputError, match="leaves no compound for training"):
            split_curves(source, config, 0)


def test_greedy_fractions_are_refused(table: CurveTable) -> None:
    config = SplitConfig(validation_fraction=0.89, test_fraction=0.1)
    with pytest.raises(InputError, match=r"lower split\.validation_fraction"):
        split_curves(table.take(np.arange(4)), config, 0)


def rows(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("split", "problem"),
    [
        (Split(rows(0, 1), rows(1), rows(2)), "one curve into two parts, train and validation"),
        (Split(rows(0), rows(1), rows(2)), "one compound into two parts, train and test.*got A"),
        (Split(rows(1), rows(3), rows(0)), "one parameter group into two parts, train and validation.*got y"),
        (Split(rows(0), rows(99), rows()), "names a curve that is not in the data.*got 99"),
        (Split(rows(-1), rows(0), rows()), "names a curve that is not in the data.*got -1"),
    ],
)
def test_leaks_are_named(table: CurveTable, split: Split, problem: str) -> None:
    source = named(table, ["A", "B", "A", "C"], ["x", "y", "z", "y"])
    with pytest.raises(InputError, match=problem):
        check_leakage(source, split)


def test_enantiomers_and_spellings_stay_together() -> None:
    names = np.asarray(["(R)-Warfarin", "warfarin", "(s)-WARFARIN", "b", "c", "d"])
    unit = curve_units(names, np.asarray(list("uvwxyz")))
    assert len(set(unit[:3])) == 1
    assert len(set(unit)) == 4


def test_a_calibration_part_is_taken_from_training_alone(table: CurveTable) -> None:
    plain = split_curves(table, SplitConfig(), 1)
    kept = split_curves(table, SplitConfig(calibration_fraction=0.25), 1)
    assert list(plain.parts()) == ["train", "validation", "test"] and len(plain.calibration) == 0
    assert np.array_equal(plain.validation, kept.validation) and np.array_equal(plain.test, kept.test)
    assert len(kept.calibration) == 15 and set(kept.calibration) < set(plain.train)
    assert sorted(np.concatenate(list(kept.parts().values())).tolist()) == list(range(60))


def test_a_calibration_part_that_shares_a_compound_is_refused(table: CurveTable) -> None:
    split = split_curves(table, SplitConfig(calibration_fraction=0.2), 1)
    names = table.compound_id.copy()
    names[split.calibration[0]] = names[split.train[0]]
    with pytest.raises(InputError, match="one compound into two parts, train and calibration"):
        check_leakage(replace(table, compound_id=names), split)


def test_a_calibration_part_that_leaves_no_training_is_refused(table: CurveTable) -> None:
    with pytest.raises(InputError, match="got 3 compounds.*lower .* or split.calibration_fraction|>= 4 compounds"):
        split_curves(table.take([0, 1, 2]), SplitConfig(calibration_fraction=0.2), 0)
    with pytest.raises(ValueError, match="calibration_fraction must be below 1"):
        SplitConfig(validation_fraction=0.4, test_fraction=0.4, calibration_fraction=0.3)

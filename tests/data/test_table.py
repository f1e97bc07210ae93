"""``to_batch``: what counts, is padded, is censored; ``parameter_group``; ``source_hash``; ``open_source``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perfuse.data.importers.origin import write_origin_npz
from perfuse.data.importers.tidy import write_tidy
from perfuse.data.simulate import simulate_task
from perfuse.data.sources import open_source, source_hash
from perfuse.data.store import write_dataset
from perfuse.data.table import CurveTable, parameter_group, to_batch
from perfuse.errors import InputError


@pytest.fixture(scope="module")
def table() -> CurveTable:
    return simulate_task("T1", 6, seed=0)


def test_mask_counts_what_was_observed_after_the_dose_and_above_the_limit(table: CurveTable) -> None:
    conc, censored, time = table.conc_mg_l.copy(), table.censored.copy(), table.time_h.copy()
    conc[0, 1, 5] = np.nan  # not observed
    conc[0, 1, 6] = table.loq_mg_l[0] / 2  # below the limit
    conc[0, 1, 7], censored[0, 1, 7] = table.loq_mg_l[0] / 2, True  # below, and said so
    conc[0, 1, 0] = 1.0  # at time 0
    conc[0, 1, 8], censored[0, 1, 8] = np.nan, True  # a flag without a value
    time[1, 60:], conc[1, :, 60:] = np.nan, np.nan
    batch = to_batch(replace(table, conc_mg_l=conc, censored=censored, time_h=time))
    assert batch.mask[0, 1, 5:9].tolist() == [False, False, True, False]
    assert batch.censored[0, 1, 5:9].tolist() == [False, False, True, False]
    assert not batch.mask[0, 1, 0]
    assert batch.conc_mg_l[0, 1, 5] == 0
    assert batch.mask[0, 1, 9:].all()
    assert not batch.mask[1, :, 60:].any()
    assert (batch.time_h[1, 60:] == time[1, 59]).all()
    assert batch.conc_mg_l.isfinite().all()


def test_plasma_is_told_from_blood(table: CurveTable) -> None:
    names = ["blood_venous", "plasma", "serum", "arterial_plasma", "blood_arterial", "tissue_homogenate"]
    batch = to_batch(replace(table, matrix=np.asarray(names)))
    assert batch.is_plasma.tolist() == [False, True, True, False, False, False]


def test_parameter_groups_are_equal_drugs(table: CurveTable) -> None:
    args = [table.kp, table.elimination_l_h, table.fup, table.bp_ratio]
    base = parameter_group(*args)
    assert len(set(base)) == len(table)
    assert (parameter_group(args[0] * (1 + 1e-12), *args[1:]) == base).all()
    for i in range(4):
        moved = [a * (1.001 if j == i else 1) for j, a in enumerate(args)]
        assert (parameter_group(*moved) != base).all()


def test_hash_follows_every_column(table: CurveTable) -> None:
    base = source_hash(table)
    assert source_hash(simulate_task("T1", 6, seed=0)) == base
    assert source_hash(table.take([1, 0, 2, 3, 4, 5])) != base
    conc, censored = table.conc_mg_l.copy(), table.censored.copy()
    conc[0, 0, 0] *= 1 + 1e-15
    censored[0, 0, 0] = True
    changes = {"conc_mg_l": conc, "censored": censored, "matrix": np.full(6, "plasma"), "fup": table.fup * 0.5,
               "curve_id": np.char.add(table.curve_id, "x")}  # fmt: skip
    assert len({source_hash(replace(table, **{n: v})) for n, v in changes.items()} | {base}) == len(changes) + 1


@pytest.mark.parametrize("name", ["data", "data.npz", "data.csv", "data.tsv", "data.parquet"])
def test_every_kind_of_data_opens(table: CurveTable, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".npz":
        write_origin_npz(table, path)
    elif path.suffix:
        write_tidy(table, path)
    else:
        write_dataset([table], path, generator={}, seed=0)
    source = open_source(path)
    assert np.array_equal(source.take(np.arange(6)).conc_mg_l, table.conc_mg_l)
    assert len(source_hash(source)) == 64


@pytest.mark.parametrize("name", ["nothing", "nothing.npz"])
def test_missing_data_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_source(tmp_path / name)


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"x")
    with pytest.raises(InputError, match=r"unknown kind.*a\.pkl"):
        open_source(tmp_path / "a.pkl")

"""Datasets on disk: the same bytes each time, zero-copy reading, and a refusal for every way of being broken."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from perfuse.data.simulate import simulate_task
from perfuse.data.sources import open_source, source_hash
from perfuse.data.store import CurveStore, write_dataset
from perfuse.data.table import CurveTable, to_batch
from perfuse.errors import InputError, PerfuseError

NAMES = [f.name for f in fields(CurveTable) if f.name != "topology"]


@pytest.fixture(scope="module")
def table() -> CurveTable:
    """30 curves of T1; some values absent, some censored, one name beyond ASCII."""
    curves = simulate_task("T1", 30, seed=0)
    conc, censored = curves.conc_mg_l.copy(), curves.censored.copy()
    conc[3, 2:, ::2] = np.nan
    conc[4, 0, -1], censored[4, 0, -1] = curves.loq_mg_l[4], True
    time = curves.time_h.copy()
    time[5, 90:], conc[5, :, 90:] = np.nan, np.nan
    return replace(curves, conc_mg_l=conc, censored=censored, time_h=time)


def thirds(table: CurveTable) -> Iterator[CurveTable]:
    for start in (0, 10, 20):
        yield table.take(np.arange(start, start + 10))


@pytest.fixture
def dataset(table: CurveTable, tmp_path: Path) -> Path:
    return write_dataset(thirds(table), tmp_path / "data", generator={"task": "test"}, seed=7)


def assert_equal(a: CurveTable, b: CurveTable) -> None:
    for name in NAMES:
        x, y = a.column(name), b.column(name)
        assert x.dtype.kind == y.dtype.kind, name
        assert np.array_equal(x, y, equal_nan=x.dtype.kind == "f"), name


@pytest.mark.parametrize("rows", [np.arange(30), np.arange(30)[::-1], [29, 0, 10, 10, 9], [4], [11, 12], []])
def test_rows_come_back_as_they_went_in(table: CurveTable, dataset: Path, rows: list[int]) -> None:
    store = CurveStore.open(dataset, verify=True)
    assert len(store) == 30
    assert_equal(store.take(rows), table.take(np.asarray(rows, dtype=np.int64)))


@pytest.mark.parametrize("name", NAMES)
def test_columns_come_back_as_they_went_in(table: CurveTable, dataset: Path, name: str) -> None:
    value = CurveStore.open(dataset).column(name)
    assert np.array_equal(value, table.column(name), equal_nan=value.dtype.kind == "f")


def test_large_stores_read_small_columns_from_the_map_too(
    table: CurveTable, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perfuse.data.store._JOINED_LIMIT_BYTES", 0)
    rows = [25, 3, 14]
    assert_equal(CurveStore.open(dataset).take(rows), table.take(rows))


def test_names_beyond_ascii_survive(table: CurveTable, tmp_path: Path) -> None:
    named = replace(table, compound_id=np.where(np.arange(30) == 3, "β-estradiol", table.compound_id))
    store = CurveStore.open(write_dataset([named], tmp_path / "d", generator={}, seed=None))
    assert store.take([3, 4]).compound_id.tolist() == ["β-estradiol", "T1-0-4"]
    assert store.column("compound_id")[3] == "β-estradiol"


def test_batches_are_those_of_the_table(table: CurveTable, dataset: Path) -> None:
    a, b = to_batch(CurveStore.open(dataset).take([3, 4, 5])), to_batch(table.take([3, 4, 5]))
    assert a.mask.equal(b.mask)
    assert a.censored.equal(b.censored)
    assert a.conc_mg_l.equal(b.conc_mg_l)
    assert a.time_h.equal(b.time_h)


def test_one_shards_columns_are_views_of_the_map(table: CurveTable, tmp_path: Path) -> None:
    path = write_dataset([table], tmp_path / "one", generator={}, seed=None)
    before = pa.total_allocated_bytes()
    value = CurveStore.open(path).column("conc_mg_l")
    assert not value.flags.owndata
    assert not value.flags.writeable
    assert pa.total_allocated_bytes() - before < value.nbytes / 10


def test_equal_curves_give_equal_bytes(table: CurveTable, dataset: Path, tmp_path: Path) -> None:
    again = write_dataset(thirds(table), tmp_path / "elsewhere" / "again", generator={"task": "test"}, seed=7)
    files = sorted(p.name for p in dataset.iterdir())
    assert files == ["manifest.json", "shard-00000.arrow", "shard-00001.arrow", "shard-00002.arrow"]
    for name in files:
        assert (dataset / name).read_bytes() == (again / name).read_bytes()


def test_manifest_says_what_is_inside(dataset: Path) -> None:
    manifest = CurveStore.open(dataset).manifest
    assert (manifest.topology, manifest.seed, manifest.n_curves) == ("hub", 7, 30)
    assert (manifest.n_doses, manifest.n_times) == (1, 100)
    assert manifest.units["conc_mg_l"] == "mg/L"
    assert manifest.generator == {"task": "test"}
    assert manifest.elimination_names == ("cl_hepatic_l_h", "cl_renal_l_h")
    for shard in manifest.shards:
        raw = (dataset / shard.file).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())


def test_content_hash_follows_content(table: CurveTable, dataset: Path, tmp_path: Path) -> None:
    store = CurveStore.open(dataset)
    other = write_dataset([table.take(np.arange(29))], tmp_path / "other", generator={}, seed=7)
    assert source_hash(store) == store.content_hash != CurveStore.open(other).content_hash


def change(path: Path, edit: Callable[[dict], None]) -> None:
    """Edit a manifest as a forger would."""
    data = json.loads((path / "manifest.json").read_text())
    edit(data)
    (path / "manifest.json").write_text(json.dumps(data))


def shard(data: dict, **values: object) -> None:
    data["shards"][1].update(values)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda d: d.update(schema_version=99), "schema_version is of another version"),
        (lambda d: d.pop("schema_version"), "schema_version is of another version"),
        (lambda d: d.update(schema_version="1"), "schema_version is of another version"),
        (lambda d: d.pop("units"), "units is not allowed"),
        (lambda d: d.update(extra=1), "extra is not allowed"),
        (lambda d: d.update(topology="star"), "topology is unknown"),
        (lambda d: d.update(topology="circulation"), "elimination_names differ"),
        (lambda d: d["organs"].reverse(), "organs differ"),
        (lambda d: d["units"].update(conc_mg_l="ng/mL"), "units differ"),
        (lambda d: d.update(n_curves=31), "n_curves is not the sum"),
        (lambda d: d.update(n_times=50), "other columns than its manifest"),
        (lambda d: d.update(n_times=0), "n_times is not allowed"),
        (lambda d: d.update(shards=[]), "shards is not allowed"),
        (lambda d: shard(d, file="../shard-00001.arrow"), "is no shard's name"),
        (lambda d: shard(d, file="/etc/passwd"), "is no shard's name"),
        (lambda d: shard(d, file="sub/shard-00001.arrow"), "is no shard's name"),
        (lambda d: shard(d, file="shard-00001.arrow\n"), "is no shard's name"),
        (lambda d: shard(d, file="shard-00000.arrow"), "named twice"),
        (lambda d: shard(d, file="shard-00007.arrow"), "shard is missing"),
        (lambda d: shard(d, sha256="xyz"), "sha256 is not allowed"),
        (lambda d: shard(d, rows=0), "rows is not allowed"),
        (lambda d: (shard(d, rows=11), d.update(n_curves=31)), "rows differ from the manifest's"),
        (lambda d: shard(d, bytes=5), "truncated or changed"),
    ],
)
def test_forged_manifests_are_refused(dataset: Path, edit: Callable[[dict], None], problem: str) -> None:
    change(dataset, edit)
    with pytest.raises(InputError, match=problem) as error:
        CurveStore.open(dataset)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": ' * 2000])
def test_manifests_that_are_none_are_refused(dataset: Path, text: str) -> None:
    (dataset / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest"):
        CurveStore.open(dataset)


def test_a_huge_manifest_is_not_read(dataset: Path) -> None:
    os.truncate(dataset / "manifest.json", 2**28 + 1)  # sparse: takes no room
    with pytest.raises(InputError, match="manifest is too large"):
        CurveStore.open(dataset)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        CurveStore.open(tmp_path)


def test_a_truncated_shard_is_refused(dataset: Path) -> None:
    path = dataset / "shard-00002.arrow"
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(InputError, match=r"shard-00002\.arrow: shard is truncated"):
        CurveStore.open(dataset)


def test_a_missing_shard_is_refused(dataset: Path) -> None:
    (dataset / "shard-00001.arrow").unlink()
    with pytest.raises(InputError, match="shard is missing"):
        CurveStore.open(dataset)


def test_changed_content_is_refused_when_verified(dataset: Path) -> None:
    path = dataset / "shard-00001.arrow"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    CurveStore.open(dataset)  # sizes alone cannot tell
    with pytest.raises(InputError, match=r"sha256"):
        CurveStore.open(dataset, verify=True)


def overwrite_kp(dataset: Path, kp: float) -> None:
    """Write a partition coefficient over one of the second shard's, in the file itself."""
    path = dataset / "shard-00001.arrow"
    raw = path.read_bytes()
    old = CurveStore.open(dataset).column("kp")[10:20].tobytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, np.float64(kp).tobytes() + old[8:]))


@pytest.mark.parametrize("kp", [-5.0, 50.0])
def test_an_overwritten_value_is_refused_before_a_curve_is_used(dataset: Path, kp: float) -> None:
    overwrite_kp(dataset, kp)
    assert open_source(dataset, verify=False).take([10]).kp[0, 0] == kp
    with pytest.raises(InputError, match=r"shard-00001\.arrow: shard has changed since it was written") as error:
        open_source(dataset)
    assert "\n" not in str(error.value)


def test_a_whole_dataset_passes_verification(dataset: Path, table: CurveTable) -> None:
    assert_equal(open_source(dataset).take(range(30)), table)


def test_a_shard_that_is_no_arrow_file_is_refused(dataset: Path) -> None:
    path = dataset / "shard-00001.arrow"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(InputError, match="no readable Arrow file"):
        CurveStore.open(dataset)


def test_every_flipped_byte_of_the_end_is_refused_or_harmless(dataset: Path) -> None:
    """The file's footer is what a reader trusts first; no change of it may crash the reader."""
    path = dataset / "shard-00001.arrow"
    good = path.read_bytes()
    problems = []
    for offset in range(1, 400, 7):
        raw = bytearray(good)
        raw[-offset] ^= 0xFF
        path.write_bytes(raw)
        try:
            CurveStore.open(dataset).take([0, 15, 29])
        except InputError as error:
            problems.append(str(error))
    assert len(problems) > 5
    assert not any("\n" in problem for problem in problems)


def test_rows_out_of_range_are_refused(dataset: Path) -> None:
    store = CurveStore.open(dataset)
    for row in (-1, 30):
        with pytest.raises(InputError, match="rows"):
            store.take([0, row])


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_an_existing_folder_is_kept(table: CurveTable, dataset: Path, tmp_path: Path) -> None:
    before = leftovers(dataset)
    with pytest.raises(InputError, match="exists already"):
        write_dataset([table], dataset, generator={}, seed=None)
    assert leftovers(dataset) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="exists already"):
        write_dataset([table], tmp_path / "file", generator={}, seed=None)


def test_an_empty_folder_is_filled(table: CurveTable, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    write_dataset([table], tmp_path / "new", generator={}, seed=None)
    assert len(CurveStore.open(tmp_path / "new")) == 30


def test_what_an_earlier_process_of_the_same_number_left_is_neither_used_nor_removed(
    table: CurveTable, tmp_path: Path
) -> None:
    left = tmp_path / f".new.part-{os.getpid()}"
    left.mkdir()
    (left / "precious").write_text("x")
    write_dataset([table], tmp_path / "new", generator={}, seed=None)
    assert leftovers(tmp_path) == [left.name, "new"]
    assert leftovers(left) == ["precious"]
    with pytest.raises(InputError, match="there is not one"):
        write_dataset([], tmp_path / "another", generator={}, seed=None)
    assert leftovers(left) == ["precious"]


def test_a_dataset_folder_has_ordinary_permissions(table: CurveTable, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    write_dataset([table], tmp_path / "new", generator={}, seed=None)
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "new").stat().st_mode & 0o077


def test_no_curves_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is not one"):
        write_dataset([], tmp_path / "new", generator={}, seed=None)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda t: replace(t, kp=-t.kp), r"kp"),
        (lambda t: replace(t, time_h=t.time_h[:, :9], conc_mg_l=t.conc_mg_l[:, :, :9], censored=t.censored[:, :, :9]),
         "changes shape between shards"),
    ],
)  # fmt: skip
def test_bad_later_shards_leave_nothing(
    table: CurveTable, tmp_path: Path, edit: Callable[[CurveTable], CurveTable], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        write_dataset([table, edit(table)], tmp_path / "new", generator={}, seed=None)
    assert leftovers(tmp_path) == []


def test_two_topologies_do_not_mix(table: CurveTable, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="topology changes"):
        write_dataset([table, simulate_task("T2", 2, 0)], tmp_path / "new", generator={}, seed=None)


def test_an_interrupted_writer_leaves_nothing(table: CurveTable, tmp_path: Path) -> None:
    def interrupted() -> Iterator[CurveTable]:
        yield table
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(interrupted(), tmp_path / "new", generator={}, seed=None)
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(table: CurveTable, tmp_path: Path) -> None:
    """A file-size limit makes the kernel refuse the write, as a full disk would."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(PerfuseError, match=r"cannot be written: .*; nothing was kept") as error:
            write_dataset(thirds(table), tmp_path / "new", generator={}, seed=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not isinstance(error.value, InputError)
    assert leftovers(tmp_path) == []


def test_a_disk_that_fails_to_sync_leaves_nothing(
    table: CurveTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PerfuseError, match="No space left on device"):
        write_dataset([table], tmp_path / "new", generator={}, seed=None)
    assert leftovers(tmp_path) == []


def test_values_that_cannot_be_are_refused_even_with_matching_hashes(tmp_path: Path) -> None:
    table = simulate_task("T1", 3, seed=0)
    folder = write_dataset([table], tmp_path / "d", generator={}, seed=0)
    shard, manifest = folder / "shard-00000.arrow", folder / "manifest.json"
    before, after = table.fup[:1].tobytes(), np.asarray([2.0]).tobytes()
    content = shard.read_bytes()
    at = content.index(before * 3)  # the column of fup (or B:P): all ones on the hub
    old_hash = hashlib.sha256(content).hexdigest()
    content = content[:at] + after + content[at + 8 :]
    shard.write_bytes(content)
    manifest.write_text(manifest.read_text().replace(old_hash, hashlib.sha256(content).hexdigest()))
    with pytest.raises(InputError, match=r"T1-0-0: fup is not allowed \(got 2\)"):
        open_source(folder)

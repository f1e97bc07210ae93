"""The origin's ``.npz``: what is read, and one clear line for every way in which a file can be bad."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perfuse.data.importers import origin
from perfuse.data.importers.origin import read_origin_npz, write_origin_npz
from perfuse.data.simulate import simulate_task
from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError

Arrays = dict[str, np.ndarray]


def layout() -> Arrays:
    """A small valid file's arrays: 4 curves at 5 times, the first two of equal parameters."""
    table = simulate_task("T1", 4, seed=0)
    arrays = {
        "doses": table.dose_mg[:, 0].copy(),
        "clearances_hepatic": table.elimination_l_h[:, 0].copy(),
        "clearances_renal": table.elimination_l_h[:, 1].copy(),
        "partition_coeffs": table.kp.copy(),
        "concentrations": table.conc_mg_l[:, :, ::20].copy(),
        "time_points": table.time_h[0, ::20].copy(),
    }
    for key in ("clearances_hepatic", "clearances_renal", "partition_coeffs"):
        arrays[key][1] = arrays[key][0]
    return arrays


def save(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def refused(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        read_origin_npz(path)
    text = str(error.value)
    assert text.startswith(str(path)), "the file is named first"
    assert "\n" not in text


def test_values_arrive_as_they_are(tmp_path: Path) -> None:
    arrays = layout()
    table = read_origin_npz(save(tmp_path / "a.npz", arrays))
    assert table.topology.name == "hub"
    assert np.array_equal(table.dose_mg[:, 0], arrays["doses"])
    assert np.array_equal(table.elimination_l_h[:, 0], arrays["clearances_hepatic"])
    assert np.array_equal(table.elimination_l_h[:, 1], arrays["clearances_renal"])
    assert np.array_equal(table.kp, arrays["partition_coeffs"])
    assert np.array_equal(table.conc_mg_l, arrays["concentrations"])
    assert np.array_equal(table.time_h[3], arrays["time_points"])
    assert np.allclose(table.loq_mg_l, 1e-5 * arrays["doses"] / 5.0)
    assert not table.censored.any()


def test_equal_parameters_are_one_compound_unless_named(tmp_path: Path) -> None:
    arrays = layout()
    table = read_origin_npz(save(tmp_path / "a.npz", arrays))
    assert table.compound_id[0] == table.compound_id[1]
    assert len(set(table.compound_id)) == len(set(table.group_id)) == 3
    for ids in (np.asarray(["a", "b", "b", "c"]), np.asarray([b"a", b"b", b"b", b"c"])):
        table = read_origin_npz(save(tmp_path / "b.npz", arrays | {"compound_ids": ids}))
        assert table.compound_id.tolist() == ["a", "b", "b", "c"]
        assert table.group_id[0] == table.group_id[1]
    numbered = read_origin_npz(save(tmp_path / "c.npz", arrays | {"compound_ids": np.arange(4)}))
    assert numbered.compound_id.tolist() == ["0", "1", "2", "3"]


@pytest.mark.parametrize("dtype", [np.float32, ">f8", np.int64])
def test_other_number_types_become_float64(tmp_path: Path, dtype: object) -> None:
    arrays = layout()
    arrays["doses"] = np.asarray([10, 20, 30, 40]).astype(dtype)
    table = read_origin_npz(save(tmp_path / "a.npz", arrays))
    assert table.dose_mg.dtype == np.float64
    assert table.dose_mg[:, 0].tolist() == [10, 20, 30, 40]


def test_compressed_and_fortran_files_are_read(tmp_path: Path) -> None:
    arrays = layout()
    arrays["concentrations"] = np.asfortranarray(arrays["concentrations"])
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    table = read_origin_npz(tmp_path / "a.npz")
    assert np.array_equal(table.conc_mg_l, arrays["concentrations"])


def test_bloods_own_coefficient_is_one(tmp_path: Path) -> None:
    arrays = layout()
    arrays["partition_coeffs"][:, 0] = 0.7
    assert (read_origin_npz(save(tmp_path / "a.npz", arrays)).kp[:, 0] == 1).all()


def put(key: str, at: object, value: float) -> Callable[[Arrays], None]:
    def edit(arrays: Arrays) -> None:
        arrays[key][at] = value

    return edit


def cut(key: str, *slices: slice) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({key: arrays[key][slices]})


def drop(key: str) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.pop(key)


def no_curves(arrays: Arrays) -> None:
    arrays.update({k: v[:0] for k, v in arrays.items() if k != "time_points"})


def no_times(arrays: Arrays) -> None:
    arrays.update(concentrations=arrays["concentrations"][:, :, :0], time_points=arrays["time_points"][:0])


def only_the_dose_time(arrays: Arrays) -> None:
    arrays.update(concentrations=arrays["concentrations"][:, :, :1], time_points=arrays["time_points"][:1])


EVERYTHING = slice(None)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        *[(drop(key), f"{key} is missing") for key in origin.KEYS],
        *[(put(key, 1, np.nan), rf"{key}\[1\].*got nan") for key in ("doses", "clearances_hepatic", "time_points")],
        *[(put(key, 1, np.inf), rf"{key}\[1\].*got inf") for key in ("doses", "clearances_renal", "time_points")],
        *[(put(key, 1, -1.0), rf"{key}\[1\].*got -1") for key in ("doses", "clearances_renal", "time_points")],
        (put("doses", 2, 0.0), r"doses\[2\].*got 0 mg.*allowed: > 0"),
        (put("partition_coeffs", (2, 3), 0.0), r"partition_coeffs\[2, 3\] \(brain\).*got 0"),
        (put("partition_coeffs", (2, 3), np.nan), r"partition_coeffs\[2, 3\] \(brain\).*got nan"),
        (put("concentrations", (1, 2, 3), np.nan), r"concentrations\[1, 2, 3\] \(kidney\).*got nan mg/L"),
        (put("concentrations", (1, 2, 3), -0.5), r"concentrations\[1, 2, 3\] \(kidney\).*got -0.5 mg/L"),
        (put("concentrations", (0, 0, 0), np.inf), r"concentrations\[0, 0, 0\] \(blood\).*got inf"),
        (put("time_points", 2, 1.0), r"time_points\[2\] is not after the time before"),
        (put("time_points", 1, 0.0), r"time_points\[1\].*strictly increasing"),
        (cut("doses", slice(3)), r"doses has a wrong shape \(got \(3,\)\); allowed: \(4,\)"),
        (cut("clearances_renal", slice(3)), "clearances_renal has a wrong shape"),
        (cut("partition_coeffs", EVERYTHING, slice(13)), r"partition_coeffs has a wrong shape.*\(4, 14\)"),
        (cut("concentrations", EVERYTHING, slice(13)), r"concentrations has a wrong shape.*\(4, 14, 5\)"),
        (cut("time_points", slice(4)), "time_points has a wrong shape"),
        (lambda a: a.update(concentrations=a["concentrations"][0]), r"concentrations has a wrong shape.*\[N, 14, T\]"),
        (lambda a: a.update(doses=np.asarray(5.0)), "doses has a wrong shape"),
        (lambda a: a.update(compound_ids=np.asarray(["a", "b"])), "compound_ids has a wrong shape"),
        (lambda a: a.update(compound_ids=np.ones(4)), "compound_ids has a wrong type"),
        (lambda a: a.update(doses=np.asarray(["1", "2", "3", "4"])), "doses has a wrong type"),
        (lambda a: a.update(doses=np.ones(4, complex)), "doses has a wrong type"),
        (lambda a: a.update(doses=np.ones(4, [("x", float)])), "doses has a wrong type"),
        (no_curves, "concentrations holds no curve"),
        (no_times, "time_points holds no time"),
        (only_the_dose_time, "has no time after the dose"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, edit: Callable[[Arrays], object], match: str) -> None:
    arrays = layout()
    edit(arrays)
    refused(save(tmp_path / "a.npz", arrays), match)


class Bomb:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("key", ["doses", "compound_ids"])
def test_object_arrays_are_refused_and_never_unpickled(tmp_path: Path, key: str) -> None:
    arrays = layout() | {key: np.asarray([Bomb(tmp_path / "ran")] * 4, dtype=object)}
    refused(save(tmp_path / "a.npz", arrays), f"{key} is an object array")
    assert not (tmp_path / "ran").exists()


def npy(array: np.ndarray) -> bytes:
    handle = io.BytesIO()
    np.save(handle, array)
    return handle.getvalue()


def forge(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, raw in members.items():
            archive.writestr(f"{name}.npy", raw)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path, compression: int) -> None:
    """A header that declares 10^15 curves over 32 bytes of data."""
    members = {k: npy(v) for k, v in layout().items()}
    members["doses"] = members["doses"].replace(b"(4,), }" + b" " * 15, b"(1000000000000000,), }", 1)
    assert b"1000000000000000" in members["doses"]
    refused(forge(tmp_path / "a.npz", members, compression), "doses declares a size that the file does not hold")


def test_a_member_longer_than_its_header_says_is_refused(tmp_path: Path) -> None:
    members = {k: npy(v) for k, v in layout().items()}
    members["doses"] += b"\0" * 8
    refused(forge(tmp_path / "a.npz", members), "doses declares a size")


def test_files_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "MAX_FILE_BYTES", 2000)
    refused(save(tmp_path / "a.npz", layout()), "file is too large to read at once")


@pytest.mark.parametrize(
    "raw", [b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00" + b"\0" * 50, b"\x93NUMPY\x01\x00\x05\x00{{{{{", b"x" * 99]
)
def test_members_that_are_no_arrays_are_refused(tmp_path: Path, raw: bytes) -> None:
    members = {k: npy(v) for k, v in layout().items()} | {"doses": raw}
    refused(forge(tmp_path / "a.npz", members), r"file is no readable \.npz|unknown npy version")


@pytest.mark.parametrize("keep", [0, 3, 100, 2000, -30])
def test_truncated_files_are_refused(tmp_path: Path, keep: int) -> None:
    path = save(tmp_path / "a.npz", layout())
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, r"file is no readable \.npz")


def test_damaged_content_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", layout())
    raw = bytearray(path.read_bytes())
    at = raw.find(b"concentrations.npy") + 400
    raw[at] ^= 0xFF
    path.write_bytes(raw)
    refused(path, r"file is no readable \.npz.*CRC")


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(pickle.dumps({"doses": 1}))
    refused(tmp_path / "a.npz", r"no readable \.npz")
    refused(tmp_path / "missing.npz", r"no readable \.npz.*No such file")
    (tmp_path / "folder.npz").mkdir()
    refused(tmp_path / "folder.npz", r"no readable \.npz")


@pytest.fixture(scope="module")
def table() -> CurveTable:
    return simulate_task("T1", 5, seed=1)


def test_round_trip(table: CurveTable, tmp_path: Path) -> None:
    path = write_origin_npz(table, tmp_path / "a.npz")
    back = read_origin_npz(path)
    for name in ("conc_mg_l", "kp", "elimination_l_h", "dose_mg", "time_h", "compound_id", "group_id", "loq_mg_l"):
        assert np.array_equal(back.column(name), table.column(name)), name
    assert os.listdir(tmp_path) == ["a.npz"]
    first = path.read_bytes()
    assert write_origin_npz(table, path).read_bytes() == first


def with_value(table: CurveTable, name: str, at: object, value: object) -> CurveTable:
    changed = table.column(name).copy()
    changed[at] = value
    return replace(table, **{name: changed})


@pytest.mark.parametrize(
    ("name", "at", "value", "field"),
    [
        ("dose_duration_h", (1, 0), 0.5, "doses"), ("dose_time_h", (1, 0), 0.5, "doses"),
        ("time_h", (2, 99), 25.0, "time_h"), ("conc_mg_l", (1, 2, 3), np.nan, "conc_mg_l"),
        ("censored", (1, 2, 3), True, "censored"), ("matrix", 1, "plasma", "matrix"),
        ("volume_l", (1, 1), 2.0, "volume_l"), ("flow_l_h", (1, 1), 2.0, "flow_l_h"), ("fup", 1, 0.5, "fup"),
        ("bp_ratio", 1, 0.8, "bp_ratio"), ("kp", (1, 1), -1.0, "kp"),
    ],
)  # fmt: skip
def test_what_the_layout_cannot_hold_is_refused(
    table: CurveTable, tmp_path: Path, name: str, at: object, value: object, field: str
) -> None:
    with pytest.raises(InputError, match=field):
        write_origin_npz(with_value(table, name, at, value), tmp_path / "a.npz")
    assert os.listdir(tmp_path) == []


def test_only_the_hub_fits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="topology does not fit"):
        write_origin_npz(simulate_task("T2", 1, 0), tmp_path / "a.npz")


def test_an_unwritable_place_is_one_line(table: CurveTable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PerfuseError, match=r"file/a.npz cannot be written \(.+\); nothing was kept"):
        write_origin_npz(table, tmp_path / "file" / "a.npz")


@pytest.mark.real_data
def test_the_origins_own_file(perfuse_data: Path) -> None:
    table = read_origin_npz(perfuse_data / "origin" / "training_data.npz")
    assert table.conc_mg_l.shape == (100, 14, 100)
    assert len(set(table.compound_id)) == 100

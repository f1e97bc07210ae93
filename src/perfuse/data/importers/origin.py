"""The origin's ``.npz`` layout: hub model, fixed body, one IV bolus per curve, one time grid for all.

Arrays: ``doses[N]`` mg, ``clearances_hepatic[N]`` and ``clearances_renal[N]`` L/h (blood clearances),
``partition_coeffs[N, 14]`` (tissue:blood), ``concentrations[N, 14, T]`` mg/L (venous blood first),
``time_points[T]`` h, and optionally ``compound_ids[N]``. A file is not trusted: nothing is unpickled, and every
array's declared type and size is checked against the others and against the file before memory is taken.

Axis legend: N curves, O the 14 reported organs, T times.
"""

from __future__ import annotations

import lzma
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from perfuse.data.table import LOQ_FRACTION, CurveTable, parameter_group
from perfuse.errors import InputError
from perfuse.files import check_file, replacing
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, hub_reference
from perfuse.pk.system import ORAL
from perfuse.pk.topology import get_topology

KEYS = ("doses", "clearances_hepatic", "clearances_renal", "partition_coeffs", "concentrations", "time_points")
COMPOUND_KEY = "compound_ids"
MAX_FILE_BYTES = 4 * 2**30
"""Largest content read into memory; more belongs in a dataset folder."""
_MAX_INFLATION = 1032
"""Deflate cannot expand more than this (zlib's own technical note)."""
_ANY_INFLATION_BYTES = 2**28
_MAX_CONTENT_INFLATION = 100
"""Of contents above the line before: a few megabytes of zeros would fill the memory."""
_MAX_HEADER_BYTES = 10_000


@dataclass(frozen=True)
class _Header:
    """What an ``.npy`` member says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype
    data_bytes: int


def _read_header(handle: IO[bytes], name: str, where: str) -> _Header:
    version = np.lib.format.read_magic(handle)
    if version not in ((1, 0), (2, 0)):
        raise InputError(name, "is in an unknown npy version", value=version, where=where)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(handle, max_header_size=_MAX_HEADER_BYTES)
    except (SyntaxError, tokenize.TokenError, RecursionError, TypeError, MemoryError):  # what its parser lets through
        raise ValueError(f"the header of {name} is broken") from None
    if dtype.hasobject:
        raise InputError(
            name, "is an object array, which only pickle can read", where=where, allowed="numbers",
            hint="save it as a plain array; a file that needs pickle can run code",
        )  # fmt: skip
    kinds = "USiu" if name == COMPOUND_KEY else "fiu"
    if dtype.kind not in kinds:
        allowed = "text or whole numbers" if name == COMPOUND_KEY else "real numbers"
        raise InputError(name, "has a wrong type", value=dtype, allowed=allowed, where=where)
    if any(size < 0 for size in shape):
        raise InputError(name, "declares a negative size", value=shape, where=where)
    return _Header(shape, dtype, prod(shape) * dtype.itemsize)


def _headers(archive: zipfile.ZipFile, where: str) -> dict[str, _Header]:
    """The header of every array used; checks declared sizes against the archive's directory."""
    members = {info.filename: info for info in archive.infolist()}
    missing = [key for key in KEYS if f"{key}.npy" not in members]
    if missing:
        raise InputError(missing[0], "is missing", where=where, allowed=f"the keys {', '.join(KEYS)}")
    headers = {}
    for key in (*KEYS, COMPOUND_KEY):
        if key == COMPOUND_KEY and f"{key}.npy" not in members:
            continue
        info = members[f"{key}.npy"]
        with archive.open(info) as handle:
            headers[key] = _read_header(handle, key, where)
            begin = handle.tell()
        possible = info.file_size <= _MAX_INFLATION * (info.compress_size + 64)
        if info.file_size != begin + headers[key].data_bytes or not possible:
            raise InputError(
                key, "declares a size that the file does not hold", value=headers[key].data_bytes, unit="bytes",
                allowed=f"{info.file_size - begin} bytes", where=where,
            )  # fmt: skip
    # What is read becomes float64, whatever it is in the file.
    total = sum(max(header.data_bytes, 8 * prod(header.shape)) for header in headers.values())
    packed = sum(info.compress_size for info in members.values())
    if total > max(_ANY_INFLATION_BYTES, _MAX_CONTENT_INFLATION * packed):
        raise InputError(
            "file", "unpacks to far more than measured or simulated values would", value=total, unit="bytes",
            allowed=f"<= {_MAX_CONTENT_INFLATION} times its {packed} bytes", where=where,
        )  # fmt: skip
    if total > MAX_FILE_BYTES:
        raise InputError(
            "file", "is too large to read at once", value=total, unit="bytes", allowed=f"<= {MAX_FILE_BYTES}",
            hint="a dataset folder can be of any size", where=where,
        )  # fmt: skip
    return headers


def _check_shapes(headers: dict[str, _Header], where: str) -> None:
    shape = headers["concentrations"].shape
    if len(shape) != 3:
        raise InputError("concentrations", "has a wrong shape", value=shape, allowed="[N, 14, T]", where=where)
    n, _, t = shape
    if n == 0:
        raise InputError("concentrations", "holds no curve", value=shape, allowed="[N, 14, T] with N >= 1", where=where)
    if t == 0:
        raise InputError("time_points", "holds no time", value=shape, allowed="[N, 14, T] with T >= 1", where=where)
    expected: dict[str, tuple[int, ...]] = dict.fromkeys((*KEYS, COMPOUND_KEY), (n,))
    expected |= {
        "partition_coeffs": (n, len(ORGANS)), "concentrations": (n, len(ORGANS), t), "time_points": (t,),
    }  # fmt: skip
    for key, header in headers.items():
        if header.shape != expected[key]:
            raise InputError(
                key, "has a wrong shape", value=header.shape, allowed=str(expected[key]), where=where,
                hint="N and T are those of concentrations [N, 14, T]",
            )  # fmt: skip


def _read_arrays(path: Path, where: str) -> dict[str, np.ndarray]:
    """Every array of the layout, numbers as float64; headers are checked before any data is read."""
    if path.exists() and not path.is_dir():
        check_file(path, "file")
    try:
        with zipfile.ZipFile(path) as archive:
            headers = _headers(archive, where)
            _check_shapes(headers, where)
            arrays = {}
            for key in headers:
                with archive.open(f"{key}.npy") as handle:
                    array = np.lib.format.read_array(handle, allow_pickle=False, max_header_size=_MAX_HEADER_BYTES)
                arrays[key] = array if key == COMPOUND_KEY else np.asarray(array, dtype=np.float64)
            return arrays
    except (InputError, MemoryError):
        raise
    except (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError) as error:
        # RuntimeError covers encrypted members and unknown compression (NotImplementedError).
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError("file", "is no readable .npz", where=where, hint=reason) from None


def _compound_names(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype.kind == "U" and values.dtype.itemsize:
        codes = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="))).view(np.uint32)
        bad = (codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))
        if bad.any():  # beyond Unicode, or half of a character: Python makes no text of it, or no file takes it
            raise InputError(COMPOUND_KEY, "holds what is no character", where=where)
    return np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values.astype(str)


def read_origin_npz(path: Path) -> CurveTable:
    """Read an origin-layout file.

    The body is the hub's (``hub_reference``), fup and B:P are 1, the limit of quantification is 1e-5 x dose over
    the 5 L of blood. Blood's own partition coefficient is 1 by definition; whatever the file says there is unused.
    Without ``compound_ids`` every distinct set of parameters (clearances and partition coefficients) is a compound.

    Raises:
        InputError: one line naming the file, the array, the value and what is allowed.
    """
    path = Path(path)
    where = str(path)
    arrays = _read_arrays(path, where)
    _check_values(arrays, where)
    n, _, t = arrays["concentrations"].shape
    body = hub_reference()
    kp = arrays["partition_coeffs"].copy()
    kp[:, ORGAN_INDEX["blood"]] = 1.0
    elimination = np.column_stack((arrays["clearances_hepatic"], arrays["clearances_renal"]))
    ones = np.ones(n)
    names = np.asarray([f"origin-{i}" for i in range(n)], dtype=str)
    group = parameter_group(kp, elimination, ones, ones)
    compound = arrays.get(COMPOUND_KEY)
    table = CurveTable(
        topology=get_topology("hub"),
        curve_id=names,
        compound_id=np.char.add("group-", group) if compound is None else _compound_names(compound, where),
        group_id=group,
        body_weight_kg=np.full(n, body.body_weight_kg),
        volume_l=np.tile(body.volume_l, (n, 1)),
        flow_l_h=np.tile(body.flow_l_h, (n, 1)),
        kp=kp,
        elimination_l_h=elimination,
        fup=ones,
        bp_ratio=ones.copy(),
        dose_time_h=np.zeros((n, 1)),
        dose_mg=arrays["doses"][:, None],
        dose_duration_h=np.zeros((n, 1)),
        time_h=np.tile(arrays["time_points"], (n, 1)),
        conc_mg_l=arrays["concentrations"],
        censored=np.zeros((n, len(ORGANS), t), dtype=bool),
        loq_mg_l=LOQ_FRACTION * arrays["doses"] / body.volume_l[ORGAN_INDEX["blood"]],
        matrix=np.full(n, "blood_venous"),
    )
    return table.validate(where)


def _check_values(arrays: dict[str, np.ndarray], where: str) -> None:
    """Refuse the first value that cannot be, by the file's own names (this layout has no absent values)."""
    limits = {
        "doses": (">", "mg"), "clearances_hepatic": (">=", "L/h"), "clearances_renal": (">=", "L/h"),
        "partition_coeffs": (">", ""), "concentrations": (">=", "mg/L"), "time_points": (">=", "h"),
    }  # fmt: skip
    for key, (sign, unit) in limits.items():
        values = arrays[key]
        good = np.isfinite(values) & ((values > 0) if sign == ">" else (values >= 0))
        if not good.all():
            at = [int(i) for i in np.argwhere(~good)[0]]
            organ = f" ({ORGANS[at[1]]})" if len(at) > 1 else ""
            raise InputError(
                f"{key}{at}{organ}",
                value=float(values[tuple(at)]),
                unit=unit,
                allowed=f"{sign} 0 and finite",
                where=where,
            )
    unsorted = np.diff(arrays["time_points"]) <= 0
    if unsorted.any():
        i = int(np.argmax(unsorted)) + 1
        raise InputError(
            f"time_points[{i}]", "is not after the time before it", value=float(arrays["time_points"][i]), unit="h",
            allowed="strictly increasing", where=where,
        )  # fmt: skip
    if not arrays["time_points"][-1] > 0:
        raise InputError("time_points", "has no time after the dose", value=0.0, unit="h", allowed="> 0", where=where)


def _check_layout_holds(table: CurveTable) -> None:
    """Refuse a table with anything that the origin's layout has no place for."""
    body = hub_reference()
    if table.topology.name != "hub":
        raise InputError("topology", "does not fit the origin's layout", value=table.topology.name, allowed="hub")
    tissue = [i for i in range(len(ORGANS)) if i != ORGAN_INDEX["blood"]]
    doses = (table.dose_mg > 0).sum(1)
    other = (table.dose_time_h != 0) | (table.dose_duration_h != 0) | (table.dose_route == ORAL)
    one_bolus = (doses == 1) & ~((table.dose_mg > 0) & other).any(1)
    checks = {
        "doses": (one_bolus, "one intravenous bolus at time 0"),
        "time_h": ((table.time_h == table.time_h[0]).all(1), "one time grid for all curves, without gaps"),
        "conc_mg_l": (~np.isnan(table.conc_mg_l).any((1, 2)), "every organ observed at every time"),
        "censored": (~table.censored.any((1, 2)), "no values below the LLOQ"),
        "matrix": (table.matrix == "blood_venous", "blood_venous"),
        "volume_l": (np.isclose(table.volume_l, body.volume_l, rtol=1e-9).all(1), "the hub's reference volumes"),
        "flow_l_h": (np.isclose(table.flow_l_h, body.flow_l_h)[:, tissue].all(1), "the hub's reference flows"),
        "fup": (table.fup == 1, "1"),
        "bp_ratio": (table.bp_ratio == 1, "1"),
    }
    for field, (holds, allowed) in checks.items():
        if not holds.all():
            where = f"curve {table.curve_id[int(np.argmin(holds))]}"
            raise InputError(field, "does not fit the origin's layout", allowed=allowed, where=where,
                             hint="write a dataset folder or a tidy table instead")  # fmt: skip


def write_origin_npz(table: CurveTable, path: Path) -> Path:
    """Write curves in the origin's layout, with ``compound_ids``; the file appears whole or not at all.

    Raises:
        InputError: if the layout cannot hold the curves (other bodies, doses, times, gaps).
        PerfuseError: when the disk refuses.
    """
    path = Path(path)
    table.validate(str(path))
    _check_layout_holds(table)
    arrays = {
        "doses": table.dose_mg.sum(1),
        "clearances_hepatic": table.elimination_l_h[:, 0],
        "clearances_renal": table.elimination_l_h[:, 1],
        "partition_coeffs": table.kp,
        "concentrations": table.conc_mg_l,
        "time_points": table.time_h[0],
        COMPOUND_KEY: table.compound_id.astype(str),
    }
    with replacing(path) as part, part.open("wb") as handle:
        np.savez(handle, **arrays)
    return path

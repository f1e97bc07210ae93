"""``perfuse info``: what a checkpoint, run, dataset or file is, read from its headers alone.

Nothing is executed, unpickled or loaded whole: JSON, TOML, the safetensors header, npz and Parquet headers.
"""

from __future__ import annotations

import json
import math
import struct
import tomllib
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from perfuse.errors import InputError

Facts = dict[str, Any]
_MAX_HEADER_BYTES = 100 * 2**20


def describe(path: Path) -> Facts:
    """What ``path`` is, as plain data; ``kind`` names it.

    Raises:
        InputError: if the path is missing, unreadable, or of no kind that Perfuse knows.
    """
    if not path.exists():
        raise InputError("PATH", "does not exist", value=str(path))
    if path.is_dir():
        if (path / "manifest.json").is_file():
            return _dataset(path)
        if (path / "state.json").is_file():
            return _checkpoint(path)
        if (path / "config.toml").is_file():
            return _run(path)
        raise InputError(
            "PATH", "is no run, checkpoint or dataset folder", value=str(path),
            allowed="a folder with config.toml, state.json or manifest.json",
        )  # fmt: skip
    readers = {".npz": _npz, ".csv": _csv, ".parquet": _parquet, ".toml": _toml, ".safetensors": _safetensors}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError("PATH", "is of no known kind", value=str(path), allowed="a folder, " + ", ".join(readers))
    return reader(path)


def _json(path: Path) -> Facts:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(path.name, "is no valid JSON", value=str(path), hint=str(error)) from None
    if not isinstance(data, dict):
        raise InputError(path.name, "holds no JSON object", value=str(path))
    return data


def _toml(path: Path) -> Facts:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(path.name, "is no valid TOML", value=str(path), hint=str(error)) from None
    return {"kind": "TOML file", "path": str(path), **data}


def _safetensors(path: Path) -> Facts:
    """Names, shapes and types from the header: 8 bytes of length, then JSON."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise InputError(path.name, "is no safetensors file, or cut short", value=str(path))
        raw = file.read(length)
    try:
        header = json.loads(raw)
        tensors = {k: v for k, v in header.items() if k != "__metadata__"}
        end = max((v["data_offsets"][1] for v in tensors.values()), default=0)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError, IndexError):
        raise InputError(path.name, "has an unreadable safetensors header", value=str(path)) from None
    if 8 + length + end != size:
        raise InputError(path.name, "is cut short", value=size, unit="bytes", allowed=f"{8 + length + end} bytes")
    numbers = 0
    for tensor in tensors.values():
        count = 1
        for extent in tensor["shape"]:
            count *= extent
        numbers += count
    return {"kind": "safetensors", "path": str(path), "bytes": size, "tensors": len(tensors), "numbers": numbers}


def _checkpoint(path: Path) -> Facts:
    """The state without what only a resumed run needs, and whether the tensor files are those it names."""
    from perfuse.training.state import StateError, loads

    try:
        state = loads((path / "state.json").read_text(encoding="utf-8"))
    except (StateError, UnicodeDecodeError) as error:
        raise InputError("state.json", str(error)[:200], where=str(path)) from None
    if not isinstance(state, dict):
        raise InputError("state.json", "holds no object", where=str(path))
    facts: Facts = {"kind": "checkpoint", "path": str(path)}
    facts |= {key: value for key, value in state.items() if key not in ("rng", "files", "split")}
    progress = facts.get("progress")
    if isinstance(progress, dict):
        facts["progress"] = {key: value for key, value in progress.items() if key != "interval"}
    split = state.get("split")
    for name, part in split.items() if isinstance(split, dict) else ():
        if isinstance(part, dict):
            facts[f"{name}_part"] = f"{part.get('n_curves')} curves, {len(part.get('compound_ids', ()))} compounds"
    hashes = state.get("files")
    for name in ("model.safetensors", "optimizer.safetensors"):
        file = path / name
        if not file.is_file():
            raise InputError(name, "is missing from the checkpoint", where=str(path))
        found = {k: v for k, v in _safetensors(file).items() if k not in ("kind", "path")}
        intact = isinstance(hashes, dict) and hashes.get(name) == sha256(file.read_bytes()).hexdigest()
        facts[name] = found | {"sha256": "as in state.json" if intact else "NOT the one in state.json"}
    return facts


def _epochs(path: Path) -> list[Facts]:
    """The complete lines of ``metrics.jsonl``; a run that is going on may be writing the last one."""
    found: list[Facts] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _run(path: Path) -> Facts:
    facts: Facts = {"kind": "run", "path": str(path)}
    epochs = _epochs(path / "metrics.jsonl")
    facts["epochs_recorded"] = len(epochs)
    losses = [e["val_loss"] for e in epochs if isinstance(e.get("val_loss"), (int, float))]
    if losses:
        facts["best_val_loss"] = min(losses)
    if epochs:
        facts["last_epoch"] = epochs[-1]
    facts["config"] = {k: v for k, v in _toml(path / "config.toml").items() if k not in ("kind", "path")}
    for name in ("best", "last"):
        if (path / name / "state.json").is_file():
            found = _checkpoint(path / name)
            facts[name] = {key: found[key] for key in ("progress", "model.safetensors") if key in found}
    facts["report"] = str(path / "report.html") if (path / "report.html").is_file() else "none yet"
    return facts


def _dataset(path: Path) -> Facts:
    return {"kind": "dataset", "path": str(path), **_json(path / "manifest.json")}


def _npz(path: Path) -> Facts:
    """Array names, shapes and types from each member's header."""
    from numpy.lib import format as npy

    arrays: Facts = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    version = npy.read_magic(file)
                    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape, _, dtype = read(file)
                arrays[member.removesuffix(".npy")] = f"{dtype} {list(shape)}"
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise InputError(path.name, "is no readable .npz archive", value=str(path), hint=str(error)) from None
    return {"kind": "npz archive", "path": str(path), "bytes": path.stat().st_size, "arrays": arrays}


def _table_kind(columns: list[str]) -> str:
    if {"event", "time_unit", "conc_unit"} <= set(columns):
        return "tidy table"
    if {"conc_mg_per_L", "dose_mg_used"} <= set(columns):
        return "observed human curves"
    return "table"


def _csv(path: Path) -> Facts:
    import csv

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            columns = next(reader, [])
            rows = sum(1 for row in reader if row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(path.name, "is no readable CSV", value=str(path), hint=str(error)) from None
    if not columns:
        raise InputError(path.name, "is empty", value=str(path))
    return {"kind": f"{_table_kind(columns)} (CSV)", "path": str(path), "rows": rows, "columns": columns}


def _parquet(path: Path) -> Facts:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise InputError(path.name, "is no readable Parquet", value=str(path), hint=str(error)) from None
    columns = found.schema.names
    return {"kind": f"{_table_kind(columns)} (Parquet)", "path": str(path), "rows": found.num_rows, "columns": columns}


def to_json(facts: Facts) -> str:
    """The facts as JSON; infinities, which JSON has not, as text."""
    return json.dumps(_plain(facts), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


def lines(facts: Facts, indent: int = 0) -> list[str]:
    """The facts as indented text, long lists cut."""
    out: list[str] = []
    for key, value in facts.items():
        pad = "  " * indent
        if isinstance(value, dict) and value:
            out.append(f"{pad}{key}:")
            out += lines(value, indent + 1)
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            out.append(f"{pad}{key}: {text if len(text) <= 160 else text[:157] + '...'}")
    return out

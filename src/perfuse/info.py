"""``perfuse info``: what a checkpoint, run, dataset or file is, read from its headers alone.

Nothing is executed, unpickled or loaded whole: JSON, TOML, the safetensors header, npz and Parquet headers.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import struct
import tokenize
import tomllib
import zipfile
import zlib
from pathlib import Path
from typing import Any, cast

from perfuse.errors import InputError
from perfuse.files import check_file, check_plain

Facts = dict[str, Any]
_MAX_HEADER_BYTES = 100 * 2**20
_MAX_TEXT_BYTES = 2**28
"""Largest JSON or TOML file that is read, as for the loader of checkpoints."""
_MAX_DEPTH = 64
_MAX_COMMAND = 10_000
_BROKEN_ARCHIVE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError, SyntaxError, ValueError, TypeError, EOFError,
    OSError, RuntimeError, MemoryError, OverflowError,
)  # fmt: skip
"""What the readers of zip and npy headers raise; RuntimeError: encrypted members, unknown compression."""


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
    check_file(path, "PATH")
    return reader(path)


def _text(path: Path) -> str:
    """A text file, whole.

    Raises:
        InputError: if it is larger than any that Perfuse writes, or no UTF-8.
    """
    size = path.stat().st_size
    if size > _MAX_TEXT_BYTES:
        raise InputError(
            path.name, "is too large", value=size, unit="bytes", allowed=f"<= {_MAX_TEXT_BYTES}", where=str(path)
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(path.name, "is no text", value=str(path), hint=str(error)) from None


def _json(path: Path) -> Facts:
    try:
        data = json.loads(_text(path))
        check_plain(data)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(path.name, "is no valid JSON", value=str(path), hint=str(error)) from None
    if not isinstance(data, dict):
        raise InputError(path.name, "holds no JSON object", value=str(path))
    return data


def _toml(path: Path) -> Facts:
    try:
        data = tomllib.loads(_text(path))
        check_plain(data)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
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
        if not isinstance(header, dict):
            raise ValueError("no object")
        tensors = [_tensor(value) for name, value in header.items() if name != "__metadata__"]
    except (ValueError, RecursionError):
        raise InputError(path.name, "has an unreadable safetensors header", value=str(path)) from None
    end = max((stop for _, stop in tensors), default=0)
    if 8 + length + end != size:
        raise InputError(path.name, "is cut short", value=size, unit="bytes", allowed=f"{8 + length + end} bytes")
    numbers = sum(count for count, _ in tensors)
    return {"kind": "safetensors", "path": str(path), "bytes": size, "tensors": len(tensors), "numbers": numbers}


def _tensor(entry: object) -> tuple[int, int]:
    """How many numbers one entry of a safetensors header declares, and where its bytes end.

    Raises:
        ValueError: if it is no entry, or its bytes cannot hold so many.
    """
    facts = entry if isinstance(entry, dict) else {}
    shape, offsets = facts.get("shape"), facts.get("data_offsets")
    for sizes in (shape, offsets):
        if not isinstance(sizes, list) or not all(type(n) is int and 0 <= n < 2**63 for n in sizes):
            raise ValueError("no list of sizes")
    shape, offsets = cast("list[int]", shape), cast("list[int]", offsets)
    if len(offsets) != 2 or offsets[0] > offsets[1] or len(shape) > _MAX_DEPTH:
        raise ValueError("no range of bytes, or too many axes")
    count = math.prod(shape)
    if count > 8 * (offsets[1] - offsets[0]):
        raise ValueError("more numbers than bits")
    return count, offsets[1]


def _checkpoint(path: Path) -> Facts:
    """The state without what only a resumed run needs, and whether the tensor files are those it names."""
    from perfuse.training.state import StateError, loads

    try:
        state = loads(_text(path / "state.json"))
    except StateError as error:
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
            compounds = part.get("compound_ids")
            known = len(compounds) if isinstance(compounds, list | tuple) else "unknown"
            facts[f"{name}_part"] = f"{part.get('n_curves')} curves, {known} compounds"
    hashes = state.get("files")
    for name in ("model.safetensors", "optimizer.safetensors"):
        file = path / name
        if not file.is_file():
            raise InputError(name, "is missing from the checkpoint", where=str(path))
        found = {k: v for k, v in _safetensors(file).items() if k not in ("kind", "path")}
        intact = isinstance(hashes, dict) and hashes.get(name) == _sha256(file)
        facts[name] = found | {"sha256": "as in state.json" if intact else "NOT the one in state.json"}
    facts["calibration"] = _calibration(path, hashes)
    return facts


def _calibration(path: Path, hashes: object) -> Facts | str:
    """What intervals the checkpoint carries, and whether they belong to its weights."""
    file = path / "calibration.json"
    if not file.is_file():
        return "none: predictions have no interval"
    record = _json(file)
    shown = ("levels", "n_drugs", "n_curves", "n_values", "data_path", "data_sha256", "code_version")
    facts = {key: record[key] for key in shown if key in record}
    belongs = isinstance(hashes, dict) and record.get("model_sha256") == hashes.get("model.safetensors")
    tensors = path / "calibration.safetensors"
    intact = tensors.is_file() and record.get("calibration_sha256") == _sha256(tensors)
    facts["weights"] = "these" if belongs else "OTHERS than this checkpoint's"
    facts["sha256"] = "as in calibration.json" if intact else "NOT the one in calibration.json"
    return facts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _epochs(path: Path) -> list[Facts]:
    """The complete lines of ``metrics.jsonl``; a run that is going on may be writing the last one."""
    found: list[Facts] = []
    for line in _text(path).splitlines() if path.is_file() else []:
        try:
            facts = json.loads(line)
            check_plain(facts)
        except (ValueError, RecursionError):
            continue
        if isinstance(facts, dict):
            found.append(facts)
    return found


def _run(path: Path) -> Facts:
    facts: Facts = {"kind": "run", "path": str(path), **_history(path)}
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
            facts[name] = {key: found[key] for key in ("progress", "model.safetensors", "calibration") if key in found}
    facts["report"] = str(path / "report.html") if (path / "report.html").is_file() else "none yet"
    return facts


def _history(path: Path) -> Facts:
    """Run id, sessions, level of determinism, and how to make the run again; nothing where it has no checkpoint."""
    from perfuse.training.provenance import sessions_of
    from perfuse.training.reproduce import reproduction

    try:
        again = reproduction(path)
    except InputError:
        return {}
    facts: Facts = {"run_id": again.run_id or "none", "sessions": len(sessions_of(path, again.run_id))}
    facts["determinism"] = {"code": again.level.code, "text": again.level.text}
    facts["to_reproduce"] = {str(i): command for i, command in enumerate(again.commands, 1)}
    return facts


def _dataset(path: Path) -> Facts:
    named = {"kind": "dataset", "path": str(path)}
    return named | _json(path / "manifest.json") | named


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
    except _BROKEN_ARCHIVE as error:
        reason = str(error)[:200] or type(error).__name__
        raise InputError(path.name, "is no readable .npz archive", value=str(path), hint=reason) from None
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
        columns = found.schema.names
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names that are no UTF-8
        raise InputError(path.name, "is no readable Parquet", value=str(path), hint=str(error)) from None
    return {"kind": f"{_table_kind(columns)} (Parquet)", "path": str(path), "rows": found.num_rows, "columns": columns}


def to_json(facts: Facts) -> str:
    """The facts as JSON; infinities, which JSON has not, as text."""
    return _printable(json.dumps(_plain(facts), indent=2, ensure_ascii=False, allow_nan=False))


def _printable(text: str) -> str:
    """The text with halves of characters, which no terminal takes, as question marks."""
    return text.encode(errors="replace").decode()


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


def lines(facts: Facts, indent: int = 0, most: int = 160) -> list[str]:
    """The facts as indented text; what is longer than ``most`` is cut, but for commands."""
    out: list[str] = []
    for key, value in facts.items():
        pad = "  " * indent
        if isinstance(value, dict) and value:
            out.append(_printable(f"{pad}{key}:"))
            out += lines(value, indent + 1, _MAX_COMMAND if key in ("determinism", "to_reproduce") else most)
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            out.append(_printable(f"{pad}{key}: {text if len(text) <= most else text[: most - 3] + '...'}"))
    return out

"""``perfuse info`` trusts no file: what is damaged or forged is one line that names it, and nothing is read whole."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from perfuse.errors import InputError
from perfuse.info import describe, lines, to_json

DEEP = "[" * 500 + "]" * 500
DEEPER = "[" * 100_000


def refused(path: Path, says: str) -> None:
    with pytest.raises(InputError) as error:
        describe(path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def tensors(path: Path, header: object, data: bytes = b"\0" * 8) -> Path:
    """A safetensors file with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": ' + DEEP + "}", DEEPER, '{"a": 1' + "0" * 5000 + "}"])
def test_forged_manifests(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    refused(tmp_path, "manifest.json")


def test_manifests_keep_their_name_and_odd_characters_are_shown(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "virus", "seed": "\\ud800"}')
    facts = describe(tmp_path)
    assert (facts["kind"], facts["path"]) == ("dataset", str(tmp_path))
    assert "seed: ?" in lines(facts)
    assert json.loads(to_json(facts))["seed"] == "?"


@pytest.mark.parametrize("text", ["a = " + DEEP, "a = " + DEEPER, "a =", "a = 0x" + "f" * 5000])
def test_forged_toml(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    refused(tmp_path / "a.toml", "a.toml is no valid TOML")


def test_text_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff")
    refused(tmp_path / "a.toml", "a.toml is no text")


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_huge_files_are_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 2**28 + 1)  # sparse: takes no room
    refused(tmp_path, f"{name} is too large")


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"dtype": "F64", "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": 1, "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": ["1"], "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [-1], "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [True], "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [10**15], "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [2**62] * 60, "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [1] * 1000, "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [1]},
        {"dtype": "F64", "shape": [1], "data_offsets": ["0", "8"]},
        {"dtype": "F64", "shape": [1], "data_offsets": [8]},
        {"dtype": "F64", "shape": [1], "data_offsets": [8, 0]},
    ],
)
def test_forged_safetensors_entries(entry: object, tmp_path: Path) -> None:
    refused(tensors(tmp_path / "a.safetensors", {"a": entry}), "a.safetensors has an unreadable safetensors header")


@pytest.mark.parametrize("header", [b"[1]", b"{]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}"])
def test_safetensors_headers_that_are_none(header: bytes, tmp_path: Path) -> None:
    refused(tensors(tmp_path / "a.safetensors", header), "a.safetensors has an unreadable safetensors header")


def test_good_safetensors_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(3, 4), "none": torch.zeros(0, 5), "one": torch.tensor(1.0)}, path, {"by": "test"})
    assert (describe(path)["tensors"], describe(path)["numbers"]) == (3, 13)


@pytest.mark.parametrize(
    "header",
    [b"{'descr': (((((", b"{'descr': '<f8', 'fortran_order': False, 'shape': (1,", b"{1: 2}", b"'''", b"\\", b""],
)
def test_broken_npy_headers(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    refused(path, "a.npz is no readable .npz archive")


@pytest.mark.parametrize(("at", "value"), [(8, b"\x63"), (6, b"\x01")])
def test_archives_of_unknown_or_encrypted_kind(at: int, value: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.zeros(3))
    raw = bytearray(path.read_bytes())
    central = raw.index(b"PK\x01\x02")
    raw[at], raw[central + at + 2] = value[0], value[0]
    path.write_bytes(raw)
    refused(path, "a.npz is no readable .npz archive")


def test_archives_that_point_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.zeros(3))
    raw = path.read_bytes()
    end = raw.index(b"PK\x05\x06")
    path.write_bytes(raw[: end + 16] + struct.pack("<I", len(raw)) + raw[end + 20 :])
    refused(path, "a.npz is no readable .npz archive")


@pytest.mark.parametrize("line", ["[1]", "3", "null", '"x"', "{", DEEP, DEEPER, '{"val_loss": "x"}'])
def test_lines_of_metrics_that_are_none(line: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("seed = 0\n")
    (tmp_path / "metrics.jsonl").write_text(line + '\n{"epoch": 1, "val_loss": 0.5}\n')
    facts = describe(tmp_path)
    assert facts["best_val_loss"] == 0.5
    assert facts["epochs_recorded"] == (2 if "val_loss" in line else 1)


def checkpoint(folder: Path, change: Callable[[dict], object] = lambda s: None) -> Path:
    """A folder with what ``info`` looks at in a checkpoint."""
    for name in ("model.safetensors", "optimizer.safetensors"):
        save_file({"a": torch.zeros(2)}, folder / name)
    hashes = {p.name: sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.safetensors")}
    state = {"files": hashes, "split": {"train": {"n_curves": 2, "compound_ids": {"$tuple": ["a", "b"]}}}}
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def test_a_split_without_names_is_shown(tmp_path: Path) -> None:
    assert describe(checkpoint(tmp_path))["train_part"] == "2 curves, 2 compounds"
    checkpoint(tmp_path, lambda s: s["split"]["train"].update(compound_ids=7))
    assert describe(tmp_path)["train_part"] == "2 curves, unknown compounds"


@pytest.mark.parametrize("text", [DEEP, DEEPER, "[1]", "{"])
def test_forged_states(text: str, tmp_path: Path) -> None:
    (checkpoint(tmp_path) / "state.json").write_text(text)
    refused(tmp_path, "state.json")


def test_tensor_files_are_hashed_without_being_held_in_memory(tmp_path: Path) -> None:
    size = 512 * 2**20
    header = {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    path = tensors(checkpoint(tmp_path) / "model.safetensors", header, b"")
    os.truncate(path, path.stat().st_size + size)  # sparse: takes no room
    tracemalloc.start()
    facts = describe(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20
    assert facts["model.safetensors"]["sha256"] == "NOT the one in state.json"
    assert facts["optimizer.safetensors"]["sha256"] == "as in state.json"


def test_broken_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"\xff" * 64 + struct.pack("<I", 60) + b"PAR1")
    refused(tmp_path / "a.parquet", "a.parquet is no readable Parquet")

"""Forged, damaged and misplaced tensor files: refused before memory is taken, in one line."""

from __future__ import annotations

import json
import os
import struct
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from perfuse.config import MODEL_CONFIGS
from perfuse.errors import InputError
from perfuse.files import own_file
from perfuse.models import build_model
from perfuse.pk.topology import get_topology
from perfuse.training.tensor_file import MAX_HEADER_BYTES, file_limit, read_tensors, tensor_bytes

TENSORS = {
    "a": torch.arange(6.0).view(2, 3), "b": torch.ones((), dtype=torch.float64), "empty": torch.zeros(0, 4),
    "c": torch.tensor([True, False]), "half": torch.ones(3, dtype=torch.bfloat16),
}  # fmt: skip


def written(folder: Path, data: bytes) -> str:
    (folder / "x.safetensors").write_bytes(data)
    return sha256(data).hexdigest()


def forged(header: object, payload: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def one(shape: Any, dtype: Any = "F32", place: Any = (0, 4)) -> dict[str, Any]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": list(place)}}


def refused(folder: Path, data: bytes, limit: int = 2**20) -> str:
    digest = written(folder, data)
    with pytest.raises(InputError) as caught:
        read_tensors(folder, "x.safetensors", digest, limit)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    data = save(TENSORS, metadata={"about": "x"})
    found = read_tensors(tmp_path, "x.safetensors", written(tmp_path, data), len(data))
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


def test_a_file_larger_than_its_model_is_not_read(tmp_path: Path) -> None:
    """A file of 1 TB by its size, of nothing on the disk."""
    data = save(TENSORS)
    assert "is larger than what the model needs" in refused(tmp_path, data, len(data) - 1)
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="is larger than what the model needs"):
        read_tensors(tmp_path, "x.safetensors", "0" * 64, file_limit(2**20))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut short"),
        (b"\x01\x00", "cut short"),
        (struct.pack("<Q", 2**63) + b"{}", "header would take 9223372036854775808 bytes"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "header would take"),
        (struct.pack("<Q", 3) + b"{}", "header would take 3 bytes"),
        (struct.pack("<Q", 2) + b"\xff\xfe", "decode"),
        (forged([1]), "header is no object"),
        (struct.pack("<Q", 40_000) + b"[" * 40_000, "recursion"),
        (forged({"t": 1}), "is not described by"),
        (forged({"t": {"dtype": "F32", "shape": [1]}}), "is not described by"),
        (forged(one([2**40], place=(0, 4)), b"\0" * 4), "takes other bytes"),
        (forged(one([2**62, 2**62]), b"\0" * 4), "takes other bytes"),
        (forged(one([1], "F128"), b"\0" * 4), "takes other bytes"),
        (forged(one([1], ["F32"]), b"\0" * 4), "is no readable"),
        (forged(one([-1], place=(4, 0)), b"\0" * 4), "cannot be"),
        (forged(one([1.0]), b"\0" * 4), "cannot be"),
        (forged(one([True]), b"\0" * 4), "cannot be"),
        (forged(one([1] * 9), b"\0" * 4), "cannot be"),
        (forged(one([1], place=(0, 4, 8)), b"\0" * 4), "cannot be"),
        (forged(one([1]), b"\0" * 8), "do not fill the file"),
        (forged(one([1]), b""), "do not fill the file"),
        (forged(one([1], place=(4, 8)), b"\0" * 8), "do not fill the file"),
        (forged({**one([1]), "u": one([1])["t"]}, b"\0" * 4), "do not fill the file"),
    ],
)
def test_forged_headers_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    text = refused(tmp_path, data)
    assert "x.safetensors is no readable safetensors file" in text and words in text


def test_another_hash_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing"):
        read_tensors(tmp_path, "x.safetensors", None, 2**20)
    written(tmp_path, save(TENSORS))
    for digest in (None, "0" * 64):
        with pytest.raises(InputError, match="is damaged or of another checkpoint"):
            read_tensors(tmp_path, "x.safetensors", digest, 2**20)


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "run", tmp_path / "secret"
    inside.mkdir()
    outside.write_bytes(save(TENSORS))
    digest = sha256(outside.read_bytes()).hexdigest()
    (inside / "x.safetensors").symlink_to(outside)
    with pytest.raises(InputError, match="x.safetensors is a symbolic link out of its folder"):
        read_tensors(inside, "x.safetensors", digest, 2**20)
    (inside / "loop").symlink_to(inside / "loop")
    with pytest.raises(InputError, match=r"loop is a symbolic link|loop is missing"):
        read_tensors(inside, "loop", digest, 2**20)
    (inside / "real").write_bytes(outside.read_bytes())
    (inside / "link").symlink_to("real")
    assert own_file(inside, "link") == inside / "link"
    assert set(read_tensors(inside, "link", digest, 2**20)) == set(TENSORS)


@pytest.mark.parametrize("name", list(MODEL_CONFIGS))
def test_a_models_bytes_are_known_without_memory(name: str, tmp_path: Path) -> None:
    config, topology = MODEL_CONFIGS[name](), get_topology("circulation")
    state = torch.get_rng_state()
    with torch.device("meta"):
        shadow = build_model(config, topology)
    assert torch.equal(torch.get_rng_state(), state), "looking at a checkpoint must not move a run's random numbers"
    data = save({k: t.contiguous() for k, t in build_model(config, topology).state_dict().items()})
    assert tensor_bytes(shadow) < len(data) < file_limit(tensor_bytes(shadow))

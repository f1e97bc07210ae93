"""The manifest of a dataset folder: what it holds, and every check of it before a shard is touched."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from perfuse.errors import InputError
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import get_topology

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_MAX_BYTES = 2**28
"""Largest manifest that is read: a million shards."""
_SHARD_NAME = re.compile(r"shard-[0-9]{5,9}\.arrow")
UNITS = {
    "body_weight_kg": "kg", "volume_l": "L", "flow_l_h": "L/h", "kp": "1", "elimination_l_h": "L/h", "fup": "1",
    "bp_ratio": "1", "dose_time_h": "h", "dose_mg": "mg", "dose_duration_h": "h", "time_h": "h",
    "conc_mg_l": "mg/L", "censored": "bool", "loq_mg_l": "mg/L",
    **dict.fromkeys(("curve_id", "compound_id", "group_id", "matrix"), "name"),
}  # fmt: skip


class ShardInfo(BaseModel):
    """One file of a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What a dataset is; ``manifest.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int
    topology: str
    elimination_names: tuple[str, ...]
    organs: tuple[str, ...]
    units: dict[str, str]
    seed: int | None
    generator: dict[str, JsonValue]
    n_curves: int = Field(ge=1)
    n_doses: int = Field(ge=1, le=100_000)
    """D, dose events per curve (padded with 0 mg)."""
    n_times: int = Field(ge=1, le=10_000_000)
    """T, times per curve (padded with NaN)."""
    shards: tuple[ShardInfo, ...] = Field(min_length=1)


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of a dataset folder.

    Raises:
        InputError: if it is missing, no JSON, of another schema version, or says what cannot be.
    """
    path = folder / MANIFEST
    where = str(path)
    if not path.is_file():
        raise InputError("dataset", f"has no {MANIFEST}", value=str(folder), hint="`perfuse simulate` makes datasets")
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise InputError("manifest", "is too large", value=size, unit="bytes", allowed=f"<= {_MAX_BYTES}", where=where)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("manifest", "cannot be read", hint=str(error), where=where) from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            "schema_version", "is of another version of Perfuse", value=version if version is not None else "none",
            allowed=str(SCHEMA_VERSION), hint="write the dataset again", where=where,
        )  # fmt: skip
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(key or "manifest", "is not allowed", allowed=first["msg"], where=where) from None
    _check_manifest(manifest, where)
    return manifest


def _check_manifest(manifest: Manifest, where: str) -> None:
    topology = get_topology(manifest.topology)
    for name, value, expected in (
        ("organs", manifest.organs, ORGANS),
        ("elimination_names", manifest.elimination_names, topology.elimination_names),
        ("units", manifest.units, UNITS),
    ):
        if value != expected:
            raise InputError(name, "differ from this version's", value=value, allowed=str(expected), where=where)
    for shard in manifest.shards:
        if not _SHARD_NAME.fullmatch(shard.file):
            raise InputError(
                "shards.file", "is no shard's name", value=shard.file, allowed="shard-NNNNN.arrow", where=where
            )
    if len({s.file for s in manifest.shards}) != len(manifest.shards):
        raise InputError("shards.file", "is named twice", where=where)
    if manifest.n_curves != sum(s.rows for s in manifest.shards):
        raise InputError(
            "n_curves", "is not the sum of the shards' rows", value=manifest.n_curves,
            allowed=str(sum(s.rows for s in manifest.shards)), where=where,
        )  # fmt: skip

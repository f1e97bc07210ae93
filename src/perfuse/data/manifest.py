"""The manifest of a dataset folder: what it holds, and every check of it before a shard is touched."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from perfuse.errors import InputError
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import get_topology

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""1 had no routes, absorption, permeability, saturable pathways or descriptors: it reads as intravenous and linear."""
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**28
"""Largest manifest that is read: a million shards."""
_SHARD_NAME = re.compile(r"shard-[0-9]{5,9}\.arrow")
UNITS = {
    "body_weight_kg": "kg", "volume_l": "L", "flow_l_h": "L/h", "kp": "1", "elimination_l_h": "L/h", "fup": "1",
    "bp_ratio": "1", "dose_time_h": "h", "dose_mg": "mg", "dose_duration_h": "h", "time_h": "h",
    "conc_mg_l": "mg/L", "censored": "bool", "loq_mg_l": "mg/L",
    "dose_route": "code", "ka_1_h": "1/h", "lag_h": "h", "f_abs": "1", "ps_l_h": "L/h", "vmax_mg_h": "mg/h",
    "km_u_mg_l": "mg/L", "mw_g_mol": "g/mol", "logp": "1", "pka_acid": "1", "pka_base": "1",
    "clint_ul_min_million_cells": "uL/min/10^6 cells",
    **dict.fromkeys(("curve_id", "compound_id", "group_id", "matrix"), "name"),
}  # fmt: skip


_SINCE_2 = (
    "dose_route", "ka_1_h", "lag_h", "f_abs", "ps_l_h", "vmax_mg_h", "km_u_mg_l", "mw_g_mol", "logp", "pka_acid",
    "pka_base", "clint_ul_min_million_cells",
)  # fmt: skip


def columns_of(schema_version: int) -> tuple[str, ...]:
    """Names of the columns that shards of a schema version hold."""
    return tuple(name for name in UNITS if schema_version >= 2 or name not in _SINCE_2)


class ShardInfo(BaseModel):
    """One file of a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    rows: int = Field(ge=1, le=2**40)
    bytes: int = Field(ge=1, le=2**50)
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
    n_pathways: int = Field(default=1, ge=1, le=1000)
    """P, saturable pathways per curve (padded with a Vmax of 0)."""
    n_failed: int = Field(default=0, ge=0)
    """Curves that could not be simulated and were left out; ``failures.csv`` names them."""
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
    if size > MAX_MANIFEST_BYTES:
        raise InputError(
            "manifest", "is too large", value=size, unit="bytes", allowed=f"<= {MAX_MANIFEST_BYTES}", where=where
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("manifest", "cannot be read", hint=str(error), where=where) from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version not in READABLE_VERSIONS:
        raise InputError(
            "schema_version", "is of another version of Perfuse", value=version if version is not None else "none",
            allowed=", ".join(map(str, READABLE_VERSIONS)), hint="write the dataset again", where=where,
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
        ("units", manifest.units, {name: UNITS[name] for name in columns_of(manifest.schema_version)}),
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

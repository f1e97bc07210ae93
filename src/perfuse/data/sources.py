"""Opening whatever a user names as data, and naming its content by a hash."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path

import numpy as np

from perfuse.data.store import CurveStore
from perfuse.data.table import CurveSource, CurveTable
from perfuse.errors import InputError

TIDY_SUFFIXES = (".csv", ".tsv", ".parquet")


def open_source(path: str | Path, verify: bool = True) -> CurveSource:
    """Curves of a dataset folder, an origin-layout ``.npz``, or a tidy ``.csv`` / ``.tsv`` / ``.parquet``.

    Args:
        path: The data; a dataset may lie at any fsspec URL, and is read through a local cache (``data.remote``).
        verify: Whether to read a dataset folder's shards once, front to back, compare their sha256 with the manifest's
            and check every value; other kinds are read and checked whole in any case.

    Raises:
        InputError: if the path is missing, of an unknown kind, or its content cannot be used.
    """
    if "://" in str(path):
        from perfuse.data.remote import open_remote

        # Fetching compares every hash.
        return open_remote(str(path), (lambda table: table.validate(str(path))) if verify else None)
    path = Path(path)
    if path.is_dir():
        store = CurveStore.open(path, verify=verify)
        if verify:
            store.check(lambda table: table.validate(str(path)))
        return store
    if not path.exists():
        raise InputError("data", "does not exist", value=str(path))
    suffix = path.suffix.lower()
    if suffix == ".npz":
        from perfuse.data.importers.origin import read_origin_npz

        return read_origin_npz(path)
    if suffix in TIDY_SUFFIXES:
        from perfuse.data.importers.tidy import read_tidy

        return read_tidy(path)
    raise InputError(
        "data", "is of an unknown kind", value=str(path), allowed="a dataset folder, .npz, .csv, .tsv, .parquet"
    )


def _is_neutral(name: str, value: np.ndarray) -> bool:
    """Whether a column holds only what stands for "left out", so that tables from before it existed keep their hash."""
    neutral = {"dose_route": 0.0, "lag_h": 0.0, "f_abs": 1.0, "vmax_mg_h": 0.0, "km_u_mg_l": 1.0}
    if name in neutral:
        return bool((value == neutral[name]).all())
    may_be_absent = ("ka_1_h", "ps_l_h", "mw_g_mol", "logp", "pka_acid", "pka_base", "clint_ul_min_million_cells")
    return name in may_be_absent and bool(np.isnan(value).all())


def source_hash(source: CurveSource) -> str:
    """sha256 (hex) of the content: a store's own hash, or that of every array of a table.

    Curves, their names and their order count; where they lie on disk does not.
    """
    if isinstance(source, CurveStore):
        return source.content_hash
    digest = hashlib.sha256(source.topology.name.encode())
    for field in fields(CurveTable):
        if field.name == "topology":
            continue
        value = source.column(field.name)
        if _is_neutral(field.name, value):
            continue
        digest.update(f"|{field.name}{value.shape}|".encode())
        if value.dtype.kind in "US":
            for text in value.tolist():
                raw = str(text).encode()
                digest.update(len(raw).to_bytes(4, "little") + raw)
        elif value.dtype == bool:
            digest.update(np.ascontiguousarray(value).view(np.uint8).data)
        else:
            # One NaN: other bit patterns mean the same absent value.
            canonical = np.where(np.isnan(value), np.nan, value) + 0.0
            digest.update(np.ascontiguousarray(canonical, dtype="<f8").data)
    return digest.hexdigest()

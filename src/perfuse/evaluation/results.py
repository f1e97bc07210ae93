"""What an evaluation leaves on disk: ``evaluation.json`` and ``evaluation_curves.npz`` (density, errors, cases).

Axis legend: C curves, K chosen cases, O the 14 reported organs, T times, H histogram bins.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from perfuse.data.table import CurveSource, CurveTable
from perfuse.errors import InputError
from perfuse.evaluation.files import write_atomic, write_json
from perfuse.evaluation.judged_data import JudgedData, JudgedRows
from perfuse.evaluation.metrics import ScoredValues, scored_mask
from perfuse.evaluation.runs import TrainedRun
from perfuse.files import check_file
from perfuse.pk.physiology import ORGANS
from perfuse.training.calibration import Calibration

JSON_NAME = "evaluation.json"
CURVES_NAME = "evaluation_curves.npz"
CASES_EACH = 3
"""Cases kept of each kind: worst, median, best."""
LOG10_EDGES = np.linspace(-9, 5, 281)
"""Edges of the density of log10 (mg/L), true and predicted: 20 bins per decade."""
_SAMPLE_VALUES = 3000
_MAX_JSON_BYTES = 2**28
_MAX_CURVES_BYTES = 2**30
_UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError,
    SyntaxError, TypeError, RuntimeError, MemoryError, OverflowError,
)  # fmt: skip
"""What JSON, zip and npy readers raise on damaged files; RuntimeError: encrypted members, too deep nesting."""


@dataclass(frozen=True)
class StoredCurves:
    """Contents of ``evaluation_curves.npz``.

    Attributes:
        density: ``(H, H)`` counts of (true, predicted) values in bins of log10 mg/L, ``log10_edges``.
        sample_true, sample_pred: A systematic sample of value pairs, mg/L.
        curve_gmfe: ``(C,)`` of every judged curve; NaN where none of its values counts.
        kind: ``(K,)`` worst, median or best.
        case_curve_id, case_compound_id, case_matrix: ``(K,)``.
        case_gmfe, case_loq: ``(K,)``.
        case_time_h: ``(K, T)``; case_true, case_pred: ``(K, O, T)``, mg/L; case_scored: ``(K, O, T)`` bool.
        case_lower, case_upper: ``(K, O, T)`` ends of the 90 % intervals, mg/L; NaN where there is none.
    """

    density: np.ndarray
    log10_edges: np.ndarray
    sample_true: np.ndarray
    sample_pred: np.ndarray
    curve_gmfe: np.ndarray
    kind: np.ndarray
    case_curve_id: np.ndarray
    case_compound_id: np.ndarray
    case_matrix: np.ndarray
    case_gmfe: np.ndarray
    case_loq: np.ndarray
    case_time_h: np.ndarray
    case_true: np.ndarray
    case_pred: np.ndarray
    case_scored: np.ndarray
    case_lower: np.ndarray
    case_upper: np.ndarray


class CaseStore:
    """Collects the density and the errors of single curves while batches pass, then picks cases."""

    def __init__(self, n_curves: int) -> None:
        """Args: n_curves: how many curves will come."""
        self._gmfe = np.full(n_curves, np.nan)
        self._next = 0
        size = len(LOG10_EDGES) - 1
        self._density = np.zeros((size, size), dtype=np.int64)
        self._sample: list[np.ndarray] = []
        self._share = max(1, _SAMPLE_VALUES // max(n_curves, 1))

    def add(self, table: CurveTable, scored: ScoredValues) -> None:
        """Add a batch, in the order of the judged rows."""
        n = len(table)
        self._gmfe[self._next : self._next + n] = scored.curve_gmfe
        self._next += n
        pair = np.stack((scored.true_mg_l[scored.mask], scored.pred_mg_l[scored.mask]))
        inside = np.clip(np.log10(pair), LOG10_EDGES[0], LOG10_EDGES[-1])
        self._density += np.histogram2d(inside[0], inside[1], bins=[LOG10_EDGES, LOG10_EDGES])[0].astype(np.int64)
        step = max(1, pair.shape[1] // (self._share * n))
        self._sample.append(pair[:, ::step])

    def choose(
        self, source: CurveSource, rows: np.ndarray, predict: Callable[[CurveTable], np.ndarray],
        calibration: Calibration | None = None,
    ) -> StoredCurves:  # fmt: skip
        """The worst, median and best curves, predicted once more, with intervals where there is a calibration."""
        order = np.argsort(np.where(np.isnan(self._gmfe), np.inf, self._gmfe), kind="stable")
        order = order[: int((~np.isnan(self._gmfe)).sum())]
        each = min(CASES_EACH, max(1, len(order) // 3)) if len(order) else 0
        middle = max(0, len(order) // 2 - each // 2)
        picks: list[tuple[str, int]] = []
        for kind, chosen in (
            ("worst", order[::-1][:each]), ("median", order[middle : middle + each]), ("best", order[:each])
        ):  # fmt: skip
            picks += [(kind, int(i)) for i in chosen if int(i) not in {p for _, p in picks}]
        index = np.asarray([i for _, i in picks], dtype=np.int64)
        table = source.take(rows[index])
        pred = predict(table) if len(index) else table.conc_mg_l
        nothing = np.full(pred.shape, np.nan)
        bounds = (nothing, nothing) if calibration is None or not len(index) else calibration.bounds(table, pred)
        sample = np.concatenate(self._sample, axis=1) if self._sample else np.zeros((2, 0))
        return StoredCurves(
            density=self._density, log10_edges=LOG10_EDGES, sample_true=sample[0], sample_pred=sample[1],
            curve_gmfe=self._gmfe, kind=np.asarray([k for k, _ in picks], dtype=str),
            case_curve_id=table.curve_id.astype(str), case_compound_id=table.compound_id.astype(str),
            case_matrix=table.matrix.astype(str), case_gmfe=self._gmfe[index], case_loq=table.loq_mg_l,
            case_time_h=table.time_h, case_true=table.conc_mg_l, case_pred=pred, case_scored=scored_mask(table),
            case_lower=bounds[0], case_upper=bounds[1],
        )  # fmt: skip


def evaluation_folder(run: TrainedRun, data: JudgedData, rows: JudgedRows, out: Path | None) -> Path:
    """Where an evaluation goes: ``out``, else in the run ``evaluation`` (own test split) or ``evaluation-<data>``.

    A second data set of the same name gets its hash appended, so that it does not replace the first one's results.
    """
    if out is not None:
        return Path(out)
    if rows.scope == "test split":
        return run.folder / "evaluation"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", data.path.resolve().stem).strip("-.") or "data"
    folder = run.folder / f"evaluation-{stem}"
    try:
        stored = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))["data"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return folder
    return folder if stored == data.content_hash else folder.with_name(f"{folder.name}-{data.content_hash[:8]}")


def save_evaluation(folder: Path, evaluation: Mapping[str, object], curves: StoredCurves) -> None:
    """Write both files; the JSON last, so that its presence means a complete evaluation.

    Raises:
        PerfuseError: if the folder cannot be written.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **curves.__dict__)
    write_atomic(folder / CURVES_NAME, buffer.getvalue())
    write_json(evaluation, folder / JSON_NAME)


def load_evaluation(folder: Path) -> tuple[dict[str, object], StoredCurves]:
    """What ``save_evaluation`` wrote; what its JSON must hold is ``stored.check_evaluation``'s business.

    Raises:
        InputError: if a file is missing or damaged.
    """
    try:
        return _read_json(folder / JSON_NAME), _read_curves(folder / CURVES_NAME)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            "evaluation", "cannot be read", value=str(folder), hint=f"run `perfuse evaluate` again ({reason})"
        ) from None


def _read_json(path: Path) -> dict[str, object]:
    check_file(path, path.name)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path.name} is larger than {_MAX_JSON_BYTES} bytes")
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no object")
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # no NaN, no infinity, no half of a character
    return value


def _read_curves(path: Path) -> StoredCurves:
    """Arrays of the archive, checked against one another; what does not fit raises ValueError."""
    arrays = {}
    check_file(path, path.name)
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > _MAX_CURVES_BYTES:
            raise ValueError(f"{path.name} holds more than {_MAX_CURVES_BYTES} bytes")
        for name in StoredCurves.__dataclass_fields__:
            arrays[name] = _read_member(archive, archive.getinfo(f"{name}.npy"))
    curves = StoredCurves(**arrays)
    _check_curves(curves)
    return curves


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array; numpy takes the memory that its header declares, so that is held against the archive's entry first."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise ValueError(f"{info.filename} is in an unknown npy version")
        try:
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        except MemoryError:  # Python's parser says so of deep nests
            raise ValueError(f"the header of {info.filename} is broken") from None
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"{info.filename} is no plain array")
        if member.tell() + prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{info.filename} declares a size that it does not have")
    with archive.open(info) as member:
        return np.asarray(np.lib.format.read_array(member, allow_pickle=False))


def _check_curves(c: StoredCurves) -> None:
    h, s, n, k = len(LOG10_EDGES) - 1, c.sample_true.shape[:1], c.curve_gmfe.shape[:1], c.kind.shape[:1]
    times = c.case_time_h.shape[1:2]
    cases = (*k, len(ORGANS), *times)
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "density": ("i", (h, h)), "log10_edges": ("f", (h + 1,)), "sample_true": ("f", s), "sample_pred": ("f", s),
        "curve_gmfe": ("f", n), **dict.fromkeys(("kind", "case_curve_id", "case_compound_id", "case_matrix"), ("U", k)),
        "case_gmfe": ("f", k), "case_loq": ("f", k), "case_time_h": ("f", (*k, *times)), "case_true": ("f", cases),
        "case_pred": ("f", cases), "case_scored": ("b", cases), "case_lower": ("f", cases), "case_upper": ("f", cases),
    }  # fmt: skip
    for name, (kind, shape) in expected.items():
        array = getattr(c, name)
        if array.dtype.kind != kind or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {kind} {shape}")
        if kind == "U":
            codes = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).view(np.uint32)
            if (codes > 0x10FFFF).any():  # beyond Unicode: Python makes no text of it
                raise ValueError(f"{name} holds what is no character")
            "".join(array.tolist()).encode()  # half of a character cannot be shown
    if not np.allclose(c.log10_edges, LOG10_EDGES, rtol=0, atol=1e-6):
        raise ValueError("log10_edges are not this version's")
    if (c.density < 0).any():
        raise ValueError("density holds a negative count")
    if not (np.isnan(c.case_time_h) | ((c.case_time_h >= 0) & (c.case_time_h < np.inf))).all():
        raise ValueError("case_time_h holds a time that is none")

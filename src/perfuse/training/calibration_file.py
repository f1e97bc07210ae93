"""A calibration beside the checkpoint it belongs to: ``calibration.safetensors`` and ``calibration.json``.

The JSON names the sha256 of the weights and of the tensors. Training that goes on replaces the checkpoint's folder, so
a calibration never outlives its weights there; one that was copied to other weights is refused.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, as_tensor

from perfuse.errors import InputError
from perfuse.files import own_file, write_atomic
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import Topology
from perfuse.training.calibration import REPORTED_LEVEL, Calibration
from perfuse.training.conformal import LEVELS
from perfuse.training.distance import as_array, distance_from
from perfuse.training.residual_scale import LEVEL_KNOTS_LN, TIME_KNOTS_LN_H, ResidualScale

TENSOR_FILE = "calibration.safetensors"
RECORD_FILE = "calibration.json"
_MAX_BYTES = 2**26
_GREATEST = 100.0
"""Of any parameter of ln sigma: they are logs of errors, or standardised."""
_GREATEST_QUANTILE = 1e9
_SCALE = ("table", "level", "centre", "spread", "drug")


class CalibrationRecord(BaseModel):
    """Contents of ``calibration.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    code_version: str
    model_sha256: str
    """Of the checkpoint's ``model.safetensors``."""
    calibration_sha256: str = ""
    """Of ``calibration.safetensors``; filled in when saved."""
    topology: str
    organs: list[str] = list(ORGANS)
    levels: list[float]
    features: list[str]
    with_descriptors: bool
    neighbours: int
    n_drugs: int = Field(ge=1)
    n_scale_drugs: int = Field(ge=1)
    n_curves: int = Field(ge=1)
    n_values: int = Field(ge=1)
    seed: int = Field(ge=0)
    data_path: str
    data_sha256: str
    compound_ids: list[str]
    """Distinct, sorted: who may not be judged on afterwards."""
    group_ids: list[str]


def save_calibration(folder: Path, calibration: Calibration, record: CalibrationRecord) -> Path:
    """Write both files into a checkpoint's folder, the JSON last; returns the JSON's path.

    Raises:
        PerfuseError: if the folder cannot be written.
    """
    from safetensors.torch import save

    tensors = {f"distance.{name}": tensor for name, tensor in calibration.distance.tensors().items()}
    tensors |= {f"scale.{name}": as_tensor(getattr(calibration.scale, name)) for name in _SCALE}
    tensors |= {name: as_tensor(getattr(calibration, name)) for name in ("quantiles", "organ_drugs", "coverage_se")}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    record = record.model_copy(update={"calibration_sha256": sha256(data).hexdigest()})
    write_atomic(folder / TENSOR_FILE, data)
    write_atomic(folder / RECORD_FILE, (record.model_dump_json(indent=1) + "\n").encode())
    return folder / RECORD_FILE


def load_calibration(
    folder: Path, model_sha256: str, topology: Topology
) -> tuple[Calibration, CalibrationRecord] | None:
    """The calibration in a checkpoint's folder; None where there is none.

    Args:
        folder: The checkpoint's.
        model_sha256: Of its weights.
        topology: Its organ graph.

    Raises:
        InputError: if it is damaged, of another version, or of other weights.
    """
    if not (folder / RECORD_FILE).is_file():
        return None
    record = _record(_bytes(own_file(folder, RECORD_FILE)), str(folder))
    if record.model_sha256 != model_sha256:
        raise _refused(folder, "belongs to other weights than the checkpoint's")
    if record.topology != topology.name or tuple(record.organs) != ORGANS:
        raise _refused(folder, "is of another organ graph")
    data = _bytes(own_file(folder, TENSOR_FILE))
    if sha256(data).hexdigest() != record.calibration_sha256:
        raise _refused(folder, f"is damaged: the sha256 of {TENSOR_FILE} is not the one in {RECORD_FILE}")
    return _calibration(_tensors(data, folder), record, topology, folder), record


def _refused(folder: Path, problem: str) -> InputError:
    return InputError(
        "calibration", problem, where=str(folder),
        hint=f"run `perfuse calibrate` again, or delete {RECORD_FILE} to go without intervals",
    )  # fmt: skip


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise _refused(path.parent, f"is damaged: {path.name} is missing")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(path.name, "is too large", value=path.stat().st_size, unit="bytes", allowed=f"<= {_MAX_BYTES}")
    return path.read_bytes()


def _record(data: bytes, where: str) -> CalibrationRecord:
    try:
        return CalibrationRecord.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(
            RECORD_FILE + (f": {key}" if key else ""), "is not allowed", allowed=first["msg"], where=where,
            hint="run `perfuse calibrate` again",
        ) from None  # fmt: skip


def _tensors(data: bytes, folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise _refused(folder, f"is no readable safetensors file ({str(error)[:120]})") from None


def _calibration(
    tensors: dict[str, Tensor], record: CalibrationRecord, topology: Topology, folder: Path
) -> Calibration:
    where = str(folder)
    of_distance = {name.removeprefix("distance."): t for name, t in tensors.items() if name.startswith("distance.")}
    distance = distance_from(
        of_distance, tuple(record.features), record.with_descriptors, record.neighbours, topology, where
    )
    n_levels, n_organs, n_terms = len(record.levels), len(ORGANS), 2 * (len(record.features) + 1) - 1
    shapes: dict[str, tuple[int, ...]] = {
        "scale.table": (n_organs, len(TIME_KNOTS_LN_H)), "scale.level": (len(LEVEL_KNOTS_LN),),
        "scale.centre": (n_terms,), "scale.spread": (n_terms,), "scale.drug": (n_terms,),
        "quantiles": (n_levels, n_organs), "organ_drugs": (n_organs,), "coverage_se": (n_levels,),
    }  # fmt: skip
    arrays = {name: as_array(tensor) for name, tensor in tensors.items() if not name.startswith("distance.")}
    if set(arrays) != set(shapes):
        raise _refused(folder, "is of another version of Perfuse")
    for name, shape in shapes.items():
        kind = np.int64 if name == "organ_drugs" else np.float64
        if arrays[name].shape != shape or arrays[name].dtype != kind:
            raise _refused(folder, f"does not fit: {name} is {arrays[name].dtype} {arrays[name].shape}, not {shape}")
        if name.startswith("scale.") and not np.isfinite(arrays[name]).all():
            raise _refused(folder, f"does not fit: {name} is not finite")
        if name.startswith("scale.") and (np.abs(arrays[name]) > _GREATEST).any():
            raise _refused(folder, f"does not fit: {name} is beyond {_GREATEST:g}")
    _check_quantiles(arrays["quantiles"], arrays["organ_drugs"], record, folder)
    if not ((arrays["coverage_se"] >= 0) & (arrays["coverage_se"] <= 1)).all():
        raise _refused(folder, "does not fit: coverage_se is not within 0..1")
    if not (arrays["scale.spread"] > 0).all():
        raise _refused(folder, "does not fit: a spread is not positive")
    scale = ResidualScale(*(arrays[f"scale.{name}"] for name in _SCALE))
    return Calibration(
        distance, scale, tuple(record.levels), arrays["quantiles"], arrays["organ_drugs"], record.n_drugs,
        record.n_scale_drugs, record.n_curves, record.n_values, arrays["coverage_se"],
    )  # fmt: skip


def _check_quantiles(quantiles: np.ndarray, organ_drugs: np.ndarray, record: CalibrationRecord, folder: Path) -> None:
    """An organ has quantiles where it has drugs, and none (NaN) where it has none."""
    levels = record.levels
    if (organ_drugs < 0).any() or (organ_drugs > record.n_drugs).any() or not organ_drugs.any():
        raise _refused(folder, "has numbers of drugs that cannot be")
    known, unknown = quantiles[:, organ_drugs > 0], quantiles[:, organ_drugs == 0]
    if REPORTED_LEVEL not in levels or levels != [level for level in LEVELS if level in levels]:
        raise _refused(folder, "has levels that are not this version's")
    within = ((known >= 0) & (known <= _GREATEST_QUANTILE)).all() and np.isnan(unknown).all()
    if not within or (np.diff(known, axis=0) < 0).any():
        raise _refused(folder, "has quantiles that cannot be")

"""The training drugs beside a run, ``training_distance.safetensors``: a prediction's distance without training data."""

from __future__ import annotations

import json
from pathlib import Path

from perfuse.errors import InputError
from perfuse.files import own_file, write_atomic
from perfuse.pk.topology import Topology
from perfuse.training.distance import TrainingDistance, distance_from
from perfuse.training.record import CheckpointState

DISTANCE_FILE = "training_distance.safetensors"
_MAX_BYTES = 2**26


def training_key(state: CheckpointState) -> str:
    """Names the training curves of a run: its data and the rows of the training split."""
    return f"{state.data.content_hash} {state.split.train.rows_hash}"


def save_distance(run: Path, distance: TrainingDistance, key: str) -> None:
    """Write the file into a run's folder.

    Args:
        run: The folder.
        distance: From the run's training split.
        key: ``training_key`` of the run.

    Raises:
        PerfuseError: if it cannot be written.
    """
    from safetensors.torch import save

    about = {
        "features": list(distance.names), "with_descriptors": distance.with_descriptors,
        "neighbours": distance.neighbours, "training": key,
    }  # fmt: skip
    tensors = {name: tensor.contiguous() for name, tensor in distance.tensors().items()}
    write_atomic(run / DISTANCE_FILE, save(tensors, metadata={"about": json.dumps(about)}))


def load_distance(run: Path, key: str, topology: Topology) -> TrainingDistance | None:
    """What ``save_distance`` wrote; None where there is no file or it is of other training drugs.

    Raises:
        InputError: if the file is damaged or of another version.
    """
    from safetensors import SafetensorError, safe_open

    path = own_file(run, DISTANCE_FILE)
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(path.name, "is too large", value=path.stat().st_size, unit="bytes", allowed=f"<= {_MAX_BYTES}")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if about["training"] != key:
            return None
        names = tuple(str(name) for name in about["features"])
        with_descriptors, neighbours = bool(about["with_descriptors"]), int(about["neighbours"])
        if not 0 < neighbours < 2**31:
            raise ValueError(f"neighbours is {neighbours}")
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(
            DISTANCE_FILE, "is damaged", where=str(run), hint=f"delete it ({' '.join(str(error).split())[:120]})"
        ) from None
    return distance_from(tensors, names, with_descriptors, neighbours, topology, str(run))

"""``load_model``: a trained model from a run or checkpoint folder, ready to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from perfuse.config import RunConfig
from perfuse.errors import InputError
from perfuse.models.base import CurveModel
from perfuse.models.featuriser import Featuriser
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import get_topology
from perfuse.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from perfuse.training.record import UNITS, CheckpointState
from perfuse.training.shadow import built, shadow_of


@dataclass(frozen=True)
class LoadedModel:
    """A model with its provenance.

    Attributes:
        model: On the CPU, in eval mode.
        config: The run's configuration.
        meta: All of ``state.json``: data, split (compounds of each part), progress, metrics, versions.
        folder: The checkpoint folder it came from.
    """

    model: CurveModel
    config: RunConfig
    meta: CheckpointState
    folder: Path


def find_model(path: Path) -> Path:
    """The checkpoint that a path means: itself, or of a run ``best``, else ``last``.

    Raises:
        InputError: if there is none.
    """
    if not path.is_dir() and find_checkpoint(path) is None:
        problem = "is no folder" if path.exists() else "does not exist"
        raise InputError("RUN", problem, value=str(path), allowed="a run or checkpoint folder")
    for folder in (path, path / "best", path / "last"):
        if find_checkpoint(folder) is not None:
            return folder
    raise InputError("RUN", "holds no checkpoint", value=str(path), allowed="a folder with best/ or last/")


def load_model(path: Path) -> LoadedModel:
    """A trained model from a run folder (``best``, else ``last``) or a checkpoint folder.

    Raises:
        InputError: if there is no checkpoint, or it is damaged, does not fit the model it names, or was saved
            before the first training step.
    """
    checkpoint = load_checkpoint(find_model(path))
    progress = checkpoint.state.progress
    if progress.step == 0 and progress.best_step < 0:  # what a run starts from may already be fitted, and the best
        raise InputError("RUN", "holds an untrained model", value=str(path), hint="continue it with --resume")
    model = model_of(checkpoint)
    return LoadedModel(model.eval(), checkpoint.state.config, checkpoint.state, checkpoint.folder)


def model_of(checkpoint: Checkpoint) -> CurveModel:
    """The model that a checkpoint names, carrying its weights.

    The configuration is only text, and may ask for far more memory than the tensors beside it take. So it is held
    against them on PyTorch's ``meta`` device first, where tensors have shapes and types but no memory.

    Raises:
        InputError: if organs, units, eliminations or tensors are not those of this version's model.
    """
    state = checkpoint.state
    where = str(checkpoint.folder)
    topology = get_topology(state.topology)
    if state.organs != ORGANS:
        raise InputError("checkpoint organs", "differ from this version's", value=",".join(state.organs), where=where)
    if state.units != UNITS:
        raise InputError(
            "checkpoint units", "differ from this version's", value=state.units, allowed=str(UNITS), where=where
        )
    if state.elimination_names != topology.elimination_names:
        raise InputError(
            "checkpoint elimination_names", "differ from the topology's", value=",".join(state.elimination_names),
            allowed=",".join(topology.elimination_names), where=where,
        )  # fmt: skip
    shadow = shadow_of(state)
    check_weights(shadow, checkpoint.model, where)
    check_featuriser(state.featuriser, shadow, where)
    model = built(state.config, topology)
    load_weights(model, checkpoint.model, where)
    return model


def check_featuriser(saved: Featuriser | None, model: CurveModel, where: str) -> None:
    """Whether a model reads what the one that was saved did; where that was not recorded (schema 1), nothing is known.

    Raises:
        InputError: naming the first difference.
    """
    difference = saved.first_difference(model.featuriser()) if saved is not None else None
    if difference is not None:
        at, before, now = difference
        raise InputError(
            f"checkpoint featuriser: {at}", "is not what this version reads", value=before, allowed=now,
            hint="use the version that wrote it, or train again", where=where,
        )  # fmt: skip


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a model that needs exactly these.

    Raises:
        InputError: as ``check_weights``.
    """
    check_weights(model, tensors, where)
    model.load_state_dict(dict(tensors))


def check_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Whether these are exactly the tensors that a model needs; the model may be on the ``meta`` device.

    Raises:
        InputError: naming the first tensor that is missing, unknown, or of another shape or type.
    """
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise InputError(
                f"checkpoint tensor {name}", "is missing: it is of another model or version", hint="train again",
                where=where,
            )  # fmt: skip
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise InputError(
                f"checkpoint tensor {name}", "does not fit the model",
                value=f"{tuple(found.shape)} {found.dtype}", allowed=f"{tuple(tensor.shape)} {tensor.dtype}",
                where=where,
            )  # fmt: skip
    unknown = sorted(set(tensors) - set(own))
    if unknown:
        raise InputError(f"checkpoint tensor {unknown[0]}", "is unknown to the model: it is of another", where=where)

"""A trained run as the judge sees it: its model, who it has seen, and where its training curves are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perfuse.config import RunConfig
from perfuse.data.sources import open_source, source_hash
from perfuse.data.table import CurveSource
from perfuse.errors import InputError
from perfuse.models.base import CurveModel
from perfuse.pk.topology import Topology, get_topology
from perfuse.training.calibration import Calibration
from perfuse.training.calibration_file import CalibrationRecord, load_calibration
from perfuse.training.checkpoint import MODEL_FILE
from perfuse.training.config_file import CONFIG_FILE
from perfuse.training.distance_file import training_key
from perfuse.training.load import load_model
from perfuse.training.reproduce import Reproduction, reproduction

if TYPE_CHECKING:
    from perfuse.evaluation.judged_data import JudgedData


@dataclass(frozen=True)
class TrainedRun:
    """A run with a checkpoint.

    Attributes:
        folder: The run's folder (or the checkpoint's, when that was named).
        checkpoint: The checkpoint's folder.
        model: In eval mode.
        config: The run's configuration.
        topology: The organ graph it was trained on.
        data_path, data_hash: The data it was trained on.
        train_compounds, validation_compounds, test_compounds, calibration_compounds: Who was in each part of the split.
        facts: More for the record: code version, step, epoch.
        weights_hash: sha256 of the weights' file.
        run_id: Id of the run.
        training_key: Names the training curves (``training.distance_file.training_key``).
        calibration, calibration_record: Of its intervals; None where it is not calibrated.
    """

    folder: Path
    checkpoint: Path
    model: CurveModel
    config: RunConfig
    topology: Topology
    data_path: str
    data_hash: str
    train_compounds: frozenset[str]
    validation_compounds: frozenset[str]
    test_compounds: frozenset[str]
    calibration_compounds: frozenset[str]
    facts: dict[str, object]
    weights_hash: str = ""
    run_id: str = ""
    training_key: str = ""
    calibration: Calibration | None = field(default=None, repr=False)
    calibration_record: CalibrationRecord | None = field(default=None, repr=False)

    @property
    def seen_compounds(self) -> frozenset[str]:
        """Compounds that the model was trained or selected on."""
        return self.train_compounds | self.validation_compounds

    @property
    def label(self) -> str:
        """Name in tables: the model, with flux's prior."""
        prior = getattr(self.config.model, "prior", None)
        return f"{self.config.model.name} (prior {prior})" if prior else self.config.model.name

    def reproduction(self) -> Reproduction | None:
        """How to make the run again; None for a checkpoint away from its run."""
        try:
            return reproduction(self.folder.resolve()) if (self.folder / CONFIG_FILE).is_file() else None
        except InputError:
            return None

    def describe(self) -> dict[str, object]:
        """Plain data for the evaluation's record."""
        return {
            "name": self.config.model.name, "label": self.label, "prior": getattr(self.config.model, "prior", None),
            "run": str(self.folder), "topology": self.topology.name, "seed": self.config.seed,
            "n_parameters": sum(p.numel() for p in self.model.parameters()),
            "training_data": self.data_path, "training_data_sha256": self.data_hash,
            "training_compounds": len(self.train_compounds), "validation_compounds": len(self.validation_compounds),
            "run_id": self.run_id, "weights_sha256": self.weights_hash, **self.facts,
        }  # fmt: skip


def open_run(folder: Path, with_calibration: bool = True) -> TrainedRun:
    """The run in a folder, by its ``best`` checkpoint, else ``last``.

    Args:
        folder: Run or checkpoint folder.
        with_calibration: Whether to read the calibration beside the checkpoint.

    Raises:
        InputError: if there is no usable checkpoint, or its calibration is damaged or of other weights.
    """
    loaded = load_model(folder)
    state = loaded.meta
    is_checkpoint = loaded.folder == folder and folder.name in ("best", "last")
    topology, weights_hash = get_topology(state.topology), state.files[MODEL_FILE]
    found = load_calibration(loaded.folder, weights_hash, topology) if with_calibration else None
    kept = state.split.calibration
    run = TrainedRun(
        folder=folder.parent if is_checkpoint and (folder.parent / "config.toml").is_file() else folder,
        checkpoint=loaded.folder,
        model=loaded.model,
        config=loaded.config,
        topology=topology,
        data_path=state.data.path,
        data_hash=state.data.content_hash,
        train_compounds=frozenset(state.split.train.compound_ids),
        validation_compounds=frozenset(state.split.validation.compound_ids),
        test_compounds=frozenset(state.split.test.compound_ids),
        calibration_compounds=frozenset(kept.compound_ids if kept else ()),
        facts={
            "checkpoint": loaded.folder.name, "code_version": state.code_version, "torch_version": state.torch_version,
            "training_curves": state.split.train.n_curves, "step": state.progress.step, "epoch": state.progress.epoch,
            "training_seconds": state.progress.elapsed_s,
        },
        weights_hash=weights_hash,
        run_id=state.run_id,
        training_key=training_key(state),
        calibration=found[0] if found else None,
        calibration_record=found[1] if found else None,
    )  # fmt: skip
    return run


def training_source(run: TrainedRun, judged: JudgedData | None = None) -> CurveSource | str:
    """The curves that a run was trained on, or the reason why they are not at hand.

    They are looked for in the judged data and at the path that the run recorded, and must have the recorded hash.
    """
    if judged is not None and judged.content_hash == run.data_hash:
        return judged.source
    path = Path(run.data_path)
    if not run.data_path or not path.exists():
        return f"the run's training data is not at hand ({run.data_path or 'no path recorded'})"
    try:
        source = open_source(path)
    except InputError as error:
        return f"the run's training data cannot be read ({error})"
    if source_hash(source) != run.data_hash:
        return f"the run's training data has changed since ({run.data_path})"
    return source


def rows_of(source: CurveSource, compounds: frozenset[str]) -> np.ndarray:
    """Rows of a source that belong to these compounds, int64, sorted."""
    return np.flatnonzero(np.isin(source.column("compound_id"), list(compounds))).astype(np.int64)


def seen_groups(run: TrainedRun, source: CurveSource) -> frozenset[str]:
    """Parameter groups of the training and validation splits of a run, from its own data."""
    return frozenset(str(g) for g in source.column("group_id")[rows_of(source, run.seen_compounds)])

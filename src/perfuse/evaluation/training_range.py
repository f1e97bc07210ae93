"""How far a prediction's inputs lie from what a run was trained on."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perfuse.data.table import CurveTable
from perfuse.errors import PerfuseError
from perfuse.evaluation.baselines import MAX_TRAINING_CURVES, log_features
from perfuse.evaluation.files import write_json
from perfuse.evaluation.rates_baseline import sample_rows
from perfuse.evaluation.runs import TrainedRun, rows_of, training_source
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import Topology

MAX_Z = 4.0
_CONSTANT_TOLERANCE = 1e-6
FILE_NAME = "training_range.json"


def feature_names(topology: Topology) -> list[str]:
    """Names of the columns of ``log_features``."""
    by_organ = [f"{kind}_{organ}" for kind in ("volume", "flow", "kp") for organ in ORGANS]
    return [*by_organ, *topology.elimination_names, "fup", "bp_ratio", "body_weight_kg"]


@dataclass(frozen=True)
class TrainingRange:
    """Mean and standard deviation of every log feature over the training split, ``(F,)``."""

    names: list[str]
    mean: np.ndarray
    sd: np.ndarray

    def outside(self, table: CurveTable) -> list[str]:
        """Per curve: the features more than 4 standard deviations off, as text; '' when there is none.

        A feature that never varied in training counts as soon as it differs: no model can know its effect.
        """
        features = log_features(table)
        off = np.abs(features - self.mean)
        varies = self.sd > _CONSTANT_TOLERANCE
        z = off / np.where(varies, self.sd, 1.0)
        beyond = np.where(varies, z > MAX_Z, off > 1e-3)
        return [
            ", ".join(
                f"{self.names[i]} ({z[c, i]:.1f} sd)" if varies[i] else f"{self.names[i]} (constant in training)"
                for i in np.flatnonzero(beyond[c])
            )
            for c in range(len(table))
        ]


def training_range(run: TrainedRun) -> TrainingRange | str:
    """A run's training range, from its training data or as kept in ``RUN/baselines``; or why there is none."""
    names = feature_names(run.topology)
    path = run.folder / "baselines" / FILE_NAME
    source = training_source(run)
    if isinstance(source, str):
        kept = _read(path, run.data_hash, names)
        return source if kept is None else kept
    rows = sample_rows(rows_of(source, run.train_compounds), MAX_TRAINING_CURVES)
    features = log_features(source.take(rows))
    found = TrainingRange(names, features.mean(axis=0), features.std(axis=0))
    stored = {"data_sha256": run.data_hash, "names": names, "mean": found.mean.tolist(), "sd": found.sd.tolist()}
    with suppress(PerfuseError):  # a read-only run: taken from the data next time again
        write_json(stored, path)
    return found


def _read(path: Path, data_hash: str, names: list[str]) -> TrainingRange | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        mean, sd = np.asarray(kept["mean"], dtype=float), np.asarray(kept["sd"], dtype=float)
        same = kept["data_sha256"] == data_hash and kept["names"] == names and mean.shape == sd.shape == (len(names),)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return TrainingRange(names, mean, sd) if same else None

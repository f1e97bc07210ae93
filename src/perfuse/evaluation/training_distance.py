"""The distance to the drugs that a run was trained on, from wherever it is kept."""

from __future__ import annotations

from contextlib import suppress

from perfuse.errors import PerfuseError
from perfuse.evaluation.judged_data import JudgedData
from perfuse.evaluation.runs import TrainedRun, rows_of, training_source
from perfuse.training.distance import TrainingDistance, fit_distance
from perfuse.training.distance_file import load_distance, save_distance


def training_distance(run: TrainedRun, judged: JudgedData | None = None) -> TrainingDistance | str:
    """From the run's calibration, its ``training_distance.safetensors``, or its training data; or why there is none.

    Raises:
        InputError: for a damaged file.
    """
    if run.calibration is not None:
        return run.calibration.distance
    kept = load_distance(run.folder, run.training_key, run.topology)
    if kept is not None:
        return kept
    source = training_source(run, judged)
    if isinstance(source, str):
        return source
    found = fit_distance(source, rows_of(source, run.train_compounds), run.config.seed)
    if found is None:
        return "the run was trained on fewer than three drugs"
    if (run.folder / "config.toml").is_file():  # a run of an older version; a checkpoint alone is left as it is
        with suppress(PerfuseError):  # a read-only run: taken from the data next time again
            save_distance(run.folder, found, run.training_key)
    return found

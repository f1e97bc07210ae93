"""A sweep's trials on Ray Tune: processes of one CPU. Only numbers and text travel; nothing Ray stores is kept.

The sweep decides; Ray Tune asks it through a searcher (what next) and a scheduler (who goes on). Import this module
only where Ray is installed.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from perfuse.tuning.record import Ended
from perfuse.tuning.sweep import Sweep, plain_spec
from perfuse.tuning.trial import TrialSpec, run_trial

_REPORT_S = 1.0
"""A trial answers Ray at least this often, so that it can be told to leave."""
_LEAVE_S = 60
"""For so long a trial that is told to leave may train on, to its next validation, which saves."""
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # a signal is ours: running trials save first
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_FORCE_TRIAL_CLEANUP_S": str(_LEAVE_S),
}


class TrialProcess(tune.Trainable):
    """A process that runs one trial at a time: training in a thread, Ray's calls in the main one."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin to train."""
        import torch

        torch.set_num_threads(1)
        self._spec = TrialSpec(**config["spec"])
        self._news: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._leaving = threading.Event()
        self._is_awaited = False
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def step(self) -> dict[str, object]:
        """What is new: a rung reached, the end, or nothing for a while. Being called again means: go on."""
        if self._is_awaited:
            self._is_awaited = False
            self._answers.put(True)
        try:
            news = self._news.get(timeout=_REPORT_S)
        except queue.Empty:
            return {"kind": "nothing"}
        self._is_awaited = news["kind"] == "rung"
        return news

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial: a new process would spend seconds on imports."""
        self.cleanup()
        if self._thread.is_alive():
            return False
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Have the run save and end."""
        self._leaving.set()
        self._answers.put(False)
        self._thread.join(_LEAVE_S)

    def _train(self) -> None:
        try:
            ended = run_trial(self._spec, self._ask, self._leaving.is_set)
            if ended is None:
                return
        except BaseException as error:  # a bug, then; said, or nobody would ever hear of it from this thread
            ended = Ended(number=self._spec.number, status="failed", reason=f"{type(error).__name__}: {error}"[:300])
        self._news.put({"kind": "ended", "ended": ended.model_dump_json(), "done": True})

    def _ask(self, rung: int, so_far: Ended) -> bool:
        self._news.put({"kind": "rung", "rung": rung, "ended": so_far.model_dump_json()})
        return self._answers.get()


class _NotStored:
    """Pickles to nothing and is never copied: Ray Tune stores what it is given, and the sweep keeps its own record."""

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __deepcopy__(self, memo: dict[int, object]) -> _NotStored:
        return self


class _NextTrial(_NotStored, Searcher):
    """Ray Tune asks here what to run."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()
        self._sweep = sweep

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """The sweep knows what it looks for."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial, None for "not now", or that there is none left."""
        spec = self._sweep.next_trial()
        if spec is not None:
            return {"spec": plain_spec(spec)}
        return None if self._sweep.has_more else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Heard by the scheduler."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep keeps its own record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is ever read back."""


class _Judge(_NotStored, FIFOScheduler):
    """Ray Tune asks here who goes on."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()
        self._sweep = sweep

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        goes_on = not self._sweep.is_stopping
        if goes_on and result["kind"] == "rung":
            goes_on = self._sweep.at_rung(result["rung"], Ended.model_validate_json(result["ended"]))
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if result.get("kind") == "ended":
            self._sweep.ended(Ended.model_validate_json(result["ended"]))
        else:  # told to leave, or terminated, which the sweep has noted already
            self._sweep.released(trial.config["spec"]["number"])

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._sweep.released(trial.config["spec"]["number"])

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._sweep.died(trial.config["spec"]["number"])


def run_on_ray(sweep: Sweep, storage: Path, gpus_per_trial: float = 0.0) -> None:
    """Run a sweep on the Ray that this process is connected to, to its end or until it stops.

    Args:
        sweep: The sweep.
        storage: Folder for what Ray writes, on every node; the caller throws it away.
        gpus_per_trial: GPUs, or a part of one, that each trial gets.
    """
    os.environ.update(_SETTINGS)
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not sweep.has_more:
        return
    trainable = tune.with_resources(TrialProcess, {"cpu": 1, "gpu": gpus_per_trial})
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_NextTrial(sweep), scheduler=_Judge(sweep), num_samples=-1, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial keeps its own
        ),
    ).fit()

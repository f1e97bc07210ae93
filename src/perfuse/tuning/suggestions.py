"""Optuna's tree-structured Parzen estimator, asked and told in plain data so that a sweep can begin again anywhere.

Bergstra J, Bardenet R, Bengio Y, Kegl B. Algorithms for hyper-parameter optimization. NeurIPS 2011. What trial n is
given depends on the seed, n, and the trials told by then, on nothing else: the sampler is made anew for each, with a
seed drawn from (seed, n). So a resumed sweep suggests what an uninterrupted one would have (one trial at a time).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from perfuse.errors import InputError
from perfuse.tuning.space import Range, Space, Values

STARTUP_TRIALS = 6
"""Trials drawn at random (the first of all is the base configuration) before the estimator has enough to go by."""


def import_optuna() -> Any:
    """Optuna, quiet.

    Raises:
        InputError: when it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("perfuse tune", "needs the package optuna", hint="pip install 'perfuse[cluster]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Suggestions:
    """Values for trials, numbered from 0.

    Args:
        space: What is searched.
        seed: Any whole number >= 0.
        first: Values of trial 0, where the space holds them.
    """

    def __init__(self, space: Space, seed: int, first: Values) -> None:
        self._optuna = import_optuna()
        self._seed = seed
        self._first = first
        self._space = {p.key: self._distribution(p) for p in space.parameters}
        self._study = self._optuna.create_study(direction="minimize", sampler=self._sampler(0))
        self._asked: dict[int, Any] = {}

    def ask(self) -> tuple[int, Values]:
        """The next trial's number and values."""
        number = len(self._study.trials)
        if number == 0 and self._first:
            self._study.enqueue_trial(self._first)
        return number, self._ask(number)

    def restore_running(self, values: Values) -> int:
        """Take in the next trial of an earlier session, which has not ended; returns its number."""
        number = len(self._study.trials)
        self._study.enqueue_trial(values)
        if self._ask(number) != values:
            raise InputError("trial", "has values outside of the space", value=values)
        return number

    def restore_ended(self, values: Values, loss: float | None, at_progress: float | None) -> int:
        """Take in the next trial of an earlier session, which has ended (as ``tell``); returns its number."""
        number, trial = len(self._study.trials), self._optuna.trial
        is_complete = loss is not None and at_progress is None
        self._study.add_trial(
            trial.create_trial(
                params=values,
                distributions=self._space,
                state=trial.TrialState.COMPLETE if is_complete else trial.TrialState.PRUNED,
                value=loss if is_complete else None,
                intermediate_values={} if is_complete or loss is None else {_step(at_progress): loss},
            )
        )
        return number

    def tell(self, number: int, loss: float | None, at_progress: float | None = None) -> None:
        """How a trial ended.

        Args:
            number: The trial.
            loss: Its best validation loss; None for one that failed, which then counts as worse than all others.
            at_progress: Fraction of its length at which it was terminated; None for one that went to its end.
        """
        trial, state = self._asked.pop(number), self._optuna.trial.TrialState
        if loss is not None and at_progress is None:
            self._study.tell(trial, loss)
            return
        if loss is not None:
            trial.report(loss, _step(at_progress))
        self._study.tell(trial, state=state.PRUNED)

    def _ask(self, number: int) -> Values:
        self._study.sampler = self._sampler(number)
        self._asked[number] = self._study.ask(self._space)
        values: Values = self._asked[number].params
        return dict(values)

    def _sampler(self, number: int) -> Any:
        seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
        with warnings.catch_warnings():
            # constant_liar is called experimental: trials under way count as bad, so that others keep away from them.
            warnings.simplefilter("ignore")
            return self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True)

    def _distribution(self, parameter: object) -> Any:
        kinds = self._optuna.distributions
        if not isinstance(parameter, Range):
            return kinds.CategoricalDistribution(parameter.values)  # type: ignore[attr-defined]
        if parameter.is_whole:
            return kinds.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
        return kinds.FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _step(progress: float | None) -> int:
    """A fraction as the whole number of steps that Optuna ranks terminated trials by."""
    return 0 if progress is None or not math.isfinite(progress) else round(1000 * progress)

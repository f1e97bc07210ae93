"""The command ``tune``. Everything heavy is imported inside, as in ``cli``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from perfuse.cli_options import Flag, WholeNumber, location


def tune(
    data: str,
    /,
    *,
    out: Path,
    config: Path | None = None,
    space: Path | None = None,
    trials: WholeNumber = None,
    max_minutes: float | None = None,
    trial_minutes: float | None = None,
    concurrent: WholeNumber = None,
    ray: str = "local",
    seed: WholeNumber = None,
    early_termination: Annotated[bool, Parameter(negative="--no-early-termination")] = True,
    resume: Annotated[bool, Flag] = False,
    quiet: Annotated[bool, Flag] = False,
) -> None:
    """Search for a better configuration: many runs on the same split, compared by validation loss.

    Args:
        data: Dataset folder or URL, origin .npz, or tidy .csv/.parquet.
        out: Folder of the sweep; best.toml and tune.html are written there.
        config: TOML file with the configuration to start from, as of perfuse train.
        space: TOML file with a range or choices for each key to search. (Default: those of the model.)
        trials: Trials in all. (Default 20.)
        max_minutes: Wall-clock budget; what has not ended then goes on with --resume.
        trial_minutes: Wall-clock budget of each trial, in place of epochs.
        concurrent: Trials at a time. (Default 1, which makes a sweep repeatable; on a cluster, all of its CPUs.)
        ray: Address of a Ray cluster; "local" starts Ray on this machine.
        seed: Seed of the suggestions; runs use the configuration's own. (Default 0.)
        early_termination: End trials early that are behind others at 10 or 30 % of their length.
        resume: Go on with the sweep in OUT.
        quiet: Print nothing.
    """
    from perfuse.config import load_config
    from perfuse.tuning.page import optimism, summary
    from perfuse.tuning.record import BEST_FILE, PAGE_FILE
    from perfuse.tuning.run import DEFAULT_TRIALS, TuneRequest
    from perfuse.tuning.run import tune as run_sweep
    from perfuse.tuning.space import load_space

    def note(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    place = location(data)
    request = TuneRequest(
        data=str(place.resolve()) if isinstance(place, Path) else place,
        base=load_config(config) if config else None,
        space=(lambda base: load_space(space, base)) if space else None,
        trials=DEFAULT_TRIALS if trials is None else trials, max_minutes=max_minutes, trial_minutes=trial_minutes,
        concurrent=concurrent, ray=ray, seed=seed, early_termination=early_termination,
    )  # fmt: skip
    sweep = run_sweep(request, out, resume=resume, note=note)
    if not quiet:
        print("\n".join([*summary(sweep), optimism(sweep)]))
        best = shlex.quote(str(out / BEST_FILE))
        print(f"page: {out / PAGE_FILE}\nnext: perfuse train {shlex.quote(data)} --config {best} --out RUN")

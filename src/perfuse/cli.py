"""The command line: parse, call one function, turn every foreseen failure into one line and an exit code.

Everything heavy is imported inside the commands, so that ``perfuse --help`` answers at once.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from perfuse import __version__
from perfuse.cli_export import export
from perfuse.cli_options import (
    Flag,
    TrainOptions,
    WholeNumber,
    build_config,
    local_copy,
    location,
    parse_times,
    simulation_options,
)
from perfuse.cli_runs import runs
from perfuse.cli_solver import nca, solve
from perfuse.cli_tune import tune
from perfuse.errors import InputError, PerfuseError
from perfuse.launch import follow_parent, is_started_by_launcher, local_rank, run_processes

if TYPE_CHECKING:
    from rich.console import Console

    from perfuse.config import RunConfig

TaskName = Literal["T1", "T2", "T3", "T4", "T5", "T5-children", "T5-rat", "T5-wide", "T6", "T7"]

_INTERRUPTED = 130
_BROKEN_PIPE = 141
_FILE_WIDTH = 120
_stopped_by: list[int] = []
"""Signals that have asked this process to leave."""
_arguments: ContextVar[list[str]] = ContextVar("arguments")
"""Of the command that is running, as they were given: for processes that are to do the same."""

app = App(
    name="perfuse",
    help="Train, judge and use dynamic graph neural networks of whole-body pharmacokinetics.",
    help_epilogue="Every error is one line on stderr; add --debug to any command to see its traceback.",
    help_format="plaintext",
    version=__version__,
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
app["--help"].group = app["--version"].group = "Options"


def _console(stderr: bool = False) -> Console:
    """A console that does not squeeze tables into 80 columns when its output goes to a file or a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _FILE_WIDTH)


@app.command
def demo(*, out: Path = Path("demo"), seed: int = 0) -> None:
    """Simulate, train, evaluate and report: the whole chain in a few minutes on a laptop.

    Args:
        out: New folder for data, runs and report.
        seed: Seed of data and training.
    """
    from perfuse.demo import run_demo

    run_demo(out, seed=seed, progress=_console(stderr=True), results=_console())


@app.command
def simulate(
    out: str,
    /,
    *,
    n: WholeNumber = None,
    task: Annotated[TaskName | None, Parameter(show_choices=False)] = None,
    config: Path | None = None,
    seed: WholeNumber = None,
    shard_size: WholeNumber = None,
    workers: WholeNumber = None,
    ray: str | None = None,
    max_failed: float | None = None,
    quiet: Annotated[bool, Flag] = False,
) -> None:
    """Simulate curves of the task suite by the mechanistic solver; a run that was killed continues where it was.

    Args:
        out: New folder for the dataset, or an fsspec URL.
        n: Number of curves.
        task: T1: fixed body, hub. T2: bodies of 40-120 kg, circulation. T3: infusions, oral and repeated doses,
            irregular times. T4: saturable metabolism. T5: adults; T5-children, T5-rat, T5-wide: test sets for it.
            T6: T2 for few curves. T7: descriptors instead of Kp and clearances. (Default T1.)
        config: TOML file with any of the keys n, task, seed, shard_size, workers, ray, max_failed; flags win over it.
        seed: Seed; curve i of a seed is the same whatever N. (Default 0.)
        shard_size: Curves per shard. (Default 4096.)
        workers: Processes on this machine; they change no byte. (Default 1.)
        ray: Address of a Ray cluster, or "local" to start one here.
        max_failed: Fraction of curves that may be unsolvable before the run fails. (Default 0.001.)
        quiet: No progress bar.
    """
    from perfuse.cli_progress import curves_progress
    from perfuse.data.simulation import simulate_dataset

    flags: dict[str, int | float | str | None] = {
        "n": n, "task": task, "seed": seed, "shard_size": shard_size, "workers": workers, "ray": ray,
        "max_failed": max_failed,
    }  # fmt: skip
    options = simulation_options(flags, config)
    if out.startswith("memory://"):
        raise InputError("OUT", "would be gone with this process", value=out, allowed="a folder, or a URL that lasts")
    try:
        with curves_progress(options.n, None if quiet else _console(stderr=True)) as progress:
            report = simulate_dataset(
                options.task, options.n, options.seed, location(out), options.shard_size, workers=options.workers,
                ray=options.ray, max_failed=options.max_failed, progress=progress,
            )  # fmt: skip
    except (KeyboardInterrupt, SystemExit):
        print("perfuse: finished shards are kept: the same command continues from there", file=sys.stderr)
        raise
    for failure in report.failures:
        print(f"not solved: {failure['curve_id']}: {failure['reason']}", file=sys.stderr)
    if not quiet:
        print(f"{report.n_curves} curves of task {options.task}, seed {options.seed}: {report.location}")
        print("\n".join(report.lines()))


app.command(solve)
app.command(nca)


@app.command
def train(
    data: str,
    /,
    *,
    out: Path | None = None,
    config: Path | None = None,
    resume: Annotated[bool, Flag] = False,
    print_config: Annotated[bool, Flag] = False,
    quiet: Annotated[bool, Flag] = False,
    log_json: Annotated[bool, Flag] = False,
    options: TrainOptions = TrainOptions(),  # noqa: B008 (frozen; cyclopts reads its fields)
) -> None:
    """Train a model on a dataset folder, an origin .npz or a tidy table; flags override the TOML file.

    Args:
        data: Dataset folder or URL, origin .npz, or tidy .csv/.parquet.
        out: Folder of the run.
        config: TOML file with the run's configuration.
        resume: Continue from RUN/last, bit for bit on the CPU.
        print_config: Print the resolved configuration as TOML and stop.
        quiet: No progress bar.
        log_json: Print the lines of RUN/log.jsonl to stderr instead of a progress bar.
    """
    stored = out / "config.toml" if resume and out and config is None else None
    chosen = build_config(options, stored if stored and stored.is_file() else config)
    if print_config:
        _print_config(chosen)
        return
    if out is None:
        raise InputError("--out", "is missing", hint="name the run's folder: --out RUN")
    if (chosen.training.devices or 1) > 1 and not is_started_by_launcher():
        if "://" not in data and not Path(data).exists():  # once, rather than by every process
            raise InputError("data", "does not exist", value=data)
        if code := run_processes(_arguments.get(), chosen.training.devices or 1):
            raise _EndedElsewhere(code)
        return
    from perfuse.data.sources import open_source
    from perfuse.evaluation.during_training import ValidationGmfe
    from perfuse.training.reproduce import reproduction
    from perfuse.training.run import train as run_training

    result = run_training(
        open_source(location(data), verify=local_rank() == 0), chosen, out, resume=resume,
        validate=ValidationGmfe(), console=None if quiet or log_json else _console(stderr=True),
        data_path=_absolute(data), log_stream=sys.stderr if log_json else None,
    )  # fmt: skip
    if not quiet and result.is_main:
        gmfe = result.validation.get("val_gmfe")
        print(
            f"{result.ending}: {result.epochs} epochs, {result.steps} steps, {result.seconds:.0f} s on "
            f"{result.n_train} curves; best validation loss {result.best_val_loss:.4g} in epoch {result.best_epoch}"
            + (f", last validation GMFE {gmfe:.4f}" if gmfe else "")
        )
        names = f"{shlex.quote(str(out))} {shlex.quote(data)}"
        calibrate_first = f"perfuse calibrate {names} && " if result.n_calibration else ""
        print(f"run: {out}\nnext: {calibrate_first}perfuse evaluate {names}")
        print("\n".join(reproduction(out).lines()))


app.command(tune)


def _absolute(data: str) -> str:
    """Where data lie, whatever the working folder will be."""
    place = location(data)
    return str(place.resolve()) if isinstance(place, Path) else place


def _print_config(config: RunConfig) -> None:
    from perfuse.config import resolve
    from perfuse.training.config_file import config_toml

    print(config_toml(resolve(config)), end="")


@app.command
def evaluate(
    run: Path,
    data: str,
    /,
    *,
    out: Path | None = None,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    against: Annotated[list[Path] | None, Parameter(negative_iterable="", metavar="RUN")] = None,
    baselines: bool = True,
    device: Literal["cpu", "cuda"] = "cpu",
    batch_size: int = 512,
    details: bool = True,
    quiet: Annotated[bool, Flag] = False,
) -> None:
    """Judge a run beside trivial baselines on curves that it has not seen.

    Args:
        run: Run or checkpoint folder.
        data: Dataset folder, origin .npz, tidy table, or CSV of measured human curves.
        out: Folder for the results. (Default RUN/evaluation.)
        json_file: Write all metrics to this file too.
        against: Another run to judge on the same curves; may be repeated.
        baselines: Fit the baselines on the run's training split.
        device: Where to compute.
        batch_size: Curves per batch.
        details: Also show organs and time windows.
        quiet: Print nothing.
    """
    from perfuse.evaluation.evaluate import evaluate_run
    from perfuse.evaluation.files import write_json
    from perfuse.evaluation.table import print_evaluation

    result = evaluate_run(
        run, local_copy(data), out, against=against or (), batch_size=batch_size, device=device, baselines=baselines
    )
    if json_file:
        write_json(result, json_file)
    if not quiet:
        print_evaluation(result, _console(), details=details)


@app.command
def calibrate(
    run: Path,
    data: str,
    /,
    *,
    allow_few: Annotated[bool, Flag] = False,
    seed: WholeNumber = None,
    device: Literal["cpu", "cuda"] = "cpu",
    quiet: Annotated[bool, Flag] = False,
) -> None:
    """Give a finished run's predictions 90 % intervals, calibrated on drugs it was not trained or selected on.

    Args:
        run: Run or checkpoint folder; the calibration is kept beside the checkpoint.
        data: Dataset folder or URL, origin .npz or tidy table; of the run's own data, its calibration split counts.
        allow_few: Calibrate on fewer than 500 drugs; the intervals are called uncertain then.
        seed: Says which drugs the scale of the errors is fitted on. (Default the run's.)
        device: Where to compute.
        quiet: Print nothing.
    """
    from perfuse.evaluation.calibrate import calibrate_run

    report = calibrate_run(run, local_copy(data), allow_few=allow_few, device=device, seed=seed)
    if not quiet:
        print("\n".join(report.lines()))


@app.command
def predict(
    run: Path,
    source: Path,
    /,
    *,
    out: Path,
    times: str | None = None,
    dose_mg: float | None = None,
    duration_h: float | None = None,
    body_weight_kg: float | None = None,
    matrix: str | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    force: Annotated[bool, Flag] = False,
    quiet: Annotated[bool, Flag] = False,
) -> None:
    """Predict organ concentrations, mg/L, for a drug (TOML) or a table of drugs x doses (CSV).

    Args:
        run: Run or checkpoint folder.
        source: Drug .toml, or .csv with one row per dose.
        out: New .csv or .parquet file.
        times: Times, h, separated by commas. (Default 100 from 0 to 24.)
        dose_mg: One intravenous dose at time 0, mg, instead of the file's doses (TOML only).
        duration_h: Duration of its infusion, h; left out: a bolus.
        body_weight_kg: Body weight, kg (TOML only).
        matrix: What the blood row means: plasma, serum or blood_venous (TOML only).
        device: Where to compute.
        force: Replace OUT if it exists.
        quiet: Print nothing.
    """
    from perfuse.evaluation.predict import predict_file

    report = predict_file(
        run, source, out, time_h=None if times is None else parse_times(times), dose_mg=dose_mg, duration_h=duration_h,
        body_weight_kg=body_weight_kg, matrix=matrix, device=device, force=force,
    )  # fmt: skip
    if not quiet:
        print("\n".join(report.lines()))


@app.command
def report(run: Path, /) -> None:
    """Write RUN/report.html: one file that works offline.

    Args:
        run: Run folder; what ``perfuse evaluate`` left in it is shown too.
    """
    from perfuse.evaluation.report import build_report

    print(build_report(run))


app.command(export)
app.command(runs)


@app.command(name="info")
def info_command(path: str, /, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Show what a checkpoint, run, dataset or file is, without running anything from it.

    Args:
        path: Run, checkpoint or dataset folder; .npz, .csv, .parquet, .toml or .safetensors file.
        as_json: Print JSON.
    """
    from perfuse import info

    facts = info.describe(local_copy(path))
    print(info.to_json(facts) if as_json else "\n".join(info.lines(facts)))


@app.command(name="convert")
def convert_command(
    source: str,
    out: Path,
    /,
    *,
    source_format: Annotated[
        Literal["", "dataset", "npz", "tidy", "nonmem"], Parameter(name="--from", show_default=False)
    ] = "",
    out_format: Annotated[
        Literal["", "dataset", "npz", "tidy", "nonmem", "sbml"], Parameter(name="--to", show_default=False)
    ] = "",
    nonmem: Path | None = None,
    drug: Path | None = None,
    curve: str = "",
) -> None:
    """Convert curves between origin .npz, dataset folder, tidy .csv and .parquet, and NONMEM; or write one as SBML.

    Args:
        source: What to read.
        out: What to write; its ending says what: .npz, .csv, .parquet, .nonmem.csv, .xml, .sbml, or none for a folder.
        source_format: What SOURCE is, where its name does not tell.
        out_format: What OUT is, where its name does not tell.
        nonmem: TOML file with the units and compartments of a NONMEM file.
        drug: Drug .toml that a NONMEM file's doses are of.
        curve: The curve to write as SBML: its name, or its number from 0. (Default the first.)
    """
    from perfuse.convert import convert

    done = convert(
        local_copy(source),
        out,
        source_format=source_format,
        out_format=out_format,
        nonmem=nonmem,
        drug=drug,
        curve=curve,
    )
    print(f"{done} curve{'s' if done != 1 else ''}: {out}")


class _EndedElsewhere(PerfuseError):
    """Processes that this one has started have failed, and said why."""

    is_told = True

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.exit_code = code


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print("perfuse: error: " + " ".join(text.split()), file=sys.stderr)
    return code


def _fail_stopped(signal_number: int, debug: bool) -> int:
    return _fail(f"stopped by {signal.Signals(signal_number).name}", 128 + signal_number, debug)


def run(arguments: list[str]) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    debug = "--debug" in arguments
    tokens = [a for a in arguments if a != "--debug"]
    _arguments.set(arguments)
    try:
        app(tokens)
        sys.stdout.flush()
    except PerfuseError as error:
        return error.exit_code if error.is_told else _fail(str(error), error.exit_code, debug)
    except CycloptsError as error:
        return _fail(str(error), InputError.exit_code, debug)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED, debug)
    except SystemExit as leaving:
        if not (isinstance(leaving.code, int) and leaving.code > 128):
            raise
        return _fail_stopped(leaving.code - 128, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again when it exits
        return _BROKEN_PIPE
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(place + (error.strerror or str(error)), PerfuseError.exit_code, debug)
    except Exception as error:
        if _stopped_by:  # in the middle of a C module's import, say, which turns it into an error of its own
            return _fail_stopped(_stopped_by[0], debug)
        hint = "" if debug else " (this is a bug in Perfuse; --debug shows where)"
        return _fail(f"{type(error).__name__}: {str(error)[:300]}{hint}", 1, debug)
    return 0


def terminate(signal_number: int, _frame: object) -> NoReturn:
    """Leave by way of every ``finally``, so that nothing half-written stays behind; training saves first instead."""
    _stopped_by.append(signal_number)
    raise SystemExit(128 + signal_number)


def main() -> NoReturn:
    """The ``perfuse`` command.

    OpenMP threads that spin while they wait slow small tensors down a hundredfold as soon as another process wants
    the cores (flux, batch 64, two busy cores: 39 curves/s spinning, 3,600 sleeping): unless told otherwise, they sleep.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported
    signal.signal(signal.SIGTERM, terminate)
    follow_parent()
    sys.exit(run(sys.argv[1:]))

"""Kill training and simulation at random moments, continue each time, and compare with what was never interrupted.

    python benchmarks/kills.py [--kills 50] [--seed 0] [--what train,terminate,simulate,workers] [--json FILE]

``train`` sends SIGKILL to ``perfuse train``, ``terminate`` SIGTERM; ``simulate`` and ``workers`` kill ``perfuse
simulate`` with one and with two worker processes. Moments are uniform over the length of the uninterrupted command,
so they fall into its start (Gauss-Newton), its steps, validations and saves (one after nearly every step). After each
death everything that was saved must load, at no earlier step than before; the same command, with ``--resume`` once
``config.toml`` is there, goes on; what is finished must equal the uninterrupted result bit for bit, and a new run
begins.

Importing PyTorch takes seconds, so commands run in forks of one process that has imported everything and computed
nothing. ``--command-line`` starts real ones instead, imports and all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/kills.py

from perfuse.cli import run as run_cli
from perfuse.cli import terminate
from perfuse.training.checkpoint import find_checkpoint, load_checkpoint
from perfuse.training.retention import history

PRELOADED = (
    "perfuse.evaluation.during_training", "perfuse.training.run", "perfuse.models.flux", "perfuse.training.distance",
    "torch._dynamo", "torch.distributed", "lightning_fabric", "torchmetrics", "scipy.stats", "scipy.signal",
    "pyarrow.compute",
)  # fmt: skip
"""Modules that the commands would import, once each."""
CLOCK_KEYS = ("time_s", "train_curves_per_s", "run_id")
"""What differs between equal runs."""
_PATIENCE_S = 300.0
Command = Sequence[str]


@dataclass
class Tally:
    """What the kills of one kind did.

    Attributes:
        what: Which command, killed by what.
        kills: Processes that died of the signal, or left because of it.
        before_first_save: Those of which nothing had been saved yet.
        finished: Commands that came to their end, each compared with the uninterrupted one.
        lost: Kills after which a checkpoint that had been there could not be loaded, or was of an earlier step.
        differing: Finished results that are not those of the uninterrupted command.
        exit_codes: How often each exit status of a killed process was seen (-9: SIGKILL).
        seconds: Of the uninterrupted command.
        problems: What went wrong, in words.
    """

    what: str
    kills: int = 0
    before_first_save: int = 0
    finished: int = 0
    lost: int = 0
    differing: int = 0
    exit_codes: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.differing or self.problems) and self.finished > 0

    def line(self) -> str:
        """One row for people."""
        codes = ", ".join(f"{code}: {n}" for code, n in sorted(self.exit_codes.items()))
        return (
            f"{self.what}: {self.kills} kills ({self.before_first_save} before the first save; exit codes {codes}), "
            f"{self.lost} checkpoints lost, {self.finished} finished, {self.differing} of them differing; "
            f"uninterrupted {self.seconds:.1f} s" + "".join(f"\n  {p}" for p in self.problems[:5])
        )


def forked(command: Command, log: Path) -> int:
    """Start ``perfuse command`` in a fork; its output goes to ``log``. Returns the process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.signal(signal.SIGTERM, terminate)
        status = run_cli(list(command))
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    finally:
        os._exit(status)


def started(command: Command, log: Path) -> int:
    """Start ``perfuse command`` as a user does. Returns the process id."""
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "perfuse", *command], stdout=file, stderr=file).pid


Start = Callable[[Command, Path], int]


def ended(pid: int, after_s: float | None, number: int) -> int:
    """Wait for a process, sending it a signal after some seconds; returns its exit status (-n: died of signal n)."""
    began = time.monotonic()
    sent = after_s is None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        spent = time.monotonic() - began
        if after_s is not None and not sent and spent >= after_s:
            os.kill(pid, number)
            sent = True
        if spent > _PATIENCE_S:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"process {pid} did not end within {_PATIENCE_S:g} s")
        time.sleep(0.0005)


# -- training ----------------------------------------------------------------------------------------------------


def train_command(data: Path, run: Path, epochs: int) -> list[str]:
    """A short training with all that a checkpoint must carry, saved after nearly every step."""
    resume = ["--resume"] if (run / "config.toml").is_file() else []
    text = (
        f"train {data} --out {run} --quiet --no-tensorboard --model flux --hidden 8 --layers 1 --dropout 0.1 "
        f"--epochs {epochs} --batch-size 16 --accumulate 2 --ema 0.9 --schedule plateau --plateau-patience 1 "
        "--checkpoint-every 0.000001 --keep-last 3"
    )
    return text.split() + resume


def saved_steps(run: Path) -> dict[str, int]:
    """Steps of the checkpoints of a run, each loaded whole.

    Raises:
        InputError: for one that is damaged.
    """
    steps = {}
    for name in ("last", "best"):
        if (run / name).exists() or find_checkpoint(run / name) is not None:
            steps[name] = load_checkpoint(run / name, with_optimizer=True).state.progress.step
    for step, folder in history(run):
        found = load_checkpoint(folder, with_optimizer=True)
        if (found.folder, found.state.progress.step) != (folder, step):
            raise ValueError(f"{folder} is not what its name says")
    return steps


def run_fingerprint(run: Path) -> dict[str, str]:
    """sha256 of every tensor file of a run, and of its metrics without what the clock says."""
    found = {
        f"{name}/{file}": sha256((run / name / file).read_bytes()).hexdigest()
        for name in ("best", "last")
        for file in ("model.safetensors", "optimizer.safetensors")
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [{k: v for k, v in line.items() if k not in CLOCK_KEYS} for line in lines]
    return found | {"metrics.jsonl": json.dumps(kept, sort_keys=True)}


def left_behind(folder: Path) -> list[str]:
    """Names in a finished folder that only a crash leaves."""
    names = [str(p.relative_to(folder)) for p in folder.rglob("*")]
    return sorted(n for n in names if Path(n).name.startswith(".") or n.endswith((".new", ".part", ".previous")))


def kill_training(
    start: Start, kills: int, number: signal.Signals, epochs: int, moments: random.Random, work: Path
) -> Tally:
    """Kill training at random moments, and resume."""
    tally = Tally(f"train, {number.name}")
    data, log = work / "data", work / "log.txt"
    if not data.is_dir():
        finish(start, f"simulate {data} --task T1 --n 120 --seed 1 --quiet".split(), log)
    whole = work / "whole"
    began = time.monotonic()
    finish(start, train_command(data, whole, epochs), log)
    tally.seconds = time.monotonic() - began
    wanted = run_fingerprint(whole)
    run, before, unfinished = work / "run", dict[str, int](), False
    while tally.kills < kills or unfinished:
        is_last = tally.kills >= kills  # bring what was begun to its end
        after_s = None if is_last else moments.uniform(0, tally.seconds)
        status = ended(start(train_command(data, run, epochs), log), after_s, number)
        try:
            now = saved_steps(run)
        except Exception as error:
            tally.problems.append(f"kill {tally.kills + 1}: {error}")
            tally.lost += 1
            now = {}
        if any(now.get(name, -1) < step for name, step in before.items()):
            tally.problems.append(f"kill {tally.kills + 1}: {before} became {now}")
            tally.lost += 1
        before = now
        if status == 0:
            tally.finished += 1
            if run_fingerprint(run) != wanted or left_behind(run):
                tally.differing += 1
                tally.problems.append(f"run {tally.finished} differs, or left {left_behind(run)}")
            shutil.rmtree(run)
            before = {}
        else:
            count(tally, status, number, log)
            tally.before_first_save += not now
        unfinished = status != 0
        if tally.problems:
            break
    return tally


def count(tally: Tally, status: int, number: signal.Signals, log: Path) -> None:
    """Note how a process died; anything but the signal is a problem."""
    tally.kills += 1
    tally.exit_codes[status] = tally.exit_codes.get(status, 0) + 1
    if status not in (-number, 128 + number):
        tally.problems.append(f"exit status {status}: {log.read_text(errors='replace')[-300:]}")


def finish(start: Start, command: Command, log: Path) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: if it fails.
    """
    status = ended(start(command, log), None, signal.SIGKILL)
    if status:
        raise RuntimeError(f"{' '.join(command)}: exit status {status}: {log.read_text(errors='replace')[-500:]}")


# -- simulation --------------------------------------------------------------------------------------------------


def simulate_command(out: Path, workers: int) -> list[str]:
    """Shards of 256 curves with absorption, infusions and irregular times; more where workers take longer to start."""
    n = 4096 * workers**2
    return f"simulate {out} --task T3 --n {n} --shard-size 256 --seed 3 --workers {workers} --quiet".split()


def folder_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file under a folder."""
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def finished_shards(out: Path) -> int:
    """Shards that a killed simulation can count on."""
    return len(list((out.parent / f".{out.name}.simulating" / "notes").glob("[0-9]*.json")))


def kill_simulation(start: Start, kills: int, workers: int, moments: random.Random, work: Path) -> Tally:
    """Kill ``perfuse simulate`` at random moments, and give the same command again."""
    tally = Tally(f"simulate, {workers} workers, SIGKILL" if workers > 1 else "simulate, SIGKILL")
    whole, out, log = work / f"whole-data-{workers}", work / "killed-data", work / "log.txt"
    began = time.monotonic()
    finish(start, simulate_command(whole, workers), log)
    tally.seconds = time.monotonic() - began
    wanted = folder_hashes(whole)
    before, unfinished = 0, False
    while tally.kills < kills or unfinished:
        is_last = tally.kills >= kills
        after_s = None if is_last else moments.uniform(0, tally.seconds)
        status = ended(start(simulate_command(out, workers), log), after_s, signal.SIGKILL)
        unfinished = not out.exists()  # it appears as a whole, at the very end; a kill may come after that
        now = finished_shards(out) if unfinished else 0
        if status:
            count(tally, status, signal.SIGKILL, log)
            tally.before_first_save += unfinished and not now
        if unfinished and now < before:
            tally.lost += 1
            tally.problems.append(f"kill {tally.kills}: {before} shards became {now}")
        before = now
        if not unfinished:
            tally.finished += 1
            if folder_hashes(out) != wanted:
                tally.differing += 1
                tally.problems.append(f"dataset {tally.finished} differs: {sorted(folder_hashes(out))}")
            shutil.rmtree(out)
            with suppress(FileNotFoundError):
                shutil.rmtree(work / f".{out.name}.simulating")
        if tally.problems:
            break
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when nothing was lost and everything came out equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12, help="length of the training that is killed")
    parser.add_argument("--what", default="train,terminate,simulate,workers")
    parser.add_argument("--command-line", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    start = started if options.command_line else forked
    for name in () if options.command_line else PRELOADED:
        with suppress(ModuleNotFoundError):  # torchmetrics: loaded by Fabric where it is there
            importlib.import_module(name)
    tallies = []
    with tempfile.TemporaryDirectory(prefix="perfuse-kills-") as folder:
        for what in options.what.split(","):
            moments = random.Random(f"{options.seed} {what}")
            kills, work = options.kills, Path(folder)
            if what in ("train", "terminate"):
                number = signal.SIGKILL if what == "train" else signal.SIGTERM
                tallies.append(kill_training(start, kills, number, options.epochs, moments, work))
                shutil.rmtree(work / "whole")
            else:
                tallies.append(kill_simulation(start, kills, 2 if what == "workers" else 1, moments, work))
            print(tallies[-1].line(), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(t) for t in tallies], indent=1) + "\n", encoding="utf-8")
    return 0 if all(t.is_good for t in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())

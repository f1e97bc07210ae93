"""Trainings in processes of their own that are held up, or whose data go bad: run by ``test_faults``.

    python tests/training/faulty_processes.py DATASET FOLDER

Prints JSON: what became of each. Children are forked, since importing PyTorch takes seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from perfuse.cli import run
from perfuse.data.loader import CurveLoader
from perfuse.evaluation import during_training  # noqa: F401 (imported once, before the forks)
from perfuse.training import run as _  # noqa: F401
from perfuse.training.checkpoint import is_whole, load_checkpoint
from perfuse.training.step import Stepper

BUDGET_S = 6.0
PRELOADED = ("torch._dynamo", "torch.distributed", "lightning_fabric", "torchmetrics", "scipy.stats", "pyarrow.compute")
"""Modules that the commands would import, once each."""
SHARD = "shard-00000.arrow"


def forked(line: str, log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Start ``perfuse line``; returns the process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        torch.set_num_threads(1)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        prepare()
        status = run(line.split())
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def stopped(data: Path, work: Path, found: dict[str, Any]) -> Iterator[None]:
    """Held for longer than its whole budget, like a laptop that was closed; meanwhile there is time for others."""
    out, log = work / "stopped", work / "stopped.txt"
    began = time.monotonic()
    line = f"train {data} --out {out} --model mlp --hidden 8 --max-minutes {BUDGET_S / 60} --no-tensorboard --quiet"
    pid = forked(line, log)
    while not (out / "best").is_dir() and time.monotonic() - began < BUDGET_S:
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)
    yield
    time.sleep(max(0.0, BUDGET_S + 0.5 - (time.monotonic() - began)))
    os.kill(pid, signal.SIGCONT)
    began = time.monotonic()
    status = ended(pid)
    found["stopped"] = {
        "status": status, "seconds_after": time.monotonic() - began, "told": log.read_text(),
        "whole": is_whole(out / "last") and is_whole(out / "best"),
        "ending": load_checkpoint(out / "last").state.progress.stopped,
    }  # fmt: skip


def delete(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    """One byte in place: what is mapped changes with it. The loader looks once a second."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    time.sleep(1.2)


def cut(path: Path) -> None:
    """Before the loader looks again: what was mapped is no longer there."""
    os.truncate(path, 4096)


def disturbed(data: Path, work: Path, kind: str, damage: Callable[[Path], None]) -> dict[str, Any]:
    """Damage a shard after the third step, then give ``--resume``, then put the shard right and give it again."""
    own, out, log = work / f"data {kind}".replace(" ", "-"), work / f"run {kind}".replace(" ", "-"), work / "log.txt"
    shutil.copytree(data, own)
    update = Stepper.__call__

    def prepare() -> None:
        def broken(self: Stepper, *args: Any) -> Any:
            if self._progress.step == 3:
                damage(own / SHARD)
            return update(self, *args)

        Stepper.__call__ = broken  # type: ignore[method-assign]
        CurveLoader._cached = lambda self: None  # type: ignore[method-assign]  # every batch is read from the map

    line = f"train {own} --out {out} --model mlp --hidden 8 --batch-size 4 --epochs 3 --no-tensorboard --quiet"
    status = ended(forked(line + " --checkpoint-every 0.00001", log, prepare))
    facts = {"status": status, "told": log.read_text(), "whole": is_whole(out / "last")}
    again = line.replace("--epochs 3", "--epochs 4 --resume")
    facts |= {"resumed_status": ended(forked(again, log)), "resumed_told": log.read_text()}
    shutil.copy(data / SHARD, own / SHARD)
    return facts | {"restored_status": ended(forked(again, log)), "restored_told": log.read_text()}


def main() -> None:
    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    kinds = {"deleted": delete, "flipped": flip, "cut": cut}
    found: dict[str, Any] = {}
    for name in PRELOADED:
        with suppress(ModuleNotFoundError):  # torchmetrics: loaded by Fabric where it is there
            importlib.import_module(name)
    with stopped(data, work, found):
        found |= {kind: disturbed(data, work, kind, damage) for kind, damage in kinds.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Several processes of one run inside a test: forked, each with a launcher's environment, watched to their end."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from perfuse.errors import PerfuseError
from perfuse.launch import LOOPBACK, RENDEZVOUS

_DEADLINE_S = 120.0


@dataclass
class Rank:
    """One forked process.

    Attributes:
        pid: Its number.
        words: Where it writes what it failed with.
        code: Its exit code, negative for a signal; None while it runs.
        seconds: How long it took to end.
        said: What it failed with, once it has ended.
        together: The processes that were started with it, itself included.
    """

    pid: int
    words: Path
    code: int | None = None
    seconds: float = 0.0
    said: str = ""
    together: list[Rank] = field(default_factory=list, repr=False)


def start_ranks(n: int, work: Callable[[int], object]) -> list[Rank]:
    """Fork ``n`` processes that call ``work(rank)``; they exit with 0, or an error's exit code."""
    folder = Path(tempfile.mkdtemp(prefix="perfuse-test-"))
    ranks: list[Rank] = []
    for rank in range(n):
        words = folder / f"{rank}.txt"
        pid = os.fork()
        if pid == 0:
            _run(rank, n, work, folder, words)
        ranks.append(Rank(pid, words, together=ranks))
    return ranks


def _run(rank: int, n: int, work: Callable[[int], object], folder: Path, words: Path) -> None:
    code = 1
    try:
        os.environ |= {
            RENDEZVOUS: str(folder / "rendezvous"), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n),
            "LOCAL_WORLD_SIZE": str(n), "GLOO_SOCKET_IFNAME": LOOPBACK, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        torch.set_num_threads(1)
        work(rank)
        code = 0
    except PerfuseError as error:
        words.write_text(str(error))
        code = error.exit_code
    except BaseException:
        words.write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(ranks: list[Rank], deadline_s: float = _DEADLINE_S) -> list[Rank]:
    """Wait until all have ended; whoever is late is killed. The last of those started together takes their folder."""
    began = time.monotonic()
    while any(r.code is None for r in ranks):
        for rank in (r for r in ranks if r.code is None):
            pid, status = os.waitpid(rank.pid, os.WNOHANG)
            if pid:
                rank.code, rank.seconds = os.waitstatus_to_exitcode(status), time.monotonic() - began
                rank.said = rank.words.read_text() if rank.words.exists() else ""
            elif time.monotonic() > began + deadline_s:
                os.kill(rank.pid, signal.SIGKILL)
        time.sleep(0.01)
    for rank in ranks:
        if all(other.code is not None for other in rank.together):
            shutil.rmtree(rank.words.parent, ignore_errors=True)
    return ranks


def run_ranks(n: int, work: Callable[[int], object]) -> list[Rank]:
    """Start, wait, and insist that all went well."""
    ranks = wait(start_ranks(n, work))
    assert [r.code for r in ranks] == [0] * n, "\n".join(r.said for r in ranks)
    return ranks

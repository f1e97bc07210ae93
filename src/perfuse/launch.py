"""Several processes of one command on this machine: started, watched, and ended together.

They find each other through a file in a private folder and talk over the loopback interface, so no port is open to
the network. Several machines are a cluster's matter: ``torchrun`` or SLURM start the processes there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from perfuse.errors import InputError

RENDEZVOUS = "PERFUSE_RENDEZVOUS"
"""Environment variable that names the file through which the processes find each other."""
PARENT = "PERFUSE_PARENT"
"""Environment variable with the number of the process that started them: it may end before they have looked."""
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_POLL_S, _PARENT_POLL_S = 0.05, 1.0
_GRACE_S, _LAST_GRACE_S = 12.0, 5.0
"""After one process has ended by fault: so long may the others save and leave, then they are told to, then killed."""
_ALL_ANSWER_S = 60.0
"""Longest wait for the first process, which saves: it may only learn by silence that another is lost."""
_HELD_BYTES = 2**16
_PER_CORE = 4
"""More processes than that a core cannot serve: a slip of the finger would bring the machine down."""


def local_rank() -> int:
    """The number that a launcher has given this process on its machine; 0 where there is no launcher."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        text = os.environ.get(name, "")
        if text.isdecimal():
            return int(text)
    return 0


def is_first_process() -> bool:
    """Whether this process is alone, or the first of those that a launcher has started on all machines."""
    ranks = (os.environ.get(name, "") for name in ("RANK", "SLURM_PROCID"))
    return not is_started_by_launcher() or next((r for r in ranks if r.isdecimal()), "0") == "0"


def is_started_by_launcher() -> bool:
    """Whether this process is one of several that ``run_processes``, torchrun or SLURM started."""
    return any(os.environ.get(name) for name in (RENDEZVOUS, "TORCHELASTIC_RUN_ID")) or _slurm_tasks() > 1


def _slurm_tasks() -> int:
    """Tasks of the SLURM step that this process belongs to; 0 outside one, as in a batch script, which is no task."""
    text = os.environ.get("SLURM_NTASKS", "")
    is_task = "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_PROCID", "").isdecimal()
    return int(text) if text.isdecimal() and is_task else 0


def follow_parent() -> None:
    """In a process that ``run_processes`` started: end as SIGTERM does, saving what there is, when that is gone."""
    if RENDEZVOUS not in os.environ:
        return
    parent = int(os.environ.get(PARENT, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="perfuse-parent", daemon=True).start()


class _Process:
    """One of the processes; the words of all but the first are held back until it is known whether they are news."""

    def __init__(self, arguments: Sequence[str], rank: int, size: int, rendezvous: Path) -> None:
        self.rank = rank
        threads = max(1, (os.cpu_count() or 1) // size)
        env = {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
        env |= os.environ
        env |= {RENDEZVOUS: str(rendezvous), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        env |= {"LOCAL_WORLD_SIZE": str(size), PARENT: str(os.getpid())}
        env.pop("SLURM_NTASKS", None)  # no tasks of SLURM's: Fabric would read its rank and GPU for them
        held = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        # In a group of its own, a Ctrl-C on the terminal reaches it once: through us.
        self.child = subprocess.Popen(
            [sys.executable, "-m", "perfuse", *arguments], env=env, stdin=subprocess.DEVNULL, process_group=0, **held
        )  # type: ignore[call-overload]
        self.said = bytearray()
        self.is_ended_by_us = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        if self.child.stderr is not None:
            for line in self.child.stderr:
                self.said += line[: max(0, _HELD_BYTES - len(self.said))]

    def words(self) -> str:
        """What it said on stderr; it has ended."""
        self._reader.join(timeout=1)
        return self.said.decode(errors="replace")

    def send(self, number: int) -> None:
        """Send a signal, if it is still there."""
        if self.child.poll() is None:
            self.child.send_signal(number)

    def end(self) -> None:
        """Kill it, if it is still there."""
        self.is_ended_by_us = self.code is None
        self.send(signal.SIGKILL)
        self.child.wait()

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self.child.poll()


@contextmanager
def _forwarding(processes: list[_Process]) -> Iterator[None]:
    """Pass Ctrl-C, SIGTERM and a closed terminal on; how to leave is the processes' own matter."""

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_processes(arguments: Sequence[str], size: int) -> int:
    """Run ``perfuse ARGUMENTS`` in ``size`` processes on this machine.

    Returns:
        The exit code: that of the first process to fail by itself, else 1 when one was killed, else 0.

    Raises:
        InputError: for far more processes than there are cores.
    """
    cores = os.cpu_count() or 1
    if size > _PER_CORE * cores:
        raise InputError(
            "--devices", "is far more than this machine has cores", value=size, unit="processes",
            allowed=f"<= {_PER_CORE * cores} ({cores} cores)",
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="perfuse-") as folder:
        processes: list[_Process] = []
        with _forwarding(processes):
            try:
                for rank in range(size):  # one by one: what is there already is ended if the next cannot start
                    processes.append(  # noqa: PERF401
                        _Process(arguments, rank, size, Path(folder) / "rendezvous")
                    )
                _watch(processes)
            finally:
                for process in processes:
                    process.end()
    _report(processes)
    own = [p.code for p in processes if p.code is not None and p.code > 0]
    return own[0] if own else int(any(p.code for p in processes))


def _watch(processes: list[_Process]) -> None:
    """Until all have ended; once one has failed, the others have a while to."""
    failed_at: float | None = None
    while any(p.code is None for p in processes):
        time.sleep(_POLL_S)
        now = time.monotonic()
        if failed_at is None:
            failed_at = now if any(p.code for p in processes) else None
            continue
        wait_s = _ALL_ANSWER_S if processes[0].code is None else _GRACE_S
        if now > failed_at + wait_s + _LAST_GRACE_S:
            return
        if now > failed_at + wait_s:
            for process in processes:
                process.is_ended_by_us = process.is_ended_by_us or process.code is None
                process.send(signal.SIGTERM)


def _report(processes: list[_Process]) -> None:
    """Say who was killed, and what the others said that the first one did not say too."""
    first = processes[0].code
    for process in processes:
        code = process.code or 0
        if code < 0 and not process.is_ended_by_us:
            name = signal.Signals(-code).name
            print(f"perfuse: process {process.rank} of {len(processes)} was ended by {name}", file=sys.stderr)
        words = process.words() if process.rank else ""
        if words.strip() and not (code == first and code > 0):
            print("".join(f"process {process.rank}: {line}\n" for line in words.splitlines()), end="", file=sys.stderr)

"""Shards made by several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from perfuse.data.simulation import Request, make_shard, single_threaded_children
from perfuse.data.simulation_target import Note, Target
from perfuse.errors import PerfuseError


def _leave_with(parent: int) -> None:
    """End this worker when its parent is gone: a killed parent cannot tell it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def made_by_processes(request: Request, target: Target, indices: list[int], workers: int) -> Iterator[tuple[int, Note]]:
    """Make shards on ``workers`` processes; yields each as it is finished.

    Raises:
        PerfuseError: when a worker dies; and whatever a worker raises.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in an undefined state
    with single_threaded_children():
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
        waiting: dict[Future[Note], int] = {}
        left = iter(indices)
        try:
            while True:
                for index in left:
                    waiting[pool.submit(make_shard, request, target, index)] = index
                    if len(waiting) >= 2 * workers:
                        break
                if not waiting:
                    return
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool:
            raise PerfuseError(
                f"a worker process died (out of memory?); finished shards are kept in {target.place}: "
                "run the same command again to continue"
            ) from None
        finally:
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                if waiting:
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)

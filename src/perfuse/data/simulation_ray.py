"""Shards made by a Ray cluster, or by a Ray of this machine that is started for the purpose and leaves nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from perfuse.data.simulation import THREAD_VARIABLES, Request, make_shard
from perfuse.data.simulation_target import LocalTarget, Note, Target
from perfuse.errors import InputError, PerfuseError

EMBEDDED = ("", "local")
_STORE_BYTES = 10**8
"""Of an embedded Ray's object store: shards go to their place, only notes come back."""
_HOST_AND_PORT = re.compile(r"(?:ray://)?(?P<host>[^/:\s]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})")
_REACH_S = 10.0


def import_ray(what: str = "--ray", is_local: bool = False) -> Any:
    """Ray, imported.

    Args:
        what: What the error says needs it.
        is_local: Whether this process will start a Ray of its own, and join no cluster.

    Raises:
        InputError: when it is not installed.
    """
    try:
        # Ray would warn, on every start, of a change in how it counts accelerators; none is used here.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if is_local:  # Ray's own switch for "no cluster": then it listens on 127.0.0.1 alone
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        import ray
    except ImportError:
        raise InputError(what, "needs the package ray", hint="pip install 'perfuse[cluster]'") from None
    return ray


def made_by_ray(request: Request, target: Target, indices: list[int], address: str) -> Iterator[tuple[int, Note]]:
    """Make shards as Ray tasks of one CPU each; yields each as it is finished.

    Args:
        request, target: What to make, and where; a local folder must be shared by every node.
        indices: Shards to make.
        address: ``host:port``, ``ray://host:port``, "auto", or "local" (or nothing) for an embedded cluster.

    Raises:
        InputError: when Ray is not installed, or for an address that is none.
        PerfuseError: when the cluster cannot be reached or a worker is lost for good.
    """
    ray = import_ray(is_local=address in EMBEDDED)
    if isinstance(target, LocalTarget):
        target = LocalTarget(target.out.absolute())  # workers have their own working folder
    with connected(ray, address):
        remote = ray.remote(num_cpus=1)(make_shard)
        limit = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
        waiting: dict[Any, int] = {}
        left = iter(indices)
        while True:
            for index in left:
                waiting[remote.remote(request, target, index)] = index
                if len(waiting) >= limit:
                    break
            if not waiting:
                return
            done, _ = ray.wait(list(waiting), num_returns=1)
            for reference in done:
                yield waiting.pop(reference), _result(ray, reference, target)


@contextmanager
def connected(ray: Any, address: str, cpus: int | None = None) -> Iterator[None]:
    """A connection of our own, unless the program has one; an embedded Ray ends with it, and its folder goes.

    Args:
        ray: The package.
        address: As for ``made_by_ray``.
        cpus: Of an embedded Ray; None: all of this machine.

    Raises:
        InputError: for an address that is none.
        PerfuseError: when the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    folder: str | None = None
    if address in EMBEDDED:
        folder = tempfile.mkdtemp(prefix="perfuse-ray-")
        options |= {"address": "local", "_temp_dir": folder}
        if cpus is not None:
            options["num_cpus"] = cpus
    else:
        _check_reachable(address)
        options = {"address": address}
    try:
        with _own_signals(), _deaf_children():
            try:
                ray.init(
                    log_to_driver=False, logging_level="ERROR",
                    runtime_env={"env_vars": dict.fromkeys(THREAD_VARIABLES, "1")}, **options,
                )  # fmt: skip
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                raise PerfuseError(f"Ray at {address!r} cannot be used: {' '.join(str(error).split())[:200]}") from None
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _check_reachable(address: str) -> None:
    """Refuse at once what Ray would try for a minute, with a page of warnings."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")  # where Ray looks first
        if address in ("auto", *EMBEDDED):
            return
    found = _HOST_AND_PORT.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 2**16:
        raise InputError("--ray", "is no address", value=address, allowed="host:port, ray://host:port, auto, local")
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), _REACH_S).close()
    except OSError as error:
        raise PerfuseError(f"Ray at {address!r} cannot be reached: {error.strerror or error}") from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM over, and would end the program without its ``finally`` blocks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # Ray's own handler, with a code of its own
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started inside never see SIGTERM and SIGHUP, as Ray itself has them never see SIGINT.

    ``timeout``, ``scancel``, systemd and a closed terminal signal every process at once. Ray's would die before running
    tasks have saved, and leave this one waiting for them. They end with the connection, or with this process: Ray sees
    to both. A signal that arrives meanwhile is delivered afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result(ray: Any, reference: Any, target: Target) -> Note:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, PerfuseError) else PerfuseError(f"a Ray task failed: {cause}") from None
    except ray.exceptions.RayError as error:
        raise PerfuseError(
            f"Ray lost a task ({type(error).__name__}); finished shards are kept in {target.place}: "
            "run the same command again to continue"
        ) from None

"""Shards made by a Ray cluster, or by a Ray of this machine that is started for the purpose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from perfuse.data.simulation import THREAD_VARIABLES, Request, make_shard
from perfuse.data.simulation_target import LocalTarget, Note, Target
from perfuse.errors import InputError, PerfuseError

EMBEDDED = "local"


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("--ray", "needs the package ray", hint="pip install 'perfuse[cluster]'") from None
    return ray


def made_by_ray(request: Request, target: Target, indices: list[int], address: str) -> Iterator[tuple[int, Note]]:
    """Make shards as Ray tasks of one CPU each; yields each as it is finished.

    Args:
        request, target: What to make, and where; a local folder must be shared by every node.
        indices: Shards to make.
        address: ``host:port``, ``ray://...``, "auto", or "local" for an embedded cluster.

    Raises:
        InputError: when Ray is not installed.
        PerfuseError: when the cluster cannot be reached or a worker is lost for good.
    """
    ray = _ray()
    if isinstance(target, LocalTarget):
        target = LocalTarget(target.out.absolute())  # workers have their own working folder
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(
                address=None if address == EMBEDDED else address, include_dashboard=False, log_to_driver=False,
                logging_level="ERROR", runtime_env={"env_vars": dict.fromkeys(THREAD_VARIABLES, "1")},
            )  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise PerfuseError(f"Ray at {address!r} cannot be used: {' '.join(str(error).split())[:200]}") from None
    try:
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
    finally:
        if started:
            ray.shutdown()


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

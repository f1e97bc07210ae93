"""Where and among whom a run computes: its device and its processes, through Lightning Fabric.

Fabric picks the device, recognises torchrun and SLURM, forms the process group (gloo on a CPU, NCCL on CUDA) and gives
the autocast context. Its wrapped ``forward`` and ``optimizer_step`` are left alone: they cast every input to bfloat16
and every output to float32, where volumes, flows and times must stay float64, and they hide the loss scaling that the
loop has to see. Nor is the model wrapped in DistributedDataParallel, which averages gradients over processes: ours are
sums divided by the joint weight of all values that count, and a process may have no curve at all in a step.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch

from perfuse.config import TrainingConfig
from perfuse.errors import InputError, PerfuseError
from perfuse.launch import RENDEZVOUS, is_started_by_launcher
from perfuse.training.precision import pick_device
from perfuse.training.world import World

_FABRIC_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "64": "32-true",  # nothing is cast then: the model itself is in float64
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}
_MEETING = timedelta(hours=2)
"""Longest wait until all processes have come: they open and verify the data first, or fetch them. A launcher ends those
that wait for one that has failed."""


@dataclass(frozen=True)
class Place:
    """Where a run computes.

    Attributes:
        device: Of this process.
        autocast: Gives the context of hidden layers.
        world: The processes.
    """

    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    world: World


def _started_here() -> tuple[int, int]:
    """Processes on this machine, and machines, as a launcher has started them; (1, 1) without one."""
    if not is_started_by_launcher():
        return 1, 1
    if "TORCHELASTIC_RUN_ID" in os.environ or RENDEZVOUS in os.environ:
        size, here = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        if size % here:
            raise InputError("WORLD_SIZE", "is not the same number on every node", value=size, allowed=f"n x {here}")
        return here, size // here
    size, machines = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
    if size % machines:
        raise InputError("SLURM_NTASKS", "is not the same number on every node", value=size, allowed=f"n x {machines}")
    return size // machines, machines


def _check_devices(config: TrainingConfig, device: str) -> tuple[int, int]:
    """Processes here and machines, held against what is configured and what there is.

    Raises:
        InputError: for other processes than were asked for, or more than there are GPUs.
    """
    here, machines = _started_here()
    if config.devices is not None and config.devices != here:
        raise InputError(
            "training.devices", "is not the number of processes that were started here", value=config.devices,
            unit="processes", allowed=str(here),
            hint="`perfuse train --devices N` starts N; so does torchrun --nproc-per-node N, without --devices "
            f"(a run that goes on with another number there: --devices {here})",
        )  # fmt: skip
    if device == "cuda" and here > torch.cuda.device_count():
        raise InputError("training.devices", "is more than there are GPUs", value=here, unit="processes",
                         allowed=f"<= {torch.cuda.device_count()}")  # fmt: skip
    return here, machines


def join(config: TrainingConfig) -> Place:
    """Take the device and meet the other processes, if there are any.

    Raises:
        InputError: as ``pick_device`` and for numbers of processes that do not fit.
        PerfuseError: when the processes cannot reach each other.
    """
    device = pick_device(config)
    here, machines = _check_devices(config, device)
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    from lightning_fabric import Fabric

    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it announces the precision on stderr
    options: dict[str, Any] = {"accelerator": device, "devices": here, "num_nodes": machines}
    options["precision"] = _FABRIC_PRECISION[config.precision]
    if here * machines == 1:
        fabric = Fabric(**options)
        fabric.launch()
        return Place(fabric.device, fabric.autocast, World())
    try:
        with _signals_as_usual():
            fabric = _met(options, device)
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PerfuseError(f"the {here * machines} processes of this run cannot reach each other: {reason}") from error
    world = World(config.process_timeout_s, is_distributed=True)
    return Place(fabric.device, fabric.autocast, world)


@contextmanager
def _signals_as_usual() -> Iterator[None]:
    """Waiting for the others happens where Python's handlers are not called: let signals end the process instead.

    Nothing has been written then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _met(options: dict[str, Any], device: str) -> Any:
    """A launched Fabric whose process group stands."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    backend = "nccl" if device == "cuda" else "gloo"
    file = os.environ.get(RENDEZVOUS)
    if file and not torch.distributed.is_initialized():
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group(
            backend, init_method=f"file://{file}", rank=rank, world_size=size, timeout=_MEETING
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*srun.*")  # processes that mpirun or we ourselves started
        fabric = Fabric(strategy=DDPStrategy(process_group_backend=backend, timeout=_MEETING), **options)
        fabric.launch()
    return fabric

"""The processes of one run: what they add up, agree on, and how one learns that another has ended.

A process that is alone (``World()``) exchanges nothing, so that the loop need not ask how many there are. Only numbers
and bytes travel, never pickled objects.

Waits are of two kinds. In a step, where all processes do alike, one that does not answer within ``timeout_s`` counts as
lost. While the first process works for all (a fit, a save), the others wait as long as it lives: over gloo, a process
that ends breaks its connections at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from perfuse.errors import PerfuseError

_T = TypeVar("_T")
_PATIENCE = timedelta(days=7)
_FINE, _FAILED = 0, 1
_SHOWN = 300


class LostProcess(PerfuseError):
    """Another process of the run has ended, or does not answer."""


class FailedElsewhere(PerfuseError):
    """The first process has failed, and says why itself; ``exit_code`` is the same."""


class World:
    """All processes of a run, as one of them sees them.

    Args:
        timeout_s: Longest wait for the others in a step.
        is_distributed: Whether ``torch.distributed`` has been initialised for this run.
    """

    def __init__(self, timeout_s: float = 45.0, is_distributed: bool = False) -> None:
        self.rank, self.size = 0, 1
        self._timeout_s = timeout_s
        if is_distributed:
            dist = torch.distributed
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            # What is on the host goes by gloo, which notices an ended process at once, whatever carries gradients.
            self._patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
            prompt = timedelta(seconds=timeout_s)
            self._prompt = dist.new_group(backend="gloo", timeout=prompt)
            self._of_devices = self._prompt if dist.get_backend() == "gloo" else dist.new_group(timeout=prompt)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    def _asking(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:  # gloo and NCCL know no class of their own for it in every version
            reason = " ".join(str(error).split())[:_SHOWN]
            raise LostProcess(
                f"another process of this run has ended, or did not answer within {self._timeout_s:g} s ({reason})"
            ) from error

    def sum(self, values: Tensor) -> Tensor:
        """Sums over all processes, in place; values on the host, equal shapes everywhere.

        Raises:
            LostProcess: if a process has ended or does not answer.
        """
        if not self.is_alone:
            self._asking(lambda: torch.distributed.all_reduce(values, group=self._prompt))
        return values

    def sum_gradients(self, flat: Tensor) -> Tensor:
        """Sums over all processes, in place, on the device: over NCCL where that is CUDA.

        NCCL does not raise when a process is lost: after ``timeout_s`` its watchdog aborts this one. So the loop
        exchanges over gloo first.

        Raises:
            LostProcess: as ``sum``.
        """
        if self.is_alone or flat.device.type == "cpu":
            return self.sum(flat)
        self._asking(lambda: torch.distributed.all_reduce(flat, group=self._of_devices))
        return flat

    def any(self, flag: bool, is_patient: bool = False) -> bool:
        """Whether any process says so; patient where some may have much to read first."""
        if self.is_alone:
            return flag
        said = torch.tensor([float(flag)], dtype=torch.float64)
        group = self._patient if is_patient else self._prompt
        self._asking(lambda: torch.distributed.all_reduce(said, group=group))
        return bool(said > 0)

    def agree(self, values: Sequence[float]) -> list[float]:
        """The first process's values.

        Raises:
            LostProcess: if it has ended.
        """
        if self.is_alone:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64)
        self._asking(lambda: torch.distributed.broadcast(told, 0, group=self._patient))
        return told.tolist()

    def agree_bytes(self, data: bytes) -> bytes:
        """The first process's bytes."""
        if self.is_alone:
            return data
        (length,) = self.agree([len(data)])
        told = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_main:
            told = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else told
        if len(told):
            self._asking(lambda: torch.distributed.broadcast(told, 0, group=self._patient))
        return told.numpy().tobytes()

    def agree_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's tensors, in place."""
        if self.is_alone:
            return
        for tensor in tensors:
            told = tensor.detach().cpu().contiguous()
            as_bytes = told.reshape(-1).view(torch.uint8)
            self._asking(partial(torch.distributed.broadcast, as_bytes, 0, group=self._patient))
            with torch.no_grad():
                tensor.copy_(told)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Every process's bytes, by rank."""
        if self.is_alone:
            return [data]
        sizes = torch.zeros(self.size, dtype=torch.float64)
        sizes[self.rank] = len(data)
        longest = int(self.sum(sizes).max())
        mine = torch.zeros(max(longest, 1), dtype=torch.uint8)
        if data:
            mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        everyone = [torch.zeros_like(mine) for _ in range(self.size)]
        self._asking(lambda: torch.distributed.all_gather(everyone, mine, group=self._prompt))
        return [one[: int(n)].numpy().tobytes() for one, n in zip(everyone, sizes, strict=True)]

    def differs(self, data: bytes) -> bool:
        """Whether the processes do not all have the same bytes (by their sha256)."""
        return not self.is_alone and len(set(self.gather_bytes(hashlib.sha256(data).digest()))) > 1

    def on_main(self, work: Callable[[], _T]) -> _T | None:
        """Have the first process do something while the others wait, however long; they get None.

        Raises:
            FailedElsewhere: in the others, when it failed there; the first process raises what happened.
            LostProcess: in the others, when it has ended.
        """
        if self.is_alone:
            return work()
        result = None
        if self.is_main:
            try:
                result = work()
            except BaseException as error:
                with suppress(LostProcess):  # what has happened here is the news
                    self.agree([getattr(error, "exit_code", _FAILED)])
                raise
        (outcome,) = self.agree([_FINE])
        if outcome != _FINE:
            failed = FailedElsewhere("the first process of this run has failed; its message says why")
            failed.exit_code = int(outcome)
            raise failed
        return result

    def close(self) -> None:
        """Leave the group, so that the next run of this program may make another."""
        if not self.is_alone and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

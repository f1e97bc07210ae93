"""Randomness: seeding, generators' states as plain bytes and numbers for a checkpoint, deterministic algorithms."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from perfuse.errors import InputError
from perfuse.training.record import RngRecord


def seed_generators(seed: int) -> None:
    """Seed PyTorch (every device), NumPy's and Python's global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global one is what foreign code may use)
    random.seed(seed)


def seed_micro_batch(seed: int, step: int, micro: int, rank: int, device: torch.device) -> None:
    """Seed what dropout draws in one micro-batch of one step.

    Draws so depend on the place in the run alone, not on what was drawn before: a run may stop anywhere and go on,
    among other processes than before, and no generator of theirs need be saved.
    """
    key = hashlib.sha256(f"{seed}|{step}|{micro}|{rank}".encode()).digest()
    number = int.from_bytes(key[:8], "little") >> 1
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


def capture_rng() -> RngRecord:
    """The states now."""
    # A run on the CPU leaves CUDA alone: asking would start it, in forked processes in vain.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    version, words, next_gauss = random.getstate()
    return RngRecord(
        torch=_raw(torch.get_rng_state()),
        cuda=tuple(_raw(s) for s in cuda),
        python=(version, np.asarray(words, dtype=np.uint32).tobytes(), next_gauss),
        numpy=(str(name), np.asarray(keys, dtype=np.uint32).tobytes(), int(position), int(has_gauss), float(gauss)),
    )


def restore_rng(record: RngRecord) -> None:
    """Put the states back; a checkpoint of another number of CUDA devices leaves CUDA's as they are.

    Raises:
        InputError: if a state is not one.
    """
    try:
        version, words, next_gauss = record.python
        random.setstate((version, tuple(np.frombuffer(words, dtype=np.uint32).tolist()), next_gauss))  # type: ignore
        name, keys, position, has_gauss, gauss = record.numpy
        state = (name, np.frombuffer(keys, dtype=np.uint32), position, has_gauss, gauss)  # type: ignore
        np.random.set_state(state)  # type: ignore  # noqa: NPY002
        torch.set_rng_state(_tensor(record.torch))
        if torch.cuda.is_available() and len(record.cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([_tensor(s) for s in record.cuda])
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError("state.json: rng", "is no generator state", hint=str(error)[:100]) from None


def _raw(state: torch.Tensor) -> bytes:
    return state.cpu().numpy().tobytes()


def _tensor(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


_FILL = "fill_uninitialized_memory"


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Deterministic algorithms, as before afterwards.

    On a CPU an operation without one is an error, since "resumes bit for bit" is a promise there. On CUDA it is a
    warning, shown once. Filling fresh memory with NaN, which PyTorch does in this mode, is left off: it costs time
    and changes no result of ours.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory = torch.utils.deterministic
    filled: bool = getattr(memory, _FILL)
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    setattr(memory, _FILL, False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("once", message=".*deterministic.*")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        setattr(memory, _FILL, filled)

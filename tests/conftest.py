"""Fixtures that several areas share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from perfuse.data.table import CurveTable

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests are small: threads would only fight each other, and one thread gives the same bits everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def perfuse_data() -> Path:
    """Folder of the real data; a test that asks for it is skipped, with the reason, where it is absent."""
    folder = Path(os.environ.get("PERFUSE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set PERFUSE_DATA)")
    return folder


@pytest.fixture(scope="session")
def t1_table() -> CurveTable:
    """40 curves of task T1 (hub), seed 0. Frozen: take what you need, change nothing."""
    from perfuse.data.simulate import simulate_task

    return simulate_task("T1", 40, seed=0)


@pytest.fixture(scope="session")
def t1_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 40 curves as a dataset folder with two shards."""
    from perfuse.data.simulation import simulate_dataset

    return simulate_dataset("T1", 40, 0, tmp_path_factory.mktemp("t1") / "data", shard_size=24).path

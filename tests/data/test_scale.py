"""Simulation and its cache with real processes: told to stop, killed, two at once; nothing is left over."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfuse.data.simulation import simulate_dataset

N, SHARD, SEED = 8_000, 256, 4
PATIENCE_S = 60.0


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file of a dataset."""
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def children_of(pid: int) -> list[Path]:
    """``/proc`` folders of the processes that a process started."""
    listed = (path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [Path("/proc") / child for children in listed for child in children]


def is_running(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def finished_shards(out: Path) -> int:
    return len(list((out.parent / f".{out.name}.simulating" / "notes").glob("*.json")))


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line; whatever is left of it at the end of the test is ended."""
    began: list[subprocess.Popen[str]] = []

    def run(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "perfuse", *map(str, arguments)]
        child = subprocess.Popen(
            command, env=os.environ | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        began.append(child)
        return child

    yield run
    for child in began:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return content(simulate_dataset("T1", N, SEED, tmp_path_factory.mktemp("whole") / "data", SHARD).path)


def simulate_arguments(out: Path, workers: int) -> list[object]:
    return ["simulate", out, "--n", N, "--seed", SEED, "--shard-size", SHARD, "--workers", workers, "--quiet"]


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_no_worker_and_continues(
    told: signal.Signals, start: Callable[..., subprocess.Popen[str]], tmp_path: Path, whole: dict[str, str]
) -> None:
    out = tmp_path / "out"
    child = start(*simulate_arguments(out, 2))
    wait_for(lambda: finished_shards(out) >= 2 or child.poll() is not None)
    workers = children_of(child.pid)
    assert len(workers) >= 2
    if told == signal.SIGINT:
        os.killpg(child.pid, told)  # a terminal's Ctrl-C reaches the workers too
    else:
        child.send_signal(told)
    _, error = child.communicate(timeout=PATIENCE_S)
    assert child.returncode != 0
    if told != signal.SIGKILL:
        assert "Traceback" not in error
        assert "the same command continues from there" in error
    wait_for(lambda: not any(map(is_running, workers)))
    assert not out.exists()
    kept = finished_shards(out)
    assert 2 <= kept < -(-N // SHARD)
    report = simulate_dataset("T1", N, SEED, out, SHARD)
    assert report.n_continued == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert content(out) == whole


def test_the_second_of_two_processes_is_refused_and_the_first_goes_on(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = start(*simulate_arguments(out, 1))
    wait_for(lambda: finished_shards(out) >= 1)
    first.send_signal(signal.SIGSTOP)  # so that it is surely still at work
    second = start(*simulate_arguments(out, 1))
    _, error = second.communicate(timeout=PATIENCE_S)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert "is being simulated by another process" in error
    assert str(first.pid) in error
    assert len(error.strip().splitlines()) <= 2
    made = finished_shards(out)
    wait_for(lambda: finished_shards(out) > made or out.is_dir())


def test_processes_that_fetch_one_dataset_at_once_share_the_cache(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    far, cache = tmp_path / "far", tmp_path / "cache"
    simulate_dataset("T1", 1000, 1, far, 128)
    code = (
        "import sys; from perfuse.data.sources import open_source; s = open_source(sys.argv[1]); "
        "print(len(s), float(s.take([999]).conc_mg_l.sum()))"
    )
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", code, far.as_uri()], env=os.environ | {"PERFUSE_CACHE_DIR": str(cache)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [reader.communicate(timeout=PATIENCE_S) for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0], said
    assert len({output for output, _ in said}) == 1
    (folder,) = (f for f in cache.iterdir() if f.is_dir())
    assert content(folder) == content(far)


def test_threads_of_blas_change_no_byte(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from perfuse.data.simulation import simulate_dataset\n"
        "for task in ('T1', 'T3', 'T4', 'T7'): simulate_dataset(task, 256, 2, f'{sys.argv[1]}/{task}')\n"
    )
    running = []
    for threads in (1, 2):
        (tmp_path / str(threads)).mkdir()
        many = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
        running.append(
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path / str(threads))], env=os.environ | many)
        )
    assert [child.wait(PATIENCE_S) for child in running] == [0, 0]
    for task in ("T1", "T3", "T4", "T7"):
        assert content(tmp_path / "1" / task) == content(tmp_path / "2" / task)

"""``perfuse train --devices N``, torchrun and SLURM: real processes, from the command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfuse.training.checkpoint import load_checkpoint

LIMIT_S = 120
SHORT = ["--model", "mlp", "--hidden", "8", "--batch-size", "8", "--no-tensorboard", "--device", "cpu"]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "perfuse", *map(str, arguments)]


def perfuse(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=LIMIT_S, env=os.environ | (env or {}), check=False
    )  # fmt: skip


@pytest.fixture
def endless(t1_dataset: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in two processes that has made some steps; ``tmp_path / "run"``."""
    arguments = ["train", t1_dataset, "--out", tmp_path / "run", *SHORT, "--devices", 2, "--epochs", 1000000]
    metrics, ends = tmp_path / "run" / "metrics.jsonl", time.monotonic() + LIMIT_S
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(*arguments, "--validate-every", 5), **pipes) as process:  # type: ignore[call-overload]
        while not (metrics.exists() and metrics.read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < ends
            time.sleep(0.05)
        yield process


def children(pid: int) -> dict[int, int]:
    """Rank -> process id of a launcher's processes, found by their environment."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and f"PPid:\t{pid}\n" in (folder / "status").read_text():
                environment = (folder / "environ").read_bytes().split(b"\0")
                rank = next(int(e[5:]) for e in environment if e.startswith(b"RANK="))
                found[rank] = int(folder.name)
        except (OSError, StopIteration):
            continue
    return found


def is_gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_two_devices_train_one_run_and_speak_once(t1_dataset: Path, tmp_path: Path) -> None:
    for name, devices in (("one", 1), ("two", 2)):
        done = perfuse("train", t1_dataset, "--out", tmp_path / name, *SHORT, "--devices", devices, "--epochs", 3)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("completed: 3 epochs") == 1
    one, two = (load_checkpoint(tmp_path / name / "last").state for name in ("one", "two"))
    assert (one.processes, two.processes) == (1, 2)
    assert two.validation == pytest.approx(one.validation, rel=1e-5)


def test_sigterm_to_the_launcher_saves_and_leaves(endless: subprocess.Popen[str], tmp_path: Path) -> None:
    ranks = children(endless.pid)
    assert sorted(ranks) == [0, 1]
    endless.send_signal(signal.SIGTERM)
    _, said = endless.communicate(timeout=LIMIT_S)
    assert endless.returncode == 143, said
    assert said.count("saved after step") == 1
    assert load_checkpoint(tmp_path / "run" / "last").state.progress.step > 5
    assert all(map(is_gone, ranks.values()))


def test_a_killed_process_ends_the_job_within_a_minute(endless: subprocess.Popen[str], tmp_path: Path) -> None:
    ranks, began = children(endless.pid), time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    _, said = endless.communicate(timeout=LIMIT_S)
    assert time.monotonic() - began < 60
    assert endless.returncode == 1
    assert "process 1 of 2 was ended by SIGKILL" in said
    assert "the same command with --resume continues from there" in said
    assert load_checkpoint(tmp_path / "run" / "last").state.progress.step > 5
    assert all(map(is_gone, ranks.values()))


def test_no_process_outlives_a_killed_launcher(endless: subprocess.Popen[str], tmp_path: Path) -> None:
    ranks = children(endless.pid)
    endless.kill()
    endless.wait()
    ends = time.monotonic() + 30
    while not all(map(is_gone, ranks.values())):
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert load_checkpoint(tmp_path / "run" / "last").state.progress.step > 5  # they saved as after SIGTERM


def test_bad_input_is_one_line_however_many_processes(t1_dataset: Path, tmp_path: Path) -> None:
    missing = perfuse("train", tmp_path / "none", "--out", tmp_path / "run", "--devices", 3)
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "data does not exist" in missing.stderr
    many = perfuse("train", t1_dataset, "--out", tmp_path / "run", "--devices", 3000)
    assert (many.returncode, many.stderr.count("\n")) == (2, 1)
    assert "--devices is far more than this machine has cores (got 3000 processes)" in many.stderr
    warmup = [*SHORT, "--devices", 2, "--epochs", 1, "--warmup-steps", 500]
    refused = perfuse("train", t1_dataset, "--out", tmp_path / "run", *warmup)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "schedule.warmup_steps leaves no step" in refused.stderr
    assert not (tmp_path / "run").exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_torchrun_starts_the_processes(t1_dataset: Path, tmp_path: Path) -> None:
    arguments = ["-m", "perfuse", "train", str(t1_dataset), "--out", str(tmp_path / "run"), *SHORT, "--epochs", "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
                "--master-port", str(free_port())]  # fmt: skip
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *arguments], capture_output=True, text=True, timeout=LIMIT_S, env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("completed: 2 epochs") == 1
    assert load_checkpoint(tmp_path / "run" / "last").state.processes == 2


def test_slurm_starts_the_processes_and_a_wrong_number_is_refused(t1_dataset: Path, tmp_path: Path) -> None:
    """The environment that srun gives two tasks on two nodes; both are this machine."""

    def task(rank: int, port: int, *more: str) -> subprocess.Popen[str]:
        env = os.environ | {
            "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": "0", "SLURM_NODEID": str(rank), "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train",
            "SLURM_NTASKS_PER_NODE": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        arguments = command("train", t1_dataset, "--out", tmp_path / "run", *SHORT, "--epochs", 2, *more)
        return subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    port = free_port()
    tasks = [task(rank, port) for rank in (0, 1)]
    said = [t.communicate(timeout=LIMIT_S) for t in tasks]
    assert [t.returncode for t in tasks] == [0, 0], said
    assert [out.count("completed: 2 epochs") for out, _ in said] == [1, 0]
    assert load_checkpoint(tmp_path / "run" / "last").state.processes == 2
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    wrong = task(0, port, "--devices", "3", "--resume")
    _, error = wrong.communicate(timeout=LIMIT_S)
    assert wrong.returncode == 2
    assert "training.devices is not the number of processes that were started here (got 3 processes)" in error


def test_processes_inside_an_allocation_are_no_tasks_of_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``sbatch --ntasks 1`` and then ``--devices N``: by SLURM's numbers all would be rank 0, on the first GPU."""
    from types import SimpleNamespace

    from perfuse import launch

    told = []

    def popen(command: list[str], env: dict[str, str], **_: object) -> SimpleNamespace:
        told.append(env)
        return SimpleNamespace(stderr=None)

    monkeypatch.setattr(launch.subprocess, "Popen", popen)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    launch._Process(["train"], 1, 2, tmp_path / "rendezvous")
    (env,) = told
    assert "SLURM_NTASKS" not in env
    assert (env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) == ("1", "1", "2")


def test_one_process_of_each_machine_verifies_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may have a copy of its own, so it is the local number that counts."""
    from perfuse.launch import local_rank

    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "4")
    assert local_rank() == 0
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert local_rank() == 3
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_rank() == 1

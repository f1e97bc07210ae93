"""Disks that are full or read-only, folders that vanish, clocks that jump: one clear line, and nothing lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from perfuse.cli import run as perfuse
from perfuse.config import RunConfig
from perfuse.data.table import CurveTable
from perfuse.errors import PerfuseError
from perfuse.training.board import Board
from perfuse.training.checkpoint import is_whole, load_checkpoint
from perfuse.training.interrupt import Interrupted, Interruption
from perfuse.training.retention import history
from perfuse.training.run import train

MakeConfig = Callable[..., RunConfig]
Capture = pytest.CaptureFixture[str]
REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = "--model loglinear-rates --epochs 1 --quiet"
BALLAST = "ballast"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no disk of its own may be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def made(t1_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, the same curves as .npz, and a drug."""
    folder = tmp_path_factory.mktemp("made")
    line = f"train {t1_dataset} --out {folder / 'run'} {TRAIN} --calibration-fraction 0.4 --test-fraction 0.2"
    assert perfuse(line.split()) == 0
    assert perfuse(["convert", str(t1_dataset), str(folder / "curves.npz")]) == 0
    (folder / "drug.toml").write_text(
        'name = "a"\ndose_mg = 5.0\nmw_g_mol = 300\nlogp = 2.0\nfup = 0.1\nbp_ratio = 1.0\ncl_total_l_h = 20\n'
    )
    return folder


def fill(disk: Path, free_kb: int) -> None:
    """Leave so much free."""
    with (disk / BALLAST).open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    os.truncate(disk / BALLAST, max(0, (disk / BALLAST).stat().st_size - 1024 * free_kb))


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")} - {BALLAST}


def refused(capsys: Capture, line: str, says: str, codes: tuple[int, ...] = (1,)) -> str:
    """Run a command that must fail with one line."""
    capsys.readouterr()
    code = perfuse(line.split())
    captured = capsys.readouterr()
    assert code in codes, captured.err
    (told,) = captured.err.strip().splitlines()
    assert told.startswith("perfuse: error: ") and says in told, told
    assert "bug in Perfuse" not in told and "Traceback" not in told
    return told


# -- a full disk ---------------------------------------------------------------------------------------------------

COMMANDS = {
    "evaluate": "evaluate {made}/run {made}/curves.npz --out {disk}/evaluation --no-baselines --quiet",
    "predict csv": "predict {made}/run {made}/drug.toml --out {disk}/curves.csv --quiet",
    "predict parquet": "predict {made}/run {made}/drug.toml --out {disk}/curves.parquet --quiet",
    "convert npz": "convert {data} {disk}/curves.npz",
    "convert csv": "convert {data} {disk}/new/curves.csv",
    "convert parquet": "convert {data} {disk}/curves.parquet",
    "convert folder": "convert {made}/curves.npz {disk}/curves",
    "report": "report {disk}/run",
    "calibrate": "calibrate {disk}/run {data} --allow-few --quiet",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_written_leaves_nothing_behind(
    command: str, disk: Path, made: Path, t1_dataset: Path, capsys: Capture
) -> None:
    line = COMMANDS[command].format(made=made, disk=disk, data=t1_dataset)
    if "{disk}/run" in COMMANDS[command]:
        shutil.copytree(made / "run", disk / "run")
    before = names(disk)
    for free_kb in (0, 4):
        fill(disk, free_kb)
        refused(capsys, line, "No space left on device")
        assert names(disk) == before, free_kb
    (disk / BALLAST).unlink()
    assert perfuse(line.split()) == 0
    assert names(disk) > before


def test_a_training_that_cannot_begin_can_be_begun_again(disk: Path, t1_dataset: Path, capsys: Capture) -> None:
    line = f"train {t1_dataset} --out {disk}/run {TRAIN}"
    for free_kb in (0, 4, 20, 60):
        fill(disk, free_kb)
        told = refused(capsys, line, "No space left on device")
        assert not [n for n in names(disk) if Path(n).name.startswith(".") or n.endswith((".new", ".part"))]
        if not free_kb:
            assert names(disk) == set()
        if (disk / "run" / "last").exists():
            assert "what was saved before is kept" in told and "use --resume" in told
            break
    assert is_whole(disk / "run" / "last")
    (disk / BALLAST).unlink()
    assert perfuse([*line.split(), "--resume"]) == 0
    assert is_whole(disk / "run" / "best")


def test_a_start_that_was_cut_short_is_begun_by_either_command(disk: Path, t1_dataset: Path, capsys: Capture) -> None:
    for resume in ("", " --resume"):
        line = f"train {t1_dataset} --out {disk}/run{len(resume)} {TRAIN}"
        fill(disk, 20)
        refused(capsys, line, "nothing has been saved yet (free some space and use --resume)")
        (disk / BALLAST).unlink()
        assert perfuse((line + resume).split()) == 0


def test_a_disk_that_fills_during_training_ends_it_with_all_that_was_saved(
    disk: Path, small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Any
) -> None:
    """History grows until nothing fits; with less of it, and space, the run comes to the same end."""
    c = config("mlp", training={"epochs": 6, "checkpoint_every_minutes": 1e-9, "keep_last": 100})
    train(small_table, c, tmp_path / "straight")
    fill(disk, 700)
    with pytest.raises(PerfuseError, match="No space left on device; what was saved before is kept .free some space"):
        train(small_table, c, disk / "run")
    kept = [folder for _, folder in history(disk / "run")]
    assert len(kept) > 1
    assert all(is_whole(folder) for folder in [disk / "run" / "last", *kept])
    assert not [n for n in names(disk) if Path(n).name.startswith(".")]
    (disk / BALLAST).unlink()
    less = config("mlp", training={"epochs": 6, "checkpoint_every_minutes": 1e-9, "keep_last": 1})
    train(small_table, less, disk / "run", resume=True)
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (disk / "run" / "last" / file).read_bytes() == (tmp_path / "straight" / "last" / file).read_bytes()
    assert lines(disk / "run") == lines(tmp_path / "straight")
    assert not history(disk / "run")


def test_a_simulation_goes_on_once_there_is_space(disk: Path, capsys: Capture) -> None:
    line = f"simulate {disk}/data --n 300 --shard-size 100 --quiet"
    for free_kb in (0, 4, 20, 2500):
        fill(disk, free_kb)
        told = refused(capsys, line, "No space left on device")
        assert str(disk) in told
        assert not [n for n in names(disk) if n.endswith(".part")]
    assert len(list((disk / ".data.simulating" / "notes").iterdir())) == 1
    (disk / BALLAST).unlink()
    assert perfuse(line.removesuffix(" --quiet").split()) == 0
    assert "1 of them from an earlier run" in capsys.readouterr().out
    assert {n.partition("/")[0] for n in names(disk)} == {"data"}


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: a full disk that needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_may_not_grow_is_one_line_too(small_table: CurveTable, config: MakeConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small_table, config("mlp", training={"epochs": 1}), run)
    before = load_checkpoint(run / "last").state.progress.step
    with largest_file(5000), pytest.raises(PerfuseError, match="cannot save the checkpoint .*File too large.*resume"):
        train(small_table, config("mlp", training={"epochs": 2}), run, resume=True)
    assert load_checkpoint(run / "last").state.progress.step == before
    assert not list(run.glob(".*"))


def test_metrics_that_cannot_be_written_end_the_run_after_the_last_save(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(PerfuseError, match=r"metrics.jsonl: No space left .*saved before is kept .use --resume"):
        train(small_table, config("mlp", training={"epochs": 2}), run)
    assert is_whole(run / "last")


def test_a_log_that_cannot_be_written_does_not_end_the_run(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Any
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").write_text("a file in the way")
    (run / "log.jsonl").symlink_to("/dev/full")
    assert train(small_table, config("mlp", training={"epochs": 2, "tensorboard": True}), run).ending == "completed"
    assert len(lines(run)) == 2


def test_tensorboard_is_given_up_without_half_a_record(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path)
    for step in range(3):
        board.add_scalar("loss", 1.0 + step, step)
    (path,) = tmp_path.iterdir()
    with largest_file(path.stat().st_size + 10):
        board.add_scalar("loss", 9.0, 3)
    assert board.failure == "TensorBoard events cannot be written: File too large"
    board.add_scalar("loss", 9.0, 4)
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 1.0), (1, 2.0), (2, 3.0)]


# -- places that cannot be written ---------------------------------------------------------------------------------

WRITERS = {
    "train": "train {data} --out {place}/run " + TRAIN,
    "simulate": "simulate {place}/data --n 3 --quiet",
    "evaluate": "evaluate {made}/run {made}/curves.npz --out {place}/evaluation --no-baselines --quiet",
    "predict": "predict {made}/run {made}/drug.toml --out {place}/curves.csv --quiet",
    "convert": "convert {made}/curves.npz {place}/curves",
}


@pytest.mark.parametrize("command", [*WRITERS, "report", "calibrate", "resume"])
def test_a_read_only_disk_is_one_line(command: str, disk: Path, made: Path, t1_dataset: Path, capsys: Capture) -> None:
    shutil.copytree(made / "run", disk / "run-of-before")
    lines = WRITERS | {
        "report": "report {place}/run-of-before",
        "calibrate": "calibrate {place}/run-of-before {data} --allow-few --quiet",
        "resume": "train {data} --out {place}/run-of-before --resume --epochs 2 --quiet",
    }
    before = names(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    refused(capsys, lines[command].format(place=disk, made=made, data=t1_dataset), "Read-only file system")
    assert names(disk) == before


@pytest.mark.parametrize("command", WRITERS)
def test_a_place_below_a_file_is_one_line(
    command: str, made: Path, t1_dataset: Path, tmp_path: Path, capsys: Capture
) -> None:
    place = tmp_path / "file"
    place.write_text("x")
    line = WRITERS[command].format(place=place, made=made, data=t1_dataset)
    refused(capsys, line, str(place), codes=(1, 2))
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize("command", WRITERS)
def test_missing_parents_are_made(command: str, made: Path, t1_dataset: Path, tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    assert perfuse(WRITERS[command].format(place=place, made=made, data=t1_dataset).split()) == 0
    assert len(list(place.iterdir())) == 1


@pytest.mark.parametrize("command", ["train", "simulate", "evaluate", "convert"])
def test_an_output_folder_that_is_a_file_is_one_line(
    command: str, made: Path, t1_dataset: Path, tmp_path: Path, capsys: Capture
) -> None:
    line = WRITERS[command].format(place=tmp_path, made=made, data=t1_dataset)
    (out,) = [Path(word) for word in line.split() if Path(word).parent == tmp_path]
    out.write_text("precious")
    refused(capsys, line, str(out), codes=(1, 2))
    assert out.read_text() == "precious" and names(tmp_path) == {out.name}


def test_a_run_folder_deleted_during_training_is_saved_again(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any
) -> None:
    run = tmp_path / "run"
    c = config("mlp", training={"epochs": 3, "checkpoint_every_minutes": 1e-9})
    stop_at(6, lambda: shutil.rmtree(run))
    with pytest.raises(PerfuseError, match=r"run disappeared .* step 6 is saved there again, and --resume"):
        train(small_table, c, run)
    stop_at(None)
    assert train(small_table, c, run, resume=True).steps == 12
    assert is_whole(run / "best") and is_whole(run / "last")


# -- clocks --------------------------------------------------------------------------------------------------------


def test_a_wall_clock_that_jumps_changes_nothing(
    small_table: CurveTable, config: MakeConfig, tmp_path: Path, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = config("mlp", training={"epochs": 4, "tensorboard": True})
    train(small_table, c, tmp_path / "straight")
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + (-1) ** next(jumps) * 1e9)
    result = train(small_table, c, tmp_path / "jumping")
    assert result.ending == "completed" and result.seconds < 60
    assert lines(tmp_path / "jumping") == lines(tmp_path / "straight")
    spent = [json.loads(line)["time_s"] for line in (tmp_path / "jumping" / "metrics.jsonl").read_text().splitlines()]
    assert spent == sorted(spent) and spent[-1] < 60
    budget = config("mlp", training={"epochs": None, "max_minutes": 0.02})
    assert 0 < train(small_table, budget, tmp_path / "budget").seconds < 30


# -- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_saves_and_the_second_leaves_at_once(
    number: signal.Signals, code: int, small_table: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # tests may run under nohup
    stop_at(2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=f"stopped by {number.name}: saved after step 2") as caught:
        train(small_table, config("mlp"), tmp_path / "once")
    assert caught.value.exit_code == code
    stop_at(2, lambda: [os.kill(os.getpid(), number) for _ in range(2)])
    with pytest.raises(SystemExit) as leaving:
        train(small_table, config("mlp"), tmp_path / "twice")
    assert leaving.value.code == code
    assert load_checkpoint(tmp_path / "twice" / "last").state.progress.step == 0


@pytest.mark.parametrize("at", [1, 4, 5])
def test_an_abort_in_the_middle_of_the_save_leaves_a_whole_checkpoint(
    at: int, small_table: CurveTable, config: MakeConfig, tmp_path: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second Ctrl-C comes while the first one's checkpoint is written: at a file, a folder, between the renames."""
    calls = 0
    real = os.fsync if at < 5 else os.rename

    def then_again(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        done = real(*args)
        if calls == (at if at < 5 else 1):
            os.kill(os.getpid(), signal.SIGINT)
        return done

    def first() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(os, "fsync" if at < 5 else "rename", then_again)

    stop_at(3, first)
    with pytest.raises(KeyboardInterrupt):
        train(small_table, config("mlp"), tmp_path / "run")
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "run" / "last", with_optimizer=True).state.progress.step in (0, 3)
    assert train(small_table, config("mlp"), tmp_path / "run", resume=True).steps == 12


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


# -- processes of their own: stopped, or their data taken away -------------------------------------------------------

SCRIPT = REPOSITORY / "tests" / "training" / "faulty_processes.py"


@pytest.fixture(scope="module")
def outcomes(t1_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of trainings that ``faulty_processes.py`` started and disturbed."""
    work = tmp_path_factory.mktemp("faulty")
    path = os.pathsep.join([str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(t1_dataset), str(work)], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_stopped_machine_does_not_stop_the_clock(outcomes: dict[str, Any]) -> None:
    """Held for longer than its budget, the run ends at once when it goes on, with everything saved."""
    stopped = outcomes["stopped"]
    assert stopped["status"] == 0, stopped
    assert stopped["ending"] == "deadline"
    assert stopped["seconds_after"] < 10
    assert stopped["whole"]


@pytest.mark.parametrize("kind", ["deleted", "flipped", "cut"])
def test_a_shard_that_goes_bad_during_training_loses_nothing(kind: str, outcomes: dict[str, Any]) -> None:
    """The run ends, or goes on with what it has mapped; ``last`` is whole, and ``--resume`` names the bad shard."""
    found = outcomes[kind]
    assert found["status"] in {"deleted": (0,), "flipped": (2,), "cut": (2, -signal.SIGBUS)}[kind], found
    assert found["status"] != 2 or "shard-00000.arrow" in found["told"], found
    assert found["whole"]
    assert found["resumed_status"] == 2
    assert "shard-00000.arrow" in found["resumed_told"], found
    assert found["restored_status"] == 0

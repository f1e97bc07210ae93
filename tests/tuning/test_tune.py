"""``perfuse tune`` as a user meets it: refusals, signals, and a sweep on Ray that is killed and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from perfuse.cli import run
from perfuse.config import load_config
from perfuse.data.locks import take_lock
from perfuse.data.simulation_ray import EMBEDDED
from perfuse.errors import InputError, PerfuseError
from perfuse.training.interrupt import Interrupted
from perfuse.tuning import run as run_module
from perfuse.tuning.record import Ended, Journal, read_sweep, read_trials, trial_folder, write_sweep
from perfuse.tuning.run import TuneRequest, asked, tune
from perfuse.tuning.space import load_space
from perfuse.tuning.sweep import Sweep
from perfuse.tuning.trial import run_trial

pytest.importorskip("ray", reason="ray is an extra")
pytest.importorskip("optuna", reason="optuna is an extra")

BASE = """
[model]
name = "mlp"
hidden = 8
layers = 1
knots = 8
[training]
epochs = {epochs}
batch_size = 16
device = "cpu"
"""
SPACE = """
[optimizer]
lr = { low = 1e-3, high = 1e-1, log = true }
weight_decay = { low = 1e-6, high = 1e-2, log = true }
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    base, space = tmp_path / "base.toml", tmp_path / "space.toml"
    base.write_text(BASE.format(epochs=10))
    space.write_text(SPACE)
    return base, space


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch, run_all: Any) -> Callable[[Any], None]:
    """Let ``tune`` run trials here, one after the other; call it with what to run in their place."""

    class Resources:
        def cluster_resources(self) -> dict[str, float]:
            return {"CPU": 1.0}

    @contextmanager
    def connected(ray: object, address: str, cpus: int | None = None) -> Iterator[None]:
        if address not in EMBEDDED:
            raise PerfuseError(f"Ray at {address!r} cannot be reached")
        yield

    def use(run_one: Any = run_trial) -> None:
        import perfuse.tuning.ray_run as ray_run

        monkeypatch.setattr(run_module, "import_ray", lambda what, is_local: Resources())
        monkeypatch.setattr(run_module, "connected", connected)
        monkeypatch.setattr(ray_run, "run_on_ray", lambda sweep, storage, gpus: run_all(sweep, run_one))

    return use


def test_best_toml_trains_to_the_loss_that_was_reported(
    files: tuple[Path, Path], t1_dataset: Path, tmp_path: Path, without_ray: Any, capsys: Any
) -> None:
    without_ray()
    base, space = files
    out, command = tmp_path / "sweep", ["--config", str(base), "--space", str(space), "--trials", "4"]
    assert run(["tune", str(t1_dataset), "--out", str(out), *command]) == 0
    said = capsys.readouterr()
    assert "The 4 test curves were not touched" in said.out and "trial 0: validation loss" in said.err
    assert sorted(p.name for p in out.iterdir() if p.name[0] != ".") == [
        "best.toml", "sweep.json", "trials", "trials.jsonl", "tune.html"
    ]  # fmt: skip
    _, found = read_sweep(out)
    trials = read_trials(out, found)
    best = min((t.ended for t in trials if t.ended and t.ended.status == "completed"), key=lambda e: e.val_loss or 0)
    assert (
        run(["train", str(t1_dataset), "--out", str(tmp_path / "run"), "--config", str(out / "best.toml"), "--quiet"])
        == 0
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert min(line["val_loss"] for line in lines) == best.val_loss
    run_folder = str(trial_folder(out, best.number))
    assert run(["evaluate", run_folder, str(t1_dataset), "--no-baselines", "--quiet"]) == 0
    assert not list(trial_folder(out, 0).glob("tensorboard"))


def test_a_sweep_is_not_written_over_and_resumes_only_itself(
    files: tuple[Path, Path], t1_dataset: Path, tmp_path: Path, without_ray: Any, pretend: Any, capsys: Any
) -> None:
    without_ray(lambda spec, at_rung: Ended(number=spec.number, status="completed", val_loss=1.0, progress=1))
    base, space = files
    out, data = tmp_path / "sweep", str(t1_dataset)
    other = tmp_path / "other.toml"
    other.write_text(BASE.format(epochs=11))
    other_space = tmp_path / "other_space.toml"
    other_space.write_text("optimizer.lr = { low = 1e-3, high = 1.0 }\n")
    common = ["--out", str(out), "--config", str(base), "--trials", "2"]
    assert run(["tune", data, *common, "--space", str(space), "--quiet", "--resume"]) == 2
    assert "found no sweep to continue" in capsys.readouterr().err and not out.exists()
    assert run(["tune", data, *common, "--space", str(space), "--quiet"]) == 0
    for flags, message in (
        (common, "already holds a sweep"),
        (["--out", str(out), "--config", str(other), "--resume"], "--resume: --config has changed"),
        (["--out", str(out), "--config", str(base), "--space", str(other_space), "--resume"], "--space has changed"),
        (["--out", str(out), "--seed", "5", "--resume"], "--seed has changed"),
        (["--out", str(out), "--trial-minutes", "5", "--resume"], "--config has changed"),
    ):
        assert run(["tune", data, *flags]) == 2
        assert message in capsys.readouterr().err
    assert run(["tune", data, "--out", str(out), "--trials", "3", "--resume", "--quiet"]) == 0
    assert len(read_trials(out, read_sweep(out)[1])) == 3


def test_resuming_on_other_data_is_refused(
    files: tuple[Path, Path], t1_dataset: Path, tmp_path: Path, without_ray: Any, pretend: Any
) -> None:
    from perfuse.data.simulation import simulate_dataset

    without_ray(lambda spec, at_rung: Ended(number=spec.number, status="completed", val_loss=1.0, progress=1))
    tune(TuneRequest(str(t1_dataset), load_config(files[0]), trials=1), tmp_path / "sweep")
    other = simulate_dataset("T1", 30, 1, tmp_path / "other").path
    with pytest.raises(InputError, match="--resume: data are not what the sweep began with"):
        tune(TuneRequest(str(other), trials=2), tmp_path / "sweep", resume=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trials", "0"], "--trials"), (["--concurrent", "0"], "--concurrent"),
        (["--max-minutes", "0"], "--max-minutes"), (["--trial-minutes", "-1"], "--trial-minutes"),
        (["--seed", "-1"], "--seed"), (["--trials", "1.5"], "no whole number"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(
    flags: list[str], message: str, t1_dataset: Path, tmp_path: Path, capsys: Any
) -> None:
    assert run(["tune", str(t1_dataset), "--out", str(tmp_path / "s"), *flags]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "s").exists()


def test_several_processes_in_a_trial_are_refused(t1_dataset: Path, tmp_path: Path, capsys: Any) -> None:
    base = tmp_path / "base.toml"
    base.write_text("[training]\ndevices = 2\n")
    assert run(["tune", str(t1_dataset), "--out", str(tmp_path / "s"), "--config", str(base)]) == 2
    assert "training.devices" in capsys.readouterr().err and not (tmp_path / "s").exists()


@pytest.mark.parametrize("package", ["ray", "optuna"])
def test_without_the_extra_it_says_what_to_install(
    package: str, t1_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert run(["tune", str(t1_dataset), "--out", str(tmp_path / "s")]) == 2
    assert f"perfuse tune needs the package {package}; hint: pip install 'perfuse[cluster]'" in capsys.readouterr().err


def test_a_second_sweep_in_the_same_folder_is_refused(
    files: tuple[Path, Path], t1_dataset: Path, tmp_path: Path, without_ray: Any
) -> None:
    without_ray()
    out = tmp_path / "sweep"
    out.mkdir()
    lock = take_lock(out / ".sweep.lock")
    assert lock is not None
    with lock, pytest.raises(PerfuseError, match="another process is running the sweep"):
        tune(TuneRequest(str(t1_dataset), load_config(files[0])), out)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("manifest.json", "holds a dataset"), ("config.toml", "holds a run"), ("last", "holds a run"),
        ("best", "holds a run"),
    ],
)  # fmt: skip
def test_a_folder_that_holds_something_else_is_refused(
    name: str, message: str, t1_dataset: Path, tmp_path: Path, without_ray: Any, capsys: Any
) -> None:
    without_ray()
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("")
    assert run(["tune", str(t1_dataset), "--out", str(out), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert f"--out {message}" in said and said.count("\n") == 1
    assert [p.name for p in out.iterdir()] == [name]


def test_a_cluster_that_is_not_there_leaves_nothing(
    files: tuple[Path, Path], t1_dataset: Path, tmp_path: Path, without_ray: Any, capsys: Any
) -> None:
    without_ray(lambda spec, at_rung: Ended(number=spec.number, status="completed", val_loss=1.0, progress=1))
    out = tmp_path / "sweep"
    command = ["tune", str(t1_dataset), "--out", str(out), "--config", str(files[0]), "--trials", "1", "--quiet"]
    assert run([*command, "--ray", "nowhere:1234"]) == 1
    assert "cannot be reached" in capsys.readouterr().err and not out.exists()
    assert run(command) == 0


def test_a_sweep_that_another_began_meanwhile_is_not_written_over(
    files: tuple[Path, Path], t1_dataset: Path, tmp_path: Path, without_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray()
    out, request = tmp_path / "sweep", TuneRequest(str(t1_dataset), load_config(files[0]))

    @contextmanager
    def connected(ray: object, address: str, cpus: int | None = None) -> Iterator[None]:
        out.mkdir()
        write_sweep(out, asked(request).model_copy(update={"seed": 5}))
        yield

    monkeypatch.setattr(run_module, "connected", connected)
    with pytest.raises(InputError, match="already holds a sweep"):
        tune(request, out)
    assert read_sweep(out)[0].seed == 5


def test_where_every_trial_fails_the_reason_is_the_error(
    files: tuple[Path, Path], t1_dataset: Path, tmp_path: Path, without_ray: Any, capsys: Any
) -> None:
    without_ray(lambda spec, at_rung: Ended(number=spec.number, status="failed", reason="the loss is not finite"))
    out = tmp_path / "sweep"
    flags = ["--out", str(out), "--config", str(files[0]), "--trials", "3", "--quiet"]
    assert run(["tune", str(t1_dataset), *flags]) == 1
    assert "all 3 trials failed; the last: the loss is not finite" in capsys.readouterr().err
    assert not (out / "best.toml").exists() and (out / "tune.html").exists()


def test_a_signal_leaves_a_sweep_that_goes_on(
    files: tuple[Path, Path], t1_dataset: Path, tmp_path: Path, without_ray: Any, pretend: Any
) -> None:
    def interrupted(spec: Any, at_rung: Any) -> Any:
        if spec.number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            return None
        return Ended(number=spec.number, status="completed", val_loss=1.0, progress=1)

    without_ray(interrupted)
    request, out = TuneRequest(str(t1_dataset), load_config(files[0]), trials=4), tmp_path / "sweep"
    with pytest.raises(Interrupted, match="SIGTERM.*2 trials have ended and are kept, 1 can go on.*--resume") as caught:
        tune(request, out)
    assert caught.value.exit_code == 143 and (out / "best.toml").exists() and (out / "tune.html").exists()
    without_ray(lambda spec, at_rung: Ended(number=spec.number, status="completed", val_loss=1.0, progress=1))
    assert [t.is_open for t in tune(request, out, resume=True).trials] == [False] * 4


def _started(arguments: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | variables
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "perfuse", *arguments], stdout=file, stderr=file, env=environment,
            start_new_session=True,
        )  # fmt: skip


def _wait_for(process: subprocess.Popen[bytes], journal: Path, text: str, log: Path) -> None:
    until = time.monotonic() + 180
    while not (journal.is_file() and text in journal.read_text()):
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_on_ray_killed_and_interrupted_it_ends_as_if_it_had_not_been(
    t1_dataset: Path, tmp_path: Path, run_all: Any
) -> None:
    """The same suggestions, decisions and losses as trials run here, one after the other, without a break."""
    base, space = tmp_path / "base.toml", tmp_path / "space.toml"
    base.write_text(BASE.format(epochs=150))
    space.write_text(SPACE)
    request = TuneRequest(str(t1_dataset.resolve()), load_config(base), lambda b: load_space(space, b), trials=5)
    here = tmp_path / "here"
    here.mkdir()
    write_sweep(here, asked(request))
    record, found = read_sweep(here)
    journal = Journal(here)
    sweep = run_all(Sweep(here, record, found, [], journal, n_trials=5), run_trial)
    sweep.write_best()
    journal.close()

    out, log = tmp_path / "ray", tmp_path / "log.txt"
    command = ["tune", str(t1_dataset), "--out", str(out), "--trials", "5"]
    process = _started([*command, "--config", str(base), "--space", str(space)], log)
    _wait_for(process, out / "trials.jsonl", '"event":"started","number":1', log)
    process.kill()
    process.wait(60)
    process = _started([*command, "--resume"], log)
    _wait_for(process, out / "trials.jsonl", '"event":"started","number":2', log)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130, log.read_text()
    assert "with --resume continues from there" in log.read_text()
    process = _started([*command, "--resume"], log)
    assert process.wait(180) == 0, log.read_text()

    def facts(folder: Path) -> list[tuple[object, ...]]:
        trials = read_trials(folder, found)
        return [
            (t.values, {r: (e.val_loss, e.goes_on) for r, e in t.rungs.items()},
             t.ended and (t.ended.status, t.ended.val_loss, t.ended.epochs)) for t in trials
        ]  # fmt: skip

    assert len(sweep.trials) == 5 and facts(out) == facts(here)
    assert (out / "best.toml").read_text() == (here / "best.toml").read_text()
    assert not list(tmp_path.rglob("*.pkl")), "Ray's own state lies elsewhere and is thrown away"


def _of_session(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, _, its_session = (place / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(int(place.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="processes are looked up in /proc")
def test_sigterm_to_everybody_saves_and_leaves(t1_dataset: Path, tmp_path: Path) -> None:
    """``timeout`` signals the process group, Ray's daemons in it; ``scancel`` and systemd its workers too."""
    base, out, log = tmp_path / "base.toml", tmp_path / "sweep", tmp_path / "log.txt"
    base.write_text(BASE.format(epochs=100_000))
    with tempfile.TemporaryDirectory(prefix="pf-") as temporary:  # short: Ray's sockets lie in it
        process = _started(["tune", str(t1_dataset), "--out", str(out), "--config", str(base)], log, TMPDIR=temporary)
        _wait_for(process, trial_folder(out, 0) / "last" / "state.json", "", log)
        for pid in _of_session(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        began = time.monotonic()
        try:
            assert process.wait(60) == 143, log.read_text()
        finally:
            process.kill()  # where it hangs; Ray's processes go with it
        assert time.monotonic() - began < 30
        lines = log.read_text().splitlines()
        assert len(lines) == 2 and "0 trials have ended and are kept, 1 can go on" in lines[1], lines
        assert [t.is_open for t in read_trials(out, read_sweep(out)[1])] == [True]
        until = time.monotonic() + 10
        while _of_session(process.pid) and time.monotonic() < until:
            time.sleep(0.1)
        assert not _of_session(process.pid) and not [p for p in Path(temporary).iterdir() if "ray" in p.name]

"""Simulation at scale: the same bytes whoever made them, continued after kills, failures named."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from perfuse.data import simulate, simulation
from perfuse.data.locks import take_lock
from perfuse.data.simulation import simulate_dataset
from perfuse.data.simulation_target import target_for
from perfuse.data.sources import open_source
from perfuse.data.store import CurveStore
from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file of a dataset."""
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_dataset("T1", 700, 5, tmp_path_factory.mktemp("one") / "data", 150).path


def test_shards_do_not_depend_on_workers(reference: Path, tmp_path: Path) -> None:
    for workers in (2, 3):
        made = simulate_dataset("T1", 700, 5, tmp_path / str(workers), 150, workers=workers)
        assert content(made.path) == content(reference)
        assert made.n_curves == 700
        assert made.n_shards == 5
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_shards_do_not_depend_on_ray(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="ray is an extra")
    temporary = Path(tempfile.mkdtemp(prefix="pr-"))  # short: sockets lie there
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # an embedded Ray joins no other cluster
    made = simulate_dataset("T1", 700, 5, tmp_path / "ray", 150, ray="local")
    assert content(made.path) == content(reference)
    assert not ray.is_initialized()
    temporary.rmdir()  # empty


def test_curves_are_those_of_the_task(reference: Path) -> None:
    store = CurveStore.open(reference, verify=True)
    whole = simulate.simulate_task("T1", 700, 5)
    assert np.array_equal(store.take(np.arange(700)).conc_mg_l, whole.conc_mg_l)
    assert store.manifest.n_failed == 0


_CHILD = """
import sys
from pathlib import Path
from perfuse.data.simulation import simulate_dataset
if __name__ == "__main__":
    simulate_dataset("T1", 3000, 9, Path(sys.argv[1]), 200, workers=int(sys.argv[2]))
"""


def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(_CHILD)
    whole = simulate_dataset("T1", 3000, 9, tmp_path / "whole", 200)
    out, work = tmp_path / "out", tmp_path / ".out.simulating"
    kills, random = 0, np.random.default_rng(0)
    for workers in (1, 2, 1):
        child = subprocess.Popen([sys.executable, str(script), str(out), str(workers)])
        deadline, wanted = time.monotonic() + 60, len(list(work.glob("notes/*"))) + 1
        while child.poll() is None and len(list(work.glob("notes/*"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.05))
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
    assert kills > 0
    assert not out.exists()
    done = len(list(work.glob("notes/*.json")))
    assert 0 < done < 15
    report = simulate_dataset("T1", 3000, 9, out, 200)
    assert report.n_continued >= done - 1  # the last one may have been cut short
    assert content(out) == content(whole.path)
    assert not work.exists()


def test_another_request_and_a_damaged_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = simulation.make_shard

    def stops_after_two(*arguments: object) -> object:
        if arguments[2] == 2:
            raise PerfuseError("power cut")
        return make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(simulation, "make_shard", stops_after_two)
    with pytest.raises(PerfuseError, match="power cut"):
        simulate_dataset("T1", 300, 1, tmp_path / "d", 64)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"\.d\.simulating: request differs .*: n 300 there, 301 here"):
        simulate_dataset("T1", 301, 1, tmp_path / "d", 64)
    shard = tmp_path / ".d.simulating" / "data" / "shard-00001.arrow"
    shard.write_bytes(b"x" * shard.stat().st_size)
    report = simulate_dataset("T1", 300, 1, tmp_path / "d", 64)
    assert report.n_continued == 1
    assert content(report.path) == content(simulate_dataset("T1", 300, 1, tmp_path / "e", 64).path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    work = tmp_path / ".d.simulating"
    work.mkdir()
    held = take_lock(work / "lock")
    assert held is not None
    with held, pytest.raises(InputError, match="is being simulated by another process"):
        simulate_dataset("T1", 10, 1, tmp_path / "d")
    # What a killed run left holds nobody up, not even where its process number belongs to another program by now.
    for left in ("", f"{os.uname().nodename} {os.getpid()}"):
        (work / "lock").write_text(left)
        assert simulate_dataset("T1", 10, 1, tmp_path / "d").n_curves == 10
        shutil.rmtree(tmp_path / "d")
        work.mkdir()


def broken(monkeypatch: pytest.MonkeyPatch, bad: set[str], how: str) -> None:
    """Make the solver fail for the named curves."""
    solve = simulate.solved

    def failing(table: CurveTable) -> CurveTable:
        hit = np.isin(table.curve_id, list(bad))
        if how == "raises" and hit.any():
            raise PerfuseError("cannot be solved")
        out = solve(table)
        out.conc_mg_l[hit] = np.nan if how == "nan" else -1.0
        return out

    monkeypatch.setattr(simulate, "solved", failing)


@pytest.mark.parametrize("how", ["raises", "nan", "negative"])
def test_failing_subjects_are_named_with_their_parameters(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, {"T2-3-5", "T2-3-130"}, how)
    report = simulate_dataset("T2", 140, 3, tmp_path / "d", 64, max_failed=0.05)
    assert [f["curve_id"] for f in report.failures] == ["T2-3-5", "T2-3-130"]
    store = CurveStore.open(report.path, verify=True)
    assert len(store) == report.n_curves == 138
    assert store.manifest.n_failed == 2
    assert "T2-3-5" not in store.column("curve_id")
    assert "T2-3-6" in store.column("curve_id")
    with (report.path / "failures.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    monkeypatch.undo()
    drawn = simulate.draw_block("T2", 3, 0)
    assert float(rows[0]["fup"]) == drawn.fup[5]
    assert [float(v) for v in rows[1]["kp"].split()] == drawn.kp[130].tolist()
    assert rows[0]["reason"]


def test_too_many_failures_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, {"T2-3-5", "T2-3-30"}, "raises")
    with pytest.raises(
        PerfuseError, match=r"2 curves cannot be solved, more than --max-failed .* T2-3-5: cannot be solved"
    ):
        simulate_dataset("T2", 140, 3, tmp_path / "d", 64, max_failed=0.01)
    assert not (tmp_path / "d").exists()
    with (tmp_path / ".d.simulating" / "failures.csv").open() as handle:
        assert [row["curve_id"] for row in csv.DictReader(handle)] == ["T2-3-5", "T2-3-30"]
    # Finished shards and their failures are kept: a larger fraction lets the same request end.
    report = simulate_dataset("T2", 140, 3, tmp_path / "d", 64, max_failed=0.05)
    assert report.n_continued == 1
    assert report.n_curves == 138
    monkeypatch.undo()


def test_other_versions_neither_continue_nor_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / ".d.simulating"
    work.mkdir()
    request = asdict(simulation.Request("T1", 10, 0, 64))
    (work / "request.json").write_text(json.dumps(request | {"software": "perfuse 0.0.1"}))
    with pytest.raises(InputError, match=r"request differs .*software perfuse 0\.0\.1 there"):
        simulate_dataset("T1", 10, 0, tmp_path / "d", 64)
    other = simulation.Request("T1", 10, 0, 64, software="perfuse 0.0.1")
    with pytest.raises(PerfuseError, match=r"a worker has other versions .* than asked for \(perfuse 0\.0\.1\)"):
        simulation.make_shard(other, target_for(tmp_path / "d"), 0)
    (work / "request.json").write_text("")
    with pytest.raises(InputError, match=r"request\.json cannot be read"):
        simulate_dataset("T1", 10, 0, tmp_path / "d", 64)


def test_an_error_keeps_its_line_between_processes() -> None:
    error = InputError("fup", "is too large", value=3.0, allowed="(0, 1]", where="curve 5")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.field, again.exit_code) == (InputError, str(error), "fup", 2)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", "--ray is no address"), ("ray://host:99999", "--ray is no address"),
        ("127.0.0.1:9", "cannot be reached"), ("ray://127.0.0.1:9", "cannot be reached"),
    ],
)  # fmt: skip
def test_ray_addresses_that_lead_nowhere_are_refused_at_once(address: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is an extra")
    began = time.monotonic()
    with pytest.raises(PerfuseError, match=message):
        simulate_dataset("T1", 10, 0, tmp_path / "d", ray=address)
    assert time.monotonic() - began < 15


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--ray needs the package ray.*perfuse\[cluster\]"):
        simulate_dataset("T1", 10, 0, tmp_path / "d", ray="local")


_MEASURED = """
import sys
from pathlib import Path
from perfuse.data.simulation import simulate_dataset
def rss_anon_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))
seen = []
if __name__ == "__main__":
    simulate_dataset("T1", 12_288, 0, sys.argv[1], 512, progress=lambda done, failed: seen.append(rss_anon_mb()))
    print(max(seen[:7]), max(seen))
"""


def test_memory_does_not_grow_with_the_number_of_curves(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _MEASURED, str(tmp_path / "d")], capture_output=True, text=True,
                          timeout=120, check=True)  # fmt: skip
    early_mb, peak_mb = map(float, done.stdout.split())
    # The other 18 shards hold 129 MB; kept, they would show.
    assert peak_mb < early_mb + 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "--workers"), ({"workers": 10**6}, "--workers"), ({"shard_size": 0}, "--shard-size"),
        ({"max_failed": 1.5}, "--max-failed"), ({"max_failed": float("nan")}, "--max-failed"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        simulate_dataset("T1", 10, 0, tmp_path / "d", **change)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused_and_an_empty_one_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert simulate_dataset("T1", 5, 0, tmp_path / "empty").n_curves == 5
    with pytest.raises(InputError, match="exists already"):
        simulate_dataset("T1", 5, 0, tmp_path / "empty")


def test_a_dead_worker_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import os, sys\nfrom pathlib import Path\nfrom perfuse.data import simulation\n"
        "class Deadly(simulation.Request):\n    def rows(self, index):\n"
        "        if os.environ.get('PARENT') != str(os.getpid()): os._exit(9)\n        return super().rows(index)\n"
        "if __name__ == '__main__':\n    os.environ['PARENT'] = str(os.getpid())\n    simulation.Request = Deadly\n"
        "    from perfuse.errors import PerfuseError\n"
        "    try: simulation.simulate_dataset('T1', 600, 1, Path(sys.argv[1]), 256, workers=2)\n"
        "    except PerfuseError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "d")], capture_output=True, text=True, timeout=60
    )
    assert "a worker process died" in done.stdout
    assert not (tmp_path / "d").exists()


def test_a_url_holds_the_same_dataset(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFUSE_CACHE_DIR", str(tmp_path / "cache"))
    for url in (f"memory://{tmp_path.name}/data", (tmp_path / "far").as_uri()):
        report = simulate_dataset("T1", 700, 5, url, 150)
        assert report.location == url
        source = open_source(url)
        assert np.array_equal(
            source.take(np.arange(700)).conc_mg_l, open_source(reference).take(np.arange(700)).conc_mg_l
        )
        with pytest.raises(InputError, match="holds a dataset already"):
            simulate_dataset("T1", 700, 5, url, 150)
    assert content(tmp_path / "far") == content(reference)
    # Both have one manifest, so that they are cached once.
    assert len([f for f in (tmp_path / "cache").iterdir() if f.is_dir()]) == 1


def test_a_url_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, make = (tmp_path / "far").as_uri(), simulation.make_shard
    monkeypatch.setattr(
        simulation, "make_shard", lambda r, t, i: make(r, t, i) if i < 2 else (_ for _ in ()).throw(PerfuseError("cut"))
    )
    with pytest.raises(PerfuseError, match="cut"):
        simulate_dataset("T1", 300, 1, url, 64)
    assert not (tmp_path / "far" / "manifest.json").exists()
    monkeypatch.undo()
    with pytest.raises(InputError, match="request differs"):
        simulate_dataset("T1", 300, 2, url, 64)
    assert simulate_dataset("T1", 300, 1, url, 64).n_continued == 2
    assert content(tmp_path / "far") == content(simulate_dataset("T1", 300, 1, tmp_path / "near", 64).path)


def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int = 60) -> str:
    monkeypatch.setenv("PERFUSE_CACHE_DIR", str(tmp_path / "cache"))
    url = (tmp_path / "far").as_uri()
    simulate_dataset("T1", n, 1, url, 32)
    return url


def cached(tmp_path: Path) -> Path:
    return next(f for f in (tmp_path / "cache").iterdir() if f.is_dir())


def test_a_damaged_cache_is_mended_and_a_damaged_dataset_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = far(tmp_path, monkeypatch)
    before = open_source(url).take([40]).conc_mg_l
    shard = cached(tmp_path) / "shard-00001.arrow"
    shard.write_bytes(b"y" * shard.stat().st_size)
    assert np.array_equal(open_source(url).take([40]).conc_mg_l, before)
    source = tmp_path / "far" / "shard-00000.arrow"
    source.write_bytes(source.read_bytes()[:-1] + b"!")
    (cached(tmp_path) / "shard-00000.arrow").unlink()
    with pytest.raises(InputError, match=r"shard is not what its manifest says .*shard-00000"):
        open_source(url)
    source.unlink()
    with pytest.raises(InputError, match="shard is missing"):
        open_source(url)
    assert not list(cached(tmp_path).glob(".*"))


def test_the_cache_keeps_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = far(tmp_path, monkeypatch)
    size = sum(f.stat().st_size for f in (tmp_path / "far").iterdir())
    open_source(url)
    monkeypatch.setenv("PERFUSE_CACHE_GB", str(1.5 * size / 1e9))
    other = (tmp_path / "other").as_uri()
    simulate_dataset("T1", 60, 2, other, 32)
    open_source(other)
    assert len([f for f in (tmp_path / "cache").iterdir() if f.is_dir()]) == 1  # the older one made room
    monkeypatch.setenv("PERFUSE_CACHE_GB", str(0.5 * size / 1e9))
    with pytest.raises(InputError, match="is larger than the cache may be"):
        open_source(url)
    for wrong in ("0", "many"):
        monkeypatch.setenv("PERFUSE_CACHE_GB", wrong)
        with pytest.raises(InputError, match="PERFUSE_CACHE_GB"):
            open_source(url)


def test_a_remote_manifest_cannot_leave_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = far(tmp_path, monkeypatch)
    path = tmp_path / "far" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["file"] = "../../escaped.arrow"
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="is no shard's name"):
        open_source(url)
    assert not (tmp_path / "escaped.arrow").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [("nosuch://x/y", "URL cannot be opened"), ("memory://nothing/here", "has no manifest.json")],
)
def test_urls_that_lead_nowhere(url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFUSE_CACHE_DIR", str(tmp_path))
    with pytest.raises(InputError, match=message):
        open_source(url)

"""Whatever is wrong, it is one clear line on stderr, exit code 2, and no traceback."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perfuse.cli import run
from perfuse.data.importers.origin import write_origin_npz
from perfuse.data.importers.tidy import write_tidy
from perfuse.data.table import CurveTable

Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, *arguments: str | Path, says: str, code: int = 2) -> str:
    """Run a command line that must be refused; returns its one line."""
    assert run([str(a) for a in arguments]) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("perfuse: error: ")
    assert says in lines[0], lines[0]
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.fixture(scope="module")
def origin(t1_table: CurveTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small T1 table in the origin's layout."""
    path = tmp_path_factory.mktemp("origin") / "good.npz"
    write_origin_npz(t1_table, path)
    return path


@pytest.fixture(scope="module")
def runs(t1_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny runs: ``loglinear`` and ``mlp``."""
    folder = tmp_path_factory.mktemp("runs")
    for model, name in (("loglinear-rates", "loglinear"), ("mlp", "mlp")):
        small = ["--hidden", "8"] if model == "mlp" else []
        line = ["train", str(t1_dataset), "--out", str(folder / name), "--model", model, "--epochs", "1", "--quiet"]
        assert run([*line, *small, "--no-tensorboard"]) == 0
    return folder


# --- the command line itself


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("bogus", "bogus"),
        ("train", "DATA"),
        ("train x", "--out"),
        ("train x --out y --epochs many", "--epochs"),
        ("train x --out y --model transformer", "--model"),
        ("train x --out y --bogus 3", "--bogus"),
        ("train x --out y --precision 8", "--precision"),
        ("train x y z --out r", "y"),
        ("simulate out", "--n"),
        ("simulate out --n 0", "--n"),
        ("simulate out --n -3", "--n"),
        ("simulate out --n 1.5", "--n: '1.5' is no whole number"),
        ("simulate out --n 3 --seed 0.5", "--seed"),
        ("simulate out --n ten", "--n"),
        ("simulate out --n 3 --seed -1", "--seed"),
        ("simulate out --n 3 --task T9", "--task"),
        ("simulate out --n 3 --config missing.toml", "missing.toml"),
        ("evaluate missing data", "missing"),
        ("predict missing drug.toml --out x.csv", "missing"),
        ("report missing", "missing"),
        ("info missing", "missing"),
        ("convert missing.npz out.csv", "missing.npz"),
        ("predict run drug.toml --out x.csv --times 1,two", "two"),
        ("predict run drug.toml --out x.csv --times 1,,2", "--times"),
    ],
)
def test_wrong_command_lines(
    line: str, says: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, *line.split(), says=says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--epochs 0", "--epochs"),
        ("--epochs 1.5", "--epochs: '1.5' is no whole number"),
        ("--hidden 8.2", "--hidden"),
        ("--lr -1", "--lr"),
        ("--lr nan", "--lr"),
        ("--batch-size 0", "--batch-size"),
        ("--clip -1", "--clip"),
        ("--max-minutes 0", "--max-minutes"),
        ("--ema 1", "--ema"),
        ("--hidden 2", "--hidden"),
        ("--dropout 1.5", "--dropout"),
        ("--validation-fraction 0.6 --test-fraction 0.5", "must be below 1"),
        ("--organ-weight liver", "ORGAN=WEIGHT"),
        ("--organ-weight tail=2", "tail"),
        ("--organ-weight liver=heavy", "heavy"),
        ("--organ-weight liver=-1", "-1"),
        ("--model mlp --prior none", "--prior"),
        ("--model loglinear-rates --hidden 8", "--hidden"),
        ("--model recurrent --hidden 30 --heads 4", "multiple of heads"),
        ("--model recurrent --knots 41", "multiple of steps"),
        ("--split scaffold", "SMILES"),
        ("--precision 16 --device cpu", "16"),
    ],
)
def test_wrong_training_options(flags: str, says: str, t1_dataset: Path, capsys: Capture, tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused(capsys, "train", t1_dataset, "--out", out, *flags.split(), says=says)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epochs = 3", "epochs"),
        ("[training]\nepochs = 'three'", "training.epochs"),
        ("[training]\nepoch = 3", "training.epoch"),
        ("[model]\nname = 'transformer'", "model"),
        ("[model]\nname = 'mlp'\nprior = 'none'", "prior"),
        ("[loss.organ_weight]\ntail = 2.0", "tail"),
        ("[training", "TOML"),
        ("[optimizer]\nlr = inf", "optimizer.lr"),
    ],
)
def test_wrong_configuration_files(text: str, says: str, t1_dataset: Path, capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(text)
    refused(capsys, "train", t1_dataset, "--out", tmp_path / "run", "--config", file, says=says)
    assert not (tmp_path / "run").exists()


def test_configuration_file_that_is_no_text(t1_dataset: Path, capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_bytes(b"\xff\xfe\x00")
    refused(capsys, "train", t1_dataset, "--out", tmp_path / "run", "--config", file, says="TOML")


# --- origin .npz


def _set(name: str, index: object, value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][index] = value  # type: ignore[index]

    return change


def _rows(n: int) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        for name in arrays:
            if name != "time_points":
                arrays[name] = arrays[name][:n]

    return change


def _replace(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = make(arrays[name])

    return change


NPZ_CASES: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "missing array": (lambda a: a.pop("doses"), "doses"),
    "negative concentration": (_set("concentrations", (3, 2, 5), -1.0), "concentrations[3, 2, 5]"),
    "infinite concentration": (_set("concentrations", (3, 2, 5), np.inf), "concentrations[3, 2, 5]"),
    "zero dose": (_set("doses", 0, 0.0), "dose"),
    "NaN dose": (_set("doses", 0, np.nan), "dose"),
    "NaN clearance": (_set("clearances_hepatic", 1, np.nan), "clearances_hepatic[1]"),
    "negative clearance": (_set("clearances_renal", 1, -2.0), "clearances_renal[1]"),
    "zero Kp": (_set("partition_coeffs", (0, 1), 0.0), "partition_coeffs[0, 1]"),
    "unsorted times": (_replace("time_points", lambda t: t[::-1].copy()), "time"),
    "repeated time": (_set("time_points", 1, 0.0), "time"),
    "negative time": (_set("time_points", 0, -1.0), "time"),
    "zero curves": (_rows(0), ""),
    "one curve": (_rows(1), "split"),
    "fewer doses than curves": (_replace("doses", lambda d: d[:-1]), "doses"),
    "thirteen organs": (_replace("concentrations", lambda c: c[:, :13]), "concentrations"),
    "thirteen partition coefficients": (_replace("partition_coeffs", lambda c: c[:, :13]), "partition_coeffs"),
    "one time too few": (_replace("time_points", lambda t: t[:-1]), ""),
    "text doses": (_replace("doses", lambda d: d.astype(str)), "doses"),
    "complex concentrations": (_replace("concentrations", lambda c: c.astype(complex)), "concentrations"),
    "object array": (_replace("doses", lambda d: d.astype(object)), "doses"),
}


@pytest.mark.parametrize("case", NPZ_CASES)
def test_wrong_npz(case: str, origin: Path, capsys: Capture, tmp_path: Path) -> None:
    with np.load(origin) as archive:
        arrays = {name: archive[name] for name in archive.files}
    change, says = NPZ_CASES[case]
    change(arrays)
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    refused(capsys, "train", path, "--out", tmp_path / "run", "--model", "loglinear-rates", says=says)
    assert not (tmp_path / "run").exists()


def test_nothing_in_an_npz_is_unpickled(origin: Path, capsys: Capture, tmp_path: Path) -> None:
    """An object array whose pickle would make a file: refused, and the file is not there."""
    trap = tmp_path / "trap"

    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return os.mkdir, (str(trap),)

    with np.load(origin) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["doses"] = np.asarray([Bomb()] * len(arrays["doses"]), dtype=object)
    path = tmp_path / "bomb.npz"
    np.savez(path, **arrays)
    refused(capsys, "train", path, "--out", tmp_path / "run", says="doses")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Bomb()))  # the trap itself works
    assert trap.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"plain text\n"])
def test_npz_that_is_none(content: bytes, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    refused(capsys, "train", path, "--out", tmp_path / "run", says="bad.npz")
    refused(capsys, "info", path, says="bad.npz")


def test_npz_cut_short(origin: Path, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "short.npz"
    path.write_bytes(origin.read_bytes()[:-2000])
    refused(capsys, "train", path, "--out", tmp_path / "run", says="short.npz")


# --- dataset folders


@pytest.fixture
def broken(t1_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset to spoil."""
    return Path(shutil.copytree(t1_dataset, tmp_path / "broken"))


def _shard(folder: Path) -> Path:
    return min(folder.glob("*.arrow"))


def _truncate(folder: Path) -> None:
    shard = _shard(folder)
    shard.write_bytes(shard.read_bytes()[:-100])


def _edit_manifest(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _overwrite(folder: Path) -> None:
    """One changed bit among the values: size, columns and rows stay as they were."""
    shard = _shard(folder)
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)


DATASET_CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated shard": (_truncate, "shard-00000.arrow"),
    "overwritten shard": (_overwrite, "shard-00000.arrow: shard has changed"),
    "missing shard": (lambda f: _shard(f).unlink(), "shard-00000.arrow"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json"),
    "manifest is no JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json"),
    "newer schema": (_edit_manifest(schema_version=999), "999"),
    "unknown topology": (_edit_manifest(topology="torus"), "torus"),
    "unknown key": (_edit_manifest(surprise=1), "surprise"),
    "wrong number of curves": (_edit_manifest(n_curves=41), "41"),
}


@pytest.mark.parametrize("case", DATASET_CASES)
def test_wrong_dataset_folder(case: str, broken: Path, capsys: Capture, tmp_path: Path) -> None:
    change, says = DATASET_CASES[case]
    change(broken)
    refused(capsys, "train", broken, "--out", tmp_path / "run", says=says)
    assert not (tmp_path / "run").exists()


def test_simulate_does_not_overwrite(t1_dataset: Path, capsys: Capture) -> None:
    before = sorted(p.name for p in t1_dataset.iterdir())
    refused(capsys, "simulate", t1_dataset, "--n", "3", says=str(t1_dataset))
    assert sorted(p.name for p in t1_dataset.iterdir()) == before


# --- tidy tables


@pytest.fixture(scope="module")
def tidy(t1_table: CurveTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tidy") / "good.csv"
    write_tidy(t1_table.take([0, 1, 2]), path)
    return path


def _rewrite(source: Path, out: Path, change: Callable[[list[str], list[list[str]]], None]) -> None:
    import csv

    with source.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    change(header, rows)
    with out.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _cell(column: str, value: str, event: str = "observation") -> Callable[[list[str], list[list[str]]], None]:
    """Set ``column`` in the tenth row of an event."""

    def change(header: list[str], rows: list[list[str]]) -> None:
        matching = [r for r in rows if r[header.index("event")] == event]
        matching[min(9, len(matching) - 1)][header.index(column)] = value

    return change


def _drop(column: str) -> Callable[[list[str], list[list[str]]], None]:
    def change(header: list[str], rows: list[list[str]]) -> None:
        at = header.index(column)
        for row in [header, *rows]:
            del row[at]

    return change


TIDY_CASES: dict[str, tuple[Callable[[list[str], list[list[str]]], None], str]] = {
    "unknown organ": (_cell("organ", "tail"), "tail"),
    "unknown event": (_cell("event", "snack"), "snack"),
    "unknown matrix": (_cell("matrix", "soup"), "soup"),
    "negative concentration": (_cell("conc", "-1"), "conc"),
    "text concentration": (_cell("conc", "much"), "much"),
    "negative time": (_cell("time", "-1"), "time"),
    "empty time": (_cell("time", ""), "time"),
    "unknown unit": (_cell("conc_unit", "furlong"), "furlong"),
    "unit of another kind": (_cell("conc_unit", "hour"), "hour"),
    "no unit": (_cell("conc_unit", ""), "conc_unit"),
    "no unit column": (_drop("conc_unit"), "conc_unit"),
    "no event column": (_drop("event"), "event"),
    "oral dose": (_cell("route", "oral", "dose"), "oral"),
    "negative dose": (_cell("dose", "-5", "dose"), "dose"),
}


@pytest.mark.parametrize("case", TIDY_CASES)
def test_wrong_tidy_table(case: str, tidy: Path, capsys: Capture, tmp_path: Path) -> None:
    change, says = TIDY_CASES[case]
    path = tmp_path / "bad.csv"
    _rewrite(tidy, path, change)
    refused(capsys, "convert", path, tmp_path / "out", says=says)
    assert not (tmp_path / "out").exists()


def test_molar_units_need_a_molecular_weight(tidy: Path, capsys: Capture, tmp_path: Path) -> None:
    def molar(header: list[str], rows: list[list[str]]) -> None:
        for row in rows:
            if row[header.index("conc_unit")]:
                row[header.index("conc_unit")] = "umol/L"
            if "mw_g_mol" in header:
                row[header.index("mw_g_mol")] = ""

    path = tmp_path / "molar.csv"
    _rewrite(tidy, path, molar)
    refused(capsys, "convert", path, tmp_path / "out", says="mw_g_mol")


@pytest.mark.parametrize(("name", "content"), [("a.csv", b""), ("a.csv", b"\xff\xfe\x00"), ("a.parquet", b"PAR1")])
def test_tables_that_are_none(name: str, content: bytes, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refused(capsys, "train", path, "--out", tmp_path / "run", says=name)
    refused(capsys, "info", path, says=name)


def test_data_of_unknown_kind(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "data.xlsx"
    path.write_text("x")
    refused(capsys, "train", path, "--out", tmp_path / "run", says="data.xlsx")
    refused(capsys, "info", path, says="data.xlsx")
    refused(capsys, "info", tmp_path, says="folder")


# --- checkpoints and runs


def test_checkpoint_of_another_model(runs: Path, t1_dataset: Path, capsys: Capture, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(runs / "mlp", tmp_path / "mixed"))
    for name in ("best", "last"):
        shutil.copy(runs / "loglinear" / name / "model.safetensors", mixed / name / "model.safetensors")
    refused(capsys, "evaluate", mixed, t1_dataset, says="model")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("state.json", "{", "state.json"),
        ("state.json", "[]", "state.json"),
        ("state.json", '{"schema_version": 999}', "999"),
        ("model.safetensors", "short", "model.safetensors"),
    ],
)
def test_spoiled_checkpoint(
    name: str, content: str, says: str, runs: Path, t1_dataset: Path, capsys: Capture, tmp_path: Path
) -> None:
    spoiled = Path(shutil.copytree(runs / "loglinear", tmp_path / "spoiled"))
    for checkpoint in ("best", "last"):
        (spoiled / checkpoint / name).write_text(content)
    refused(capsys, "evaluate", spoiled, t1_dataset, says=says)


def test_missing_weights(runs: Path, t1_dataset: Path, capsys: Capture, tmp_path: Path) -> None:
    spoiled = Path(shutil.copytree(runs / "loglinear", tmp_path / "spoiled"))
    for checkpoint in ("best", "last"):
        (spoiled / checkpoint / "model.safetensors").unlink()
    refused(capsys, "evaluate", spoiled, t1_dataset, says="model.safetensors")


def test_overwritten_data_is_not_judged_or_resumed_on(
    runs: Path, t1_dataset: Path, capsys: Capture, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(t1_dataset, tmp_path / "changed"))
    _overwrite(changed)
    says = "shard-00000.arrow: shard has changed"
    refused(capsys, "evaluate", runs / "loglinear", changed, says=says)
    resumed = Path(shutil.copytree(runs / "loglinear", tmp_path / "resumed"))
    refused(capsys, "train", changed, "--out", resumed, "--resume", says=says)


def test_an_absent_device_is_one_line(
    runs: Path, t1_dataset: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    says = "--device is not available here (got cuda)"
    refused(capsys, "evaluate", runs / "loglinear", t1_dataset, "--device", "cuda", says=says)
    drug = tmp_path / "drug.toml"
    drug.write_text("name = 'a'\nmw_g_mol = 300\nlogp = 2\nfup = 0.5\ncl_total_l_h = 5\ndose_mg = 10\n")
    arguments = ("predict", runs / "loglinear", drug, "--out", tmp_path / "out.csv", "--device", "cuda")
    refused(capsys, *arguments, says=says)
    assert not (tmp_path / "out.csv").exists()


def test_evaluate_on_another_topology(runs: Path, capsys: Capture, tmp_path: Path) -> None:
    assert run(["simulate", str(tmp_path / "t2"), "--n", "4", "--task", "T2", "--quiet"]) == 0
    refused(capsys, "evaluate", runs / "loglinear", tmp_path / "t2", says="hub")


def test_evaluate_a_folder_that_is_no_run(t1_dataset: Path, capsys: Capture, tmp_path: Path) -> None:
    refused(capsys, "evaluate", tmp_path, t1_dataset, says=str(tmp_path))
    refused(capsys, "report", tmp_path, says=str(tmp_path))


def test_train_does_not_overwrite_a_run(runs: Path, t1_dataset: Path, capsys: Capture) -> None:
    before = (runs / "loglinear" / "best" / "model.safetensors").read_bytes()
    refused(capsys, "train", t1_dataset, "--out", runs / "loglinear", says="--resume")
    assert (runs / "loglinear" / "best" / "model.safetensors").read_bytes() == before


def test_resume_without_a_run(t1_dataset: Path, capsys: Capture, tmp_path: Path) -> None:
    refused(capsys, "train", t1_dataset, "--out", tmp_path / "none", "--resume", says="resume")


def test_resume_on_other_data(runs: Path, capsys: Capture, tmp_path: Path) -> None:
    assert run(["simulate", str(tmp_path / "other"), "--n", "40", "--seed", "9", "--quiet"]) == 0
    refused(capsys, "train", tmp_path / "other", "--out", runs / "loglinear", "--resume", says="data")


# --- predict


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = 'a'", "mw_g_mol"),
        ("name = 'a'\nmw_g_mol = 300\nlogp = 2\nfup = 1.5\ncl_total_l_h = 5", "fup"),
        ("name = 'a'\nmw_g_mol = -3\nlogp = 2\nfup = 0.5\ncl_total_l_h = 5", "mw_g_mol"),
        ("name = 'a'\nmw_g_mol = 300\nlogp = 2\nfup = 0.5\ncl_total_l_h = 5\ndose_mg = 5\nkp.tail = 2", "tail"),
        ("name = 'a'\nmw_g_mol = 300\nlogp = 2\nfup = 0.5\ncolour = 5", "colour"),
        ("name = 'a'\nmw_g_mol = 300\nlogp = 2\nfup = 0.5\ndose_mg = 5", "clint"),
        ("name = 'a'\nmw_g_mol = 300\nlogp = 2\nfup = 0.5\ncl_total_l_h = 5", "dose_mg"),
        ("name = 'a'\nmw_g_mol = 300\nlogp = 2\nfup = 0.5\ncl_total_l_h = 5\ndose_mg = -5", "dose"),
        ("name = ", "TOML"),
    ],
)
def test_wrong_drug_files(text: str, says: str, runs: Path, capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "drug.toml"
    file.write_text(text)
    refused(capsys, "predict", runs / "loglinear", file, "--out", tmp_path / "out.csv", says=says)
    assert not (tmp_path / "out.csv").exists()


def test_predict_needs_a_known_ending(runs: Path, capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "drug.toml"
    file.write_text("name = 'a'\nmw_g_mol = 300\nlogp = 2\nfup = 0.5\ncl_total_l_h = 5\n")
    refused(capsys, "predict", runs / "loglinear", file, "--out", tmp_path / "out.xlsx", says=".csv")


# --- convert


def test_convert_refuses(origin: Path, t1_dataset: Path, capsys: Capture, tmp_path: Path) -> None:
    refused(capsys, "convert", origin, tmp_path / "out.xlsx", says=".parquet")
    refused(capsys, "convert", origin, t1_dataset, says="exists already")
    refused(capsys, "convert", origin, origin, says="exists already")


# --- the system


def test_a_full_or_forbidden_place_is_one_line(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refused(capsys, "simulate", tmp_path / "file" / "out", "--n", "3", says="", code=1)
    assert "file" in line


def test_debug_shows_the_traceback(capsys: Capture) -> None:
    assert run(["info", "missing", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.strip().splitlines()[-1].startswith("perfuse: error: ")


def test_an_unforeseen_failure_is_one_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("perfuse.info.describe", fail)
    line = refused(capsys, "info", ".", says="ZeroDivisionError: by zero", code=1)
    assert "--debug" in line


def test_interrupt_and_closed_pipe(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("perfuse.info.describe", interrupt)
    refused(capsys, "info", ".", says="interrupted", code=130)
    line = f"{sys.executable} -m perfuse train --help | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_as_a_program(tmp_path: Path) -> None:
    missing = tmp_path / "missing.npz"
    done = subprocess.run(
        [sys.executable, "-m", "perfuse", "train", str(missing), "--out", str(tmp_path / "run")],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "missing.npz" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_terminated_simulation_can_be_continued(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "perfuse", "simulate", str(tmp_path / "d"), "--n", "20000", "--shard-size", "512",
        "--quiet",
    ]  # fmt: skip
    work = tmp_path / ".d.simulating"
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 60
        while not any(work.rglob("notes/*.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert any(work.rglob("notes/*.json"))
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors.splitlines() == [
        "perfuse: finished shards are kept: the same command continues from there",
        "perfuse: error: stopped by SIGTERM",
    ]
    assert list(tmp_path.iterdir()) == [work]
    assert not (work / "lock").exists()
    done = subprocess.run([*command[:-1]], capture_output=True, text=True, timeout=120, check=True)
    assert "from an earlier run" in done.stdout
    assert [f.name for f in tmp_path.iterdir()] == ["d"]

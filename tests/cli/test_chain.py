"""The whole chain by its own command line, on a tiny configuration."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from perfuse.cli import run
from perfuse.config import load_config
from perfuse.data.sources import open_source, source_hash
from perfuse.pk.physiology import ORGANS

JSON_KEYS = {
    "gmfe", "within_1_25", "within_1_5", "within_2", "r2", "rmse", "mae", "mape", "n_curves", "n_values", "per_organ",
    "windows", "exposure", "baselines", "beats_baselines",
}  # fmt: skip
DRUG = """
name = "midazolam"
dose_mg = 5.0
mw_g_mol = 325.8
logp = 3.9
pka_base = [6.0]
fup = 0.03
bp_ratio = 0.55
clint_ul_min_million_cells = 28.0
"""


def perfuse(*arguments: str | Path) -> None:
    assert run([str(a) for a in arguments]) == 0


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """simulate, train, evaluate, report; everything later tests look at."""
    folder = tmp_path_factory.mktemp("chain")
    data, out = folder / "data", folder / "run"
    perfuse("simulate", data, "--n", "60", "--task", "T2", "--seed", "3", "--shard-size", "32", "--quiet")
    perfuse("train", data, "--out", out, "--hidden", "8", "--epochs", "150", "--batch-size", "16", "--quiet")
    perfuse("evaluate", out, data, "--out", folder / "evaluation", "--json", folder / "metrics.json", "--quiet")
    perfuse("report", out)
    return folder


def test_the_run_folder(chain: Path) -> None:
    out = chain / "run"
    assert {"best", "last", "config.toml", "metrics.jsonl", "report.html", "tensorboard"} <= {
        p.name for p in out.iterdir()
    }
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(151))  # 0 is what Gauss-Newton found
    assert {"step", "train_loss", "val_loss", "lr", "grad_norm", "train_curves_per_s", "time_s"} <= set(lines[0])
    assert min(line["val_loss"] for line in lines) < 1e-4


def test_the_stored_configuration_is_a_configuration(chain: Path) -> None:
    stored = load_config(chain / "run" / "config.toml")
    assert (stored.model.name, stored.training.epochs, stored.training.batch_size) == ("flux", 150, 16)
    assert tomllib.loads((chain / "run" / "config.toml").read_text())["model"]["hidden"] == 8


def test_metrics(chain: Path) -> None:
    metrics = json.loads((chain / "metrics.json").read_text())
    assert set(metrics) >= JSON_KEYS
    assert metrics["n_curves"] == 6  # a tenth of 60 compounds
    assert set(metrics["per_organ"]) == set(ORGANS)
    assert set(metrics["exposure"]) == {"cmax", "auc", "half_life"}
    assert metrics["gmfe"] < 1.01  # people of 40-120 kg are log-linear in their physiology
    assert {"mean-curve", "5-nearest", "log-linear"} <= set(metrics["baselines"])
    assert metrics["beats_baselines"] == all(
        metrics["gmfe"] < metrics["baselines"][name]["gmfe"] for name in ("mean-curve", "5-nearest", "log-linear")
    )


def test_the_report_works_offline(chain: Path) -> None:
    html = (chain / "run" / "report.html").read_text(encoding="utf-8")
    assert len(html) > 10_000
    outside_scripts = re.sub(r"(<script[^>]*>).*?</script>", r"\1", html, flags=re.DOTALL)
    for link in ("src=", "<link", "@import", "<iframe"):
        assert link not in outside_scripts


def test_predict_a_drug_and_a_table_of_doses(chain: Path) -> None:
    drug, out = chain / "drug.toml", chain / "drug.csv"
    drug.write_text(DRUG)
    perfuse("predict", chain / "run", drug, "--out", out)
    table = pl.read_csv(out)
    assert set(ORGANS) | {"plasma"} >= set(table["organ"].unique())
    assert (table["conc_mg_l"] >= 0).all()

    doses, out = chain / "doses.csv", chain / "doses.parquet"
    doses.write_text(
        "name,mw_g_mol,logp,fup,cl_total_l_h,dose_mg,dose_time_h\nA,300,2,0.2,5,100,0\nA,300,2,0.2,5,100,12\n"
    )
    perfuse("predict", chain / "run", doses, "--out", out)
    assert len(pl.read_parquet(out)) > 0


def test_info_of_everything(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, kind in ((chain / "run", "run"), (chain / "run" / "best", "checkpoint"), (chain / "data", "dataset")):
        perfuse("info", path)
        assert f"kind: {kind}" in capsys.readouterr().out
        perfuse("info", path, "--json")
        assert json.loads(capsys.readouterr().out)["kind"] == kind


def test_info_tells_a_changed_checkpoint(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    copy = Path(shutil.copytree(chain / "run" / "best", tmp_path / "copy"))
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    perfuse("info", copy, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["model.safetensors"]["sha256"].startswith("NOT")
    assert facts["optimizer.safetensors"]["sha256"] == "as in state.json"


def test_convert_there_and_back(t1_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(t1_dataset)
    for name in ("a.npz", "a.csv", "a.parquet"):
        perfuse("convert", t1_dataset, tmp_path / name)
        perfuse("convert", tmp_path / name, tmp_path / name.replace(".", "-"))
        back = open_source(tmp_path / name.replace(".", "-"))
        assert len(back) == len(source)
        for column in ("conc_mg_l", "kp", "elimination_l_h", "dose_mg", "time_h"):
            np.testing.assert_allclose(back.column(column), source.column(column), rtol=1e-12)
    assert "40 curves" in capsys.readouterr().out


def test_convert_keeps_a_dataset_bit_for_bit(t1_dataset: Path, tmp_path: Path) -> None:
    perfuse("convert", t1_dataset, tmp_path / "copy")
    rows = np.arange(40)
    assert source_hash(open_source(tmp_path / "copy").take(rows)) == source_hash(open_source(t1_dataset).take(rows))


def test_print_config_trains_nothing(
    t1_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    perfuse("train", t1_dataset, "--model", "mlp", "--hidden", "16", "--lr", "0.5", "--print-config")
    shown = capsys.readouterr().out
    (tmp_path / "shown.toml").write_text(shown)
    config = load_config(tmp_path / "shown.toml")
    assert (config.model.name, config.optimizer.lr, config.training.batch_size) == ("mlp", 0.5, 128)
    assert {p.name for p in tmp_path.iterdir()} == {"shown.toml"}


def test_simulate_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("n = 5\ntask = 'T2'\nseed = 4\n")
    perfuse("simulate", tmp_path / "a", "--config", tmp_path / "s.toml", "--quiet")
    perfuse("simulate", tmp_path / "b", "--config", tmp_path / "s.toml", "--n", "3", "--quiet")
    a, b = open_source(tmp_path / "a"), open_source(tmp_path / "b")
    assert (len(a), len(b), a.topology.name) == (5, 3, "circulation")
    np.testing.assert_array_equal(a.column("conc_mg_l")[:3], b.column("conc_mg_l"))


def test_resume_continues(t1_dataset: Path, tmp_path: Path) -> None:
    """Two epochs, then two more of four, equals four at once."""
    base = ["--model", "loglinear-rates", "--batch-size", "8", "--quiet", "--no-tensorboard", "--schedule", "constant"]
    base += ["--warmup-steps", "0"]  # a warm-up is part of the length that is planned at the start
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    perfuse("train", t1_dataset, "--out", whole, "--epochs", "4", *base)
    perfuse("train", t1_dataset, "--out", parts, "--epochs", "2", *base)
    perfuse("train", t1_dataset, "--out", parts, "--epochs", "4", "--resume", "--quiet")
    assert (whole / "last" / "model.safetensors").read_bytes() == (parts / "last" / "model.safetensors").read_bytes()

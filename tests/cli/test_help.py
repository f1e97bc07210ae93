"""Help, version, and the promise that the documentation knows every option."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

import perfuse
from perfuse.cli import app, run
from perfuse.cli_options import FLAG_KEYS, TrainOptions, build_config, flag_of
from perfuse.config import MODEL_CONFIGS, RunConfig, resolve

COMMANDS = (
    "demo",
    "simulate",
    "solve",
    "nca",
    "train",
    "tune",
    "calibrate",
    "evaluate",
    "predict",
    "report",
    "export",
    "info",
    "convert",
    "runs",
)
DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_help_within_a_second() -> None:
    """The best of three, so that a busy machine does not decide."""
    best = float("inf")
    for _ in range(3):
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "perfuse", "--help"], capture_output=True, text=True, check=True)
        best = min(best, time.monotonic() - began)
    assert best < 1.0
    for command in COMMANDS:
        assert command in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"perfuse {command}" in capsys.readouterr().out


def test_commands_are_exactly_those_that_work() -> None:
    assert {name for name in app if not name.startswith("-")} == set(COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == perfuse.__version__


def test_every_train_flag_reaches_a_key() -> None:
    special = {"model", "organ_weight", "prior", "hidden", "layers", "dropout", "knots", "steps", "heads"}
    assert {f.name for f in fields(TrainOptions)} == set(FLAG_KEYS) | special
    for key in FLAG_KEYS.values():
        node = RunConfig()
        for part in key.split("."):
            assert part in type(node).model_fields
            node = getattr(node, part)


@pytest.mark.parametrize(
    ("flag", "value", "key", "expected"),
    [
        ("lr", 0.5, "optimizer.lr", 0.5),
        ("precision", "bf16", "training.precision", "bf16"),
        ("tensorboard", False, "training.tensorboard", False),
        ("clip", 0.0, "optimizer.clip", 0.0),
        ("split", "group", "split.kind", "group"),
        ("ema", 0.9, "training.ema_decay", 0.9),
        ("hidden", 16, "model.hidden", 16),
        ("organ_weight", ["liver=7"], "loss.organ_weight", {"blood": 2.0, "liver": 7.0, "kidney": 2.0, "brain": 2.0}),
    ],
)
def test_a_flag_wins_over_the_file(flag: str, value: object, key: str, expected: object, tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text("[optimizer]\nlr = 0.25\nclip = 3.0\n[training]\nprecision = '32'\nepochs = 7\n")
    config = build_config(TrainOptions(**{flag: value}), file)  # type: ignore[arg-type]
    node: object = config
    for part in key.split("."):
        node = getattr(node, part)
    assert node == expected
    assert config.training.epochs == 7  # the rest of the file stays


def test_another_model_drops_the_settings_of_the_files_model(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text("[model]\nname = 'flux'\nhidden = 8\nprior = 'mechanistic'\n")
    assert build_config(TrainOptions(), file).model == MODEL_CONFIGS["flux"](hidden=8, prior="mechanistic")
    assert build_config(TrainOptions(model="mlp"), file).model == MODEL_CONFIGS["mlp"]()
    assert build_config(TrainOptions(hidden=16), file).model == MODEL_CONFIGS["flux"](hidden=16, prior="mechanistic")


def test_the_documentation_lists_every_option() -> None:
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    keys = [
        f"{section}.{name}"
        for section in ("split", "loss", "optimizer", "schedule", "training")
        for name in type(getattr(RunConfig(), section)).model_fields
    ]
    keys += sorted({f"model.{name}" for config in MODEL_CONFIGS.values() for name in config.model_fields})
    assert [key for key in ["seed", *keys] if f"`{key}`" not in text] == []
    assert [flag_of(f.name) for f in fields(TrainOptions) if f"`{flag_of(f.name)}`" not in text] == []


def shown(value: object) -> str:
    """A default as the documentation writes it."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def rows_of(text: str) -> dict[str, list[str]]:
    """First cell -> cells, of every table row that begins with a code word."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row for row in rows}


def test_the_documentation_shows_the_real_defaults_and_flags() -> None:
    rows = rows_of((DOCS / "training.md").read_text(encoding="utf-8").split("\n## Model")[0])
    flags = {key: flag_of(name) for name, key in FLAG_KEYS.items()}
    for key in rows:
        node: object = RunConfig()
        for part in key.split("."):
            node = getattr(node, part)
        if not isinstance(node, dict):
            assert rows[key][1] == shown(node), key
            assert rows[key][2] == (f"`{flags[key]}`" if key in flags else ""), key
    assert set(flags.values()) >= {"--lr", "--seed"}


def test_the_documentation_shows_each_models_own_defaults() -> None:
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    rows = rows_of(text.split("\n## Model")[1].split("\n## ")[0])
    assert len(rows) > 8
    for column, name in enumerate(MODEL_CONFIGS, start=2):
        config = resolve(RunConfig.model_validate({"model": {"name": name}}))
        for key, row in rows.items():
            section, _, field = key.partition(".")
            if field == "name":
                continue
            if field == "epochs":  # many curves: the number of passes; one curve: as many passes as steps
                many, one = (resolve(config, n).training.epochs for n in (10**9, 1))
                assert row[column] == f"{many} (≥ {one} steps)", name
                continue
            value = getattr(getattr(config, section), field, "")
            assert row[column] == (shown(value) if value != "" else ""), (name, key)

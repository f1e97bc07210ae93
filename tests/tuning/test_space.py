from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from perfuse.config import MODEL_CONFIGS, RunConfig, parse_config, resolve
from perfuse.errors import InputError
from perfuse.tuning.space import Choices, Range, base_values, default_space, load_space, merged, parse_space

MLP = parse_config({"model": {"name": "mlp"}})


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("", "space names no key"),
        ("optimiser.lr = { low = 1e-3, high = 1 }", "optimiser is no known section"),
        ("optimizer = 3", "optimizer is no table"),
        ("optimizer.learning = { low = 1, high = 2 }", "optimizer.learning is no known key"),
        ("model.heads = { choices = [2, 4] }", "model.heads is no known key of mlp"),
        ("seed = { choices = [1, 2] }", "the luckiest would win"),
        ("split.kind = { choices = ['random', 'group'] }", "same validation curves"),
        ("loss.kind = { choices = ['mse', 'log1p'] }", "cannot be compared"),
        ("model.name = { choices = ['mlp', 'lstm'] }", "one sweep is of one model"),
        ("training.max_minutes = { low = 1, high = 2 }", "use --trial-minutes"),
        ("training.device = { choices = ['cpu', 'cuda'] }", "does not touch what is learnt"),
        ("optimizer.lr = 0.1", "is neither range nor choices"),
        ("optimizer.lr = { low = 1e-3 }", "is neither range nor choices"),
        ("optimizer.lr = { low = 1e-3, high = 1, lo = 3 }", "is neither range nor choices"),
        ("optimizer.lr = { low = 1e-3, high = 1, choices = [0.1, 0.2] }", "is neither range nor choices"),
        ("optimizer.lr = { low = 1e-3, high = 11 }", "optimizer.lr is not allowed (got 11)"),
        ("optimizer.lr = { low = 0.0, high = 1, log = true }", "optimizer.lr is not allowed (got 0)"),
        ("optimizer.weight_decay = { low = 0.0, high = 1, log = true }", "has no logarithm"),
        ("optimizer.lr = { low = 0.1, high = 0.1 }", "low is not below high"),
        ("optimizer.lr = { low = 0.1, high = inf }", "is not finite"),
        ("optimizer.lr = { low = '1', high = 2 }", "low is of a wrong type"),
        ("optimizer.lr = { low = 0.1, high = 0.2, log = 1 }", "log is of a wrong type"),
        ("model.layers = { low = 1, high = 2.5 }", "allowed: a whole number"),
        ("model.layers = { low = true, high = 3 }", "low is of a wrong type"),
        ("model.layers = { low = 0, high = 3 }", "model.layers is not allowed (got 0)"),
        ("model.layers = { choices = [1] }", "is no list of 2 to 100 values"),
        ("model.layers = { choices = 3 }", "is no list of 2 to 100 values"),
        ("model.layers = { choices = [1, 99] }", "model.layers is not allowed (got 99)"),
        ("model.layers = { choices = [1, [2]] }", "holds what is no plain value"),
        ("model.layers = { choices = [2, 2] }", "holds a value twice"),
        ("schedule.kind = { low = 1, high = 2 }", "takes no numbers"),
        ("schedule.kind = { choices = ['cosine', 'linear'] }", "schedule.kind is not allowed (got linear)"),
    ],
)
def test_bad_spaces_are_one_clear_line(toml: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(toml)
    with pytest.raises(InputError) as caught:
        load_space(file, MLP)
    assert message in str(caught.value) and str(file) in str(caught.value)


def test_a_space_from_toml() -> None:
    text = """
    [model]
    hidden = { choices = [8, 16] }
    [optimizer]
    lr = { low = 1e-4, high = 1, log = true }
    [schedule]
    kind = { choices = ["cosine", "constant"] }
    warmup_steps = { low = 0, high = 50 }
    """
    space = parse_space(tomllib.loads(text), MLP)
    assert space.parameters == (
        Choices("model.hidden", (8, 16)), Range("optimizer.lr", 1e-4, 1.0, True, False),
        Choices("schedule.kind", ("cosine", "constant")), Range("schedule.warmup_steps", 0, 50, False, True),
    )  # fmt: skip
    assert parse_space(tomllib.loads(space.toml()), MLP) == space
    good: dict[str, Any] = {
        "model.hidden": 8, "optimizer.lr": 0.5, "schedule.kind": "cosine", "schedule.warmup_steps": 50,
    }  # fmt: skip
    assert space.contains(good)
    for bad in ({"model.hidden": 9}, {"optimizer.lr": 2.0}, {"schedule.warmup_steps": 1.5}, {"seed": 1}):
        assert not space.contains(good | bad)
    assert not space.contains({"model.hidden": 8})


@pytest.mark.parametrize("model", list(MODEL_CONFIGS))
@pytest.mark.parametrize("n_train", [80, 100_000])
def test_default_spaces_hold_the_base_and_only_what_runs(model: str, n_train: int) -> None:
    base = resolve(parse_config({"model": {"name": model}}), n_train)
    space = default_space(base)
    assert parse_space(space.plain(), base) == space
    values = base_values(space, base)
    assert set(values) == {p.key for p in space.parameters}
    assert resolve(merged(RunConfig(model=base.model), values), n_train).optimizer == base.optimizer
    for parameter in space.parameters:
        ends = (parameter.low, parameter.high) if isinstance(parameter, Range) else parameter.values
        for value in ends:
            merged(base, {parameter.key: value})


def test_a_default_space_widens_to_the_base() -> None:
    base = resolve(parse_config({"model": {"name": "mlp", "hidden": 100}, "optimizer": {"lr": 0.2}}), 80)
    space = {p.key: p for p in default_space(base).parameters}
    assert space["model.hidden"] == Choices("model.hidden", (64, 100, 128, 256, 512))
    assert space["optimizer.lr"] == Range("optimizer.lr", 5e-4, 0.2, True)


def test_widths_that_heads_do_not_divide_are_left_out() -> None:
    base = resolve(parse_config({"model": {"name": "recurrent", "hidden": 64, "heads": 64}}), 80)
    assert {p.key: p for p in default_space(base).parameters}["model.hidden"] == Choices("model.hidden", (64, 128))


def test_merging_leaves_the_rest_unset() -> None:
    config = merged(MLP, {"optimizer.lr": 0.1, "model.hidden": 16})
    assert (config.optimizer.lr, config.model.hidden, config.training.epochs) == (0.1, 16, None)  # type: ignore[union-attr]
    assert config.training.model_fields_set == set()
    with pytest.raises(InputError, match="trial: model.recurrent.*multiple of heads"):
        merged(parse_config({"model": {"name": "recurrent"}}), {"model.hidden": 31})

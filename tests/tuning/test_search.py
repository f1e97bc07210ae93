"""The sampler and early termination: what they answer, and that a resumed sweep hears the same."""

from __future__ import annotations

import math
import sys

import pytest

from perfuse.config import parse_config
from perfuse.errors import InputError
from perfuse.tuning.halving import Halving
from perfuse.tuning.space import Values, parse_space
from perfuse.tuning.suggestions import STARTUP_TRIALS, Suggestions

SPACE = parse_space(
    {
        "model": {"hidden": {"choices": [8, 16, 32]}, "layers": {"low": 1, "high": 4}},
        "optimizer": {"lr": {"low": 1e-4, "high": 1.0, "log": True}},
    },
    parse_config({"model": {"name": "mlp"}}),
)
FIRST: Values = {"model.hidden": 8, "optimizer.lr": 0.01}


def outcome(number: int, values: Values) -> tuple[float | None, float | None]:
    """A bowl around lr = 0.01; every fifth fails, every third is terminated early."""
    loss = (math.log10(float(values["optimizer.lr"])) + 2) ** 2 + float(values["model.layers"])
    return (None, None) if number % 5 == 4 else (loss, 0.1 if number % 3 == 2 else None)


def ask_all(suggestions: Suggestions, start: int, end: int) -> list[Values]:
    """Ask and tell, one at a time."""
    found = []
    for number in range(start, end):
        asked, values = suggestions.ask()
        assert asked == number
        suggestions.tell(number, *outcome(number, values))
        found.append(values)
    return found


def test_suggestions_lie_in_the_space_and_begin_with_the_base() -> None:
    pytest.importorskip("optuna", reason="optuna is an extra")
    values = ask_all(Suggestions(SPACE, 7, FIRST), 0, 15)
    assert all(SPACE.contains(v) for v in values)
    assert values[0] | FIRST == values[0]
    assert len({v["optimizer.lr"] for v in values}) == 15


@pytest.mark.parametrize("kept", [1, 4, 9])
def test_a_resumed_search_suggests_what_an_uninterrupted_one_would(kept: int) -> None:
    pytest.importorskip("optuna", reason="optuna is an extra")
    whole = ask_all(Suggestions(SPACE, 7, FIRST), 0, 12)
    again = Suggestions(SPACE, 7, FIRST)
    for number in range(kept):
        assert again.restore_ended(whole[number], *outcome(number, whole[number])) == number
    assert again.restore_running(whole[kept]) == kept
    again.tell(kept, *outcome(kept, whole[kept]))
    assert ask_all(again, kept + 1, 12) == whole[kept + 1 :]
    assert ask_all(Suggestions(SPACE, 8, FIRST), 0, 3)[1:] != whole[1:3]


def test_the_search_learns_where_it_is_good() -> None:
    """The mean loss of later trials is below half of that of those drawn at random."""
    pytest.importorskip("optuna", reason="optuna is an extra")
    suggestions, losses = Suggestions(SPACE, 1, {}), []
    for number in range(36):
        _, values = suggestions.ask()
        losses.append((math.log10(float(values["optimizer.lr"])) + 2) ** 2)
        suggestions.tell(number, losses[-1])
    assert sum(losses[-12:]) / 12 < sum(losses[:STARTUP_TRIALS]) / STARTUP_TRIALS / 2


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"perfuse tune needs the package optuna.*perfuse\[cluster\]"):
        Suggestions(SPACE, 0, {})


def test_the_first_trials_and_the_best_third_go_on() -> None:
    halving = Halving()
    losses = [5.0, 4.0, 6.0, 3.0, 4.5, math.nan, 2.0, 2.5]
    assert [halving.goes_on(n, 0, loss) for n, loss in enumerate(losses)] == [
        True, True, False, True, False, False, True, True
    ]  # fmt: skip
    assert halving.goes_on(2, 1, 6.0), "a rung of its own"


def test_a_decision_is_remembered_and_replayed() -> None:
    halving, again = Halving(), Halving()
    decisions = [halving.goes_on(n, 0, loss) for n, loss in enumerate([1.0, 2.0, 3.0])]
    assert not halving.goes_on(2, 0, 0.1)
    for n, loss in enumerate([1.0, 2.0, 3.0]):
        again.replay(n, 0, loss, decisions[n])
    assert [again.goes_on(n, 0, 0.5) for n in range(3)] == decisions
    assert again.goes_on(3, 0, 2.5) == halving.goes_on(3, 0, 2.5)


def test_switched_off_all_go_on() -> None:
    halving = Halving(enabled=False)
    assert all(halving.goes_on(n, 0, float(n)) for n in range(9))

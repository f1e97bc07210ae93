"""The plain sentences."""

import pytest

from perfuse.evaluation.metrics import Summary
from perfuse.evaluation.verdict import show_gmfe, show_percent, verdict


def summary(gmfe: float | None) -> Summary:
    return Summary(
        gmfe=gmfe, bias=gmfe, within_1_25=0.5, within_1_5=0.6, within_2=0.7, r2=None, r2_log=None, rmse=1.0, mae=1.0,
        mape=1.0, n_values=5,
    )  # fmt: skip


def say(
    model: float | None, baselines: dict[str, float], simulated: bool | None = True, chance: tuple[str, ...] = ()
) -> str:
    return verdict(
        "flux", summary(model), {n: summary(g) for n, g in baselines.items()}, n_curves=1, n_drugs=1, interval=None,
        scope="unseen curves", simulated=simulated, chance=chance,
    )  # fmt: skip


def test_it_names_what_wins() -> None:
    text = say(1.5, {"mean-curve": 2.6, "log-linear": 1.4, "loglinear-rates": 1.0004})
    assert "does NOT beat the trivial baselines: log-linear (1.400)" in text
    assert "does NOT beat loglinear-rates (1.00040)" in text and "on 1 curve of 1 drug" in text
    good = say(1.01, {"mean-curve": 2.6, "log-linear": 1.4, "loglinear-rates": 1.2})
    assert "beats every trivial baseline (best: log-linear, 1.400)" in good and "NOT" not in good
    assert "It beats loglinear-rates (1.200)" in good


def test_a_tie_is_no_win() -> None:
    assert "does NOT beat the trivial baselines" in say(1.4, {"log-linear": 1.4})
    for model, other in ((2.7580069, 2.758007), (2.758007, 2.7580069), (1.0000001, 1.0000002)):
        text = say(model, {"loglinear-rates": other}, chance=("loglinear-rates",))
        assert "does NOT beat loglinear-rates" in text
        assert text.endswith("without a network, does as well. Simulated data: not accuracy on people.")
    assert "It beats loglinear-rates" in say(1.0, {"loglinear-rates": 1.0002})


def test_differences_that_may_be_chance_are_named() -> None:
    text = say(1.3, {"log-linear": 1.4, "loglinear-rates": 1.5}, chance=("log-linear", "loglinear-rates"))
    assert "the difference from log-linear may be chance" in text and "from loglinear-rates may be chance" in text
    assert "does as well, within chance" in say(1.3, {"loglinear-rates": 1.2}, chance=("loglinear-rates",))
    assert "chance" not in say(1.3, {"log-linear": 1.4, "loglinear-rates": 1.2})


def test_kinds_of_data_are_named() -> None:
    assert say(1.1, {}).endswith("Simulated data: not accuracy on people.")
    assert say(1.1, {}, False).endswith("Measured human data.") and "imulated" not in say(1.1, {}, None)
    assert "nothing can be said" in say(None, {"log-linear": 1.4})


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0000012, "1.0000012"), (1.00041, "1.00041"), (1.052, "1.052"), (3.42, "3.420"), (123.4, "123"), (None, "n/a")],
)
def test_gmfe_has_the_digits_that_matter(value: float | None, text: str) -> None:
    assert show_gmfe(value) == text


@pytest.mark.parametrize(("value", "text"), [(1.0, "100.0"), (0.99999, "99.9"), (0.5, "50.0"), (None, "n/a")])
def test_hundred_per_cent_means_all(value: float | None, text: str) -> None:
    assert show_percent(value) == text

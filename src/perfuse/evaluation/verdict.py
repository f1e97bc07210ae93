"""One plain sentence or two: what the numbers say, and what they do not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perfuse.evaluation.metrics import Summary

TRIVIAL = ("mean-curve", "5-nearest", "log-linear")
NETWORK_FREE = "loglinear-rates"
SIMULATED = "simulated data: not accuracy on people"


def show_gmfe(value: float | None) -> str:
    """GMFE with as many digits as tell it from 1: 1.0000012, 1.00041, 1.052, 3.420, 120."""
    if value is None:
        return "n/a"
    if value < 1.01:
        return f"{value:.7f}" if value < 1.0001 else f"{value:.5f}"
    return f"{value:.3f}" if value < 10 else f"{value:.3g}"


def show_percent(value: float | None) -> str:
    """A fraction in per cent; 100 only when it is all."""
    if value is None:
        return "n/a"
    if 0.9995 <= value < 1:
        return "99.9"
    return f"{100 * value:.1f}"


_LEVEL = 1e-4
"""GMFEs that differ by no more than this share are level: a win must show in figures that somebody would print."""


def beats(model: Summary, other: Summary) -> bool:
    """True when the model's GMFE is below the other's, and not level with it."""
    if model["gmfe"] is None or other["gmfe"] is None:
        return False
    return model["gmfe"] < (1 - _LEVEL) * other["gmfe"]


def is_level(model: Summary, other: Summary) -> bool:
    """True when neither beats the other."""
    return not beats(model, other) and not beats(other, model)


def verdict(
    name: str,
    model: Summary,
    baselines: Mapping[str, Summary],
    *,
    chance: Collection[str] = (),
    n_curves: int,
    n_drugs: int,
    interval: list[float] | None,
    scope: str,
    simulated: bool | None,
) -> str:
    """What a reader should take away, in plain words.

    Args:
        name: The model's name.
        model: Its metrics.
        baselines: Metrics of every baseline that is available.
        chance: Baselines whose difference from the model may be chance, given the number of drugs.
        n_curves, n_drugs: What the metrics rest on.
        interval: 95 % interval of the GMFE over drugs.
        scope: Which curves those are.
        simulated: Whether the truth was simulated (None: unknown).
    """
    if model["gmfe"] is None:
        return f"{name}: no value at t > 0 and at or above the LOQ, so nothing can be said."
    where = f"{n_curves} {'curve' if n_curves == 1 else 'curves'} of {n_drugs} {'drug' if n_drugs == 1 else 'drugs'}"
    between = f", 95 % interval over drugs {show_gmfe(interval[0])}-{show_gmfe(interval[1])}" if interval else ""
    parts = [
        f"{name} has a GMFE of {show_gmfe(model['gmfe'])}{between}, and {show_percent(model['within_2'])} % of values "
        f"within 2-fold, on {where} ({scope})."
    ]
    trivial = {n: s for n, s in baselines.items() if n in TRIVIAL}
    winners = {n: s for n, s in trivial.items() if not beats(model, s)}
    if winners:
        listed = ", ".join(f"{n} ({show_gmfe(s['gmfe'])})" for n, s in winners.items())
        parts.append(f"It does NOT beat the trivial baselines: {listed}. Do not use this model on such data.")
    elif trivial:
        best = min(trivial, key=lambda n: trivial[n]["gmfe"] or float("inf"))
        parts.append(
            f"It beats every trivial baseline (best: {best}, {show_gmfe(trivial[best]['gmfe'])}){_doubt(best, chance)}."
        )
    else:
        parts.append("No trivial baseline was available to compare with.")
    if NETWORK_FREE in baselines:
        free = show_gmfe(baselines[NETWORK_FREE]["gmfe"])
        if beats(model, baselines[NETWORK_FREE]):
            doubt = _doubt(NETWORK_FREE, chance)
            parts.append(f"It beats {NETWORK_FREE} ({free}), one exponent per feature without a network{doubt}.")
        else:
            level = is_level(model, baselines[NETWORK_FREE])
            well = "as well" if level else "as well, within chance" if NETWORK_FREE in chance else "better"
            parts.append(
                f"It does NOT beat {NETWORK_FREE} ({free}): on this data one exponent per feature, without a network, "
                f"does {well}."
            )
    if simulated:
        parts.append(SIMULATED[0].upper() + SIMULATED[1:] + ".")
    elif simulated is False:
        parts.append("Measured human data.")
    return " ".join(parts)


def _doubt(name: str, chance: Collection[str]) -> str:
    return f", but with so few drugs the difference from {name} may be chance" if name in chance else ""

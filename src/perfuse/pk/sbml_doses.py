"""Doses of one curve as SBML: starting amounts, and events for what comes later.

Parameters, ``<i>`` counting doses in order of time: ``Dose_<i>`` mg, ``T_<i>`` h; for an infusion ``Duration_<i>`` h
and ``Rate_<i>`` mg/h, which events switch on and off; for oral doses ``ka`` 1/h, ``lag`` h, ``f_abs``. An oral dose
waits in ``A_lag`` (f_abs of it; the rest is in ``A_not_absorbed`` at once), is put into ``A_lumen`` after the lag and
leaves from there to the gut wall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perfuse.errors import InputError
from perfuse.pk.sbml_model import SbmlModel
from perfuse.pk.system import ORAL, DoseEvents
from perfuse.pk.topology import Topology


@dataclass(frozen=True)
class SbmlDoses:
    """The doses of one curve, in order of time, and how oral ones are absorbed."""

    time_h: list[float]
    amount_mg: list[float]
    duration_h: list[float]
    is_oral: list[bool]
    ka_1_h: float
    lag_h: float
    f_abs: float

    def __len__(self) -> int:
        return len(self.time_h)


def doses_to_write(doses: DoseEvents, topology: Topology, horizon_h: float | None) -> SbmlDoses:
    """The first row's doses above 0 mg that begin by ``horizon_h``.

    Raises:
        InputError: for a dose before time 0, one that is not finite, or an oral dose on a topology without a gut.
    """
    columns = (doses.time_h, doses.amount_mg, doses.duration_h, doses.route)
    rows = sorted(zip(*(c[0].tolist() for c in columns), strict=True), key=lambda r: r[0])
    rows = [r for r in rows if r[1] > 0 and (horizon_h is None or r[0] <= horizon_h)]
    for time_h, amount_mg, duration_h, route in rows:
        for name, value, unit in (("time", time_h, "h"), ("amount", amount_mg, "mg"), ("duration", duration_h, "h")):
            if not 0 <= value < float("inf"):
                raise InputError(f"dose {name}", value=value, unit=unit, allowed=">= 0 and finite")
        if route == ORAL and topology.absorption_node is None:
            raise InputError("route", "has no gut to be absorbed in", value="oral", where=f"topology {topology.name}")
    return SbmlDoses(
        time_h=[r[0] for r in rows],
        amount_mg=[r[1] for r in rows],
        duration_h=[0.0 if r[3] == ORAL else r[2] for r in rows],
        is_oral=[r[3] == ORAL for r in rows],
        ka_1_h=float(doses.ka_1_h[0]),
        lag_h=float(doses.lag_h[0]),
        f_abs=float(doses.f_abs[0]),
    )


@dataclass
class _Schedule:
    """What is added to or set in which variable, at the start and at each later dose time."""

    initial: dict[str, list[str]]
    later: dict[float, dict[str, list[str]]]
    set_later: dict[float, dict[str, str]]

    def add(self, time_h: float, variable: str, term: str) -> None:
        """Add a term at a time; 0 is the start."""
        where = self.initial if time_h == 0 else self.later.setdefault(time_h, {})
        where.setdefault(variable, []).append(term)

    def set(self, time_h: float, variable: str, formula: str) -> None:
        """Set a variable that nothing adds to."""
        if time_h == 0:
            self.initial[variable] = [formula]
        else:
            self.set_later.setdefault(time_h, {})[variable] = formula


def add_doses(
    model: SbmlModel, doses: SbmlDoses, topology: Topology, volume: Sequence[str], drug: Sequence[str], outside: str
) -> None:
    """Write the doses into a model whose nodes have these identifiers.

    Args:
        model: The model in the making.
        doses: From ``doses_to_write``.
        topology: Says where doses go.
        volume: Identifier of each node's compartment.
        drug: Identifier of each node's species, which stands for a concentration in formulas.
        outside: Identifier of the compartment for drug that is not in the body.
    """
    schedule = _Schedule({}, {}, {})
    amount = [model.parameter(f"Dose_{i}", f"dose {i}", a, "mg") for i, a in enumerate(doses.amount_mg, start=1)]
    times = sorted({t for t in doses.time_h if t > 0})
    time_name = {t: model.parameter(f"T_{k}", f"dose time {k}", t, "h") for k, t in enumerate(times, start=1)}
    venous, blood = drug[topology.dose_node], volume[topology.dose_node]
    for i, (time_h, duration_h, oral) in enumerate(zip(doses.time_h, doses.duration_h, doses.is_oral, strict=True)):
        if oral:
            continue
        if duration_h > 0:
            _infusion(model, schedule, i + 1, time_h, duration_h, amount[i], venous, time_name.get(time_h, ""))
        else:
            schedule.add(time_h, venous, f"{amount[i]} / {blood}")
    if any(doses.is_oral):
        assert topology.absorption_node is not None  # doses_to_write has refused it
        _oral(model, schedule, doses, amount, time_name, drug[topology.absorption_node], outside)
    for variable, terms in schedule.initial.items():
        model.initially(variable, " + ".join(terms))
    for time_h, name in time_name.items():
        sums = {v: " + ".join([v, *terms]) for v, terms in schedule.later.get(time_h, {}).items()}
        model.event(f"dose_at_{name}", f"dose at {time_h:.10g} h", name, sums | schedule.set_later.get(time_h, {}))


def _infusion(
    model: SbmlModel, schedule: _Schedule, i: int, time_h: float, duration_h: float, amount: str, venous: str, at: str
) -> None:
    """A rate that the dose's event switches on and one of its own switches off."""
    duration = model.parameter(f"Duration_{i}", f"duration of infusion {i}", duration_h, "h")
    rate = model.parameter(f"Rate_{i}", f"present rate of infusion {i}", 0.0, "mg_per_h", constant=False)
    model.reaction(f"infusion_{i}", f"infusion {i}", None, venous, rate)
    schedule.set(time_h, rate, f"{amount} / {duration}")
    end = f"{at} + {duration}" if at else duration
    model.event(f"end_of_infusion_{i}", f"end of infusion {i}", end, {rate: "0 mg_per_h"})


def _oral(
    model: SbmlModel, schedule: _Schedule, doses: SbmlDoses, amount: Sequence[str], time_name: dict[float, str],
    gut: str, outside: str,
) -> None:  # fmt: skip
    """Gut lumen, lag, and what never enters."""
    ka = model.parameter("ka", "absorption rate constant", doses.ka_1_h, "per_h")
    f_abs = model.parameter("f_abs", "fraction absorbed, Fa x Fg", doses.f_abs, "dimensionless")
    lumen = model.species("A_lumen", "drug in the gut lumen", outside, is_amount=True)
    lost = model.species("A_not_absorbed", "drug never absorbed", outside, is_amount=True)
    waiting, lag = lumen, ""
    if doses.lag_h > 0:
        lag = model.parameter("lag", "time before absorption begins", doses.lag_h, "h")
        waiting = model.species("A_lag", "drug in the gut lumen, not yet released", outside, is_amount=True)
    model.reaction("absorption", "absorption", lumen, gut, f"{ka} * {lumen}")
    for i in range(len(doses)):
        if not doses.is_oral[i]:
            continue
        time_h, absorbed = doses.time_h[i], f"{f_abs} * {amount[i]}"
        schedule.add(time_h, waiting, absorbed)
        schedule.add(time_h, lost, f"(1 dimensionless - {f_abs}) * {amount[i]}")
        if lag:
            at = f"{time_name[time_h]} + {lag}" if time_h > 0 else lag
            moved = {waiting: f"{waiting} - {absorbed}", lumen: f"{lumen} + {absorbed}"}
            model.event(f"release_of_dose_{i + 1}", f"end of lag of dose {i + 1}", at, moved)

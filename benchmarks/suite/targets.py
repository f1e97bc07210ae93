"""The targets, each held against what was measured. Nothing here is typed in: limits come from ``suite.toml``.

A target on accuracy counts on its worst seed. None is met by absence: unless every seed and task that it is about, and
every rival, has a result, it counts as not measured. A rival may refuse a task; the arm that a target is about may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.suite.plan import PLAIN_BEST, PLAIN_SMALL, TIME_TASK, Task
from benchmarks.suite.summary import COVERED, FLUX, LOGLINEAR, TRIVIAL, Summary
from benchmarks.time_to_accuracy import Reached, ratio, ratio_text
from perfuse.pk.physiology import ORGANS

LEVEL_TOLERANCE = 1e-3
"""Two GMFE that differ by less count as level: a thousandth of a concentration is below any assay."""
LEVEL_TASKS, AHEAD_TASKS = ("T1", "T2", "T3", "T4", "T5", "T6"), ("T4", "T7")


@dataclass(frozen=True)
class Target:
    """One of them.

    Attributes:
        name: What is demanded of what.
        limit: The demand.
        measured: What was found.
        met: Whether it is met; None: it could not be judged.
    """

    name: str
    limit: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """Words for a table."""
        return {True: "met", False: "**not met**", None: "**not measured**"}[self.met]


def all_targets(summary: Summary) -> list[Target]:
    """Every target, in the order of the suite."""
    out: list[Target] = []
    for task in summary.tasks:
        out += [_accuracy(summary, task, test, limit) for test, limit in task.targets.items()]
    for task in summary.tasks:
        if task.data in LEVEL_TASKS:
            out += [_level(summary, task, test) for test in task.tests]
    for task in summary.tasks:
        if task.data in AHEAD_TASKS:
            out += [_ahead(summary, task, test) for test in task.tests]
    return [*out, *_coverage(summary), *_time(summary)]


def _accuracy(summary: Summary, task: Task, test: str, limit: float) -> Target:
    name, spread = f"`flux` on {_where(task, test)}", summary.gmfe(task.id, FLUX, test)
    lacking = _lacking(summary, task, test)
    if lacking or spread is None:
        return Target(name, f"GMFE <= {limit:g}", lacking or "no result", None)
    text = f"{spread.high:.5f} (worst of {spread.n})"
    beside = (summary.best_of(task.id, test, LOGLINEAR), "mlp")
    others = [f"`{a}` {s.median:.4f}" for a in beside if a and (s := summary.gmfe(task.id, a, test))]
    text += f"; beside it {', '.join(others)}" if others else ""
    return Target(name, f"GMFE <= {limit:g}", text, spread.high <= limit)


def _where(task: Task, test: str) -> str:
    return task.id if test == task.data else f"{task.id}, tested on {test}"


def _lacking(summary: Summary, task: Task, test: str, rivals: Iterable[str] = ()) -> str:
    """What keeps a comparison of `flux` from being judged; "" when nothing does."""
    if not summary.seeds(task.id):
        return "no result"
    own = summary.unmeasured(task.id, FLUX, test, refusal_counts=False)
    return _in_short([own, *(summary.unmeasured(task.id, arm, test) for arm in rivals)])


def _in_short(reasons: Iterable[str]) -> str:
    """The first reason, and how many there are besides; "" for none."""
    there = list(dict.fromkeys(filter(None, reasons)))
    return there[0] + (f"; and {len(there) - 1} more such" if there[1:] else "") if there else ""


def _level(summary: Summary, task: Task, test: str) -> Target:
    """Whether `flux` is as good as the better of the two fits of loglinear-rates, or better."""
    name, limit = f"`flux` level with `loglinear-rates` on {_where(task, test)}", f"GMFE <= its + {LEVEL_TOLERANCE:g}"
    best, flux = summary.best_of(task.id, test, LOGLINEAR), summary.gmfe(task.id, FLUX, test)
    other = summary.gmfe(task.id, best, test) if best else None
    lacking = _lacking(summary, task, test, LOGLINEAR)
    if lacking or flux is None or best is None or other is None:
        return Target(name, limit, lacking or "`loglinear-rates` has no result", None)
    text = f"{flux.median:.5f} beside {other.median:.5f} ({best.rpartition(', ')[2]}; medians)"
    return Target(name, limit, text, flux.median <= other.median + LEVEL_TOLERANCE)


def _ahead(summary: Summary, task: Task, test: str) -> Target:
    """Whether the worst seed of `flux` beats the best seed of everything else."""
    name = f"`flux` ahead of everything on {_where(task, test)}"
    limit, flux = "its worst seed beats every other arm's best", summary.gmfe(task.id, FLUX, test)
    lows = {a: s.low for a in summary.arms(task) if a != FLUX and (s := summary.gmfe(task.id, a, test))}
    lacking = _lacking(summary, task, test, (a for a in summary.arms(task) if a != FLUX))
    if lacking or flux is None or not lows:
        return Target(name, limit, lacking or "no rival has a result", None)
    nearest = min(lows, key=lambda arm: lows[arm])
    text = f"{flux.high:.4f} beside {lows[nearest]:.4f} of {nearest}, the next"
    return Target(name, limit, text, flux.high < lows[nearest])


def _coverage(summary: Summary) -> Iterator[Target]:
    """Coverage of every model on the tasks that it is demanded on: overall, and the worst organ, over all of them."""
    spec = summary.suite.coverage
    tasks = [task for task in summary.tasks if task.data in spec.tasks]
    for arm in (a for a in (tasks and summary.arms(tasks[0])) or [] if a not in TRIVIAL and a != LOGLINEAR[1]):
        overall, organs = {}, {}
        absent = [f"nothing of {name}" for name in spec.tasks if name not in {task.data for task in tasks}]
        lacking = [absent, list(absent)]
        for task in tasks:
            lacking[0].append(summary.unmeasured(task.id, arm, task.data, *COVERED, refusal_counts=False))
            for seed, value in summary.by_seed(task.id, arm, task.data, *COVERED).items():
                overall[f"{task.id}, seed {seed}"] = value
            for organ in ORGANS:
                path = ("coverage", "per_organ", organ, COVERED[-1])
                lacking[1].append(summary.unmeasured(task.id, arm, task.data, *path, refusal_counts=False))
                for seed, value in summary.by_seed(task.id, arm, task.data, *path).items():
                    organs[f"{task.id}, {organ}, seed {seed}"] = value
        kinds = (("", overall, spec.overall, lacking[0]), (" in each organ", organs, spec.organ, lacking[1]))
        for what, found, bounds, missing in kinds:
            name = f"{spec.level:.0%} intervals of `{arm}` on {', '.join(spec.tasks)}{what}"
            yield _within(name, found, bounds, _in_short(missing))


def _within(name: str, found: dict[str, float], bounds: tuple[float, float], lacking: str) -> Target:
    limit = f"cover {bounds[0]:.0%} to {bounds[1]:.0%}"
    if lacking or not found:
        return Target(name, limit, lacking or "no result", None)
    least, most = min(found, key=lambda k: found[k]), max(found, key=lambda k: found[k])
    text = f"{found[least]:.1%} ({least}) to {found[most]:.1%} ({most})"
    return Target(name, limit, text, bounds[0] <= found[least] and found[most] <= bounds[1])


def _time(summary: Summary) -> Iterator[Target]:
    spec, found = summary.suite.time_to_accuracy, {a: as_reached(r) for a, r in summary.reached().items()}
    for arm in (PLAIN_SMALL, PLAIN_BEST):
        name = f"time of `flux` to GMFE {spec.gmfe:g} on {spec.data}, beside the {arm}"
        limit = f">= {spec.target_ratio:g} times shorter"
        without = [a for a in (FLUX, arm) if a not in found]
        if without:
            reasons = (f"{a}: {summary.missing(TIME_TASK, a) or 'no result'}" for a in without)
            yield Target(name, limit, "; ".join(reasons), None)
            continue
        value, is_bound = ratio(found[arm], found[FLUX])
        n = len(summary.seeds(TIME_TASK))
        text = f"{ratio_text(found[arm], found[FLUX])}, {n} seed{'s' if n > 1 else ''}"
        met = (
            None if value is not None and is_bound and value < spec.target_ratio else (value or 0) >= spec.target_ratio
        )
        yield Target(name, limit, text, met)


def as_reached(values: dict[str, Any]) -> Reached:
    """A stored outcome."""
    return Reached(**{**values, "checks": [(s, g) for s, g in values["checks"]]})

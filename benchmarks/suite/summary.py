"""Results of jobs, asked for by task, arm and test set; spreads over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.common import Spread
from benchmarks.suite.plan import BASELINES, TIME_TASK, Suite, Task, ablation_arm
from benchmarks.suite.results import Result

FLUX = "flux"
TRAINED, LBFGS = "loglinear-rates, Gauss-Newton then AdamW", "loglinear-rates, L-BFGS"
"""The two fits of the network-free baseline: trained as `flux` is, and by a closed fit."""
LOGLINEAR = (TRAINED, LBFGS)
COVERED = ("coverage", "overall", "coverage_90")
"""Where a row keeps the coverage of 90 % intervals."""
TRIVIAL = ("mean-curve", "5-nearest", "log-linear")


def _shown(kind: str, arm: str) -> str:
    """How tables call an arm."""
    if arm == "loglinear-rates":
        return LBFGS if kind == "baselines" else TRAINED
    return arm


class Summary:
    """All results of a plan.

    Args:
        suite: The suite.
        results: One of every job, whatever became of it.
    """

    def __init__(self, suite: Suite, results: Iterable[Result]) -> None:
        self.suite, self.results = suite, list(results)
        self._rows: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
        self._missing: dict[tuple[str, str], str] = {}
        self._refused: set[tuple[str, str, str, int]] = set()
        for result in self.results:
            job = result["job"]
            key = (job["task"], _shown(job["kind"], job["arm"]))
            for row in result["rows"]:
                place = (job["task"], _shown(job["kind"], row["arm"]), row["test"])
                facts = row | {"training": result.get("training", {})}
                self._rows.setdefault(place, {})[job["seed"]] = facts
            for name, reason in result.get("unavailable", {}).items():
                arm, _, test = name.partition(" on ")
                self._refused.add((job["task"], _shown("baselines", arm), test, job["seed"]))
                self._missing[job["task"], _shown("baselines", name)] = f"not available: {reason}"
            if result["status"] != "done":
                reason = f"{result['status']}: {result['reason']}" if result["reason"] else result["status"]
                self._missing[key] = reason
            if result["status"] == "refused":
                self._refused.add((*key, "", job["seed"]))
        # The closed fit refuses what its model does; where it alone has no result, the fit has failed.
        model = {(task, seed) for task, arm, _, seed in self._refused if arm == TRAINED}
        self._refused = {r for r in self._refused if r[1] != LBFGS or (r[0], r[3]) in model}

    @property
    def tasks(self) -> list[Task]:
        """Tasks that the plan has jobs of, in the suite's order."""
        there = {result["job"]["task"] for result in self.results}
        return [task for task in self.suite.tasks if task.id in there]

    def arms(self, task: Task, ablations: bool = False) -> list[str]:
        """Models, then baselines, of a task, whether or not they gave a result; ablations only when asked for."""
        models = [_shown("model", arm) for arm in self.suite.arms]
        at = models.index(TRAINED) + 1 if TRAINED in models else len(models)
        out = [*models[:at], LBFGS, *models[at:], *TRIVIAL]
        if ablations:
            out += [ablation_arm(a) for a in self.suite.ablations if task.id in a.tasks]
        return out

    def by_seed(self, task: str, arm: str, test: str, *path: str) -> dict[int, float]:
        """A value of every seed that has it, by its place in a result's row: ``("coverage", "overall")``, say."""
        found = {}
        for seed, row in sorted(self._rows.get((task, arm, test), {}).items()):
            value: Any = row
            for name in path:
                value = value.get(name) if isinstance(value, Mapping) else None
            if value is not None:
                found[seed] = float(value)
        return found

    def spread(self, task: str, arm: str, test: str, *path: str) -> Spread | None:
        """Median, least and greatest over seeds; None without a value."""
        found = self.by_seed(task, arm, test, *path)
        return Spread.of(list(found.values())) if found else None

    def gmfe(self, task: str, arm: str, test: str) -> Spread | None:
        """GMFE over seeds."""
        return self.spread(task, arm, test, "gmfe")

    def missing(self, task: str, arm: str) -> str:
        """Why an arm has no (or not every) result on a task; "" when nothing is known."""
        of_job = self._missing.get((task, BASELINES), "") if arm in (LBFGS, *TRIVIAL) else ""
        return self._missing.get((task, arm), of_job)

    def seeds(self, task: str) -> list[int]:
        """Seeds that the plan has of a task."""
        return sorted({r["job"]["seed"] for r in self.results if r["job"]["task"] == task})

    def unmeasured(self, task: str, arm: str, test: str, *path: str, refusal_counts: bool = True) -> str:
        """Which seeds have no such value, with the reason where one is known; "" when none lacks it.

        Args:
            task, arm, test: As ``by_seed``.
            path: As ``by_seed``; the GMFE where it is empty.
            refusal_counts: Whether a seed that the arm refused counts as measured.
        """
        lacking = set(self.seeds(task)) - set(self.by_seed(task, arm, test, *(path or ("gmfe",))))
        if refusal_counts:
            lacking -= {s for s in lacking if {(task, arm, "", s), (task, arm, test, s)} & self._refused}
        if not lacking:
            return ""
        reason = self.missing(task, arm)
        seeds = f"`{arm}` on {task}: no result of seed {', '.join(map(str, sorted(lacking)))}"
        return f"{seeds} ({reason})" if reason else seeds

    def best_of(self, task: str, test: str, arms: Iterable[str]) -> str | None:
        """The arm with the least median GMFE; None where none has one."""
        found = {arm: spread.median for arm in arms if (spread := self.gmfe(task, arm, test))}
        return min(found, key=lambda arm: found[arm]) if found else None

    def of_arm(self, task: str, arm: str) -> list[Result]:
        """Finished results of the jobs that an arm comes from, by seed."""
        name = BASELINES if arm == LBFGS else arm
        done = [r for r in self.results if r["job"]["task"] == task and r["status"] == "done"]
        return [r for r in done if _shown(r["job"]["kind"], r["job"]["arm"]) == name]

    def reached(self) -> dict[str, dict[str, Any]]:
        """What the arms of time to accuracy came to, by arm."""
        return {
            r["job"]["arm"]: r["reached"] for r in self.results if r["job"]["task"] == TIME_TASK and r.get("reached")
        }

    def unfinished(self) -> list[Result]:
        """Results that are none: failed, crashed or not run. What a model refuses is a result."""
        return [r for r in self.results if r["status"] not in ("done", "refused")]

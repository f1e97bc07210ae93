"""Runs side by side: where their configurations differ, and whether their figures may be compared at all."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from perfuse.errors import InputError
from perfuse.evaluation.run_list import RunEntry
from perfuse.evaluation.verdict import show_gmfe
from perfuse.training.run_facts import RunFacts, table, text, whole

SORTS: dict[str, Callable[[RunEntry], float | None]] = {
    "val_loss": lambda e: e.best_val_loss, "gmfe": lambda e: e.test_gmfe, "time": lambda e: e.seconds,
}  # fmt: skip
_NOT_LEARNT = frozenset({"training.tensorboard", "training.keep_last", "training.checkpoint_every_minutes"})
"""Keys that do not bear on the result; a difference there is not shown."""
ABSENT = "-"


def sorted_runs(entries: Sequence[RunEntry], by: str = "") -> list[RunEntry]:
    """Runs with the smallest figure first, those without it last; '' leaves the order."""
    if not by:
        return list(entries)
    figure = SORTS[by]

    def key(entry: RunEntry) -> tuple[bool, float]:
        value = figure(entry)
        return value is None, value or 0.0

    return sorted(entries, key=key)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        entries: The runs that can be read.
        differences: (key, value of each run) where configurations differ.
        figures: (name, value of each run).
        same_data, same_split: Whether all were trained on the same curves, divided alike.
        same_test: Whether all have been judged, with their present weights, on the same curves.
        best: Place of the run with the lowest test GMFE; None where they may not be ranked.
        remarks: What may be concluded, and what not.
    """

    entries: tuple[RunEntry, ...]
    differences: tuple[tuple[str, tuple[object, ...]], ...]
    figures: tuple[tuple[str, tuple[object, ...]], ...]
    same_data: bool
    same_split: bool
    same_test: bool
    best: int | None
    remarks: tuple[str, ...]

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return {
            "runs": [e.plain() for e in self.entries],
            "differences": {key: list(values) for key, values in self.differences},
            "same_data": self.same_data, "same_split": self.same_split, "same_test": self.same_test,
            "best": None if self.best is None else str(self.entries[self.best].path), "remarks": list(self.remarks),
        }  # fmt: skip


def compare_runs(entries: Sequence[RunEntry]) -> Comparison:
    """Hold runs against each other.

    Raises:
        InputError: if fewer than two can be read.
    """
    readable = [e for e in entries if e.facts is not None]
    remarks = [f"Left out: {e.path}: {e.detail or e.status}." for e in entries if e.facts is None]
    if len(readable) < 2:
        found = "; ".join(remarks) or f"{len(readable)} run"
        raise InputError("--compare", "needs two runs that can be read", value=found, hint="name their folders")
    facts = [e.facts for e in readable if e.facts is not None]
    same_data = len({f.data_sha256 for f in facts}) == 1 and bool(facts[0].data_sha256)
    same_split = same_data and len({f.split_key for f in facts}) == 1 and bool(facts[0].split_key)
    remarks.append(_data_remark(same_data, same_split))
    remarks.append(_loss_remark(facts, same_split))
    best, same_test, remark = _ranking(readable)
    configs = [_leaves(f.config) for f in facts]
    keys = list(dict.fromkeys(key for config in configs for key in config if key not in _NOT_LEARNT))
    rows = [(key, tuple(config.get(key, ABSENT) for config in configs)) for key in keys]
    return Comparison(
        tuple(readable), tuple(row for row in rows if len({repr(v) for v in row[1]}) > 1), _figures(readable, facts),
        same_data, same_split, same_test, best, (*remarks, *remark),
    )  # fmt: skip


def _leaves(record: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            out |= _leaves(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def _figures(entries: Sequence[RunEntry], facts: Sequence[RunFacts]) -> tuple[tuple[str, tuple[object, ...]], ...]:
    return (
        ("run id", tuple(e.run_id[:8] or ABSENT for e in entries)),
        ("status", tuple(e.status for e in entries)),
        ("code version", tuple(text(f.state, "code_version") or ABSENT for f in facts)),
        ("data sha256", tuple(f.data_sha256[:12] or ABSENT for f in facts)),
        ("training curves", tuple(whole(f.part("train"), "n_curves") for f in facts)),
        ("epochs", tuple(e.epochs for e in entries)),
        ("steps", tuple(e.steps for e in entries)),
        ("training time, s", tuple(e.seconds for e in entries)),
        ("best validation loss", tuple(e.best_val_loss for e in entries)),
        ("test GMFE", tuple(e.test_gmfe for e in entries)),
        ("95 % interval", tuple(_interval(e) for e in entries)),
        ("test curves", tuple(e.test.n_curves if e.test else None for e in entries)),
    )


def _interval(entry: RunEntry) -> str | None:
    ends = entry.test.ci95 if entry.test is not None and not entry.test.note else None
    return f"{show_gmfe(ends[0])} to {show_gmfe(ends[1])}" if ends else None


def _data_remark(same_data: bool, same_split: bool) -> str:
    if same_split:
        return "Trained, selected and tested on the same curves, divided alike."
    if same_data:
        return "The same data, divided differently: one run's training curves may be another's test curves."
    return "Trained on different data."


def _loss_remark(facts: Sequence[RunFacts], same_split: bool) -> str:
    losses = {repr(table(f.config, "loss")) for f in facts}
    if same_split and len(losses) == 1:
        return "Validation losses are of the same kind, on the same curves."
    why = "of different kinds" if len(losses) > 1 else "on different curves"
    return f"Validation losses are {why}: they may not be compared."


def _ranking(entries: Sequence[RunEntry]) -> tuple[int | None, bool, list[str]]:
    """Which run has the lowest test GMFE, whether all were judged on the same curves, and remarks."""
    missing = [e for e in entries if e.test_gmfe is None]
    if missing:
        why = [f"{e.path} has {f'one {e.test.note} only' if e.test and e.test.note else 'none'}" for e in missing]
        return None, False, [f"Not ranked: every run needs an evaluation on its test split; {', '.join(why)}."]
    keys = {e.test.curves_key for e in entries if e.test is not None}
    if len(keys) > 1:
        return None, False, [
            "Not ranked: the runs were judged on different curves, so none can be called better "
            "(perfuse evaluate RUN DATA --against OTHER judges both on curves that neither has seen)."
        ]  # fmt: skip
    values = [e.test_gmfe or 0.0 for e in entries]
    order = sorted(range(len(entries)), key=values.__getitem__)
    first, second = order[0], order[1]
    if values[first] == values[second]:
        return None, True, ["The lowest test GMFE is shared by several runs."]
    facts = entries[first].facts
    data = (facts.data_path if facts else "") or "DATA"
    command = ["perfuse", "evaluate", str(entries[first].path), data, "--against", str(entries[second].path)]
    return first, True, [
        f"Lowest test GMFE on the same curves: {entries[first].path}. Whether its lead over {entries[second].path} may "
        f"be chance: {shlex.join(command)}"
    ]  # fmt: skip

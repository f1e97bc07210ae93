"""What `benchmarks/speed.py` found, where it has been run: its targets, for the suite's table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import number
from benchmarks.suite.targets import Target


@dataclass(frozen=True)
class SpeedResults:
    """Targets, and on which machine and when they were measured."""

    targets: list[Target]
    measured_on: str


def read_speed(path: Path) -> SpeedResults | None:
    """The results of a ``speed.json``; None where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        machine = found["machine"]
        text = f"{machine['processor']}, {machine['cores_usable']} cores, {machine['created_utc']}"
        rows = [(kind, row) for kind in ("training", "prediction") for row in found[kind] if row.get("target")]
        return SpeedResults([_target(kind, row) for kind, row in rows], text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None


def _target(kind: str, row: Mapping[str, Any]) -> Target:
    reference, ratios = next(iter(row["ratios"].items()))
    median = statistics.median(ratios)
    name = f"{kind} of `{row['name']}`, batch {row['batch_size']}, {row['threads']} threads, beside {reference}"
    text = f"{number(median)} times ({number(min(ratios))}-{number(max(ratios))})"
    return Target(name, f">= {row['target']:g} times the curves/s", text, median >= row["target"])

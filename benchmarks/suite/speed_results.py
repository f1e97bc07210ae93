"""What `benchmarks/speed.py` found, where it has been run: its targets, for the suite's table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import LARGEST_NETWORK_OVERHEAD, number
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
        targets = [_target(kind, row) for kind, row in rows]
        return SpeedResults([*targets, _overhead(found.get("network_overhead"))], text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _target(kind: str, row: Mapping[str, Any]) -> Target:
    (reference, ratios), *others = row["ratios"].items()
    median = statistics.median(ratios)
    name = f"{kind} of `{row['name']}`, batch {row['batch_size']}, {row['threads']} threads, beside {reference}"
    text = f"{number(median)} times ({number(min(ratios))}-{number(max(ratios))})"
    text += "".join(f"; {number(statistics.median(more))} times {other}" for other, more in others)
    return Target(name, f">= {row['target']:g} times the curves/s", text, median >= row["target"])


def _overhead(added: Sequence[float] | None) -> Target:
    name = "time that the network of `flux` adds to that of `loglinear-rates`, in prediction"
    limit = f"<= {LARGEST_NETWORK_OVERHEAD:.0%}"
    if not added:
        return Target(name, limit, "not both of them were measured", None)
    median = statistics.median(added)
    return Target(
        name, limit, f"{median:.0%} ({min(added):.0%} to {max(added):.0%})", median <= LARGEST_NETWORK_OVERHEAD
    )

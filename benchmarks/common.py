"""What the benchmarks share: spreads of repeated measurements, tables, the machine, and where results go."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from perfuse.training.machine import provenance


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of repeated measurements."""

    median: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return Spread(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)}-{number(self.high)})" if self.n > 1 else number(self.median)


def rate(work: Callable[[], object], curves: int, seconds: float) -> float:
    """Curves/s of calling ``work``, which does ``curves`` of them, once and until ``seconds`` have passed."""
    done, start = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - start < seconds:
        work()
        done += curves
    return done / (time.perf_counter() - start)


def number(value: float) -> str:
    """Three significant digits and no exponent below a million."""
    if value != value or abs(value) >= 1e6:
        return f"{value:.3g}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


LARGEST_NETWORK_OVERHEAD = 0.30
"""Target: what `flux`'s network may add to the time of the propagator that it shares with `loglinear-rates`, when it
predicts."""


def machine() -> dict[str, object]:
    """Processor, cores, threads, load and library versions: what a figure means nothing without."""
    facts = provenance()
    facts["cores_usable"] = cores()
    facts["torch_threads"] = torch.get_num_threads()
    facts["load_average_1_min"] = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return facts


def machine_line(facts: dict[str, object]) -> str:
    """One line of it for the table's head."""
    packages = facts["packages"]
    assert isinstance(packages, dict)
    return (
        f"{facts['processor']}, {facts['cores_usable']} cores, torch {packages['torch']} with "
        f"{facts['torch_threads']} threads, Python {facts['python']}, load {facts['load_average_1_min']} at the "
        f"start, {facts['created_utc']}"
    )


def write_results(out: Path, name: str, text: str, result: dict[str, object]) -> None:
    """``out/NAME.md`` and ``out/NAME.json``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")

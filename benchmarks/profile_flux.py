"""Where the time of a `flux` step goes, by kind of operation: what stands between it and the machine's limits."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/profile_flux.py

from benchmarks.common import cores, machine, machine_line, markdown_table
from benchmarks.limits import Step
from perfuse.data.simulate import TASKS, simulate_task
from perfuse.data.table import to_batch

KINDS: dict[str, tuple[str, ...]] = {
    "decompositions": ("eigh", "linalg_eig", "lu_", "inv_ex"),
    "matrix products": ("bmm", "addmm", "mm", "mv", "dot"),
    "exponentials, logs, SiLU": ("exp", "log", "silu", "sqrt", "reciprocal"),
    "optimiser and gradient norm": ("Optimizer", "_fused_adamw", "_foreach", "vector_norm"),
    "gathers and scatters": ("index", "gather", "scatter", "nonzero"),
    "elementwise, sums, copies": (
        "mul", "add", "sub", "div", "where", "clamp", "copy_", "fill_", "zero_", "cat", "stack", "sum", "neg", "abs",
        "eq", "ne", "ge", "gt", "le", "lt", "isfinite", "all", "any", "max", "min", "pow", "bitwise",
        "masked", "_to_copy",
    ),
}  # fmt: skip
REST = "dispatch: views, allocation, autograd, Python functions"


def kind_of(name: str) -> str:
    """The kind of a profiler entry; the first that fits."""
    operation = name.removeprefix("aten::").lstrip("_").removeprefix("linalg_") if name.startswith("aten::") else name
    for kind, parts in KINDS.items():
        if any(operation.startswith(part.lstrip("_")) or f"_{part.strip('_')}" in name for part in parts):
            return kind if name.startswith(("aten::", "Optimizer")) else REST
    return REST


def shares(entries: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Share of the time of each kind, from (name, own time)."""
    totals: dict[str, float] = defaultdict(float)
    for name, own in entries:
        totals[kind_of(name)] += own
    whole = sum(totals.values()) or 1.0
    return {kind: totals[kind] / whole for kind in [*KINDS, REST]}


def profiled(work: Callable[[], object], calls: int) -> list[tuple[str, float]]:
    """Own CPU time of every operation, microseconds."""
    for _ in range(2):
        work()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(calls):
            work()
    return [(entry.key, entry.self_cpu_time_total / calls) for entry in found.key_averages()]


def main() -> int:
    """Profile and print."""
    parser = argparse.ArgumentParser(description="Where the time of a flux step goes.")
    parser.add_argument("--task", choices=sorted(TASKS), default="T1")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=min(2, cores()))
    parser.add_argument("--calls", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    step = Step(to_batch(simulate_task(args.task, args.batch_size, 0)))
    columns = [shares(profiled(work, args.calls)) for work in (step.predict, step.train)]
    rows = [(kind, *(f"{column[kind]:.0%}" for column in columns)) for kind in columns[0]]
    print(machine_line(machine()))
    print(markdown_table((f"{args.task}, batch {args.batch_size}", "prediction", "training step"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

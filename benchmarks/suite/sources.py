"""Which source files a job's result depends on: a change in one of them makes the result old, a change elsewhere not.

All of the package but what no job runs (command line, reports, importers), and of its models only the job's own with
what it imports. So a change of `flux` leaves the results of `mlp` as they are; a change of the training engine makes
all of them old.
"""

from __future__ import annotations

import ast
import hashlib
import subprocess
from functools import cache
from pathlib import Path

from benchmarks.suite.plan import ROOT, TIME_TASK, Job
from perfuse.models import MODELS

_FOLDERS = ("pk", "data", "training")
_NOT_RUN = ("data/importers", "data/study")
_FILES = (
    "config.py", "evaluation/metrics.py", "evaluation/evaluate.py", "evaluation/calibrate.py", "evaluation/coverage.py",
    "evaluation/baselines.py", "evaluation/rates_baseline.py", "evaluation/runs.py", "evaluation/judged_data.py",
    "evaluation/training_distance.py", "models/__init__.py",
)  # fmt: skip
_OF_RATES = ("training/gauss_newton.py",)
"""What of training only models of rate constants (`flux`, `loglinear-rates`) go through."""
_OF_BENCHMARKS = ("benchmarks/suite/work.py", "benchmarks/suite/learned.py")
_OF_TIME = (
    "benchmarks/time_to_accuracy.py", "benchmarks/plain_loop.py", "benchmarks/pyg_loop.py", "benchmarks/common.py",
)  # fmt: skip


def imported_modules(path: Path, package: str) -> set[str]:
    """Modules below ``package`` that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith(f"{package}.")}


@cache
def model_files(model: str, root: Path = ROOT) -> frozenset[Path]:
    """The model's own file and all files of ``perfuse.models`` that it imports, directly or not."""
    base = root / "src"
    waiting, found = [MODELS[model][0]], set()
    while waiting:
        path = base / f"{waiting.pop().replace('.', '/')}.py"
        if path.is_file() and path not in found:
            found.add(path)
            waiting += imported_modules(path, "perfuse.models")
    return frozenset(found)


@cache
def _common_files(root: Path = ROOT) -> frozenset[Path]:
    base = root / "src" / "perfuse"
    found = {path for folder in _FOLDERS for path in (base / folder).rglob("*.py")}
    kept = {p for p in found if not p.relative_to(base).as_posix().startswith((*_NOT_RUN, *_OF_RATES))}
    return frozenset(kept | {base / name for name in _FILES} | {root / name for name in _OF_BENCHMARKS})


def job_files(job: Job, root: Path = ROOT) -> list[Path]:
    """Every file that a job's result depends on, sorted."""
    name = job.model.get("name") or job.model.get("model", {}).get("name") or "loglinear-rates"
    files = _common_files(root) | model_files(name, root)
    if MODELS[name][0] == MODELS["loglinear-rates"][0]:
        files |= {root / "src/perfuse" / path for path in _OF_RATES}
    if job.task == TIME_TASK:
        files |= {root / name for name in _OF_TIME}
    return sorted(files)


@cache
def _hash_of(files: tuple[Path, ...], root: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def code_hash(job: Job, root: Path = ROOT) -> str:
    """Hash of the files that a job's result depends on, as they are when it is first asked for."""
    return _hash_of(tuple(job_files(job, root)), root)


def data_hash(root: Path = ROOT) -> str:
    """Hash of the files that simulated data depend on."""
    base = root / "src" / "perfuse"
    return _hash_of(tuple(sorted(p for folder in ("pk", "data") for p in (base / folder).rglob("*.py"))), root)


def commit(root: Path = ROOT) -> str:
    """The checked-out commit, with ``+changes`` where tracked files differ from it; "unknown" outside a checkout."""
    answers = []
    for arguments in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        except OSError:
            return "unknown"
        if done.returncode:
            return "unknown"
        answers.append(done.stdout.strip())
    return answers[0] + ("+changes" if answers[1] else "")

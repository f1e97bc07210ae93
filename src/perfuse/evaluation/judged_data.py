"""What a run may be judged on: opening data of any kind, and leaving out what the run has seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from perfuse.data.compounds import compound_key
from perfuse.data.sources import open_source, source_hash
from perfuse.data.store import CurveStore
from perfuse.data.table import CurveSource
from perfuse.errors import InputError
from perfuse.evaluation.runs import TrainedRun, seen_groups, training_source
from perfuse.pk.topology import Topology

OBSERVED_COLUMNS = frozenset({"curve_id", "conc_mg_per_L", "dose_mg_used"})
"""A CSV with these columns has the layout of measured human curves; any other is a tidy table."""


@dataclass(frozen=True)
class JudgedData:
    """Curves to be judged on.

    Attributes:
        source: The curves.
        path: Where they came from.
        content_hash: sha256 of their content.
        simulated: True when the truth was simulated, False when measured, None when the file does not say.
        import_report: What the importer left out, as plain data; empty for data that is used whole.
    """

    source: CurveSource
    path: Path
    content_hash: str
    simulated: bool | None
    import_report: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgedRows:
    """Rows that count, and what was left out.

    Attributes:
        rows: int64, sorted.
        scope: ``test split`` (the run's own data) or ``unseen curves``.
        excluded: Curves left out by reason.
        caveats: What could not be checked.
    """

    rows: np.ndarray
    scope: str
    excluded: dict[str, int]
    caveats: tuple[str, ...] = ()


def open_judged_data(path: Path, topology: Topology) -> JudgedData:
    """A dataset folder, an origin .npz, a tidy table, or a CSV of measured human curves.

    Args:
        path: The data.
        topology: The run's topology; measured curves are turned into its inputs.

    Raises:
        InputError: if the data cannot be used, or is on another topology than the run.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv" and OBSERVED_COLUMNS <= _header(path):
        from perfuse.data.importers.human import read_observed

        table, report = read_observed(path, topology)
        facts: dict[str, object] = {
            "curves_in_file": report.n_curves, "compounds_in_file": report.n_compounds, "curves_kept": report.n_kept,
            "compounds_kept": report.n_kept_compounds, "curves_left_out": dict(report.excluded),
            "curves_flagged": dict(report.flagged), "values_left_out": dict(report.dropped_values),
            "values_averaged": report.averaged_values,
        }  # fmt: skip
        return JudgedData(table, path, source_hash(table), False, facts)
    source = open_source(path)
    if source.topology.name != topology.name:
        raise InputError(
            "topology", "of the data does not match the run's", value=source.topology.name, allowed=topology.name,
            where=str(path),
        )  # fmt: skip
    simulated: bool | None = None
    if isinstance(source, CurveStore):
        simulated = True if source.manifest.generator.get("task") else None
    elif path.suffix.lower() == ".npz":
        simulated = True  # the origin's layout holds simulated curves by definition
    return JudgedData(source, path, source_hash(source), simulated)


def _header(path: Path) -> frozenset[str]:
    if not path.is_file():
        return frozenset()  # open_source says what is wrong
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            line = file.readline(1_000_000)
    except OSError:
        return frozenset()  # open_source says what is wrong
    return frozenset(name.strip().strip('"') for name in line.lstrip("\ufeff").split(","))


def choose_rows(data: JudgedData, runs: list[TrainedRun]) -> JudgedRows:
    """The curves that none of the runs was trained, selected or calibrated on.

    On the data that the first run was trained on, its test split; elsewhere every curve, less those whose compound or
    parameter group was in a training or validation split of any of the runs. Compounds are compared by
    ``compound_key``, so neither capitals nor a stereo prefix hide one. A checkpoint keeps the names of compounds only,
    so parameter groups are compared where a run's training data is at hand; else that is a caveat.

    Raises:
        InputError: when no curve is left.
    """
    compound, group = (data.source.column(name) for name in ("compound_id", "group_id"))
    key = np.asarray([compound_key(name) for name in compound.tolist()], dtype=str)
    excluded: dict[str, int] = {}
    caveats: list[str] = []
    rows = np.arange(len(data.source), dtype=np.int64)
    scope = "unseen curves"
    if runs[0].data_hash == data.content_hash:
        scope = "test split"
        is_test = np.isin(compound, list(runs[0].test_compounds))
        _count(excluded, "in the training or validation split of this run", ~is_test)
        rows = rows[is_test]
        if not len(runs[0].test_compounds):
            raise InputError(
                "DATA", "is what the run was trained on, and it kept no test split", value=str(data.path),
                hint="evaluate on other data, or train with split.test_fraction > 0",
            )  # fmt: skip
    for i, run in enumerate(runs):
        seen_compound = np.isin(key[rows], [compound_key(name) for name in run.seen_compounds])
        whose = "this run" if i == 0 else run.folder.name
        source = training_source(run, data)
        if isinstance(source, str):
            caveats.append(f"Drug parameters could not be compared with those {whose} was trained on: {source}.")
            seen_group = np.zeros(len(rows), dtype=bool)
        else:
            seen_group = ~seen_compound & np.isin(group[rows], list(seen_groups(run, source)))
        _count(excluded, f"compound in the training or validation split of {whose}", seen_compound)
        _count(excluded, f"drug parameters in the training or validation split of {whose}", seen_group)
        rows = rows[~seen_compound & ~seen_group]
        if run.calibration_record is not None:  # their intervals would cover these by construction
            known = [compound_key(name) for name in run.calibration_record.compound_ids]
            calibrated = np.isin(key[rows], known) | np.isin(group[rows], run.calibration_record.group_ids)
            _count(excluded, f"drug that the intervals of {whose} were calibrated on", calibrated)
            rows = rows[~calibrated]
    if not len(rows):
        reasons = ", ".join(f"{reason}: {n}" for reason, n in excluded.items())
        raise InputError("DATA", "holds no curve that the run has not seen", value=str(data.path), hint=reasons)
    return JudgedRows(rows, scope, excluded, tuple(caveats))


def _count(excluded: dict[str, int], reason: str, out: np.ndarray) -> None:
    n = int(out.sum())
    if n:
        excluded[reason] = excluded.get(reason, 0) + n

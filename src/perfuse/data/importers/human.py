"""Measured human concentration-time curves with the drug's in-vitro inputs, as a ``CurveTable``.

The layout is one row per observation, one curve per ``curve_id``: see ``REQUIRED_COLUMNS``. Drug inputs become a
topology's inputs by ``data.inputs``. Curves that cannot be used are left out and counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from perfuse.data.compounds import compound_key
from perfuse.data.importers.text_rows import TextRow, read_rows
from perfuse.data.inputs import DEFAULT_KP_METHOD, Dose, curve_table_for
from perfuse.data.stacking import stack_tables
from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.pk.drug import Drug, located
from perfuse.pk.topology import Topology

CLINT_COLUMN = "httk_human_clint_uL_per_min_per_million_hepatocytes"
CURVE_COLUMNS = (
    "compound", "species", "route", "infusion_duration_h", "dose_mg_used", "body_weight_used_kg", "matrix",
    "httk_mw_g_per_mol", "httk_logp_octanol_water", "httk_pka_donor_acid_list", "httk_pka_acceptor_base_list",
    "httk_human_fup_fraction", CLINT_COLUMN, "httk_human_blood_to_plasma_ratio",
)  # fmt: skip
"""Columns that every row of a curve repeats."""
REQUIRED_COLUMNS = ("curve_id", "time_h", "conc_mg_per_L", *CURVE_COLUMNS)
OPTIONAL_CURVE_COLUMNS = (
    "n_dose_events", "flag_maybe_multidose", "flag_unbound_conc", "flag_special_population", "flag_ddi_or_codosed",
    "body_weight_assumed_70kg", "qc_tier",
)  # fmt: skip
MATRIX_MEANING: Mapping[str, str] = {
    "plasma": "plasma",
    "plasma_assumed": "plasma",
    "serum": "serum",
    "whole_blood": "blood_venous",
    "blood_venous": "blood_venous",
}
"""How the layout's matrices are read; arterial ones are left out because reported blood is venous."""


@dataclass(frozen=True)
class ObservedReport:
    """What was read and what was left out.

    Attributes:
        n_rows, n_curves, n_compounds: In the file.
        n_kept, n_kept_compounds: In the table.
        excluded: Curves left out, by reason; each curve counts once, under the first reason that applies.
        flagged: Kept curves with something to know about them, by what it is.
        dropped_values: Observations left out of kept curves, by reason.
        averaged_values: Observations merged into another one of the same curve and time (geometric mean).
    """

    n_rows: int
    n_curves: int
    n_compounds: int
    n_kept: int
    n_kept_compounds: int
    excluded: dict[str, int] = field(default_factory=dict)
    flagged: dict[str, int] = field(default_factory=dict)
    dropped_values: dict[str, int] = field(default_factory=dict)
    averaged_values: int = 0

    def lines(self) -> list[str]:
        """The report as lines of text."""
        kept, compounds = f"{self.n_kept} of {self.n_curves} curves", f"{self.n_kept_compounds} of {self.n_compounds}"
        out = [f"{kept} kept ({compounds} compounds)"]
        titled = {
            "left out": self.excluded,
            "kept, note": self.flagged,
            "observations left out": self.dropped_values,
        }
        for title, counts in titled.items():
            by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            out += [f"  {title}: {reason}: {n}" for reason, n in by_count]
        if self.averaged_values:
            out.append(f"  observations averaged with one of the same time: {self.averaged_values}")
        return out


@dataclass
class _Counts:
    excluded: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    averaged: int = 0


def _exclusion(row: TextRow) -> str | None:
    """Why a curve cannot be used, judged by its first row; None when it can."""
    route, matrix = row.text("route").lower(), row.text("matrix").lower()
    events, duration = row.number("n_dose_events"), row.number("infusion_duration_h")
    checks = (
        (row.text("species").lower() != "human", "not human"),
        (route == "iv_unspecified", "bolus or infusion not stated"),
        (route not in ("iv_bolus", "iv_infusion", "iv_unspecified"), "not intravenous"),
        (route == "iv_infusion" and not duration, "infusion without duration"),
        (matrix.startswith("arterial"), "arterial matrix (reported blood is venous)"),
        (matrix not in MATRIX_MEANING and not matrix.startswith("arterial"), "matrix not modelled"),
        (row.flag("flag_unbound_conc"), "unbound concentrations"),
        ((events or 1) > 1 or row.flag("flag_maybe_multidose"), "several doses, or not surely one"),
        (not row.number("dose_mg_used"), "no dose"),
        (not row.number("body_weight_used_kg"), "no body weight"),
        (not row.number("httk_mw_g_per_mol"), "no molecular weight"),
        (row.number("httk_logp_octanol_water") is None, "no logP"),
        (not row.number("httk_human_fup_fraction"), "no fup measured"),
        (row.number(CLINT_COLUMN) is None, "no hepatocyte CLint measured"),
    )
    return next((reason for applies, reason in checks if applies), None)


def _flag(row: TextRow, flagged: Counter[str]) -> None:
    """Count what a reader should know about a curve that is kept."""
    flagged.update(
        {
            "special population": int(row.flag("flag_special_population")),
            "interaction or co-dosed": int(row.flag("flag_ddi_or_codosed")),
            "body weight assumed to be 70 kg": int(row.flag("body_weight_assumed_70kg")),
            "clearance more than 3-fold off the literature (tier C)": int(row.text("qc_tier").startswith("C")),
            "CLint 0: no turnover measured": int(row.number(CLINT_COLUMN) == 0),
            "B:P not measured": int(row.number("httk_human_blood_to_plasma_ratio") is None),
        }
    )


def _drug(row: TextRow) -> Drug:
    try:
        return Drug(
            name=compound_key(row.text("compound")),
            mw_g_mol=row.number("httk_mw_g_per_mol") or 0.0,
            logp=row.number("httk_logp_octanol_water") or 0.0,
            fup=row.number("httk_human_fup_fraction") or 0.0,
            pka_acid=row.numbers("httk_pka_donor_acid_list"),
            pka_base=row.numbers("httk_pka_acceptor_base_list"),
            bp_ratio=row.number("httk_human_blood_to_plasma_ratio"),
            clint_ul_min_million_cells=row.number(CLINT_COLUMN),
        )
    except InputError as error:
        raise located(error, row.where) from None


def _geometric_mean(values: list[float]) -> float:
    return values[0] if len(values) == 1 else float(np.exp(np.mean(np.log(values))))


def _observations(rows: list[TextRow], counts: _Counts) -> tuple[np.ndarray, np.ndarray]:
    """Increasing times (h) and concentrations (mg/L) of one curve; repeated times are averaged geometrically."""
    by_time: dict[float, list[float]] = {}
    for row in rows:
        time, conc = row.number("time_h"), row.number("conc_mg_per_L")
        if conc is not None and conc < 0:
            raise InputError("conc_mg_per_L", value=conc, unit="mg/L", allowed=">= 0", where=row.where)
        if time is None or conc is None:
            counts.dropped["no time or no concentration"] += 1
        elif time <= 0:  # the one dose is at 0: a model without a baseline cannot predict what precedes it
            counts.dropped["not after the dose"] += 1
        elif conc == 0:
            counts.dropped["zero: below a limit of quantification that is not stated"] += 1
        else:
            by_time.setdefault(time, []).append(conc)
    counts.averaged += sum(len(values) - 1 for values in by_time.values())
    times = sorted(by_time)
    return np.asarray(times), np.asarray([_geometric_mean(by_time[t]) for t in times])


def _check_constant(rows: list[TextRow], columns: tuple[str, ...]) -> None:
    for row in rows[1:]:
        for column in columns:
            if row.text(column) != rows[0].text(column):
                raise InputError(
                    column, f"changes within curve {row.text('curve_id')}", value=row.text(column),
                    allowed=rows[0].text(column) or "empty", where=row.where,
                )  # fmt: skip


def _curve(
    curve_id: str, rows: list[TextRow], topology: Topology, kp_method: str, counts: _Counts
) -> CurveTable | None:
    """One curve, or None (counted) when it cannot be used."""
    first = rows[0]
    _check_constant(rows, CURVE_COLUMNS + OPTIONAL_CURVE_COLUMNS)
    reason = _exclusion(first)
    if reason:
        counts.excluded[reason] += 1
        return None
    mine = _Counts()
    time, conc = _observations(rows, mine)
    if not len(time):
        counts.excluded["no concentration at a positive time"] += 1
        return None
    counts.dropped += mine.dropped
    counts.averaged += mine.averaged
    _flag(first, counts.flagged)
    route = first.text("route").lower()
    duration = (first.number("infusion_duration_h") or 0.0) if route == "iv_infusion" else 0.0
    drug = _drug(first)
    try:
        table = curve_table_for(
            drug, topology, first.number("body_weight_used_kg") or 0.0,
            [Dose(0.0, first.number("dose_mg_used") or 0.0, duration, route)], time,
            MATRIX_MEANING[first.text("matrix").lower()],
            curve_id=curve_id, compound_id=drug.name, kp_method=kp_method,
        )  # fmt: skip
    except InputError as error:
        raise located(error, first.where) from None
    observed = table.conc_mg_l.copy()
    observed[0, 0] = conc
    # 1e-5 x dose / blood volume as for simulated data, but never above what the laboratory did quantify
    return replace(table, conc_mg_l=observed, loq_mg_l=np.minimum(table.loq_mg_l, conc.min()))


def read_observed(
    path: Path, topology: Topology, kp_method: str = DEFAULT_KP_METHOD
) -> tuple[CurveTable, ObservedReport]:
    """Measured human curves and the account of what was left out.

    Concentrations sit in the blood row, in the curve's own matrix; other organs are NaN. ``plasma_assumed`` is read as
    plasma, ``whole_blood`` as venous blood. CLint 0 means that no turnover was measured and is kept. Values that do not
    come after the dose, which is at time 0, are dropped and counted: the model has no baseline. Zero concentrations
    are dropped (below an LLOQ nobody states), so nothing is censored. Each curve's ``loq_mg_l`` is 1e-5 x dose / blood
    volume, lowered to its smallest observed value where that is smaller.

    Args:
        path: CSV file with ``REQUIRED_COLUMNS``; other columns may be there.
        topology: ``hub`` or ``circulation``.
        kp_method: A key of ``pk.partition.KP_METHODS``.

    Raises:
        InputError: in one line, for a file that is no such table, text where a number belongs, a curve whose dose or
            drug changes between rows, an impossible value, or when not one curve can be used.
    """
    _, rows = read_rows(path, REQUIRED_COLUMNS)
    by_curve: dict[str, list[TextRow]] = {}
    for row in rows:
        if not row.text("curve_id"):
            raise InputError("curve_id", "is empty", where=row.where)
        by_curve.setdefault(row.text("curve_id"), []).append(row)
    counts = _Counts()
    curves = [_curve(curve_id, group, topology, kp_method, counts) for curve_id, group in by_curve.items()]
    kept = [curve for curve in curves if curve is not None]
    if not kept:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in counts.excluded.most_common())
        raise InputError("curves", "are all left out", hint=reasons, where=str(path))
    table = stack_tables(kept).validate(str(path))
    report = ObservedReport(
        n_rows=len(rows),
        n_curves=len(by_curve),
        n_compounds=len({compound_key(row.text("compound")) for row in rows}),
        n_kept=len(kept),
        n_kept_compounds=len(set(table.compound_id.tolist())),
        excluded=dict(counts.excluded),
        flagged={reason: n for reason, n in counts.flagged.items() if n},
        dropped_values=dict(counts.dropped),
        averaged_values=counts.averaged,
    )
    return table, report

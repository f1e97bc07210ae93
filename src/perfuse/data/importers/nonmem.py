"""NONMEM data files: ID, TIME, AMT, RATE, DUR, II, ADDL, SS, DV, EVID, MDV, CMT, BLQ, LLOQ and covariates.

Conventions are NONMEM's (ICON, NM-TRAN Help Guide: data items EVID, MDV, RATE, ADDL, II, SS); a missing value is
``.``, empty or ``NA``. Beyond them:

* Units are not in the file: ``NonmemOptions`` says them, and which CMT is what.
* Covariates are those of the tidy table (``FUP``, ``KP_LIVER``, ``CLINT_L_H``; any case), WT is the body weight. They
  may be on any record of an individual and may not change. With a ``drug`` they come from it and the weight alone.
  Other columns (AGE, SEX) are passed over.
* A reset (EVID 3, 4) begins a new curve of the individual, named ``<ID>/2`` and so on. Times are kept as they are.
* SS=1 is replaced by ``steady_state_doses`` doses before it; the curve's clock then starts at the first of them.
* Text columns DRUG, CURVE, MATRIX, ORGAN, TOPOLOGY are ours; NONMEM does not read them, as they stand last.

Axis legend: C curves, n curves as the file tells them apart, R records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from perfuse.data.importers.nonmem_file import read_records
from perfuse.data.importers.nonmem_options import NonmemOptions
from perfuse.data.importers.nonmem_rows import (
    Records,
    per_curve_factor,
    read_dose_records,
    read_observation_records,
    read_record_kinds,
)
from perfuse.data.importers.nonmem_write import write_nonmem
from perfuse.data.importers.tidy import assemble, refuse_absent
from perfuse.data.importers.tidy_columns import DESCRIPTORS, PATHWAYS, SCALARS, refuse, text
from perfuse.data.importers.tidy_covariates import Columns, read_covariates, table_columns
from perfuse.data.importers.tidy_events import Doses, after_first_dose
from perfuse.data.inputs import Dose, curve_table_for
from perfuse.data.stacking import stack_tables
from perfuse.data.table import CurveTable
from perfuse.data.units import conversion_factor
from perfuse.errors import InputError
from perfuse.pk.drug import Drug, located
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import Topology, get_topology

_OF_THE_FILE = ("body_weight_kg", "loq_mg_l")
"""Covariates that a file may state beside a drug."""


def read_nonmem(
    path: Path, options: NonmemOptions | None = None, *, drug: Drug | None = None, topology: Topology | None = None
) -> CurveTable:
    """Read a NONMEM data file (see the module's text).

    Args:
        path: The file: comma-separated, or by blanks and tabs; the first line names the columns.
        options: Units, compartments and what else the file does not say.
        drug: Gives every parameter of the drug, so that the file needs the body weight (WT) alone.
        topology: Organ graph; unset, the options' or the file's TOPOLOGY column says, else ``circulation``.

    Raises:
        InputError: one line naming the file, the row, the column, the value and what is allowed.
    """
    options, where = options or NonmemOptions(), str(path)
    graph = topology or (get_topology(options.topology) if options.topology else None)
    frame, shown = read_records(path, options.columns, _covariate_names(graph))
    graph = _graph(frame, graph, where)
    records = read_record_kinds(frame, where)
    n = len(records.names)
    given = read_covariates(frame, records.curve, n, graph, where, shown)
    refuse_absent(records.curve[records.is_dose], "dose", [f"ID {name}" for name in records.names], where)
    compounds = _compounds(records, options, drug, path)
    names = [f"{compound}/{name}" for compound, name in zip(compounds, records.names, strict=True)]
    weight = given["body_weight_kg"]
    mw = given["mw_g_mol"] if drug is None else np.full(n, drug.mw_g_mol)
    units = ((options.dose_unit, "mg", "dose"), (options.dv_unit, "mg/L", "dv"))
    to_mg, to_mg_l = (per_curve_factor(*unit, mw, weight, records.names, where) for unit in units)
    to_h = conversion_factor(options.time_unit, "h", "time")
    doses, moved_h = read_dose_records(records, options, to_mg, to_h)
    seen, seen_frame = read_observation_records(records, options, to_mg_l, to_h, moved_h)
    seen = after_first_dose(seen_frame, seen, doses, n, where, "DV")
    refuse_absent(seen.subject, "observation", [f"ID {name}" for name in records.names], where)
    if drug is None:
        columns = table_columns(given, doses, names, graph, where)
    else:
        columns = _drug_columns(drug, graph, given, doses, shown, where)
    table = assemble(graph, compounds, names, columns, doses, seen)
    return _named_by_file(table, records, names).validate(where)


def _covariate_names(topology: Topology | None) -> frozenset[str]:
    """Every covariate that a file may hold, whatever its topology."""
    graphs = [get_topology(name) for name in ("hub", "circulation", "circulation-ps")]
    graphs += [topology] if topology is not None else []
    by_organ = {f"{p}_{o}{s}" for p, s in (("kp", ""), ("volume", "_l"), ("flow", "_l_h")) for o in ORGANS}
    of_graphs = {name for graph in graphs for name in graph.elimination_names}
    of_graphs |= {f"ps_{exchange.name}_l_h" for graph in graphs for exchange in graph.exchanges}
    return frozenset({*SCALARS, *DESCRIPTORS, *PATHWAYS, *by_organ, *of_graphs})


def _graph(frame: pl.DataFrame, given: Topology | None, where: str) -> Topology:
    named = sorted(text(frame, "TOPOLOGY").drop_nulls().unique().to_list())
    if len(named) > 1 or (given is not None and named and named[0] != given.name):
        allowed = given.name if given is not None else "one per file"
        raise InputError("TOPOLOGY", "differs", value=", ".join(named), allowed=allowed, where=where)
    if given is not None:
        return given
    try:
        return get_topology(named[0] if named else "circulation")
    except InputError as error:
        raise located(error, where) from None


def _one_text(records: Records, name: str) -> list[str | None]:
    """A text column by curve, None where it is not given; refuses one that differs within a curve."""
    column = text(records.frame, name)
    given = column.is_not_null().to_numpy()
    at = np.flatnonzero(given)
    first = np.full(len(records.names), -1)
    first[records.curve[at][::-1]] = at[::-1]
    out = [column[int(i)] if i >= 0 else None for i in first]
    mine = pl.Series([out[c] for c in records.curve], dtype=pl.String)
    differs = (column != mine).fill_null(False)
    refuse(records.frame, differs, records.where, name, "differs within one individual", values=column)
    return out


def _compounds(records: Records, options: NonmemOptions, drug: Drug | None, path: Path) -> np.ndarray:
    default = options.compound or (drug.name if drug is not None else Path(path).stem)
    return np.asarray([name or default for name in _one_text(records, "DRUG")], dtype=str)


def _named_by_file(table: CurveTable, records: Records, names: Sequence[str]) -> CurveTable:
    """The curves under the names of the CURVE column, where every curve has one of its own."""
    said = _one_text(records, "CURVE")
    if None in said or len(set(said)) < len(said) or len(table) != len(said):
        return table
    by_name = dict(zip(names, said, strict=True))
    stem = [str(c).removesuffix(f"/{m}") for c, m in zip(table.curve_id, table.matrix, strict=True)]
    return replace(table, curve_id=np.asarray([by_name[s] for s in stem], dtype=str))


def _drug_columns(
    drug: Drug, topology: Topology, given: Columns, doses: Doses, shown: dict[str, str], where: str
) -> Columns:
    """Columns by curve from the drug and each weight, by ``data.inputs.curve_table_for``."""
    twice = [name for name, values in given.items() if name not in _OF_THE_FILE and not np.isnan(values).all()]
    if twice:
        raise InputError(shown[twice[0]], "is given by the drug", where=where, hint="give the drug, or the columns")
    n = len(given["body_weight_kg"])
    swallows = np.zeros(n, dtype=bool)
    swallows[doses.subject[doses.is_oral]] = True
    tables: dict[tuple[float, bool], CurveTable] = {}
    keys = [(float(w), bool(s)) for w, s in zip(given["body_weight_kg"], swallows, strict=True)]
    for weight, oral in keys:
        if np.isnan(weight):
            raise InputError("WT", "is missing", where=where, hint="the drug's parameters depend on the body weight")
        if (weight, oral) not in tables:
            dose = Dose(0.0, 1.0, route="oral" if oral else "iv_bolus")
            try:
                tables[weight, oral] = curve_table_for(drug, topology, weight, [dose], np.ones(1))
            except InputError as error:
                raise located(error, f"{where}: WT {weight:g}") from None
    stacked = stack_tables([tables[key] for key in keys])
    wanted = (
        "body_weight_kg", "volume_l", "flow_l_h", "kp", "ps_l_h", "elimination_l_h", "fup", "bp_ratio", "ka_1_h",
        "lag_h", "f_abs", "vmax_mg_h", "km_u_mg_l", *("mw_g_mol", "logp", "pka_acid", "pka_base"),
        "clint_ul_min_million_cells",
    )  # fmt: skip
    return {name: stacked.column(name) for name in wanted} | {"loq_mg_l": given["loq_mg_l"]}


__all__ = ["NonmemOptions", "read_nonmem", "write_nonmem"]

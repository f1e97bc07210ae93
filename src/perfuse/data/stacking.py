"""Joining tables of curves into one, padding what differs in length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from perfuse.data.table import CurveTable
from perfuse.errors import InputError


def _padded(table: CurveTable, n_doses: int, n_times: int, n_pathways: int) -> CurveTable:
    more_doses, more_times = n_doses - table.dose_mg.shape[1], n_times - table.time_h.shape[1]
    doses, times = ((0, 0), (0, more_doses)), ((0, 0), (0, 0), (0, more_times))
    pathways = ((0, 0), (0, n_pathways - table.vmax_mg_h.shape[1]))
    return replace(
        table,
        dose_time_h=np.pad(table.dose_time_h, doses),
        dose_mg=np.pad(table.dose_mg, doses),
        dose_duration_h=np.pad(table.dose_duration_h, doses),
        time_h=np.pad(table.time_h, ((0, 0), (0, more_times)), constant_values=math.nan),
        conc_mg_l=np.pad(table.conc_mg_l, times, constant_values=math.nan),
        censored=np.pad(table.censored, times),
        dose_route=np.pad(table.dose_route, doses),
        vmax_mg_h=np.pad(table.vmax_mg_h, pathways),
        km_u_mg_l=np.pad(table.km_u_mg_l, pathways, constant_values=1.0),
    )


def stack_tables(tables: Sequence[CurveTable]) -> CurveTable:
    """All curves of several tables on one topology, padded to the most doses and times of any.

    Raises:
        InputError: for no table or tables on different topologies.
    """
    if not tables:
        raise InputError("curves", "are missing: there is not one", allowed=">= 1")
    topology = tables[0].topology
    for table in tables:
        if table.topology.name != topology.name:
            raise InputError("topology", "differs between tables", value=table.topology.name, allowed=topology.name)
    n_doses = max(t.dose_mg.shape[1] for t in tables)
    n_times = max(t.time_h.shape[1] for t in tables)
    n_pathways = max(t.vmax_mg_h.shape[1] for t in tables)
    padded = [_padded(t, n_doses, n_times, n_pathways) for t in tables]
    names = [f.name for f in fields(CurveTable) if f.name != "topology"]
    return CurveTable(topology=topology, **{n: np.concatenate([t.column(n) for t in padded]) for n in names})

"""Covariates of a tidy table by subject: body, drug, absorption, descriptors; read, checked, defaults filled in.

Axis legend: R rows, O reported organs, M eliminations, X exchanges, P saturable pathways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import polars as pl

from perfuse.data.importers.tidy_columns import DESCRIPTORS, SCALARS, numbers, refuse
from perfuse.data.importers.tidy_events import Doses
from perfuse.data.table import N_PKA, parameter_group
from perfuse.errors import InputError
from perfuse.pk.partition import KP_ALLOWED, KP_RANGE
from perfuse.pk.physiology import ORGANS, Physiology, check_flow_balance, hub_reference, human_reference
from perfuse.pk.topology import Topology

Columns = dict[str, np.ndarray]

_MAY_BE_ZERO = re.compile(r"vmax_mg_h_\d+|ps_.+_l_h|lag_h")
_KP = tuple(f"kp_{o}" for o in ORGANS)


def pathway_columns(frame_columns: list[str]) -> int:
    """How many saturable pathways the columns ``vmax_mg_h_<i>`` and ``km_u_mg_l_<i>`` speak of."""
    found = (re.fullmatch(r"(?:vmax_mg_h|km_u_mg_l)_([1-9])", name) for name in frame_columns)
    return max((int(match.group(1)) for match in found if match), default=0)


def read_covariates(
    frame: pl.DataFrame, subject: np.ndarray, n: int, topology: Topology, where: str,
    shown: Mapping[str, str] = MappingProxyType({}),
) -> Columns:  # fmt: skip
    """Each covariate by subject, ``(n,)`` with NaN where not given; refuses one that differs within a subject.

    Args:
        frame: Rows with the covariates' columns.
        subject: Number of each row's subject.
        n: How many subjects there are.
        topology: Says which eliminations and permeability-limited organs there are.
        where: File, for errors.
        shown: What the file calls a covariate, where it is not our name.
    """
    organ_columns = [f"{p}_{o}{s}" for p, s in (("kp", ""), ("volume", "_l"), ("flow", "_l_h")) for o in ORGANS]
    pathways = range(1, pathway_columns(frame.columns) + 1)
    saturable = [f"{name}_{i}" for i in pathways for name in ("vmax_mg_h", "km_u_mg_l")]
    permeability = [f"ps_{exchange.name}_l_h" for exchange in topology.exchanges]
    out: Columns = {}
    for name in (*SCALARS, *DESCRIPTORS, *topology.elimination_names, *organ_columns, *saturable, *permeability):
        called = shown.get(name, name)
        value = numbers(frame, name, where, called)
        given = np.flatnonzero(~np.isnan(value))
        of_subject = out[name] = np.full(n, np.nan)
        if not len(given):
            continue
        of_subject[subject[given][::-1]] = value[given][::-1]  # the first row given wins
        differs = np.zeros(len(value), dtype=bool)
        differs[given] = value[given] != of_subject[subject[given]]
        refuse(frame, differs, where, called, "differs within one drug and subject", values=value)
        wrong, allowed = _out_of_range(name, value, topology)
        refuse(frame, wrong, where, called, values=value, allowed=allowed)
    return out


def _out_of_range(name: str, value: np.ndarray, topology: Topology) -> tuple[np.ndarray, str]:
    """Which values cannot be, and what may be; NaN can. Descriptors have ranges of their own (``table_checks``)."""
    if name in DESCRIPTORS:
        return np.zeros(len(value), dtype=bool), ""
    if name in topology.elimination_names or _MAY_BE_ZERO.fullmatch(name):
        return value < 0, ">= 0"
    if name in _KP:
        return (value < KP_RANGE[0]) | (value > KP_RANGE[1]), KP_ALLOWED
    if name in ("fup", "f_abs"):
        return (value <= 0) | (value > 1), "(0, 1]"
    return value <= 0, "> 0"


def table_columns(covariates: Columns, doses: Doses, names: list[str], topology: Topology, where: str) -> Columns:
    """Columns of the table by subject: what is not given is filled in, or refused when nothing can stand for it."""
    _refuse_missing(covariates, names, topology, where)
    columns = _bodies(covariates, names, topology, where)
    columns |= _absorption(covariates, doses, names, where)
    columns |= _pathways(covariates, names, topology, where)
    columns["mw_g_mol"], columns["logp"] = covariates["mw_g_mol"], covariates["logp"]
    columns["clint_ul_min_million_cells"] = covariates["clint_ul_min_million_cells"]
    for name in ("pka_acid", "pka_base"):
        columns[name] = np.column_stack([covariates[f"{name}_{i}"] for i in range(1, N_PKA + 1)])
    return columns


def drug_groups(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """``(C,)`` names of equal drugs: by their parameters, and by their descriptors where parameters are not given."""
    parts = [columns[name] for name in ("kp", "elimination_l_h", "fup", "bp_ratio")]
    if (columns["vmax_mg_h"] > 0).any():
        parts += [columns["vmax_mg_h"], columns["km_u_mg_l"]]
    if np.isnan(columns["kp"]).any() or np.isnan(columns["elimination_l_h"]).any():
        names = ("mw_g_mol", "logp", "pka_acid", "pka_base", "clint_ul_min_million_cells")
        parts += [columns[name] for name in names]
    return parameter_group(*parts)


def _missing(absent: np.ndarray, name: str, names: list[str], where: str, hint: str) -> None:
    if absent.any():
        raise InputError(name, "is missing", where=f"{where}: {names[int(np.argmax(absent))]}", hint=hint)


def _refuse_missing(covariates: Columns, names: list[str], topology: Topology, where: str) -> None:
    """Kp and eliminations may be left out altogether where mw_g_mol and logp describe the drug; PS altogether."""
    described = ~np.isnan(covariates["mw_g_mol"]) & ~np.isnan(covariates["logp"])
    hint = f"a covariate that topology {topology.name} needs"
    permeability = tuple(f"ps_{exchange.name}_l_h" for exchange in topology.exchanges)
    for group, may_lack in ((topology.elimination_names, described), (_KP[1:], described), (permeability, True)):
        if group:
            none = np.isnan(np.column_stack([covariates[name] for name in group])).all(1) & may_lack
            for name in group:
                _missing(np.isnan(covariates[name]) & ~none, name, names, where, hint)
    for name in () if topology.name == "hub" else ("body_weight_kg", "fup", "bp_ratio"):
        _missing(np.isnan(covariates[name]), name, names, where, hint)


def _reference(body_weight_kg: float, where: str) -> Physiology:
    """``human_reference``; its error names the subject."""
    try:
        return human_reference(body_weight_kg)
    except InputError:
        raise InputError("body_weight_kg", value=body_weight_kg, unit="kg", allowed="(0, 300]", where=where) from None


def _bodies(covariates: Columns, names: list[str], topology: Topology, where: str) -> Columns:
    """Body weight, volumes, flows, Kp, PS, binding and eliminations, the reference body filled in; LOQ where said."""
    hub = topology.name == "hub"
    weight = np.where(
        np.isnan(covariates["body_weight_kg"]), hub_reference().body_weight_kg, covariates["body_weight_kg"]
    )
    bodies = [
        hub_reference() if hub else _reference(float(w), f"{where}: {n}") for w, n in zip(weight, names, strict=True)
    ]
    default = {"volume": [b.volume_l for b in bodies], "flow": [b.flow_l_h for b in bodies]}
    filled = {}
    for prefix, suffix in (("volume", "_l"), ("flow", "_l_h")):
        given = np.column_stack([covariates[f"{prefix}_{o}{suffix}"] for o in ORGANS])
        filled[prefix] = np.where(np.isnan(given), np.asarray(default[prefix]), given)
    for i, name in enumerate(() if hub else names):
        try:
            check_flow_balance(filled["flow"][i])
        except InputError as error:
            raise InputError(
                "flow_<organ>_l_h", f"cannot be: {error}", hint="give every flow, or none", where=f"{where}: {name}"
            ) from None
    kp = np.column_stack([covariates[name] for name in _KP])
    kp[:, 0] = np.where(np.isnan(kp[:, 0]), 1.0, kp[:, 0])
    ps = [covariates[f"ps_{exchange.name}_l_h"] for exchange in topology.exchanges]
    return {
        "body_weight_kg": weight,
        "volume_l": filled["volume"],
        "flow_l_h": filled["flow"],
        "kp": kp,
        "ps_l_h": np.column_stack(ps) if ps else np.empty((len(names), 0)),
        "elimination_l_h": np.column_stack([covariates[name] for name in topology.elimination_names]),
        "fup": np.where(np.isnan(covariates["fup"]), 1.0, covariates["fup"]),
        "bp_ratio": np.where(np.isnan(covariates["bp_ratio"]), 1.0, covariates["bp_ratio"]),
        "loq_mg_l": covariates["loq_mg_l"],
    }


def _absorption(covariates: Columns, doses: Doses, names: list[str], where: str) -> Columns:
    swallows = np.zeros(len(names), dtype=bool)
    swallows[doses.subject[doses.is_oral]] = True
    absent = swallows & np.isnan(covariates["ka_1_h"])
    _missing(absent, "ka_1_h", names, where, "an oral dose needs its absorption rate constant, 1/h")
    lag, f_abs = covariates["lag_h"], covariates["f_abs"]
    return {
        "ka_1_h": covariates["ka_1_h"],
        "lag_h": np.where(np.isnan(lag), 0.0, lag),
        "f_abs": np.where(np.isnan(f_abs), 1.0, f_abs),
    }


def _pathways(covariates: Columns, names: list[str], topology: Topology, where: str) -> Columns:
    """Vmax and Km,u, ``(n, P)``; a pathway without Vmax is none, one with it needs its Km,u."""
    n_pathways = sum(name.startswith("vmax_mg_h_") for name in covariates)
    vmax, km = np.zeros((len(names), max(n_pathways, 1))), np.ones((len(names), max(n_pathways, 1)))
    for p in range(n_pathways):
        given_vmax, given_km = covariates[f"vmax_mg_h_{p + 1}"], covariates[f"km_u_mg_l_{p + 1}"]
        vmax[:, p] = np.where(np.isnan(given_vmax), 0.0, given_vmax)
        absent = (vmax[:, p] > 0) & np.isnan(given_km)
        _missing(absent, f"km_u_mg_l_{p + 1}", names, where, f"vmax_mg_h_{p + 1} needs its unbound Km, mg/L")
        km[:, p] = np.where(np.isnan(given_km), 1.0, given_km)
        if topology.saturable_node is None and (vmax[:, p] > 0).any():
            name = names[int(np.argmax(vmax[:, p] > 0))]
            raise InputError(f"vmax_mg_h_{p + 1}", f"has no organ to act in on topology {topology.name}",
                             where=f"{where}: {name}", hint="use topology circulation")  # fmt: skip
    return {"vmax_mg_h": vmax, "km_u_mg_l": km}

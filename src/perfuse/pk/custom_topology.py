"""A user's own organs: added to a built-in topology, or a whole graph of one's own, from plain data (a parsed TOML
file).

Extending a body::

    extends = "circulation"

    [[organ]]
    name = "tumour"
    volume_l = 0.05
    flow_l_h = 1.2            # taken, like the volume, from `take_from` (default "other")
    kp = 1.5
    drains_to = "venous"      # default; "liver" for an organ on the portal vein
    ps_l_h = 0.4              # optional: permeability-limited, with
    vascular_fraction = 0.07
    clint_l_h = 0.0           # optional: unbound intrinsic clearance of that organ

A graph of one's own::

    name = "minimal"
    dose = "blood"
    [[node]]
    name = "blood"
    volume_l = 5.0
    blood = true
    [[node]]
    name = "tissue"
    volume_l = 40.0
    kp = 0.8
    [[flow]]
    from = "blood"
    to = "tissue"
    flow_l_h = 60.0
    [[flow]]
    from = "tissue"
    to = "blood"
    flow_l_h = 60.0
    [[elimination]]
    name = "cl_l_h"
    kind = "blood_clearance"
    organ = "blood"
    clearance_l_h = 6.0

Axis legend: B batch, N nodes, E flow edges, M eliminations, X exchanges, O reported organs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perfuse.errors import InputError
from perfuse.pk.partition import KP_ALLOWED, KP_RANGE
from perfuse.pk.system import SystemParameters
from perfuse.pk.topology import Elimination, Exchange, Topology

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
MAX_NODES = 200
BALANCE_RTOL = 1e-6


def _number(field: str, value: object, unit: str, *, zero: bool = False, where: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(field, "is not a number", value=value, unit=unit, where=where)
    if not (math.isfinite(value) and (value >= 0 if zero else value > 0)):
        raise InputError(field, value=float(value), unit=unit, allowed=f"{'>=' if zero else '>'} 0", where=where)
    return float(value)


def _name(field: str, value: object, where: str = "") -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InputError(field, "is no name", value=value, allowed="letters, digits and _, at most 40", where=where)
    return value


def _keys(table: object, allowed: Sequence[str], required: Sequence[str], where: str) -> Mapping[str, Any]:
    if not isinstance(table, Mapping):
        raise InputError(where, "is no table", value=table)
    for key in table:
        if key not in allowed:
            raise InputError(str(key), "is no known key", allowed=", ".join(allowed), where=where)
    for key in required:
        if key not in table:
            raise InputError(key, "is missing", where=where)
    return table


def _tables(data: Mapping[str, Any], key: str) -> list[Any]:
    found = data.get(key, [])
    if not isinstance(found, list):
        raise InputError(key, "is no list of tables", hint=f"write [[{key}]] before each")
    return found


@dataclass(frozen=True)
class ExtraOrgan:
    """An organ to add to a body; see the module for what each key means."""

    name: str
    volume_l: float
    flow_l_h: float
    kp: float = 1.0
    drains_to: str = "venous"
    take_from: str = "other"
    ps_l_h: float | None = None
    vascular_fraction: float = 0.0
    clint_l_h: float | None = None

    @classmethod
    def from_mapping(cls, data: object, where: str = "organ") -> ExtraOrgan:
        """From plain data.

        Raises:
            InputError: naming the key, its value and what is allowed.
        """
        table = _keys(data, tuple(cls.__dataclass_fields__), ("name", "volume_l", "flow_l_h"), where)
        name = _name("name", table["name"], where)
        where = f"organ {name}"
        kp = _number("kp", table.get("kp", 1.0), "", where=where)
        if not KP_RANGE[0] <= kp <= KP_RANGE[1]:
            raise InputError("kp", value=kp, allowed=KP_ALLOWED, where=where)
        ps, clint = table.get("ps_l_h"), table.get("clint_l_h")
        share = _number("vascular_fraction", table.get("vascular_fraction", 0.0), "", zero=True, where=where)
        if (ps is None) != (share == 0) or share >= 1:
            raise InputError(
                "vascular_fraction", value=share, allowed="in (0, 1) with ps_l_h, 0 without it", where=where
            )
        return cls(
            name, _number("volume_l", table["volume_l"], "L", where=where),
            _number("flow_l_h", table["flow_l_h"], "L/h", where=where), kp,
            _name("drains_to", table.get("drains_to", "venous"), where),
            _name("take_from", table.get("take_from", "other"), where),
            None if ps is None else _number("ps_l_h", ps, "L/h", zero=True, where=where), share,
            None if clint is None else _number("clint_l_h", clint, "L/h", zero=True, where=where),
        )  # fmt: skip


def _edge(topology: Topology, source: str, target: str) -> int:
    return topology.edges.index((topology.nodes.index(source), topology.nodes.index(target)))


def add_organ(system: SystemParameters, organ: ExtraOrgan) -> SystemParameters:
    """Every body of a batch on a circulation with one organ more; blood flow and volume stay what they were.

    Raises:
        InputError: for a topology without arterial blood, a name that is taken, an unknown node, or an organ to take
        from
            that is too small.
    """
    topology = system.topology
    where = f"organ {organ.name}"
    if "arterial" not in topology.nodes or topology.kp_is_blood:
        raise InputError("extends", "has no arterial blood", value=topology.name, allowed="circulation", where=where)
    vascular = f"{organ.name}_vascular"
    for name in (organ.name, vascular):
        if name in topology.nodes:
            raise InputError("name", "is taken", value=name, where=where)
    if organ.drains_to not in ("venous", "liver"):
        raise InputError("drains_to", value=organ.drains_to, allowed="venous, liver", where=where)
    giver_edges = [(s, d) for s, d in topology.edges if topology.nodes[s] == organ.take_from]
    if organ.take_from not in topology.nodes or giver_edges != [
        (topology.nodes.index(organ.take_from), topology.nodes.index("venous"))
    ]:
        raise InputError(
            "take_from", "is no organ between arterial and venous blood", value=organ.take_from, where=where
        )
    giver = topology.nodes.index(organ.take_from)
    taken_edges = [_edge(topology, "arterial", organ.take_from), _edge(topology, organ.take_from, "venous")]
    for field, have, want, unit in (
        ("volume_l", system.volume_l[:, giver], organ.volume_l, "L"),
        ("flow_l_h", system.flow_l_h[:, taken_edges[0]], organ.flow_l_h, "L/h"),
    ):
        if bool((have <= want).any()):
            raise InputError(field, f"exceeds that of {organ.take_from}", value=want, unit=unit,
                             allowed=f"< {float(have.min()):.4g}", where=where)  # fmt: skip
    return _added(system, organ, giver, taken_edges)


def _added(system: SystemParameters, organ: ExtraOrgan, giver: int, taken_edges: list[int]) -> SystemParameters:
    topology = system.topology
    limited = organ.ps_l_h is not None
    index = topology.n_nodes
    nodes = (*topology.nodes, organ.name, *((f"{organ.name}_vascular",) if limited else ()))
    perfused = index + 1 if limited else index
    liver = "liver_vascular" if "liver_vascular" in topology.nodes else "liver"
    drain = topology.nodes.index(liver if organ.drains_to == "liver" else organ.drains_to)
    edges = [*topology.edges, (topology.nodes.index("arterial"), perfused), (perfused, drain)]
    extra_flow = [organ.flow_l_h] * 2
    liver_out = None
    if organ.drains_to == "liver":
        liver_out = _edge(topology, liver, "venous")
    eliminations = list(topology.eliminations)
    if organ.clint_l_h is not None:
        eliminations.append(Elimination(f"clint_{organ.name}_l_h", index))
    exchanges = [*topology.exchanges, *([Exchange(organ.name, perfused, index)] if limited else [])]
    n_organs, added = len(topology.organs), len(nodes) - topology.n_nodes
    volume_map = np.zeros((n_organs + 1, len(nodes)))
    volume_map[:n_organs, : topology.n_nodes] = topology.volume_map
    volume_map[n_organs, index] = 1 - organ.vascular_fraction
    if limited:
        volume_map[n_organs, perfused] = organ.vascular_fraction
    flow_map = np.zeros((n_organs + 1, len(edges)))
    flow_map[:n_organs, : topology.n_edges] = topology.flow_map
    flow_map[n_organs, -2:] = 1
    wider = replace(
        topology, name=f"{topology.name}+{organ.name}", nodes=nodes,
        is_blood=(*topology.is_blood, False, *((True,) if limited else ())), edges=tuple(edges),
        eliminations=tuple(eliminations), volume_map=volume_map, flow_map=flow_map, organs=(*topology.organs,
        organ.name), organ_node=np.append(topology.organ_node, index), exchanges=tuple(exchanges),
    )  # fmt: skip

    def column(*values: float) -> Tensor:
        return torch.tensor([values], dtype=torch.float64).expand(len(system), -1)

    volume, flow = system.volume_l.clone(), system.flow_l_h.clone()
    volume[:, giver] -= organ.volume_l
    flow[:, taken_edges] -= organ.flow_l_h
    if liver_out is not None:
        flow[:, liver_out] += organ.flow_l_h
    spaces = [organ.volume_l * (1 - organ.vascular_fraction), organ.volume_l * organ.vascular_fraction][:added]
    return replace(
        system, topology=wider, volume_l=torch.cat((volume, column(*spaces)), 1),
        kp=torch.cat((system.kp, column(organ.kp, 1.0)[:, :added]), 1),
        flow_l_h=torch.cat((flow, column(*extra_flow)), 1),
        elimination_l_h=system.elimination_l_h if organ.clint_l_h is None else torch.cat(
            (system.elimination_l_h, column(organ.clint_l_h)), 1),
        ps_l_h=system.ps_l_h if not limited else torch.cat((system.ps_l_h, column(organ.ps_l_h or 0.0)), 1),
    )  # fmt: skip


_NODE_KEYS = ("name", "volume_l", "kp", "blood")
_FLOW_KEYS = ("from", "to", "flow_l_h")
_ELIMINATION_KEYS = ("name", "kind", "organ", "clearance_l_h", "from")
_EXCHANGE_KEYS = ("vascular", "tissue", "ps_l_h")
_GRAPH_KEYS = ("name", "dose", "absorption", "saturable", "kp_is_blood", "node", "flow", "elimination", "exchange")


def own_system(data: Mapping[str, Any], fup: float, bp_ratio: float) -> SystemParameters:
    """One body on a graph of one's own (see the module), with a drug's fup and B:P.

    Raises:
        InputError: in one line, for a key, name or value that cannot be used, or flows that do not balance in a node.
    """
    data = _keys(data, _GRAPH_KEYS, ("name", "dose", "node"), "topology")
    nodes = [_keys(t, _NODE_KEYS, ("name", "volume_l"), f"node {i}") for i, t in enumerate(_tables(data, "node"), 1)]
    names = [_name("name", table["name"], f"node {i}") for i, table in enumerate(nodes, 1)]
    if len(set(names)) != len(names):
        raise InputError("node", "names one twice", value=", ".join(n for n in names if names.count(n) > 1))
    if not 1 <= len(names) <= MAX_NODES:
        raise InputError("node", "are too few or too many", value=len(names), allowed=f"1 to {MAX_NODES}")

    def at(value: object, field: str, where: str) -> int:
        if value not in names:
            raise InputError(field, "is no node", value=value, allowed=", ".join(names), where=where)
        return names.index(str(value))

    flows = [_keys(t, _FLOW_KEYS, _FLOW_KEYS, f"flow {i}") for i, t in enumerate(_tables(data, "flow"), 1)]
    edges = tuple((at(t["from"], "from", f"flow {i}"), at(t["to"], "to", f"flow {i}")) for i, t in enumerate(flows, 1))
    flow = [_number("flow_l_h", t["flow_l_h"], "L/h", where=f"flow {i}") for i, t in enumerate(flows, 1)]
    _check_balance(names, edges, flow)
    eliminations, clearances = _eliminations(data, at, edges)
    exchanges, ps = [], []
    for i, raw in enumerate(_tables(data, "exchange"), 1):
        table = _keys(raw, _EXCHANGE_KEYS, _EXCHANGE_KEYS, f"exchange {i}")
        tissue = at(table["tissue"], "tissue", f"exchange {i}")
        exchanges.append(Exchange(names[tissue], at(table["vascular"], "vascular", f"exchange {i}"), tissue))
        ps.append(_number("ps_l_h", table["ps_l_h"], "L/h", zero=True, where=f"exchange {i}"))
    vascular = {x.vascular for x in exchanges}
    reported = [i for i in range(len(names)) if i not in vascular]
    volume_map = np.zeros((len(reported), len(names)))
    volume_map[np.arange(len(reported)), reported] = 1
    for i, table in enumerate(nodes):
        _truth("blood", table.get("blood", False), f"node {names[i]}")
        if "kp" in table and (table.get("blood", False) or i in vascular):
            raise InputError("kp", "is 1 in blood", value=table["kp"], where=f"node {names[i]}", hint="leave it out")
    blood = tuple(table.get("blood", False) or i in vascular for i, table in enumerate(nodes))
    kp_is_blood = _truth("kp_is_blood", data.get("kp_is_blood", False), "topology")
    _check_sites(data, eliminations, names, blood, kp_is_blood)
    optional = {key: at(data[key], key, "topology") for key in ("absorption", "saturable") if key in data}
    topology = Topology(
        name=_name("name", data["name"]), nodes=tuple(names), is_blood=blood, edges=edges, eliminations=eliminations,
        dose_node=at(data["dose"], "dose", "topology"), volume_map=volume_map, flow_map=np.zeros((len(reported),
        len(edges))), organs=tuple(names[i] for i in reported), organ_node=np.asarray(reported),
        exchanges=tuple(exchanges), absorption_node=optional.get("absorption"),
        saturable_node=optional.get("saturable"), kp_is_blood=kp_is_blood,
    )  # fmt: skip
    row = lambda values: torch.tensor([list(values)], dtype=torch.float64)  # noqa: E731
    kp = [
        1.0 if blood[i] else _number("kp", t.get("kp", 1.0), "", where=f"node {names[i]}") for i, t in enumerate(nodes)
    ]
    volume = [_number("volume_l", t["volume_l"], "L", where=f"node {names[i]}") for i, t in enumerate(nodes)]
    one = lambda x: torch.tensor([x], dtype=torch.float64)  # noqa: E731
    return SystemParameters(
        topology, row(volume), row(kp), row(flow), row(clearances), one(fup), one(bp_ratio), row(ps) if ps else
        torch.empty(1, 0)
    )  # fmt: skip


def _truth(field: str, value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(field, "is neither true nor false", value=value, where=where)
    return value


def _check_sites(
    data: Mapping[str, Any], eliminations: tuple[Elimination, ...], names: list[str], blood: tuple[bool, ...],
    kp_is_blood: bool,
) -> None:  # fmt: skip
    """Refuse an unbound intrinsic clearance in blood, where Kp = 1 says nothing of B:P."""
    sites = [e.source for e in eliminations if e.kind == "intrinsic"]
    sites += [names.index(str(data["saturable"]))] if data.get("saturable") in names else []
    for site in sites:
        if blood[site] and not kp_is_blood:
            raise InputError("elimination", "is intrinsic, and in blood", value=names[site],
                             allowed="a tissue, or kind blood_clearance")  # fmt: skip


def _eliminations(data: Mapping[str, Any], at: Any, edges: tuple[tuple[int, int], ...]) -> tuple[Any, list[float]]:
    out, clearances = [], []
    for i, raw in enumerate(_tables(data, "elimination"), 1):
        where = f"elimination {i}"
        table = _keys(raw, _ELIMINATION_KEYS, ("name", "kind", "organ", "clearance_l_h"), where)
        kind, organ = table["kind"], at(table["organ"], "organ", where)
        diverted, source = -1, organ
        if kind not in ("intrinsic", "blood_clearance", "inflow"):
            raise InputError("kind", value=kind, allowed="intrinsic, blood_clearance, inflow", where=where)
        if kind == "inflow":
            source = at(table.get("from"), "from", where)
            if (source, organ) not in edges:
                raise InputError("from", "has no flow into the organ", value=table.get("from"), where=where)
            diverted = edges.index((source, organ))
        out.append(Elimination(_name("name", table["name"], where), source, diverted, kind))
        clearances.append(_number("clearance_l_h", table["clearance_l_h"], "L/h", zero=True, where=where))
    return tuple(out), clearances


def _check_balance(names: list[str], edges: tuple[tuple[int, int], ...], flow: list[float]) -> None:
    """Refuse a node that more blood enters than leaves, or less."""
    for i, name in enumerate(names):
        entering = sum(q for (_, d), q in zip(edges, flow, strict=True) if d == i)
        leaving = sum(q for (s, _), q in zip(edges, flow, strict=True) if s == i)
        if abs(entering - leaving) > BALANCE_RTOL * max(entering, leaving):
            raise InputError("flow_l_h", f"into and out of {name} differ", value=round(entering - leaving, 9),
            unit="L/h",
                             allowed="the same in as out", where=f"node {name}")  # fmt: skip

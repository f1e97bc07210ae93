"""Which body a study takes place in: a built-in topology, with organs of the user's own, or a whole graph of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perfuse.data.study_tables import file_beside, section, tables
from perfuse.errors import InputError
from perfuse.files import read_toml
from perfuse.pk.custom_topology import ExtraOrgan, own_system
from perfuse.pk.drug import HEPATIC_FIELDS, Drug, located
from perfuse.pk.system import SystemParameters
from perfuse.pk.topology import Topology, circulation, get_topology

STRUCTURE_KEYS = ("topology", "permeability_limited", "file")
_EXTENSION_KEYS = ("extends", "permeability_limited", "organ")


@dataclass(frozen=True)
class Structure:
    """The body's structure.

    Attributes:
        topology: Built-in; None where the user has a graph of their own.
        extra_organs: Organs to add to it.
        graph: The user's own graph, plain data for ``own_system``.
        where: The structure file, for messages.
    """

    topology: Topology | None
    extra_organs: tuple[ExtraOrgan, ...] = ()
    graph: Mapping[str, Any] | None = None
    where: str = ""


def read_structure(data: Mapping[str, Any], folder: Path) -> Structure:
    """``[structure]`` and ``[[organ]]`` of a study, or the structure file that it names.

    Raises:
        InputError: naming the key or value that cannot be used, and the file when it is there.
    """
    table = section(data, "structure", STRUCTURE_KEYS)
    if "file" not in table:
        organs = tables(data, "organ")
        return _extended(table.get("topology", "circulation"), table.get("permeability_limited", []), organs)
    if len(table) > 1 or "organ" in data:
        raise InputError("structure.file", "stands alone: it holds topology and organs", value=table["file"])
    path = file_beside(folder, "structure.file", table["file"])
    content = read_toml(path, "structure.file")
    try:
        if "extends" not in content:
            return Structure(None, (), content, str(path))
        for key in content:
            if key not in _EXTENSION_KEYS:
                raise InputError(key, "is no known key", allowed=", ".join(_EXTENSION_KEYS))
        return _extended(content["extends"], content.get("permeability_limited", []), tables(content, "organ"))
    except InputError as error:
        raise located(error, str(path)) from None


def _extended(name: object, limited: object, organs: list[Mapping[str, Any]]) -> Structure:
    extra = tuple(ExtraOrgan.from_mapping(t, f"organ {i}") for i, t in enumerate(organs, 1))
    if (
        not isinstance(limited, list)
        or not all(isinstance(o, str) for o in limited)
        or len(set(limited)) != len(limited)
    ):
        raise InputError("structure.permeability_limited", "is no list of different organs", value=limited)
    if not limited:
        return Structure(get_topology(str(name)), extra)
    if name != "circulation":
        raise InputError("structure.permeability_limited", "needs the topology circulation", value=name)
    return Structure(circulation(tuple(limited), f"circulation with {', '.join(limited)} permeability-limited"), extra)


def graph_system(structure: Structure, drug: Drug) -> SystemParameters:
    """The one body of a user's graph, with the drug's fup, B:P and saturable pathways; the rest is the graph's.

    Raises:
        InputError: for a graph that cannot be, or a number of the drug that the graph gives itself.
    """
    given = [name for name in (*HEPATIC_FIELDS, "cl_renal_l_h", "cl_secretion_l_h") if getattr(drug, name) is not None]
    given += [name for name in ("kp", "ps_l_h") if getattr(drug, name)]
    if given:
        raise InputError(f"drug.{given[0]}", "has no place in a graph of one's own",
                         hint="give clearances, Kp and PS in the graph")  # fmt: skip
    assert structure.graph is not None
    try:
        system = own_system(structure.graph, drug.fup, drug.bp_ratio_or_default)
    except InputError as error:
        raise located(error, structure.where) from None
    if not drug.saturable:
        return system
    node = system.topology.saturable_node
    if node is None:
        raise InputError("saturable", "is missing: the node where saturable metabolism takes place",
                         where=structure.where)  # fmt: skip
    volume = float(system.volume_l[0, node])
    row = lambda values: torch.tensor([values], dtype=torch.float64)  # noqa: E731
    return SystemParameters(
        system.topology, system.volume_l, system.kp, system.flow_l_h, system.elimination_l_h, system.fup,
        system.bp_ratio, system.ps_l_h, row([p.vmax_in(volume) for p in drug.saturable]),
        row([p.km_u_mg_l for p in drug.saturable]),
    )  # fmt: skip

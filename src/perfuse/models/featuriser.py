"""What a model reads, in order: the record that a checkpoint carries, so that no later version feeds it otherwise.

Weights know their inputs by place alone. A version that lists organs, edges or columns in another order, or computes a
column otherwise, would predict something else without an error; comparing this record finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from perfuse.models.descriptor_features import DESCRIPTOR_FEATURES, HALF_IONISED_ACID_PKA, PH, STRONG_BASE_PKA
from perfuse.models.features import MIN_CLEARANCE_L_H, MIN_PS_L_H
from perfuse.pk.composition import CELLULAR_COMPOSITION, CellularComposition
from perfuse.pk.physiology import ORGANS
from perfuse.pk.topology import Topology

Transform: TypeAlias = Literal["ln", "none", "flag"]
_UNITS = {
    "volume": "L", "kp": "1", "flow": "L/h", "clearance": "L/h", "ps": "L/h", "fup": "1", "bp_ratio": "1",
    "vmax": "mg/h", "km_u": "mg/L", "dose": "mg",
}  # fmt: skip
"""By what a feature's name begins with."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Feature(_Record):
    """One input column: ``transform`` (natural log, the quantity itself, or 0/1) of a quantity in ``unit``."""

    name: str
    unit: str
    transform: Transform


class Featuriser(_Record):
    """All that a model reads. Scaling to mean 0 and variance 1 follows; its statistics are tensors of the model.

    Attributes:
        nodes, edges, eliminations, exchanges: Of the organ graph, in order; an edge is "source>target".
        features: Columns, in order, of each part of the model.
        constants: Numbers that enter how a column is computed.
    """

    nodes: tuple[str, ...]
    edges: tuple[str, ...]
    eliminations: tuple[str, ...]
    exchanges: tuple[str, ...]
    features: dict[str, tuple[Feature, ...]] = {}
    constants: dict[str, float] = {}

    def with_parts(self, features: dict[str, tuple[Feature, ...]], constants: dict[str, float]) -> Featuriser:
        """The same and more."""
        return self.model_copy(
            update={"features": {**self.features, **features}, "constants": {**self.constants, **constants}}
        )

    def first_difference(self, other: Featuriser) -> tuple[str, str, str] | None:
        """(where, this one's, the other's) of the first thing that is not the same; None if all is."""
        for kind in ("nodes", "edges", "eliminations", "exchanges"):
            found = _first_unlike(kind, getattr(self, kind), getattr(other, kind))
            if found:
                return found
        for part in [*self.features, *sorted(set(other.features) - set(self.features))]:
            found = _first_unlike(
                f"features of {part}", *(tuple(map(_shown, x.features.get(part, ()))) for x in (self, other))
            )
            if found:
                return found
        for name in [*self.constants, *sorted(set(other.constants) - set(self.constants))]:
            mine, theirs = self.constants.get(name), other.constants.get(name)
            if mine != theirs:
                return f"constant {name}", _number(mine), _number(theirs)
        return None


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _shown(feature: Feature) -> str:
    unit = "" if feature.unit == "1" else f" in {feature.unit}"
    return f"{feature.name}{unit}" if feature.transform != "ln" else f"ln {feature.name}{unit}"


def _first_unlike(where: str, mine: Sequence[str], theirs: Sequence[str]) -> tuple[str, str, str] | None:
    for i in range(max(len(mine), len(theirs))):
        here, there = (x[i] if i < len(x) else "none" for x in (mine, theirs))
        if here != there:
            return f"{where}, number {i + 1}", here, there
    return None


def of_graph(topology: Topology) -> Featuriser:
    """The record of a model's organ graph; the model adds its columns."""
    nodes = topology.nodes
    return Featuriser(
        nodes=nodes,
        edges=tuple(f"{nodes[a]}>{nodes[b]}" for a, b in topology.edges),
        eliminations=topology.elimination_names,
        exchanges=tuple(f"{nodes[x.vascular]}>{nodes[x.tissue]}" for x in topology.exchanges),
    )


def columns(names: Iterable[str], of: str = "", transform: Transform = "ln") -> tuple[Feature, ...]:
    """Columns by the names of their quantities, which say their units; ``of`` is appended to each, in brackets."""
    return tuple(Feature(name=f"{name}[{of}]" if of else name, unit=_unit(name), transform=transform) for name in names)


def _unit(name: str) -> str:
    return _UNITS[next(start for start in sorted(_UNITS, key=len, reverse=True) if name.startswith(start))]


def flags(names: Iterable[str]) -> tuple[Feature, ...]:
    """Columns of 0 and 1."""
    return tuple(Feature(name=name, unit="1", transform="flag") for name in names)


def given(names: Iterable[str]) -> tuple[Feature, ...]:
    """Columns whose names say the transform themselves, such as ``ln_mw``."""
    return tuple(Feature(name=name, unit="1", transform="none") for name in names)


GRAPH_CONSTANTS = {"min_clearance_l_h": MIN_CLEARANCE_L_H, "min_ps_l_h": MIN_PS_L_H}
DESCRIPTOR_CONSTANTS = {
    **{f"ph_{water}": value for water, value in PH.items()},
    "half_ionised_acid_pka": HALF_IONISED_ACID_PKA, "strong_base_pka": STRONG_BASE_PKA,
}  # fmt: skip


def descriptors() -> tuple[Feature, ...]:
    """Columns of the molecule's descriptors."""
    return given(DESCRIPTOR_FEATURES)


def latents(topology: Topology) -> tuple[Feature, ...]:
    """What stands in for Kp, PS and clearances that are not given, in order (``drug_latents``)."""
    return (
        *(c for organ in ORGANS for c in columns(["kp"], organ)),
        *(c for exchange in topology.exchanges for c in columns(["ps"], exchange.name)),
        *(c for name in topology.elimination_names for c in columns(["clearance"], name)),
    )


def composition() -> tuple[tuple[Feature, ...], dict[str, float]]:
    """Columns of what tissues are made of, and every value: they are no tensors of a checkpoint."""
    names = [f.name for f in fields(CellularComposition)]
    values = {
        f"{organ}.{name}": value
        for organ, tissue in CELLULAR_COMPOSITION.items()
        for name, value in zip(names, astuple(tissue), strict=True)
    }
    return tuple(Feature(name=name, unit="1", transform="ln") for name in names), values

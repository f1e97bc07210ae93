"""Organ graphs: which compartments exist, which blood flows join them, where drug is eliminated.

Axis legend: N nodes (compartments), E flow edges, M elimination edges, O the 14 reported organs.
A topology is static and shared by every curve of a batch; volumes, flows and clearances vary per curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, PORTAL_ORGANS

ARTERIAL_FRACTION = 0.25
"""Share of blood volume that is arterial: Brown RP et al. Toxicol Ind Health 1997;13:407-484 (25 % / 75 %)."""


@dataclass(frozen=True)
class Elimination:
    """One way out of the body: ``name`` of its parameter, source node, and the flow edge it is drawn from.

    ``diverted_edge`` is -1 when drug leaves the source compartment as such; otherwise it is the index of the
    flow edge whose stream loses the drug on its way (renal clearance from the kidney's arterial inflow).
    """

    name: str
    source: int
    diverted_edge: int = -1


@dataclass(frozen=True, eq=False)
class Topology:
    """A static organ graph. ``edge_index`` follows PyTorch Geometric: row 0 sources, row 1 targets."""

    name: str
    nodes: tuple[str, ...]
    is_blood: tuple[bool, ...]
    edges: tuple[tuple[int, int], ...]
    eliminations: tuple[Elimination, ...]
    dose_node: int
    volume_map: np.ndarray
    """``(O, N)``: node volumes = organ volumes @ volume_map."""
    flow_map: np.ndarray
    """``(O, E)``: edge flows = organ flows @ flow_map."""

    @property
    def n_nodes(self) -> int:
        return len(self.nodes)

    @property
    def n_edges(self) -> int:
        return len(self.edges)

    @property
    def n_eliminations(self) -> int:
        return len(self.eliminations)

    @property
    def elimination_names(self) -> tuple[str, ...]:
        """Column names of the elimination parameters, L/h."""
        return tuple(e.name for e in self.eliminations)

    @cached_property
    def edge_index(self) -> np.ndarray:
        """``(2, E)`` int64."""
        return np.asarray(self.edges, dtype=np.int64).T.copy()

    @cached_property
    def organ_node(self) -> np.ndarray:
        """``(O,)`` node that is reported as each organ (``blood`` is the venous node)."""
        return np.asarray(
            [self.nodes.index("venous" if o == "blood" and "venous" in self.nodes else o) for o in ORGANS]
        )

    @cached_property
    def node_identity(self) -> np.ndarray:
        """``(N,)`` what each node is: its organ's index, or 14 for arterial blood, which is no reported organ."""
        out = np.full(self.n_nodes, len(ORGANS))
        out[self.organ_node] = np.arange(len(ORGANS))
        return out

    @cached_property
    def incidence(self) -> np.ndarray:
        """``(E + M, N * N)``: generator K = (rates @ incidence).reshape(N, N), dA/dt = K A.

        Row e moves drug along flow edge e; row E + m eliminates. A diverted elimination takes its share out of
        the stream of its flow edge, so it lowers the target's inflow and leaves the source's total outflow.
        """
        n = self.n_nodes
        out = np.zeros((self.n_edges + self.n_eliminations, n, n))
        for e, (src, dst) in enumerate(self.edges):
            out[e, dst, src] += 1
            out[e, src, src] -= 1
        for m, elimination in enumerate(self.eliminations):
            row = out[self.n_edges + m]
            if elimination.diverted_edge < 0:
                row[elimination.source, elimination.source] -= 1
            else:
                src, dst = self.edges[elimination.diverted_edge]
                row[dst, src] -= 1
        return out.reshape(len(out), n * n)

    def permuted(self, order: Sequence[int]) -> Topology:
        """The same graph with nodes listed in another order (node ``order[i]`` becomes node ``i``)."""
        order = list(order)
        if sorted(order) != list(range(self.n_nodes)):
            raise InputError("order", "is not a permutation of the nodes", value=order)
        new = {old: i for i, old in enumerate(order)}
        return Topology(
            name=self.name,
            nodes=tuple(self.nodes[i] for i in order),
            is_blood=tuple(self.is_blood[i] for i in order),
            edges=tuple((new[s], new[d]) for s, d in self.edges),
            eliminations=tuple(Elimination(e.name, new[e.source], e.diverted_edge) for e in self.eliminations),
            dose_node=new[self.dose_node],
            volume_map=self.volume_map[:, order],
            flow_map=self.flow_map,
        )


def _hub() -> Topology:
    """The origin's star: blood in the middle, both clearances (blood clearances) from blood."""
    tissues = [i for i in range(len(ORGANS)) if i != 0]
    edges = [(0, t) for t in tissues] + [(t, 0) for t in tissues]
    flow_map = np.zeros((len(ORGANS), len(edges)))
    for e, (src, dst) in enumerate(edges):
        flow_map[src or dst, e] = 1
    return Topology(
        name="hub",
        nodes=ORGANS,
        is_blood=tuple(o == "blood" for o in ORGANS),
        edges=tuple(edges),
        eliminations=(Elimination("cl_hepatic_l_h", 0), Elimination("cl_renal_l_h", 0)),
        dose_node=0,
        volume_map=np.eye(len(ORGANS)),
        flow_map=flow_map,
    )


def _circulation() -> Topology:
    """Venous -> lung -> arterial -> organs -> venous; gut, spleen and pancreas drain into the liver."""
    nodes = (*("venous" if o == "blood" else o for o in ORGANS), "arterial")
    index = {n: i for i, n in enumerate(nodes)}
    edges: list[tuple[int, int]] = []
    columns: list[dict[str, float]] = []

    def add(src: str, dst: str, **flow: float) -> None:
        edges.append((index[src], index[dst]))
        columns.append(flow)

    add("venous", "lung", lung=1)
    add("lung", "arterial", lung=1)
    for organ in ORGANS:
        if organ in ("blood", "lung"):
            continue
        inflow = {organ: 1.0}
        if organ == "liver":
            inflow |= {p: -1.0 for p in PORTAL_ORGANS}
        add("arterial", organ, **inflow)
        add(organ, "liver" if organ in PORTAL_ORGANS else "venous", **{organ: 1.0})
    flow_map = np.zeros((len(ORGANS), len(edges)))
    for e, flow in enumerate(columns):
        for organ, factor in flow.items():
            flow_map[ORGAN_INDEX[organ], e] = factor
    volume_map = np.zeros((len(ORGANS), len(nodes)))
    for organ in ORGANS[1:]:
        volume_map[ORGAN_INDEX[organ], index[organ]] = 1
    volume_map[0, index["venous"]] = 1 - ARTERIAL_FRACTION
    volume_map[0, index["arterial"]] = ARTERIAL_FRACTION
    return Topology(
        name="circulation",
        nodes=nodes,
        is_blood=tuple(n in ("venous", "arterial") for n in nodes),
        edges=tuple(edges),
        eliminations=(
            Elimination("clint_l_h", index["liver"]),
            Elimination("cl_renal_l_h", index["arterial"], edges.index((index["arterial"], index["kidney"]))),
        ),
        dose_node=index["venous"],
        volume_map=volume_map,
        flow_map=flow_map,
    )


@cache
def get_topology(name: str) -> Topology:
    """The named topology (one shared object per name).

    Raises:
        InputError: for an unknown name.
    """
    makers = {"hub": _hub, "circulation": _circulation}
    if name not in makers:
        raise InputError("topology", "is unknown", value=name, allowed=", ".join(makers))
    return makers[name]()

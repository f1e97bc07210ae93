"""Organ graphs: which compartments exist, which blood flows join them, where drug is eliminated.

Axis legend: N nodes (compartments), E flow edges, M eliminations, X exchanges (permeability-limited organs),
O reported organs. A topology is static and shared by every curve of a batch; volumes, flows and clearances vary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Literal

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, PORTAL_ORGANS

ARTERIAL_FRACTION = 0.25
"""Share of blood volume that is arterial: Brown RP et al. Toxicol Ind Health 1997;13:407-484 (25 % / 75 %)."""


VASCULAR_FRACTION: Mapping[str, float] = {
    "liver": 0.115, "kidney": 0.105, "brain": 0.037, "heart": 0.262, "muscle": 0.026, "adipose": 0.010,
    "gut": 0.024, "skin": 0.019, "bone": 0.041,
}  # fmt: skip
"""Vascular space of an organ as a fraction of its volume, for permeability-limited organs: Kawai R, Lemaire M,
Steimer JL, et al. J Pharmacokinet Biopharm 1994;22:327-365 (rat; PK-Sim uses them for every species)."""

EliminationKind = Literal["intrinsic", "blood_clearance", "inflow"]


@dataclass(frozen=True)
class Elimination:
    """One way out of the body: ``name`` of its parameter, source node, and the flow edge it is drawn from.

    ``kind`` says what the parameter (L/h) means: ``intrinsic`` is an unbound intrinsic clearance of the source,
    CLint fup / (V Kp); ``blood_clearance`` takes CL / V out of a blood node; ``inflow`` is a plasma clearance taken
    out of the stream of ``diverted_edge`` (renal clearance from the kidney's arterial inflow), whose source is
    ``source``. ``diverted_edge`` is -1 for the first two.
    """

    name: str
    source: int
    diverted_edge: int = -1
    kind: EliminationKind = "intrinsic"


@dataclass(frozen=True)
class Exchange:
    """A permeability-limited organ: ``name``, and the nodes of its vascular and its tissue space.

    Its permeability-surface product PS, L/h, acts on the unbound plasma concentration on both sides.
    """

    name: str
    vascular: int
    tissue: int


@dataclass(frozen=True, eq=False)
class Topology:
    """A static organ graph. ``edge_index`` follows PyTorch Geometric: row 0 sources, row 1 targets.

    Rate constants come in one order everywhere: flow edges, eliminations, then the exchanges' vascular-to-tissue
    and tissue-to-vascular rates.
    """

    name: str
    nodes: tuple[str, ...]
    is_blood: tuple[bool, ...]
    """Nodes that hold blood, vascular spaces included: their Kp is 1."""
    edges: tuple[tuple[int, int], ...]
    eliminations: tuple[Elimination, ...]
    dose_node: int
    """Where intravenous doses go."""
    volume_map: np.ndarray
    """``(O, N)``: node volumes = organ volumes @ volume_map."""
    flow_map: np.ndarray
    """``(O, E)``: edge flows = organ flows @ flow_map."""
    organs: tuple[str, ...] = ORGANS
    """The reported organs."""
    organ_node: np.ndarray = field(default_factory=lambda: np.arange(len(ORGANS)))
    """``(O,)`` node that is reported as each organ; the tissue space of a permeability-limited one."""
    exchanges: tuple[Exchange, ...] = ()
    absorption_node: int | None = None
    """Where an oral dose goes from the gut lumen; None when there is no such place."""
    saturable_node: int | None = None
    """Where saturable metabolism takes place."""
    kp_is_blood: bool = False
    """Whether Kp is tissue:blood (and B:P plays no part in distribution) rather than tissue:plasma."""

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
        return np.asarray(self.edges, dtype=np.int64).reshape(-1, 2).T.copy()

    @property
    def n_exchanges(self) -> int:
        return len(self.exchanges)

    @property
    def n_rates(self) -> int:
        """Rate constants of the linear system: E + M + 2 X."""
        return self.n_edges + self.n_eliminations + 2 * self.n_exchanges

    @cached_property
    def report_map(self) -> np.ndarray:
        """``(O, N)`` 0/1: the spaces that are reported as each organ; a vascular space counts to its organ."""
        out = np.zeros((len(self.organs), self.n_nodes))
        out[np.arange(len(self.organs)), self.organ_node] = 1
        for exchange in self.exchanges:
            out[:, exchange.vascular] = out[:, exchange.tissue]
        return out

    @cached_property
    def node_identity(self) -> np.ndarray:
        """``(N,)`` what each node is: its organ's index, or the number of organs for arterial blood, which is none."""
        spaces = self.report_map > 0
        return np.where(spaces.any(0), spaces.argmax(0), len(self.organs))

    @cached_property
    def incidence(self) -> np.ndarray:
        """``(n_rates, N * N)``: generator K = (rates @ incidence).reshape(N, N), dA/dt = K A.

        A flow or exchange row moves drug from node to node. A diverted elimination takes its share out of
        the stream of its flow edge, so it lowers the target's inflow and leaves the source's total outflow.
        """
        n = self.n_nodes
        out = np.zeros((self.n_rates, n, n))

        def move(row: int, src: int, dst: int) -> None:
            out[row, dst, src] += 1
            out[row, src, src] -= 1

        for e, (src, dst) in enumerate(self.edges):
            move(e, src, dst)
        for m, elimination in enumerate(self.eliminations, start=self.n_edges):
            if elimination.diverted_edge < 0:
                out[m, elimination.source, elimination.source] -= 1
            else:
                src, dst = self.edges[elimination.diverted_edge]
                out[m, dst, src] -= 1
        for x, exchange in enumerate(self.exchanges, start=self.n_edges + self.n_eliminations):
            move(x, exchange.vascular, exchange.tissue)
            move(x + self.n_exchanges, exchange.tissue, exchange.vascular)
        return out.reshape(len(out), n * n)

    def permuted(self, order: Sequence[int]) -> Topology:
        """The same graph with nodes listed in another order (node ``order[i]`` becomes node ``i``).

        Raises:
            InputError: when ``order`` is not a permutation.
        """
        order = list(order)
        if sorted(order) != list(range(self.n_nodes)):
            raise InputError("order", "is not a permutation of the nodes", value=order)
        new = {old: i for i, old in enumerate(order)}
        moved = lambda node: None if node is None else new[node]  # noqa: E731
        return replace(
            self,
            nodes=tuple(self.nodes[i] for i in order),
            is_blood=tuple(self.is_blood[i] for i in order),
            edges=tuple((new[s], new[d]) for s, d in self.edges),
            eliminations=tuple(replace(e, source=new[e.source]) for e in self.eliminations),
            dose_node=new[self.dose_node],
            volume_map=self.volume_map[:, order],
            organ_node=np.asarray([new[i] for i in self.organ_node]),
            exchanges=tuple(Exchange(x.name, new[x.vascular], new[x.tissue]) for x in self.exchanges),
            absorption_node=moved(self.absorption_node),
            saturable_node=moved(self.saturable_node),
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
        eliminations=(
            Elimination("cl_hepatic_l_h", 0, kind="blood_clearance"),
            Elimination("cl_renal_l_h", 0, kind="blood_clearance"),
        ),
        dose_node=0,
        volume_map=np.eye(len(ORGANS)),
        flow_map=flow_map,
        absorption_node=ORGAN_INDEX["gut"],
        kp_is_blood=True,
    )


def circulation(permeability_limited: Sequence[str] = (), name: str = "circulation") -> Topology:
    """Venous -> lung -> arterial -> organs -> venous; gut, spleen and pancreas drain into the liver.

    Args:
        permeability_limited: Organs of ``VASCULAR_FRACTION`` whose tissue exchanges with a vascular space of its own.
        name: Name of the topology.

    Raises:
        InputError: for an organ that has no vascular fraction here.
    """
    for organ in permeability_limited:
        if organ not in VASCULAR_FRACTION:
            raise InputError("permeability_limited", value=organ, allowed=", ".join(VASCULAR_FRACTION))
    limited = tuple(permeability_limited)
    tissues = ("venous" if o == "blood" else o for o in ORGANS)
    nodes = (*tissues, "arterial", *(f"{o}_vascular" for o in limited))
    index = {n: i for i, n in enumerate(nodes)}
    liver = "liver_vascular" if "liver" in limited else "liver"
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
        perfused = f"{organ}_vascular" if organ in limited else organ
        add("arterial", perfused, **inflow)
        add(perfused, liver if organ in PORTAL_ORGANS else "venous", **{organ: 1.0})
    kidney_inflow = edges.index((index["arterial"], index["kidney_vascular" if "kidney" in limited else "kidney"]))
    flow_map = np.zeros((len(ORGANS), len(edges)))
    for e, flow in enumerate(columns):
        for organ, factor in flow.items():
            flow_map[ORGAN_INDEX[organ], e] = factor
    return Topology(
        name=name,
        nodes=nodes,
        is_blood=tuple(n in ("venous", "arterial") or n.endswith("_vascular") for n in nodes),
        edges=tuple(edges),
        eliminations=(
            Elimination("clint_l_h", index["liver"]),
            Elimination("cl_renal_l_h", index["arterial"], kidney_inflow, "inflow"),
        ),
        dose_node=index["venous"],
        volume_map=_circulation_volumes(nodes, limited),
        flow_map=flow_map,
        exchanges=tuple(Exchange(o, index[f"{o}_vascular"], index[o]) for o in limited),
        absorption_node=index["gut"],
        saturable_node=index["liver"],
    )


def _circulation_volumes(nodes: tuple[str, ...], limited: tuple[str, ...]) -> np.ndarray:
    """``(O, N)``: blood is split into venous and arterial, a permeability-limited organ into vessels and tissue."""
    out = np.zeros((len(ORGANS), len(nodes)))
    for organ in ORGANS[1:]:
        vascular = VASCULAR_FRACTION[organ] if organ in limited else 0.0
        out[ORGAN_INDEX[organ], nodes.index(organ)] = 1 - vascular
        if vascular:
            out[ORGAN_INDEX[organ], nodes.index(f"{organ}_vascular")] = vascular
    out[0, nodes.index("venous")] = 1 - ARTERIAL_FRACTION
    out[0, nodes.index("arterial")] = ARTERIAL_FRACTION
    return out


@cache
def get_topology(name: str) -> Topology:
    """The named topology (one shared object per name).

    Raises:
        InputError: for an unknown name.
    """
    makers = {
        "hub": _hub,
        "circulation": circulation,
        "circulation-ps": lambda: circulation(("brain", "adipose", "muscle"), "circulation-ps"),
    }
    if name not in makers:
        raise InputError("topology", "is unknown", value=name, allowed=", ".join(makers))
    return makers[name]()

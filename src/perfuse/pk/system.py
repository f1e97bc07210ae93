"""What one curve's mechanistic system is made of, batched: volumes, flows, partitioning, clearances, doses.

Axis legend: B batch, N nodes, E flow edges, M eliminations, X exchanges, P saturable pathways, D dose events, T times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from perfuse.pk.topology import Topology

_T = TypeVar("_T")

ROUTES: Mapping[str, int] = {"iv_bolus": 0, "iv_infusion": 0, "oral": 1}
"""Names of routes and the code that ``DoseEvents.route`` holds: 0 into venous blood, 1 into the gut lumen."""
ORAL = ROUTES["oral"]


def _map_tensors(record: _T, function: Any) -> _T:
    changed = {f.name: function(v) for f in fields(record) if isinstance(v := getattr(record, f.name), Tensor)}  # type: ignore[arg-type]
    return replace(record, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class SystemParameters:
    """Physical parameters of a batch of curves on one topology.

    Attributes:
        topology: The shared organ graph.
        volume_l: Node volumes, L, ``(B, N)``.
        kp: Tissue:plasma partition coefficients (tissue:blood on ``hub``), ``(B, N)``; 1 in blood nodes.
        flow_l_h: Edge flows, L/h, ``(B, E)``.
        elimination_l_h: Elimination parameters, L/h, ``(B, M)``, in the order of ``topology.elimination_names``.
        fup: Fraction unbound in plasma, ``(B,)``.
        bp_ratio: Blood:plasma ratio, ``(B,)``.
        ps_l_h: Permeability-surface products on unbound plasma concentration, L/h, ``(B, X)``.
        vmax_mg_h, km_u_mg_l: Saturable pathways in ``topology.saturable_node``, ``(B, P)``; a Vmax of 0 is none. Km
            refers to the unbound concentration. Left out: no saturable pathway.
    """

    topology: Topology
    volume_l: Tensor
    kp: Tensor
    flow_l_h: Tensor
    elimination_l_h: Tensor
    fup: Tensor
    bp_ratio: Tensor
    ps_l_h: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    vmax_mg_h: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    km_u_mg_l: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def __post_init__(self) -> None:
        batch = self.volume_l.shape[0]
        for name in ("ps_l_h", "vmax_mg_h", "km_u_mg_l"):
            if getattr(self, name).numel() == 0:  # none: as many rows as there are curves, no column
                object.__setattr__(self, name, self.volume_l.new_empty(batch, 0))

    def __len__(self) -> int:
        return self.volume_l.shape[0]

    @property
    def is_linear(self) -> bool:
        """True when no curve has a saturable pathway."""
        return self.vmax_mg_h.shape[1] == 0 or not bool((self.vmax_mg_h > 0).any())

    def to(self, *args: Any, **kwargs: Any) -> SystemParameters:
        """Every tensor moved or cast as ``Tensor.to`` does."""
        return _map_tensors(self, lambda t: t.to(*args, **kwargs))


@dataclass(frozen=True)
class DoseEvents:
    """Doses into venous blood or, by mouth, into the gut lumen; rows are padded with zero amounts.

    Attributes:
        time_h: Start of each dose, h, ``(B, D)``.
        amount_mg: Amount, mg, ``(B, D)``.
        duration_h: Infusion duration, h, ``(B, D)``; 0 for a bolus and for an oral dose.
        route: ``(B, D)`` int8, see ``ROUTES``. Left out: all intravenous.
        ka_1_h: First-order absorption rate constant, 1/h, ``(B,)``; any value where no dose is oral.
        lag_h: Time before absorption begins, h, ``(B,)``.
        f_abs: Fraction of an oral dose that enters the gut wall, Fa x Fg, ``(B,)``. What remains never enters.
    """

    time_h: Tensor
    amount_mg: Tensor
    duration_h: Tensor
    route: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int8))
    ka_1_h: Tensor = field(default_factory=lambda: torch.empty(0))
    lag_h: Tensor = field(default_factory=lambda: torch.empty(0))
    f_abs: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        if self.route.numel() == 0:
            object.__setattr__(self, "route", torch.zeros_like(self.time_h, dtype=torch.int8))
        for name, value in (("ka_1_h", 1.0), ("lag_h", 0.0), ("f_abs", 1.0)):
            if getattr(self, name).numel() == 0:
                object.__setattr__(self, name, torch.full_like(self.amount_mg[:, 0], value))

    def to(self, *args: Any, **kwargs: Any) -> DoseEvents:
        """Every tensor moved or cast as ``Tensor.to`` does; ``route`` is moved only."""
        moved = _map_tensors(self, lambda t: t.to(*args, **kwargs))
        return replace(moved, route=self.route.to(moved.time_h.device))

    def of(self, rows: slice | Tensor) -> DoseEvents:
        """The doses of some curves."""
        return _map_tensors(self, lambda t: t[rows])

    @property
    def is_oral(self) -> Tensor:
        """``(B, D)`` bool: doses by mouth (padding is none)."""
        return (self.route == ORAL) & (self.amount_mg > 0)

    @property
    def is_single_initial_bolus(self) -> bool:
        """True when every curve of the batch has one intravenous bolus at time 0."""
        return self.time_h.shape[1] == 1 and bool(
            (self.time_h == 0).all() & (self.duration_h == 0).all() & (self.route != ORAL).all()
        )

    @property
    def start_h(self) -> Tensor:
        """When each dose begins to enter the body, h, ``(B, D)``: its time, plus the lag of an oral one."""
        return torch.where(self.is_oral, self.time_h + self.lag_h[:, None], self.time_h)

    def elapsed(self, time_h: Tensor) -> tuple[Tensor, Tensor]:
        """Time since each dose began to enter, h, and whether it counts yet, both ``(B, D, T)``, at ``(B, T)``.

        A dose counts after its start; the value at a dose time is the one before it. Only a curve's first dose counts
        at once, so that a bolus shows C(0+).
        """
        start = self.start_h
        since = time_h[:, None, :] - start[..., None]
        given = self.amount_mg > 0
        first = start == torch.where(given, start, torch.inf).amin(1, keepdim=True)
        return since, given[..., None] & ((since > 0) | ((since == 0) & first[..., None]))

    @staticmethod
    def bolus(amount_mg: Tensor) -> DoseEvents:
        """One bolus at time 0 per curve; ``amount_mg`` is ``(B,)``."""
        zero = torch.zeros_like(amount_mg)[:, None]
        return DoseEvents(zero, amount_mg[:, None], zero)

"""What one curve's mechanistic system is made of, batched: volumes, flows, partitioning, clearances, doses.

Axis legend: B batch, N nodes, E flow edges, M eliminations, D dose events.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from perfuse.pk.topology import Topology

_T = TypeVar("_T")


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
    """

    topology: Topology
    volume_l: Tensor
    kp: Tensor
    flow_l_h: Tensor
    elimination_l_h: Tensor
    fup: Tensor
    bp_ratio: Tensor

    def __len__(self) -> int:
        return self.volume_l.shape[0]

    def to(self, *args: Any, **kwargs: Any) -> SystemParameters:
        """Every tensor moved or cast as ``Tensor.to`` does."""
        return _map_tensors(self, lambda t: t.to(*args, **kwargs))


@dataclass(frozen=True)
class DoseEvents:
    """Intravenous doses into venous blood; rows are padded with zero amounts.

    Attributes:
        time_h: Start of each dose, h, ``(B, D)``.
        amount_mg: Amount, mg, ``(B, D)``.
        duration_h: Infusion duration, h, ``(B, D)``; 0 for a bolus.
    """

    time_h: Tensor
    amount_mg: Tensor
    duration_h: Tensor

    def to(self, *args: Any, **kwargs: Any) -> DoseEvents:
        """Every tensor moved or cast as ``Tensor.to`` does."""
        return _map_tensors(self, lambda t: t.to(*args, **kwargs))

    @property
    def is_single_initial_bolus(self) -> bool:
        """True when every curve of the batch has one bolus at time 0."""
        return self.time_h.shape[1] == 1 and bool((self.time_h == 0).all() & (self.duration_h == 0).all())

    def elapsed(self, time_h: Tensor) -> tuple[Tensor, Tensor]:
        """Time since each dose began, h, and whether it counts yet, both ``(B, D, T)``, at times ``(B, T)``.

        A dose counts after its time; the value at a dose time is the one before it. Only a curve's first dose counts
        at once, so that a bolus shows C(0+).
        """
        since = time_h[:, None, :] - self.time_h[..., None]
        given = self.amount_mg > 0
        first = self.time_h == torch.where(given, self.time_h, torch.inf).amin(1, keepdim=True)
        return since, given[..., None] & ((since > 0) | ((since == 0) & first[..., None]))

    @staticmethod
    def bolus(amount_mg: Tensor) -> DoseEvents:
        """One bolus at time 0 per curve; ``amount_mg`` is ``(B,)``."""
        zero = torch.zeros_like(amount_mg)[:, None]
        return DoseEvents(zero, amount_mg[:, None], zero)

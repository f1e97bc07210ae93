"""``CurveBatch``: what a model receives and the loss compares, as tensors in physical units.

Axis legend: B batch, N nodes, O reported organs, T times.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from perfuse.pk.system import DoseEvents, SystemParameters

DESCRIPTORS = ("ln_mw", "logp", "pka_acid_1", "pka_acid_2", "pka_base_1", "pka_base_2", "ln_clint_in_vitro")
"""Columns of ``CurveBatch.descriptors``: ln g/mol, log10 octanol:water, pKa, ln uL/min/10^6 cells."""


@dataclass(frozen=True)
class CurveBatch:
    """A batch of curves that share a topology; targets may be blank (prediction).

    Attributes:
        system: Physical parameters, float64.
        doses: Dose events.
        time_h: Times, h, ``(B, T)``, float64; rows are padded by repeating the last time.
        is_plasma: ``(B,)`` bool: the blood row is wanted as plasma (blood / (B:P)).
        conc_mg_l: Observed concentrations, mg/L, ``(B, O, T)``; 0 where masked.
        mask: ``(B, O, T)`` bool: the values that count (observed, t > 0, >= LOQ or censored).
        censored: ``(B, O, T)`` bool: known only to be below ``conc_mg_l`` (which then holds the LLOQ).
        loq_mg_l: Limit of quantification, mg/L, ``(B,)``.
        descriptors: What is known of each molecule, ``(B, len(DESCRIPTORS))``; NaN where unknown or absent.
    """

    system: SystemParameters
    doses: DoseEvents
    time_h: Tensor
    is_plasma: Tensor
    conc_mg_l: Tensor
    mask: Tensor
    censored: Tensor
    loq_mg_l: Tensor
    descriptors: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        if self.descriptors.numel() == 0:  # left out: nothing is known
            unknown = self.time_h.new_full((self.time_h.shape[0], len(DESCRIPTORS)), torch.nan)
            object.__setattr__(self, "descriptors", unknown)

    def __len__(self) -> int:
        return self.time_h.shape[0]

    def to(self, device: torch.device | str) -> CurveBatch:
        """The batch on another device."""
        moved: dict[str, Any] = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("time_h", "is_plasma", "conc_mg_l", "mask", "censored", "loq_mg_l", "descriptors")
        }
        return replace(self, system=self.system.to(device), doses=self.doses.to(device), **moved)


def blood_factor(batch: CurveBatch) -> Tensor:
    """What turns each curve's blood into its matrix, ``(B,)``: 1 / (B:P) where plasma is wanted, else 1."""
    return torch.where(batch.is_plasma, 1 / batch.system.bp_ratio, 1.0)


def in_matrix(batch: CurveBatch, conc_mg_l: Tensor) -> Tensor:
    """Blood concentrations ``(B, O, T)`` with the blood row turned into plasma where the curve wants it."""
    blood = conc_mg_l[:, :1] * blood_factor(batch).to(conc_mg_l.dtype)[:, None, None]
    return torch.cat((blood, conc_mg_l[:, 1:]), 1)

"""``Curves``: what every producer of concentrations returns, mechanistic solver and networks alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.physiology import ORGANS

MATRICES = ("blood_venous", "blood_arterial", "plasma", "serum", "arterial_plasma", "tissue_homogenate")
"""What the `blood` row of a curve was measured in. Plasma = blood / (B:P); serum is read as plasma."""


@dataclass(frozen=True)
class Curves:
    """Organ concentrations over time.

    Attributes:
        curve_id: Names, ``(B,)``.
        time_h: Times, h, ``(B, T)``, increasing; NaN pads short rows.
        conc_mg_l: Concentrations, mg/L, ``(B, O, T)``.
        matrix: Matrix of the ``blood`` row, one of ``MATRICES``, ``(B,)``.
    """

    curve_id: np.ndarray
    time_h: np.ndarray
    conc_mg_l: np.ndarray
    matrix: np.ndarray
    organs: tuple[str, ...] = field(default=ORGANS)

    def __post_init__(self) -> None:
        expected = (len(self.curve_id), len(self.organs), self.time_h.shape[-1])
        if self.conc_mg_l.shape != expected or self.time_h.shape != (expected[0], expected[2]):
            raise InputError("conc_mg_l", "has a wrong shape", value=self.conc_mg_l.shape, allowed=str(expected))

    def __len__(self) -> int:
        return len(self.curve_id)

    def organ(self, name: str) -> np.ndarray:
        """Concentrations of one organ, mg/L, ``(B, T)``."""
        return self.conc_mg_l[:, self.organs.index(name)]

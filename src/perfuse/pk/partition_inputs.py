"""What the partition coefficient methods may use of a drug."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from perfuse.pk.ionisation import IonClass, check_number, check_pka, ion_class

LOGP_RANGE = (-15.0, 15.0)
"""Bounds that only wrong input exceeds: predicted logP lists reach from about -8 to 12."""
Species = Literal["human", "rat"]


@dataclass(frozen=True)
class PartitionInputs:
    """A drug's physicochemistry and binding.

    Attributes:
        logp: log10 octanol:water partition coefficient of the un-ionised drug, in [-15, 15].
        fup: Fraction unbound in plasma, in (0, 1].
        pka_acid, pka_base: pKa values of acidic groups (proton donors) and of the conjugate acids of basic groups.
        bp_ratio: Blood:plasma ratio, > 0.
        species: Whose tissues; Schmitt and PK-Sim standard have a table for each.

    Raises:
        InputError: naming the first value out of range.
    """

    logp: float
    fup: float
    pka_acid: tuple[float, ...] = ()
    pka_base: tuple[float, ...] = ()
    bp_ratio: float = 1.0
    species: Species = "human"

    def __post_init__(self) -> None:
        check_number("logp", self.logp, *LOGP_RANGE)
        check_number("fup", self.fup, 0.0, 1.0, open_low=True)
        check_number("bp_ratio", self.bp_ratio, 0.0, 1e3, open_low=True)
        check_pka(self.pka_acid, self.pka_base)

    @property
    def ion_class(self) -> IonClass:
        """At pH 7.4."""
        return ion_class(self.pka_acid, self.pka_base)

"""What the partition coefficient methods may use of a drug."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from perfuse.errors import InputError
from perfuse.pk.blood_binding import HAEMATOCRIT
from perfuse.pk.ionisation import IonClass, check_number, check_pka, ion_class

LOGP_RANGE = (-15.0, 15.0)
"""Bounds that only wrong input exceeds: predicted logP lists reach from about -8 to 12."""
Species = Literal["human", "rat"]
SPECIES: tuple[Species, ...] = ("human", "rat")


def check_species(species: str) -> None:
    """Refuse a species that has no tissue composition.

    Raises:
        InputError: naming it.
    """
    if species not in SPECIES:
        raise InputError("species", "has no tissue composition", value=species, allowed=", ".join(SPECIES))


@dataclass(frozen=True)
class PartitionInputs:
    """A drug's physicochemistry and binding.

    Attributes:
        logp: log10 octanol:water partition coefficient of the un-ionised drug, in [-15, 15].
        fup: Fraction unbound in plasma, in (0, 1].
        pka_acid, pka_base: pKa values of acidic groups (proton donors) and of the conjugate acids of basic groups.
        bp_ratio: Measured blood:plasma ratio, > 0; None when there is none (Rodgers and Rowland then takes 1).
        species: Whose tissues.
        haematocrit: Of the blood that ``bp_ratio`` is of, in (0, 1).

    Raises:
        InputError: naming the first value out of range.
    """

    logp: float
    fup: float
    pka_acid: tuple[float, ...] = ()
    pka_base: tuple[float, ...] = ()
    bp_ratio: float | None = None
    species: Species = "human"
    haematocrit: float = HAEMATOCRIT

    def __post_init__(self) -> None:
        check_number("logp", self.logp, *LOGP_RANGE)
        check_number("fup", self.fup, 0.0, 1.0, open_low=True)
        if self.bp_ratio is not None:
            check_number("bp_ratio", self.bp_ratio, 0.0, 1e3, open_low=True)
        check_pka(self.pka_acid, self.pka_base)
        check_species(self.species)
        if not 0 < self.haematocrit < 1:
            raise InputError("haematocrit", value=float(self.haematocrit), allowed="(0, 1)")

    @property
    def ion_class(self) -> IonClass:
        """At pH 7.4."""
        return ion_class(self.pka_acid, self.pka_base)

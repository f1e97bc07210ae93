"""What a condition does to a drug: enzyme activities and binding proteins, applied to a ``Drug``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from perfuse.errors import InputError
from perfuse.pk.checks import number
from perfuse.pk.drug import IN_VITRO_FIELDS, Drug

ENZYMES = ("CYP3A4", "CYP1A2", "CYP2E1", "CYP2A6", "CYP2B6", "CYP2C8", "CYP2C9", "CYP2C18", "CYP2C19", "CYP2D6")
BINDING_PROTEINS = ("albumin", "alpha1_acid_glycoprotein")


@dataclass(frozen=True)
class DrugFactors:
    """What a condition does to a drug's parameters.

    Attributes:
        clint: Factor on intrinsic hepatic clearance per volume of liver, by enzyme ("CYP3A4", ...); an enzyme that is
            not named keeps its activity.
        albumin, alpha1_acid_glycoprotein: Factors on the plasma concentration of the binding protein.
    """

    clint: Mapping[str, float]
    albumin: float = 1.0
    alpha1_acid_glycoprotein: float = 1.0

    def fup(self, fup: float, protein: str = "albumin") -> float:
        """Fraction unbound with the changed protein: 1 / (1 + factor (1 - fup) / fup), linear binding.

        McNamara PJ, Alcorn J. AAPS PharmSci 2002;4:E4.

        Raises:
            InputError: for fup outside (0, 1] or an unknown protein.
        """
        if not 0 < fup <= 1:
            raise InputError("fup", value=float(fup), allowed="(0, 1]")
        if protein not in BINDING_PROTEINS:
            raise InputError("protein", "is unknown", value=protein, allowed=", ".join(BINDING_PROTEINS))
        return 1 / (1 + getattr(self, protein) * (1 - fup) / fup)

    def clint_factor(self, fraction_by_enzyme: Mapping[str, float]) -> float:
        """Factor on a drug's intrinsic clearance, to which enzymes contribute these fractions; the rest keeps its own.

        Raises:
            InputError: for an unknown enzyme, a fraction outside [0, 1], or fractions that sum to more than 1.
        """
        factor, rest = 0.0, 1.0
        for enzyme, value in fraction_by_enzyme.items():
            if enzyme not in ENZYMES:
                raise InputError("enzyme", "is unknown", value=enzyme, allowed=", ".join(ENZYMES))
            fraction = number(f"fraction of {enzyme}", value)
            if not 0 <= fraction <= 1:
                raise InputError(f"fraction of {enzyme}", value=fraction, allowed="[0, 1]")
            factor, rest = factor + fraction * self.clint.get(enzyme, 1.0), rest - fraction
        if rest < -1e-9:
            raise InputError("fractions of enzymes", "sum to more than 1", value=1 - rest, allowed="<= 1")
        return factor + max(rest, 0.0)

    def applied_to(
        self, drug: Drug, fraction_by_enzyme: Mapping[str, float] | None = None, protein: str | None = None
    ) -> Drug:
        """The drug as it is in a person with the condition.

        fup changes with the binding protein; an in-vitro clearance by ``clint_factor``; the Vmax of a saturable
        pathway that bears an enzyme's name by that enzyme's factor. Clearances in L/h, measured Kp and measured B:P
        stay: they are the modelled person's own.

        Args:
            drug: In a healthy person.
            fraction_by_enzyme: Contributions to its intrinsic clearance; none: unchanged.
            protein: What binds it in plasma (``BINDING_PROTEINS``); None: fup is unchanged.

        Raises:
            InputError: as ``fup`` and ``clint_factor``.
        """
        factor = self.clint_factor(fraction_by_enzyme or {})
        change: dict[str, object] = {
            name: getattr(drug, name) * factor for name in IN_VITRO_FIELDS if getattr(drug, name) is not None
        }
        if protein is not None:
            change["fup"] = self.fup(drug.fup, protein)
        change["saturable"] = tuple(
            replace(pathway, vmax_mg_h=pathway.vmax_mg_h * self.clint.get(pathway.name, 1.0))
            for pathway in drug.saturable
        )
        return replace(drug, **change)  # type: ignore[arg-type]  # checked by Drug


NORMAL = DrugFactors({})

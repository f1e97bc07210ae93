"""Tissue:plasma partition coefficients from a drug's physicochemistry and the composition of tissues.

Methods live in the plain dict ``KP_METHODS``; each takes a ``PartitionInputs`` and returns one Kp for every tissue
of ``HUMAN_COMPOSITION``. ``tissue_plasma_kp`` arranges any of them on the 14 reported organs.

Limits: both methods here use the octanol:water coefficient of the un-ionised drug in every tissue but adipose, so they
overpredict strongly ionised, albumin-bound acids and know nothing of bases that bind to acidic phospholipids.

Axis legend: O the 14 reported organs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, human_reference

PLASMA_PH = 7.4
IonClass = Literal["acid", "base", "neutral", "zwitterion"]

# Bounds that only wrong input exceeds: predicted pKa lists reach from about -7 to 15, logP from about -8 to 12.
_LOGP_RANGE = (-15.0, 15.0)
_PKA_RANGE = (-20.0, 30.0)

KP_RANGE = (1e-4, 1e6)
"""Tissue:plasma coefficients that can be: beyond them lies no measurement, and flow / (volume x Kp) becomes a rate
that no solver can follow."""
KP_ALLOWED = f"[{KP_RANGE[0]:g}, {KP_RANGE[1]:g}]"
"""The same as messages write it."""


@dataclass(frozen=True)
class Composition:
    """Volume fractions of wet tissue (or of plasma): water, neutral lipid, phospholipid."""

    water: float
    neutral_lipid: float
    phospholipid: float


PLASMA_COMPOSITION = Composition(0.945, 0.0035, 0.00225)
HUMAN_COMPOSITION: Mapping[str, Composition] = {
    "liver": Composition(0.751, 0.0348, 0.0252),
    "kidney": Composition(0.783, 0.0207, 0.0162),
    "brain": Composition(0.77, 0.051, 0.0565),
    "heart": Composition(0.758, 0.0115, 0.0166),
    "lung": Composition(0.811, 0.003, 0.009),
    "muscle": Composition(0.76, 0.0238, 0.0072),
    "adipose": Composition(0.18, 0.79, 0.002),
    "gut": Composition(0.718, 0.0487, 0.0163),
    "skin": Composition(0.718, 0.0284, 0.0111),
    "bone": Composition(0.439, 0.074, 0.0011),
    "spleen": Composition(0.788, 0.0201, 0.0198),
    "pancreas": Composition(0.784, 0.0403, 0.01067),
}
"""Human tissues and plasma: Poulin P, Theil FP. J Pharm Sci 2002;91:129-156.

Pancreas is not in that table; it is the rat's of Rodgers T, Leahy D, Rowland M. J Pharm Sci 2005;94:1259-1276 and
Rodgers T, Rowland M. J Pharm Sci 2006;95:1238-1257: water 0.120 (extracellular) + 0.664 (intracellular), neutral
lipid 0.0403, neutral phospholipid 0.0090 plus acidic phospholipid 1.67 mg/g.
"""


def _check(field: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    inside = math.isfinite(value) and (low < value if open_low else low <= value) and value <= high
    if not inside:
        raise InputError(field, value=float(value), allowed=f"{'(' if open_low else '['}{low:g}, {high:g}]")


@dataclass(frozen=True)
class PartitionInputs:
    """What the Kp methods may use of a drug.

    Attributes:
        logp: log10 octanol:water partition coefficient of the un-ionised drug, in [-15, 15].
        fup: Fraction unbound in plasma, in (0, 1].
        pka_acid, pka_base: pKa values of acidic groups (proton donors) and of the conjugate acids of basic groups.
        bp_ratio: Blood:plasma ratio, > 0.

    Raises:
        InputError: naming the first value out of range.
    """

    logp: float
    fup: float
    pka_acid: tuple[float, ...] = ()
    pka_base: tuple[float, ...] = ()
    bp_ratio: float = 1.0

    def __post_init__(self) -> None:
        _check("logp", self.logp, *_LOGP_RANGE)
        _check("fup", self.fup, 0.0, 1.0, open_low=True)
        _check("bp_ratio", self.bp_ratio, 0.0, 1e3, open_low=True)
        _check_pka(self.pka_acid, self.pka_base)


def _check_pka(pka_acid: tuple[float, ...], pka_base: tuple[float, ...]) -> None:
    for field, values in (("pka_acid", pka_acid), ("pka_base", pka_base)):
        for value in values:
            _check(field, value, *_PKA_RANGE)


def _log10_sum(exponents: list[float]) -> float:
    """log10 of the sum of powers of ten, without overflow."""
    top = max(exponents)
    return top + math.log10(sum(10.0 ** (e - top) for e in exponents))


def log10_total_to_unionised(pka_acid: tuple[float, ...], pka_base: tuple[float, ...], ph: float = PLASMA_PH) -> float:
    """log10 of (all species / un-ionised species) at a pH: the Henderson-Hasselbalch equation, any number of groups.

        acids: 1 + 10^(pH - pKa1) + 10^(2 pH - pKa1 - pKa2) + ...    (pKa ascending)
        bases: 1 + 10^(pKa1 - pH) + 10^(pKa1 + pKa2 - 2 pH) + ...    (pKa descending)

    The two factors multiply, which for one acid and one base is the zwitterion's expression of
    Rodgers T, Rowland M. J Pharm Sci 2006;95:1238-1257.

    Raises:
        InputError: for a pKa or pH that is not finite or out of range.
    """
    _check("ph", ph, 0.0, 14.0)
    _check_pka(pka_acid, pka_base)
    acid, base = [0.0], [0.0]
    for pka in sorted(pka_acid):
        acid.append(acid[-1] + ph - pka)
    for pka in sorted(pka_base, reverse=True):
        base.append(base[-1] + pka - ph)
    return _log10_sum(acid) + _log10_sum(base)


def fraction_unionised(pka_acid: tuple[float, ...], pka_base: tuple[float, ...], ph: float = PLASMA_PH) -> float:
    """Share of the drug that carries no charge at a pH, in [0, 1]; see ``log10_total_to_unionised``."""
    return 10.0 ** -log10_total_to_unionised(pka_acid, pka_base, ph)


def ion_class(pka_acid: tuple[float, ...], pka_base: tuple[float, ...], ph: float = PLASMA_PH) -> IonClass:
    """Acid, base, zwitterion or neutral: which of the drug's groups are more than half ionised at a pH."""
    _check("ph", ph, 0.0, 14.0)
    _check_pka(pka_acid, pka_base)
    acid = any(pka < ph for pka in pka_acid)
    base = any(pka > ph for pka in pka_base)
    if acid and base:
        return "zwitterion"
    return "acid" if acid else "base" if base else "neutral"


def fraction_unbound_tissue(fup: float) -> float:
    """Fraction unbound in tissue, fut = 1 / (1 + 0.5 (1 - fup) / fup): half of plasma's binding (Poulin & Theil 2002).

    Raises:
        InputError: if fup is not in (0, 1].
    """
    _check("fup", fup, 0.0, 1.0, open_low=True)
    return 1 / (1 + 0.5 * (1 - fup) / fup)


def _oil_water(drug: PartitionInputs, tissue: str) -> float:
    """Lipid:water coefficient: octanol (un-ionised drug); for adipose vegetable oil, all species at pH 7.4.

    log P(vegetable oil:water) = 1.115 log P - 1.35: Leo A, Hansch C, Elkins D. Chem Rev 1971;71:525-616.
    """
    if tissue != "adipose":
        return 10.0**drug.logp
    return 10.0 ** (1.115 * drug.logp - 1.35 - log10_total_to_unionised(drug.pka_acid, drug.pka_base))


def _lipid_and_water(composition: Composition) -> tuple[float, float]:
    """Lipid-like and water-like fractions: phospholipid behaves as 30 % neutral lipid and 70 % water."""
    lipid = composition.neutral_lipid + 0.3 * composition.phospholipid
    return lipid, composition.water + 0.7 * composition.phospholipid


def kp_poulin_theil(drug: PartitionInputs) -> dict[str, float]:
    """Kp of every tissue by Poulin & Theil.

        Kp = [P (Vnl_t + 0.3 Vph_t) + Vw_t + 0.7 Vph_t] / [the same of plasma] * fup / fut

    P is octanol:water, fut see ``fraction_unbound_tissue``; for adipose P is vegetable oil:water at pH 7.4 and fut = 1.

    Reference: Poulin P, Theil FP. J Pharm Sci 2002;91:129-156.
    """
    out = {}
    plasma_lipid, plasma_water = _lipid_and_water(PLASMA_COMPOSITION)
    for tissue, composition in HUMAN_COMPOSITION.items():
        p = _oil_water(drug, tissue)
        lipid, water = _lipid_and_water(composition)
        fut = 1.0 if tissue == "adipose" else fraction_unbound_tissue(drug.fup)
        out[tissue] = (p * lipid + water) / (p * plasma_lipid + plasma_water) * drug.fup / fut
    return out


def kp_berezhkovskiy(drug: PartitionInputs) -> dict[str, float]:
    """Kp of every tissue by Berezhkovskiy: protein binding acts on the water phase only.

        Kp = [P (Vnl_t + 0.3 Vph_t) + Vw_t / fut + 0.7 Vph_t] / [P (Vnl_p + 0.3 Vph_p) + Vw_p / fup + 0.7 Vph_p]

    P as in ``kp_poulin_theil``; fut applies to adipose too, as in the implementation that accompanies
    Utsey K, Gastonguay MS, Russell S, et al. Drug Metab Dispos 2020;48:903-916.

    Reference: Berezhkovskiy LM. J Pharm Sci 2004;93:1628-1640.
    """
    out = {}
    fut = fraction_unbound_tissue(drug.fup)
    plasma_lipid, _ = _lipid_and_water(PLASMA_COMPOSITION)
    bound_plasma = PLASMA_COMPOSITION.water / drug.fup + 0.7 * PLASMA_COMPOSITION.phospholipid
    for tissue, composition in HUMAN_COMPOSITION.items():
        p = _oil_water(drug, tissue)
        lipid, _ = _lipid_and_water(composition)
        bound = composition.water / fut + 0.7 * composition.phospholipid
        out[tissue] = (p * lipid + bound) / (p * plasma_lipid + bound_plasma)
    return out


KpMethod = Callable[[PartitionInputs], dict[str, float]]
KP_METHODS: dict[str, KpMethod] = {"poulin-theil": kp_poulin_theil, "berezhkovskiy": kp_berezhkovskiy}


def tissue_plasma_kp(
    drug: PartitionInputs, method: str = "berezhkovskiy", overrides: Mapping[str, float] | None = None
) -> np.ndarray:
    """Tissue:plasma Kp (total/total) of the 14 organs, ``(O,)``; blood is 1.

    ``other`` is the mean of the other tissues weighted by their volumes in the reference man, after overrides.

    Args:
        drug: Physicochemistry and binding.
        method: A key of ``KP_METHODS``.
        overrides: Measured Kp by organ name, used instead of the method's.

    Raises:
        InputError: for an unknown method, an unknown organ (blood has none), or a Kp, given or
            predicted, that is not in ``KP_RANGE``.
    """
    if method not in KP_METHODS:
        raise InputError("kp_method", "is unknown", value=method, allowed=", ".join(KP_METHODS))
    kp = KP_METHODS[method](drug)
    for organ, value in (overrides or {}).items():
        if organ not in ORGANS[1:]:
            raise InputError(f"kp.{organ}", "is no organ with a Kp", allowed=", ".join(ORGANS[1:]))
        _check(f"kp.{organ}", value, *KP_RANGE)
        kp[organ] = float(value)
    if "other" not in kp:
        volume_l = human_reference().volume_l
        weight = np.asarray([volume_l[ORGAN_INDEX[tissue]] for tissue in kp])
        kp["other"] = float(np.average(list(kp.values()), weights=weight))
    for organ, value in kp.items():
        if not KP_RANGE[0] <= value <= KP_RANGE[1]:
            raise InputError(
                f"kp.{organ}", f"as {method} predicts it cannot be", value=float(value), allowed=KP_ALLOWED,
                hint=f"give a measured kp.{organ}",
            )  # fmt: skip
    return np.asarray([1.0] + [kp[organ] for organ in ORGANS[1:]])

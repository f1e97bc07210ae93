"""``Drug``: the numbers that describe a compound, each with its unit in its name and its range checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from perfuse.errors import InputError
from perfuse.files import read_toml
from perfuse.pk.partition import KP_ALLOWED, KP_RANGE, IonClass, PartitionInputs, ion_class
from perfuse.pk.physiology import ORGANS

# field -> (low, high, is the low end open, unit); None values of optional fields are not checked.
_RANGES: dict[str, tuple[float, float, bool, str]] = {
    "mw_g_mol": (0.0, 1e6, True, "g/mol"),
    "logp": (-15.0, 15.0, False, ""),
    "fup": (0.0, 1.0, True, ""),
    "bp_ratio": (0.0, 1e3, True, ""),
    "clint_ul_min_million_cells": (0.0, 1e6, False, "uL/min/10^6 cells"),
    "clint_l_h": (0.0, 1e9, False, "L/h"),
    "cl_hepatic_l_h": (0.0, 1e5, False, "L/h"),
    "cl_total_l_h": (0.0, 1e5, False, "L/h"),
    "cl_renal_l_h": (0.0, 1e5, False, "L/h"),
}
_REQUIRED = ("mw_g_mol", "logp", "fup")
HEPATIC_FIELDS = ("clint_ul_min_million_cells", "clint_l_h", "cl_hepatic_l_h", "cl_total_l_h")
"""The ways to say what the liver does; a drug has at most one of them."""

BP_RATIO_UNKNOWN: Mapping[IonClass, float] = {"acid": 0.55, "base": 1.0, "neutral": 1.0, "zwitterion": 1.0}
"""B:P where none was measured. Acids bind to albumin and stay out of red cells: 1 - haematocrit = 0.55, as
Obach RS. Drug Metab Dispos 1997;25:1359-1369 takes it for warfarin. Everything else 1, within the 0.52-2.00
(mean 0.89) that 96 drugs show: Uchimura T, Kato M, Saito T, Kinoshita H. Biopharm Drug Dispos 2010;31:286-297."""


def number(field_name: str, value: object) -> float:
    """A finite float, or a clear refusal (text, NaN, infinity, a truth value).

    Raises:
        InputError: naming the field and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(field_name, "is not a number", value=value)
    if not math.isfinite(value):
        raise InputError(field_name, "is not finite", value=float(value))
    return float(value)


@dataclass(frozen=True, kw_only=True)
class Drug:
    """One compound. Numbers only; what is not known stays out.

    Attributes:
        name: Its name.
        mw_g_mol: Molecular weight, g/mol, > 0.
        logp: log10 octanol:water partition coefficient of the un-ionised drug.
        fup: Fraction unbound in plasma, in (0, 1].
        pka_acid: pKa of acidic groups.
        pka_base: pKa of the conjugate acids of basic groups.
        bp_ratio: Blood:plasma ratio, > 0; None when it was not measured (see ``bp_ratio_or_default``).
        clint_ul_min_million_cells: In-vitro intrinsic clearance in hepatocytes, uL/min per 10^6 cells; 0 means that
            no turnover was measured.
        clint_l_h: Unbound intrinsic clearance of the whole liver, L/h.
        cl_hepatic_l_h: Hepatic plasma clearance, L/h.
        cl_total_l_h: Total plasma clearance, L/h. At most one of these four is given.
        cl_renal_l_h: Renal plasma clearance, L/h; None means filtration alone (GFR x fup).
        kp: Measured tissue:plasma partition coefficients by organ, used instead of predicted ones; in
            ``pk.partition.KP_RANGE``.

    Clearances in L/h are those of the modelled person as they stand; they are not scaled with body weight.

    Raises:
        InputError: naming the field, its value, unit and allowed range.
    """

    name: str
    mw_g_mol: float
    logp: float
    fup: float
    pka_acid: tuple[float, ...] = ()
    pka_base: tuple[float, ...] = ()
    bp_ratio: float | None = None
    clint_ul_min_million_cells: float | None = None
    clint_l_h: float | None = None
    cl_hepatic_l_h: float | None = None
    cl_total_l_h: float | None = None
    cl_renal_l_h: float | None = None
    kp: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError("name", "is empty or no text", value=self.name)
        for name, (low, high, is_open, unit) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name not in _REQUIRED:
                continue
            x = number(name, value)
            if not (low < x if is_open else low <= x) or x > high:
                allowed = f"{'(' if is_open else '['}{low:g}, {high:g}]"
                raise InputError(name, value=x, unit=unit, allowed=allowed)
            object.__setattr__(self, name, x)
        for name in ("pka_acid", "pka_base"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        given = [name for name in HEPATIC_FIELDS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(" and ".join(given), "say the same thing twice", hint="give one of them")
        self._check_kp()
        self.partition_inputs()  # refuses a pKa out of range

    def _check_kp(self) -> None:
        if not isinstance(self.kp, Mapping):
            raise InputError("kp", "is no table", value=self.kp, hint="write kp.liver = 2.5, one line per organ")
        kp = {str(organ): number(f"kp.{organ}", value) for organ, value in self.kp.items()}
        for organ, value in kp.items():
            if organ not in ORGANS[1:]:
                raise InputError(f"kp.{organ}", "is no organ with a Kp", allowed=", ".join(ORGANS[1:]))
            if not KP_RANGE[0] <= value <= KP_RANGE[1]:
                raise InputError(f"kp.{organ}", value=value, allowed=KP_ALLOWED)
        object.__setattr__(self, "kp", kp)

    @property
    def ion_class(self) -> IonClass:
        """Acid, base, neutral or zwitterion at pH 7.4."""
        return ion_class(self.pka_acid, self.pka_base)

    @property
    def bp_ratio_or_default(self) -> float:
        """B:P as measured, else by ion class (``BP_RATIO_UNKNOWN``)."""
        return BP_RATIO_UNKNOWN[self.ion_class] if self.bp_ratio is None else self.bp_ratio

    def partition_inputs(self) -> PartitionInputs:
        """What the Kp methods need."""
        return PartitionInputs(self.logp, self.fup, self.pka_acid, self.pka_base, self.bp_ratio_or_default)

    @classmethod
    def from_mapping(cls, data: Mapping[str, object], where: str = "") -> Drug:
        """A drug from plain data (a parsed TOML table); keys are the attributes.

        Raises:
            InputError: for an unknown or missing key or a value that is not allowed, beginning with ``where``.
        """
        known = {f.name for f in fields(cls)}
        for key in data:
            if key not in known:
                raise InputError(key, "is no known key", allowed=", ".join(sorted(known)), where=where)
        for key in ("name", *_REQUIRED):
            if key not in data:
                raise InputError(key, "is missing", where=where)
        try:
            return cls(**data)  # type: ignore[arg-type]  # every value is checked in __post_init__
        except InputError as error:
            raise located(error, where) from None

    @classmethod
    def from_toml(cls, path: Path) -> Drug:
        """A drug from a TOML file.

        Example::

            name = "midazolam"
            mw_g_mol = 325.8
            logp = 3.9
            pka_base = [6.0]                      # a list, or one number
            fup = 0.03
            bp_ratio = 0.55                       # optional
            clint_ul_min_million_cells = 28.0     # or clint_l_h, cl_hepatic_l_h, cl_total_l_h (plasma)
            # cl_renal_l_h = 0.0                  # plasma; left out: GFR x fup
            # kp.adipose = 12.0                   # a measured tissue:plasma coefficient

        Raises:
            InputError: one line for a missing file, invalid TOML, an unknown or missing key, or a value out of range.
        """
        return cls.from_mapping(read_toml(path, "drug file"), where=str(path))


def _numbers(name: str, value: object) -> tuple[float, ...]:
    items = value if isinstance(value, list | tuple) else (value,)
    return tuple(number(name, item) for item in items)


def located(error: InputError, where: str) -> InputError:
    """The same refusal with the place it was found in front."""
    moved = InputError(str(error), "", where=where)
    moved.field = error.field
    return moved

"""``Drug``: the numbers that describe a compound, each with its unit in its name and its range checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from perfuse.errors import InputError
from perfuse.files import read_toml
from perfuse.pk.assay_binding import fu_hepatocytes, fu_microsomes
from perfuse.pk.blood_binding import HAEMATOCRIT, blood_plasma_ratio
from perfuse.pk.checks import number
from perfuse.pk.in_vitro import scale_hepatocyte_clint, scale_microsome_clint
from perfuse.pk.liver_models import DISPERSION_NUMBER, check_liver_model
from perfuse.pk.partition import KP_ALLOWED, KP_RANGE, IonClass, PartitionInputs, ion_class
from perfuse.pk.partition_inputs import Species
from perfuse.pk.physiology import ORGANS
from perfuse.pk.saturable_pathway import SaturablePathway

__all__ = ["HEPATIC_FIELDS", "IN_VITRO_FIELDS", "OPTIONAL_NUMBERS", "Drug", "SaturablePathway", "located", "number"]

# field -> (low, high, is the low end open, unit); None values of optional fields are not checked.
_RANGES: dict[str, tuple[float, float, bool, str]] = {
    "mw_g_mol": (0.0, 1e6, True, "g/mol"),
    "logp": (-15.0, 15.0, False, ""),
    "fup": (0.0, 1.0, True, ""),
    "bp_ratio": (0.0, 1e3, True, ""),
    "clint_ul_min_million_cells": (0.0, 1e6, False, "uL/min/10^6 cells"),
    "clint_ul_min_mg": (0.0, 1e6, False, "uL/min/mg protein"),
    "clint_l_h": (0.0, 1e9, False, "L/h"),
    "cl_hepatic_l_h": (0.0, 1e5, False, "L/h"),
    "cl_total_l_h": (0.0, 1e5, False, "L/h"),
    "cl_renal_l_h": (0.0, 1e5, False, "L/h"),
    "cl_secretion_l_h": (-1e5, 1e5, False, "L/h"),
    "fu_inc": (0.0, 1.0, True, ""),
    "assay_concentration": (0.0, 100.0, True, "10^6 cells/mL or mg protein/mL"),
    "dispersion_number": (1e-3, 1e3, False, ""),
    "ka_1_h": (0.0, 1e3, True, "1/h"),
    "lag_h": (0.0, 1e3, False, "h"),
    "fa": (0.0, 1.0, True, ""),
    "fg": (0.0, 1.0, True, ""),
}
_REQUIRED = ("mw_g_mol", "logp", "fup")
_WITH_DEFAULT = ("assay_concentration", "dispersion_number", "lag_h", "fa", "fg")
IN_VITRO_FIELDS = ("clint_ul_min_million_cells", "clint_ul_min_mg")
HEPATIC_FIELDS = (*IN_VITRO_FIELDS, "clint_l_h", "cl_hepatic_l_h", "cl_total_l_h")
"""The ways to say what the liver does (linear kinetics); a drug has at most one of them."""
OPTIONAL_NUMBERS = tuple(name for name in _RANGES if name not in _REQUIRED)
_PS_RANGE_L_H = (0.0, 1e6)


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
        bp_ratio: Blood:plasma ratio, > 0; None when it was not measured (see ``bp_ratio_for``).
        clint_ul_min_million_cells: In-vitro intrinsic clearance in hepatocytes, uL/min per 10^6 cells; 0 means that
            no turnover was measured.
        clint_ul_min_mg: In-vitro intrinsic clearance in liver microsomes, uL/min per mg protein.
        clint_l_h: Unbound intrinsic clearance of the whole liver, L/h.
        cl_hepatic_l_h: Hepatic plasma clearance, L/h.
        cl_total_l_h: Total plasma clearance, L/h. At most one of these five is given.
        fu_inc: Fraction unbound in the incubation, in (0, 1]; None: predicted (see ``fu_inc_or_default``).
        assay_concentration: 10^6 hepatocytes per mL, or mg microsomal protein per mL, which the prediction needs.
        liver_model: How ``clint_*`` becomes a hepatic clearance: one of ``pk.liver_models.LIVER_MODELS``.
        dispersion_number: Of the dispersion model.
        saturable: Saturable hepatic pathways, in addition to a linear ``clint_*`` (none given: 0).
        cl_renal_l_h: Renal plasma clearance, L/h; None means GFR x fup + ``cl_secretion_l_h``.
        cl_secretion_l_h: Net tubular secretion (negative: reabsorption) as a plasma clearance, L/h.
        ka_1_h: First-order absorption rate constant, 1/h; None: the drug is not taken by mouth.
        lag_h: Time before absorption begins, h.
        fa: Fraction of an oral dose that is absorbed into the gut wall.
        fg: Fraction of that which escapes metabolism in the gut wall.
        kp: Measured tissue:plasma partition coefficients by organ, used instead of predicted ones; in
            ``pk.partition.KP_RANGE``.
        ps_l_h: Permeability-surface products by organ, L/h, on unbound plasma concentration, for organs that a
            topology treats as permeability-limited.

    Clearances in L/h are those of the modelled person as they stand; they are not scaled with body weight. In-vitro
    clearances and ``saturable`` are scaled with the person's liver.

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
    clint_ul_min_mg: float | None = None
    clint_l_h: float | None = None
    cl_hepatic_l_h: float | None = None
    cl_total_l_h: float | None = None
    fu_inc: float | None = None
    assay_concentration: float = 1.0
    liver_model: str = "well-stirred"
    dispersion_number: float = DISPERSION_NUMBER
    saturable: tuple[SaturablePathway, ...] = ()
    cl_renal_l_h: float | None = None
    cl_secretion_l_h: float | None = None
    ka_1_h: float | None = None
    lag_h: float = 0.0
    fa: float = 1.0
    fg: float = 1.0
    kp: Mapping[str, float] = field(default_factory=dict)
    ps_l_h: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError("name", "is empty or no text", value=self.name)
        for name, (low, high, is_open, unit) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name not in (*_REQUIRED, *_WITH_DEFAULT):
                continue
            x = number(name, value)
            if not (low < x if is_open else low <= x) or x > high:
                allowed = f"{'(' if is_open else '['}{low:g}, {high:g}]"
                raise InputError(name, value=x, unit=unit, allowed=allowed)
            object.__setattr__(self, name, x)
        for name in ("pka_acid", "pka_base"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        check_liver_model(self.liver_model)
        self._check_clearances()
        object.__setattr__(self, "kp", _by_organ("kp", self.kp, KP_RANGE, "", KP_ALLOWED))
        ps_allowed = f"[{_PS_RANGE_L_H[0]:g}, {_PS_RANGE_L_H[1]:g}]"
        object.__setattr__(self, "ps_l_h", _by_organ("ps_l_h", self.ps_l_h, _PS_RANGE_L_H, "L/h", ps_allowed))
        self.partition_inputs()  # refuses a pKa out of range

    def _check_clearances(self) -> None:
        given = [name for name in HEPATIC_FIELDS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(" and ".join(given), "say the same thing twice", hint="give one of them")
        if not isinstance(self.saturable, tuple | list) or not all(
            isinstance(pathway, SaturablePathway) for pathway in self.saturable
        ):
            raise InputError("saturable", "is no list of SaturablePathway", value=self.saturable)
        object.__setattr__(self, "saturable", tuple(self.saturable))
        names = [pathway.name for pathway in self.saturable]
        if len(set(names)) < len(names):
            raise InputError("saturable name", "is there twice", value=next(n for n in names if names.count(n) > 1))
        if self.saturable and given and given[0].startswith("cl_"):
            raise InputError(f"{given[0]} and saturable", "say the same thing twice",
                             hint="beside saturable pathways give the linear rest as clint_l_h")  # fmt: skip
        if self.saturable and self.liver_model != "well-stirred":
            raise InputError("liver_model", "does not go with saturable pathways", value=self.liver_model,
                             allowed="well-stirred", hint="the others hold for linear kinetics only")  # fmt: skip
        if self.fu_inc is not None and not (given and given[0] in IN_VITRO_FIELDS):
            raise InputError(
                "fu_inc", "has no in-vitro clearance to go with", hint=f"give {' or '.join(IN_VITRO_FIELDS)}"
            )
        if self.cl_renal_l_h is not None and self.cl_secretion_l_h is not None:
            raise InputError("cl_renal_l_h and cl_secretion_l_h", "say the same thing twice", hint="give one of them")

    @property
    def ion_class(self) -> IonClass:
        """Acid, base, neutral or zwitterion at pH 7.4."""
        return ion_class(self.pka_acid, self.pka_base)

    @property
    def bp_ratio_or_default(self) -> float:
        """B:P as measured, else predicted at the reference haematocrit (``pk.blood_binding``)."""
        return self.bp_ratio_for(HAEMATOCRIT)

    def bp_ratio_for(self, haematocrit: float) -> float:
        """B:P as measured, whatever the haematocrit; else predicted from fup, haematocrit and ionisation class."""
        if self.bp_ratio is not None:
            return self.bp_ratio
        return blood_plasma_ratio(self.ion_class, self.fup, haematocrit)

    @property
    def f_abs(self) -> float:
        """Fraction of an oral dose that leaves the gut wall unchanged, Fa x Fg."""
        return self.fa * self.fg

    @property
    def fu_inc_or_default(self) -> float:
        """Fraction unbound in the incubation: as measured, else predicted from log P, pKa and ``assay_concentration``.

        Hepatocytes by Kilford 2008, microsomes by Hallifax & Houston 2006 (``pk.assay_binding``).
        """
        if self.fu_inc is not None:
            return self.fu_inc
        if self.clint_ul_min_mg is not None:
            return fu_microsomes(self.logp, self.assay_concentration, self.pka_acid, self.pka_base)
        return fu_hepatocytes(self.logp, self.assay_concentration, self.pka_acid, self.pka_base)

    def clint_in(self, liver_volume_l: float) -> float | None:
        """Unbound linear intrinsic clearance of a liver, L/h; None when the drug states none."""
        if self.clint_l_h is not None:
            return self.clint_l_h
        if self.clint_ul_min_million_cells is not None:
            return scale_hepatocyte_clint(self.clint_ul_min_million_cells, liver_volume_l, self.fu_inc_or_default)
        if self.clint_ul_min_mg is not None:
            return scale_microsome_clint(self.clint_ul_min_mg, liver_volume_l, self.fu_inc_or_default)
        return 0.0 if self.saturable else None

    def partition_inputs(self, haematocrit: float = HAEMATOCRIT, species: Species = "human") -> PartitionInputs:
        """What the Kp methods need.

        B:P only where it was measured: a predicted one, nearer as it is to measured B:P, makes the Kp of bases worse
        than none (docs/partition.md).
        """
        return PartitionInputs(self.logp, self.fup, self.pka_acid, self.pka_base, self.bp_ratio, species, haematocrit)

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
            return cls(**{**data, **_pathways(data)})  # type: ignore[arg-type]  # checked in __post_init__
        except InputError as error:
            raise located(error, where) from None

    @classmethod
    def from_toml(cls, path: Path) -> Drug:
        """A drug from a TOML file: numbers in the units of the names (``data.drug_file`` reads "50 uM" and the like).

        Example::

            name = "midazolam"
            mw_g_mol = 325.8
            logp = 3.9
            pka_base = [6.0]                      # a list, or one number
            fup = 0.03
            bp_ratio = 0.55                       # optional
            clint_ul_min_million_cells = 28.0     # or clint_l_h, cl_hepatic_l_h, cl_total_l_h (plasma)
            # cl_renal_l_h = 0.0                  # plasma; left out: GFR x fup
            # ka_1_h = 3.0                        # by mouth; with lag_h, fa, fg
            # kp.adipose = 12.0                   # a measured tissue:plasma coefficient
            # ps_l_h.brain = 5.0                  # of a permeability-limited organ
            # [[saturable]]                       # Michaelis-Menten; as many as there are
            # name = "CYP3A4"
            # vmax_mg_h = 400.0                   # or vmax_pmol_min_mg, vmax_pmol_min_million_cells
            # km_u_mg_l = 1.1                     # or km_um (with fu_inc)

        Raises:
            InputError: one line for a missing file, invalid TOML, an unknown or missing key, or a value out of range.
        """
        return cls.from_mapping(read_toml(path, "drug file"), where=str(path))


def _numbers(name: str, value: object) -> tuple[float, ...]:
    items = value if isinstance(value, list | tuple) else (value,)
    return tuple(number(name, item) for item in items)


def _by_organ(name: str, values: object, limits: tuple[float, float], unit: str, allowed: str) -> dict[str, float]:
    if not isinstance(values, Mapping):
        raise InputError(name, "is no table", value=values, hint=f"write {name}.liver = 2.5, one line per organ")
    out = {str(organ): number(f"{name}.{organ}", value) for organ, value in values.items()}
    for organ, value in out.items():
        if organ not in ORGANS[1:]:
            raise InputError(f"{name}.{organ}", "is no organ with a Kp", allowed=", ".join(ORGANS[1:]))
        if not limits[0] <= value <= limits[1]:
            raise InputError(f"{name}.{organ}", value=value, unit=unit, allowed=allowed)
    return out


def _pathways(data: Mapping[str, object]) -> dict[str, object]:
    """``saturable`` tables as ``SaturablePathway``; empty when there are none."""
    tables = data.get("saturable")
    if tables is None:
        return {}
    if not isinstance(tables, list | tuple):
        raise InputError("saturable", "is no list of tables", value=tables, hint="write [[saturable]] before each one")
    mw = number("mw_g_mol", data["mw_g_mol"])
    ready = [t if isinstance(t, SaturablePathway) else SaturablePathway.from_mapping(t, mw) for t in tables]
    return {"saturable": tuple(ready)}


def located(error: InputError, where: str) -> InputError:
    """The same refusal with the place it was found in front."""
    moved = InputError(str(error), "", where=where)
    moved.field = error.field
    return moved

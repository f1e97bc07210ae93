"""``SaturablePathway``: a Michaelis-Menten pathway of the liver, for the whole liver or scaled from an assay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perfuse.errors import InputError
from perfuse.pk.checks import number
from perfuse.pk.in_vitro import km_unbound_mg_l, scale_hepatocyte_vmax, scale_microsome_vmax, scale_recombinant_vmax
from perfuse.pk.physiology import ORGAN_INDEX, human_reference

_VMAX_KEYS = ("vmax_mg_h", "vmax_pmol_min_mg", "vmax_pmol_min_million_cells", "vmax_pmol_min_pmol")
_KM_KEYS = ("km_u_mg_l", "km_um")
_ENZYME_KEYS = ("abundance_pmol_mg", "isef")
KEYS = ("name", *_VMAX_KEYS, *_ENZYME_KEYS, *_KM_KEYS, "fu_inc")
VMAX_RANGE_MG_H = (0.0, 1e9)
KM_RANGE_MG_L = (1e-9, 1e9)


def reference_liver_l() -> float:
    """Liver volume, L, of the reference adult (man of 70 kg), which ``vmax_mg_h`` belongs to."""
    return float(human_reference().volume_l[ORGAN_INDEX["liver"]])


@dataclass(frozen=True)
class SaturablePathway:
    """Metabolism at vmax Cu / (km_u + Cu), mg/h, with Cu the unbound concentration in the liver.

    Attributes:
        name: What does it, such as ``CYP2C9``.
        vmax_mg_h: Greatest rate of the reference adult's whole liver, mg/h, > 0. Another body has it in proportion to
            its liver volume.
        km_u_mg_l: Unbound concentration at half that rate, mg/L, > 0.

    Raises:
        InputError: naming the pathway, the value, its unit and what is allowed.
    """

    name: str
    vmax_mg_h: float
    km_u_mg_l: float

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError("saturable name", "is empty or no text", value=self.name)
        for field, (low, high), unit in (("vmax_mg_h", VMAX_RANGE_MG_H, "mg/h"), ("km_u_mg_l", KM_RANGE_MG_L, "mg/L")):
            value = number(f"{field} of {self.name}", getattr(self, field))
            if not (low < value if low == 0 else low <= value) or value > high:
                allowed = f"{'(' if low == 0 else '['}{low:g}, {high:g}]"
                raise InputError(f"{field} of {self.name}", value=value, unit=unit, allowed=allowed)
            object.__setattr__(self, field, value)

    @property
    def clint_l_h(self) -> float:
        """Unbound intrinsic clearance far below Km, Vmax / Km,u, L/h, of the reference adult."""
        return self.vmax_mg_h / self.km_u_mg_l

    def vmax_in(self, liver_volume_l: float) -> float:
        """Vmax of another liver, mg/h."""
        return self.vmax_mg_h * liver_volume_l / reference_liver_l()

    @classmethod
    def from_mapping(cls, data: Mapping[str, object], mw_g_mol: float) -> SaturablePathway:
        """A pathway from plain data, such as a ``[[saturable]]`` table.

        Keys: ``name``; one of ``vmax_mg_h`` (whole liver), ``vmax_pmol_min_mg`` (microsomal protein),
        ``vmax_pmol_min_million_cells`` (hepatocytes), ``vmax_pmol_min_pmol`` (recombinant enzyme, with
        ``abundance_pmol_mg`` in liver microsomes and ``isef``, 1 if left out); one of ``km_u_mg_l`` (unbound),
        ``km_um`` (umol/L in the assay, with ``fu_inc``, the fraction unbound there, 1 if left out). Assays are scaled
        to the reference adult's liver.

        Raises:
            InputError: for an unknown, missing or doubled key, or a value out of range.
        """
        if not isinstance(data, Mapping):
            raise InputError("saturable", "is no table", value=data, hint="write [[saturable]] before each pathway")
        for key in data:
            if key not in KEYS:
                raise InputError(f"saturable {key}", "is no known key", allowed=", ".join(KEYS))
        if "name" not in data:
            raise InputError("saturable name", "is missing")
        numbers = {key: number(f"saturable {key}", value) for key, value in data.items() if key != "name"}
        vmax, km = _only_one(numbers, _VMAX_KEYS), _only_one(numbers, _KM_KEYS)
        if "fu_inc" in numbers and km != "km_um":
            raise InputError("saturable fu_inc", "belongs to km_um", hint="km_u_mg_l is unbound already")
        return cls(
            data["name"],  # type: ignore[arg-type]  # checked in __post_init__
            _whole_liver_vmax(vmax, numbers, mw_g_mol),
            numbers[km] if km == "km_u_mg_l" else km_unbound_mg_l(numbers[km], mw_g_mol, numbers.get("fu_inc", 1.0)),
        )


def _whole_liver_vmax(key: str, numbers: Mapping[str, float], mw_g_mol: float) -> float:
    value, liver_l = numbers[key], reference_liver_l()
    enzyme = [k for k in _ENZYME_KEYS if k in numbers]
    if key == "vmax_pmol_min_pmol":
        if "abundance_pmol_mg" not in numbers:
            raise InputError("saturable abundance_pmol_mg", "is missing", hint="vmax_pmol_min_pmol needs it")
        return scale_recombinant_vmax(value, numbers["abundance_pmol_mg"], mw_g_mol, liver_l, numbers.get("isef", 1.0))
    if enzyme:
        raise InputError(f"saturable {enzyme[0]}", "belongs to vmax_pmol_min_pmol")
    if key == "vmax_pmol_min_mg":
        return scale_microsome_vmax(value, mw_g_mol, liver_l)
    if key == "vmax_pmol_min_million_cells":
        return scale_hepatocyte_vmax(value, mw_g_mol, liver_l)
    return value


def _only_one(numbers: Mapping[str, float], keys: tuple[str, ...]) -> str:
    given = [key for key in keys if key in numbers]
    if not given:
        raise InputError(f"saturable {keys[0]}", "is missing", hint=f"give one of {', '.join(keys)}")
    if len(given) > 1:
        raise InputError("saturable " + " and ".join(given), "say the same thing twice", hint="give one of them")
    return given[0]

"""What a NONMEM data file does not say of itself: units, compartments, matrix, organ graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from perfuse.data.units import conversion_factor
from perfuse.errors import InputError
from perfuse.files import read_toml
from perfuse.pk.matrix import TISSUE_MATRIX, check_blood_matrix
from perfuse.pk.physiology import ORGANS

ORAL_COMPARTMENT = "oral"
"""What the compartment that oral doses go into is called in ``compartments``."""
COMPARTMENTS = (ORAL_COMPARTMENT, *ORGANS)
MAX_STEADY_STATE_DOSES = 10_000


@dataclass(frozen=True, kw_only=True)
class NonmemOptions:
    """How to read a NONMEM data file.

    Attributes:
        time_unit, dose_unit, dv_unit: Units of TIME, AMT and DV; mg/kg and molar units need the weight or the
            molecular weight. RATE is in dose units per time unit, DUR and II in time units, LLOQ in DV's.
        compartments: What each CMT is: ``oral`` (the depot that oral doses go into), ``blood`` (intravenous doses and
            blood concentrations) or a tissue.
        default_dose: ``oral`` or ``blood``, for dose records without CMT (or with 0). Empty: refused.
        matrix: What DV in blood was measured in, where no MATRIX column says.
        topology: Organ graph, where no TOPOLOGY column says; empty: ``circulation``.
        compound: Name of the drug, where no DRUG column says; empty: the drug's own, or the file's name.
        columns: The file's column names that are not NONMEM's or ours, as ``{"CONC": "DV", "BW": "WT"}``.
        steady_state_doses: How many earlier doses stand for a dose record with SS=1; 0: such records are refused.

    Raises:
        InputError: for a value that cannot be.
    """

    time_unit: str = "h"
    dose_unit: str = "mg"
    dv_unit: str = "mg/L"
    compartments: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({1: "oral", 2: "blood"}))
    default_dose: str = ""
    matrix: str = "plasma"
    topology: str = ""
    compound: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    steady_state_doses: int = 0

    def __post_init__(self) -> None:
        for name in ("time_unit", "dose_unit", "dv_unit", "default_dose", "matrix", "topology", "compound"):
            if not isinstance(getattr(self, name), str):
                raise InputError(name, "is no text", value=getattr(self, name))
        conversion_factor(self.time_unit, "h", "time")
        conversion_factor(self.dose_unit, "mg", "dose", mw_g_mol=1.0, body_weight_kg=1.0)
        conversion_factor(self.dv_unit, "mg/L", "dv", mw_g_mol=1.0)
        if not isinstance(self.compartments, Mapping):
            raise InputError("compartments", "is no table", value=self.compartments, allowed='such as 1 = "oral"')
        object.__setattr__(self, "compartments", {_number(k): _compartment(v) for k, v in self.compartments.items()})
        if self.default_dose not in ("", ORAL_COMPARTMENT, "blood"):
            raise InputError("default_dose", value=self.default_dose, allowed="oral, blood")
        if self.matrix != TISSUE_MATRIX:
            check_blood_matrix(self.matrix)
        if not isinstance(self.columns, Mapping) or not all(isinstance(v, str) for v in self.columns.values()):
            raise InputError("columns", "is no table of names", value=self.columns, allowed='such as CONC = "DV"')
        count = self.steady_state_doses
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_STEADY_STATE_DOSES:
            allowed = f"a whole number from 0 to {MAX_STEADY_STATE_DOSES}"
            raise InputError("steady_state_doses", value=count, allowed=allowed)

    @classmethod
    def from_toml(cls, path: Path) -> NonmemOptions:
        """Options from a TOML file whose keys are the attributes.

        Example::

            dose_unit = "mg/kg"
            default_dose = "oral"
            columns = { CONC = "DV", BW = "WT" }
            [compartments]
            1 = "oral"
            2 = "blood"

        Raises:
            InputError: one line for a missing file, invalid TOML, an unknown key, or a value that cannot be.
        """
        data: dict[str, Any] = read_toml(path, "NONMEM options")
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                raise InputError(key, "is no known key", allowed=", ".join(known), where=str(path))
        try:
            return cls(**data)
        except InputError as error:
            raise InputError(str(error), "", where=str(path)) from None


def _number(key: object) -> int:
    """A compartment's number; TOML keys are text."""
    text = str(key)
    if isinstance(key, bool) or not text.isdecimal() or not 1 <= int(text[:9]) <= 999:
        raise InputError("compartments", "has a key that is no compartment", value=key, allowed="1 to 999")
    return int(text)


def _compartment(value: object) -> str:
    if value not in COMPARTMENTS:
        raise InputError("compartments", "names no compartment", value=value, allowed=", ".join(COMPARTMENTS))
    return str(value)

"""A drug's TOML file with, if it says so, its regimen; numbers, or text with a unit such as "2 mg/kg" or "50 uM".

``pk.drug.Drug`` takes plain numbers in the units of its names; text becomes such numbers here (pint, ``data.units``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perfuse.data.inputs import Dose
from perfuse.data.units import conversion_factor
from perfuse.errors import InputError
from perfuse.files import read_toml
from perfuse.pk.drug import Drug, located, number

REGIMEN_KEYS = ("dose", "dose_mg", "duration_h", "route", "body_weight_kg", "matrix")
DOSE_KEYS = ("amount_mg", "time_h", "duration_h", "route")
_UNITS = {
    "mw_g_mol": "g/mol", "clint_l_h": "L/h", "cl_hepatic_l_h": "L/h", "cl_total_l_h": "L/h", "cl_renal_l_h": "L/h",
    "cl_secretion_l_h": "L/h", "ka_1_h": "1/h", "lag_h": "h", "vmax_mg_h": "mg/h", "km_u_mg_l": "mg/L",
    "km_um": "umol/L", "dose_mg": "mg", "amount_mg": "mg", "time_h": "h", "duration_h": "h", "body_weight_kg": "kg",
}  # fmt: skip
_PER_KG = ("mg", "L/h", "mg/h")
_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?:\s+|(?=[A-Za-zµμ/]))(\S.*?)\s*")
_PER_TIME = re.compile(r"(?:1\s*)?/\s*([A-Za-z]{1,10})|([A-Za-z]{1,10})\s*\^?\s*-1")


@dataclass(frozen=True)
class Regimen:
    """What goes with a drug: doses, body weight, matrix of the blood row. None: not said."""

    doses: tuple[Dose, ...] = ()
    body_weight_kg: float | None = None
    matrix: str | None = None


def quantity(
    field: str, value: object, unit: str, mw_g_mol: float | None = None, body_weight_kg: float | None = None
) -> float:
    """A number in ``unit``: a plain number as it stands, text with a unit converted.

    Args:
        field: What the value is, for the message.
        value: A number, or text such as ``"1.5 h"``, ``"50 uM"``, ``"2 mg/kg"``, ``"3 mL/min/kg"``, ``"0.8 1/h"``.
        unit: Unit wanted.
        mw_g_mol: Molecular weight, g/mol, that molar values need.
        body_weight_kg: Body weight, kg, that values per kg need.

    Raises:
        InputError: for what is no number with a unit, a unit of another kind, or one that lacks a weight.
    """
    if not isinstance(value, str):
        return number(field, value)
    match = _QUANTITY.fullmatch(value)
    if match is None:
        raise InputError(
            field, "is not a number, nor one with a unit", value=value, allowed=f'a number in {unit}, or "1.5 {unit}"'
        )
    amount, text = float(match[1]), match[2]
    if unit == "1/h":
        per = _PER_TIME.fullmatch(text)
        if per is None:
            raise InputError(f"{field}_unit", "is no unit of a rate constant", value=text, allowed="e.g. 1/h, 1/min")
        return number(field, amount / conversion_factor(per[1] or per[2], "h", field))
    if text.replace(" ", "").endswith("/kg") and unit in _PER_KG:
        if body_weight_kg is None:
            raise InputError(field, "is per kg of body weight", value=value, hint="give body_weight_kg")
        text, amount = text.rpartition("/")[0], amount * body_weight_kg
    return number(field, amount * conversion_factor(text, unit, field, mw_g_mol=mw_g_mol))


def plain_numbers(
    data: Mapping[str, object], mw_g_mol: float | None, body_weight_kg: float | None, prefix: str = ""
) -> dict[str, object]:
    """The same table with every quantity written as text converted to the unit of its key.

    Raises:
        InputError: naming the key, as ``quantity``.
    """
    out = dict(data)
    for key, value in data.items():
        if isinstance(value, str) and key in _UNITS:
            out[key] = quantity(prefix + key, value, _UNITS[key], mw_g_mol, body_weight_kg)
        elif key == "ps_l_h" and isinstance(value, Mapping):
            out[key] = {o: quantity(f"ps_l_h.{o}", v, "L/h", mw_g_mol, body_weight_kg) for o, v in value.items()}
        elif key == "saturable" and isinstance(value, list):
            out[key] = [
                plain_numbers(v, mw_g_mol, body_weight_kg, "saturable ") if isinstance(v, Mapping) else v for v in value
            ]
    return out


def read_drug_file(path: Path, body_weight_kg: float | None = None) -> tuple[Drug, Regimen]:
    """A drug and, if the file says so, its regimen.

    Besides the keys of ``pk.drug.Drug`` the file may hold ``dose_mg`` with ``duration_h`` and ``route`` (one dose at
    time 0), or tables ``[[dose]]`` with ``amount_mg``, ``time_h``, ``duration_h``, ``route``; and ``body_weight_kg``,
    ``matrix``. Every quantity with a unit in its key may be text with a unit, but in-vitro clearances.

    Args:
        path: The TOML file.
        body_weight_kg: Body weight, kg, that doses and clearances per kg are for, instead of the file's.

    Raises:
        InputError: in one line, for a file, key or value that cannot be used.
    """
    data: dict[str, object] = dict(read_toml(path, "INPUT"))
    try:
        in_file = quantity("body_weight_kg", data["body_weight_kg"], "kg") if "body_weight_kg" in data else None
        weight = in_file if body_weight_kg is None else body_weight_kg
        mw = quantity("mw_g_mol", data["mw_g_mol"], "g/mol") if "mw_g_mol" in data else None
        data = plain_numbers(data, mw, weight)
        extra = {key: data.pop(key) for key in REGIMEN_KEYS if key in data}
        drug = Drug.from_mapping(data)
        matrix = extra.get("matrix")
        if matrix is not None and not isinstance(matrix, str):
            raise InputError("matrix", "is no text", value=matrix)
        return drug, Regimen(_doses(extra, mw, weight), in_file, matrix)
    except InputError as error:
        raise located(error, str(path)) from None


def _route(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise InputError(field, "is no text", value=value)
    return value


def _doses(extra: Mapping[str, object], mw_g_mol: float | None, weight: float | None) -> tuple[Dose, ...]:
    listed = extra.get("dose")
    if "dose_mg" in extra:
        if listed is not None:
            raise InputError("dose_mg and [[dose]]", "say the same thing twice", hint="give one of them")
        amount, duration = number("dose_mg", extra["dose_mg"]), number("duration_h", extra.get("duration_h", 0.0))
        return (Dose(0.0, amount, duration, _route(extra.get("route", ""), "route")),)
    for key in ("duration_h", "route"):
        if key in extra:
            raise InputError(key, "needs a dose", hint="give dose_mg too")
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(isinstance(d, dict) for d in listed) or not listed:
        raise InputError("dose", "is no list of tables", value=listed, hint="write [[dose]] before each dose")
    return tuple(_dose(f"dose {i}: ", dose, mw_g_mol, weight) for i, dose in enumerate(listed, 1))


def _dose(prefix: str, table: Mapping[str, object], mw_g_mol: float | None, weight: float | None) -> Dose:
    for key in table:
        if key not in DOSE_KEYS:
            raise InputError(prefix + key, "is no known key", allowed=", ".join(DOSE_KEYS))
    if "amount_mg" not in table:
        raise InputError(f"{prefix}amount_mg", "is missing")
    route = _route(table.get("route", ""), f"{prefix}route")
    dose = plain_numbers({k: v for k, v in table.items() if k != "route"}, mw_g_mol, weight, prefix)
    time, amount, duration = (number(prefix + k, dose.get(k, 0.0)) for k in ("time_h", "amount_mg", "duration_h"))
    return Dose(time, amount, duration, route)

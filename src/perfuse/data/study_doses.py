"""The regimen and the observation times of a study, numbers or text with a unit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from perfuse.data.drug_file import quantity
from perfuse.data.inputs import Dose
from perfuse.data.study_tables import tables
from perfuse.errors import InputError
from perfuse.pk.drug import Drug, located
from perfuse.pk.regimen import DoseCourse

MAX_TIMES = 100_000
MAX_STUDY_DOSES = 100_000
DOSE_KEYS = ("amount_mg", "route", "time_h", "duration_h", "interval_h", "n_doses")
_RANGE = re.compile(r"\s*(\S.*?)\s*\.\.\s*(\S.*?)\s+by\s+(\S.*?)\s*")
_ALLOWED_TIMES = '[0, 1, 2], { stop = 24, step = 0.5 } or "0..24 h by 0.5 h"'


def read_doses(data: Mapping[str, Any], drug: Drug, body_weight_kg: float | None) -> list[Dose]:
    """The regimen of one person, in order of time; mg/kg are resolved with the person's weight.

    Raises:
        InputError: naming the dose and the key or value that cannot be used.
    """
    out: list[Dose] = []
    for i, table in enumerate(tables(data, "dose"), 1):
        where = f"dose {i}"
        for key in table:
            if key not in DOSE_KEYS:
                raise InputError(f"{where}: {key}", "is no known key", allowed=", ".join(DOSE_KEYS))
        if "amount_mg" not in table:
            raise InputError(f"{where}: amount_mg", "is missing")
        try:
            courses = _courses(table, drug.mw_g_mol, body_weight_kg)
        except InputError as error:
            raise located(error, where) from None
        if len(out) + sum(course.n_doses for course in courses) > MAX_STUDY_DOSES:
            raise InputError(where, "makes too many doses", allowed=f"<= {MAX_STUDY_DOSES} in the study")
        for course in courses:
            out += [Dose(t, course.amount_mg, course.duration_h, course.route) for t in course.times_h()]
    if not out:
        raise InputError("dose", "is missing: there is not one", hint="write [[dose]] with amount_mg")
    return sorted(out, key=lambda dose: dose.time_h)


def _courses(table: Mapping[str, Any], mw_g_mol: float, body_weight_kg: float | None) -> list[DoseCourse]:
    """One course, or one a time where ``time_h`` is a list."""

    def of(key: str, value: object) -> float:
        return quantity(key, value, "mg" if key == "amount_mg" else "h", mw_g_mol, body_weight_kg)

    given: dict[str, Any] = {
        key: of(key, table[key]) for key in ("amount_mg", "duration_h", "interval_h") if key in table
    }
    route = str(table.get("route") or ("iv_infusion" if given.get("duration_h") else "iv_bolus"))
    times = table.get("time_h", 0.0)
    if not isinstance(times, list):
        return [DoseCourse(route=route, time_h=of("time_h", times), n_doses=table.get("n_doses", 1), **given)]
    if "interval_h" in table or "n_doses" in table:
        raise InputError("time_h and interval_h", "say the same thing twice", hint="give a list of times or a repeat")
    if not times:
        raise InputError("time_h", "is an empty list")
    first = DoseCourse(route=route, time_h=of("time_h", times[0]), **given)
    return [replace(first, time_h=of("time_h", time)) for time in times]


def read_times(value: object) -> np.ndarray:
    """Observation times, h, ``(T,)``: a list, ``{start, stop, step}``, or text such as ``"0..24 h by 15 min"``.

    Raises:
        InputError: for anything else, or too many times.
    """
    if value is None:
        return np.linspace(0.0, 24.0, 97)
    if isinstance(value, str):
        match = _RANGE.fullmatch(value)
        if match is None:
            raise InputError("output.times_h", "is no range of times", value=value, allowed=_ALLOWED_TIMES)
        unit = re.sub(r"^[\d.\s]*", "", match[2])
        start = match[1] if not unit or re.search("[A-Za-z]", match[1]) else f"{match[1]} {unit}"
        parts = {"start": start, "stop": match[2], "step": match[3]}
        value = {key: float(text) if re.fullmatch(r"[\d.]*\d[\d.]*", text) and text.count(".") < 2 else text
                 for key, text in parts.items()}  # fmt: skip
    if isinstance(value, Mapping):
        return _range(value)
    if not isinstance(value, list) or not value or len(value) > MAX_TIMES:
        raise InputError("output.times_h", "is no list of times", allowed=_ALLOWED_TIMES)
    return np.asarray([quantity("output.times_h", t, "h") for t in value])


def _range(value: Mapping[str, object]) -> np.ndarray:
    for key in value:
        if key not in ("start", "stop", "step"):
            raise InputError(f"output.times_h.{key}", "is no known key", allowed="start, stop, step")
    start, stop, step = (
        quantity(f"output.times_h.{k}", value.get(k, d), "h")
        for k, d in (("start", 0.0), ("stop", 24.0), ("step", 0.25))
    )
    if not (0 <= start < stop and step > 0 and (stop - start) / step <= MAX_TIMES):
        raise InputError("output.times_h", value=(start, stop, step), unit="h",
                         allowed=f"0 <= start < stop, step > 0, at most {MAX_TIMES} times")  # fmt: skip
    return start + step * np.arange(int(np.floor((stop - start) / step * (1 + 1e-12))) + 1)

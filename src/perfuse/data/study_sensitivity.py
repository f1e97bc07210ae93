"""What a study wants to know of its output's sensitivities: ``[sensitivity]``.

::

    [sensitivity]
    output = "auc_inf"         # auc_last, cmax, concentration (with time_h), clearance, vss, half_life
    organ = "blood"
    method = "local"           # elasticities; or morris, sobol, over
    # ranges = { clint_l_h = [0.5, 2], fup = [0.5, 2] }    # factors, and with
    # n = 256, seed = 0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.data.drug_file import quantity
from perfuse.data.study_tables import section
from perfuse.errors import InputError
from perfuse.pk import outputs
from perfuse.pk.checks import number
from perfuse.pk.sensitivity import MAX_SAMPLES, parameter_names
from perfuse.pk.system import DoseEvents, SystemParameters

KEYS = ("output", "organ", "time_h", "method", "ranges", "n", "seed")
OUTPUTS = ("auc_inf", "auc_last", "cmax", "concentration", "clearance", "vss", "half_life")
METHODS = ("local", "morris", "sobol")
_WHOLE_BODY = {"clearance": outputs.clearance, "vss": outputs.vss, "half_life": outputs.half_life}
_LINEAR_ONLY = (*_WHOLE_BODY, "auc_inf")


@dataclass(frozen=True)
class SensitivityRequest:
    """A checked ``[sensitivity]``.

    Attributes:
        name: What it is of, in words.
        output: The number itself, a function of system and doses.
        method: One of ``METHODS``.
        ranges: Factors' bounds by parameter; empty for ``local``.
        n, seed: Of Morris and Sobol.
    """

    name: str
    output: outputs.Output
    method: str = "local"
    ranges: Mapping[str, tuple[float, float]] | None = None
    n: int = 256
    seed: int = 0


def read_sensitivity(
    data: Mapping[str, Any], system: SystemParameters, doses: DoseEvents, time_h: np.ndarray
) -> SensitivityRequest:
    """Read and check the section.

    Raises:
        InputError: naming the key or value that cannot be used.
    """
    table = section(data, "sensitivity", KEYS)
    name, organ, method = (table.get(k, d) for k, d in (("output", "auc_inf"), ("organ", "blood"), ("method", "local")))
    for key, value, allowed in (("output", name, OUTPUTS), ("method", method, METHODS)):
        if value not in allowed:
            raise InputError(f"sensitivity.{key}", "is unknown", value=value, allowed=", ".join(allowed))
    if name in _LINEAR_ONLY and not system.is_linear:
        raise InputError("sensitivity.output", "needs linear kinetics", value=name,
                         allowed=", ".join(o for o in OUTPUTS if o not in _LINEAR_ONLY))  # fmt: skip
    if name not in _WHOLE_BODY and organ not in system.topology.organs:
        raise InputError("sensitivity.organ", "is unknown", value=organ, allowed=", ".join(system.topology.organs))
    if (name == "concentration") != ("time_h" in table):
        raise InputError("sensitivity.time_h", "goes with concentration, and with nothing else")
    if name in _WHOLE_BODY:
        return SensitivityRequest(name, _WHOLE_BODY[name], method, **_sampling(table, method, system, doses))
    if name == "concentration":
        time = quantity("sensitivity.time_h", table["time_h"], "h")
        if not time >= 0:
            raise InputError("sensitivity.time_h", value=time, unit="h", allowed=">= 0")
        output, text = outputs.concentration(organ, time), f"concentration of {organ} at {time:g} h"
    elif name == "auc_inf":
        output, text = outputs.auc_inf(organ), f"auc_inf of {organ}"
    else:
        output, text = {"auc_last": outputs.auc_last, "cmax": outputs.cmax}[name](organ, time_h), f"{name} of {organ}"
    return SensitivityRequest(text, output, method, **_sampling(table, method, system, doses))


def _sampling(
    table: Mapping[str, Any], method: str, system: SystemParameters, doses: DoseEvents
) -> dict[str, Any]:  # fmt: skip
    given = [key for key in ("ranges", "n", "seed") if key in table]
    if method == "local":
        if given:
            raise InputError(f"sensitivity.{given[0]}", "goes with morris and sobol")
        return {}
    ranges = table.get("ranges")
    if not isinstance(ranges, Mapping) or not ranges:
        raise InputError("sensitivity.ranges", "is missing", hint="write ranges = { clint_l_h = [0.5, 2] }")
    known = parameter_names(system, doses)
    checked = {}
    for name, bounds in ranges.items():
        field = f"sensitivity.ranges.{name}"
        if name not in known:
            raise InputError(field, "is no parameter", allowed=", ".join(known))
        if not isinstance(bounds, list) or len(bounds) != 2:
            raise InputError(field, "is no pair of factors", value=bounds, allowed="[low, high]")
        low, high = (number(field, bound) for bound in bounds)
        if not 0 < low < high:
            raise InputError(field, value=bounds, allowed="0 < low < high")
        checked[name] = (low, high)
    n, seed = table.get("n", 256), table.get("seed", 0)
    for key, value, least, most in (("n", n, 2, MAX_SAMPLES), ("seed", seed, 0, 2**32 - 1)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InputError(f"sensitivity.{key}", value=value, allowed=f"a whole number, {least} to {most}")
    if method == "sobol" and n & (n - 1):
        raise InputError("sensitivity.n", "is no power of 2", value=n)
    return {"ranges": checked, "n": n, "seed": seed}

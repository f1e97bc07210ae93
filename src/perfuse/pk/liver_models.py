"""Liver models: from the liver's unbound intrinsic clearance to hepatic blood clearance, and back.

With the efficiency number R = fu_b CL_int / Q_h (fu_b = fup / BP) and the availability F = 1 - E:

    well-stirred    F = 1 / (1 + R)
    parallel-tube   F = exp(-R)
    dispersion      F = 4 a / [(1 + a)^2 exp((a - 1) / (2 DN)) - (1 - a)^2 exp(-(a + 1) / (2 DN))]
                    a = sqrt(1 + 4 R DN)

and CL_h = Q_h (1 - F). DN -> 0 is the parallel tube, DN -> infinity the well-stirred liver.

References: Rowland M, Benet LZ, Graham GG. J Pharmacokinet Biopharm 1973;1:123-136 (well-stirred). Pang KS, Rowland M.
J Pharmacokinet Biopharm 1977;5:625-653 (parallel tube). Roberts MS, Rowland M. J Pharmacokinet Biopharm
1986;14:227-260 (dispersion, DN 0.17); its closed form is that of a first-order reaction in a vessel that is closed at
both ends: Wehner JF, Wilhelm RH. Chem Eng Sci 1956;6:89-93.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from scipy.optimize import brentq

from perfuse.errors import InputError
from perfuse.pk.checks import check_fraction, check_positive

LiverModel = Literal["well-stirred", "parallel-tube", "dispersion"]

DISPERSION_NUMBER = 0.17
"""Dispersion number of the liver: Roberts MS, Rowland M. J Pharmacokinet Biopharm 1986;14:227-260."""

LOWEST_AVAILABILITY = 1e-9
"""Below it a well-stirred equivalent stops growing: the clearance is liver flow to 1e-9 already, and the intrinsic
clearance that a well-stirred liver would need for more is a rate that no solver follows."""

_Extraction = tuple[float, float]


def _well_stirred(r: float, dispersion_number: float) -> _Extraction:
    return (1.0, 0.0) if math.isinf(r) else (r / (1 + r), 1 / (1 + r))


def _parallel_tube(r: float, dispersion_number: float) -> _Extraction:
    return -math.expm1(-r), math.exp(-r)


def _dispersion(r: float, dispersion_number: float) -> _Extraction:
    """Numerator and denominator multiplied by exp(-(a - 1) / (2 DN)), E's written without cancellation."""
    a = math.sqrt(1 + 4 * r * dispersion_number)
    if math.isinf(a):
        return 1.0, 0.0
    d = 4 * r * dispersion_number / (1 + a)  # a - 1
    x, back = d / (2 * dispersion_number), math.exp(-(a + 1) / (2 * dispersion_number))
    below = (1 + a) ** 2 - d**2 * back * math.exp(-x)
    e = -((1 + a) ** 2) * math.expm1(-x) + d**2 * (1 - back) * math.exp(-x)
    return e / below, 4 * a * math.exp(-x) / below


_MODELS: dict[str, Callable[[float, float], _Extraction]] = {
    "well-stirred": _well_stirred, "parallel-tube": _parallel_tube, "dispersion": _dispersion,
}  # fmt: skip
LIVER_MODELS: tuple[str, ...] = tuple(_MODELS)


def check_liver_model(model: str) -> None:
    """Refuse a name that is no liver model.

    Raises:
        InputError: naming the models there are.
    """
    if model not in _MODELS:
        raise InputError("liver_model", "is unknown", value=model, allowed=", ".join(LIVER_MODELS))


def _check(fup: float, bp_ratio: float, hepatic_flow_l_h: float, model: str, dispersion_number: float) -> None:
    check_fraction("fup", fup)
    check_positive("bp_ratio", bp_ratio)
    check_positive("hepatic_flow_l_h", hepatic_flow_l_h, "L/h")
    check_liver_model(model)
    if not 1e-3 <= dispersion_number <= 1e3:
        raise InputError("dispersion_number", value=float(dispersion_number), allowed="[0.001, 1000]")


def hepatic_extraction(
    clint_l_h: float, fup: float, bp_ratio: float, hepatic_flow_l_h: float,
    model: str = "well-stirred", dispersion_number: float = DISPERSION_NUMBER,
) -> tuple[float, float]:  # fmt: skip
    """Extraction ratio E and availability F = 1 - E, each to full relative precision.

    Args:
        clint_l_h: Unbound intrinsic clearance of the whole liver, L/h (after in-vitro scaling), >= 0.
        fup: Fraction unbound in plasma, in (0, 1].
        bp_ratio: Blood-to-plasma concentration ratio, > 0.
        hepatic_flow_l_h: Total hepatic blood flow (artery + portal vein), L/h.
        model: One of ``LIVER_MODELS``.
        dispersion_number: Used by ``dispersion`` alone.

    Raises:
        InputError: naming the argument, its value and the allowed range.
    """
    check_positive("clint_l_h", clint_l_h, "L/h", or_zero=True)
    _check(fup, bp_ratio, hepatic_flow_l_h, model, dispersion_number)
    return _MODELS[model](fup / bp_ratio * clint_l_h / hepatic_flow_l_h, dispersion_number)


def hepatic_clearance(
    clint_l_h: float, fup: float, bp_ratio: float, hepatic_flow_l_h: float,
    model: str = "well-stirred", dispersion_number: float = DISPERSION_NUMBER,
) -> float:  # fmt: skip
    """Hepatic blood clearance Q_h (1 - F), L/h, never above liver flow; see ``hepatic_extraction``."""
    extraction, _ = hepatic_extraction(clint_l_h, fup, bp_ratio, hepatic_flow_l_h, model, dispersion_number)
    return hepatic_flow_l_h * extraction


def hepatic_clearance_well_stirred(clint_l_h: float, fup: float, bp_ratio: float, hepatic_flow_l_h: float) -> float:
    """Hepatic blood clearance of the well-stirred liver, Q_h fu_b CL_int / (Q_h + fu_b CL_int), L/h.

    See ``hepatic_extraction`` for the arguments and what is refused.
    """
    return hepatic_clearance(clint_l_h, fup, bp_ratio, hepatic_flow_l_h)


def clint_from_hepatic_clearance(
    cl_hepatic_blood_l_h: float, fup: float, bp_ratio: float, hepatic_flow_l_h: float,
    model: str = "well-stirred", dispersion_number: float = DISPERSION_NUMBER,
) -> float:  # fmt: skip
    """The models inverted: the whole liver's unbound CL_int, L/h, that gives a hepatic blood clearance.

        well-stirred R = E / (1 - E);   parallel-tube R = -ln(1 - E);   dispersion: the root between those two

    Args:
        cl_hepatic_blood_l_h: Hepatic blood clearance, L/h, >= 0 and below the hepatic flow.
        fup: Fraction unbound in plasma, in (0, 1].
        bp_ratio: Blood-to-plasma concentration ratio, > 0.
        hepatic_flow_l_h: Total hepatic blood flow (artery + portal vein), L/h.
        model: One of ``LIVER_MODELS``.
        dispersion_number: Used by ``dispersion`` alone.

    Raises:
        InputError: naming the argument; no finite CL_int gives a clearance at or above hepatic blood flow.
    """
    check_positive("cl_hepatic_blood_l_h", cl_hepatic_blood_l_h, "L/h", or_zero=True)
    _check(fup, bp_ratio, hepatic_flow_l_h, model, dispersion_number)
    if cl_hepatic_blood_l_h >= hepatic_flow_l_h:
        raise InputError(
            "cl_hepatic_blood_l_h", "reaches hepatic blood flow", value=float(cl_hepatic_blood_l_h), unit="L/h",
            allowed=f"< {hepatic_flow_l_h:.4g} L/h",
            hint="blood clearance is plasma clearance / (B:P); is part of it renal, or is B:P higher?",
        )  # fmt: skip
    extraction = cl_hepatic_blood_l_h / hepatic_flow_l_h
    efficiency = _efficiency_number(extraction, model, dispersion_number)
    return efficiency * hepatic_flow_l_h / (fup / bp_ratio)


def _efficiency_number(extraction: float, model: str, dispersion_number: float) -> float:
    """R of an extraction ratio in [0, 1)."""
    well_stirred, parallel_tube = extraction / (1 - extraction), -math.log1p(-extraction)
    if model == "well-stirred" or extraction == 0:
        return well_stirred
    if model == "parallel-tube":
        return parallel_tube

    def miss(log_r: float) -> float:  # compared where it is precise: E at low extraction, F at high
        e, f = _dispersion(math.exp(log_r), dispersion_number)
        return math.log(e / extraction) if extraction < 0.5 else math.log((1 - extraction) / max(f, 1e-300))

    low, high = math.log(parallel_tube) - 1e-9, math.log(well_stirred) + 1e-9
    if miss(low) >= 0 or miss(high) <= 0:  # the two limits agree to rounding: any of them is the root
        return parallel_tube
    return math.exp(float(brentq(miss, low, high, xtol=1e-14, rtol=1e-14)))


def well_stirred_equivalent_clint(
    clint_l_h: float, fup: float, bp_ratio: float, hepatic_flow_l_h: float,
    model: str, dispersion_number: float = DISPERSION_NUMBER,
) -> float:  # fmt: skip
    """CL_int, L/h, with which a well-stirred liver clears what ``model`` clears with ``clint_l_h`` at this liver flow.

    The whole-body model's liver is one well-stirred compartment. With this CL_int it has the hepatic clearance and
    the first-pass availability of the chosen model; AUC after any dose follows. It holds for this body's liver flow
    and for linear kinetics, and the shape of the curve inside the liver stays that of a well-stirred compartment.

    Raises:
        InputError: naming the argument, its value and the allowed range.
    """
    e, f = hepatic_extraction(clint_l_h, fup, bp_ratio, hepatic_flow_l_h, model, dispersion_number)
    if model == "well-stirred":
        return clint_l_h
    return e / max(f, LOWEST_AVAILABILITY) * hepatic_flow_l_h / (fup / bp_ratio)

"""From a drug, a body and doses to the inputs of a topology.

Axis legend: C curves, O reported organs, M eliminations, X exchanges, P saturable pathways, D dose events, T times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfuse.data.drug_parameters import (
    DEFAULT_KP_METHOD,
    elimination_parameters,
    haematocrit_of,
    partition_parameters,
    permeability_parameters,
    reference_body,
    saturable_parameters,
)
from perfuse.data.table import LOQ_FRACTION, N_PKA, CurveTable, parameter_group
from perfuse.errors import InputError
from perfuse.pk.drug import Drug, number
from perfuse.pk.matrix import check_blood_matrix
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, Physiology
from perfuse.pk.system import ORAL, ROUTES
from perfuse.pk.topology import Topology

__all__ = [
    "DEFAULT_KP_METHOD", "Dose", "curve_table_for", "elimination_parameters", "partition_parameters",
    "permeability_parameters", "reference_body", "saturable_parameters",
]  # fmt: skip


@dataclass(frozen=True)
class Dose:
    """One dose: intravenous into venous blood, or by mouth into the gut lumen.

    Attributes:
        time_h: Start, h, >= 0.
        amount_mg: Amount, mg, > 0.
        duration_h: Infusion duration, h; 0 for a bolus and by mouth.
        route: ``iv_bolus``, ``iv_infusion`` or ``oral``; left empty it is intravenous and follows from the duration.

    Raises:
        InputError: for a value out of range, a route that contradicts the duration, or a route that is not modelled.
    """

    time_h: float
    amount_mg: float
    duration_h: float = 0.0
    route: str = ""

    def __post_init__(self) -> None:
        for name, unit, allow_zero in (("time_h", "h", True), ("amount_mg", "mg", False), ("duration_h", "h", True)):
            value = number(f"dose {name}", getattr(self, name))
            if value < 0 or (value == 0 and not allow_zero):
                raise InputError(f"dose {name}", value=value, unit=unit, allowed=">= 0" if allow_zero else "> 0")
        route = self.route or ("iv_infusion" if self.duration_h > 0 else "iv_bolus")
        if route not in ROUTES:
            raise InputError("route", "is not modelled", value=route, allowed=", ".join(ROUTES))
        if (route == "iv_infusion") != (self.duration_h > 0):
            raise InputError(
                "dose duration_h", "contradicts the route", value=float(self.duration_h), unit="h",
                allowed="0 for iv_bolus and oral, > 0 for iv_infusion",
            )  # fmt: skip
        object.__setattr__(self, "route", route)


def _check_times(time_h: np.ndarray) -> np.ndarray:
    time = np.asarray(time_h, dtype=np.float64)
    if time.ndim != 1 or len(time) == 0:
        raise InputError("time_h", "is no row of times", value=time.shape, allowed="(T,) with T >= 1")
    if not (np.isfinite(time).all() and (time >= 0).all()):
        raise InputError("time_h", "holds a time that is negative or not finite", unit="h", allowed=">= 0")
    if (np.diff(time) <= 0).any():
        raise InputError("time_h", "is not increasing", allowed="strictly increasing", hint="sort the times")
    return time


def _the_body(topology: Topology, body_weight_kg: float | None, body: Physiology | None) -> Physiology:
    if body is None:
        if body_weight_kg is None:
            raise InputError("body_weight_kg", "is missing", hint="give it, or a body")
        return reference_body(topology, body_weight_kg)
    if topology.name == "hub":
        raise InputError("body", "cannot be chosen on topology hub, which has a fixed one", value=body.name)
    if body_weight_kg is not None and body_weight_kg != body.body_weight_kg:
        raise InputError("body_weight_kg", "contradicts the body", value=float(body_weight_kg), unit="kg",
                         allowed=f"{body.body_weight_kg:g}, or left out")  # fmt: skip
    return body


def _dose_columns(drug: Drug, doses: Sequence[Dose]) -> dict[str, np.ndarray]:
    """Dose and absorption columns of one curve; absorption is the drug's where a dose is by mouth, else neutral."""
    if not doses:
        raise InputError("doses", "are missing: there is not one", allowed=">= 1")
    dose = np.asarray([[d.time_h, d.amount_mg, d.duration_h] for d in doses], dtype=np.float64)
    route = np.asarray([[ROUTES[d.route] for d in doses]], dtype=np.int8)
    columns: dict[str, np.ndarray] = {
        "dose_time_h": dose[None, :, 0], "dose_mg": dose[None, :, 1], "dose_duration_h": dose[None, :, 2],
        "dose_route": route,
    }  # fmt: skip
    if not (route == ORAL).any():
        return columns
    if drug.ka_1_h is None:
        raise InputError("ka_1_h", "is missing", where=f"drug {drug.name}",
                         hint="a dose by mouth needs an absorption rate constant, 1/h")  # fmt: skip
    columns["ka_1_h"] = np.asarray([drug.ka_1_h])
    columns["lag_h"] = np.asarray([drug.lag_h])
    columns["f_abs"] = np.asarray([drug.f_abs])
    return columns


def _descriptor_columns(drug: Drug) -> dict[str, np.ndarray]:
    """What is known of the molecule; the pKa that matter most at body pH: the most acidic acids and basic bases."""
    acid, base = sorted(drug.pka_acid)[:N_PKA], sorted(drug.pka_base, reverse=True)[:N_PKA]
    clint = drug.clint_ul_min_million_cells
    return {
        "mw_g_mol": np.asarray([drug.mw_g_mol]),
        "logp": np.asarray([drug.logp]),
        "pka_acid": np.asarray([acid + [np.nan] * (N_PKA - len(acid))]),
        "pka_base": np.asarray([base + [np.nan] * (N_PKA - len(base))]),
        "clint_ul_min_million_cells": np.asarray([np.nan if clint is None else clint]),
    }


def curve_table_for(
    drug: Drug,
    topology: Topology,
    body_weight_kg: float | None,
    doses: Sequence[Dose],
    time_h: np.ndarray,
    matrix: str = "plasma",
    *,
    body: Physiology | None = None,
    curve_id: str | None = None,
    compound_id: str | None = None,
    kp_method: str = DEFAULT_KP_METHOD,
) -> CurveTable:
    """One curve without observations, ready for a model or the mechanistic solver.

    Plasma is reported as blood / (B:P), so fup and B:P travel with the curve on every topology. ``hub`` keeps its
    fixed 70 kg body; its body weight is only carried.

    Args:
        drug: The compound (see ``elimination_parameters`` and ``partition_parameters``).
        topology: ``hub``, ``circulation`` or another.
        body_weight_kg: Body weight, kg, in (0, 300], which the reference man is scaled to; None with ``body``.
        doses: At least one dose; one by mouth needs the drug's ``ka_1_h``.
        time_h: Times wanted, h, ``(T,)``, >= 0 and increasing.
        matrix: What the blood row means, one of ``BLOOD_MATRICES``.
        body: The person, instead of the scaled reference man: volumes and flows, and where it states them its
            haematocrit (B:P that is not measured) and GFR (renal clearance that is not given).
        curve_id: Name of the curve; the drug's when not given.
        compound_id: Name that splits keep together; the drug's when not given.
        kp_method: A key of ``pk.partition.KP_METHODS``.

    Returns:
        One row, concentrations NaN, ``loq_mg_l`` 1e-5 x total dose / blood volume. Raises InputError for bad input.
    """
    dosing = _dose_columns(drug, doses)
    check_blood_matrix(matrix)
    person = _the_body(topology, body_weight_kg, body)
    time = _check_times(time_h)
    haematocrit = haematocrit_of(person)
    kp = partition_parameters(drug, topology, kp_method, haematocrit, "rat" if person.species == "rat" else "human")[
        None
    ]
    elimination = elimination_parameters(drug, topology, person)[None]
    vmax, km = (a[None] for a in saturable_parameters(drug, topology, person))
    ps = permeability_parameters(drug, topology)[None]
    fup, bp = np.asarray([drug.fup]), np.asarray([drug.bp_ratio_for(haematocrit)])
    weight = person.body_weight_kg if body_weight_kg is None else body_weight_kg
    shape = (1, len(ORGANS), len(time))
    return CurveTable(
        topology=topology,
        curve_id=np.asarray([curve_id or drug.name]),
        compound_id=np.asarray([compound_id or drug.name]),
        group_id=parameter_group(kp, elimination, fup, bp, ps, vmax, km),
        body_weight_kg=np.asarray([float(weight)]),
        volume_l=person.volume_l[None].copy(),
        flow_l_h=person.flow_l_h[None].copy(),
        kp=kp,
        elimination_l_h=elimination,
        fup=fup,
        bp_ratio=bp,
        time_h=time[None].copy(),
        conc_mg_l=np.full(shape, np.nan),
        censored=np.zeros(shape, dtype=bool),
        loq_mg_l=LOQ_FRACTION * dosing["dose_mg"].sum(1) / person.volume_l[ORGAN_INDEX["blood"]],
        matrix=np.asarray([matrix]),
        ps_l_h=ps,
        vmax_mg_h=vmax,
        km_u_mg_l=km,
        **dosing,
        **_descriptor_columns(drug),
    ).validate()

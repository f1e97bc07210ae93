"""Tissue:plasma partition coefficients: every method by name, and their arrangement on the 14 organs.

Methods live in the plain dict ``KP_METHODS``; each takes a ``PartitionInputs`` and returns one Kp for every tissue that
its table of compositions has (``pk.composition``).

Axis legend: O the 14 reported organs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.composition import (
    HUMAN_COMPOSITION,
    PLASMA_COMPOSITION,
    RAT_COMPOSITION,
    RAT_PLASMA_COMPOSITION,
    Composition,
)
from perfuse.pk.ionisation import (
    PLASMA_PH,
    IonClass,
    check_number,
    fraction_unionised,
    ion_class,
    log10_total_to_unionised,
    unionised_fraction,
)
from perfuse.pk.lipid_water import fraction_unbound_tissue, kp_berezhkovskiy, kp_poulin_theil
from perfuse.pk.partition_inputs import PartitionInputs
from perfuse.pk.physiology import ORGANS
from perfuse.pk.rodgers_rowland import kp_rodgers_rowland, rodgers_rowland_kp, tissue_volumes_l
from perfuse.pk.schmitt import kp_pk_sim_standard, kp_schmitt

KP_RANGE = (1e-4, 1e6)
"""Tissue:plasma coefficients that can be: beyond them lies no measurement, and flow / (volume x Kp) becomes a rate
that no solver can follow."""
KP_ALLOWED = f"[{KP_RANGE[0]:g}, {KP_RANGE[1]:g}]"
"""The same as messages write it."""

KpMethod = Callable[[PartitionInputs], dict[str, float]]
KP_METHODS: dict[str, KpMethod] = {
    "poulin-theil": kp_poulin_theil,
    "berezhkovskiy": kp_berezhkovskiy,
    "rodgers-rowland": kp_rodgers_rowland,
    "schmitt": kp_schmitt,
    "pk-sim-standard": kp_pk_sim_standard,
}


def tissue_plasma_kp(
    drug: PartitionInputs, method: str = "berezhkovskiy", overrides: Mapping[str, float] | None = None
) -> np.ndarray:
    """Tissue:plasma Kp (total/total) of the 14 organs, ``(O,)``; blood is 1.

    ``other`` is the mean of the other tissues weighted by their volumes in the reference man (or rat),
    after overrides.

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
        check_number(f"kp.{organ}", value, *KP_RANGE)
        kp[organ] = float(value)
    if "other" not in kp:
        kp["other"] = float(np.average(list(kp.values()), weights=tissue_volumes_l(tuple(kp), drug.species)))
    for organ, value in kp.items():
        if not KP_RANGE[0] <= value <= KP_RANGE[1]:
            raise InputError(
                f"kp.{organ}", f"as {method} predicts it cannot be", value=float(value), allowed=KP_ALLOWED,
                hint=f"give a measured kp.{organ}",
            )  # fmt: skip
    return np.asarray([1.0] + [kp[organ] for organ in ORGANS[1:]])


__all__ = [
    "HUMAN_COMPOSITION", "KP_ALLOWED", "KP_METHODS", "KP_RANGE", "PLASMA_COMPOSITION", "PLASMA_PH", "RAT_COMPOSITION",
    "RAT_PLASMA_COMPOSITION", "Composition", "IonClass", "KpMethod", "PartitionInputs", "fraction_unbound_tissue",
    "fraction_unionised", "ion_class", "kp_berezhkovskiy", "kp_pk_sim_standard", "kp_poulin_theil",
    "kp_rodgers_rowland", "kp_schmitt", "log10_total_to_unionised", "rodgers_rowland_kp", "tissue_plasma_kp",
    "unionised_fraction",
]  # fmt: skip

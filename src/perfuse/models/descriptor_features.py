"""What a network reads of a molecule whose Kp and clearances are not given: logs of its descriptors, never NaN.

Ionisation enters as ln (all species / un-ionised species), of the acidic and of the basic groups, at the pH of plasma,
of blood cells and of tissue water, so that a network need not learn the Henderson-Hasselbalch equation first.

Axis legend: B batch, F features, G groups, Z pH values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from perfuse.data.batch import DESCRIPTORS, CurveBatch

PH = {"plasma": 7.4, "blood_cells": 7.22, "tissue_water": 7.0}
"""Rodgers T, Rowland M. J Pharm Sci 2006;95:1238-1257."""
HALF_IONISED_ACID_PKA = PH["plasma"]
STRONG_BASE_PKA = 7.0
"""From here on a base counts as one that binds to acidic phospholipids (Rodgers & Rowland)."""
DESCRIPTOR_FEATURES = (
    "ln_mw",
    "logp",
    *(f"ln_acid_ionisation_{water}" for water in PH),
    *(f"ln_base_ionisation_{water}" for water in PH),
    "is_acid",
    "is_base",
    "ln_clint_in_vitro",
    "clint_is_known",
    "ln_fup",
    "ln_bp_ratio",
)
"""Columns of ``descriptor_features``."""
N_DESCRIPTOR_FEATURES = len(DESCRIPTOR_FEATURES)
_COLUMN = {name: column for column, name in enumerate(DESCRIPTORS)}


def has_descriptors(batch: CurveBatch) -> bool:
    """Whether some curve's Kp and clearances are not given, so that only descriptors tell of the drug."""
    return bool(torch.isnan(batch.system.kp).any() | torch.isnan(batch.system.elimination_l_h).any())


def descriptor_features(batch: CurveBatch) -> Tensor:
    """Features ``(B, F)``, float64, columns ``DESCRIPTOR_FEATURES``; finite, 0 where a descriptor is unknown.

    Not standardised: ionisation terms span about 0 to 11, the rest -9 to 7.
    """
    d = batch.descriptors
    acid = d[:, [_COLUMN["pka_acid_1"], _COLUMN["pka_acid_2"]]]
    base = d[:, [_COLUMN["pka_base_1"], _COLUMN["pka_base_2"]]]
    ph = torch.tensor(list(PH.values()), dtype=d.dtype, device=d.device)[:, None]  # (Z, 1)
    clint = d[:, _COLUMN["ln_clint_in_vitro"]]
    flags = (acid < HALF_IONISED_ACID_PKA).any(1), (base >= STRONG_BASE_PKA).any(1)  # NaN compares false
    columns = (
        d[:, [_COLUMN["ln_mw"], _COLUMN["logp"]]],
        _ln_ionisation(ph - acid[:, None]),
        _ln_ionisation(base[:, None] - ph),
        torch.stack((*flags, clint, ~torch.isnan(clint)), 1),
        batch.system.fup.log()[:, None],
        batch.system.bp_ratio.log()[:, None],
    )
    return torch.cat(columns, 1).to(torch.float64).nan_to_num(nan=0.0)


def _ln_ionisation(steps: Tensor) -> Tensor:
    """ln (1 + 10^s1 + 10^(s1 + s2) + ...), ``(B, Z)``, for steps ``(B, Z, G)``, largest first; NaN is no group.

    The Henderson-Hasselbalch equation for several groups (see ``pk.ionisation.log10_species``).
    """
    steps = torch.where(torch.isnan(steps), -torch.inf, steps).sort(-1, descending=True).values
    exponents = math.log(10) * steps.cumsum(-1)
    return torch.cat((torch.zeros_like(exponents[..., :1]), exponents), -1).logsumexp(-1)

"""Reference anatomy: organ names, volumes (L) and blood flows (L/h), with balance checks.

Axis legend: B batch, O the 14 reported organs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from perfuse.errors import InputError
from perfuse.pk import anatomy

ORGANS: tuple[str, ...] = (
    "blood", "liver", "kidney", "brain", "heart", "lung", "muscle",
    "adipose", "gut", "skin", "bone", "spleen", "pancreas", "other",
)  # fmt: skip
"""The 14 reported organs, in the order of every ``[.., O]`` axis. ``blood`` is venous blood."""

Weight = TypeVar("Weight", float, np.ndarray)

ORGAN_INDEX = {name: i for i, name in enumerate(ORGANS)}
PORTAL_ORGANS = ("gut", "spleen", "pancreas")
"""Organs that drain through the portal vein into the liver."""


@dataclass(frozen=True)
class Physiology:
    """Volumes and flows of one person.

    Attributes:
        name: Where the numbers come from.
        body_weight_kg: Body weight, kg.
        volume_l: Organ volumes, L, shape ``(O,)``.
        flow_l_h: Blood flow leaving each organ, L/h, shape ``(O,)``. ``liver`` is the total
            (hepatic artery + portal vein); ``blood`` and ``lung`` carry all of cardiac output.
        species, sex, age_year, height_cm: Who it is; None where not said.
        haematocrit: Volume fraction of red cells in blood.
        gfr_l_h: Glomerular filtration rate, L/h; None: the healthy adult's at this body weight.
    """

    name: str
    body_weight_kg: float
    volume_l: np.ndarray
    flow_l_h: np.ndarray
    species: str = "human"
    sex: str | None = None
    age_year: float | None = None
    height_cm: float | None = None
    haematocrit: float = 0.45
    gfr_l_h: float | None = None

    @property
    def cardiac_output_l_h(self) -> float:
        """Cardiac output, L/h."""
        return float(self.flow_l_h[ORGAN_INDEX["lung"]])

    @property
    def gfr_or_default(self) -> float:
        """Glomerular filtration rate, L/h."""
        return adult_gfr_l_h(self.body_weight_kg) if self.gfr_l_h is None else self.gfr_l_h

    @property
    def gfr_ml_min(self) -> float:
        """Glomerular filtration rate, mL/min."""
        return self.gfr_or_default * 1000 / 60

    @property
    def portal_flow_l_h(self) -> float:
        """Flow of the portal vein: gut, spleen and pancreas, L/h."""
        return float(self.flow_l_h[[ORGAN_INDEX[organ] for organ in PORTAL_ORGANS]].sum())

    @property
    def hepatic_artery_l_h(self) -> float:
        """Flow of the hepatic artery, L/h."""
        return float(self.flow_l_h[ORGAN_INDEX["liver"]]) - self.portal_flow_l_h

    def scaled(self, body_weight_kg: float) -> Physiology:
        """The same body at another weight: volumes in proportion, flows and GFR by the power 3/4 (West 1997).

        Raises:
            InputError: if the body weight is not in (0, 300] kg.
        """
        _check_weight(body_weight_kg)
        ratio = body_weight_kg / self.body_weight_kg
        return replace(
            self, body_weight_kg=float(body_weight_kg), volume_l=self.volume_l * ratio,
            flow_l_h=self.flow_l_h * ratio**0.75, gfr_l_h=None if self.gfr_l_h is None else self.gfr_l_h * ratio**0.75,
        )  # fmt: skip


# ICRP Publication 89 (2002), reference adult male, 73 kg: organ masses (kg) at density 1 kg/L, scaled to
# 70 kg by 70/73; flows as per cent of a cardiac output of 6.3 L/min. `other` carries the rest of the flow.
_ICRP89_MALE_MASS_KG = (5.6, 1.8, 0.31, 1.45, 0.33, 0.5, 29.0, 18.2, 1.17, 3.3, 10.5, 0.15, 0.14, 0.55)
_ICRP89_MALE_FLOW_PERCENT = (100.0, 25.5, 19.0, 12.0, 4.0, 100.0, 17.0, 5.0, 15.0, 5.0, 5.0, 3.0, 1.0, 7.5)
_ICRP89_MALE_BODY_WEIGHT_KG = 73.0
_CARDIAC_OUTPUT_L_H = 378.0

# The origin's hub model: fixed numbers, flows need not sum to cardiac output (DESIGN section 3).
_HUB_VOLUME_L = (5.0, 1.8, 0.31, 1.4, 0.33, 0.5, 30.0, 15.0, 1.1, 3.3, 10.0, 0.18, 0.1, 5.0)
_HUB_FLOW_L_H = (0.0, 90.0, 60.0, 50.0, 20.0, 300.0, 75.0, 12.0, 45.0, 10.0, 5.0, 15.0, 5.0, 20.0)


def _check_weight(body_weight_kg: float) -> None:
    if not 0 < body_weight_kg <= 300:
        raise InputError("body_weight_kg", value=body_weight_kg, unit="kg", allowed="(0, 300]")


def adult_gfr_l_h(body_weight_kg: Weight) -> Weight:
    """7.2 L/h (120 mL/min) at 70 kg, by the power 3/4 of body weight (sources: ``pk.renal``)."""
    return 7.2 * (body_weight_kg / 70.0) ** 0.75


def rat_reference(body_weight_kg: float = anatomy.RAT_BODY_WEIGHT_KG) -> Physiology:
    """A rat (``anatomy.RAT_VOLUME_ML`` and on), scaled to a body weight by ``Physiology.scaled``.

    Raises:
        InputError: if the body weight is not in (0, 300] kg.
    """
    weight = anatomy.RAT_BODY_WEIGHT_KG
    volume = np.asarray([anatomy.RAT_VOLUME_ML.get(organ, 0.0) for organ in ORGANS]) / 1000
    flow = np.asarray([anatomy.RAT_FLOW_L_H.get(organ, 0.0) for organ in ORGANS])
    output = anatomy.RAT_CARDIAC_OUTPUT_L_H
    direct = [i for name, i in ORGAN_INDEX.items() if name not in ("blood", "lung", "other", *PORTAL_ORGANS)]
    volume[ORGAN_INDEX["other"]] = weight - volume.sum()
    flow[ORGAN_INDEX["other"]] = output - flow[direct].sum()
    flow[[ORGAN_INDEX["blood"], ORGAN_INDEX["lung"]]] = output
    check_flow_balance(flow)
    rat = Physiology(
        "rat, 0.25 kg", weight, volume, flow, species="rat", haematocrit=anatomy.RAT_HAEMATOCRIT,
        gfr_l_h=anatomy.RAT_GFR_L_H,
    )  # fmt: skip
    return rat if body_weight_kg == weight else rat.scaled(body_weight_kg)


def human_reference(body_weight_kg: float = 70.0) -> Physiology:
    """ICRP 89 adult male, scaled to a body weight: volumes linearly, flows by the power 3/4.

    Source: ICRP Publication 89 (2002), tables 2.8 and 2.39; allometric exponents: West GB, Brown JH,
    Enquist BJ. Science 1997;276:122-126.

    Raises:
        InputError: if the body weight is not in (0, 300] kg.
    """
    _check_weight(body_weight_kg)
    mass = np.asarray(_ICRP89_MALE_MASS_KG)
    volume_l = mass / _ICRP89_MALE_BODY_WEIGHT_KG * body_weight_kg
    flow_l_h = np.asarray(_ICRP89_MALE_FLOW_PERCENT) / 100 * _CARDIAC_OUTPUT_L_H
    flow_l_h = flow_l_h * (body_weight_kg / 70.0) ** 0.75
    return Physiology("ICRP 89 adult male", body_weight_kg, volume_l, flow_l_h)


def hub_reference() -> Physiology:
    """The fixed body of the origin's hub model (70 kg; blood flow entry is unused and zero)."""
    return Physiology("origin hub", 70.0, np.asarray(_HUB_VOLUME_L), np.asarray(_HUB_FLOW_L_H))


def check_flow_balance(flow_l_h: np.ndarray, rtol: float = 1e-6) -> None:
    """Refuse flows ``(.., O)`` whose systemic outflows do not sum to cardiac output.

    Raises:
        InputError: if flows do not sum, or the portal flow leaves nothing for the hepatic artery.
    """
    flow = np.asarray(flow_l_h, dtype=float)
    cardiac_output = flow[..., ORGAN_INDEX["lung"]]
    direct = [i for n, i in ORGAN_INDEX.items() if n not in ("blood", "lung", *PORTAL_ORGANS)]
    total = flow[..., direct].sum(-1)
    worst = np.abs(total / cardiac_output - 1).max()
    if not worst <= rtol:
        raise InputError(
            "flow_l_h", "does not sum to cardiac output", value=float(worst), unit="relative", allowed=f"<= {rtol}"
        )
    artery = flow[..., ORGAN_INDEX["liver"]] - flow[..., [ORGAN_INDEX[n] for n in PORTAL_ORGANS]].sum(-1)
    if not (artery > 0).all():
        raise InputError(
            "flow_l_h[liver]", "leaves no flow for the hepatic artery", value=float(artery.min()), unit="L/h",
            allowed="liver > gut + spleen + pancreas",
        )  # fmt: skip

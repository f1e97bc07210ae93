"""Virtual people: organ volumes and flows that vary around a reference and still add up.

Adding up couples the organs. What comes out exactly as asked for are ratios between organs: the variances and
covariances of log(V_i / V_j), of flows likewise, are those of the factors drawn. The coefficient of variation of a
single organ also holds that of the sum it was divided by (``docs/physiology.md`` has figures).

Axis legend: C people, O the 14 reported organs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from perfuse.errors import InputError
from perfuse.pk.growth import SEXES, check_age_and_sex, reference_bodies
from perfuse.pk.physiology import ORGAN_INDEX, ORGANS, PORTAL_ORGANS, Physiology, check_flow_balance, human_reference

BODY_WEIGHT_RANGE_KG = (40.0, 120.0)
ORGAN_CV = 0.2
"""Coefficient of variation of organ volumes and flows at a given body weight, about what PBPK populations
assume (20-30 %: Willmann S et al. J Pharmacokinet Pharmacodyn 2007;34:401-431)."""
MCNALLY_VOLUME_CV: Mapping[str, float] = {
    "blood": 0.10, "liver": 0.245, "kidney": 0.25, "brain": 0.05, "heart": 0.22, "lung": 0.33, "muscle": 0.27,
    "adipose": 0.42, "gut": 0.09, "skin": 0.05, "bone": 0.01, "spleen": 0.38, "pancreas": 0.28,
}  # fmt: skip
MCNALLY_FLOW_CV = 0.05
"""Coefficients of variation by organ, at a given sex, height and age: McNally K, Cotton R, Hogg A, Loizou G. Toxicology
2014;315:70-85, as the R package httk tabulates them (means of men and women; gut: its three parts independent). An
alternative to ``ORGAN_CV``, with more variation between organs and less in flows."""
HEIGHT_WEIGHT_CORRELATION = 0.45
"""Of the logs, at a given sex and age: an assumption. That both are log-normal and correlated: Silverman MP, Lipscombe
TC. Open J Stat 2022;12:324-356."""


def sample_adults(
    random: np.random.Generator, n: int, reference: Physiology | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Body weights, organ volumes and flows of ``n`` people.

    Body weight is uniform in 40-120 kg. ``human_reference`` is scaled to it (volumes linearly, flows by the
    power 3/4); each organ's volume, and each systemic outflow (the hepatic artery counts, total liver flow is
    the sum of artery and portal vein), is multiplied by a log-normal factor of 20 % CV and all are renormalised:
    volumes to the reference's sum at that body weight, flows to its cardiac output.

    Returns:
        ``(C,)`` kg, ``(C, O)`` L, ``(C, O)`` L/h.
    """
    reference = reference or human_reference(70.0)
    body_weight_kg = random.uniform(*BODY_WEIGHT_RANGE_KG, n)
    relative = (body_weight_kg / reference.body_weight_kg)[:, None]
    vary = lambda: np.exp(log_sd(ORGAN_CV) * random.standard_normal((n, len(ORGANS))))  # noqa: E731
    volume = vary_volumes(np.tile(reference.volume_l, (n, 1)), vary())
    flow = vary_flows(np.tile(reference.flow_l_h, (n, 1)), vary())
    volume_l, flow_l_h = volume * relative, flow * relative**0.75
    check_flow_balance(flow_l_h)
    return body_weight_kg, volume_l, flow_l_h


def log_sd(cv: float) -> float:
    """Standard deviation of the logarithm of a log-normal quantity with a coefficient of variation."""
    return math.sqrt(math.log1p(cv**2))


def vary_volumes(volume_l: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Volumes ``(C, O)`` times factors ``(C, O)``, renormalised to each body's sum."""
    volume = volume_l * factor
    return volume * (volume_l.sum(1, keepdims=True) / volume.sum(1, keepdims=True))


def vary_flows(flow_l_h: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Systemic outflows ``(C, O)`` times factors, renormalised to cardiac output; the liver's factor is its
    artery's.
    """
    liver, lung, blood = (ORGAN_INDEX[o] for o in ("liver", "lung", "blood"))
    portal = [ORGAN_INDEX[o] for o in PORTAL_ORGANS]
    output = flow_l_h[:, [lung]]
    outflow = flow_l_h.copy()
    outflow[:, liver] -= outflow[:, portal].sum(1)  # the hepatic artery
    outflow[:, [lung, blood]] = 0
    flow = outflow * factor
    flow *= output / flow.sum(1, keepdims=True)
    flow[:, liver] += flow[:, portal].sum(1)
    flow[:, [lung, blood]] = output
    return flow


@dataclass(frozen=True, eq=False)
class Population:
    """People, one row each.

    Attributes:
        sex: ``(C,)`` "male" or "female".
        age_year, body_weight_kg, height_cm, haematocrit, gfr_l_h: ``(C,)``.
        volume_l, flow_l_h: ``(C, O)``, as in ``Physiology``.
    """

    sex: np.ndarray
    age_year: np.ndarray
    body_weight_kg: np.ndarray
    height_cm: np.ndarray
    haematocrit: np.ndarray
    gfr_l_h: np.ndarray
    volume_l: np.ndarray
    flow_l_h: np.ndarray

    def __len__(self) -> int:
        return len(self.age_year)

    def person(self, row: int) -> Physiology:
        """One of them."""
        return Physiology(
            f"person {row}", float(self.body_weight_kg[row]), self.volume_l[row], self.flow_l_h[row],
            sex=str(self.sex[row]), age_year=float(self.age_year[row]), height_cm=float(self.height_cm[row]),
            haematocrit=float(self.haematocrit[row]), gfr_l_h=float(self.gfr_l_h[row]),
        )  # fmt: skip


OWN_FLOW_CORRELATION = 0.5
"""Correlation of the logs of an organ's volume and its flow, everything else independent: an assumption (a large organ
takes more blood), to be replaced by a measured matrix where there is one."""


def default_correlation() -> np.ndarray:
    """``(2 O, 2 O)`` correlation of log volumes then log flows."""
    matrix = np.eye(2 * len(ORGANS))
    own = np.arange(len(ORGANS))
    matrix[own, own + len(ORGANS)] = matrix[own + len(ORGANS), own] = OWN_FLOW_CORRELATION
    return matrix


Variation = float | Mapping[str, float]
"""One coefficient of variation for all organs, or one by organ; organs that are not named have 0."""


def _organ_cv(name: str, cv: Variation) -> np.ndarray:
    """Coefficients of variation ``(O,)``."""
    if not isinstance(cv, Mapping):
        return np.full(len(ORGANS), float(cv))
    for organ in cv:
        if organ not in ORGANS:
            raise InputError(f"{name}.{organ}", "is no organ", allowed=", ".join(ORGANS))
    return np.asarray([float(cv.get(organ, 0.0)) for organ in ORGANS])


def _check_request(
    n: int, age_range_year: tuple[float, float], share_female: float, cvs: Mapping[str, Variation]
) -> None:
    if n < 1:
        raise InputError("n", value=n, unit="people", allowed=">= 1")
    if not 0 <= share_female <= 1:
        raise InputError("share_female", value=float(share_female), allowed="[0, 1]")
    if not age_range_year[0] <= age_range_year[1]:
        raise InputError("age_range_year", value=age_range_year, unit="years", allowed="youngest <= oldest")
    for age in age_range_year:
        check_age_and_sex(age, "male")
    for name, cv in cvs.items():
        for value in _organ_cv(name, cv):
            if not 0 <= value <= 2:
                raise InputError(name, value=float(value), allowed="[0, 2]")


def _factors(random: np.random.Generator, n: int, cv: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """Correlated log-normal factors of median 1, ``(C, 2 O)``, from coefficients of variation ``(2 O,)``."""
    size = 2 * len(ORGANS)
    if correlation.shape != (size, size) or not np.allclose(correlation, correlation.T):
        raise InputError("correlation", "is no symmetric matrix", value=correlation.shape, allowed=f"({size}, {size})")
    values, vectors = np.linalg.eigh(correlation)
    if values.min() < -1e-9 or not np.allclose(np.diag(correlation), 1):
        raise InputError("correlation", "is no correlation matrix", value=float(values.min()),
                         allowed="ones on the diagonal, no negative eigenvalue")  # fmt: skip
    root = vectors * np.sqrt(np.maximum(values, 0))
    sd = np.asarray([log_sd(one) for one in cv])
    return np.exp(random.standard_normal((n, size)) @ root.T * sd)


def _height_factor(random: np.random.Generator, weight_score: np.ndarray, cv: float) -> np.ndarray:
    """Log-normal factors on height, correlated with the standard scores of log body weight; no draw for a CV of 0."""
    if not cv:
        return np.ones(len(weight_score))
    independent = math.sqrt(1 - HEIGHT_WEIGHT_CORRELATION**2) * random.standard_normal(len(weight_score))
    return np.exp(log_sd(cv) * (HEIGHT_WEIGHT_CORRELATION * weight_score + independent))


def sample_population(
    random: np.random.Generator,
    n: int,
    *,
    age_range_year: tuple[float, float] = (20.0, 50.0),
    share_female: float = 0.5,
    weight_cv: float = 0.15,
    volume_cv: Variation = ORGAN_CV,
    flow_cv: Variation = ORGAN_CV,
    output_cv: float = 0.1,
    height_cv: float = 0.04,
    gfr_cv: float = 0.15,
    correlation: np.ndarray | None = None,
) -> Population:
    """People around ICRP 89's reference persons (``growth``): age, sex, weight, then organs.

    Ages are uniform. Body weight is log-normal around the reference of that age and sex, and the body is scaled to it
    (volumes in proportion, flows and GFR by the power 3/4). Organ volumes and outflows get correlated log-normal
    factors and are renormalised: volumes sum to body weight (1 kg/L), flows to a cardiac output that varies
    log-normally itself. The factor drawn for ``blood`` flow and ``lung`` flow, which carry all of cardiac output, is
    not used; that for ``liver`` flow is the artery's. Height is log-normal and correlated with body weight, GFR is
    log-normal (15 %: Gonwa TA, et al. Transplantation 1993;55:983-985, donors of 21-30 years).

    Args:
        random: Generator; equal seeds give equal people.
        n: How many.
        age_range_year: Youngest and oldest, within 2-100.
        share_female: Probability of a woman.
        weight_cv, output_cv, height_cv, gfr_cv: Coefficients of variation; 0 switches that variation off. Height and
            GFR are drawn last, and not at all where theirs is 0.
        volume_cv, flow_cv: Likewise, of all organs or by organ (such as ``MCNALLY_VOLUME_CV``).
        correlation: ``(2 O, 2 O)`` of log volumes then log flows; None is ``default_correlation``.

    Raises:
        InputError: naming the argument, its value and the allowed range.
    """
    cvs: dict[str, Variation] = {
        "weight_cv": weight_cv, "volume_cv": volume_cv, "flow_cv": flow_cv, "output_cv": output_cv,
        "height_cv": height_cv, "gfr_cv": gfr_cv,
    }  # fmt: skip
    _check_request(n, age_range_year, share_female, cvs)
    female = random.random(n) < share_female
    age = random.uniform(*age_range_year, n)
    weight_score = random.standard_normal(n)
    weight_factor = np.exp(log_sd(weight_cv) * weight_score)
    output_factor = np.exp(log_sd(output_cv) * random.standard_normal(n))
    organ_cv = np.concatenate([_organ_cv("volume_cv", volume_cv), _organ_cv("flow_cv", flow_cv)])
    factors = _factors(random, n, organ_cv, default_correlation() if correlation is None else correlation)
    height_factor = _height_factor(random, weight_score, height_cv)
    gfr_factor = np.exp(log_sd(gfr_cv) * random.standard_normal(n)) if gfr_cv else np.ones(n)
    columns: dict[str, np.ndarray] = {}
    for sex, of_sex in zip(SEXES, (~female, female), strict=True):
        if of_sex.any():
            for name, values in vars(reference_bodies(age[of_sex], sex)).items():
                columns.setdefault(name, np.empty((n, *values.shape[1:])))[of_sex] = values
    volume = vary_volumes(columns["volume_l"], factors[:, : len(ORGANS)]) * weight_factor[:, None]
    flow = vary_flows(columns["flow_l_h"], factors[:, len(ORGANS) :]) * (weight_factor**0.75 * output_factor)[:, None]
    check_flow_balance(flow)
    return Population(
        sex=np.where(female, "female", "male"),
        age_year=age,
        body_weight_kg=columns["body_weight_kg"] * weight_factor,
        height_cm=columns["height_cm"] * height_factor,
        haematocrit=columns["haematocrit"],
        gfr_l_h=columns["gfr_l_h"] * weight_factor**0.75 * gfr_factor,
        volume_l=volume,
        flow_l_h=flow,
    )

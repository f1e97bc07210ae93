"""How far a drug, in its body, lies from those that a model was trained on.

The distance is that to the k-th nearest training drug, in log features standardised by the training drugs, root mean
square over features; the percentile says where it falls among the distances of the training drugs from one another
(each left out of its own neighbours). A feature that never varied in training and now differs counts as outside by
itself: the 100th percentile.

Axis legend: C curves, F features, R reference drugs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, as_tensor

from perfuse.data.compounds import compound_keys
from perfuse.data.table import CurveSource, CurveTable
from perfuse.errors import InputError
from perfuse.pk.topology import Topology
from perfuse.training.drug_features import drug_features, feature_names

MAX_REFERENCES = 2000
"""Training drugs that are kept to measure from, drawn at random where there are more."""
NEIGHBOURS = 5
MAX_Z = 4.0
"""Standard deviations from the training mean above which a single feature lies outside the training range."""
OUTSIDE_PERCENTILE = 99.0
"""Above this percentile a drug is flagged as outside what the model was trained on."""
_GREATEST = 1e9
"""Of stored numbers: features are logs, and references are standardised by more than ``_VARIES``."""
_VARIES = 1e-6
_DIFFERS = 1e-3
_BLOCK = 512
_DISTANCE_STREAM = 0xD157


@dataclass(frozen=True)
class Measured:
    """Distances of some curves.

    Attributes:
        distance: ``(C,)`` over the features that varied in training.
        percentile: ``(C,)`` in 0..100, among the training drugs' own distances; 100 where a feature counts as outside.
        z: ``(C, F)`` standardised features; 0 where not given or constant in training.
        differing: ``(C, F)`` bool: constant in training, and different now.
    """

    distance: np.ndarray
    percentile: np.ndarray
    z: np.ndarray
    differing: np.ndarray


@dataclass(frozen=True)
class TrainingDistance:
    """Standardisation and reference drugs.

    Attributes:
        names: Features, ``F`` of them.
        with_descriptors: Whether descriptors of the molecule count.
        neighbours: Which neighbour the distance is taken to.
        mean, sd: ``(F,)`` over the reference drugs that have the feature; 0 and 0 where none has.
        known: ``(F,)`` 1 where some reference drug has the feature, else 0.
        reference: ``(R, F)`` float32, standardised.
        own: ``(R,)`` increasing: distances of the reference drugs from one another.
    """

    names: tuple[str, ...]
    with_descriptors: bool
    neighbours: int
    mean: np.ndarray
    sd: np.ndarray
    known: np.ndarray
    reference: np.ndarray
    own: np.ndarray

    def measure(self, table: CurveTable) -> Measured:
        """Distances of every curve of a table on the run's topology."""
        raw = drug_features(table, self.with_descriptors)
        z = self._standardised(raw)
        distance = np.sqrt(_nearest(z, self.reference, self.neighbours) / max(1, int(self._varies.sum())))
        constant = ~self._varies & (self.known > 0) & ~np.isnan(raw)
        differing = constant & (np.abs(raw - self.mean) > _DIFFERS)
        percentile = 100.0 * np.searchsorted(self.own, distance, side="right") / len(self.own)
        return Measured(distance, np.where(differing.any(axis=1), 100.0, percentile), z, differing)

    def outside_range(self, measured: Measured) -> list[str]:
        """Per curve: the features outside the training range, as text; '' when there is none.

        One is outside when it lies more than ``MAX_Z`` standard deviations off, or never varied in training and
        differs: no model can know its effect.
        """
        is_flag = np.asarray([name.endswith("_given") for name in self.names])  # rare in training is not outside
        far = (np.abs(measured.z) > MAX_Z) & ~is_flag
        out = []
        for z, beyond, differing in zip(measured.z, far, measured.differing, strict=True):
            parts = [f"{self.names[i]} ({abs(z[i]):.1f} sd)" for i in np.flatnonzero(beyond)]
            parts += [f"{self.names[i]} (constant in training)" for i in np.flatnonzero(differing)]
            out.append(", ".join(parts))
        return out

    @property
    def typical(self) -> float:
        """Median distance of the training drugs from one another."""
        return max(float(np.median(self.own)), 1e-6)

    @property
    def _varies(self) -> np.ndarray:
        return self.sd > _VARIES

    def _standardised(self, raw: np.ndarray) -> np.ndarray:
        """What is not given sits at the mean: that it is not given is a feature of its own."""
        return np.where(np.isnan(raw) | ~self._varies, 0.0, (raw - self.mean) / np.where(self._varies, self.sd, 1.0))

    def tensors(self) -> dict[str, Tensor]:
        """All arrays, by name."""
        return {name: as_tensor(getattr(self, name)) for name in ("mean", "sd", "known", "reference", "own")}


def fit_distance(source: CurveSource, rows: np.ndarray, seed: int) -> TrainingDistance | None:
    """The distance to the drugs of these rows (the training split); None where they are fewer than three.

    One curve of every drug is kept, of at most ``MAX_REFERENCES`` drugs; the choice depends on names and seed, not on
    the order of rows.
    """
    kept = _one_curve_each(source, rows, seed)
    if len(kept) < 3:
        return None
    table = source.take(kept)
    with_descriptors = bool(np.isnan(table.kp).any() or np.isnan(table.elimination_l_h).any())
    raw = drug_features(table, with_descriptors)
    given = ~np.isnan(raw)
    n = np.maximum(given.sum(axis=0), 1)
    mean = np.where(given, raw, 0.0).sum(axis=0) / n
    sd = np.sqrt((np.where(given, raw - mean, 0.0) ** 2).sum(axis=0) / n)
    k = min(NEIGHBOURS, len(kept) - 1)
    names = feature_names(source.topology)
    blank = TrainingDistance(
        names, with_descriptors, k, mean, sd, given.any(axis=0).astype(float), np.zeros((0, 0)), np.zeros(0)
    )
    reference = blank._standardised(raw).astype(np.float32)
    squares = _nearest(reference.astype(np.float64), reference, k + 1)  # the nearest of all is the drug itself
    own = np.sort(np.sqrt(squares / max(1, int(blank._varies.sum()))))
    return TrainingDistance(names, with_descriptors, k, mean, sd, blank.known, reference, own)


def _one_curve_each(source: CurveSource, rows: np.ndarray, seed: int) -> np.ndarray:
    """One row a drug, in the order of the drugs' names, of at most ``MAX_REFERENCES`` drugs."""
    drug, curve = compound_keys(source.column("compound_id")[rows]), source.column("curve_id")[rows]
    order = np.lexsort((curve, drug))
    random = np.random.Generator(np.random.Philox(key=np.asarray([seed, _DISTANCE_STREAM], dtype=np.uint64)))
    shuffled = order[random.permutation(len(order))]
    first = np.unique(drug[shuffled], return_index=True)[1]
    if len(first) > MAX_REFERENCES:
        first = np.sort(random.choice(first, MAX_REFERENCES, replace=False))
    chosen: np.ndarray = rows[shuffled[first]]
    return chosen


def _nearest(z: np.ndarray, reference: np.ndarray, k: int) -> np.ndarray:
    """``(C,)`` squared distance to the k-th nearest reference."""
    r = reference.astype(np.float64)
    square = (r * r).sum(axis=1)
    out = np.empty(len(z))
    for start in range(0, len(z), _BLOCK):
        part = z[start : start + _BLOCK]
        d = (part * part).sum(axis=1)[:, None] - 2 * part @ r.T + square
        out[start : start + _BLOCK] = np.partition(d, k - 1, axis=1)[:, k - 1]
    return np.maximum(out, 0.0)


def as_array(tensor: Tensor) -> np.ndarray:
    """A stored tensor as an array; float16, which nothing here is, where numpy lacks its type (bfloat16)."""
    try:
        return np.asarray(tensor.numpy())
    except TypeError:
        return np.zeros(tuple(tensor.shape), dtype=np.float16)


def distance_from(
    tensors: dict[str, Tensor], names: tuple[str, ...], with_descriptors: bool, neighbours: int, topology: Topology,
    where: str,
) -> TrainingDistance:  # fmt: skip
    """A distance from stored tensors, checked.

    Raises:
        InputError: naming what does not fit.
    """
    arrays = {name: as_array(tensor) for name, tensor in tensors.items()}
    own = arrays.get("own", np.zeros(0))
    f, r = len(names), len(own) if own.ndim == 1 else 0
    shapes = {"mean": (f,), "sd": (f,), "known": (f,), "reference": (r, f), "own": (r,)}
    if names != feature_names(topology) or set(arrays) != set(shapes) or not 3 <= r <= MAX_REFERENCES:
        raise InputError("training distance", "is of another version of Perfuse or of another graph", where=where)
    for name, shape in shapes.items():
        array, kind = arrays[name], np.float32 if name == "reference" else np.float64
        if array.shape != shape or array.dtype != kind or not (np.abs(array) <= _GREATEST).all():
            raise InputError(
                f"training distance: {name}", "does not fit", value=f"{array.dtype} {array.shape}",
                allowed=f"{np.dtype(kind)} {shape}, finite and <= {_GREATEST:g}", where=where,
            )  # fmt: skip
    if (arrays["sd"] < 0).any() or (arrays["own"] < 0).any() or (np.diff(arrays["own"]) < 0).any():
        raise InputError("training distance", "holds values that cannot be", where=where)
    if not 1 <= neighbours < r:
        raise InputError("training distance: neighbours", value=neighbours, allowed=f"1..{r - 1}", where=where)
    return TrainingDistance(names, with_descriptors, neighbours, **arrays)

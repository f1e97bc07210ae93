"""Features of a molecule: the Henderson-Hasselbalch terms, flags, and no NaN whatever is unknown."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from perfuse.data.batch import DESCRIPTORS, CurveBatch
from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch
from perfuse.models.descriptor_features import DESCRIPTOR_FEATURES, PH, descriptor_features, has_descriptors
from perfuse.pk.ionisation import log10_species


def with_descriptors(n: int, **known: float) -> CurveBatch:
    batch = to_batch(simulate_task("T2", n, 0))
    values = torch.full((n, len(DESCRIPTORS)), torch.nan, dtype=torch.float64)
    for name, value in known.items():
        values[:, DESCRIPTORS.index(name)] = value
    return replace(batch, descriptors=values)


def feature(batch: CurveBatch, name: str) -> Tensor:
    return descriptor_features(batch)[:, DESCRIPTOR_FEATURES.index(name)]


def test_a_task_of_descriptors_gives_finite_features_that_vary() -> None:
    batch = to_batch(simulate_task("T7", 64, 0))
    features = descriptor_features(batch)
    assert features.shape == (64, len(DESCRIPTOR_FEATURES))
    assert features.dtype == torch.float64
    assert torch.isfinite(features).all()
    constant = features.std(0) == 0
    assert [name for name, c in zip(DESCRIPTOR_FEATURES, constant, strict=True) if c] == ["clint_is_known"]
    torch.testing.assert_close(feature(batch, "ln_fup"), batch.system.fup.log())
    torch.testing.assert_close(feature(batch, "logp"), batch.descriptors[:, 1])
    assert has_descriptors(batch)
    assert not has_descriptors(to_batch(simulate_task("T2", 2, 0)))


@pytest.mark.parametrize("water", list(PH))
def test_ionisation_is_that_of_the_chemistry_for_one_and_two_groups(water: str) -> None:
    for acid, base in (((4.0,), ()), ((9.5, 3.1), ()), ((), (8.0,)), ((), (5.5, 9.9)), ((4.0, 6.5), (8.1, 9.3))):
        known = {f"pka_acid_{i + 1}": pka for i, pka in enumerate(acid)}
        known |= {f"pka_base_{i + 1}": pka for i, pka in enumerate(base)}
        batch = with_descriptors(2, ln_mw=5.0, logp=1.0, **known)
        padded = [np.asarray([*pka, np.nan, np.nan][:2]) for pka in (acid, base)]
        expected = log10_species(*padded, PH[water])
        for side, value in zip(("acid", "base"), expected, strict=True):
            found = feature(batch, f"ln_{side}_ionisation_{water}") / np.log(10)
            torch.testing.assert_close(found, torch.full((2,), float(value), dtype=torch.float64))


def test_groups_that_are_absent_or_hardly_ionised_raise_no_flag() -> None:
    neutral = with_descriptors(2, ln_mw=5.0, logp=1.0)
    assert not feature(neutral, "is_acid").any()
    assert not feature(neutral, "is_base").any()
    assert (descriptor_features(neutral)[:, 2:8] == 0).all()
    weak = with_descriptors(2, ln_mw=5.0, logp=1.0, pka_acid_1=9.9, pka_base_1=3.0)  # a phenol, an aniline
    assert not feature(weak, "is_acid").any()
    assert not feature(weak, "is_base").any()
    strong = with_descriptors(2, ln_mw=5.0, logp=1.0, pka_acid_1=4.4, pka_base_2=9.0)
    assert feature(strong, "is_acid").all()
    assert feature(strong, "is_base").all()


def test_what_is_unknown_reads_zero_and_an_unknown_clearance_says_so() -> None:
    known = with_descriptors(2, ln_mw=5.0, logp=1.0, ln_clint_in_vitro=0.0)
    unknown = with_descriptors(2, ln_mw=5.0, logp=1.0)
    assert (feature(known, "clint_is_known") == 1).all()
    assert (feature(unknown, "clint_is_known") == 0).all()
    assert (feature(unknown, "ln_clint_in_vitro") == 0).all()
    nothing = with_descriptors(2)
    assert torch.isfinite(descriptor_features(nothing)).all()

"""Flat features: standardised logs, constants silenced."""

from dataclasses import replace

import torch

from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch
from perfuse.models.flat import FlatFeatures


def test_training_features_have_mean_zero_and_unit_variance_or_are_silent() -> None:
    system = to_batch(simulate_task("T1", 40, 0)).system
    features = FlatFeatures(system.topology)
    features.fit(system)
    z = features(system)
    assert z.shape == (40, features.n_features)
    sd = z.std(0, correction=0)
    varying = sd > 0
    # 13 tissues' Kp and two clearances vary in T1; volumes, flows, fup, B:P and blood's Kp do not.
    assert int(varying.sum()) == 15
    torch.testing.assert_close(sd[varying], torch.ones(15, dtype=torch.float64))
    torch.testing.assert_close(z.mean(0), torch.zeros_like(sd), rtol=0, atol=1e-9)


def test_a_constant_feature_stays_silent_later() -> None:
    system = to_batch(simulate_task("T1", 8, 0)).system
    features = FlatFeatures(system.topology)
    features.fit(system)
    other = replace(system, volume_l=system.volume_l * 2, flow_l_h=system.flow_l_h / 3)
    assert torch.equal(features(other), features(system))


def test_zero_clearance_is_finite() -> None:
    system = to_batch(simulate_task("T2", 8, 0)).system
    features = FlatFeatures(system.topology)
    features.fit(system)
    assert torch.isfinite(features(replace(system, elimination_l_h=system.elimination_l_h * 0))).all()

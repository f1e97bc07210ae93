"""Flat features: standardised logs, constants silenced."""

from dataclasses import replace

import torch

from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch
from perfuse.models.flat import FlatFeatures, saturation_features
from perfuse.models.unit_response import Responses


def test_training_features_have_mean_zero_and_unit_variance_or_are_silent() -> None:
    batch = to_batch(simulate_task("T1", 40, 0))
    features = FlatFeatures(batch.system.topology)
    features.fit(batch)
    z = features(batch)
    assert z.shape == (40, features.n_features)
    sd = z.std(0, correction=0)
    varying = sd > 0
    # 13 tissues' Kp and two clearances vary in T1; volumes, flows, fup, B:P and blood's Kp do not.
    assert int(varying.sum()) == 15
    torch.testing.assert_close(sd[varying], torch.ones(15, dtype=torch.float64))
    torch.testing.assert_close(z.mean(0), torch.zeros_like(sd), rtol=0, atol=1e-9)


def test_a_constant_feature_stays_silent_later() -> None:
    batch = to_batch(simulate_task("T1", 8, 0))
    features = FlatFeatures(batch.system.topology)
    features.fit(batch)
    system = batch.system
    other = replace(system, volume_l=system.volume_l * 2, flow_l_h=system.flow_l_h / 3)
    assert torch.equal(features(replace(batch, system=other)), features(batch))


def test_zero_clearance_is_finite() -> None:
    batch = to_batch(simulate_task("T2", 8, 0))
    features = FlatFeatures(batch.system.topology)
    features.fit(batch)
    none = replace(batch.system, elimination_l_h=batch.system.elimination_l_h * 0)
    assert torch.isfinite(features(replace(batch, system=none))).all()


def test_a_saturable_drug_reads_its_degree_of_saturation_and_amounts_as_ratios_alone() -> None:
    table = simulate_task("T4", 24, 0)
    batch = to_batch(table)
    logs = saturation_features(batch)
    # T4 draws Km,u from the degree of saturation, with Vss over organs rather than over nodes.
    vss_l = table.volume_l[:, 0] * table.bp_ratio + (table.volume_l[:, 1:] * table.kp[:, 1:]).sum(1)
    degree = table.fup * table.dose_mg[:, 0] / (vss_l * table.km_u_mg_l[:, 0])
    torch.testing.assert_close(logs[:, 2], torch.as_tensor(degree).log())
    system, doses = batch.system, batch.doses
    scaled = replace(
        batch,
        system=replace(system, vmax_mg_h=system.vmax_mg_h * 7, km_u_mg_l=system.km_u_mg_l * 7),
        doses=replace(doses, amount_mg=doses.amount_mg * 7),
    )
    torch.testing.assert_close(saturation_features(scaled), logs)
    more = replace(batch, doses=replace(doses, amount_mg=doses.amount_mg * 7))
    assert (saturation_features(more)[:, 1:] > logs[:, 1:] + 1.9).all()  # ln 7


def test_two_pathways_count_as_their_joint_one() -> None:
    batch = to_batch(simulate_task("T4", 6, 0))
    system = batch.system
    halves = replace(
        system,
        vmax_mg_h=(system.vmax_mg_h / 2).repeat(1, 2),
        km_u_mg_l=system.km_u_mg_l.repeat(1, 2),
    )
    torch.testing.assert_close(saturation_features(replace(batch, system=halves)), saturation_features(batch))


def test_descriptors_are_read_where_kp_is_not_given_and_only_there() -> None:
    given, hidden = to_batch(simulate_task("T2", 8, 0)), to_batch(simulate_task("T7", 40, 0))
    features = FlatFeatures(hidden.system.topology)
    features.fit(hidden)
    z = features(hidden)
    assert torch.isfinite(z).all()
    assert (z[:, features.columns["kp"]] == 0).all()
    assert (z[:, features.columns["elimination"]] == 0).all()
    assert (z[:, features.columns["ps"]] == 0).all()
    assert (z[:, features.columns["descriptors"]].std(0) > 0).sum() >= 10
    described = replace(given, descriptors=torch.ones_like(given.descriptors))
    plain = FlatFeatures(given.system.topology)
    plain.fit(given)
    assert torch.equal(plain(described), plain(given))


def test_a_response_to_a_dose_by_mouth_differs_in_its_route_alone() -> None:
    batch = to_batch(simulate_task("T3", 24, 0))
    features = FlatFeatures(batch.system.topology)
    features.fit(batch)
    responses = Responses.of(batch.doses)
    z = features(batch, responses)
    assert z.shape == (len(responses.curve), features.n_features)
    route = features.columns["route"]
    assert torch.equal(z[:, route][:, 0].bool(), responses.is_oral)
    torch.testing.assert_close(z[:, : route.start], features(batch)[responses.curve, : route.start])

"""``flux`` and ``loglinear-rates``: conservation by construction, equivariance, learning, precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from perfuse.config import FluxConfig, LoglinearRatesConfig
from perfuse.data.batch import CurveBatch
from perfuse.data.loader import select_curves
from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch
from perfuse.errors import InputError, PerfuseError
from perfuse.models import build_model
from perfuse.models.flux import LoglinearRates
from perfuse.pk.mechanistic import mechanistic_rates
from perfuse.pk.system import DoseEvents, SystemParameters
from perfuse.pk.topology import get_topology

TASKS = {"hub": "T1", "circulation": "T2"}
KINDS = ("flux", "loglinear-rates")
UNUSED = ("latents.", "drug_messages.", "network.pathway")
"""Parameters that only curves without Kp, or with saturable pathways, make use of."""
SATURABLE = (4, 5)
"""Classes of saturable pathways on ``circulation``."""


def make_batch(topology: str, n: int = 8, seed: int = 0) -> CurveBatch:
    return to_batch(simulate_task(TASKS[topology], n, seed))


def make_model(kind: str, batch: CurveBatch, scramble: bool = True, **config: object) -> LoglinearRates:
    """A fitted model; scrambled, every parameter (also those that start at zero) has a value of its own."""
    torch.manual_seed(0)
    settings = FluxConfig(**config) if kind == "flux" else LoglinearRatesConfig()
    model = build_model(settings, batch.system.topology)
    model.fit_normalisation(batch)
    if scramble:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert isinstance(model, LoglinearRates)
    return model.eval()


@pytest.mark.parametrize("topology", ["hub", "circulation"])
@pytest.mark.parametrize("kind", KINDS)
def test_positive_conserving_and_mass_balanced_in_mg(kind: str, topology: str) -> None:
    batch = make_batch(topology)
    model = make_model(kind, batch)
    with torch.no_grad():
        conc, amounts = model(batch), model.amounts(batch, with_sinks=True)
    assert (conc >= 0).all()
    assert (conc[..., 1:] > 0).all()
    dose = batch.doses.amount_mg.expand(-1, amounts.shape[-1])
    torch.testing.assert_close(amounts.sum(1), dose, rtol=1e-9, atol=0)
    # The same in what is predicted: sum V_i C_i over reported organs, arterial blood, and what was eliminated.
    n, nodes = batch.system.topology.n_nodes, batch.system.topology.organ_node
    blood = torch.where(batch.is_plasma, batch.system.bp_ratio, 1.0)
    factor = torch.cat((blood[:, None], torch.ones(len(batch), conc.shape[1] - 1)), 1)
    reported = (conc * factor[..., None] * batch.system.volume_l[:, nodes][..., None]).sum(1)
    others = amounts[:, sorted(set(range(n)) - set(nodes.tolist()))].sum(1)
    torch.testing.assert_close(reported + others + amounts[:, n:].sum(1), dose, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_in_dose_and_superposable(kind: str) -> None:
    batch = make_batch("circulation", 3)
    model = make_model(kind, batch)
    with torch.no_grad():
        base = model(batch)
        tripled = replace(batch, doses=DoseEvents.bolus(batch.doses.amount_mg[:, 0] * 3))
        torch.testing.assert_close(model(tripled), base * 3, rtol=1e-9, atol=0)
        zero, dose = torch.zeros(3, 1).double(), batch.doses.amount_mg
        first = DoseEvents(zero, dose, zero)
        second = DoseEvents(zero + 4, dose * 2, zero + 1.5)
        both = DoseEvents(
            torch.cat((zero, zero + 4), 1), torch.cat((dose, dose * 2), 1), torch.cat((zero, zero + 1.5), 1)
        )
        parts = model(replace(batch, doses=first)) + model(replace(batch, doses=second))
        together = model(replace(batch, doses=both))
        torch.testing.assert_close(together, parts, rtol=1e-8, atol=1e-18)
        before = batch.time_h[0] <= 4
        assert torch.equal(
            together[..., before],
            model(replace(batch, doses=replace(both, amount_mg=both.amount_mg * torch.tensor([1.0, 9.0]))))[
                ..., before
            ],
        )


@pytest.mark.parametrize("topology", ["hub", "circulation"])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_equals_one_by_one(kind: str, topology: str) -> None:
    batch = make_batch(topology)
    model = make_model(kind, batch)
    with torch.no_grad():
        together = model(batch)
        alone = torch.cat([model(select_curves(batch, torch.tensor([i]))) for i in range(len(batch))])
    scored = batch.mask
    assert ((alone / together - 1).abs()[scored]).max() < 1e-6


@pytest.mark.parametrize("topology", ["hub", "circulation"])
@pytest.mark.parametrize("kind", KINDS)
def test_listing_organs_in_another_order_changes_nothing(kind: str, topology: str) -> None:
    batch = make_batch(topology)
    model = make_model(kind, batch)
    order = np.random.default_rng(1).permutation(batch.system.topology.n_nodes)
    moved = batch.system.topology.permuted(order.tolist())
    s = batch.system
    system = SystemParameters(
        moved, s.volume_l[:, order], s.kp[:, order], s.flow_l_h, s.elimination_l_h, s.fup, s.bp_ratio
    )
    with torch.no_grad():
        torch.testing.assert_close(model(replace(batch, system=system)), model(batch), rtol=1e-5, atol=1e-12)
        scrambled = replace(system, kp=s.kp)  # features permuted without identities must matter
        assert not torch.allclose(model(replace(batch, system=scrambled)), model(batch), rtol=1e-3)


def train_briefly(model: LoglinearRates, batch: CurveBatch, steps: int, lr: float) -> float:
    """Root mean squared error of ln C after a few full-batch steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lr * 0.02)
    target = torch.where(batch.mask, batch.conc_mg_l, 1.0).log()
    for _ in range(steps):
        error = torch.where(batch.mask, model(batch).clamp_min(1e-30).log() - target, 0.0)
        loss = error.square().sum() / batch.mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return float(loss.detach().sqrt())


@pytest.mark.parametrize("kind", KINDS)
def test_memorises_eight_curves(kind: str) -> None:
    batch = make_batch("hub")
    model = make_model(kind, batch, scramble=False)
    start = train_briefly(model, batch, 1, 0.0)
    assert start > 1
    # The baseline has no capacity to memorise and crawls along directions that 24 h of data hardly see.
    assert train_briefly(model, batch, 500, 0.05) < {"flux": 0.02, "loglinear-rates": 0.06}[kind]


@pytest.mark.parametrize("topology", ["hub", "circulation"])
def test_loglinear_rates_can_be_the_truth(topology: str) -> None:
    """On both topologies the mechanistic rates are one exponent per feature: fitted to them, the model is exact."""
    batch = make_batch(topology, 50)
    model = make_model("loglinear-rates", batch, scramble=False)
    truth = mechanistic_rates(batch.system).log()
    with torch.no_grad():
        design = model.design(batch)[:, : truth.shape[1]]
        theta = torch.cat([p.flatten() for p in model.linear_parameters()])
        wanted = truth - model.log_rates(batch).linear + design @ theta
        solved = torch.linalg.lstsq(design.flatten(0, 1), wanted.flatten()[:, None], driver="gelsd").solution[:, 0]
        for p, part in zip(
            model.linear_parameters(), solved.split([p.numel() for p in model.linear_parameters()]), strict=True
        ):
            p.copy_(part.view_as(p))
        torch.testing.assert_close(model.log_rates(batch).linear, truth, rtol=0, atol=1e-9)
        torch.testing.assert_close(model(batch)[batch.mask], batch.conc_mg_l[batch.mask], rtol=1e-7, atol=0)
    exponents = model.exponents()
    assert exponents["flow_from_tissue"]["kp_source"] == pytest.approx(-1, abs=1e-6)
    if topology == "circulation":  # on the hub, volumes and flows do not vary between people: not identifiable
        assert exponents["flow_from_tissue"]["flow"] == pytest.approx(1, abs=1e-6)
        assert exponents["flow_from_tissue"]["volume_source"] == pytest.approx(-1, abs=1e-6)
        assert exponents["flow_from_tissue"]["bp_ratio"] == pytest.approx(1, abs=1e-6)
        assert exponents["cl_renal_l_h"]["bp_ratio"] == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("prior", ["none", "dimensional", "mechanistic"])
def test_priors(prior: str) -> None:
    batch = make_batch("circulation")
    model = make_model("flux", batch, scramble=False, prior=prior)
    rates, truth = model.log_rates(batch).linear.exp(), mechanistic_rates(batch.system)
    n_edges = batch.system.topology.n_edges
    if prior == "none":
        assert (rates[:, :n_edges] == rates[0, 0]).all()
        assert (rates[:, n_edges:] == rates[0, -1]).all()
        assert 0 < rates[0, -1] < rates[0, 0]
    elif prior == "mechanistic":
        torch.testing.assert_close(rates, truth, rtol=1e-9, atol=0)
    else:
        from_blood = [i for i, (s, _) in enumerate(batch.system.topology.edges) if batch.system.topology.is_blood[s]]
        torch.testing.assert_close(rates[:, from_blood], truth[:, from_blood], rtol=1e-9, atol=0)
        assert not torch.allclose(rates[:, :n_edges], truth[:, :n_edges], rtol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_parameter(kind: str) -> None:
    batch = make_batch("circulation")
    model = make_model(kind, batch)
    model(batch).clamp_min(1e-30).log().square().mean().backward()
    for name, parameter in model.named_parameters():
        if name.startswith(UNUSED) or any(f".{i}" in name and name.startswith("classes.weight") for i in SATURABLE):
            continue
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_bfloat16_hidden_layers_stay_within_a_few_per_cent() -> None:
    batch = make_batch("hub")
    model = make_model("flux", batch)
    with torch.no_grad():
        exact = model(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(batch)
    assert mixed.dtype == torch.float64
    error = (mixed / exact).log().abs()[batch.mask]
    assert 0 < error.max() < 0.1  # hidden layers did run in bfloat16, and only they


def test_time_grid_does_not_matter() -> None:
    batch = make_batch("hub", 2)
    model = make_model("flux", batch)
    some = batch.time_h[:, [0, 7, 30, 99]]
    with torch.no_grad():
        torch.testing.assert_close(
            model(replace(batch, time_h=some)), model(batch)[..., [0, 7, 30, 99]], rtol=1e-8, atol=0
        )


def test_what_never_varied_in_training_cannot_move_a_prediction() -> None:
    """On the hub fup is always 1 in training: the network's untouched weights for it must stay silent."""
    batch = make_batch("hub", 2)
    model = make_model("flux", batch)
    other = replace(batch, system=replace(batch.system, fup=batch.system.fup * 0.03))
    assert torch.equal(model.log_rates(other).linear, model.log_rates(batch).linear)


def test_unfitted_model_and_wrong_topology_are_refused() -> None:
    batch = make_batch("hub", 2)
    with pytest.raises(PerfuseError, match="no normalisation"):
        build_model(FluxConfig(), get_topology("hub"))(batch)
    model = make_model("flux", batch)
    with pytest.raises(InputError, match=r"topology does not match the model \(got circulation\); allowed: hub"):
        model(make_batch("circulation", 2))


def test_predicting_in_inference_mode_first_does_not_spoil_training() -> None:
    batch = make_batch("hub", 2)
    system = replace(batch.system, topology=batch.system.topology.permuted(range(14)))  # nothing is cached for it yet
    fresh = replace(batch, system=system)
    model = make_model("flux", fresh)
    with torch.inference_mode():
        model(fresh)
    model(fresh)[..., 1:].log().mean().backward()
    used = [p for name, p in model.named_parameters() if not name.startswith(UNUSED)]
    assert used and all(p.grad is not None for p in used)

"""``flux`` beyond linear kinetics with Kp given: saturable pathways, descriptors, permeability, and its ablations."""

from dataclasses import replace

import pytest
import torch

from perfuse.config import FluxConfig, LoglinearRatesConfig
from perfuse.data.batch import CurveBatch
from perfuse.data.loader import select_curves
from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch
from perfuse.errors import InputError
from perfuse.models import build_model
from perfuse.models.flux import LoglinearRates
from perfuse.pk.mechanistic import mechanistic_rates, solve
from perfuse.pk.system import DoseEvents

TASKS = ("T2", "T3", "T4", "T7")


def make_batch(task: str, n: int = 6, seed: int = 0) -> CurveBatch:
    return to_batch(simulate_task(task, n, seed))


def make_model(batch: CurveBatch, config: FluxConfig | LoglinearRatesConfig, scramble: bool = True) -> LoglinearRates:
    torch.manual_seed(0)
    model = build_model(config, batch.system.topology)
    model.fit_normalisation(batch)
    if scramble:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert isinstance(model, LoglinearRates)
    return model.eval()


CONFIGS = {
    "flux": FluxConfig(hidden=8, drug_hidden=8),
    "flux, fixed edges": FluxConfig(hidden=8, drug_hidden=8, state_dependent=False),
    "loglinear-rates": LoglinearRatesConfig(),
    "loglinear-rates, state-dependent": LoglinearRatesConfig(state_dependent=True),
}


@pytest.mark.parametrize("task", ["T3", "T4", "T7"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_positive_and_mass_balanced(task: str, kind: str) -> None:
    batch = make_batch(task)
    model = make_model(batch, CONFIGS[kind])
    with torch.no_grad():
        conc, amounts = model(batch), model.amounts(batch, with_sinks=True)
    assert torch.isfinite(conc).all()
    assert (conc >= 0).all()
    if task != "T3":  # one bolus: all of it is somewhere
        dose = batch.doses.amount_mg.expand(-1, amounts.shape[-1])
        torch.testing.assert_close(amounts.sum(1), dose, rtol=1e-6, atol=0)


@pytest.mark.parametrize("task", ["T3", "T4", "T7"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_batch_equals_one_by_one(task: str, kind: str) -> None:
    batch = make_batch(task)
    model = make_model(batch, CONFIGS[kind])
    with torch.no_grad():
        together = model(batch)
        alone = torch.cat([model(select_curves(batch, torch.tensor([i]))) for i in range(len(batch))])
    scored = batch.mask & (together > batch.loq_mg_l[:, None, None])
    # Saturable kinetics are stepped in common; linear ones are solved curve by curve.
    assert ((alone / together - 1).abs()[scored]).max() < (1e-6 if "state" in kind or kind == "flux" else 1e-7)


def test_mechanistic_prior_is_the_solver_with_saturable_pathways() -> None:
    batch = make_batch("T4")
    model = make_model(batch, FluxConfig(hidden=8, prior="mechanistic"), scramble=False)
    with torch.no_grad():
        amounts = model.amounts(batch)
    truth = solve(batch.system, batch.doses, batch.time_h)
    scored = truth > 1e-6 * batch.doses.amount_mg[..., None]
    assert ((amounts / truth).log().abs()[scored]).max() < 1e-4


def test_state_dependent_edges_saturate_and_fixed_ones_do_not() -> None:
    batch = make_batch("T4")
    double = replace(batch, doses=replace(batch.doses, amount_mg=2 * batch.doses.amount_mg))
    saturating = make_model(batch, LoglinearRatesConfig(state_dependent=True))
    with torch.no_grad():
        ratio = (saturating(double) / saturating(batch))[batch.mask]
        assert ratio.max() > 2.05  # more than in proportion
        assert ratio.min() > 1.9
        fixed = make_model(batch, LoglinearRatesConfig(state_dependent=False))
        column = fixed.classes.classes[-1].features.index("dose")
        fixed.classes.weight[-1].copy_(torch.zeros_like(fixed.classes.weight[-1]))
        assert fixed.exponents()["saturable_fixed"]["dose"] == 0
        assert column == 6
        torch.testing.assert_close(fixed(double), 2 * fixed(batch), rtol=1e-9, atol=0)


def test_frozen_pathways_are_linear_at_a_given_amount() -> None:
    batch = make_batch("T4")
    model = make_model(batch, LoglinearRatesConfig(state_dependent=True))
    with torch.no_grad():
        rates = model.log_rates(batch)
        exact = model.concentrations(rates, batch)
        frozen = model.concentrations(rates, batch, frozen=True)
        assert not torch.allclose(frozen, exact, rtol=1e-3)
        wide = replace(rates, pathways=rates.pathways + torch.tensor([0.0, 25.0]))  # half amounts out of reach
        torch.testing.assert_close(
            model.concentrations(wide, batch, frozen=True), model.concentrations(wide, batch), rtol=1e-5, atol=1e-12
        )


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_later_dose_cannot_change_earlier_times_of_a_saturable_drug(kind: str) -> None:
    batch = make_batch("T4")
    one = batch.doses.amount_mg[:, :1]
    at = torch.tensor([[0.0, 6.0]]).double().expand(len(batch), 2)

    def with_second(factor: float) -> CurveBatch:
        doses = DoseEvents(at.clone(), torch.cat((one, factor * one), 1), torch.zeros_like(at))
        return replace(batch, doses=doses)

    model = make_model(batch, CONFIGS[kind])
    with torch.no_grad():
        small, large = model(with_second(1.0)), model(with_second(5.0))
    early = batch.time_h[0] <= 6
    torch.testing.assert_close(large[..., early], small[..., early], rtol=1e-6, atol=1e-12)
    assert not torch.allclose(large[..., ~early], small[..., ~early], rtol=0.1)


def test_saturable_drugs_need_to_have_been_trained_on() -> None:
    linear, saturable = make_batch("T2"), make_batch("T4")
    with pytest.raises(InputError, match="vmax_mg_h is not 0, and the model was not trained on saturable drugs"):
        make_model(linear, LoglinearRatesConfig())(saturable)
    prior = make_model(linear, FluxConfig(hidden=8, prior="mechanistic"), scramble=False)
    with torch.no_grad():
        assert torch.isfinite(prior(saturable)).all()
        assert torch.isfinite(make_model(saturable, CONFIGS["flux"])(linear)).all()


def test_what_training_had_must_be_given() -> None:
    batch = make_batch("T7")
    model = make_model(batch, LoglinearRatesConfig())
    unknown = replace(batch, descriptors=torch.full_like(batch.descriptors, torch.nan))
    full = replace(
        batch.system, kp=torch.full_like(batch.system.kp, 2.0),
        elimination_l_h=torch.ones_like(batch.system.elimination_l_h),
    )  # fmt: skip
    with pytest.raises(InputError, match="logp and mw_g_mol are not given"):
        model(replace(unknown, system=full))
    with pytest.raises(InputError, match="ps_l_h is not given"):
        make_model(replace(batch, system=full), LoglinearRatesConfig())


def test_a_ps_of_zero_is_a_very_small_one() -> None:
    batch = make_batch("T7")
    ones = torch.ones_like(batch.system.elimination_l_h)
    ps = torch.ones_like(batch.system.ps_l_h)
    ps[0] = 0
    full = replace(batch.system, kp=torch.full_like(batch.system.kp, 2.0), elimination_l_h=ones, ps_l_h=ps)
    model = make_model(replace(batch, system=full), LoglinearRatesConfig())
    with torch.no_grad():
        assert torch.isfinite(model(replace(batch, system=full))).all()


def test_the_mechanistic_prior_starts_unknown_clearances_in_bodies_of_any_size() -> None:
    batch = make_batch("T7")
    small = replace(batch.system, volume_l=batch.system.volume_l / 280, flow_l_h=batch.system.flow_l_h / 300)
    model = make_model(batch, FluxConfig(hidden=8, drug_hidden=8, prior="mechanistic"), scramble=False)
    with torch.no_grad():
        assert torch.isfinite(model(replace(batch, system=small))).all()


@pytest.mark.parametrize("log_features", [True, False])
def test_half_amounts_start_at_a_typical_amount(log_features: bool) -> None:
    batch = make_batch("T4")
    model = make_model(batch, FluxConfig(hidden=8, log_features=log_features), scramble=False)
    with torch.no_grad():
        half_mg = model.log_rates(batch).pathways[..., 1].exp()
    geometric = batch.doses.amount_mg[:, 0].log().mean().exp()
    torch.testing.assert_close(half_mg, torch.full_like(half_mg, 0.05 * float(geometric)))


@pytest.mark.parametrize("kind", ["flux", "loglinear-rates"])
def test_descriptors_stand_for_what_is_not_given(kind: str) -> None:
    batch = make_batch("T7")
    assert torch.isnan(batch.system.kp).any()
    model = make_model(batch, CONFIGS[kind])
    moved = batch.descriptors.clone()
    moved[:, 1] += 1.0  # logP
    with torch.no_grad():
        base, other = model(batch), model(replace(batch, descriptors=moved))
        known = replace(batch.system, kp=torch.full_like(batch.system.kp, 3.0))
        given = model(replace(batch, system=known))
    assert ((other / base).log().abs()[batch.mask]).mean() > 1e-3
    torch.testing.assert_close(given, base, rtol=0, atol=0)  # trained without Kp, it does not read one


def test_gradients_on_descriptors_reach_the_messages_from_the_drug() -> None:
    batch = make_batch("T7")
    model = make_model(batch, FluxConfig(hidden=8, drug_hidden=8))
    model(batch).clamp_min(1e-30).log().square().mean().backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("latents.", "drug_messages.")):
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_a_model_trained_with_kp_refuses_curves_without() -> None:
    given = to_batch(simulate_task("T7", 4, 0))
    system = given.system
    full = replace(
        system, kp=torch.where(torch.isnan(system.kp), 1.0, system.kp),
        elimination_l_h=torch.ones_like(system.elimination_l_h), ps_l_h=torch.ones_like(system.ps_l_h),
    )  # fmt: skip
    model = make_model(replace(given, system=full), LoglinearRatesConfig())
    with pytest.raises(InputError, match="kp and clearances are not given"):
        model(given)


@pytest.mark.parametrize("kind", ["flux", "loglinear-rates"])
def test_permeability_limited_organs_follow_ps(kind: str) -> None:
    given = to_batch(simulate_task("T7", 4, 0))
    system = given.system
    full = replace(
        system, kp=torch.where(torch.isnan(system.kp), 2.0, system.kp),
        elimination_l_h=torch.ones_like(system.elimination_l_h),
        ps_l_h=torch.linspace(1, 8, 12, dtype=torch.float64).view(4, 3),
    )  # fmt: skip
    batch = replace(given, system=full)
    model = make_model(batch, CONFIGS[kind])
    assert not model.reads_descriptors
    exponents = model.exponents()
    assert set(exponents["exchange_in"]) == {"ps", "volume_vascular", "volume_tissue", "kp_tissue", "fup", "bp_ratio"}
    slower = replace(batch, system=replace(full, ps_l_h=full.ps_l_h / 2))
    with torch.no_grad():
        model.classes.weight[4].add_(1.0)
        assert not torch.allclose(model(slower), model(batch), rtol=1e-3)


def test_permeability_limited_truth_is_log_linear() -> None:
    """``design`` spans the mechanistic rates of every topology, exchanges included."""
    given = to_batch(simulate_task("T7", 40, 0))
    random = torch.Generator().manual_seed(1)
    draw = lambda like: torch.rand(like.shape, generator=random, dtype=torch.float64) + 0.5  # noqa: E731
    system = given.system
    full = replace(
        system, kp=torch.where(torch.isnan(system.kp), draw(system.kp), system.kp), ps_l_h=draw(system.ps_l_h),
        elimination_l_h=draw(system.elimination_l_h),
    )  # fmt: skip
    batch = replace(given, system=full)
    model = make_model(batch, LoglinearRatesConfig(), scramble=False)
    truth = mechanistic_rates(full).log()
    design = model.design(batch)[:, : truth.shape[1]].flatten(0, 1)
    wanted = (truth - model.log_rates(batch).linear.detach()).flatten()[:, None]
    rest = wanted - design @ torch.linalg.lstsq(design, wanted, driver="gelsd").solution
    assert rest.abs().max() < 1e-8


@pytest.mark.parametrize("task", TASKS)
def test_without_conservation_what_arrives_may_differ(task: str) -> None:
    batch = make_batch(task)
    model = make_model(batch, FluxConfig(hidden=8, drug_hidden=8, conserve=False))
    with torch.no_grad():
        conc = model(batch)
        rates = model.log_rates(batch)
        assert rates.arrivals is not None
        conserving = model.concentrations(replace(rates, arrivals=None), batch)
    assert torch.isfinite(conc).all() and (conc >= 0).all()
    assert not torch.allclose(conc, conserving, rtol=1e-3)


def test_without_messages_a_rate_sees_its_own_ends_alone() -> None:
    batch = make_batch("T2")
    batch = replace(batch, system=replace(batch.system, kp=batch.system.kp.clone()))
    brain = batch.system.topology.nodes.index("brain")
    other = replace(batch, system=replace(batch.system, kp=batch.system.kp.clone()))
    other.system.kp[:, brain] *= 3
    touching = torch.tensor([brain in edge for edge in batch.system.topology.edges])
    for messages in (True, False):
        model = make_model(batch, FluxConfig(hidden=8, layers=2, messages=messages))
        with torch.no_grad():
            for parameter in model.network.parameters():
                parameter.add_(torch.randn_like(parameter))
            change = (model.log_rates(other).linear - model.log_rates(batch).linear).abs().amax(0)
        change = change[: len(touching)]
        assert (change[touching] > 0).all()
        assert bool((change[~touching] > 1e-6).any()) == messages


def test_raw_features_are_the_quantities_themselves() -> None:
    batch = make_batch("T2")
    raw = make_model(batch, FluxConfig(hidden=8, log_features=False))
    features, _ = raw._features(batch)
    torch.testing.assert_close(features.volume, batch.system.volume_l)
    torch.testing.assert_close(features.flow, batch.system.flow_l_h)
    with torch.no_grad():
        assert torch.isfinite(raw(batch)).all()


def test_log_rates_survive_being_flattened() -> None:
    for task in TASKS:
        batch = make_batch(task, 3)
        model = make_model(batch, FluxConfig(hidden=8, drug_hidden=8, conserve=False))
        with torch.no_grad():
            rates = model.log_rates(batch)
            again = rates.like(rates.flat())
            torch.testing.assert_close(model.concentrations(again, batch), model.concentrations(rates, batch))
            design = model.design(batch)
        assert design.shape[:2] == rates.flat().shape

"""Knots: interpolation error, output statistics, and doses superposed from exact unit responses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from perfuse.config import LstmConfig, MlpConfig, RecurrentConfig
from perfuse.data.batch import CurveBatch
from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch
from perfuse.errors import InputError
from perfuse.models.knot_grid import KnotGrid, interpolation_gmfe
from perfuse.models.knots import KnotModel
from perfuse.models.unit_response import Responses, RunningIntegral, StartedResponse, _carried, response_times
from perfuse.pk.mechanistic import organ_concentrations, solve
from perfuse.pk.system import ORAL, DoseEvents, SystemParameters

DEFAULT_KNOTS = MlpConfig().knots


class ExactKnots(KnotModel):
    """The mechanistic model's unit response at the knots: what remains is the error of everything after a network."""

    def _fit_features(self, batch: CurveBatch) -> None: ...

    def _standardised_knots(self, batch: CurveBatch, responses: Responses | None = None) -> Tensor:
        logs = unit_logs(batch.system, self.grid.knot_time_h)
        if responses is not None:
            topology = batch.system.topology
            gut_wall = replace(topology, dose_node=topology.absorption_node)
            gut = unit_logs(replace(batch.system, topology=gut_wall), self.grid.knot_time_h)
            logs = torch.where(responses.is_oral[:, None, None], gut[responses.curve], logs[responses.curve])
        return (logs - self.log_mean) / self.log_sd


def unit_logs(system: SystemParameters, time_h: Tensor) -> Tensor:
    """Exact ln C per mg, ``(B, O, T)``, after 1 mg at t = 0, at times shared by the curves ``(T,)``."""
    one = DoseEvents.bolus(torch.ones(len(system), dtype=torch.float64))
    amounts = solve(system, one, time_h.expand(len(system), -1))
    return organ_concentrations(system, amounts).log()


def truth(batch: CurveBatch) -> Tensor:
    return organ_concentrations(batch.system, solve(batch.system, batch.doses, batch.time_h))


def dense_batch(task: str, n: int, first_h: float = 0.01, seed: int = 3) -> CurveBatch:
    """Curves at log-spaced times from early on, exact, LOQ off."""
    batch = to_batch(simulate_task(task, n, seed))
    time_h = torch.as_tensor(np.geomspace(first_h, 24, 60)).expand(n, -1)
    batch = replace(batch, time_h=time_h)
    conc = truth(batch)
    return replace(batch, conc_mg_l=conc, mask=conc > 0, censored=torch.zeros_like(conc, dtype=torch.bool))


def test_the_three_models_share_their_default_knots() -> None:
    assert LstmConfig().knots == RecurrentConfig().knots == DEFAULT_KNOTS


def test_interpolation_costs_nothing_on_t1() -> None:
    batch = to_batch(simulate_task("T1", 40, 0))
    model = ExactKnots(batch.system.topology, DEFAULT_KNOTS)
    model.fit_normalisation(batch)
    assert float(model.grid.first_h) == pytest.approx(24 / 99)
    assert float(model.grid.last_h) == 24
    knots = unit_logs(batch.system, model.grid.knot_time_h)
    exact = (batch.conc_mg_l / batch.doses.amount_mg[..., None]).clamp_min(1e-300).log()
    gmfe = interpolation_gmfe(model.grid, knots, batch.time_h[:1], exact, batch.mask)
    assert 1 <= gmfe < 1.0002  # required: < 1.001; found 1.00003
    # The measure can fail: a quarter of the knots is not enough.
    coarse = KnotGrid(DEFAULT_KNOTS // 4)
    coarse.fit(24 / 99, 24)
    knots = unit_logs(batch.system, coarse.knot_time_h)
    assert interpolation_gmfe(coarse, knots, batch.time_h[:1], exact, batch.mask) > 1.001


def test_grid_reproduces_knots_cubics_and_log_linear_tails() -> None:
    grid = KnotGrid(12)
    grid.fit(0.5, 30)
    time_h = grid.knot_time_h
    assert float(time_h[0]) == pytest.approx(0.5)
    assert float(time_h[-1]) == pytest.approx(30)
    steps = torch.diff(torch.log1p(time_h / 2.5))
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    values = torch.randn(2, 14, 12, dtype=torch.float64)
    torch.testing.assert_close(grid(values, time_h[None]), values)
    torch.testing.assert_close(grid(values, time_h.expand(2, -1)), values)
    # Cubic in u: exact between the knots.
    u = lambda t: torch.log1p(t / 2.5)  # noqa: E731
    query = torch.linspace(0.5, 30, 57, dtype=torch.float64)[None]
    cubic = lambda t: (0.3 * u(t) ** 3 - u(t) ** 2 - 1).expand(2, 14, -1)  # noqa: E731
    torch.testing.assert_close(grid(cubic(time_h), query), cubic(query))
    # Beyond the last knot: the last two knots' slope in t, never rising.
    later = torch.tensor([[30.0, 40.0, 60.0]], dtype=torch.float64)
    slope = ((values[..., -1] - values[..., -2]) / (time_h[-1] - time_h[-2])).clamp_max(0)
    expected = values[..., -1:] + slope[..., None] * torch.tensor([0.0, 10.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(grid(values, later), expected)
    assert (slope == 0).any()
    assert (slope < 0).any()


def test_shared_and_per_curve_times_agree() -> None:
    batch = dense_batch("T2", 4)
    model = ExactKnots(batch.system.topology, DEFAULT_KNOTS)
    model.fit_normalisation(batch)
    jittered = replace(batch, time_h=batch.time_h * torch.tensor([1.0, 1.0, 1.0, 1.001])[:, None])
    for doses in (batch.doses, regimens(4)["bolus, infusion, padding"]):
        own, shared = (model(replace(b, doses=doses)) for b in (jittered, batch))
        torch.testing.assert_close(own[:3], shared[:3], rtol=1e-12, atol=0)


def regimens(n: int) -> dict[str, DoseEvents]:
    def events(*doses: tuple[float, float, float]) -> DoseEvents:
        time, amount, duration = torch.tensor(doses, dtype=torch.float64).T
        return DoseEvents(time.expand(n, -1), amount.expand(n, -1), duration.expand(n, -1))

    return {
        "late bolus": events((3, 100, 0)),
        "two boluses": events((0, 100, 0), (8, 40, 0)),
        "short infusion": events((0, 100, 0.25)),
        "long infusion": events((1, 100, 12)),
        "bolus, infusion, padding": events((0, 50, 0), (2, 100, 3), (0, 0, 0)),
    }


@pytest.mark.parametrize("task", ["T1", "T2"])
@pytest.mark.parametrize("regimen", list(regimens(1)))
def test_superposition_meets_the_exact_solution(task: str, regimen: str) -> None:
    errors = {}
    for first_h in (0.001, 0.01, 24 / 99):
        fitted_on = dense_batch(task, 6, first_h)
        model = ExactKnots(fitted_on.system.topology, 60)
        model.fit_normalisation(fitted_on)
        time_h = torch.arange(0, 24.1, 0.25, dtype=torch.float64)  # dose times and ends of infusions included
        batch = replace(fitted_on, doses=regimens(6)[regimen], time_h=time_h.expand(6, -1))
        ours, exact = model(batch), truth(batch)
        assert torch.equal(ours == 0, exact == 0)  # before the first dose, and tissues at it
        errors[first_h] = float((ours / exact).log()[exact > 0].abs().mean())
    # With the first knot at 0.001 h what is left is interpolation and quadrature. With later first knots an
    # infusion also pays for the unseen time before them (found, 12 h infusion: 0.2 % and 5 %), a bolus does not.
    assert errors[0.001] < 2e-4
    assert errors[0.01] < 3e-3
    assert errors[24 / 99] < (7e-2 if "infusion" in regimen else 2e-4)


def test_doses_by_mouth_and_all_else_of_t3_meet_the_exact_solution() -> None:
    batch = to_batch(simulate_task("T3", 64, 0))
    model = ExactKnots(batch.system.topology, DEFAULT_KNOTS)
    model.fit_normalisation(batch)
    assert float(model.grid.first_h) <= 1e-4 * float(model.grid.last_h)  # integrals begin early
    ours = model.eval()(batch)
    error = torch.where(batch.mask, ours.clamp_min(1e-300).log() - batch.conc_mg_l.clamp_min(1e-300).log(), 0.0).abs()
    oral, infused = batch.doses.is_oral.any(1), (batch.doses.duration_h > 0).any(1)
    for curves in (oral, infused, ~oral & ~infused):
        assert curves.any()
        assert float(error[curves].sum() / batch.mask[curves].sum()) < 1.5e-3  # found 3e-4, 8e-4 and 8e-5
    assert torch.equal(ours[:, 0] == 0, batch.conc_mg_l[:, 0] == 0)  # until the lag has passed


def test_infusions_and_absorption_are_integrated_exactly_between_grid_points() -> None:
    grid = KnotGrid(6)
    grid.fit(0.1, 12.0)
    start = torch.zeros(1, 14, dtype=torch.float64)
    rate = torch.linspace(0.05, 3, 14, dtype=torch.float64)
    response = StartedResponse(grid, -rate[None, :, None] * grid.knot_time_h, start, 0.1)
    which, time_h = torch.zeros(4, dtype=torch.long), torch.tensor([0.003, 0.7, 11.0, 30.0], dtype=torch.float64)
    points = response_times(grid)
    log_conc, tail = response.sampled(torch.tensor([0]), points)
    assert (tail < 0).all()
    for ka in (0.0, 0.3, float(rate[3]), 40.0):  # absorption as fast as a decay, and so fast that exp(ka t) overflows
        integral = RunningIntegral.of(response, torch.tensor([0]), torch.tensor([ka], dtype=torch.float64))
        found = integral.at(which, time_h)
        s = torch.linspace(0, 1, 200_001, dtype=torch.float64) * time_h[:, None]
        place = torch.searchsorted(points, s).sub(1).clamp(0, len(points) - 1)
        slope = torch.cat((log_conc[0].diff(dim=-1) / points.diff(), tail[0]), -1)
        for organ in (0, 13):
            conc = (log_conc[0, organ][place] + slope[organ][place] * (s - points[place])).exp()
            kernel = torch.exp(-ka * (time_h[:, None] - s))
            expected = torch.trapezoid(kernel * conc, s, dim=-1)
            torch.testing.assert_close(found[:, organ], expected, rtol=5e-5, atol=1e-12)


def test_what_integrals_carry_has_the_right_gradient() -> None:
    ka = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)[:, None]
    tau = torch.tensor([0.02, 0.3, 5.0, 0.1], dtype=torch.float64)
    slope = torch.tensor([-2.0, 1.0, -0.1, 0.0], dtype=torch.float64).expand(3, -1).clone()
    slope[1, 0], slope[2, 1] = -0.5 + 1e-4, -3.0  # absorption as fast as the decay, nearly and exactly
    slope.requires_grad_()
    assert torch.autograd.gradcheck(lambda k: _carried(tau, k, ka), slope)
    s = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None, None] * tau
    expected = torch.trapezoid((-ka * (tau - s) + slope * s).exp(), s, dim=0)
    torch.testing.assert_close(_carried(tau, slope, ka), expected, rtol=1e-6, atol=0)


def test_a_saturable_drug_is_given_as_one_bolus_or_refused() -> None:
    batch = to_batch(simulate_task("T4", 6, 0))
    model = ExactKnots(batch.system.topology, DEFAULT_KNOTS)
    model.fit_normalisation(batch)
    doses, zero = batch.doses, torch.zeros(6, 1, dtype=torch.float64)
    padded = DoseEvents(*(torch.cat((column, zero), 1) for column in (doses.time_h, doses.amount_mg, doses.duration_h)))
    torch.testing.assert_close(model(replace(batch, doses=padded)), model(batch))
    twice = replace(padded, amount_mg=padded.amount_mg[:, :1].repeat(1, 2), time_h=padded.time_h + zero + 6)
    oral = replace(doses, route=torch.full_like(doses.route, ORAL))
    for other in (twice, replace(doses, duration_h=zero + 1), oral):
        with pytest.raises(InputError, match=r"doses of a saturable drug do not superpose.*one intravenous bolus"):
            model(replace(batch, doses=other))


@pytest.mark.parametrize(
    ("trained", "asked", "field"),
    [("T2", "T3", "route"), ("T2", "T4", "vmax_mg_h"), ("T4", "T2", "vmax_mg_h")],
)
def test_what_a_network_was_not_trained_on_is_refused_when_it_predicts(trained: str, asked: str, field: str) -> None:
    model = ExactKnots(to_batch(simulate_task(trained, 2, 0)).system.topology, DEFAULT_KNOTS)
    model.fit_normalisation(to_batch(simulate_task(trained, 8, 0)))
    with pytest.raises(InputError, match=rf"^{field}.*not trained on"):
        model.eval()(to_batch(simulate_task(asked, 16, 0)))


def test_a_later_dose_changes_nothing_before_it_and_padding_doses_nothing_at_all() -> None:
    batch = dense_batch("T2", 3)
    model = ExactKnots(batch.system.topology, DEFAULT_KNOTS)
    model.fit_normalisation(batch)
    zero = torch.zeros(3, 1, dtype=torch.float64)
    for duration in (0.0, 2.0):
        doses = batch.doses
        more = DoseEvents(
            torch.cat((doses.time_h, zero + 6), 1),
            torch.cat((doses.amount_mg, zero + 70), 1),
            torch.cat((doses.duration_h, zero + duration), 1),
        )
        before = batch.time_h[0] <= 6
        changed = model(replace(batch, doses=more))
        torch.testing.assert_close(changed[..., before], model(batch)[..., before], rtol=1e-12, atol=0)
        assert (changed[..., ~before] > model(batch)[..., ~before]).all()
        padded = replace(more, amount_mg=torch.cat((doses.amount_mg, zero), 1))
        torch.testing.assert_close(model(replace(batch, doses=padded)), model(batch), rtol=1e-12, atol=0)


def test_start_of_a_bolus_is_dose_over_volume_in_blood_and_nothing_in_tissues() -> None:
    batch = dense_batch("T2", 3)
    model = ExactKnots(batch.system.topology, DEFAULT_KNOTS)
    model.fit_normalisation(batch)
    start = model(replace(batch, time_h=torch.zeros(3, 1, dtype=torch.float64)))[..., 0]
    volume = batch.system.volume_l[:, batch.system.topology.dose_node]
    torch.testing.assert_close(start[:, 0], batch.doses.amount_mg[:, 0] / volume)
    assert (start[:, 1:] == 0).all()


def test_plasma_is_blood_over_bp_and_is_undone_in_the_statistics() -> None:
    batch = dense_batch("T2", 6)
    batch = replace(batch, system=replace(batch.system, bp_ratio=torch.full((6,), 0.6, dtype=torch.float64)))
    conc = truth(batch)
    conc[:, 0] /= 0.6
    plasma = replace(batch, conc_mg_l=conc, is_plasma=torch.ones(6, dtype=torch.bool))
    blood = replace(batch, conc_mg_l=truth(batch))
    models = []
    for data in (plasma, blood):
        models.append(ExactKnots(batch.system.topology, DEFAULT_KNOTS))
        models[-1].fit_normalisation(data)
    torch.testing.assert_close(models[0].log_mean, models[1].log_mean)
    as_plasma, as_blood = models[0](plasma), models[0](blood)
    torch.testing.assert_close(as_plasma[:, 0] * 0.6, as_blood[:, 0])
    torch.testing.assert_close(as_plasma[:, 1:], as_blood[:, 1:])


def test_statistics_are_the_means_of_ln_c_per_organ_and_knot() -> None:
    batch = dense_batch("T1", 40)
    model = ExactKnots(batch.system.topology, DEFAULT_KNOTS)
    model.fit_normalisation(batch)
    exact = unit_logs(batch.system, model.grid.knot_time_h)
    spread = exact.std(0)
    # First and last knots included; the fit is piecewise linear, hence not exact.
    assert float(((model.log_mean - exact.mean(0)) / spread.clamp_min(0.1)).abs().mean()) < 0.05
    assert float((model.log_sd / spread.clamp_min(0.1)).log().abs().mean()) < 0.2


def test_sparse_plasma_only_and_censored_data_give_finite_statistics() -> None:
    batch = dense_batch("T2", 5)
    mask = torch.zeros_like(batch.mask)
    mask[:, 0, ::15] = True  # four plasma values per curve, no tissue
    sparse = replace(batch, mask=mask, conc_mg_l=torch.where(mask, batch.conc_mg_l, 0.0))
    for censored in (torch.zeros_like(mask), mask):
        model = ExactKnots(batch.system.topology, DEFAULT_KNOTS)
        model.fit_normalisation(replace(sparse, censored=censored))
        assert torch.isfinite(model.log_mean).all()
        assert (model.log_sd >= 0.1).all()
        assert torch.equal(model.log_mean[5], model.log_mean[0])  # no data of its own: the others' mean
    one = torch.zeros_like(mask)
    one[2, 0, 30] = True
    model = ExactKnots(batch.system.topology, DEFAULT_KNOTS)
    model.fit_normalisation(replace(sparse, mask=one, conc_mg_l=torch.where(one, batch.conc_mg_l, 0.0)))
    assert torch.isfinite(model(batch)).all()
    assert float(model.grid.first_h) == pytest.approx(float(model.grid.last_h) / 2)


def test_statistics_follow_the_latest_dose() -> None:
    batch = dense_batch("T1", 6)
    model, late = (ExactKnots(batch.system.topology, DEFAULT_KNOTS) for _ in range(2))
    model.fit_normalisation(batch)
    # The same curves, begun 5 h later: nothing else changes.
    shifted = replace(batch, time_h=batch.time_h + 5, doses=replace(batch.doses, time_h=batch.doses.time_h + 5))
    late.fit_normalisation(shifted)
    torch.testing.assert_close(late.grid.last_h, model.grid.last_h)
    torch.testing.assert_close(late.log_mean, model.log_mean, rtol=1e-6, atol=1e-6)


def test_data_without_a_value_to_scale_by_are_refused() -> None:
    batch = dense_batch("T1", 2)
    model = ExactKnots(batch.system.topology, DEFAULT_KNOTS)
    with pytest.raises(InputError, match="no value above 0 after a dose"):
        model.fit_normalisation(replace(batch, mask=torch.zeros_like(batch.mask)))
    before = replace(batch, doses=replace(batch.doses, time_h=batch.doses.time_h + 100))
    with pytest.raises(InputError, match="no value above 0 after a dose"):
        model.fit_normalisation(before)
    assert not model.is_fitted

"""``recurrent``: what the graph, the organs' own states and the step lengths do."""

from dataclasses import replace

import pytest
import torch

from perfuse.config import RecurrentConfig, parse_config
from perfuse.data.batch import CurveBatch
from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch
from perfuse.errors import InputError
from perfuse.models.recurrent import Recurrent
from perfuse.pk.topology import get_topology


def make(task: str = "T2", n: int = 3, **settings: object) -> tuple[Recurrent, CurveBatch]:
    batch = to_batch(simulate_task(task, n, 0))
    torch.manual_seed(0)
    model = Recurrent(RecurrentConfig(**settings), batch.system.topology)
    model.fit_normalisation(batch)
    return model.eval(), batch


def test_messages_follow_the_flow_edges_only() -> None:
    model, batch = make("T1")
    with torch.no_grad():
        model.update_pool.weight.zero_()
        kp = batch.system.kp.clone()
        kp[:, 6] *= 2  # muscle
        changed = model.log_knots(replace(batch, system=replace(batch.system, kp=kp))) - model.log_knots(batch)
    moved = changed.abs().amax(0) > 1e-7  # (O, K)
    per_step = RecurrentConfig().knots // RecurrentConfig().steps
    assert moved[6].all()
    assert moved[0, :per_step].all()  # muscle -> blood: one step
    others = [o for o in range(14) if o not in (0, 6)]
    assert not moved[others, :per_step].any()  # muscle -> blood -> others: two steps
    assert moved[others, 2 * per_step :].any(1).all()


def test_attention_reaches_every_organ_at_once() -> None:
    model, batch = make("T1")
    kp = batch.system.kp.clone()
    kp[:, 6] *= 2
    with torch.no_grad():
        changed = model.log_knots(replace(batch, system=replace(batch.system, kp=kp))) - model.log_knots(batch)
    per_step = RecurrentConfig().knots // RecurrentConfig().steps
    assert (changed.abs().amax(0) > 0)[:, :per_step].any(1).all()


def test_every_organ_has_its_own_state() -> None:
    model, batch = make()
    with torch.no_grad():
        z = model._standardised_knots(batch)  # (B, O, K)
    distance = torch.cdist(z, z) + torch.eye(14) * 9
    assert float(distance.min()) > 1e-3


def test_step_length_in_u_and_h_is_fed_in() -> None:
    model, batch = make()
    told = model._step_times(torch.float64)
    assert told.shape == (RecurrentConfig().steps, 4)
    assert (told[:, :2].diff(dim=0) > 0).all()
    length_h = told[:, 3].exp() * 24
    torch.testing.assert_close(length_h.sum(), torch.tensor(24.0, dtype=torch.float64))
    with torch.no_grad():
        before = model._standardised_knots(batch)
        model.grid.last_h.mul_(4)  # the same number of steps, each of another length
        assert not torch.equal(model._standardised_knots(batch), before)


def test_edge_flow_and_elimination_are_read() -> None:
    model, batch = make()
    system = batch.system
    with torch.no_grad():
        base = model.log_knots(batch)
        for change in (
            {"flow_l_h": system.flow_l_h * 1.5},
            {"volume_l": system.volume_l * 1.5},
            {"elimination_l_h": system.elimination_l_h * 1.5},
            {"fup": system.fup * 0.5},
            {"bp_ratio": system.bp_ratio * 1.5},
        ):
            changed = model.log_knots(replace(batch, system=replace(system, **change)))
            assert not torch.allclose(changed, base), change


def test_several_layers_steps_and_heads_are_configurable() -> None:
    model, batch = make(layers=3, steps=2, knots=12, heads=2, hidden=16)
    assert model(batch).shape == (3, 14, 100)
    assert len(model.edge_parts) == len(model.deeper) + 1 == 3
    assert get_topology("circulation") is batch.system.topology


@pytest.mark.parametrize(
    ("settings", "what"), [({"steps": 7}, "multiple of steps"), ({"heads": 5}, "multiple of heads")]
)
def test_settings_that_do_not_divide_are_refused(settings: dict[str, int], what: str) -> None:
    with pytest.raises(InputError, match=what):
        parse_config({"model": {"name": "recurrent", **settings}})

"""CVODE as a reference: it agrees with the exact linear solver, restarts at events, and says when it fails."""

import builtins
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.errors import InputError, PerfuseError
from perfuse.pk import reference
from perfuse.pk.mechanistic import solve
from perfuse.pk.physiology import human_reference
from perfuse.pk.reference import curve_equations, solve_cvode
from perfuse.pk.system import ORAL, DoseEvents, SystemParameters
from perfuse.pk.topology import get_topology


def f64(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def person(vmax: float = 0.0, topology: str = "circulation") -> SystemParameters:
    graph, body = get_topology(topology), human_reference(70.0)
    one = torch.ones(1, dtype=torch.float64)
    kp = torch.ones(1, graph.n_nodes).double()
    volume = torch.as_tensor(body.volume_l @ graph.volume_map)[None]
    flow = torch.as_tensor(body.flow_l_h @ graph.flow_map)[None]
    return SystemParameters(
        graph, volume, kp, flow, f64([20.0, 2.0]), 0.5 * one, one, vmax_mg_h=f64([vmax]), km_u_mg_l=f64([0.3])
    )


def regimen() -> DoseEvents:
    """A bolus, an oral dose with a lag, an infusion, and a second bolus."""
    return DoseEvents(
        f64([0.0, 1.0, 2.0, 6.0]), f64([100.0, 80.0, 60.0, 50.0]), f64([0.0, 0.0, 1.5, 0.0]),
        torch.tensor([[0, ORAL, 0, 0]], dtype=torch.int8), f64(0.9), f64(0.25), f64(0.7),
    )  # fmt: skip


TIMES = f64([0.0, 0.5, 1.0, 1.25, 2.0, 2.6, 3.5, 6.0, 6.1, 12.0, 12.0, 4.0])


@pytest.mark.parametrize("topology", ["circulation", "hub"])
def test_linear_kinetics_agree_with_the_exact_solver(topology: str) -> None:
    system = person(topology=topology)
    out = solve_cvode(system, regimen(), TIMES, rtol=1e-10, with_sinks=True)
    exact = solve(system, regimen(), TIMES, with_sinks=True)
    assert out.shape == exact.shape
    torch.testing.assert_close(out, exact, rtol=1e-7, atol=1e-7)


def test_saturable_kinetics_balance_mass() -> None:
    system = person(vmax=30.0)
    times = f64([0.7, 3.6, 12.0])
    out = solve_cvode(system, regimen(), times, with_sinks=True)
    torch.testing.assert_close(out.sum(1), f64([100.0, 240.0, 290.0]), rtol=1e-9, atol=0)
    assert (solve_cvode(person(), regimen(), times)[:, 6] != solve_cvode(system, regimen(), times)[:, 6]).any()


def test_jacobian_is_the_derivative_of_the_equations() -> None:
    equations = curve_equations(person(vmax=30.0), regimen(), with_sinks=True)[0]
    amount = np.random.default_rng(0).uniform(1, 9, len(equations.matrix))
    step = 1e-6
    for j, row in enumerate(np.eye(len(amount))):
        up, down = (equations.derivative(amount + s * row, 3.0) for s in (step, -step))
        np.testing.assert_allclose(equations.jacobian(amount)[:, j], (up - down) / (2 * step), rtol=1e-4, atol=1e-5)


def test_a_failure_names_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_MAX_STEPS", 3)
    with pytest.raises(PerfuseError, match="CVODE failed on curve 0 at rtol"):
        solve_cvode(person(vmax=30.0), regimen(), TIMES)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sksundae"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PerfuseError, match=r"pip install scikit-sundae"):
        solve_cvode(person(), regimen(), TIMES)


@pytest.mark.parametrize(("options", "field"), [({"rtol": 1.0}, "rtol"), ({"atol_mg": 0.0}, "atol_mg")])
def test_tolerances_out_of_range_are_refused(options: dict[str, float], field: str) -> None:
    with pytest.raises(InputError, match=field):
        solve_cvode(person(), regimen(), TIMES, **options)


def test_oral_dose_without_a_gut_is_refused() -> None:
    system = person()
    system = replace(system, topology=replace(system.topology, absorption_node=None))
    with pytest.raises(InputError, match="no gut"):
        solve_cvode(system, regimen(), TIMES)

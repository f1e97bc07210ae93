"""Elasticities against central differences and known exponents; Sobol and Morris on a product whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from perfuse.errors import InputError
from perfuse.pk.mechanistic import solve
from perfuse.pk.physiology import human_reference
from perfuse.pk.regimen import DoseCourse, dose_events
from perfuse.pk.sensitivity import (
    auc_inf,
    cmax,
    concentration,
    elasticities,
    global_sensitivity,
    half_life,
    parameter_names,
    with_factors,
)
from perfuse.pk.system import SystemParameters
from perfuse.pk.topology import get_topology

DOSES = dose_events([[DoseCourse(100.0), DoseCourse(50.0, "oral", time_h=3.0)]], [0.8], [0.2], [0.6])


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def make_system(saturable: bool = False, name: str = "circulation-ps") -> SystemParameters:
    topology = get_topology(name)
    person = human_reference(70)
    kp = np.where(topology.is_blood, 1.0, np.linspace(0.6, 3, topology.n_nodes))
    return SystemParameters(
        topology, row(*(person.volume_l @ topology.volume_map)), row(*kp), row(*(person.flow_l_h @ topology.flow_map)),
        row(150.0, 4.0), row(0.3)[0], row(0.8)[0], row(5.0, 20.0, 80.0) if topology.exchanges else torch.empty(1, 0),
        row(20.0, 5.0) if saturable else torch.empty(1, 0), row(0.5, 3.0) if saturable else torch.empty(1, 0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("output", "saturable"),
    [
        (auc_inf("liver"), False), (auc_inf("brain"), False), (half_life, False),
        (concentration("adipose", 5.0), False),
        (concentration("blood", 1.0), True), (cmax("muscle", np.linspace(0.1, 8, 60)), False),
    ],
)  # fmt: skip
def test_elasticities_are_central_differences(output: object, saturable: bool) -> None:
    system, h = make_system(saturable), 1e-4
    found = elasticities(system, DOSES, output)  # type: ignore[arg-type]
    assert found.names == parameter_names(system, DOSES)
    for i, name in enumerate(found.names):
        ends = [output(*with_factors(system, DOSES, {name: torch.tensor([np.exp(d)])})) for d in (h, -h)]  # type: ignore[operator]
        expected = float((ends[0].log() - ends[1].log())[0]) / (2 * h)
        assert found.value[0, i] == pytest.approx(expected, abs=2e-6 if not saturable else 2e-5), name


def test_known_exponents() -> None:
    """AUC is proportional to f_abs of an oral dose; with all clearances doubled it halves; volumes never matter."""
    oral = dose_events([[DoseCourse(50.0, "oral")]], [0.8])
    found = elasticities(make_system(), oral, auc_inf("blood"))
    value = dict(zip(found.names, found.value[0], strict=True))
    assert value["f_abs"] == pytest.approx(1, abs=1e-12)
    assert value["ka_1_h"] == 0
    assert all(abs(v) < 1e-12 for name, v in value.items() if name.startswith("volume_l."))
    assert -1 < value["clint_l_h"] < -0.5
    assert found.largest(1)[0][1] == pytest.approx(max(value.values(), key=abs))


def test_a_factor_on_a_flow_keeps_blood_balanced() -> None:
    system = make_system(name="circulation")
    for organ in ("kidney", "gut", "muscle"):
        changed, _ = with_factors(system, DOSES, {f"flow_l_h.{organ}": torch.tensor([1.3])})
        topology = system.topology
        for node in range(topology.n_nodes):
            entering = sum(float(changed.flow_l_h[0, e]) for e, (_, d) in enumerate(topology.edges) if d == node)
            leaving = sum(float(changed.flow_l_h[0, e]) for e, (s, _) in enumerate(topology.edges) if s == node)
            assert entering == pytest.approx(leaving), (organ, topology.nodes[node])


def test_half_life_is_the_terminal_slope_of_the_curve() -> None:
    system = make_system()
    late = solve(system, dose_events([[DoseCourse(1.0)]]), row(400.0, 450.0))[0, 0]
    slope = float((late[0] / late[1]).log() / 50)
    assert float(half_life(system, DOSES)[0]) == pytest.approx(np.log(2) / slope, rel=1e-6)


def test_sobol_and_morris_rank_what_matters() -> None:
    """AUC of a low-extraction drug is close to 1 / (fup CLint): both logs weigh alike, others nothing."""
    pytest.importorskip("SALib", reason="SALib is an extra")
    system = make_system()
    ranges = {"fup": (0.5, 2.0), "clint_l_h": (0.5, 2.0), "volume_l.muscle": (0.5, 2.0)}
    output = auc_inf("lung")
    sobol = global_sensitivity(system, dose_events([[DoseCourse(1.0)]]), output, ranges, n=128)
    assert sobol["volume_l.muscle"]["st"] < 1e-6
    assert 0.3 < sobol["clint_l_h"]["st"] < 0.8
    assert sobol["fup"]["st"] == pytest.approx(sobol["clint_l_h"]["st"], abs=0.15)
    again = global_sensitivity(system, dose_events([[DoseCourse(1.0)]]), output, ranges, n=128)
    assert all(again[name][key] == sobol[name][key] for name in ranges for key in ("s1", "st"))
    morris = global_sensitivity(system, dose_events([[DoseCourse(1.0)]]), output, ranges, "morris", n=20)
    assert morris["volume_l.muscle"]["mu_star"] < 1e-9 < morris["fup"]["mu_star"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda s: elasticities(s, DOSES, auc_inf("liver"), ["kp.nose"]), "parameter is unknown"),
        (lambda s: elasticities(s, DOSES, auc_inf("nose")), "organ is unknown"),
        (lambda s: elasticities(make_system(True), DOSES, auc_inf("liver")), "needs linear kinetics"),
        (lambda s: elasticities(s, DOSES, lambda *_: torch.zeros(1)), "is not positive"),
        (lambda s: global_sensitivity(s, DOSES, half_life, {"fup": (2.0, 1.0)}), "0 < low < high"),
        (lambda s: global_sensitivity(s, DOSES, half_life, {}), "ranges are missing"),
        (lambda s: global_sensitivity(s, DOSES, half_life, {"fup": (0.5, 1.0)}, "fast"), "method is unknown"),
    ],
)
def test_bad_requests_are_refused(run: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(make_system())  # type: ignore[operator]

"""How any output depends on any parameter: by autograd, and over ranges by Morris or Sobol (SALib).

A parameter is named by what it is and where: ``kp.liver``, ``volume_l.brain``, ``flow_l_h.kidney``, ``clint_l_h``,
``fup``, ``ps_l_h.muscle``, ``vmax_mg_h.0``, ``ka_1_h``, ... A factor of 1 is the value as it stands; elasticities are
d ln y / d ln p. A factor on an organ's flow acts on its inflow and outflow, and cardiac output grows or shrinks by
the difference (and the liver's outflow, for an organ on the portal vein), so that blood stays where it is.

Axis legend: B batch, F parameters, S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perfuse.errors import InputError
from perfuse.pk.mechanistic import generator_matrix, mechanistic_rates, organ_concentrations, solve
from perfuse.pk.physiology import PORTAL_ORGANS
from perfuse.pk.system import DoseEvents, SystemParameters
from perfuse.pk.topology import Topology

Output = Callable[[SystemParameters, DoseEvents], Tensor]
"""From a system and its doses to one number a curve, ``(B,)``."""


def parameter_names(system: SystemParameters, doses: DoseEvents) -> tuple[str, ...]:
    """Every parameter that acts in this system, in a fixed order."""
    t = system.topology
    names = [f"volume_l.{n}" for n in t.nodes]
    names += [f"kp.{n}" for n, blood in zip(t.nodes, t.is_blood, strict=True) if not blood]
    names += [f"flow_l_h.{n}" for n in _perfused(t)]
    names += [*t.elimination_names, "fup", "bp_ratio", *(f"ps_l_h.{x.name}" for x in t.exchanges)]
    if not system.is_linear:
        for p in range(system.vmax_mg_h.shape[1]):
            names += [f"vmax_mg_h.{p}", f"km_u_mg_l.{p}"]
    return (*names, "ka_1_h", "f_abs") if bool(doses.is_oral.any()) else tuple(names)


def _perfused(topology: Topology) -> list[str]:
    """Nodes that blood flows through but central blood and the lung, whose flow is the sum of the others."""
    central = {"venous", "arterial", "blood", "lung"} | ({"liver"} if "arterial" in topology.nodes else set())
    touched = {topology.nodes[i] for edge in topology.edges for i in edge}
    return [n for n in topology.nodes if n in touched and n not in central]


def _flow_factors(topology: Topology, flow: Tensor, node: str, factor: Tensor) -> Tensor:
    """Edge flows with one organ's changed by a factor ``(B,)`` and the whole circulation's by the difference."""
    index = topology.nodes.index(node)
    inflow = [e for e, (_, d) in enumerate(topology.edges) if d == index]
    extra = flow[:, inflow].sum(1) * (factor - 1)
    columns = list(flow.unbind(1))
    for e, (s, d) in enumerate(topology.edges):
        if index in (s, d):
            columns[e] = columns[e] * factor
        elif "arterial" in topology.nodes and (
            {topology.nodes[s], topology.nodes[d]} & {"lung"}
            or (node in PORTAL_ORGANS and topology.nodes[s] == "liver")
        ):
            columns[e] = columns[e] + extra
    return torch.stack(columns, 1)


def with_factors(
    system: SystemParameters, doses: DoseEvents, factors: Mapping[str, Tensor]
) -> tuple[SystemParameters, DoseEvents]:
    """The same system with parameters multiplied by factors ``(B,)``; see the module for their names.

    Raises:
        InputError: for a name that is no parameter of this system.
    """
    t = system.topology
    values = {f: getattr(system, f) for f in ("volume_l", "kp", "flow_l_h", "elimination_l_h", "fup", "bp_ratio",
    "ps_l_h",
                                              "vmax_mg_h", "km_u_mg_l")}  # fmt: skip
    dosing = {"ka_1_h": doses.ka_1_h, "f_abs": doses.f_abs}
    known = set(parameter_names(system, doses)) | set(dosing)
    for name, factor in factors.items():
        if name not in known:
            raise InputError("parameter", "is unknown", value=name, allowed=", ".join(sorted(known)))
        kind, _, place = name.partition(".")
        if name in dosing:
            dosing[name] = dosing[name] * factor
        elif name in ("fup", "bp_ratio"):
            values[name] = values[name] * factor
        elif kind == "flow_l_h":
            values[kind] = _flow_factors(t, values[kind], place, factor)
        else:
            kind, column = _column(t, name, kind, place)
            mask = torch.zeros(values[kind].shape[1], dtype=torch.bool)
            mask[column] = True
            values[kind] = torch.where(mask, values[kind] * factor[:, None], values[kind])
    return replace(system, **values), replace(doses, **dosing)


def _column(topology: Topology, name: str, kind: str, place: str) -> tuple[str, int]:
    if name in topology.elimination_names:
        return "elimination_l_h", topology.elimination_names.index(name)
    if kind in ("volume_l", "kp"):
        return kind, topology.nodes.index(place)
    if kind == "ps_l_h":
        return kind, [x.name for x in topology.exchanges].index(place)
    return kind, int(place)


def concentration(organ: str, time_h: float) -> Output:
    """Concentration of an organ at a time, mg/L."""

    def output(system: SystemParameters, doses: DoseEvents) -> Tensor:
        time = torch.full((len(system), 1), float(time_h), dtype=torch.float64)
        return organ_concentrations(system, solve(system, doses, time))[:, _organ(system, organ), 0]

    return output


def cmax(organ: str, time_h: Sequence[float] | np.ndarray) -> Output:
    """Largest concentration of an organ over the given times, mg/L."""

    def output(system: SystemParameters, doses: DoseEvents) -> Tensor:
        time = torch.as_tensor(np.asarray(time_h, dtype=np.float64)).expand(len(system), -1)
        return organ_concentrations(system, solve(system, doses, time))[:, _organ(system, organ)].amax(1)

    return output


def auc_inf(organ: str) -> Output:
    """Area under an organ's curve from the first dose to infinity, mg h/L; exact, -K^-1 times what enters the body.

    Raises (when called):
        InputError: for saturable kinetics, where it depends on the whole curve.
    """

    def output(system: SystemParameters, doses: DoseEvents) -> Tensor:
        _need_linear(system, "auc_inf")
        topology = system.topology
        generator = generator_matrix(topology, mechanistic_rates(system))
        entering = torch.zeros(len(system), topology.n_nodes, dtype=torch.float64)
        by_vein = torch.where(doses.is_oral, 0.0, doses.amount_mg).sum(1)
        orally = (torch.where(doses.is_oral, doses.amount_mg, 0.0)).sum(1) * doses.f_abs
        columns = list(entering.unbind(1))
        columns[topology.dose_node] = columns[topology.dose_node] + by_vein
        if topology.absorption_node is not None:
            columns[topology.absorption_node] = columns[topology.absorption_node] + orally
        area = torch.linalg.solve(generator, -torch.stack(columns, 1)[..., None])
        return organ_concentrations(system, area)[:, _organ(system, organ), 0]

    return output


def half_life(system: SystemParameters, _doses: DoseEvents) -> Tensor:
    """Terminal half-life, h: ln 2 over the slowest rate of the whole system.

    The slowest eigenvalue comes from inverse iteration on K, which differentiates where an eigendecomposition would
    not.

    Raises:
        InputError: for saturable kinetics.
    """
    _need_linear(system, "half_life")
    generator = generator_matrix(system.topology, mechanistic_rates(system))
    with torch.no_grad():
        values, right = torch.linalg.eig(generator)
        slowest = values.real.argmax(1)
        v = right.real.gather(2, slowest[:, None, None].expand(-1, right.shape[1], 1))
        values, left = torch.linalg.eig(generator.mT)
        slowest = values.real.argmax(1)
        w = left.real.gather(2, slowest[:, None, None].expand(-1, left.shape[1], 1))
    rate = -(w.mT @ generator @ v)[:, 0, 0] / (w.mT @ v)[:, 0, 0]  # first-order exact: d lambda = w dK v / (w v)
    return np.log(2) / rate


def _need_linear(system: SystemParameters, what: str) -> None:
    if not system.is_linear:
        raise InputError("output", "needs linear kinetics", value=what, hint="use concentration or cmax")


def _organ(system: SystemParameters, organ: str) -> int:
    if organ not in system.topology.organs:
        raise InputError("organ", "is unknown", value=organ, allowed=", ".join(system.topology.organs))
    return system.topology.organs.index(organ)


@dataclass(frozen=True)
class Elasticities:
    """d ln y / d ln p: ``value`` ``(B, F)`` and the output itself ``(B,)``."""

    names: tuple[str, ...]
    value: np.ndarray
    output: np.ndarray

    def largest(self, n: int = 10, row: int = 0) -> list[tuple[str, float]]:
        """The parameters that matter most in one curve, by absolute elasticity."""
        order = np.argsort(-np.abs(self.value[row]))[:n]
        return [(self.names[i], float(self.value[row, i])) for i in order]


def elasticities(
    system: SystemParameters, doses: DoseEvents, output: Output, names: Sequence[str] | None = None
) -> Elasticities:
    """Elasticity of an output to each parameter, by one backward pass.

    Args:
        system, doses: The model.
        output: E.g. ``auc_inf("liver")``, ``concentration("brain", 2.0)``, ``half_life``.
        names: Parameters; None is all of them.

    Raises:
        InputError: for an unknown parameter, or an output that is not positive.
    """
    chosen = parameter_names(system, doses) if names is None else tuple(names)
    logs = torch.zeros(len(system), len(chosen), dtype=torch.float64, requires_grad=True)
    factors = dict(zip(chosen, logs.exp().unbind(1), strict=True))
    value = output(*with_factors(system.to(torch.float64), doses.to(torch.float64), factors))
    if not bool((value > 0).all()):
        raise InputError("output", "is not positive: it has no elasticity", value=float(value.min()))
    (gradient,) = torch.autograd.grad(value.log().sum(), logs)
    return Elasticities(chosen, gradient.numpy(), value.detach().numpy())


def _salib() -> Any:
    try:
        import SALib
    except ImportError:
        raise InputError("SALib", "is not installed", hint="pip install 'perfuse[sensitivity]'") from None
    return SALib


def global_sensitivity(
    system: SystemParameters,
    doses: DoseEvents,
    output: Output,
    ranges: Mapping[str, tuple[float, float]],
    method: str = "sobol",
    n: int = 256,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Morris or Sobol indices of an output over ranges of factors, log-uniform.

    Sobol: Saltelli A, Annoni P, Azzini I, et al. Comput Phys Commun 2010;181:259-270. Morris MD. Technometrics
    1991;33:161-174.

    Args:
        system, doses: One curve (B = 1).
        output: As for ``elasticities``.
        ranges: Factors' bounds by parameter, e.g. ``{"clint_l_h": (0.3, 3.0)}``.
        method: ``sobol`` (first-order ``s1``, total ``st`` and their 95 % half-widths) or ``morris`` (``mu_star``,
        ``sigma``). n: Sobol base samples (a power of 2), or Morris trajectories.
        seed: Seed.

    Raises:
        InputError: for more than one curve, an unknown method, no or bad ranges, or when SALib is not installed.
    """
    if len(system) != 1:
        raise InputError("system", "holds more than one curve", value=len(system), allowed="1")
    if method not in ("sobol", "morris"):
        raise InputError("method", "is unknown", value=method, allowed="sobol, morris")
    for name, (low, high) in ranges.items():
        if not 0 < low < high:
            raise InputError(f"range of {name}", value=(low, high), allowed="0 < low < high")
    if not ranges:
        raise InputError("ranges", "are missing", allowed=">= 1 parameter")
    _salib()
    names = list(ranges)
    problem = {"num_vars": len(names), "names": names, "bounds": [list(np.log(ranges[name])) for name in names]}
    evaluate = lambda x: _evaluated(system, doses, output, names, np.exp(x))  # noqa: E731
    if method == "morris":
        from SALib.analyze import morris as analyse
        from SALib.sample import morris as sample

        x = sample.sample(problem, n, seed=seed)
        result = analyse.analyze(problem, x, evaluate(x), seed=seed)
        return {name: {"mu_star": float(result["mu_star"][i]), "sigma": float(result["sigma"][i])}
                for i, name in enumerate(names)}  # fmt: skip
    from SALib.analyze import sobol as analyse_sobol
    from SALib.sample import sobol as sample_sobol

    x = sample_sobol.sample(problem, n, calc_second_order=False, seed=seed)
    result = analyse_sobol.analyze(problem, evaluate(x), calc_second_order=False, seed=seed)
    keys = {"s1": "S1", "s1_conf": "S1_conf", "st": "ST", "st_conf": "ST_conf"}
    return {name: {ours: float(result[theirs][i]) for ours, theirs in keys.items()} for i, name in enumerate(names)}


_SAMPLES_AT_ONCE = 1024


def _evaluated(
    system: SystemParameters, doses: DoseEvents, output: Output, names: list[str], factors: np.ndarray
) -> np.ndarray:
    """The output for factors ``(S, F)``, ``(S,)``, in batches."""
    out = []
    for start in range(0, len(factors), _SAMPLES_AT_ONCE):
        part = torch.as_tensor(factors[start : start + _SAMPLES_AT_ONCE])
        many = [_expanded(record, len(part)) for record in (system, doses)]
        changed = with_factors(many[0], many[1], dict(zip(names, part.unbind(1), strict=True)))
        with torch.no_grad():
            out.append(output(*changed).numpy())
    return np.concatenate(out)


def _expanded(record: Any, n: int) -> Any:
    """Every tensor of a one-curve record repeated ``n`` times."""
    tensors = {k: v for k, v in vars(record).items() if isinstance(v, Tensor)}
    return replace(record, **{k: v.expand(n, *v.shape[1:]) for k, v in tensors.items()})

"""How any output depends on any parameter: by autograd, and over ranges by Morris or Sobol (SALib).

A parameter is named by what it is and where: ``kp.liver``, ``volume_l.brain``, ``flow_l_h.kidney``, ``clint_l_h``,
``fup``, ``ps_l_h.muscle``, ``vmax_mg_h.0``, ``ka_1_h``, ... A factor of 1 is the value as it stands; elasticities are
d ln y / d ln p. A factor on a node's flow multiplies what flows through it: the difference runs round the shortest
circle of flows through that node (an organ, veins, lung, arteries; the gut's goes on through the liver; the liver's
comes by its artery), so that as much blood leaves every node as enters it, and cardiac output grows or shrinks by the
difference. Outputs: ``pk.outputs``.

Axis legend: B batch, F parameters, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perfuse.errors import InputError
from perfuse.pk.outputs import Output, auc_inf, auc_last, clearance, cmax, concentration, half_life, vss
from perfuse.pk.system import DoseEvents, SystemParameters
from perfuse.pk.topology import Topology

_SYSTEM_FIELDS = (
    "volume_l", "kp", "flow_l_h", "elimination_l_h", "fup", "bp_ratio", "ps_l_h", "vmax_mg_h", "km_u_mg_l",
)  # fmt: skip


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
    """Nodes whose flow is a parameter: all that blood flows through, but central blood (and a lung in series), whose
    flow is the sum of the others.
    """
    central = {topology.nodes[topology.dose_node]} | ({"arterial", "lung"} if "arterial" in topology.nodes else set())
    return [n for i, n in enumerate(topology.nodes) if n not in central and _circle(topology, i)]


def _circle(topology: Topology, node: int) -> list[int]:
    """Flow edges of the shortest way from a node back to itself; none when there is no way."""
    came_by: dict[int, int] = {}
    reached = [node]
    for current in reached:
        for e, (source, target) in enumerate(topology.edges):
            if source != current or target in came_by:
                continue
            came_by[target] = e
            if target != node:
                reached.append(target)
                continue
            way = [e]
            while topology.edges[way[-1]][0] != node:
                way.append(came_by[topology.edges[way[-1]][0]])
            return way
    return []


def _flow_factors(topology: Topology, flow: Tensor, node: str, factor: Tensor) -> Tensor:
    """Edge flows when a factor ``(B,)`` multiplies what flows through a node.

    Raises:
        InputError: for a factor so small that a flow on the way would turn round.
    """
    index = topology.nodes.index(node)
    through = flow[:, [e for e, (_, target) in enumerate(topology.edges) if target == index]].sum(1)
    columns = list(flow.unbind(1))
    for e in _circle(topology, index):
        columns[e] = columns[e] + through * (factor - 1)
        if not bool((columns[e] > 0).all()):
            source, target = (topology.nodes[i] for i in topology.edges[e])
            raise InputError(f"factor on flow_l_h.{node}", f"turns the flow from {source} to {target} round",
                             value=float(factor.detach().min()), hint="take a factor nearer to 1")  # fmt: skip
    return torch.stack(columns, 1)


def with_factors(
    system: SystemParameters, doses: DoseEvents, factors: Mapping[str, Tensor]
) -> tuple[SystemParameters, DoseEvents]:
    """The same system with parameters multiplied by factors ``(B,)``; see the module for their names.

    Raises:
        InputError: for a name that is no parameter of this system.
    """
    t = system.topology
    values = {name: getattr(system, name) for name in _SYSTEM_FIELDS}
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


_SAMPLES_AT_ONCE = 1024
MAX_SAMPLES = 2**20


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
                    ``sigma``).
        n: Sobol base samples (a power of 2), or Morris trajectories.
        seed: Seed.

    Raises:
        InputError: for more than one curve, an unknown method, no or bad ranges, or when SALib is not installed.
    """
    if len(system) != 1:
        raise InputError("system", "holds more than one curve", value=len(system), allowed="1")
    if method not in ("sobol", "morris"):
        raise InputError("method", "is unknown", value=method, allowed="sobol, morris")
    known = parameter_names(system, doses)
    for name, (low, high) in ranges.items():
        if name not in known:
            raise InputError("parameter", "is unknown", value=name, allowed=", ".join(known))
        if not 0 < low < high:
            raise InputError(f"range of {name}", value=(low, high), allowed="0 < low < high")
    if not ranges:
        raise InputError("ranges", "are missing", allowed=">= 1 parameter")
    if isinstance(n, bool) or not isinstance(n, int) or not 2 <= n <= MAX_SAMPLES:
        raise InputError("n", value=n, allowed=f"a whole number, 2 to {MAX_SAMPLES}")
    if method == "sobol" and n & (n - 1):
        raise InputError("n", "is no power of 2", value=n, hint="Sobol's sequence is balanced at powers of 2 alone")
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


__all__ = [
    "MAX_SAMPLES", "Elasticities", "Output", "auc_inf", "auc_last", "clearance", "cmax", "concentration",
    "elasticities", "global_sensitivity", "half_life", "parameter_names", "vss", "with_factors",
]  # fmt: skip

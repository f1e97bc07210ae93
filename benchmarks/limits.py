"""What the machine could do at most, how much of it `flux` uses, and how its cost grows.

The arithmetic of a curve is counted as PyTorch runs it (matrix products only), and divided by the speed at which this
machine multiplies matrices of the very shapes that occur. Decompositions, exponentials and everything elementwise are
not in the count: they are what holds the rest, and ``profile_flux.py`` says where it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import markdown_table, number, rate
from perfuse.config import FluxConfig, LossConfig, OptimizerConfig
from perfuse.data.batch import CurveBatch
from perfuse.data.loader import select_curves
from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch
from perfuse.models import build_model
from perfuse.models.flux import LoglinearRates
from perfuse.pk.modes import solve_bolus, tree_basis
from perfuse.training.loss import CurveLoss
from perfuse.training.memory import keep_freed_memory
from perfuse.training.optimizer import clip_gradients, gradient_norm, gradients, make_optimizer

NODES, TIMES, HIDDEN = 14, 100, 32
PRIOR: Literal["mechanistic"] = "mechanistic"
"""Its rates are spread as trained ones are before any training."""
ORIGIN_FLOP = 150e3
"""One matrix exponential and repeated squaring of a curve of 14 organs x 100 times."""


@dataclass(frozen=True)
class Machine:
    """What it attains, with the threads that PyTorch may use.

    Attributes:
        double_gflop_s: Batched products (14 x 14) (14 x 100), float64.
        single_gflop_s: Products (3,584 x 32) (32 x 32), float32: a layer of the network.
        copy_gb_s: Bytes read and written in copying arrays that no cache holds.
    """

    threads: int
    double_gflop_s: float
    single_gflop_s: float
    copy_gb_s: float

    @staticmethod
    def measured(seconds: float) -> Machine:
        """Measured now."""
        a, x = torch.rand(256, NODES, NODES).double(), torch.rand(256, NODES, TIMES).double()
        u, w, big = torch.rand(256 * NODES, HIDDEN), torch.rand(HIDDEN, HIDDEN), torch.rand(16_000_000)
        out, product, copied = torch.empty_like(x), torch.empty_like(u), torch.empty_like(big)

        def per_s(work: Callable[[], object]) -> float:
            return rate(work, 1, seconds)

        return Machine(
            torch.get_num_threads(),
            per_s(lambda: torch.bmm(a, x, out=out)) * 2 * 256 * NODES * NODES * TIMES / 1e9,
            per_s(lambda: torch.mm(u, w, out=product)) * 2 * len(u) * HIDDEN * HIDDEN / 1e9,
            per_s(lambda: copied.copy_(big)) * 2 * 4 * len(big) / 1e9,
        )


class Step:
    """A model, a batch, and one prediction or one training step of it."""

    def __init__(self, batch: CurveBatch, model: LoglinearRates | None = None) -> None:
        keep_freed_memory()
        self.batch = batch
        self.model = model or fresh_model(batch)
        self.loss = CurveLoss(LossConfig())
        self.optimizer = make_optimizer(self.model, OptimizerConfig(lr=1e-6))
        self.weight = self.loss.weight(batch)

    def predict(self) -> Tensor:
        """Without gradients."""
        with torch.inference_mode():
            out: Tensor = self.model(self.batch)
        return out

    def rates(self) -> None:
        """The network alone."""
        with torch.inference_mode():
            self.model.log_rates(self.batch)

    def rates_and_gradients(self) -> None:
        """The network alone, forwards and backwards."""
        self.model.log_rates(self.batch).linear.sum().backward()

    def train(self) -> None:
        """As the loop does it, less its bookkeeping."""
        self.optimizer.zero_grad(set_to_none=True)
        part = self.loss(self.model(self.batch), self.batch, self.weight.has_censored)
        (part.total / self.weight.total).backward()
        grads = gradients(self.model)
        norm = gradient_norm(grads)
        clip_gradients(grads, float(norm), 1.0)
        self.optimizer.step()


def fresh_model(batch: CurveBatch) -> LoglinearRates:
    """A `flux` whose rates are spread as a trained one's are: untrained rates tie, which real ones never do."""
    torch.manual_seed(0)
    model = build_model(FluxConfig(prior=PRIOR), batch.system.topology)
    model.fit_normalisation(batch)
    assert isinstance(model, LoglinearRates)
    return model


def flop_of(work: Callable[[], object]) -> int:
    """Operations in the matrix products of one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def limits_table(machine: Machine, step: Step, seconds: float) -> tuple[str, list[dict[str, float | str]]]:
    """Arithmetic of a curve, the limit that it sets, and the share that is reached."""
    n = len(step.batch)
    inputs = sum(x.numel() * x.element_size() for x in (step.batch.system.volume_l, step.batch.system.kp)) / n
    memory = machine.copy_gb_s * 1e9 / (inputs + 8 * NODES * TIMES)
    rows, facts = [], []
    for what, work, network in (
        ("prediction", step.predict, step.rates), ("training step", step.train, step.rates_and_gradients)
    ):  # fmt: skip
        single = flop_of(network) / n
        double = flop_of(work) / n - single
        arithmetic = 1e9 / (single / machine.single_gflop_s + double / machine.double_gflop_s)
        achieved = rate(work, n, seconds)
        facts.append({
            "what": what, "float32_kflop_per_curve": single / 1e3, "float64_kflop_per_curve": double / 1e3,
            "arithmetic_limit_curves_per_s": arithmetic, "memory_limit_curves_per_s": memory,
            "curves_per_s": achieved, "share": achieved / arithmetic,
        })  # fmt: skip
        rows.append((
            what, f"{number((single + double) / 1e3)} ({number(double / 1e3)})", number(arithmetic), number(memory),
            number(achieved), f"{achieved / arithmetic:.0%}",
        ))  # fmt: skip
    header = (
        f'flux (prior="{PRIOR}")',
        "kFLOP/curve",
        "arithmetic limit, curves/s",
        "memory limit, curves/s",
        "reached, curves/s",
        "share",
    )
    origin = machine.double_gflop_s * 1e9 / ORIGIN_FLOP
    text = (
        f"{machine.threads} threads multiply (14 x 14) (14 x 100) at {machine.double_gflop_s:.0f} GFLOP/s in float64, "
        f"a layer of the network at {machine.single_gflop_s:.0f} in float32, and copy {machine.copy_gb_s:.0f} GB/s. "
        f"At 0.15 MFLOP, one matrix exponential and repeated squaring, that would be {number(origin)} curves/s. "
        f"The memory limit counts inputs and outputs alone.\n\n{markdown_table(header, rows)}"
    )
    return text, facts


def _times(batch: CurveBatch, n: int) -> CurveBatch:
    """The batch on ``n`` even times over the same hours; targets are repeated, which costs what real ones do."""
    time_h = torch.linspace(0, float(batch.time_h[0, -1]), n, dtype=torch.float64).expand(len(batch), -1).contiguous()
    index = torch.arange(n) * batch.time_h.shape[1] // n
    cut = {name: getattr(batch, name)[..., index] for name in ("conc_mg_l", "mask", "censored")}
    return replace(batch, time_h=time_h, **cut)


def _star(n: int, batch: int) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
    """Generators of a blood compartment and n - 1 organs."""
    generator = torch.Generator().manual_seed(0)
    into = torch.rand(batch, n - 1, generator=generator, dtype=torch.float64) * 20 + 0.1
    out = torch.rand(batch, n - 1, generator=generator, dtype=torch.float64) * 20 + 0.1
    k = torch.zeros(batch, n, n, dtype=torch.float64)
    k[:, 1:, 0], k[:, 0, 1:] = into, out
    k -= torch.diag_embed(k.sum(1))
    k[:, 0, 0] -= 1
    return k, ((torch.arange(1, n), torch.zeros(n - 1, dtype=torch.int64)),)


def propagation(n: int, batch: int) -> Callable[[], Tensor]:
    """The propagator alone for a star of n compartments, 100 times."""
    k, levels = _star(n, batch)
    amount = torch.ones(batch, dtype=torch.float64)
    grid = (0.0, 24 / (TIMES - 1))
    time_h = (torch.arange(TIMES, dtype=torch.float64) * grid[1]).expand(batch, -1)

    def solve() -> Tensor:
        with torch.inference_mode():
            return solve_bolus(k, tree_basis(k, levels, 24.0), amount, 0, time_h, grid)

    return solve


def growth_table(
    threads: int, seconds: float, batches: Sequence[int], times: Sequence[int] = (25, 100, 400),
    organs: Sequence[int] = (7, 14, 28, 56), usual: int = 256,
) -> tuple[str, list[dict[str, float | str]]]:  # fmt: skip
    """Curves/s of predicting and of training steps, and the propagator's over the number of compartments."""
    most = to_batch(simulate_task("T1", max(usual, *batches), 0))
    some = select_curves(most, torch.arange(usual))
    model = fresh_model(some)
    cases = [(f"batch {b}", select_curves(most, torch.arange(b)), threads) for b in batches]
    cases += [(f"{t} times, batch {usual}", _times(some, t), threads) for t in times]
    cases += [(f"{k} threads, batch {usual}", some, k) for k in sorted({1, threads})]
    rows, facts = [], []
    for name, batch, k in cases:
        torch.set_num_threads(k)
        step = Step(batch, model)
        predicted, trained = rate(step.predict, len(batch), seconds), rate(step.train, len(batch), seconds)
        rows.append((name, number(predicted), number(trained)))
        facts.append({"case": name, "predict_curves_per_s": predicted, "train_curves_per_s": trained})
    torch.set_num_threads(threads)
    for n in organs:
        solved = rate(propagation(n, usual), usual, seconds)
        rows.append((f"propagator alone, {n} compartments", number(solved), ""))
        facts.append({"case": f"{n} compartments", "predict_curves_per_s": solved})
    return markdown_table(
        (f'flux (prior="{PRIOR}") on T1', "prediction, curves/s", "training steps, curves/s"), rows
    ), facts

"""The reference that training speed is measured against: the graph network as one would first write it.

Every curve's graph is built in Python (node features, ``edge_index``, ``edge_attr``), the batch is their disjoint
union, and the network (3 message layers, attention over organs, one GRU) is unrolled over every time of the curve.
Nothing in it is slow on purpose: graphs are joined once per batch, edges are encoded once per curve, gathers and
sums are ``index_select`` / ``index_add``, the whole batch goes through each step together, time 0 is known and
costs no step, and the loss is one masked reduction. Hidden size, loss, clipping and optimiser are those of
Perfuse's `recurrent`, so that only the implementation differs.

Axis legend: B curves, O the 14 organs, N = B * O nodes of the joined graph, E edges of it, H hidden, T times.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/plain_loop.py

from benchmarks.common import cores, markdown_table, rate
from perfuse.config import LossConfig, OptimizerConfig
from perfuse.data.simulate import simulate_task
from perfuse.data.table import CurveTable
from perfuse.pk.physiology import ORGANS
from perfuse.training.loss import FLOOR_MG_L

Rows: TypeAlias = Sequence[int] | np.ndarray
BATCH_SIZES = (8, 16, 32, 64, 128, 256, 512)
ALONE, BESIDE_ANOTHER = 0.65, 0.3
"""Share of the machine's memory that a training step may take, where nothing else runs or one more of its kind."""
_BYTES_PER_STATE = 320
"""Of what a step keeps for its backward pass, per hidden unit, organ and time (measured: 300)."""
LIVER, KIDNEY = ORGANS.index("liver"), ORGANS.index("kidney")


@dataclass(frozen=True)
class OrganGraph:
    """One graph, or several joined: ``x`` ``(N, 6)``, ``edge_index`` ``(2, E)``, ``edge_attr`` ``(E, 3)``."""

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor


class PlainData:
    """The columns a script would keep: float32 arrays of doses, clearances, Kp and curves of a `hub` table."""

    def __init__(self, table: CurveTable, loss: LossConfig | None = None) -> None:
        self.dose_mg = table.dose_mg[:, 0].tolist()
        self.kp = table.kp.tolist()
        self.volume_l = table.volume_l.tolist()
        self.flow_l_h = table.flow_l_h.tolist()
        self.clearance_l_h = table.elimination_l_h.tolist()
        self.conc_mg_l = torch.as_tensor(table.conc_mg_l, dtype=torch.float32)
        self.loq_mg_l = torch.as_tensor(table.loq_mg_l, dtype=torch.float32)
        self.after_start = torch.as_tensor(table.time_h > 0)
        weight = torch.tensor([(loss or LossConfig()).organ_weight.get(organ, 1.0) for organ in ORGANS])
        self.organ_weight = weight / weight.mean()
        self.n_times = table.time_h.shape[1]

    def __len__(self) -> int:
        return len(self.dose_mg)

    def graph(self, row: int) -> OrganGraph:
        """One curve's star of organs around blood; logs of what the curve's table says."""
        volume, flow, kp = self.volume_l[row], self.flow_l_h[row], self.kp[row]
        clearance = [0.0] * len(ORGANS)
        clearance[LIVER], clearance[KIDNEY] = (math.log(c) for c in self.clearance_l_h[row])
        nodes = [
            [math.log(volume[o]), math.log(kp[o]), clearance[o], float(o == LIVER), float(o == KIDNEY), float(o == 0)]
            for o in range(len(ORGANS))
        ]
        source, target, attributes = [], [], []
        for o in range(1, len(ORGANS)):
            log_flow, log_kp = math.log(flow[o]), math.log(kp[o])
            source += [0, o]
            target += [o, 0]
            attributes += [[log_flow, log_kp, 1.0], [log_flow, -log_kp, -1.0]]
        return OrganGraph(torch.tensor(nodes), torch.tensor([source, target]), torch.tensor(attributes))

    def batch(self, rows: Rows) -> OrganGraph:
        """The graphs of ``rows`` joined into one, node numbers shifted."""
        graphs = [self.graph(int(row)) for row in rows]
        n = len(ORGANS)
        return OrganGraph(
            torch.cat([g.x for g in graphs]),
            torch.cat([g.edge_index + i * n for i, g in enumerate(graphs)], 1),
            torch.cat([g.edge_attr for g in graphs]),
        )

    def initial_mg_l(self, rows: Rows) -> Tensor:
        """Dose / blood volume, mg/L, ``(B,)``."""
        return torch.tensor([self.dose_mg[int(row)] / self.volume_l[int(row)][0] for row in rows])


class MessageLayer(nn.Module):
    """Gated messages along edges, summed at their target; residual update of the node."""

    def __init__(self, hidden: int, edge_hidden: int) -> None:
        super().__init__()
        self.message = nn.Sequential(
            nn.Linear(2 * hidden + edge_hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.gate = nn.Linear(hidden, 1)
        self.update = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor) -> Tensor:
        """Node states ``(N, H)`` after one round of messages."""
        source, target = edge_index[0], edge_index[1]
        message = self.message(torch.cat((x.index_select(0, target), x.index_select(0, source), edge), -1))
        message = torch.sigmoid(self.gate(message)) * message
        received = torch.zeros_like(x).index_add(0, target, message)
        return x + self.update(torch.cat((x, received), -1))


class PlainNetwork(nn.Module):
    """Encoders, then per time step: message layers, attention over organs, GRU, one output per organ.

    Args:
        n_times: Times of a curve, T; the first is the initial condition.
        hidden: Hidden size, H.
        gru: ``"organ"`` updates every organ's own state; ``"mean"`` feeds the GRU the mean over organs and hands
            its one state to all of them (less arithmetic, and all that tells organs apart is lost at every step).
        layers: Message layers per step.
        heads: Attention heads.
    """

    def __init__(self, n_times: int, hidden: int = 64, gru: str = "organ", layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.n_times, self.hidden, self.per_organ = n_times, hidden, gru == "organ"
        self.node_encoder = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.edge_encoder = nn.Sequential(nn.Linear(3, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, hidden // 2))
        self.layers = nn.ModuleList(MessageLayer(hidden, hidden // 2) for _ in range(layers))
        self.attention = nn.MultiheadAttention(hidden, heads, batch_first=True)
        self.gru = nn.GRUCell(hidden, hidden)
        self.head = nn.Sequential(nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 1))

    def forward(self, graph: OrganGraph, initial_mg_l: Tensor) -> Tensor:
        """Concentrations, mg/L, ``(B, O, T)``; the first time is the initial condition."""
        batch, organs = len(initial_mg_l), len(ORGANS)
        state, edge = self.node_encoder(graph.x), self.edge_encoder(graph.edge_attr)
        memory, logs = torch.zeros(batch, self.hidden), []
        for _ in range(self.n_times - 1):
            x = state
            for layer in self.layers:
                x = layer(x, graph.edge_index, edge)
            x = x.view(batch, organs, self.hidden)
            x = x + self.attention(x, x, x, need_weights=False)[0]
            if self.per_organ:
                state = self.gru(x.reshape(-1, self.hidden), state)
                logs.append(self.head(state))
            else:
                memory = self.gru(x.mean(1), memory)
                state = memory.repeat_interleave(organs, 0)
                logs.append(self.head(x.reshape(-1, self.hidden)))
        log_relative = torch.cat(logs, -1).view(batch, organs, -1)
        later = torch.exp(log_relative.clamp(-40, 10)) * initial_mg_l[:, None, None]
        first = torch.zeros(batch, organs, 1)
        first[:, 0, 0] = initial_mg_l
        return torch.cat((first, later), -1)


class PlainLoop:
    """The whole script: data in arrays, network, AdamW, clipping.

    Args:
        table: Curves of task T1 (topology `hub`, one bolus at time 0, one time grid for all).
        hidden: Hidden size; 64 is the default of Perfuse's `recurrent`.
        gru: As ``PlainNetwork``.
        seed: Seed of the weights and of the order of curves.
        lr: Learning rate of AdamW.
    """

    def __init__(
        self, table: CurveTable, hidden: int = 64, gru: str = "organ", seed: int = 0, lr: float = 1e-3
    ) -> None:
        torch.manual_seed(seed)
        self.data, self.hidden = PlainData(table), hidden
        self.network = self._network(hidden, gru)
        optimizer = OptimizerConfig()
        self.clip = optimizer.clip
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr, betas=(optimizer.beta1, optimizer.beta2),
            weight_decay=optimizer.weight_decay, fused=True,
        )  # fmt: skip
        self.generator = np.random.default_rng(seed)

    def _network(self, hidden: int, gru: str) -> nn.Module:
        return PlainNetwork(self.data.n_times, hidden, gru)

    def loss(self, predicted_mg_l: Tensor, rows: Rows) -> Tensor:
        """Weighted mean squared error of ln C over t > 0 and values >= LOQ: Perfuse's `log_mse`."""
        index = torch.as_tensor(np.asarray(rows))
        observed, loq = self.data.conc_mg_l[index], self.data.loq_mg_l[index][:, None, None]
        mask = (observed >= loq) & self.data.after_start[index][:, None]
        error = torch.log(predicted_mg_l.clamp_min(FLOOR_MG_L)) - torch.log(torch.where(mask, observed, 1.0))
        weight = self.data.organ_weight[:, None] * mask
        return (weight * torch.where(mask, error, 0.0) ** 2).sum() / weight.sum()

    def predict(self, rows: Rows) -> Tensor:
        """Concentrations, mg/L, ``(B, O, T)``."""
        return self.network(self.data.batch(rows), self.data.initial_mg_l(rows))

    def train_step(self, rows: Rows) -> float:
        """Build graphs, forward, loss, backward, clip, step; returns the loss."""
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.predict(rows), rows)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        return float(loss.detach())

    def train_for(self, batch_size: int, seconds: float) -> float:
        """Training curves/s over at least ``seconds`` and one step."""
        return rate(lambda: self.train_step(self._draw(batch_size)), batch_size, seconds)

    @torch.inference_mode()
    def predict_for(self, batch_size: int, seconds: float) -> float:
        """Prediction curves/s over at least ``seconds`` and one batch."""
        self.network.eval()
        return rate(lambda: self.predict(self._draw(batch_size)), batch_size, seconds)

    def fits(self, batch_size: int, memory_share: float, memory_bytes: float | None = None) -> bool:
        """Whether a training step needs no more than a share of the memory (None: this machine's)."""
        if memory_bytes is None:
            memory_bytes = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        per_curve = _BYTES_PER_STATE * self.hidden * len(ORGANS) * self.data.n_times
        return batch_size * per_curve <= memory_share * memory_bytes

    def _draw(self, batch_size: int) -> np.ndarray:
        return self.generator.integers(0, len(self.data), batch_size)

    def graph_share(self, batch_size: int = 8, repeats: int = 3) -> float:
        """Share of a training step that building graphs takes: what caching them could save at most."""
        rows = list(range(min(batch_size, len(self.data))))
        self.train_step(rows)
        spans = np.zeros(2)
        for _ in range(repeats):
            start = time.perf_counter()
            self.data.batch(rows)
            middle = time.perf_counter()
            self.train_step(rows)
            spans += middle - start, time.perf_counter() - middle
        return float(spans[0] / spans[1])


@dataclass(frozen=True)
class PlainSetting:
    """A batch size, the thread count it is fastest at, and its training curves/s there."""

    batch_size: int
    threads: int
    curves_per_s: float


def scan(
    loop: PlainLoop, batch_sizes: Sequence[int] = BATCH_SIZES, threads: Sequence[int] = (1, 2), seconds: float = 1.5,
    memory_share: float = ALONE,
) -> list[PlainSetting]:  # fmt: skip
    """The plain loop at every batch size that fits into memory, each at whichever thread count serves it best."""
    before, settings = torch.get_num_threads(), []
    loop.train_for(min(batch_sizes), 0.0)  # the first step of a process also fills caches
    for batch_size in (b for b in batch_sizes if b == min(batch_sizes) or loop.fits(b, memory_share)):
        rates = {}
        for count in threads:
            torch.set_num_threads(count)
            rates[count] = loop.train_for(batch_size, seconds)
        best = max(rates, key=lambda count: rates[count])
        settings.append(PlainSetting(batch_size, best, rates[best]))
    torch.set_num_threads(before)
    return settings


def main() -> None:
    """Scan batch sizes and print curves/s."""
    parser = argparse.ArgumentParser(description="Training speed of the plain loop over batch sizes (task T1).")
    parser.add_argument("--curves", type=int, default=512, help="simulated curves to draw from (default 512)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCH_SIZES), metavar="B")
    parser.add_argument("--threads", type=int, nargs="+", default=None, metavar="N", help="default: 1 and all cores")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per measurement (default 2)")
    parser.add_argument("--gru", choices=("organ", "mean"), default="organ", help="mean: one GRU for all organs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    loop = PlainLoop(simulate_task("T1", args.curves, args.seed), gru=args.gru, seed=args.seed)
    print(f"graph building: {loop.graph_share():.1%} of a training step at batch 8")
    threads = args.threads or sorted({1, cores()})
    rows = [
        (str(s.batch_size), str(s.threads), f"{s.curves_per_s:.1f}")
        for s in scan(loop, args.batch_sizes, threads, args.seconds)
    ]
    print(markdown_table(("batch", "threads", "training curves/s"), rows))


if __name__ == "__main__":
    main()

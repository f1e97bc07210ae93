"""A second reference for training speed: the recurrent graph network as one writes it with PyTorch Geometric.

A ``Data`` object per curve, made once; ``Batch.from_data_list`` joins them; at every time of the curve a
``GATv2Conv`` over the flow edges (attention over neighbours, edge features) and a ``GRUCell`` per node. One convolution
a step, as Perfuse's `recurrent` has one message layer: less work a step than `plain_loop`'s three layers and attention.
Data, features, loss, clipping, optimiser and hidden size are those of `plain_loop`, hence of Perfuse.

PyTorch Geometric is the extra ``bench``: ``pip install "perfuse[bench]"``. Its optional compiled kernels (pyg-lib,
torch-scatter, torch-sparse) are used by it where they are installed.

Axis legend: B curves, O the 14 organs, N = B * O nodes of the joined graph, E edges of it, H hidden, T times.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATv2Conv

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/pyg_loop.py

from benchmarks.common import cores, markdown_table
from benchmarks.plain_loop import BATCH_SIZES, PlainLoop, Rows, scan
from perfuse.data.simulate import simulate_task
from perfuse.data.table import CurveTable
from perfuse.pk.physiology import ORGANS


class PygNetwork(nn.Module):
    """Encoders, then per time step: attention over neighbours, GRU per organ, one output per organ.

    Args:
        n_times: Times of a curve, T; the first is the initial condition.
        hidden: Hidden size, H.
        heads: Attention heads.
    """

    def __init__(self, n_times: int, hidden: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.n_times = n_times
        self.node_encoder = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.edge_encoder = nn.Sequential(nn.Linear(3, hidden // 2), nn.ReLU())
        self.conv = GATv2Conv(hidden, hidden // heads, heads=heads, edge_dim=hidden // 2)
        self.gru = nn.GRUCell(hidden, hidden)
        self.head = nn.Sequential(nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 1))

    def forward(self, batch: Batch) -> Tensor:
        """ln (C / C(0+) of blood), ``(N, T - 1)``."""
        state, edge = self.node_encoder(batch.x), self.edge_encoder(batch.edge_attr)
        logs = []
        for _ in range(self.n_times - 1):
            heard = torch.relu(self.conv(state, batch.edge_index, edge))
            state = self.gru(heard, state)
            logs.append(self.head(state))
        return torch.cat(logs, -1)


class PygLoop(PlainLoop):
    """``PlainLoop`` with PyTorch Geometric's data, batches and convolution; arguments as there, but for ``gru``."""

    def __init__(self, table: CurveTable, hidden: int = 64, seed: int = 0, lr: float = 1e-3) -> None:
        super().__init__(table, hidden, seed=seed, lr=lr)
        graphs = (self.data.graph(row) for row in range(len(self.data)))
        self.graphs = [Data(x=g.x, edge_index=g.edge_index, edge_attr=g.edge_attr) for g in graphs]

    def _network(self, hidden: int, gru: str) -> nn.Module:
        return PygNetwork(self.data.n_times, hidden)

    def predict(self, rows: Rows) -> Tensor:
        """Concentrations, mg/L, ``(B, O, T)``; the first time is the initial condition."""
        batch = Batch.from_data_list([self.graphs[int(row)] for row in rows])
        initial_mg_l = self.data.initial_mg_l(rows)
        log_relative = self.network(batch).view(len(rows), len(ORGANS), -1)
        later = torch.exp(log_relative.clamp(-40, 10)) * initial_mg_l[:, None, None]
        first = torch.zeros(len(rows), len(ORGANS), 1)
        first[:, 0, 0] = initial_mg_l
        return torch.cat((first, later), -1)


def train_rate(table: CurveTable, batch_size: int, seconds: float = 2.0, hidden: int = 64, seed: int = 0) -> float:
    """Training curves/s on a table of task T1, after one step to warm up, with the threads that torch has now."""
    loop = PygLoop(table, hidden, seed)
    loop.train_for(batch_size, 0.0)
    return loop.train_for(batch_size, seconds)


def main() -> None:
    """Scan batch sizes and print curves/s."""
    parser = argparse.ArgumentParser(description="Training speed of the PyTorch Geometric loop over batch sizes (T1).")
    parser.add_argument("--curves", type=int, default=512, help="simulated curves to draw from (default 512)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCH_SIZES), metavar="B")
    parser.add_argument("--threads", type=int, nargs="+", default=None, metavar="N", help="default: 1 and all cores")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per measurement (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    loop = PygLoop(simulate_task("T1", args.curves, args.seed), seed=args.seed)
    rows = [
        (str(s.batch_size), str(s.threads), f"{s.curves_per_s:.1f}")
        for s in scan(loop, args.batch_sizes, args.threads or sorted({1, cores()}), args.seconds)
    ]
    print(markdown_table(("batch", "threads", "training curves/s"), rows))


if __name__ == "__main__":
    main()

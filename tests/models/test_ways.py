"""Messages along ways: what is sent per node equals a linear map of each way's own features."""

import pytest
import torch
from torch.nn import functional

from perfuse.config import FluxConfig
from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch
from perfuse.models.features import LogFeatures, LogStandardiser, at_ways, graph_index, log_features, mean_inflow
from perfuse.models.flux_network import FluxNetwork, _Inputs
from perfuse.pk.topology import get_topology


def features(task: str) -> tuple:
    batch = to_batch(simulate_task(task, 4, 0))
    graph = graph_index(batch.system.topology, torch.device("cpu"))
    standardise = LogStandardiser(batch.system.topology.n_eliminations)
    logs = log_features(batch.system)
    logs = LogFeatures(**{k: torch.nan_to_num(v) for k, v in vars(logs).items()})
    standardise.fit(logs, graph)
    return batch.system.topology, standardise(logs, graph).to(torch.float32), graph


@pytest.mark.parametrize("task", ["T1", "T2", "T7"])
def test_a_way_hears_a_linear_map_of_its_ends_and_its_own_features(task: str) -> None:
    topology, z, graph = features(task)
    torch.manual_seed(0)
    layer = FluxNetwork(FluxConfig(hidden=8), topology).flow_hidden
    nodes = torch.randn(topology.n_nodes, len(z.fup), 8)
    heard = super(type(layer), layer).forward(nodes, _Inputs.of(z), graph)
    speeds = torch.cat((z.flow, z.ps, z.ps), 1)
    for w, (source, target) in enumerate(zip(graph.way_source.tolist(), graph.way_target.tolist(), strict=True)):
        own = [
            speeds[:, w],
            z.volume[:, source],
            z.volume[:, target],
            z.kp[:, source],
            z.kp[:, target],
            z.fup,
            z.bp_ratio,
        ]
        if topology.exchanges:
            x, e = len(topology.exchanges), topology.n_edges
            own += [torch.full_like(z.fup, float(e <= w < e + x)), torch.full_like(z.fup, float(w >= e + x))]
        ends = layer.ends(nodes)
        plain = ends[source, :, :8] + ends[target, :, 8:] + layer.edge(torch.stack(own, -1))
        torch.testing.assert_close(heard[w], functional.silu(plain), rtol=1e-5, atol=1e-6)


def test_rows_by_copies_equal_products_with_constant_matrices_and_their_gradients() -> None:
    graph = graph_index(get_topology("circulation"), torch.device("cpu"))
    torch.manual_seed(0)
    n, ways = 15, len(graph.way_source)
    sent = [torch.randn(n, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    speed = torch.randn(ways, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: mean_inflow(at_ways(*x, graph), graph), (*sent, speed, weight))
    heard = at_ways(*sent, speed, weight, graph)
    dense = (graph.ends.double() @ torch.cat(sent).flatten(1)).view(ways, 3, 4) + speed[..., None] * weight
    torch.testing.assert_close(heard, dense)
    mean = (graph.inflow.double() @ heard.flatten(1)).view(n, 3, 4) / graph.inflow.double().sum(1)[:, None, None]
    torch.testing.assert_close(mean_inflow(heard, graph), mean)
    low = [x.detach().to(torch.bfloat16) for x in sent]  # the way of accelerators and of mixed precision
    torch.testing.assert_close(
        at_ways(*low, speed.detach().float(), weight.detach().float(), graph).double(), dense, rtol=0.05, atol=0.1
    )

"""The record of what a model reads says what it reads: names stand where the columns that tensors hold stand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from perfuse.config import MODEL_CONFIGS, FluxConfig
from perfuse.data.batch import CurveBatch
from perfuse.data.simulate import simulate_task
from perfuse.data.table import to_batch
from perfuse.models import build_model
from perfuse.models.features import graph_index, log_features
from perfuse.models.featuriser import Feature, Featuriser, columns, of_graph
from perfuse.models.flat import FlatFeatures, node_order
from perfuse.models.flux import Flux, LoglinearRates
from perfuse.pk.topology import Topology, get_topology


@pytest.fixture(scope="module")
def batch() -> CurveBatch:
    return to_batch(simulate_task("T2", 3, seed=0))


@pytest.mark.parametrize("topology", ["hub", "circulation"])
@pytest.mark.parametrize("name", list(MODEL_CONFIGS))
def test_every_model_records_as_many_columns_as_its_tensors_have(name: str, topology: str) -> None:
    graph = get_topology(topology)
    model = build_model(MODEL_CONFIGS[name](), graph)
    record = model.featuriser()
    assert record.nodes == graph.nodes and len(record.edges) == graph.n_edges
    assert record == Featuriser.model_validate(record.model_dump())
    widths = {part: len(features) for part, features in record.features.items()}
    if isinstance(model, LoglinearRates):
        weights = {f"rate {c.name}": len(w) for c, w in zip(model.classes.classes, model.classes.weight, strict=True)}
        assert weights == {part: width for part, width in widths.items() if part.startswith("rate ")}
        assert model.latents.weight.shape == (widths["latents"], widths["descriptors"])
    else:
        assert widths == {"flat": model.features.n_features}  # type: ignore[union-attr]
    if isinstance(model, Flux):
        network, hidden = model.network, FluxConfig().hidden
        assert network.encode.in_features == widths["nodes"]
        assert network.flow_hidden.edge.in_features == widths["ways"]
        assert network.elimination_hidden[0].in_features == hidden + widths["eliminations"]
        if network.saturable_node is not None:
            assert network.pathway_hidden[0].in_features == hidden + widths["pathways"]
        assert model.drug_messages is not None
        assert model.drug_messages.composition.shape == (widths["latents"], widths["composition"])


def _bumped(batch: CurveBatch, field: str, place: int) -> CurveBatch:
    value = getattr(batch.system, field).clone()
    value[:, place] *= 2
    return replace(batch, system=replace(batch.system, **{field: value}))


@pytest.mark.parametrize(
    ("field", "kind", "members"),
    [
        ("volume_l", "volume", "nodes"), ("kp", "kp", "nodes"), ("flow_l_h", "flow", "edges"),
        ("elimination_l_h", "clearance", "eliminations"),
    ],
)  # fmt: skip
def test_a_name_stands_where_its_quantity_enters(batch: CurveBatch, field: str, kind: str, members: str) -> None:
    """Doubling a quantity moves the column of its name, and no other of its kind."""
    topology = batch.system.topology
    flat = FlatFeatures(topology)
    record = flat.reads(of_graph(topology))
    names = [f.name for f in record.features["flat"]]
    for place, member in enumerate(getattr(record, members)):
        moved = (flat.logs(_bumped(batch, field, place)) - flat.logs(batch)).nan_to_num().abs().amax(0) > 1e-6
        assert [n for n, m in zip(names, [*moved.tolist(), False], strict=True) if m and "_over_" not in n] == [
            f"{kind}[{member}]"
        ]


def test_names_of_the_network_of_flux_stand_where_its_columns_are(batch: CurveBatch) -> None:
    model = build_model(FluxConfig(), batch.system.topology)
    names = [f.name for f in model.featuriser().features["nodes"]]
    logs, graph = log_features(batch.system), graph_index(batch.system.topology, torch.device("cpu"))
    on_nodes = logs.on_nodes(graph)
    assert torch.equal(on_nodes[..., names.index("volume")], logs.volume)
    assert torch.equal(on_nodes[..., names.index("kp")], logs.kp)
    assert torch.equal(on_nodes[..., names.index("is_blood")].bool(), graph.is_blood.expand_as(logs.kp))
    for m, elimination in enumerate(batch.system.topology.eliminations):
        column = on_nodes[..., names.index(f"clearance[{elimination.name}]")]
        assert torch.equal(column[:, elimination.source], logs.elimination[:, m])


def test_the_first_difference_is_named() -> None:
    topology = get_topology("circulation")
    record = build_model(MODEL_CONFIGS["mlp"](), topology).featuriser()
    assert record.first_difference(record) is None
    swapped = [*topology.nodes]
    swapped[2], swapped[3] = swapped[3], swapped[2]
    nodes = record.model_copy(update={"nodes": tuple(swapped)})
    assert record.first_difference(nodes) == ("nodes, number 3", "kidney", "brain")
    shorter = record.model_copy(update={"edges": record.edges[:-1]})
    assert record.first_difference(shorter) == (f"edges, number {len(record.edges)}", record.edges[-1], "none")
    flat = list(record.features["flat"])
    flat[1] = Feature(name=flat[1].name, unit="mL", transform="none")
    other = record.with_parts({"flat": tuple(flat)}, {})
    assert record.first_difference(other) == (
        "features of flat, number 2", f"ln {flat[1].name} in L", f"{flat[1].name} in mL"
    )  # fmt: skip
    assert record.first_difference(record.with_parts({}, {"ph_plasma": 7.35})) == ("constant ph_plasma", "7.4", "7.35")
    assert record.first_difference(record.with_parts({}, {"new": 1.0})) == ("constant new", "none", "1")
    more = record.with_parts({"more": columns(["kp"])}, {})
    assert record.first_difference(more) == ("features of more, number 1", "none", "ln kp")


def test_an_ablation_without_logs_is_recorded() -> None:
    topology = get_topology("hub")
    logs, raw = (build_model(FluxConfig(log_features=on), topology).featuriser() for on in (True, False))
    found = logs.first_difference(raw)
    assert found is not None
    assert found[1:] == ("ln flow in L/h", "flow in L/h")


def test_nodes_are_listed_as_they_are_read() -> None:
    topology: Topology = get_topology("circulation")
    names = [f.name for f in FlatFeatures(topology).reads(of_graph(topology)).features["flat"]]
    assert names[: topology.n_nodes] == [f"volume[{topology.nodes[i]}]" for i in np.asarray(node_order(topology))]

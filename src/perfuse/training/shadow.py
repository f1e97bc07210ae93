"""A checkpoint's model without memory: shapes and types on PyTorch's ``meta`` device, to hold files against."""

from __future__ import annotations

import torch

from perfuse.config import RunConfig
from perfuse.models import build_model, model_class
from perfuse.models.base import CurveModel
from perfuse.pk.topology import Topology, get_topology
from perfuse.training.record import CheckpointState


def built(config: RunConfig, topology: Topology) -> CurveModel:
    """A fresh model in the precision that its weights are kept in."""
    model = build_model(config.model, topology)
    return model.double() if config.training.precision == "64" else model


def shadow_of(state: CheckpointState) -> CurveModel:
    """The model that a checkpoint names, on the ``meta`` device.

    Raises:
        InputError: for an organ graph that is unknown.
    """
    topology = get_topology(state.topology)
    model_class(state.config.model)  # imported first: tensors that modules make as they load must have contents
    with torch.device("meta"):
        return built(state.config, topology)

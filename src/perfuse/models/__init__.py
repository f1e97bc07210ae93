"""Models by name: a plain dict, one class per file (``flux`` and its network-free baseline share one)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from perfuse.pk.topology import Topology

if TYPE_CHECKING:
    from perfuse.config import ModelConfig
    from perfuse.models.base import CurveModel

MODELS = {
    "flux": ("perfuse.models.flux", "Flux"),
    "loglinear-rates": ("perfuse.models.flux", "LoglinearRates"),
    "recurrent": ("perfuse.models.recurrent", "Recurrent"),
    "lstm": ("perfuse.models.lstm", "Lstm"),
    "mlp": ("perfuse.models.mlp", "Mlp"),
}


def model_class(config: ModelConfig) -> Callable[..., CurveModel]:
    """The class of the configured kind, imported."""
    module, name = MODELS[config.name]
    found: Callable[..., CurveModel] = getattr(import_module(module), name)
    return found


def build_model(config: ModelConfig, topology: Topology) -> CurveModel:
    """A fresh, unfitted model of the configured kind on a topology."""
    return model_class(config)(config, topology)

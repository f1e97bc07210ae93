"""What every model promises: one call signature, physical units outside, statistics from training data only.

Axis legend: B batch, O the 14 reported organs, T times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from perfuse.data.batch import CurveBatch
from perfuse.data.table import CurveSource
from perfuse.errors import InputError, PerfuseError
from perfuse.models.featuriser import Featuriser, of_graph
from perfuse.pk.system import ORAL
from perfuse.pk.topology import Topology


@dataclass(frozen=True)
class ParameterRole:
    """How the optimiser should treat the parameters whose names start with one of ``prefixes``.

    Attributes:
        prefixes: Starts of parameter names; "" is every name.
        lr_scale: Factor on the learning rate.
        eps: AdamW's epsilon: gradients far below it no longer move the parameter.
        start_fraction: Share of the run during which these parameters rest.
        decay_scale: Factor on the weight decay.
    """

    prefixes: tuple[str, ...] = ("",)
    lr_scale: float = 1.0
    eps: float = 1e-8
    start_fraction: float = 0.0
    decay_scale: float = 1.0


class Capabilities(Protocol):
    """What a model class says of itself."""

    models_oral: ClassVar[bool]
    models_saturable: ClassVar[bool]
    models_descriptors: ClassVar[bool]


def check_source_modelled(source: CurveSource, model: str, can: type[Capabilities]) -> None:
    """Refuse data that a model would silently get wrong, before anything is trained (see ``check_modelled``).

    Raises:
        InputError: naming what is not modelled.
    """
    if not can.models_oral and bool((source.column("dose_route") == ORAL).any()):
        raise _not_modelled_oral(model)
    if not can.models_saturable and bool((source.column("vmax_mg_h") > 0).any()):
        raise _not_modelled_saturable(model)
    if np.isnan(source.column("kp")).any() or np.isnan(source.column("elimination_l_h")).any():
        if not can.models_descriptors:
            raise _not_given(model)
        if np.isnan(source.column("logp")).any() or np.isnan(source.column("mw_g_mol")).any():
            raise _no_descriptors()


def _not_modelled_oral(model: str) -> InputError:
    return InputError("route", f"is not modelled by {model}", value="oral", allowed="intravenous", hint="flux does")


def _not_modelled_saturable(model: str) -> InputError:
    return InputError("vmax_mg_h", f"is not modelled by {model}", hint="flux does")


def _not_given(model: str) -> InputError:
    return InputError("kp and clearances", f"are not given, and {model} needs them")


def _no_descriptors() -> InputError:
    return InputError("logp and mw_g_mol", "are not given, nor are Kp and clearances",
                      hint="a model needs the one or the other")  # fmt: skip


def check_modelled(batch: CurveBatch, model: str, can: type[Capabilities]) -> None:
    """Refuse curves that a model would silently get wrong.

    Raises:
        InputError: for doses by mouth, saturable pathways, or Kp and clearances that are not given, unless modelled.
    """
    system = batch.system
    if not can.models_oral and bool(batch.doses.is_oral.any()):
        raise _not_modelled_oral(model)
    if not can.models_saturable and not system.is_linear:
        raise _not_modelled_saturable(model)
    if bool(torch.isnan(system.kp).any() | torch.isnan(system.elimination_l_h).any()):
        if not can.models_descriptors:
            raise _not_given(model)
        if bool(torch.isnan(batch.descriptors[:, :2]).any()):
            raise _no_descriptors()


class CurveModel(nn.Module, ABC):
    """A map from a ``CurveBatch`` (targets ignored) to concentrations.

    Statistics (means and standard deviations) are buffers, so they travel in ``model.safetensors``.
    Nothing but dropout depends on ``train()`` / ``eval()``.
    """

    is_fitted: Tensor
    models_oral: ClassVar[bool] = False
    """Whether doses by mouth are modelled."""
    models_saturable: ClassVar[bool] = False
    """Whether saturable pathways are modelled."""
    models_descriptors: ClassVar[bool] = False
    """Whether curves whose Kp and clearances are not given are modelled, from descriptors of the molecule."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.topology_name = topology.name
        self._reads_graph = of_graph(topology)
        self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool))

    def featuriser(self) -> Featuriser:
        """What the model reads, in order; a checkpoint carries it."""
        return self._reads_graph

    def parameter_roles(self) -> tuple[ParameterRole, ...]:
        """Roles, the first matching one counts; by default all parameters are alike."""
        return (ParameterRole(),)

    def fit_normalisation(self, batch: CurveBatch) -> None:
        """Take every statistic from these curves (the training split, or a sample of it)."""
        self._fit(batch)
        self.is_fitted.fill_(True)

    @abstractmethod
    def _fit(self, batch: CurveBatch) -> None: ...

    @abstractmethod
    def _predict(self, batch: CurveBatch) -> Tensor: ...

    def forward(self, batch: CurveBatch) -> Tensor:
        """Concentrations, mg/L, ``(B, O, T)``, in each curve's matrix (plasma where ``is_plasma``).

        Raises:
            InputError: if the batch is on another topology than the model was built for.
            PerfuseError: if the statistics have not been fitted or loaded.
        """
        if batch.system.topology.name != self.topology_name:
            raise InputError(
                "topology", "does not match the model", value=batch.system.topology.name, allowed=self.topology_name
            )
        check_modelled(batch, type(self).__name__.lower(), type(self))
        if not self.is_fitted:
            raise PerfuseError("the model has no normalisation statistics: fit or load it first")
        return self._predict(batch)

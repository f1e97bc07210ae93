"""Everything that a job may need, imported once for all of them (see ``pool``), what is otherwise imported late too."""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import suppress

import lightning_fabric  # noqa: F401
import safetensors.torch  # noqa: F401
import torch

import benchmarks.suite.work  # noqa: F401
import perfuse.models
import perfuse.pk
import perfuse.training

torch.set_num_threads(1)
for package in (perfuse.pk, perfuse.models, perfuse.training):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        with suppress(ImportError):  # parts that need an extra
            importlib.import_module(module.name)

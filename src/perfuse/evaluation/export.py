"""``perfuse export``: a trained model as a ``torch.export`` archive or an ONNX file, checked equal before it is kept.

What is exported maps a drug's and a body's numbers to curves after one intravenous bolus at time 0, on one even grid of
times (``models.exported``). The file is run again as it lies on the disk, in ONNX Runtime or by ``torch.export.load``,
on curves of the user's, and thrown away if it differs from the model itself.

Axis legend: B curves, O the 14 reported organs, T times.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from perfuse.data.batch import CurveBatch
from perfuse.data.table import to_batch
from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation.judged_data import open_judged_data
from perfuse.evaluation.runs import TrainedRun, open_run
from perfuse.files import replacing
from perfuse.models.exported import INPUTS, OUTPUT, BolusCurves, tensors_of
from perfuse.models.flux import LoglinearRates
from perfuse.pk.mechanistic import uniform_grid

SCHEMA_VERSION = 1
"""Of what ``perfuse.json`` in an archive says, and of the file's inputs and output."""
CHECKED_CURVES = 256
TOLERANCE = 1e-5
"""Largest difference that passes, as a share of each organ's peak: networks run in float32, rates in float64."""
EXPORTABLE = ("flux", "loglinear-rates")


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it compares with the model.

    Attributes:
        path: The file.
        kind: ``onnx`` or ``pt2``.
        curves: How many curves were compared.
        largest_error: Largest difference, as a share of the organ's peak in the curve.
        grid_h: (start, step) of the times, h, and ``n_times``.
    """

    path: Path
    kind: str
    curves: int
    largest_error: float
    tolerance: float
    grid_h: tuple[float, float]
    n_times: int

    def line(self) -> str:
        """For the console."""
        start, step = self.grid_h
        end = start + step * (self.n_times - 1)
        return (
            f"{self.path}: one bolus at time 0, {self.n_times} times from {start:g} to {end:g} h; differs from the "
            f"model by at most {self.largest_error:.1e} of an organ's peak on {self.curves} curves "
            f"(allowed: {self.tolerance:g})"
        )


def export_run(
    run: Path, data: Path, out: Path, kind: Literal["onnx", "pt2"], tolerance: float = TOLERANCE
) -> ExportReport:
    """Write a run's model to ``out`` and check it.

    Args:
        run: Run or checkpoint folder.
        data: Curves to check it on, after one bolus each; their even grid of times becomes the model's.
        out: What to write; replaced if it exists.
        kind: ``onnx`` (needs the extra "export") or ``pt2`` (an archive for ``torch.export.load``).
        tolerance: Largest difference allowed, as a share of each organ's peak.

    Raises:
        InputError: for a model, or data, that cannot be exported, and a tolerance that is not positive.
        PerfuseError: when the file differs from the model by more than ``tolerance``, or the extra is not installed.
    """
    if not tolerance > 0:
        raise InputError("tolerance", value=float(tolerance), allowed="> 0")
    if kind == "onnx":
        _need_onnx()
    trained = open_run(Path(run), with_calibration=False)
    model = exportable(trained)
    batch, grid = _checked_batch(Path(data), trained)
    curves = BolusCurves(model, trained.topology, *grid, batch.time_h.shape[1]).eval()
    with torch.inference_mode():
        expected = model(batch)
    with replacing(Path(out)) as unfinished:
        write_model(curves, tensors_of(batch), unfinished, kind)
        found = runner(unfinished, kind)(tensors_of(batch))
        error = largest_error(found, expected)
        if not error <= tolerance:
            raise PerfuseError(
                f"the exported model differs from {run} by {error:.1e} of an organ's peak (allowed: {tolerance:g}); "
                "nothing was written"
            )
    return ExportReport(Path(out), kind, len(batch), error, tolerance, grid, batch.time_h.shape[1])


def exportable(run: TrainedRun) -> LoglinearRates:
    """The run's model, if it can be exported.

    Raises:
        InputError: naming what cannot.
    """
    model = run.model
    if not isinstance(model, LoglinearRates):
        raise InputError("model", "cannot be exported", value=run.config.model.name, allowed=", ".join(EXPORTABLE))
    if bool(model.reads_descriptors):
        raise InputError("model", "cannot be exported: it was trained on descriptors of the molecule",
                         allowed="models trained on Kp and clearances")  # fmt: skip
    return model


def _checked_batch(data: Path, run: TrainedRun) -> tuple[CurveBatch, tuple[float, float]]:
    """The first curves of the data and their grid of times, (start, step) in h."""
    source = open_judged_data(data, run.topology).source
    batch = to_batch(source.take(np.arange(min(CHECKED_CURVES, len(source)))))
    grid = uniform_grid(batch.time_h)
    if grid is None:
        raise InputError("time_h", "is no even grid that all curves share, and only such can be exported",
                         where=str(data))  # fmt: skip
    if not batch.doses.is_single_initial_bolus:
        raise InputError("doses", "are not one bolus at time 0 each, and only such curves can be exported",
                         where=str(data))  # fmt: skip
    if not batch.system.is_linear:
        raise InputError("vmax_mg_h", "saturable pathways cannot be exported", where=str(data))
    return batch, grid


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise PerfuseError(f"{error.name} is not installed: pip install 'perfuse[export]'") from None


@contextmanager
def _quietly() -> Iterator[None]:
    """Exporters warn of their own internals."""
    import logging

    level = logging.getLogger("onnxscript").level
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("onnxscript").setLevel(level)


def write_model(curves: BolusCurves, example: tuple[Tensor, ...], path: Path, kind: str) -> None:
    """Export for any number of curves; ``example`` holds at least one."""
    if len(example[0]) == 1:  # torch.export takes a dimension of 1 for a constant
        example = tuple(torch.cat((x, x)) for x in example)
    any_number = torch.export.Dim("batch", min=1)
    with _quietly(), torch.no_grad():
        program = torch.export.export(
            curves, example, dynamic_shapes=tuple({0: any_number} for _ in INPUTS), strict=False
        )
        _forget_sources(program)
        if kind == "pt2":
            facts = {
                "schema_version": SCHEMA_VERSION, "inputs": INPUTS, "output": OUTPUT, "start_h": curves.start_h,
                "step_h": curves.step_h, "n_times": curves.n_times, "topology": curves.topology.name,
            }  # fmt: skip
            with path.open("wb") as file:
                torch.export.save(program, file, extra_files={"perfuse.json": json.dumps(facts)})
            return
        onnx_program = torch.onnx.export(
            program, (), input_names=list(INPUTS), output_names=[OUTPUT], dynamo=True, verbose=False
        )
        assert onnx_program is not None
        onnx_program.save(path)


def _forget_sources(program: torch.export.ExportedProgram) -> None:
    """Drop the lines of source that each operation came from: they name folders of this machine."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def runner(path: Path, kind: str, threads: int | None = None) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """A function of the inputs that runs an exported file."""
    if kind == "pt2":
        with _quietly(), path.open("rb") as file:
            module = torch.export.load(file).module()

        def run_module(inputs: tuple[Tensor, ...]) -> Tensor:
            with torch.no_grad():
                out: Tensor = module(*inputs)
            return out

        return run_module
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {entry.name for entry in session.get_inputs()}  # what a model does not read is not asked for

    def run_session(inputs: tuple[Tensor, ...]) -> Tensor:
        feed: Mapping[str, Any] = {n: x.numpy() for n, x in zip(INPUTS, inputs, strict=True) if n in names}
        return torch.from_numpy(session.run([OUTPUT], feed)[0])

    return run_session


def largest_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the organ's peak, ``(B, O, T)``; NaN if any value is."""
    peak = expected.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return float(((found - expected).abs() / peak).max())


__all__ = ["EXPORTABLE", "ExportReport", "export_run", "exportable", "largest_error", "runner", "write_model"]

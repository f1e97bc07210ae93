"""``perfuse export``. Everything heavy is imported inside, as in ``cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from perfuse.cli_options import Flag, local_copy


def export(
    run: Path,
    out: Path,
    /,
    *,
    data: str,
    to: Annotated[Literal["onnx", "pt2"], Parameter(show_default=False)] = "onnx",
    tolerance: float = 1e-5,
    quiet: Annotated[bool, Flag] = False,
) -> None:
    """Write a trained model as an ONNX file or a torch.export archive, checked against the model itself.

    What is exported are curves after one bolus at time 0 on an even grid of times, for flux and loglinear-rates.

    Args:
        run: Run or checkpoint folder.
        out: File to write.
        data: Curves to check it on (dataset folder, origin .npz, tidy table); their grid of times becomes the file's.
        to: onnx (needs the extra "export"; the default) or pt2.
        tolerance: Largest difference allowed, as a share of an organ's peak.
        quiet: Print nothing.
    """
    from perfuse.evaluation.export import export_run

    report = export_run(run, local_copy(data), out, to, tolerance)
    if not quiet:
        print(report.line())

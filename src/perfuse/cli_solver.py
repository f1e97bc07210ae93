"""The commands that need no network: ``solve`` and ``nca``. Everything heavy is imported inside, as in ``cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from perfuse.cli_options import Flag, local_copy
from perfuse.errors import InputError


def solve(
    study: Path,
    /,
    *,
    out: Path | None = None,
    sbml: Annotated[bool, Flag] = False,
    quiet: Annotated[bool, Flag] = False,
) -> None:
    """Solve a study (drug, people, regimen in one TOML file) with the mechanistic model.

    Args:
        study: Study .toml.
        out: New folder for curves.csv, exposure.csv, parameters.csv and, where there is such, intervals.csv (of a
            population) and sensitivity.csv.
        sbml: Also write model.sbml of the first person (needs the extra "export").
        quiet: Print nothing.
    """
    from perfuse.data.study import read_study
    from perfuse.evaluation.solve import check_out, solve_study, summary_lines, write_solved

    if sbml and out is None:
        raise InputError("--sbml", "needs --out")
    if out is not None:
        check_out(out)
    solved = solve_study(read_study(study))
    files = write_solved(solved, out, sbml) if out else []
    if not quiet:
        print("\n".join([*summary_lines(solved), *(f"wrote {file}" for file in files)]))


def nca(
    source: str,
    /,
    *,
    out: Path,
    organ: Annotated[list[str] | None, Parameter(negative_iterable="")] = None,
    rules: Literal["pknca", "winnonlin"] = "pknca",
    auc_method: Literal["linear", "lin-up/log-down", "lin-log"] | None = None,
    blq: str | None = None,
    min_adjusted_r2: float | None = None,
    min_span_ratio: float | None = None,
    max_extrapolated_fraction: float | None = None,
    loq_mg_l: float | None = None,
    tau_h: float | None = None,
    dose_mg: float | None = None,
    duration_h: float | None = None,
    route: Literal["iv_bolus", "iv_infusion", "oral"] | None = None,
    force: Annotated[bool, Flag] = False,
    quiet: Annotated[bool, Flag] = False,
) -> None:
    """Exposure of curves by non-compartmental analysis: Cmax, AUC, half-life, CL, Vss, ...; one row a curve and organ.

    Args:
        source: Dataset folder, origin .npz, tidy table, measured human CSV, or the output of perfuse predict.
        out: New .csv or .parquet file.
        organ: Only this organ; may be repeated. (Default all.)
        rules: Named set of rules.
        auc_method: Trapezoids, instead of the set's.
        blq: Rule for values below the limit: pknca, M1, M5, M6 or M7.
        min_adjusted_r2: Least adjusted R2 of a terminal slope.
        min_span_ratio: Least time span of a terminal slope, in half-lives.
        max_extrapolated_fraction: Largest extrapolated share of AUC_inf.
        loq_mg_l: Limit of quantification, mg/L, instead of the data's.
        tau_h: Dosing interval, h, of the last dose of a curve with several.
        dose_mg: Dose, mg (predictions only).
        duration_h: Infusion duration, h (predictions only).
        route: Route (predictions only).
        force: Replace OUT if it exists.
        quiet: Print nothing.
    """
    from perfuse.evaluation.nca_file import nca_file

    report = nca_file(
        local_copy(source), out, organs=tuple(organ or ()), rules=rules, auc_method=auc_method, blq=blq,
        min_adjusted_r2=min_adjusted_r2, min_span_ratio=min_span_ratio,
        max_extrapolated_fraction=max_extrapolated_fraction, loq_mg_l=loq_mg_l, tau_h=tau_h, dose_mg=dose_mg,
        duration_h=duration_h, route=route, force=force,
    )  # fmt: skip
    if not quiet:
        print("\n".join(report.lines()))

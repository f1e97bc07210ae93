"""Write one small artifact of everything that this version of Perfuse leaves on disk, for tests/artifacts.

    python scripts/make_artifacts.py OUT --commit HASH [--only dataset,checkpoint,evaluation,export] [--cases flux,...]

makes of the installed version OUT/dataset-N, OUT/checkpoint-N, OUT/evaluation-N and OUT/export-N, N being the schema
version, each with an ``about.json`` and with what later versions must find in it. It needs the command line and four
functions that every version has, so that ``PYTHONPATH=<older checkout>/src`` makes an older version's. What a
published version wrote stays as it is: an artifact is never made again, only beside it one of a new schema.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import perfuse
from perfuse.data.simulate import simulate_task
from perfuse.data.store import CurveStore, write_dataset
from perfuse.data.table import CurveTable, to_batch
from perfuse.errors import InputError

TIMES = (0, 1, 4, 12, 40, 99)
"""Of a task's 100; few, so that a dataset stays small."""
TASKS = {"hub": ("T1", 12), "circulation": ("T2", 12), "descriptors": ("T7", 12)}
"""Name of a dataset: task, curves."""
EXPECTED_ROWS = (0, 3, 7, 11)
"""Rows of a dataset whose values, and predictions for which, are kept."""
CALIBRATION_CURVES = 40


@dataclass(frozen=True)
class Case:
    """A run to keep.

    Attributes:
        model: The configuration's table ``[model]``.
        data: Which of ``TASKS`` it is trained on.
        ema: Decay of the average of weights; 0 is off.
        calibrate: Whether its predictions get intervals.
        whole: Whether all of its folder is kept, or its ``last`` alone.
    """

    model: dict[str, object] = field(default_factory=dict)
    data: str = "hub"
    ema: float = 0.0
    calibrate: bool = False
    whole: bool = False

    def toml(self) -> str:
        """The run's configuration."""
        model = "\n".join(f"{key} = {json.dumps(value)}" for key, value in self.model.items())
        return (
            f"seed = 1\n[model]\n{model}\n[training]\nepochs = 8\nbatch_size = 5\ntensorboard = false\n"
            f'device = "cpu"\nema_decay = {self.ema}\n'
        )


FLUX: dict[str, object] = {"name": "flux", "hidden": 4, "layers": 1, "drug_hidden": 4, "start": "zero"}
"""Not fitted by Gauss-Newton, which leaves nothing to the network: what is kept must depend on every weight."""
CASES = {
    "flux": Case(FLUX),
    "flux-mechanistic": Case({**FLUX, "prior": "mechanistic"}, "circulation"),
    "flux-descriptors": Case(FLUX, "descriptors"),
    "loglinear-rates": Case({"name": "loglinear-rates"}, "circulation", calibrate=True),
    "recurrent": Case({"name": "recurrent", "hidden": 4, "heads": 1, "steps": 2, "knots": 4}),
    "lstm": Case({"name": "lstm", "hidden": 4, "knots": 4}, ema=0.5),
    "mlp": Case({"name": "mlp", "hidden": 4, "layers": 1, "knots": 4}, whole=True),
}


def perfuse_command(*arguments: object, cwd: Path) -> None:
    """One call of the command line, from a folder whose relative paths end up in what it writes."""
    command = [sys.executable, "-m", "perfuse", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])}: {done.stderr.strip()[-500:]}")


def few_times(task: str, n: int, seed: int) -> CurveTable:
    """Curves of a task at ``TIMES``, with errors of 20 %, so that no model knows the truth from the start."""
    table = simulate_task(task, n, seed=seed)
    at = np.asarray(TIMES)
    conc = table.conc_mg_l[..., at]
    conc = conc * np.random.default_rng(seed).lognormal(0.0, 0.2, conc.shape)
    return replace(table, time_h=table.time_h[:, at], conc_mg_l=conc, censored=table.censored[..., at])


def make_datasets(out: Path) -> None:
    """One folder per task that this version knows, and the values of some rows."""
    for name, (task, n) in TASKS.items():
        try:
            table = few_times(task, n, seed=1)
        except InputError:
            print(f"{name}: {task} is unknown to {perfuse.__version__}", file=sys.stderr)
            continue
        folder = write_dataset(
            [table], out / name, generator={"task": task, "times": list(TIMES), "error": 0.2}, seed=1
        )
        rows = CurveStore.open(folder).take(EXPECTED_ROWS)
        columns = ("volume_l", "flow_l_h", "kp", "elimination_l_h", "fup", "bp_ratio", "dose_mg", "time_h", "conc_mg_l")
        np.savez_compressed(
            out / f"{name}-expected.npz",
            **{c: rows.column(c) for c in columns},
            compound_id=rows.compound_id.astype(str),
        )


def make_checkpoints(out: Path, data: Path, names: Sequence[str]) -> None:
    """A run of every model, and what it predicts."""
    from perfuse.training.load import load_model

    for name in names:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            shutil.copytree(data / case.data, folder / case.data)
            (folder / "run.toml").write_text(case.toml(), encoding="utf-8")
            perfuse_command("train", case.data, "--out", "run", "--config", "run.toml", "--quiet", cwd=folder)
            if case.calibrate:
                table = few_times(TASKS[case.data][0], CALIBRATION_CURVES, seed=2)
                write_dataset([table], folder / "calibration", generator={"task": TASKS[case.data][0]}, seed=2)
                perfuse_command("calibrate", "run/last", "calibration", "--allow-few", "--quiet", cwd=folder)
            run = out / name
            if case.whole:
                shutil.copytree(folder / "run", run)
                (run / "best" / "optimizer.safetensors").unlink()  # a run goes on from last
            else:
                shutil.copytree(folder / "run" / "last", run / "last")
                (run / "last" / "optimizer.safetensors").unlink()
        table = CurveStore.open(data / case.data).take(EXPECTED_ROWS)
        model = load_model(run).model
        untouched = [parameter for parameter, value in model.named_parameters() if not value.any()]
        print(f"{name}: still zero: {', '.join(untouched) or 'nothing'}", file=sys.stderr)
        with torch.inference_mode():
            expected = {"conc_mg_l": model(to_batch(table)).to(torch.float64).numpy()}
        if case.calibrate:
            from perfuse.evaluation.runs import open_run

            calibration = open_run(run).calibration
            assert calibration is not None
            lower, upper = calibration.bounds(table, expected["conc_mg_l"])
            expected |= {"lower_mg_l": lower, "upper_mg_l": upper}
        np.savez_compressed(out / f"{name}-expected.npz", **expected)
        (out / f"{name}.txt").write_text(f"{case.data}\n", encoding="utf-8")


def make_evaluation(out: Path, data: Path, runs: Path) -> None:
    """What ``perfuse evaluate`` leaves."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        shutil.copytree(data / "hub", folder / "hub")
        shutil.copytree(runs / "mlp", folder / "mlp")
        perfuse_command("evaluate", "mlp", "hub", "--out", "evaluation", "--no-baselines", "--quiet", cwd=folder)
        shutil.copytree(folder / "evaluation", out, dirs_exist_ok=True)


def make_exports(out: Path, data: Path, runs: Path) -> None:
    """``perfuse export`` to both formats, on curves at even times."""
    table = simulate_task("T2", 4, seed=3)
    at = np.arange(0, table.time_h.shape[1], 25)
    table = replace(
        table, time_h=table.time_h[:, at], conc_mg_l=table.conc_mg_l[..., at], censored=table.censored[..., at]
    )
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        write_dataset([table], folder / "even", generator={"task": "T2"}, seed=3)
        shutil.copytree(runs / "loglinear-rates", folder / "run")
        for kind in ("onnx", "pt2"):
            perfuse_command("export", "run", f"model.{kind}", "--data", "even", "--to", kind, "--quiet", cwd=folder)
            packed = gzip.compress((folder / f"model.{kind}").read_bytes(), mtime=0)  # mostly names: a twentieth
            (out / f"model.{kind}.gz").write_bytes(packed)
        from perfuse.models.exported import INPUTS, tensors_of
        from perfuse.training.load import load_model

        batch = to_batch(table)
        with torch.inference_mode():
            conc = load_model(folder / "run").model(batch).numpy()
    inputs = {name: tensor.numpy() for name, tensor in zip(INPUTS, tensors_of(batch), strict=True)}
    np.savez_compressed(out / "expected.npz", **inputs, conc_mg_l=conc)


def schema_versions() -> dict[str, int]:
    """Schema version of each kind of artifact in this version of Perfuse."""
    from perfuse.data import store
    from perfuse.evaluation import evaluate, export
    from perfuse.training import record

    return {
        "dataset": store.SCHEMA_VERSION, "checkpoint": record.SCHEMA_VERSION, "evaluation": evaluate.SCHEMA_VERSION,
        "export": export.SCHEMA_VERSION,
    }  # fmt: skip


def main() -> None:
    """Make what was asked for."""
    parser = argparse.ArgumentParser(description="Write one small artifact of every kind.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--commit", required=True, help="of the version that is installed")
    parser.add_argument("--cases", default=",".join(CASES), help="runs to keep")
    parser.add_argument("--only", default="dataset,checkpoint,evaluation,export")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    only, versions = options.only.split(","), schema_versions()
    folders = {kind: options.out.absolute() / f"{kind}-{version}" for kind, version in versions.items()}
    makers = {
        "dataset": lambda out: make_datasets(out),
        "checkpoint": lambda out: make_checkpoints(out, folders["dataset"], options.cases.split(",")),
        "evaluation": lambda out: make_evaluation(out, folders["dataset"], folders["checkpoint"]),
        "export": lambda out: make_exports(out, folders["dataset"], folders["checkpoint"]),
    }
    for kind in only:
        folder = folders[kind]
        if folder.exists():
            raise SystemExit(f"{folder} exists: an artifact of a published version is never made again")
        folder.mkdir(parents=True)
        makers[kind](folder)
        about = {
            "perfuse": perfuse.__version__, "commit": options.commit, "python": platform.python_version(),
            "torch": torch.__version__, "numpy": np.__version__,
            "command": f"python scripts/make_artifacts.py OUT --commit {options.commit} --only {kind}",
        }  # fmt: skip
        (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

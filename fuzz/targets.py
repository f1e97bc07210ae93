"""Every reader as a function of bytes: it must return, or raise ``PerfuseError`` (of which ``InputError`` is one).

Most readers want a file's path: the bytes are written to one file of a folder (on a RAM disk where there is one), with
valid files beside it where the reader wants a folder. Hashes and sizes that an attacker can forge as well are put right
for the changed bytes, so that what lies behind them is reached.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from fuzz import seeds
from perfuse.errors import InputError

Read = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """A reader under test.

    Attributes:
        name: On the command line.
        kind: Of file: a key of ``mutate.EDITS``.
        seeds: Valid files.
        read: The reader.
    """

    name: str
    kind: str
    seeds: tuple[bytes, ...]
    read: Read


def _file(path: Path, read: Callable[[Path], object]) -> Read:
    def run(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return run


def _texts(*values: str) -> tuple[bytes, ...]:
    return tuple(value.encode() for value in values)


def _origin(folder: Path) -> Target:
    from perfuse.data.importers.origin import read_origin_npz

    read = _file(folder / "in.npz", read_origin_npz)
    return Target("origin-npz", "npz", (seeds.origin(), seeds.origin(compress=True)), read)


def _tidy(folder: Path, suffix: str) -> Target:
    from perfuse.data.importers.tidy import read_tidy

    text = (seeds.TIDY, seeds.TIDY_HUB)
    content = (
        tuple(map(seeds.parquet, text)) if suffix == "parquet" else _texts(*text, seeds.TIDY_HUB.replace(",", "\t"))
    )
    files = {name: _file(folder / f"in.{name}", read_tidy) for name in ("csv", "tsv", "parquet")}

    def read(data: bytes) -> None:
        files["tsv" if suffix == "csv" and b"\t" in data[:200] else suffix](data)

    return Target(f"tidy-{suffix}", "parquet" if suffix == "parquet" else "csv", content, read)


def _nonmem(folder: Path) -> Target:
    from perfuse.data.importers.nonmem import NonmemOptions, read_nonmem

    options = NonmemOptions(default_dose="oral", steady_state_doses=3)
    blanks = seeds.NONMEM.replace(",", " ").replace("\n", "\r\n")
    read = _file(folder / "in.csv", lambda path: read_nonmem(path, options))
    return Target("nonmem-csv", "csv", _texts(seeds.NONMEM, blanks), read)


def _nonmem_options(folder: Path) -> Target:
    from perfuse.data.importers.nonmem import NonmemOptions

    return Target(
        "nonmem-toml", "toml", _texts(seeds.NONMEM_OPTIONS), _file(folder / "o.toml", NonmemOptions.from_toml)
    )


def _human(folder: Path) -> Target:
    from perfuse.data.importers.human import read_observed
    from perfuse.pk.topology import get_topology

    read = _file(folder / "in.csv", lambda path: read_observed(path, get_topology("circulation")))
    return Target("human-csv", "csv", _texts(seeds.HUMAN), read)


def _drug_csv(folder: Path) -> Target:
    from perfuse.data.importers.drug_csv import read_drug_dose_csv
    from perfuse.pk.topology import get_topology

    times, topology = np.asarray([0.0, 1.0, 4.0]), get_topology("circulation")
    read = _file(folder / "in.csv", lambda path: read_drug_dose_csv(path, topology, times))
    return Target("drug-csv", "csv", _texts(seeds.DRUGS), read)


def _drug_toml(folder: Path) -> Target:
    from perfuse.data.drug_file import read_drug_file
    from perfuse.data.inputs import curve_table_for
    from perfuse.pk.topology import get_topology

    times, topology = np.asarray([0.0, 1.0, 4.0]), get_topology("circulation")

    def read(path: Path) -> None:
        drug, regimen = read_drug_file(path)
        if regimen.doses:
            weight = 70.0 if regimen.body_weight_kg is None else regimen.body_weight_kg
            curve_table_for(drug, topology, weight, regimen.doses, times, regimen.matrix or "plasma")

    return Target("drug-toml", "toml", _texts(seeds.DRUG), _file(folder / "in.toml", read))


def _config(folder: Path) -> Target:
    from perfuse.config import load_config
    from perfuse.training.config_file import config_toml

    read = _file(folder / "in.toml", lambda path: config_toml(load_config(path)))
    return Target("config-toml", "toml", _texts(seeds.CONFIG), read)


def _simulate(folder: Path) -> Target:
    from perfuse.cli_options import simulation_options

    read = _file(folder / "in.toml", lambda path: simulation_options({}, path))
    return Target("simulate-toml", "toml", _texts(seeds.SIMULATE), read)


def _study(folder: Path) -> Target:
    from perfuse.data import study_people
    from perfuse.data.study import read_study

    study_people.MAX_PEOPLE = 20  # sampling more takes long by intention
    (folder / "graph.toml").write_text(seeds.GRAPH)
    (folder / "drug.toml").write_text(seeds.STUDY_DRUG_FILE)
    return Target("study-toml", "toml", _texts(*seeds.STUDIES), _file(folder / "in.toml", read_study))


def _structure(folder: Path) -> Target:
    from perfuse.data.study import read_study

    studies = [folder / "graph-study.toml", folder / "body-study.toml"]
    for study, text in zip(studies, (seeds.STUDY_OF_GRAPH, seeds.STUDY_OF_EXTENSION), strict=True):
        study.write_text(text)

    def read(path: Path) -> None:
        is_extension = b"extends" in path.read_bytes()
        read_study(studies[is_extension])

    return Target("structure-toml", "toml", _texts(seeds.GRAPH, seeds.EXTENSION), _file(folder / "graph.toml", read))


def _read_dataset(folder: Path) -> None:
    from perfuse.data.sources import open_source

    source = open_source(folder)
    source.take(np.arange(len(source)))


def _manifest(folder: Path) -> Target:
    data = seeds.dataset(folder / "data")
    path = data / "manifest.json"
    content = path.read_bytes()
    return Target("manifest-json", "json", (content,), _file(path, lambda path: _read_dataset(data)))


def _shard(folder: Path) -> Target:
    data = seeds.dataset(folder / "data")
    manifest = json.loads((data / "manifest.json").read_text())

    def run(content: bytes) -> None:
        (data / "shard-00000.arrow").write_bytes(content)
        manifest["shards"][0] |= {"bytes": len(content), "sha256": sha256(content).hexdigest()}
        (data / "manifest.json").write_text(json.dumps(manifest))
        _read_dataset(data)

    return Target("shard-arrow", "bytes", ((data / "shard-00000.arrow").read_bytes(),), run)


def _remote(folder: Path) -> Target:
    import fsspec

    from perfuse.data.remote import _let_go, fetch_dataset

    data, memory = seeds.dataset(folder / "data"), fsspec.filesystem("memory")
    os.environ["PERFUSE_CACHE_DIR"] = str(folder / "cache")
    for shard in data.glob("*.arrow"):
        memory.pipe(f"/far/{shard.name}", shard.read_bytes())

    def run(content: bytes) -> None:
        memory.pipe("/far/manifest.json", content)
        try:
            fetch_dataset("memory://far")
        finally:
            _let_go()
            shutil.rmtree(folder / "cache", ignore_errors=True)

    return Target("remote-manifest", "json", ((data / "manifest.json").read_bytes(),), run)


def _nca(folder: Path, suffix: str) -> Target:
    from perfuse.evaluation.nca_file import nca_file

    content = seeds.parquet(seeds.PREDICTED) if suffix == "parquet" else seeds.PREDICTED.encode()
    read = _file(folder / f"in.{suffix}", lambda path: nca_file(path, folder / "out.csv", dose_mg=10.0, force=True))
    return Target(f"nca-{suffix}", "parquet" if suffix == "parquet" else "csv", (content,), read)


def _describe(path: Path) -> None:
    from perfuse.info import describe, lines, to_json

    facts = describe(path)
    to_json(facts).encode()
    "\n".join(lines(facts)).encode()


def _info_file(folder: Path, suffix: str) -> Target:
    content: tuple[bytes, ...] = {
        "npz": lambda: (seeds.origin(),),
        "csv": lambda: _texts(seeds.TIDY_HUB),
        "toml": lambda: _texts(seeds.DRUG, seeds.CONFIG),
        "parquet": lambda: (seeds.parquet(seeds.TIDY_HUB),),
        "safetensors": lambda: (seeds.run_files()["best/model.safetensors"],),
    }[suffix]()
    return Target(f"info-{suffix}", suffix, content, _file(folder / f"in.{suffix}", _describe))


def _info_run(folder: Path, name: str) -> Target:
    from perfuse.training import run_facts

    run_facts._WAIT_S = 0.0  # a checkpoint that is not there is looked for again after a while
    run = seeds.run_folder(folder / "run")
    seeds.calibrated(run / "best")
    kind = {"config.toml": "toml", "metrics.jsonl": "jsonl"}.get(name, "json")
    path = run / name
    if path.parent == run:  # its checkpoints are described elsewhere
        shutil.rmtree(run / "best")
        shutil.rmtree(run / "last")
    read = _file(path, lambda path: _describe(path.parent))
    content = _short_state(path) if path.name == "state.json" else path.read_bytes()
    return Target(f"info-{path.name}", kind, (content,), read)


def _info_dataset(folder: Path) -> Target:
    data = seeds.dataset(folder / "data")
    path = data / "manifest.json"
    return Target("info-manifest", "json", (path.read_bytes(),), _file(path, lambda path: _describe(data)))


def _space(folder: Path) -> Target:
    from perfuse.config import RunConfig
    from perfuse.tuning.space import load_space

    read = _file(folder / "space.toml", lambda path: load_space(path, RunConfig()).toml())
    return Target("sweep-space", "toml", _texts(seeds.SPACE), read)


def _sweep(folder: Path) -> Target:
    from perfuse.tuning.record import read_sweep

    return Target(
        "sweep-record", "json", _texts(seeds.SWEEP), _file(folder / "sweep.json", lambda _: read_sweep(folder))
    )


def _trials(folder: Path) -> Target:
    from perfuse.tuning.record import read_sweep, read_trials

    (folder / "sweep.json").write_text(seeds.SWEEP)
    space = read_sweep(folder)[1]
    read = _file(folder / "trials.jsonl", lambda _: read_trials(folder, space))
    return Target("sweep-trials", "jsonl", _texts(seeds.TRIALS), read)


def _metrics(folder: Path) -> Target:
    from perfuse.evaluation.report import metrics_lines
    from perfuse.training.logs import truncate_metrics

    def read(path: Path) -> None:
        metrics_lines(path)
        truncate_metrics(path, 15)

    return Target("metrics-jsonl", "jsonl", _texts(seeds.METRICS), _file(folder / "metrics.jsonl", read))


def _note(folder: Path) -> Target:
    from perfuse.data.simulation_target import LocalTarget

    target = LocalTarget(folder / "out")
    notes = target.work / "notes"
    notes.mkdir(parents=True)
    return Target("resume-note", "json", _texts(seeds.NOTE), _file(notes / "0.json", lambda _: target.note(0)))


def _request(folder: Path) -> Target:
    from perfuse.data.simulation_target import LocalTarget

    target = LocalTarget(folder / "out")
    target.work.mkdir()
    request = {"task": "T1", "n": 10, "seed": 0}

    def read(path: Path) -> None:
        with target.claimed(request):
            pass

    return Target("resume-request", "json", _texts(json.dumps(request)), _file(target.work / "request.json", read))


def _state(folder: Path) -> Target:
    from perfuse.training.load import load_model

    run = seeds.run_folder(folder / "run")
    path = run / "best" / "state.json"
    return Target("checkpoint-state", "json", (_short_state(path),), _file(path, lambda path: load_model(run)))


def _short_state(path: Path) -> bytes:
    """A checkpoint's state whose random generators take two lines rather than most of the file."""
    state = json.loads(path.read_text())
    state["rng"] = {"torch": {"$bytes": "AAE="}, "cuda": {"$tuple": []}, "python": {"$tuple": [3, {"$tuple": [1, 2]}]},
                    "numpy": {"$tuple": ["MT19937", {"$array": ["uint32", [1], "AQAAAA=="]}]}}  # fmt: skip
    return json.dumps(state).encode()


def _weights(folder: Path, name: str) -> Target:
    from perfuse.training.checkpoint import MODEL_FILE, _read_tensors, load_checkpoint
    from perfuse.training.load import check_weights, model_of

    best = seeds.run_folder(folder / "run") / "best"
    read = load_checkpoint(best)
    model = model_of(read)

    def run(data: bytes) -> None:
        (best / name).write_bytes(data)
        state = read.state.model_copy(update={"files": {name: sha256(data).hexdigest()}})
        tensors = _read_tensors(best, name, state)
        if name == MODEL_FILE:
            check_weights(model, tensors, str(best))

    return Target(f"checkpoint-{name.removesuffix('.safetensors')}", "safetensors", ((best / name).read_bytes(),), run)


def _calibration(folder: Path, name: str) -> Target:
    from perfuse.evaluation.runs import open_run

    run = seeds.run_folder(folder / "run")
    seeds.calibrated(run / "best")
    path = run / "best" / name
    record = run / "best" / "calibration.json"
    text = record.read_text()

    from perfuse.pk.topology import get_topology
    from perfuse.training.calibration_file import load_calibration

    opened = open_run(run)
    topology = get_topology(opened.topology.name)
    before = json.loads(text)["calibration_sha256"]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        if path != record:
            record.write_text(text.replace(before, sha256(data).hexdigest()))
        load_calibration(run / "best", opened.weights_hash, topology)

    kind = "json" if path == record else "safetensors"
    return Target(f"calibration-{'record' if path == record else 'tensors'}", kind, (path.read_bytes(),), read)


def _distance(folder: Path) -> Target:
    from perfuse.evaluation.runs import open_run
    from perfuse.training.distance_file import DISTANCE_FILE, load_distance

    run = seeds.run_folder(folder / "run")
    opened = open_run(run, with_calibration=False)
    path = run / DISTANCE_FILE
    content = path.read_bytes()
    read = _file(path, lambda path: load_distance(run, opened.training_key, opened.topology))
    return Target("distance", "safetensors", (content,), read)


def _rates(folder: Path) -> Target:
    from perfuse.data.simulate import simulate_task
    from perfuse.evaluation import rates_baseline
    from perfuse.evaluation.runs import open_run

    model = open_run(seeds.run_folder(folder / "run"), with_calibration=False).model
    path, table = folder / "kept.safetensors", simulate_task("T1", 2, seed=0)
    rates_baseline._save(path, rates_baseline.RatesBaseline(model, {"steps": 1}))
    read = _file(path, lambda path: rates_baseline._load(path, table))
    return Target("rates-baseline", "safetensors", (path.read_bytes(),), read)


def _evaluation(folder: Path, name: str) -> Target:
    from perfuse.evaluation import results
    from perfuse.evaluation.stored import check_evaluation

    stored = seeds.evaluated(folder)
    path = stored / name

    def read(path: Path) -> None:
        """``load_evaluation`` reads both files: here only the one that changes."""
        try:
            if name.endswith("json"):
                check_evaluation(results._read_json(path), str(stored))
            else:
                results._read_curves(path)
        except MemoryError:  # taken for damage by the reader: here it says that memory was asked for
            raise
        except results._UNREADABLE as error:
            raise InputError("evaluation", "cannot be read", hint=str(error)) from None

    kind = "json" if name.endswith("json") else "npz"
    return Target(f"evaluation-{kind}", kind, (path.read_bytes(),), _file(path, read))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "origin-npz": _origin,
    "tidy-csv": lambda folder: _tidy(folder, "csv"),
    "tidy-parquet": lambda folder: _tidy(folder, "parquet"),
    "nonmem-csv": _nonmem,
    "nonmem-toml": _nonmem_options,
    "human-csv": _human,
    "drug-csv": _drug_csv,
    "drug-toml": _drug_toml,
    "config-toml": _config,
    "simulate-toml": _simulate,
    "study-toml": _study,
    "structure-toml": _structure,
    "manifest-json": _manifest,
    "shard-arrow": _shard,
    "remote-manifest": _remote,
    "nca-csv": lambda folder: _nca(folder, "csv"),
    "nca-parquet": lambda folder: _nca(folder, "parquet"),
    "info-npz": lambda folder: _info_file(folder, "npz"),
    "info-csv": lambda folder: _info_file(folder, "csv"),
    "info-toml": lambda folder: _info_file(folder, "toml"),
    "info-parquet": lambda folder: _info_file(folder, "parquet"),
    "info-safetensors": lambda folder: _info_file(folder, "safetensors"),
    "info-state": lambda folder: _info_run(folder, "best/state.json"),
    "info-config": lambda folder: _info_run(folder, "config.toml"),
    "info-metrics": lambda folder: _info_run(folder, "metrics.jsonl"),
    "info-calibration": lambda folder: _info_run(folder, "best/calibration.json"),
    "info-provenance": lambda folder: _info_run(folder, "provenance.json"),
    "info-manifest": _info_dataset,
    "sweep-space": _space,
    "sweep-record": _sweep,
    "sweep-trials": _trials,
    "metrics-jsonl": _metrics,
    "resume-note": _note,
    "resume-request": _request,
    "checkpoint-state": _state,
    "checkpoint-model": lambda folder: _weights(folder, "model.safetensors"),
    "checkpoint-optimizer": lambda folder: _weights(folder, "optimizer.safetensors"),
    "calibration-record": lambda folder: _calibration(folder, "calibration.json"),
    "calibration-tensors": lambda folder: _calibration(folder, "calibration.safetensors"),
    "distance": _distance,
    "rates-baseline": _rates,
    "evaluation-json": lambda folder: _evaluation(folder, "evaluation.json"),
    "evaluation-npz": lambda folder: _evaluation(folder, "evaluation_curves.npz"),
}
"""Name -> what makes the target, given an empty folder of its own."""


def target(name: str, folder: Path) -> Target:
    """The target of that name, its files below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    return TARGETS[name](folder)

"""Judging runs: which curves count, what is written, what the verdict says, what is refused."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from perfuse.data.simulation import simulate_dataset
from perfuse.data.sources import open_source
from perfuse.data.store import write_dataset
from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation.evaluate import evaluate_run, model_predictor
from perfuse.evaluation.files import strict_json, write_json
from perfuse.evaluation.results import load_evaluation
from perfuse.evaluation.runs import open_run
from perfuse.evaluation.table import print_evaluation

DESIGN_KEYS = {
    "gmfe", "within_1_25", "within_1_5", "within_2", "r2", "rmse", "mae", "mape", "n_curves", "n_values", "per_organ",
    "windows", "exposure", "baselines", "beats_baselines",
}  # fmt: skip
Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 curves of another seed."""
    return simulate_dataset("T1", 20, 7, tmp_path_factory.mktemp("fresh") / "fresh").path


def printed(evaluation: object, details: bool = False) -> str:
    text = io.StringIO()
    print_evaluation(evaluation, Console(width=400, file=text), details=details)  # type: ignore[arg-type]
    return text.getvalue()


def test_own_data_means_the_test_split_alone(rates_run: Path, t1_dataset: Path) -> None:
    e = evaluate_run(rates_run, t1_dataset)
    assert e["n_curves"] == 8 == e["n_drugs"] and e["data"]["scope"] == "test split"
    assert e["data"]["curves_excluded"] == {"in the training or validation split of this run": 32}
    assert DESIGN_KEYS <= set(e) and (e["gmfe"] or 9) < 1.001 and e["beats_baselines"] is True
    assert set(e["baselines"]) == {"mean-curve", "5-nearest", "log-linear"}  # not itself
    assert e["beats_loglinear_rates"] is None and e["baselines_unavailable"] == {}
    assert "Simulated data: not accuracy on people." in e["verdict"] and e["data"]["simulated"] is True
    assert any("only its test split counts" in note for note in e["notes"])
    stored, curves = load_evaluation(rates_run / "evaluation")
    assert stored["gmfe"] == e["gmfe"] and len(curves.curve_gmfe) == 8
    assert curves.density.sum() == e["n_values"] and set(curves.kind) == {"worst", "median", "best"}


def test_an_untrained_model_is_told_that_it_does_not_beat_the_baselines(untrained_run: Path, fresh: Path) -> None:
    e = evaluate_run(untrained_run, fresh)
    assert e["beats_baselines"] is False and e["beats_loglinear_rates"] is False
    assert "does NOT beat the trivial baselines" in e["verdict"] and "does NOT beat loglinear-rates" in e["verdict"]
    assert (e["baselines"]["loglinear-rates"]["gmfe"] or 9) < 1.001
    assert e["data"]["scope"] == "unseen curves" and e["n_curves"] == 20
    assert (untrained_run / "evaluation-fresh" / "evaluation.json").is_file()
    text = printed(e, details=True)
    assert "loglinear-rates" in text and "mean-curve" in text and "pancreas" in text and "12-24 h" in text
    assert text.rstrip().endswith("not accuracy on people.")


def test_baselines_see_the_training_split_only(
    rates_run: Path, t1_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def spy(table: CurveTable) -> list[object]:
        seen.extend(table.compound_id.tolist())
        return []

    monkeypatch.setattr("perfuse.evaluation.evaluate.fit_baselines", spy)
    evaluate_run(rates_run, t1_dataset, save=False)
    assert frozenset(seen) == open_run(rates_run).train_compounds and len(seen) == 28


def test_seen_compounds_and_seen_parameters_are_left_out_elsewhere(
    rates_run: Path, t1_dataset: Path, t1_table: CurveTable, tmp_path: Path
) -> None:
    run = open_run(rates_run)
    seen = np.isin(t1_table.compound_id, list(run.seen_compounds))
    renamed = t1_table.take(np.flatnonzero(seen)[:3])
    renamed = replace(renamed, compound_id=np.asarray(["x1", "x2", "x3"]))  # same drugs under other names
    both = write_dataset([t1_table], tmp_path / "a", generator={"task": "T1"}, seed=0)
    same = write_dataset([renamed], tmp_path / "b", generator={}, seed=None)
    e = evaluate_run(rates_run, both, save=False)
    assert e["n_curves"] == 8 and sum(e["data"]["curves_excluded"].values()) == 32  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="no curve that the run has not seen.*drug parameters.*: 3"):
        evaluate_run(rates_run, same, save=False)


def test_a_seen_compound_is_known_by_another_spelling(rates_run: Path, fresh: Path, tmp_path: Path) -> None:
    name = min(open_run(rates_run).seen_compounds)
    table = open_source(fresh).take([0, 1, 2])  # other parameters than any training curve
    spelled = replace(table, compound_id=np.asarray([name.lower(), f"(R)-{name}", "another"]))
    data = write_dataset([spelled], tmp_path / "a", generator={}, seed=None)
    assert name != name.lower()
    e = evaluate_run(rates_run, data, save=False)
    assert e["n_curves"] == 1
    assert e["data"]["curves_excluded"] == {"compound in the training or validation split of this run": 2}


def test_without_the_training_data_baselines_are_not_available(
    run_maker: Maker, t1_table: CurveTable, fresh: Path, tmp_path: Path
) -> None:
    run = run_maker(tmp_path / "run", t1_table, tmp_path / "gone", "mlp")
    e = evaluate_run(run, fresh, save=False)
    assert e["baselines"] == {} and e["beats_baselines"] is None and e["beats_loglinear_rates"] is None
    assert "not at hand" in e["baselines_unavailable"]["mean-curve"]
    assert any("could not be compared" in note for note in e["notes"])
    assert "No trivial baseline was available" in e["verdict"]
    assert "Not available: mean-curve, 5-nearest, log-linear, loglinear-rates" in printed(e)
    (tmp_path / "gone").mkdir()  # there, but no data set
    assert "cannot be read" in evaluate_run(run, fresh, save=False)["baselines_unavailable"]["mean-curve"]
    shutil.rmtree(tmp_path / "gone")
    shutil.copytree(fresh, tmp_path / "gone")  # a data set, but another
    assert "has changed" in evaluate_run(run, fresh, save=False)["baselines_unavailable"]["mean-curve"]


def test_other_runs_are_judged_on_the_same_curves(rates_run: Path, untrained_run: Path, fresh: Path) -> None:
    e = evaluate_run(rates_run, fresh, against=[untrained_run], save=False, baselines=False)
    alone = evaluate_run(untrained_run, fresh, save=False, baselines=False)
    assert e["against"]["mlp"]["gmfe"] == alone["gmfe"] and "mlp (other run)" in printed(e)
    twin = evaluate_run(rates_run, fresh, against=[untrained_run, untrained_run.parent / "untrained"], save=False,
                        baselines=False)  # fmt: skip
    assert list(twin["against"]) == [f"mlp in {untrained_run}"]  # one label twice: told apart by folder


def test_json_is_strict_and_complete(untrained_run: Path, fresh: Path, tmp_path: Path) -> None:
    e = evaluate_run(untrained_run, fresh, save=False)
    write_json(e, tmp_path / "deep" / "e.json")
    text = (tmp_path / "deep" / "e.json").read_text()
    back = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} in JSON"))
    assert DESIGN_KEYS <= set(back) and set(back["exposure"]) == {"cmax", "auc", "half_life"}
    assert {"gmfe", "within_2", "n"} <= set(back["exposure"]["cmax"])
    odd = {"a": float("nan"), "b": np.float64("inf"), "c": np.int64(3), "d": (1, np.nan)}
    assert json.loads(strict_json(odd)) == {"a": None, "b": None, "c": 3, "d": [1, None]}


def test_batches_do_not_matter_and_the_model_is_not_trained(untrained_run: Path, fresh: Path) -> None:
    calls: list[tuple[int, int]] = []
    a = evaluate_run(
        untrained_run, fresh, batch_size=7, save=False, baselines=False, progress=lambda *x: calls.append(x)
    )
    b = evaluate_run(untrained_run, fresh, batch_size=512, save=False, baselines=False)
    assert a["gmfe"] == pytest.approx(b["gmfe"], rel=1e-6) and calls == [(7, 20), (14, 20), (20, 20)]
    assert float(b["speed"]["predict_curves_per_s"] or 0) > 0
    run = open_run(untrained_run)
    run.model.train()
    predict = model_predictor(run.model)
    assert not run.model.training
    before = [p.clone() for p in run.model.parameters()]
    predict(open_source(fresh).take([0, 1]))
    assert all(p.grad is None for p in run.model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before, strict=True))


def test_results_of_two_data_sets_of_one_name_do_not_overwrite_each_other(untrained_run: Path, tmp_path: Path) -> None:
    for i in (1, 2):
        data = simulate_dataset("T1", 4, 100 + i, tmp_path / str(i) / "twin").path
        evaluate_run(untrained_run, data, baselines=False)
    assert len(list(untrained_run.glob("evaluation-twin*/evaluation.json"))) == 2


def test_out_chooses_the_folder(untrained_run: Path, fresh: Path, tmp_path: Path) -> None:
    evaluate_run(untrained_run, fresh, tmp_path / "mine", baselines=False)
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["evaluation.json", "evaluation_curves.npz"]
    (tmp_path / "file").write_text("")
    with pytest.raises(PerfuseError, match="cannot be written"):
        evaluate_run(untrained_run, fresh, tmp_path / "file" / "sub", baselines=False)


def test_bad_input_is_refused_in_one_line(
    rates_run: Path, untrained_run: Path, run_maker: Maker, t1_table: CurveTable, t2_table: CurveTable,
    t1_dataset: Path, tmp_path: Path,
) -> None:  # fmt: skip
    t2 = write_dataset([t2_table], tmp_path / "t2", generator={"task": "T2"}, seed=0)
    run2 = run_maker(tmp_path / "run2", open_source(t2), t2, "mlp")
    no_test = run_maker(tmp_path / "no_test", open_source(t1_dataset), t1_dataset, "mlp", test_fraction=0.0)
    (tmp_path / "x.txt").write_text("?")
    cases = [
        ((tmp_path / "none", t1_dataset), {}, "does not exist"),
        ((rates_run, tmp_path / "none"), {}, "does not exist"),
        ((rates_run, tmp_path / "none.csv"), {}, "does not exist"),
        ((rates_run, tmp_path / "x.txt"), {}, "unknown kind"),
        ((rates_run, t2), {}, "topology of the data does not match the run's"),
        ((rates_run, t1_dataset), {"against": [run2]}, "is on another topology"),
        ((rates_run, t1_dataset), {"batch_size": 0}, "batch_size"),
        ((rates_run, t1_dataset), {"device": "tpu"}, "--device is unknown"),
        ((no_test, t1_dataset), {}, "kept no test split"),
    ]
    for paths, options, match in cases:
        with pytest.raises(InputError, match=match) as error:
            evaluate_run(*paths, **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


def test_damaged_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="evaluation cannot be read"):
        load_evaluation(tmp_path)
    (tmp_path / "evaluation.json").write_text("{}")
    (tmp_path / "evaluation_curves.npz").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match="evaluation cannot be read"):
        load_evaluation(tmp_path)


def _arrays(folder: Path, **changes: object) -> None:
    """Write an evaluation's arrays again with some changed, or left out (None)."""
    with np.load(folder / "evaluation_curves.npz") as file:
        arrays = {**file, **changes}
    np.savez(folder / "evaluation_curves.npz", **{k: v for k, v in arrays.items() if v is not None})


def _bytes(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


def _cut(folder: Path, keep: float) -> None:
    whole = (folder / "evaluation_curves.npz").read_bytes()
    _bytes(folder, "evaluation_curves.npz", whole[: int(len(whole) * keep)])


def _huge_header(folder: Path) -> None:
    """An array that declares 8 TB and holds nothing."""
    with np.load(folder / "evaluation_curves.npz") as file:
        arrays = dict(file)
    arrays.pop("curve_gmfe")
    np.savez(folder / "evaluation_curves.npz", **arrays)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(folder / "evaluation_curves.npz", "a") as archive:
        archive.writestr("curve_gmfe.npy", header.getvalue())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: _cut(f, 0.5), "not a zip file"),
        (lambda f: _cut(f, 0.0), "not a zip file"),
        (lambda f: _bytes(f, "evaluation_curves.npz", b"\x93NUMPY\x01\x00"), "not a zip file"),
        (_huge_header, ""),
        (lambda f: _arrays(f, kind=None), "kind"),
        (lambda f: _arrays(f, kind=np.asarray(["worst", None], dtype=object)), "is no plain array"),
        (lambda f: _arrays(f, curve_gmfe=np.zeros((2, 2))), "curve_gmfe is float64 (2, 2)"),
        (lambda f: _arrays(f, case_true=np.zeros(3)), "case_true is float64 (3,)"),
        (lambda f: _arrays(f, case_gmfe=np.asarray(["a"])), "case_gmfe is <U1"),
        (lambda f: _arrays(f, log10_edges=np.zeros(281)), "log10_edges are not"),
        (lambda f: _arrays(f, density=np.full((280, 280), -1)), "density holds a negative count"),
        (lambda f: _arrays(f, case_time_h=-np.ones((6, 100))), "case_time_h"),
        (lambda f: _bytes(f, "evaluation.json", b"[1]"), "evaluation.json holds no object"),
        (lambda f: _bytes(f, "evaluation.json", b'{"gmfe": NaN}'), "not JSON compliant"),
        (lambda f: _bytes(f, "evaluation.json", b'{"verdict": "\\ud800"}'), "surrogates not allowed"),
        (lambda f: _bytes(f, "evaluation.json", b"[" * 100_000), "recursion"),
        (lambda f: _bytes(f, "evaluation.json", b"\xff"), "utf-8"),
        (lambda f: os.truncate(f / "evaluation.json", 2**28 + 1), "is larger than"),
    ],
)
def test_forged_results_are_refused_in_one_line(
    untrained_run: Path, t1_dataset: Path, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    if not (untrained_run / "evaluation" / "evaluation.json").is_file():
        evaluate_run(untrained_run, t1_dataset, baselines=False)
    folder = Path(shutil.copytree(untrained_run / "evaluation", tmp_path / "evaluation"))
    load_evaluation(folder)
    damage(folder)
    with pytest.raises(InputError, match="evaluation cannot be read") as error:
        load_evaluation(folder)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.real_data
def test_origin_file_and_measured_human_curves(
    rates_run: Path, perfuse_data: Path, run_maker: Maker, tmp_path: Path
) -> None:
    origin = perfuse_data / "origin" / "training_data.npz"
    e = evaluate_run(rates_run, origin, tmp_path / "o")
    assert e["n_curves"] == 100 and (e["gmfe"] or 9) < 1.01 and e["data"]["simulated"] is True
    human = evaluate_run(rates_run, perfuse_data / "human_iv_curves.csv", tmp_path / "h")
    assert human["data"]["simulated"] is False and "Measured human data." in human["verdict"]
    assert set(human["per_organ"]) == {"blood"} and human["n_drugs"] >= 5
    left_out = human["data"]["import"]["curves_left_out"]  # type: ignore[index]
    assert left_out["infusion without duration"] == 10
    assert human["n_curves"] + sum(left_out.values()) == human["data"]["import"]["curves_in_file"]  # type: ignore[index]
    assert any("left out by the importer" in n for n in human["notes"]) and (human["gmfe"] or 0) > 1.2

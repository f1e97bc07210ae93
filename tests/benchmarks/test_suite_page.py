"""Targets, tables, figures and pages, from results made up for the purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suite import page, tables
from benchmarks.suite.__main__ import DATA_MARKER, _data_folder, main, parse
from benchmarks.suite.figures import write_figures
from benchmarks.suite.plan import (
    BASELINES,
    PLAIN_BEST,
    PLAIN_SMALL,
    PYG_BEST,
    TIME_TASK,
    Job,
    Suite,
    load_suite,
    make_jobs,
)
from benchmarks.suite.results import Result, not_run
from benchmarks.suite.speed_results import read_speed
from benchmarks.suite.summary import LBFGS, TRAINED, Summary
from benchmarks.suite.targets import Target, all_targets
from benchmarks.time_to_accuracy import Reached
from perfuse.pk.physiology import ORGANS

GMFE = {"flux": 1.0015, "loglinear-rates": 1.0012, "recurrent": 1.2, "lstm": 1.3, "mlp": 1.1}


def _row(arm: str, test: str, gmfe: float, coverage: float | None = None) -> Result:
    told = None
    if coverage is not None:
        each = {"coverage_90": coverage, "fold_width_90": 1.1}
        told = {"calibrated": True, "overall": each, "per_organ": dict.fromkeys(ORGANS, each), "windows": {}}
    summary = {"gmfe": gmfe}
    return {
        "arm": arm, "test": test, "gmfe": gmfe, "bias": 1.0, "within_1_25": 0.99, "within_1_5": 1.0, "within_2": 1.0,
        "r2": 0.999, "r2_log": 0.999, "mape": 1.0, "per_organ": dict.fromkeys(ORGANS, gmfe), "windows": {"0-1 h": gmfe},
        "exposure": {"cmax": summary, "auc": summary}, "predict_curves_per_s": 1000.0, "coverage": told,
    }  # fmt: skip


def _done(job: Job, changes: dict[tuple[str, str], float]) -> Result:
    result = not_run(job, "done") | {
        "seconds": 1.0, "started_utc": f"2026-01-0{job.seed}", "load_average_1_min": 0.1,
        "training": {"seconds": 30.0, "curves_per_s": 5000.0, "peak_rss_mb": 400.0},
    }  # fmt: skip
    if job.task == TIME_TASK:
        slow = job.arm in (PLAIN_SMALL, PLAIN_BEST, PYG_BEST)
        reached = Reached(job.arm, 8, 1.05, 600.0, None if slow else 3.0, 600.0 if slow else 3.0, 10, [(3.0, 1.04)])
        return result | {"reached": vars(reached)}
    if job.arm == BASELINES:
        arms = {"mean-curve": 2.6, "5-nearest": 1.5, "loglinear-rates": 1.0000001}
        result["unavailable"] = {"log-linear": "too few curves"}
    else:
        arms = {job.arm: changes.get((job.task, job.arm), GMFE.get(job.arm, 1.5)) + 1e-4 * job.seed}
        learned = {"mean": 0.99, "least": 0.98, "greatest": 1.0}
        result["elasticities"] = {"flow": learned, "volume": learned} if job.arm == "flux" else {}
    coverage = 0.9 if job.kind == "model" else None
    result["rows"] = [_row(arm, test, gmfe, coverage) for arm, gmfe in arms.items() for test in job.tests]
    return result


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite()


def _summary(suite: Suite, changes: dict[tuple[str, str], float] | None = None, **replaced: Any) -> Summary:
    results = [_done(job, changes or {}) for job in make_jobs(suite, "full")]
    for result in results:
        if replaced and (result["job"]["task"], result["job"]["arm"]) == replaced["of"]:
            result |= {"rows": [], "status": replaced["status"], "reason": replaced["reason"]}
    return Summary(suite, results)


def _without(suite: Suite, task: str, arm: str, seed: int, status: str) -> Summary:
    """A summary where one job has no result."""
    results = [_done(job, {("T7", "flux"): 0.9, ("T2", "flux"): 1.0}) for job in make_jobs(suite, "full")]
    for i, result in enumerate(results):
        job = result["job"]
        if (job["task"], job["arm"], job["seed"]) == (task, arm, seed):
            results[i] = {"job": job, "status": status, "reason": "why", "rows": []}
    return Summary(suite, results)


def _target(summary: Summary, name: str) -> Target:
    found = [t for t in all_targets(summary) if t.name == name]
    assert len(found) == 1, name
    return found[0]


def test_targets_count_on_the_worst_seed(suite: Suite) -> None:
    summary = _summary(suite)
    assert _target(summary, "`flux` on T1-18000").met is True  # 1.0018 with seed 3, 1.003 allowed
    assert _target(summary, "`flux` on T2").measured.startswith("1.00180")
    assert _target(_summary(suite, {("T2", "flux"): 1.0018}), "`flux` on T2").met is False  # 1.0019, 1.0020, 1.0021


def test_level_is_held_against_the_better_fit(suite: Suite) -> None:
    target = _target(_summary(suite), "`flux` level with `loglinear-rates` on T2")
    assert target.met is False and "L-BFGS" in target.measured  # 1.0017 beside 1.0000001
    assert _target(_summary(suite, {("T2", "flux"): 1.0007}), target.name).met is True


def test_ahead_is_of_everything(suite: Suite) -> None:
    target = _target(_summary(suite), "`flux` ahead of everything on T7")
    assert target.met is False and "loglinear-rates, L-BFGS" in target.measured
    assert _target(_summary(suite, {("T7", "flux"): 0.9}), target.name).met is True


def test_no_result_is_no_success(suite: Suite) -> None:
    summary = _summary(suite, of=("T7", "flux"), status="refused", reason="descriptors are not modelled")
    target = _target(summary, "`flux` on T7")
    assert target.met is None and "descriptors are not modelled" in target.measured
    assert target.verdict == "**not measured**"
    assert any("T7: `flux` has no result" in line for line in tables.losses(summary))
    assert "refused: descriptors are not modelled" in tables.task_table(summary, suite.tasks[-1], "T7")
    assert not summary.unfinished(), "a refusal is a result"
    assert _summary(suite, of=("T7", "flux"), status="failed", reason="x").unfinished()


AHEAD, LEVEL = "`flux` ahead of everything on T7", "`flux` level with `loglinear-rates` on T2"
COVERAGE = "90% intervals of `{}` on T1, T2, T3, T4"


@pytest.mark.parametrize(
    ("task", "arm", "status", "target", "met"),
    [
        ("T7", "flux", "failed", AHEAD, None),
        ("T7", "flux", "refused", AHEAD, None),
        ("T7", "mlp", "not run", AHEAD, None),
        ("T7", "mlp", "crashed", AHEAD, None),
        ("T7", "mlp", "refused", AHEAD, True),
        ("T7", BASELINES, "failed", AHEAD, None),
        ("T2", "flux", "not run", LEVEL, None),
        ("T2", "loglinear-rates", "failed", LEVEL, None),
        ("T2", "loglinear-rates", "refused", LEVEL, True),
        ("T2", BASELINES, "not run", LEVEL, None),
        ("T2", "flux", "failed", "`flux` on T2", None),
        ("T3", "flux", "failed", COVERAGE.format("flux"), None),
        ("T3", "mlp", "refused", COVERAGE.format("mlp") + " in each organ", None),
        ("T3", "mlp", "refused", COVERAGE.format("lstm"), True),
        (TIME_TASK, PLAIN_BEST, "failed", f"time of `flux` to GMFE 1.05 on T1, beside the {PLAIN_BEST}", None),
        (TIME_TASK, "flux", "failed", f"time of `flux` to GMFE 1.05 on T1, beside the {PLAIN_BEST}", None),
    ],
)
def test_no_target_is_met_by_absence(
    suite: Suite, task: str, arm: str, status: str, target: str, met: bool | None
) -> None:
    whole = _without(suite, "", "", 0, status)
    assert _target(whole, target).met is True
    seed = 1 if task == TIME_TASK else 2
    found = _target(_without(suite, task, arm, seed, status), target)
    assert found.met is met
    assert met or ((arm in found.measured or arm == BASELINES) and f"{status}: why" in found.measured)


def test_a_task_or_an_organ_that_is_not_there_is_not_covered(suite: Suite) -> None:
    some = [_done(job, {}) for job in make_jobs(suite, "full", ["T1-18000", "T2", "T3"])]
    target = next(t for t in all_targets(Summary(suite, some)) if t.name == COVERAGE.format("flux"))
    assert target.met is None and "nothing of T4" in target.measured
    summary = _summary(suite)
    for result in summary.results:
        if (result["job"]["task"], result["job"]["arm"], result["job"]["seed"]) == ("T2", "flux", 3):
            told = result["rows"][0]["coverage"]
            told["per_organ"] = {o: v for o, v in told["per_organ"].items() if o != "liver"}
    target = _target(summary, COVERAGE.format("flux") + " in each organ")
    assert target.met is None and target.measured == "`flux` on T2: no result of seed 3"
    assert _target(summary, COVERAGE.format("flux")).met is True


def test_a_closed_fit_that_fails_is_no_refusal(suite: Suite) -> None:
    results = [_done(job, {("T7", "flux"): 0.9}) for job in make_jobs(suite, "full")]
    for result in results:
        job = result["job"]
        if (job["task"], job["arm"], job["seed"]) == ("T7", BASELINES, 2):
            result["rows"] = [row for row in result["rows"] if row["arm"] != "loglinear-rates"]
            result["unavailable"]["loglinear-rates"] = "its fit did not reach a finite error"
    target = _target(Summary(suite, results), AHEAD)
    assert target.met is None and "finite error" in target.measured


def test_coverage_and_time_targets(suite: Suite) -> None:
    summary = _summary(suite)
    found = {t.name: t for t in all_targets(summary)}
    coverage = [t for name, t in found.items() if name.startswith("90% intervals")]
    assert len(coverage) == 2 * len(suite.arms) and all(t.met for t in coverage)
    slow = found[f"time of `flux` to GMFE 1.05 on T1, beside the {PLAIN_SMALL}"]
    assert slow.met is True and slow.measured == "at least 200 times (a bound), 1 seed"
    for result in summary.results:
        if result["job"]["arm"] == PLAIN_SMALL:
            result["reached"]["trained_s"] = 60.0  # 20 times and going on: no verdict
    assert _target(summary, slow.name).met is None


def test_losses_are_said(suite: Suite) -> None:
    lines = tables.losses(_summary(suite))
    assert any(line.startswith("T2: `flux` (1.00170) loses to `loglinear-rates, L-BFGS` (1.00000)") for line in lines)
    assert any("by less than 0.001" in line for line in tables.losses(_summary(suite, {("T2", "flux"): 1.0002})))


def test_both_fits_of_loglinear_rates_have_a_row(suite: Suite) -> None:
    table = tables.task_table(_summary(suite), suite.tasks[3], "T2")
    assert f"| `{TRAINED}` | 1.0014 (1.0013-1.0015) |" in table
    assert f"| `{LBFGS}` | 1.0000 |" in table
    assert "| `log-linear` | not available: too few curves |" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_learned_and_ablations(suite: Suite) -> None:
    summary = _summary(suite)
    assert "| T2 | `flux` | 0.990 | 0.990 | not given | 0.020 |" in tables.learned_table(summary)
    assert "| T7 | message passing off | 1.5002 (1.5001-1.5003) |" in tables.ablations_table(summary)


def test_the_page_is_whole_without_any_result(suite: Suite, tmp_path: Path) -> None:
    summary = Summary(suite, [not_run(job) for job in make_jobs(suite, "quick")])
    args = parse(["--profile", "quick", "--out", str(tmp_path)])
    facts = page.run_facts(summary, args, 1.0)
    text = page.render(summary, facts, "img/")
    assert text.count("\n## ") == 0 and "0 of " in text and "have no result" in text
    assert all(t.met is None for t in all_targets(summary))
    assert write_figures(summary, tmp_path) == {}


def test_pages_and_figures(suite: Suite, tmp_path: Path) -> None:
    summary = _summary(suite)
    written = page.write_pages(summary, parse(["--out", str(tmp_path), "--speed", str(tmp_path / "none.json")]), 2.0)
    assert {path.name for path in written if path.suffix != ".svg"} == {"suite.md", "detail.md", "suite.json"}
    text = " ".join(written[0].read_text(encoding="utf-8").split())
    assert "arXiv 2510.22096v2" in text and "every 21 s and PyTorch Geometric every 6 s" in text
    assert "hidden size (64)" in text and "`flux` has 32" in text and "Unmeasured: no GPU" in text
    figures = {path: path.read_bytes() for path in (tmp_path / "img").iterdir()}
    assert {path.name for path in figures} == {f"suite-{name}.svg" for name in ("accuracy", "coverage", "time")}
    assert all(f"img/{path.name}" in text for path in figures)
    write_figures(summary, tmp_path / "img")
    assert {path: path.read_bytes() for path in figures} == figures


def test_targets_of_the_speed_benchmark_join(suite: Suite, tmp_path: Path) -> None:
    row = {
        "name": "flux", "batch_size": 256, "threads": 2, "curves_per_s": [1.0], "target": 500.0,
        "ratios": {"plain loop at batch 8": [400.0, 600.0, 450.0], "plain loop at its best": [150.0]},
    }  # fmt: skip
    found = {
        "machine": {"processor": "P", "cores_usable": 2, "created_utc": "now"}, "prediction": [],
        "training": [row, row | {"name": "mlp", "target": None}],
    }  # fmt: skip
    path = tmp_path / "speed.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    speed = read_speed(path)
    assert speed is not None and len(speed.targets) == 2
    assert speed.targets[0].met is False
    assert speed.targets[0].measured == "450 times (400-600); 150 times plain loop at its best"
    assert speed.targets[1].met is None and "that the network of `flux` adds" in speed.targets[1].name
    for added, met, measured in (([0.2, 0.5, 0.3], True, "30% (20% to 50%)"), ([0.31], False, "31% (31% to 31%)")):
        path.write_text(json.dumps(found | {"network_overhead": added}), encoding="utf-8")
        again = read_speed(path)
        assert again is not None and (again.targets[1].met, again.targets[1].measured) == (met, measured)
    summary = _summary(suite)
    facts = page.run_facts(summary, parse([]), 1.0)
    text = page.render(summary, facts, "img/", speed)
    assert "| training of `flux`, batch 256, 2 threads, beside plain loop at batch 8 |" in text
    assert "not been run beside this suite" in page.render(summary, facts, "img/")
    path.write_text("{}", encoding="utf-8")
    assert read_speed(path) is None and read_speed(tmp_path / "absent.json") is None


def test_only_what_is_between_the_markers_changes() -> None:
    text = f"# A\n\nkept\n\n{page.BEGIN}\nold\n{page.END}\n\nkept too\n"
    new = page.insert(text, "\nnew\n")
    assert new == f"# A\n\nkept\n\n{page.BEGIN}\n\nnew\n\n{page.END}\n\nkept too\n"
    assert page.insert(new, "new") == new
    for bad in (text.replace(page.END, ""), text + page.BEGIN, f"{page.END} {page.BEGIN}"):
        with pytest.raises(SystemExit, match="once each"):
            page.insert(bad, "new")


def test_the_documentation_has_a_place_for_it() -> None:
    page.insert((page.ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), "new")


@pytest.mark.parametrize(
    "arguments",
    [["--jobs", "0"], ["--docs", "--profile", "quick"], ["--docs", "--task", "T7"], ["--docs", "--arm", "mlp"]],
)
def test_bad_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2 and "error:" in capsys.readouterr().err


def test_dry_run_lists_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--out", str(tmp_path), "--task", "T7", "--arm", "flux"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("T7-flux-seed1") and "3 of 3 jobs are left" in out
    assert not list(tmp_path.iterdir())


def test_only_old_data_of_its_own_are_removed(tmp_path: Path) -> None:
    def folder(name: str, marked: bool) -> Path:
        path = tmp_path / "data" / name
        path.mkdir(parents=True)
        (path / "curves.parquet").touch()
        if marked:
            (path / DATA_MARKER).touch()
        return path

    old = folder("0123456789ab", marked=True)
    others = [folder("0123456789ac", marked=False), folder("mine", marked=True), folder("0123456789abc", marked=True)]
    current = _data_folder(tmp_path / "data")
    assert not old.exists() and all((other / "curves.parquet").is_file() for other in others)
    assert (current / DATA_MARKER).is_file()
    (current / "T1").mkdir()
    assert _data_folder(tmp_path / "data") == current and (current / "T1").is_dir()

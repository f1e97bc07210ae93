"""The page of a sweep: what it says, that it is self-contained, and where its lines lie."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from perfuse.tuning.charts import Axis, axis_of, loss_axis
from perfuse.tuning.page import optimism, summary, write_page
from perfuse.tuning.record import Ended, trial_folder
from perfuse.tuning.space import Choices, Range

pytest.importorskip("optuna", reason="optuna is an extra")


@pytest.fixture
def page(tmp_path: Path, opened: Any, run_all: Any, pretend: Any) -> tuple[Any, str]:
    """A sweep of 9 trials, one of them failed with markup in its reason, and its page."""

    def run(spec: Any, at_rung: Any) -> Any:
        if spec.number == 2:
            return Ended(number=2, status="failed", reason="<script>alert(1)</script>")
        folder = trial_folder(tmp_path, spec.number)
        folder.mkdir(parents=True)
        lines = [{"epoch": e, "step": e, "val_loss": 1 / e, "time_s": float(e)} for e in range(1, 11)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 1')
        return pretend(spec, at_rung)

    with opened(tmp_path, 9) as sweep:
        run_all(sweep, run)
        sweep.write_best()
        return sweep, write_page(sweep).read_text()


def charts_of(page: str) -> list[dict[str, Any]]:
    found = re.findall(r'class="chart".*?<script type="application/json">(.*?)</script>', page, re.S)
    return [json.loads(text) for text in found]


def test_it_is_honest_about_what_the_figure_is(page: tuple[Any, str]) -> None:
    sweep, text = page
    assert optimism(sweep) in text and summary(sweep)[0] in text
    assert "2 validation curves by which the choice was made" in text and "best of 8 trials" in text
    assert "The 2 test curves were not touched" in text


def test_it_loads_nothing_and_runs_only_its_own_scripts(page: tuple[Any, str]) -> None:
    _, text = page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and "default-src 'none'" in policy[1] and "unsafe-eval" not in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 2
    for script in scripts:
        assert f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}" in policy[1]
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="?http', text)
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_each_trial_has_a_line_dotted_where_it_was_terminated(page: tuple[Any, str]) -> None:
    sweep, text = page
    parallel, course = charts_of(text)
    lines = {t["name"]: t for t in parallel["data"] if t.get("name", "").startswith("trial ")}
    assert set(lines) == {f"trial {n}" for n in range(9)}
    for trial in sweep.trials:
        line = lines[f"trial {trial.number}"]
        expected = {"completed": "solid", "terminated": "dot", "failed": "dash"}[trial.ended.status]
        assert line["line"]["dash"] == expected
        assert len(line["y"]) == (2 if trial.ended.status == "failed" else 3)
        assert all(0 <= y <= 1 for y in line["y"])
    best = max(lines.values(), key=lambda line: line["line"]["width"])
    assert best["name"] == f"trial {sweep.best().number}" and best["y"][-1] == 0
    drawn = [t for t in course["data"] if t["mode"] == "lines"]
    assert len(drawn) == 8 and drawn[0]["x"][0] == 10 and drawn[0]["x"][-1] == 100 and drawn[0]["y"][-1] == 0.1
    assert course["layout"]["yaxis"]["type"] == "log"


def test_the_table_has_a_row_per_trial_the_best_first(page: tuple[Any, str]) -> None:
    sweep, text = page
    rows = re.findall(r"<tr[^>]*><td>(\d+)(?: \(base\))?</td>", text)
    assert sorted(map(int, rows)) == list(range(9)) and int(rows[-1]) == 2
    losses = [sweep.trials[int(n)].ended.val_loss for n in rows[:-1]]
    assert losses == sorted(losses)


def test_a_sweep_without_any_end_has_a_page_too(tmp_path: Path, opened: Any) -> None:
    with opened(tmp_path, 3) as sweep:
        sweep.next_trial()
        text = write_page(sweep).read_text()
    assert "1 not ended" in text and charts_of(text) == []


def test_axes_are_log_where_the_range_is() -> None:
    axis = axis_of(Range("optimizer.lr", 1e-4, 1e-2, log=True))
    assert axis.place(1e-3) == pytest.approx(0.5) and axis.ticks()[0][1] == "1e-4"
    assert axis_of(Range("model.layers", 1, 5, is_whole=True)).place(2) == 0.25
    assert axis_of(Choices("schedule.kind", ("cosine", "constant"))).ticks() == [(0.0, "cosine"), (1.0, "constant")]
    assert loss_axis([0.1, 10.0]).place(1.0) == pytest.approx(0.5)
    assert loss_axis([-1.0, 1.0]).place(0.0) == 0.5 and loss_axis([2.0]).place(2.0) == 0.5


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0.0, 0.2, False), (1, 3, False), (1e-6, 1e-2, True), (0.04138, 1.33, True), (2.0, 3.1, True)],
)
def test_ticks_keep_their_distance(low: float, high: float, log: bool) -> None:
    places = [place for place, _ in Axis("x", low, high, log).ticks()]
    assert places[0] == 0 and places[-1] == 1 and len(places) >= 3
    assert min(b - a for a, b in zip(places, places[1:], strict=False)) > 0.08

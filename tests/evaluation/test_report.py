"""The HTML report: self-contained, complete, escaped, readable."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation.charts import Chart, compact, literal, log_axis, log_range, script_json, show_number
from perfuse.evaluation.figures import FEW_VALUES, breakdown_chart, case_charts, loss_chart, scatter_chart
from perfuse.evaluation.report import build_report
from perfuse.evaluation.results import StoredCurves, load_evaluation
from perfuse.evaluation.stored import check_evaluation

Maker = Callable[..., Path]
VOID = {"meta", "br", "link", "img"}


def strings(content: object) -> list[str]:
    """Every string inside parsed JSON."""
    if isinstance(content, dict):
        return [s for v in content.values() for s in strings(v)]
    if isinstance(content, list):
        return [s for v in content for s in strings(v)]
    return [content] if isinstance(content, str) else []


class Checker(HTMLParser):
    """Collects text, attributes, scripts and tags left open; ``text`` holds no code, but what the charts say."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.code: list[str] = []
        self.figures: list[dict[str, list[dict[str, object]]]] = []
        self.labels: list[str] = []
        self.script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag == "script":
            self.script = dict(attrs).get("type") or "code"
        if dict(attrs).get("role") == "img":
            self.labels.append(dict(attrs).get("aria-label") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["script"]:
            self.text += data
        elif self.script == "code":
            self.code.append(data)
        else:
            assert self.script == "application/json"
            content = json.loads(data)
            if content.get("data"):
                self.figures.append(content)
                self.text += "\n".join(strings(content))


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.wrong == [] and checker.open == []
    return checker


@pytest.fixture(scope="module")
def page(untrained_run: Path) -> str:
    for folder in untrained_run.glob("evaluation*"):
        shutil.rmtree(folder)
    path = build_report(untrained_run)  # judges its own test split first
    assert path == untrained_run / "report.html"
    return path.read_text(encoding="utf-8")


def test_it_needs_nothing_from_outside(page: str) -> None:
    checker = check(page)
    ours = page.replace(get_plotlyjs().strip(), "")
    assert page.count(get_plotlyjs().strip()) == 1 and len(page) - len(ours) > 1_000_000
    assert not re.search(r"https?://|//cdn|@import|url\(", ours)
    assert [a for a in checker.attributes if a[1] in ("src", "href")] == []
    assert 10_000 < len(page) < 8_000_000 and len(ours) < 3_000_000


def test_its_policy_forbids_loads_and_lets_only_its_own_two_scripts_run(page: str) -> None:
    checker = check(page)
    policy = next(v for tag, k, v in checker.attributes if (tag, k) == ("meta", "content") and "default-src" in v)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(c.encode()).digest()).decode()}'" for c in checker.code]
    assert len(hashes) == 2 and rules["script-src"].split() == hashes
    assert rules["default-src"] == rules["connect-src"] == "'none'" and rules["img-src"] == "data:"


def test_it_says_everything_that_was_asked_for(page: str) -> None:
    checker = check(page)
    text = checker.text
    for words in (
        "does NOT beat the trivial baselines", "not accuracy on people", "Model against baselines", "mean-curve",
        "loglinear-rates", "Predicted against true", "predicted concentration, mg/L", "Error by organ", "pancreas",
        "Error by time since the first dose", "12-24 h", "worst: ", "median: ", "best: ", "Loss", "Learning rate",
        "Gradient norm", "optimiser step", "Configuration", 'name = "mlp"', "Provenance", "seed", "sha256",
        "torch", "perfuse train", "Limits", "Research software",
    ):  # fmt: skip
        assert words in text, words
    assert len(checker.figures) > 50 and 'lang="en"' in page and 'name="viewport"' in page
    assert len(checker.labels) == len(checker.figures) and all(": " in label for label in checker.labels)
    assert re.search(r"<noscript><p[^>]*>The charts of this report need JavaScript", page)


def test_names_from_data_are_escaped(run_maker: Maker, t1_table: CurveTable, tmp_path: Path) -> None:
    from perfuse.data.sources import open_source
    from perfuse.data.store import write_dataset

    evil = "<script>alert(1)</script>&\"'"
    names = np.asarray([f"{evil}{i}" for i in range(40)])
    drugs = np.asarray([f"</script><img src=x onerror=alert(3)>{i}" for i in range(40)])
    data = write_dataset(
        [replace(t1_table, curve_id=names, compound_id=drugs)], tmp_path / "data", generator={}, seed=0
    )
    run = run_maker(tmp_path / "run", open_source(data), data, "mlp")
    (run / "config.toml").write_text("# </pre><script>alert(2)</script>\n")
    page = build_report(run).read_text(encoding="utf-8")
    checker = check(page)
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "&lt;script&gt;alert(2)" in page
    assert "<img" not in page and "&lt;/script&gt;&lt;img src=x onerror=alert(3)&gt;" in page
    assert len(checker.code) == 2 and {tag for tag, _, _ in checker.attributes}.isdisjoint({"img", "a"})
    assert any("<script>alert(1)</script>&\"'" in label for label in checker.labels)


HOSTILE = "</script><img src=x>"


def test_names_in_figures_end_no_script_and_are_no_markup() -> None:
    """Inside a script element only ``<`` can do harm; in plotly's titles and names, tags would be markup."""
    metrics = {HOSTILE: {"gmfe": 1.5}, "<b>liver</b>": {"gmfe": 2.0}}
    chart = breakdown_chart({f"<!--{HOSTILE}": metrics, "other": metrics}, "Error")
    text = str(chart.json)
    assert not re.search("[<>&]", text)
    trace = json.loads(text)["data"][0]
    assert trace["name"] == "&lt;!--&lt;/script&gt;&lt;img src=x&gt;"
    assert trace["y"] == ["&lt;/script&gt;&lt;img src=x&gt;", "&lt;b&gt;liver&lt;/b&gt;"]
    raw = go.Figure(layout={"title": {"text": HOSTILE}})  # even a name that nobody made literal stays inside
    assert (
        "<" not in Chart("", "", raw).json and json.loads(Chart("", "", raw).json)["layout"]["title"]["text"] == HOSTILE
    )
    assert literal("a & <b>") == "a &amp; &lt;b&gt;"


def test_plotly_that_would_end_its_script_is_refused(
    run_maker: Maker, t1_table: CurveTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_maker(tmp_path / "run", t1_table, tmp_path / "gone", "mlp")
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "var a = '</script>';")
    with pytest.raises(PerfuseError, match="another version of plotly"):
        build_report(run)


def test_a_run_that_cannot_be_judged_says_so(run_maker: Maker, t1_table: CurveTable, tmp_path: Path) -> None:
    run = run_maker(tmp_path / "run", t1_table, tmp_path / "gone", "mlp")
    (run / "metrics.jsonl").unlink()
    (run / "config.toml").unlink()
    page = build_report(run).read_text(encoding="utf-8")
    text = check(page).text
    assert len(page) < 100_000 and "script-src &#39;none&#39;" in page  # no charts, so no plotly either
    assert "has not been judged: its training data is not at hand" in text
    assert "No training log" in text and "no config.toml" in text


def test_a_cut_metrics_line_is_skipped(run_maker: Maker, t1_table: CurveTable, tmp_path: Path) -> None:
    run = run_maker(tmp_path / "run", t1_table, tmp_path / "gone", "mlp")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"epoch": 21, "step": 210, "train_loss": null, "val_loss": null, "lr": 1e-3}\n')
        file.write('{"epoch": 22, "st')
    assert "21 validations, last in epoch 21" in check(build_report(run).read_text(encoding="utf-8")).text


def test_a_missing_run_or_damaged_evaluation_is_refused(run_maker: Maker, t1_table: CurveTable, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        build_report(tmp_path / "none")
    run = run_maker(tmp_path / "run", t1_table, tmp_path / "gone", "mlp")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "evaluation.json").write_text("{")
    with pytest.raises(InputError, match="evaluation cannot be read"):
        build_report(run)
    assert not (run / "report.html").exists()


def edited(run: Path, edit: Callable[[dict], object]) -> None:
    """Change the run's evaluation as a forger would."""
    path = run / "evaluation" / "evaluation.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    edit(stored)
    path.write_text(json.dumps(stored), encoding="utf-8")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda e: e.clear(), "schema_version is of another version of Perfuse (got none); allowed: 2"),
        (lambda e: e.update(schema_version=1), "schema_version is of another version of Perfuse (got 1)"),
        (lambda e: e.update(schema_version=True), "schema_version is of another version"),
        (lambda e: e.pop("speed"), "damaged: speed is missing"),
        (lambda e: e.update(speed=3), "damaged: speed is no object"),
        (lambda e: e["speed"].pop("batch_size"), "damaged: speed.batch_size is missing"),
        (lambda e: e.update(gmfe="good"), "damaged: gmfe is no float"),
        (lambda e: e.update(n_curves=1.5), "damaged: n_curves is no int"),
        (lambda e: e.update(n_values=10**30), "damaged: n_values is no int"),
        (lambda e: e.update(notes=[1]), "damaged: notes is no str"),
        (lambda e: e.update(notes="many"), "damaged: notes is no list"),
        (lambda e: e["per_organ"].update(liver=[]), "damaged: per_organ.liver is no object"),
        (lambda e: e["per_organ"]["liver"].pop("gmfe"), "damaged: per_organ.liver.gmfe is missing"),
        (lambda e: e["data"].update(simulated=[]), "damaged: data.simulated is no bool"),
        (lambda e: e["provenance"].update(packages=None), "damaged: provenance.packages is no object"),
        (lambda e: e["exposure"].pop("auc"), "damaged: exposure.auc is missing"),
        (lambda e: e["against"].update(x={}), "damaged: against.x.gmfe is missing"),
    ],
)
def test_forged_evaluations_are_refused_in_one_line(
    untrained_run: Path, page: str, tmp_path: Path, edit: Callable[[dict], object], says: str
) -> None:
    run = Path(shutil.copytree(untrained_run, tmp_path / "run"))
    edited(run, edit)
    with pytest.raises(InputError) as error:
        build_report(run)
    assert says in str(error.value) and str(run / "evaluation") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_baseline_without_an_exposure_is_refused(untrained_run: Path, page: str) -> None:
    stored, _ = load_evaluation(untrained_run / "evaluation")
    assert check_evaluation(stored, "here")["n_curves"] == 8
    stored["baselines"]["mean-curve"]["exposure"].pop("cmax")  # type: ignore[index]
    with pytest.raises(
        InputError, match=r"here: evaluation is damaged: baselines\.mean-curve\.exposure\.cmax is missing"
    ):
        check_evaluation(stored, "here")


def test_forged_logs_and_configurations_break_no_report(run_maker: Maker, t1_table: CurveTable, tmp_path: Path) -> None:
    run = run_maker(tmp_path / "run", t1_table, tmp_path / "gone", "mlp")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": "many", "epoch": 1}\n{"step": 1' + b"0" * 400 + b', "epoch": 1}\n\xff\n')
        file.write(b"[" * 100_000 + b'\n{"step": 300, "epoch": 30, "val_loss": {}, "train_loss": "\\ud800"}\n')
    (run / "config.toml").write_bytes(b"\xff\xfe")
    assert "21 validations, last in epoch 30 at step 300" in check(build_report(run).read_text(encoding="utf-8")).text


@pytest.mark.real_data
def test_measured_curves_are_drawn_as_points(rates_run: Path, perfuse_data: Path) -> None:
    from perfuse.evaluation.evaluate import evaluate_run

    evaluate_run(rates_run, perfuse_data / "human_iv_curves.csv", baselines=False)
    text = check(build_report(rates_run).read_text(encoding="utf-8")).text
    assert "measured curves it has not seen" in text and "One point per value" in text and "plasma" in text


@pytest.fixture(scope="module")
def stored(page: str, untrained_run: Path) -> StoredCurves:
    assert page
    return load_evaluation(untrained_run / "evaluation")[1]


def test_density_counts_every_value_in_its_place(stored: StoredCurves) -> None:
    total = int(stored.density.sum())
    assert total > FEW_VALUES
    chart = json.loads(scatter_chart(stored).json)
    heat, equal, above, below = chart["data"]
    counts = np.asarray(heat["customdata"])
    edges = np.asarray(heat["x"])
    assert (
        heat["type"] == "heatmap" and counts.sum() == total and len(edges) == len(counts) + 1 and heat["y"] == heat["x"]
    )
    shown = np.asarray(heat["z"], dtype=float)
    assert np.array_equal(np.isnan(shown), counts == 0)
    assert 10 ** shown[counts > 0] == pytest.approx(counts[counts > 0], rel=1e-3)
    # rows of a heatmap are y: the predicted values, as in the sample of pairs
    rows = np.histogram(stored.sample_pred, bins=edges)[0]
    columns = np.histogram(stored.sample_true, bins=edges)[0]
    assert (counts.sum(axis=1)[rows > 0] > 0).all() and (counts.sum(axis=0)[columns > 0] > 0).all()
    assert [line["y"][0] / line["x"][0] for line in (equal, above, below)] == pytest.approx([1, 2, 0.5], rel=1e-4)
    assert chart["layout"]["xaxis"]["range"] == chart["layout"]["yaxis"]["range"]


def test_few_values_are_points_and_none_is_no_error(stored: StoredCurves) -> None:
    few = np.zeros_like(stored.density)
    few[120, 121] = 3
    some = replace(stored, density=few, sample_true=np.full(3, 1e-3), sample_pred=np.array([1e-3, np.nan, 0.0]))
    points = json.loads(scatter_chart(some).json)["data"][0]
    assert points["mode"] == "markers" and points["x"] == [1e-3] * 3 and points["y"] == [1e-3, None, None]
    none = replace(stored, density=0 * few, sample_true=np.zeros(0), sample_pred=np.zeros(0))
    assert json.loads(scatter_chart(none).json)["layout"]["xaxis"]["range"] == [-1, 1]


def test_case_charts_show_what_counts(stored: StoredCurves) -> None:
    charts = case_charts(stored, 0)
    assert [c.title for c in charts][:3] == ["blood", "liver", "kidney"] and len(charts) == 14
    truth, prediction = json.loads(charts[1].json)["data"]
    true, scored = stored.case_true[0, 1], stored.case_scored[0, 1]
    assert [v is None for v in truth["y"]] == (~scored).tolist()  # t = 0 and below the LOQ: gaps
    assert [v for v in truth["y"] if v is not None] == pytest.approx(true[scored], rel=1e-4)
    assert truth["mode"] == "lines" and prediction["x"][0] > 0 and prediction["y"] == pytest.approx(
        stored.case_pred[0, 1][stored.case_time_h[0] > 0], rel=1e-4
    )  # fmt: skip
    few = np.zeros_like(stored.case_scored)
    few[0, :, 5:9] = True
    sparse = json.loads(case_charts(replace(stored, case_scored=few), 0)[0].json)["data"][0]
    assert sparse["mode"] == "markers" and len(sparse["x"]) == 4 and None not in sparse["y"]


def test_long_training_is_thinned_and_a_negative_loss_gets_a_linear_axis() -> None:
    lines = [{"step": i, "train_loss": 1.0 / (i + 1), "val_loss": None} for i in range(5000)]
    chart = json.loads(loss_chart(lines, "log_mse").json)
    assert len(chart["data"][0]["x"]) == 400 and chart["data"][0]["x"][-1] == 4999
    assert set(chart["data"][1]["y"]) == {None} and chart["layout"]["yaxis"]["type"] == "log"
    assert chart["layout"]["yaxis"]["title"]["text"] == "loss (log_mse)"
    negative = json.loads(loss_chart([*lines, {"step": 5000, "train_loss": -1.0}]).json)
    assert "type" not in negative["layout"]["yaxis"] and negative["data"][0]["y"][-1] == -1


@pytest.mark.parametrize(
    ("span", "ticks", "power"),
    [((0, 1.2), "D2", False), ((0.1, 0.5), "D1", False), ((-1.3, 2.3), 1, False), ((-9, 3), 2, True)],
)
def test_log_ticks_are_round(span: tuple[float, float], ticks: object, power: bool) -> None:
    axis = log_axis("mg/L", span)
    assert axis["dtick"] == ticks and ("exponentformat" in axis) == power
    assert axis["range"] == list(span) and axis["title"] == {"text": "mg/L"}


def test_axes_hold_their_values() -> None:
    low, high = log_range([3e-4, np.nan, 0.0, 20.0])
    assert 10**low < 3e-4 and 10**high > 20
    assert log_range([np.nan]) == log_range([]) == (-1, 1)
    flat = log_range([5.0, 5.0])
    assert flat[0] < np.log10(5) < flat[1]
    assert 10 ** log_range([1e-20, 1.0], decades=6)[0] > 1e-7


def test_numbers_are_compact_and_gaps_are_null() -> None:
    values = np.array([1 / 3, 123456.7, -2.0, 0.0, np.nan, np.inf])
    assert compact(values) == [0.33333, 123460.0, -2.0, 0.0, None, None]
    assert compact(values, positive=True) == [0.33333, 123460.0, None, None, None, None]
    with pytest.raises(ValueError, match="JSON compliant"):
        script_json([float("nan")])


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (12345, "1.23e4"), (1e-4, "1e-4"), (1e6, "1e6"), (1.5e-5, "1.5e-5")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert show_number(value) == text


def test_density_runs_from_light_to_dark(stored: StoredCurves) -> None:
    scale = json.loads(scatter_chart(stored).json)["data"][0]["colorscale"]
    channels = [int(color[1:3], 16) for _, color in scale]
    assert channels == sorted(channels, reverse=True) and [place for place, _ in scale][:: len(scale) - 1] == [0, 1]


def test_the_command_line_does_not_import_plotly() -> None:
    code = "import sys, perfuse.cli; sys.exit(any(m.split('.')[0] == 'plotly' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

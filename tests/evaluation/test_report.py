"""The HTML report: self-contained, complete, escaped, readable."""

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from perfuse.data.table import CurveTable
from perfuse.errors import InputError
from perfuse.evaluation.report import build_report
from perfuse.evaluation.svg import Axis, Plot, density_color, show_number

Maker = Callable[..., Path]
VOID = {"meta", "line", "path", "circle", "rect", "br", "link"}


class Checker(HTMLParser):
    """Collects text, attributes and tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, k, v or "") for k, v in attrs]
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
        self.text += data


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
    assert not re.search(r"https?://|//cdn|@import|url\(", page) and "<script" not in page
    assert [a for a in checker.attributes if a[1] in ("src", "href")] == []
    assert "default-src 'none'" in page and 10_000 < len(page) < 3_000_000


def test_it_says_everything_that_was_asked_for(page: str) -> None:
    text = check(page).text
    for words in (
        "does NOT beat the trivial baselines", "not accuracy on people", "Model against baselines", "mean-curve",
        "loglinear-rates", "Predicted against true", "predicted concentration, mg/L", "Error by organ", "pancreas",
        "Error by time since the first dose", "12-24 h", "worst: ", "median: ", "best: ", "Loss", "Learning rate",
        "Gradient norm", "optimiser step", "Configuration", 'name = "mlp"', "Provenance", "seed", "sha256",
        "torch", "perfuse train", "Limits", "Research software",
    ):  # fmt: skip
        assert words in text, words
    assert page.count("<svg viewBox") > 50 and 'lang="en"' in page and 'name="viewport"' in page
    assert page.count('role="img" aria-label="') == page.count("<svg viewBox")


def test_names_from_data_are_escaped(run_maker: Maker, t1_table: CurveTable, tmp_path: Path) -> None:
    from dataclasses import replace

    from perfuse.data.sources import open_source
    from perfuse.data.store import write_dataset

    evil = "<script>alert(1)</script>&\"'"
    names = np.asarray([f"{evil}{i}" for i in range(40)])
    data = write_dataset([replace(t1_table, curve_id=names)], tmp_path / "data", generator={}, seed=0)
    run = run_maker(tmp_path / "run", open_source(data), data, "mlp")
    (run / "config.toml").write_text("# </pre><script>alert(2)</script>\n")
    page = build_report(run).read_text(encoding="utf-8")
    check(page)
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "&lt;script&gt;alert(2)" in page


def test_a_run_that_cannot_be_judged_says_so(run_maker: Maker, t1_table: CurveTable, tmp_path: Path) -> None:
    run = run_maker(tmp_path / "run", t1_table, tmp_path / "gone", "mlp")
    (run / "metrics.jsonl").unlink()
    (run / "config.toml").unlink()
    text = check(build_report(run).read_text(encoding="utf-8")).text
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


@pytest.mark.real_data
def test_measured_curves_are_drawn_as_points(rates_run: Path, perfuse_data: Path) -> None:
    from perfuse.evaluation.evaluate import evaluate_run

    evaluate_run(rates_run, perfuse_data / "human_iv_curves.csv", baselines=False)
    text = check(build_report(rates_run).read_text(encoding="utf-8")).text
    assert "measured curves it has not seen" in text and "One point per value" in text and "plasma" in text


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0, 24, "h"), [0, 5, 10, 15, 20]),
        (Axis(0.05, 200, "mg/L", True), [0.1, 1, 10, 100]),
        (Axis(1.1, 4.0, "", True), [2]),
        (Axis(1e-9, 1e3, "", True), [1e-9, 1e-6, 1e-3, 1, 1e3]),
    ],
)
def test_ticks_are_round(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks(5) == pytest.approx(ticks)


def test_axes_hold_their_values() -> None:
    values = np.array([3e-4, np.nan, 0.0, 20.0])
    log, none = (Axis.around(v, "", log=True) for v in (values, [np.nan]))
    flat = Axis.around([5.0, 5.0], "")
    assert log.low < 3e-4 and log.high > 20 and 0 < float(log.at(20.0)) < 1
    assert flat.low < 5 < flat.high and none.log and Axis.around([], "").high == 1
    assert Axis.around([1e-20, 1.0], "", log=True, decades=6).low > 1e-7


def test_lines_break_at_gaps_and_marks_carry_tooltips() -> None:
    plot = Plot(Axis(0, 4, "x"), Axis(1, 10, "y", True), "a & b", "what <it> shows")
    plot.line(np.arange(5.0), np.array([1.0, 2, np.nan, 4, 0]), "#000", "s")
    plot.points(np.array([1.0, np.nan]), np.array([2.0, 2.0]), "#000", "p", ["tip <1>", "never"], "diamond")
    svg = str(plot.render())
    assert re.search(r'd="M[\d. ]+L[\d. ]+M[\d. ]+"', svg) and svg.count("<title>") == 1
    assert "tip &lt;1&gt;" in svg and "a &amp; b: what &lt;it&gt; shows" in svg and "never" not in svg


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (12345, "1.23e4"), (1e-4, "1e-4"), (1e6, "1e6"), (1.5e-5, "1.5e-5")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert show_number(value) == text


def test_density_runs_from_light_to_dark() -> None:
    channels = [int(density_color(s)[1:3], 16) for s in (0, 0.3, 0.6, 1.0)]
    assert channels == sorted(channels, reverse=True) and density_color(-1) == density_color(0)

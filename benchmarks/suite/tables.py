"""Tables of the page, as Markdown. An arm without a result keeps its row, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.common import Spread, markdown_table, number
from benchmarks.suite.learned import TEXTBOOK
from benchmarks.suite.plan import FLUX_ADAMW, PLAIN_BEST, PLAIN_SMALL, PYG_BEST, TIME_TASK, Task, ablation_arm
from benchmarks.suite.summary import COVERED, FLUX, LBFGS, LOGLINEAR, TRAINED, TRIVIAL, Summary
from benchmarks.suite.targets import LEVEL_TOLERANCE, Target, as_reached
from benchmarks.time_to_accuracy import ratio_text
from perfuse.evaluation.metrics import WINDOWS
from perfuse.pk.physiology import ORGANS


def spread_text(spread: Spread | None, form: Callable[[float], str]) -> str:
    """``median (least-greatest)``; a dash for nothing."""
    if spread is None:
        return "-"
    middle, low, high = form(spread.median), form(spread.low), form(spread.high)
    return middle if low == high else f"{middle} ({low}-{high})"


def gmfe_text(spread: Spread | None) -> str:
    """Four decimals, fewer for what is far off."""
    return spread_text(spread, lambda v: f"{v:.4f}" if v < 2 else f"{v:.2f}" if v < 1000 else f"{v:.3g}")


def percent(value: float) -> str:
    """Of a share."""
    return f"{value:.1%}"


def targets_table(targets: Sequence[Target]) -> str:
    """All targets."""
    return markdown_table(
        ("target", "demanded", "measured", ""), [(t.name, t.limit, t.measured, t.verdict) for t in targets]
    )


def task_table(summary: Summary, task: Task, test: str) -> str:
    """Every arm on one test set."""
    header = (
        "model", "GMFE", "within 1.25x", "within 2x", "R2 (mg/L)", "MAPE, %", "Cmax GMFE", "AUC GMFE", "trained, s",
        "training curves/s", "prediction curves/s", "peak memory, MB",
    )  # fmt: skip
    rows = []
    for arm in summary.arms(task):
        if summary.gmfe(task.id, arm, test) is None:
            rows.append((f"`{arm}`", summary.missing(task.id, arm) or "no result", *[""] * (len(header) - 2)))
            continue

        def of(*path: str, arm: str = arm) -> Spread | None:
            return summary.spread(task.id, arm, test, *path)

        middle = (of("within_1_25"), of("within_2"))
        rows.append((
            f"`{arm}`", gmfe_text(of("gmfe")), *("-" if s is None else percent(s.median) for s in middle),
            _median(of("r2"), "{:.5f}", 10), _median(of("mape"), "{:.2f}", 1e4),
            _median(of("exposure", "cmax", "gmfe"), "{:.4f}", 10), _median(of("exposure", "auc", "gmfe"), "{:.4f}", 10),
            _median(of("training", "seconds"), "{:.0f}"), _rate(of("training", "curves_per_s")),
            _rate(of("predict_curves_per_s")), _median(of("training", "peak_rss_mb"), "{:.0f}"),
        ))  # fmt: skip
    return markdown_table(header, rows)


def _median(spread: Spread | None, form: str, most: float = float("inf")) -> str:
    """The median, with three digits alone where it is greater than ``most``."""
    if spread is None:
        return ""
    return (form if abs(spread.median) <= most else "{:.3g}").format(spread.median)


def _rate(spread: Spread | None) -> str:
    return "" if spread is None else number(spread.median)


def losses(summary: Summary) -> list[str]:
    """Sentences: on which test sets `flux` is worse than a baseline or another model, by medians."""
    out = []
    for task in summary.tasks:
        for test in task.tests:
            flux = summary.gmfe(task.id, FLUX, test)
            if flux is None:
                out.append(
                    f"{_named(task, test)}: `flux` has no result ({summary.missing(task.id, FLUX) or 'no reason'})."
                )
                continue
            better = {a: s for a in summary.arms(task) if a != FLUX and (s := summary.gmfe(task.id, a, test))}
            better = {a: s for a, s in better.items() if s.median < flux.median}
            if better:
                level = all(flux.median <= s.median + LEVEL_TOLERANCE for s in better.values())
                names = ", ".join(
                    f"`{a}` ({s.median:.5f})" for a, s in sorted(better.items(), key=lambda i: i[1].median)
                )
                margin = f", by less than {LEVEL_TOLERANCE:g}" if level else ""
                out.append(f"{_named(task, test)}: `flux` ({flux.median:.5f}) loses to {names}{margin}.")
    return out


def _named(task: Task, test: str) -> str:
    return task.id if test == task.data else f"{task.id}, tested on {test}"


def ablations_table(summary: Summary) -> str:
    """`flux` whole and with each part off, beside what is left without any network; GMFE."""
    rows = []
    tasks = {name for a in summary.suite.ablations for name in a.tasks}
    for task in (t for t in summary.tasks if t.id in tasks):
        arms = [FLUX, *(ablation_arm(a) for a in summary.suite.ablations if task.id in a.tasks), *LOGLINEAR]
        for arm in arms:
            spread = summary.gmfe(task.id, arm, task.tests[0])
            found = gmfe_text(spread) if spread else (summary.missing(task.id, arm) or "not in this run")
            rows.append((task.id, "whole" if arm == FLUX else arm.removeprefix("flux: "), found))
    return markdown_table(("task", "`flux`", "GMFE"), rows)


def learned_table(summary: Summary) -> str:
    """Elasticities of the rate out of a tissue beside the textbook's."""
    rows = [("textbook", "", *(f"{value:g}" for value in TEXTBOOK.values()), "")]
    for task in summary.tasks:
        for arm in (FLUX, TRAINED, LBFGS):
            results = [r for r in summary.of_arm(task.id, arm) if r.get("elasticities")]
            if not results:
                continue
            columns, widest = [], 0.0
            for name in TEXTBOOK:
                found = [r["elasticities"][name] for r in results if name in r["elasticities"]]
                columns.append(
                    spread_text(Spread.of([f["mean"] for f in found]), lambda v: f"{v:.3f}") if found else "not given"
                )
                widest = max([widest, *(f["greatest"] - f["least"] for f in found)])
            rows.append((task.id, f"`{arm}`", *columns, f"{widest:.3f}"))
    return markdown_table(("task", "model", *TEXTBOOK, "widest range over tissues"), rows)


def coverage_table(summary: Summary) -> str:
    """Coverage of every model on every test set: overall, least and most covered organ, and how wide intervals are."""
    rows = []
    for task in summary.tasks:
        for test in task.tests:
            for arm in (a for a in summary.arms(task) if a not in TRIVIAL and a != LBFGS):
                overall = summary.spread(task.id, arm, test, *COVERED)
                if overall is None:
                    continue
                organs = {
                    organ: spread for organ in ORGANS
                    if (spread := summary.spread(task.id, arm, test, "coverage", "per_organ", organ, COVERED[-1]))
                }  # fmt: skip
                least = min(organs, key=lambda o: organs[o].low)
                most = max(organs, key=lambda o: organs[o].high)
                width = summary.spread(task.id, arm, test, "coverage", "overall", "fold_width_90")
                rows.append((
                    _named(task, test), f"`{arm}`", spread_text(overall, percent),
                    f"{percent(organs[least].low)} ({least})", f"{percent(organs[most].high)} ({most})",
                    _median(width, "{:.6g}"),
                ))  # fmt: skip
    header = ("task", "model", "90 % intervals cover", "least covered organ", "most covered organ", "upper / lower end")
    return markdown_table(header, rows)


def time_table(summary: Summary) -> str:
    """Time to accuracy."""
    found = {arm: as_reached(values) for arm, values in summary.reached().items()}
    rows, references = [], (PLAIN_SMALL, PLAIN_BEST, PYG_BEST)
    for arm in (FLUX, FLUX_ADAMW, *references):
        if arm not in found:
            rows.append(
                (f"`{arm}`" if arm == FLUX else arm, "", summary.missing(TIME_TASK, arm) or "no result", "", "")
            )
            continue
        reached = found[arm]
        faster = ratio_text(reached, found[FLUX]) if arm in references and FLUX in found else ""
        name = f"`{arm}`" if arm == FLUX else arm
        rows.append((name, str(reached.batch_size), reached.text(), f"{reached.curves:,}", faster))
    return markdown_table(("arm", "batch", "training time", "curves gone through", "`flux` is faster by"), rows)


def detail_table(summary: Summary, task: Task, test: str, kind: str) -> str:
    """Median GMFE of every arm per organ (``per_organ``) or time window (``windows``)."""
    names = ORGANS if kind == "per_organ" else tuple(w[0] for w in WINDOWS)
    columns = [n for n in names if any(summary.spread(task.id, a, test, kind, n) for a in summary.arms(task))]
    rows = []
    for arm in summary.arms(task):
        spreads = [summary.spread(task.id, arm, test, kind, name) for name in columns]
        if any(spreads):
            rows.append((f"`{arm}`", *(_short(spread) for spread in spreads)))
    return markdown_table(("model", *columns), rows)


def _short(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:.4f}" if spread.median < 2 else f"{spread.median:.2f}"

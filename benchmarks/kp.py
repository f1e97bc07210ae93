"""Predicted tissue:plasma partition coefficients against measured ones, beside trivial baselines.

`kp_observed.csv` of the real-data folder: Kp (total/total) of rats, as the R package httk collects them (Pearce RG,
Setzer RW, Davis JL, Wambaugh JF. J Pharmacokinet Pharmacodyn 2017;44:549-565) from Schmitt 2008, Rodgers et al. 2005
and 2006, and Poulin & Theil 2000. Prints the tables of docs/partition.md; `--write` puts them there.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/kp.py

from benchmarks.common import machine, machine_line, markdown_table, write_results
from perfuse.pk.blood_binding import HAEMATOCRIT, blood_plasma_ratio
from perfuse.pk.partition import KP_METHODS, PartitionInputs
from perfuse.pk.physiology import ORGANS

CLASSES = ("acid", "base", "neutral", "zwitterion")
ONE, MEDIAN = "Kp = 1", "median of tissue and class"
PREDICTORS = (*KP_METHODS, ONE, MEDIAN)
FILE, HTTK, NO_BP, PREDICTED_BP = "the file's", "httk's", "B:P unknown", "B:P predicted"
"""Input sets: the file's log P and fup with measured B:P; httk's log P and rat fup; the first with B:P withheld, or
replaced by the ratio that ``pk.blood_binding`` predicts."""
BEGIN, END = "<!-- kp tables: begin -->", "<!-- kp tables: end -->"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "partition.md"
PKA_DOUBTED = frozenset({
    "clobazam", "digoxin", "hexobarbital", *(f"{n} barbituric acid" for n in ("ethyl", "5-butyl", "pentyl", "nonyl")),
})  # fmt: skip
"""Predicted to be more than half ionised acids, and hardly so: digoxin and clobazam have no such group; the pKa of
5,5-substituted barbiturates are about 8."""
_STEREO = re.compile(r"^(\(?[rs]\)?-(\([+-]\)-)?|dl-|levo)|-[rs]$", re.I)


@dataclass(frozen=True)
class Measured:
    """Measured Kp with what the methods need; one row a compound and tissue ``(R,)``.

    Attributes:
        compound: Name without its stereochemical prefix: enantiomers are one compound.
        ion, tissue, observed: Ionisation class at pH 7.4, organ, Kp.
        predicted: Kp by method or baseline.
        left_out: Rows of rats that were not used, by reason.
        bp_measured: Whether the compound's blood:plasma ratio was measured.
    """

    compound: np.ndarray
    ion: np.ndarray
    tissue: np.ndarray
    observed: np.ndarray
    predicted: dict[str, np.ndarray]
    left_out: dict[str, int]
    bp_measured: np.ndarray


def family(name: str) -> str:
    """A compound's name without the prefix or suffix of its stereoisomer."""
    return _STEREO.sub("", name).lower()


def _pka(text: str) -> tuple[float, ...]:
    return tuple(float(x) for x in text.split(",") if x.strip())


def _reason_to_leave_out(row: dict[str, str], inputs: str) -> str:
    """Why a row cannot be judged, or ""."""
    if row["tissue"] not in ORGANS:
        return "a tissue that the model has not"
    if not row["httk_mw_g_per_mol"]:
        return "pKa not known"
    fup = float(row["fup_fraction"])
    if fup == 0 or float(row["kp_tissue_to_plasma_observed"]) == 0:
        return "fup or Kp given as 0"
    if fup == 0.5 and not row["httk_rat_fup_fraction"]:
        return "fup 0.5 stands in for unknown"
    if inputs == HTTK and not (row["httk_logp_octanol_water"] and 0 < float(row["httk_rat_fup_fraction"] or 0) <= 1):
        return "no log P or rat fup in httk"
    return ""


def _drug(row: dict[str, str], bp_ratio: float | None, inputs: str) -> PartitionInputs:
    """A row's compound by an input set."""
    prefix = ("httk_logp_octanol_water", "httk_rat_fup_fraction") if inputs == HTTK else ("logp", "fup_fraction")
    logp, fup = (float(row[name]) for name in prefix)
    groups = _pka(row["httk_pka_donor_acid_list"]), _pka(row["httk_pka_acceptor_base_list"])
    drug = PartitionInputs(logp, fup, *groups, bp_ratio=None if inputs == NO_BP else bp_ratio, species="rat")
    return replace(drug, bp_ratio=blood_plasma_ratio(drug.ion_class, fup)) if inputs == PREDICTED_BP else drug


def _blood_plasma(rows: list[dict[str, str]]) -> dict[str, float]:
    """Measured B:P by compound: the file's own, or from its blood cell coefficient, 1 + Hct (Kp - 1)."""
    out = {}
    for row in rows:
        if row["tissue"] == "blood_cells":
            out[row["compound"]] = 1 + HAEMATOCRIT * (float(row["kp_tissue_to_plasma_observed"]) - 1)
    return out | {r["compound"]: float(r["httk_rat_blood_to_plasma_ratio"]) for r in rows
                  if r["httk_rat_blood_to_plasma_ratio"]}  # fmt: skip


def median_of_others(compound: np.ndarray, ion: np.ndarray, tissue: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Median Kp of the other compounds of the same class in the same tissue (of all classes where there is none)."""
    out = np.empty_like(observed)
    for i in range(len(observed)):
        others = (compound != compound[i]) & (tissue == tissue[i])
        same = others & (ion == ion[i])
        out[i] = np.median(observed[same if same.any() else others])
    return out


def read_measured(path: Path, inputs: str = FILE) -> Measured:
    """Rat tissues of the model's organs, with every method's and baseline's prediction from an input set."""
    with path.open(encoding="utf-8", newline="") as file:
        rats = [row for row in csv.DictReader(file) if row["species"] == "rat"]
    reasons = [_reason_to_leave_out(row, inputs) for row in rats]
    bp = _blood_plasma(rats)
    rows = [row for row, reason in zip(rats, reasons, strict=True) if not reason]
    drugs: dict[str, PartitionInputs] = {}
    kp: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        name = row["compound"]
        if name in drugs:
            continue
        drugs[name] = _drug(row, bp.get(name), inputs)
        kp[name] = {method: predict(drugs[name]) for method, predict in KP_METHODS.items()}
    compound = np.asarray([family(row["compound"]) for row in rows])
    ion = np.asarray([drugs[row["compound"]].ion_class for row in rows])
    tissue = np.asarray([row["tissue"] for row in rows])
    observed = np.asarray([float(row["kp_tissue_to_plasma_observed"]) for row in rows])
    predicted = {m: np.asarray([kp[row["compound"]][m][row["tissue"]] for row in rows]) for m in KP_METHODS}
    predicted |= {ONE: np.ones_like(observed), MEDIAN: median_of_others(compound, ion, tissue, observed)}
    counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons) if reason}
    known = np.asarray([row["compound"] in bp for row in rows])
    return Measured(compound, ion, tissue, observed, predicted, counts, known)


def per_compound(compound: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of a compound's values, ``(compounds,)``: each compound weighs the same."""
    _, index = np.unique(compound, return_inverse=True)
    return np.asarray(np.bincount(index, values) / np.bincount(index))


def interval(per: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over compounds."""
    drawn = np.random.default_rng(0).integers(0, len(per), (2000, len(per)))
    low, high = np.quantile(per[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)


def judged(name: str, compound: np.ndarray, predicted: np.ndarray, observed: np.ndarray) -> list[str]:
    """Name, values, compounds, GMFE with its interval, shares within 2- and 3-fold, bias, as cells."""
    error = np.log(predicted / observed)
    absolute = per_compound(compound, np.abs(error))
    low, high = np.exp(interval(absolute))
    shares = [f"{per_compound(compound, np.abs(error) <= np.log(fold)).mean():.0%}" for fold in (2, 3)]
    return [name, str(len(observed)), str(len(absolute)), f"{np.exp(absolute.mean()):.2f} ({low:.2f}-{high:.2f})",
            *shares, f"{np.exp(per_compound(compound, error).mean()):.2f}"]  # fmt: skip


HEADER = ("", "values", "compounds", "GMFE (95 % interval)", "within 2-fold", "within 3-fold", "bias")


def table(data: Measured, mask: np.ndarray) -> str:
    """Every method and baseline on some of the rows."""
    rows = [judged(p, data.compound[mask], data.predicted[p][mask], data.observed[mask]) for p in PREDICTORS]
    return markdown_table(HEADER, rows)


def _gmfe(data: Measured, predictor: str, mask: np.ndarray) -> np.ndarray:
    """Mean absolute log error of each compound, ``(compounds,)``."""
    return per_compound(data.compound[mask], np.abs(np.log(data.predicted[predictor] / data.observed))[mask])


def tissue_table(data: Measured) -> str:
    """GMFE of every method and baseline by tissue."""
    rows = []
    for organ in (o for o in ORGANS if o in data.tissue):
        mask = data.tissue == organ
        cells = [f"{np.exp(_gmfe(data, p, mask).mean()):.2f}" for p in PREDICTORS]
        rows.append([organ, str(mask.sum()), str(len(set(data.compound[mask]))), *cells])
    return markdown_table(("GMFE", "values", "compounds", *PREDICTORS), rows)


def best_table(data: Measured) -> str:
    """The best method of each class beside the better baseline, with the interval of their ratio."""
    rows = []
    for ion in (c for c in CLASSES if c in data.ion):
        mask = data.ion == ion
        errors = {p: _gmfe(data, p, mask) for p in PREDICTORS}
        best = min(KP_METHODS, key=lambda m: errors[m].mean())
        trivial = min((ONE, MEDIAN), key=lambda m: errors[m].mean())
        low, high = np.exp(interval(errors[best] - errors[trivial]))
        verdict = "the method" if high < 1 else "the baseline" if low > 1 else "undecided"
        rows.append([ion, str(len(errors[best])), f"{best}, {np.exp(errors[best].mean()):.2f}",
                     f"{trivial}, {np.exp(errors[trivial].mean()):.2f}", f"{low:.2f}-{high:.2f}", verdict])  # fmt: skip
    return markdown_table(
        ("class", "compounds", "best method, GMFE", "better baseline, GMFE", "ratio (95 %)", "which is better"), rows
    )


def published_table(data: Measured) -> str:
    """Published shares within 3-fold beside ours on the classes and tissues closest to theirs, by value."""
    weak = np.isin(data.ion, ("acid", "neutral", "zwitterion"))
    basic = np.isin(data.ion, ("base", "neutral"))
    lean, other = np.isin(data.tissue, ("muscle", "heart", "kidney")), np.isin(data.tissue, ("lung", "liver", "brain"))
    rodgers, poulin = "rodgers-rowland", "poulin-theil"
    rows = []
    for source, what, published, method, mask in (
        ("Rodgers & Rowland 2006", "39 acids, very weak bases, neutrals, zwitterions", "84%", rodgers, weak),
        ("Rodgers & Rowland 2006", "the same by earlier equations", "61%", poulin, weak),
        ("De Buck 2007", "bases and neutrals: muscle, heart, kidney", "80%", rodgers, basic & lean),
        ("De Buck 2007", "bases and neutrals: lung, liver, brain", "47-62%", rodgers, basic & other),
        ("De Buck 2007", "without acidic phospholipids: muscle, heart, kidney", "70%", poulin, basic & lean),
        ("De Buck 2007", "without acidic phospholipids: other tissues", "24-54%", poulin, basic & other),
    ):
        error = np.abs(np.log(data.predicted[method] / data.observed))[mask]
        rows.append([source, what, published, method, str(mask.sum()), f"{np.mean(error <= np.log(3)):.0%}"])
    return markdown_table(("publication", "what", "published", "method here", "values", "here"), rows)


def bp_table(path: Path) -> str:
    """Rodgers and Rowland on bases with a measured B:P: with it, without it, and with the predicted one."""
    rows = []
    for name, inputs in (("measured", FILE), ("withheld: taken as 1", NO_BP), ("predicted", PREDICTED_BP)):
        data = read_measured(path, inputs)
        use = (data.ion == "base") & data.bp_measured
        predicted = data.predicted["rodgers-rowland"][use]
        rows.append(judged(f"rodgers-rowland, B:P {name}", data.compound[use], predicted, data.observed[use]))
    return markdown_table(HEADER, rows)


def tables(path: Path) -> str:
    """Everything that docs/partition.md shows."""
    data = read_measured(path)
    left = "; ".join(f"{reason} {n}" for reason, n in data.left_out.items())
    everything = np.ones(len(data.observed), dtype=bool)
    parts = [
        f"{len(data.observed)} values of {len(set(data.compound))} compounds; B:P measured for "
        f"{len(set(data.compound[data.bp_measured]))}. "
        f"Left out of the rats' rows: {left}.",
        "All:", table(data, everything),
    ]  # fmt: skip
    for ion in (c for c in CLASSES if c in data.ion):
        parts += [f"{ion.capitalize()}s:", table(data, data.ion == ion)]
    doubted = np.isin(data.compound, list(PKA_DOUBTED))
    parts += ["Acids without those whose predicted pKa is plainly wrong:", table(data, (data.ion == "acid") & ~doubted)]
    parts += ["Bases whose B:P was measured:", table(data, (data.ion == "base") & data.bp_measured)]
    parts += ["The same bases, by what is known of B:P:", bp_table(path)]
    second = read_measured(path, HTTK)
    parts += ["All, with httk's log P and rat fup instead of the file's own:",
              table(second, np.ones(len(second.observed), dtype=bool))]  # fmt: skip
    parts += ["By tissue:", tissue_table(data), "Best method by class:", best_table(data)]
    parts += ["Within 3-fold, each value weighing the same as in these publications:", published_table(data)]
    return "\n\n".join(parts)


def replaced(page: str, text: str) -> str:
    """The page with ``text`` between its markers.

    Raises:
        ValueError: if the page lacks the markers.
    """
    head, found, rest = page.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"no {BEGIN} ... {END} in the page")
    return f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}"


def main() -> None:
    """Judge, print, write."""
    parser = argparse.ArgumentParser(description="Predicted partition coefficients against measured ones of rats.")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PERFUSE_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="folder of kp.md and .json")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/partition.md")
    args = parser.parse_args()
    facts = machine()
    text = tables(args.data / "kp_observed.csv")
    print(text)
    write_results(args.out, "kp", f"# Partition coefficients\n\n{machine_line(facts)}\n\n{text}", {"machine": facts})
    if args.write:
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()

"""In-vitro clearance scaled to people, and predicted blood:plasma ratios, against what was measured.

`human_iv_summary.csv` (human intravenous clearance: Lombardo F et al. Drug Metab Dispos 2018;46:1466-1477, with httk's
hepatocyte clearance and B:P) and `httk_inputs.csv` of the real-data folder. Prints two tables for docs/clearance.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python benchmarks/ivive.py

from benchmarks.common import machine, machine_line, markdown_table, write_results
from perfuse.pk.blood_binding import HAEMATOCRIT, blood_plasma_ratio
from perfuse.pk.clearance import LIVER_MODELS, hepatic_clearance, renal_clearance_filtration
from perfuse.pk.drug import Drug
from perfuse.pk.partition import ion_class, log10_total_to_unionised
from perfuse.pk.physiology import ORGAN_INDEX, human_reference

CLASSES = ("acid", "base", "neutral", "zwitterion")
_BODY_KG = 70.0


def _number(text: str) -> float | None:
    return float(text) if text else None


def _pka(text: str) -> tuple[float, ...]:
    return tuple(float(x) for x in text.split(",") if x.strip())


def read_clearances(path: Path) -> tuple[list[Drug], np.ndarray]:
    """Drugs with hepatocyte CLint, fup, log P and MW, and their measured plasma clearance, L/h at 70 kg."""
    drugs, observed = [], []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            clearance, clint = (
                _number(row[name])
                for name in ("cl_plasma_L_per_h_per_kg", "httk_human_clint_uL_per_min_per_million_hepatocytes")
            )
            fup = _number(row["fup_fraction"]) or _number(row["httk_human_fup_fraction"])
            logp, mw = _number(row["httk_logp_octanol_water"]), _number(row["httk_mw_g_per_mol"])
            if clearance is None or clint is None or fup is None or logp is None or mw is None or clearance <= 0:
                continue
            drugs.append(
                Drug(
                    name=row["compound"], mw_g_mol=mw, logp=logp, fup=fup,
                    pka_acid=_pka(row["httk_pka_donor_acid_list"]), pka_base=_pka(row["httk_pka_acceptor_base_list"]),
                    bp_ratio=_number(row["httk_human_blood_to_plasma_ratio"]), clint_ul_min_million_cells=clint,
                )
            )  # fmt: skip
            observed.append(clearance * _BODY_KG)
    return drugs, np.asarray(observed)


def scaled_clearance(drug: Drug, *, bound_in_blood: bool = True) -> float:
    """Plasma clearance, L/h, of the reference man: the liver's by the drug's liver model, plus GFR x fup."""
    body = human_reference(_BODY_KG)
    liver_l, flow = (float(a[ORGAN_INDEX["liver"]]) for a in (body.volume_l, body.flow_l_h))
    bp, clint = drug.bp_ratio_or_default, drug.clint_in(liver_l)
    assert clint is not None
    fup = drug.fup if bound_in_blood else 1.0
    hepatic = bp * hepatic_clearance(clint, fup, bp, flow, drug.liver_model, drug.dispersion_number)
    return hepatic + renal_clearance_filtration(drug.fup, _BODY_KG)


def judged(name: str, predicted: np.ndarray, observed: np.ndarray, folds: tuple[float, ...] = (2.0, 3.0)) -> list[str]:
    """Name, n, GMFE with its 95 % bootstrap interval, shares within the folds, bias, as cells."""
    log_error = np.log(predicted / observed)
    absolute = np.abs(log_error)
    resampled = np.random.default_rng(0).integers(0, len(observed), (2000, len(observed)))
    low, high = np.exp(np.quantile(absolute[resampled].mean(1), (0.025, 0.975)))
    within = [f"{np.mean(absolute <= np.log(fold)):.0%}" for fold in folds]
    return [name, str(len(observed)), f"{np.exp(absolute.mean()):.2f} ({low:.2f}-{high:.2f})", *within,
            f"{np.exp(log_error.mean()):.2f}"]  # fmt: skip


def clearance_tables(path: Path) -> str:
    """The two tables on clearance, and how many drugs are what."""
    drugs, observed = read_clearances(path)
    predict: Callable[[list[Drug]], np.ndarray] = lambda ds: np.asarray([scaled_clearance(d) for d in ds])  # noqa: E731
    rows = [
        judged("median clearance of the same drugs, for all", np.full_like(observed, np.median(observed)), observed)
    ]
    for binding, change in (("no correction", {"fu_inc": 1.0}), ("Kilford", {})):
        for model in LIVER_MODELS:
            variant = [replace(d, liver_model=model, **change) for d in drugs]  # type: ignore[arg-type]
            rows.append(judged(f"{model}, assay binding: {binding}", predict(variant), observed))
    unbound = np.asarray([scaled_clearance(replace(d, fu_inc=1.0), bound_in_blood=False) for d in drugs])
    rows.append(judged("well-stirred, neither blood nor assay binding", unbound, observed))
    header = ("", "n", "GMFE (95 % interval)", "within 2-fold", "within 3-fold", "bias")
    default = predict(drugs)
    kinds = {name: np.asarray([d.ion_class == name for d in drugs]) for name in CLASSES}
    turnover = np.asarray([d.clint_ul_min_million_cells != 0 for d in drugs])
    kinds |= {"turnover measured": turnover, "no turnover measured (CLint 0)": ~turnover}
    parts = [judged(name, default[mask], observed[mask]) for name, mask in kinds.items() if mask.any()]
    above = int(np.sum(observed > float(human_reference(_BODY_KG).flow_l_h[ORGAN_INDEX["liver"]])))
    known = sum(d.bp_ratio is not None for d in drugs)
    return "\n\n".join((
        f"{len(drugs)} drugs; B:P measured for {known}, predicted for the others; {above} have a clearance above "
        "liver blood flow (plasma clearance, L/h).",
        markdown_table(header, rows), markdown_table(header, parts),
    ))  # fmt: skip


def read_blood_plasma(path: Path) -> Mapping[str, np.ndarray]:
    """Class, fup, measured B:P, and the red cell coefficient that Rodgers and Rowland's composition gives."""
    columns: dict[str, list[object]] = {"ion": [], "fup": [], "bp": [], "kpu_composition": []}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            bp, logp = _number(row["human_blood_to_plasma_ratio"]), _number(row["logp_octanol_water"])
            fup = _number(row["human_fup_fraction"])
            if bp is None or logp is None or fup is None or not 0 < fup <= 1:
                continue
            groups = _pka(row["pka_donor_acid_list"]), _pka(row["pka_acceptor_base_list"])
            columns["ion"].append(ion_class(*groups))
            columns["fup"].append(fup)
            columns["bp"].append(bp)
            columns["kpu_composition"].append(_water_and_lipid(10.0**logp, *groups))
    return {name: np.asarray(values) for name, values in columns.items()}


def _water_and_lipid(p: float, acid: tuple[float, ...], base: tuple[float, ...]) -> float:
    """Kpu of a red cell of water 0.603 (pH 7.22), neutral lipid 0.0017 and neutral phospholipid 0.0029.

    Rodgers T, Leahy D, Rowland M. J Pharm Sci 2005;94:1259-1276 (without its acidic phospholipid, which B:P is
    needed for).
    """
    plasma, cell = (10.0 ** log10_total_to_unionised(acid, base, ph) for ph in (7.4, 7.22))
    return cell / plasma * 0.603 + (p * 0.0017 + (0.3 * p + 0.7) * 0.0029) / plasma


def cross_validated(data: Mapping[str, np.ndarray], predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
                    start: tuple[float, ...], folds: int = 10) -> np.ndarray:  # fmt: skip
    """Predictions of a formula whose parameters are fitted per class (zwitterions with neutrals) on the other folds."""
    fold = np.random.default_rng(0).integers(0, folds, len(data["bp"]))
    out = np.empty_like(data["bp"])
    for classes in (("acid",), ("base",), ("neutral", "zwitterion")):
        mine = np.isin(data["ion"], classes)
        for k in range(folds):
            train, test = mine & (fold != k), mine & (fold == k)
            if not test.any():
                continue
            loss = lambda p, at=train: float(  # noqa: E731
                np.abs(np.log(np.maximum(predict(p, data["fup"][at]), 0.1) / data["bp"][at])).mean()
            )
            fitted = minimize(loss, start, method="Nelder-Mead", options={"maxiter": 400}).x
            out[test] = predict(fitted, data["fup"][test])
    return out


def blood_binding_table(path: Path) -> str:
    """Predicted B:P beside constants."""
    data = read_blood_plasma(path)
    bp, fup = data["bp"], data["fup"]
    ours = np.asarray([blood_plasma_ratio(c, f) for c, f in zip(data["ion"], fup, strict=True)])
    methods = {
        "B:P = 1": np.ones_like(bp),
        "0.55 for acids, 1 for the rest": np.where(data["ion"] == "acid", 0.55, 1.0),
        "best constant per class, cross-validated": cross_validated(data, lambda p, f: np.full_like(f, p[0]), (0.8,)),
        "red cell of water and lipid": 1 + HAEMATOCRIT * (fup * data["kpu_composition"] - 1),
        "Perfuse's default (fitted to these data)": ours,
        "the same formula, cross-validated": cross_validated(
            data, lambda p, f: 1 + HAEMATOCRIT * (p[0] * f + p[1] * (1 - f) - 1), (1.0, 0.3)
        ),
    }
    rows = [
        [*judged(name, predicted, bp, (1.25, 2.0)), *(
            f"{np.exp(np.abs(np.log(predicted / bp))[data['ion'] == c].mean()):.2f}" for c in CLASSES)]
        for name, predicted in methods.items()
    ]  # fmt: skip
    header = ("", "n", "GMFE (95 % interval)", "within 1.25-fold", "within 2-fold", "bias", *CLASSES)
    return markdown_table(header, rows)


def main() -> None:
    """Judge, print, write."""
    parser = argparse.ArgumentParser(description="In-vitro clearance and predicted B:P against measured values.")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PERFUSE_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="folder of ivive.md and .json")
    args = parser.parse_args()
    facts = machine()
    clearance = clearance_tables(args.data / "human_iv_summary.csv")
    blood = blood_binding_table(args.data / "httk_inputs.csv")
    text = "\n\n".join((f"# In-vitro clearance against people\n\n{machine_line(facts)}", clearance,
                        "# Predicted blood:plasma ratio", blood))  # fmt: skip
    print(text)
    write_results(args.out, "ivive", text, {"machine": facts})


if __name__ == "__main__":
    main()

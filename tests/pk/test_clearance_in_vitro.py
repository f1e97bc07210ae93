"""In-vitro scaling, assay binding, renal clearance: by hand, published values, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from perfuse.errors import InputError
from perfuse.pk import assay_binding, in_vitro, renal
from perfuse.pk.physiology import ORGAN_INDEX, human_reference
from perfuse.pk.saturable_pathway import SaturablePathway, reference_liver_l


def test_microsomal_protein_by_age() -> None:
    assert in_vitro.microsomal_protein_mg_g(0.0) == pytest.approx(10**1.407)
    assert in_vitro.microsomal_protein_mg_g(30.0) == pytest.approx(10**1.6038)  # 1.407 + 0.474 - 0.342 + 0.0648
    assert in_vitro.microsomal_protein_mg_g(30.0) == pytest.approx(in_vitro.MICROSOMAL_PROTEIN_MG_G, rel=0.01)


def test_microsomes_by_hand() -> None:
    # 10 uL/min/mg x 40 mg/g x 1800 g = 0.72 L/min
    assert in_vitro.scale_microsome_clint(10.0, 1.8) == pytest.approx(43.2)
    assert in_vitro.scale_microsome_clint(10.0, 1.8, 0.5, 20.0) == pytest.approx(43.2)


def test_recombinant_by_hand() -> None:
    # 0.1 uL/min/pmol x 100 pmol/mg = 10 uL/min/mg
    assert in_vitro.scale_recombinant_clint(0.1, 100.0, 1.8) == pytest.approx(43.2)
    assert in_vitro.scale_recombinant_clint(0.1, 100.0, 1.8, isef=0.25) == pytest.approx(10.8)


def test_saturable_scaling_agrees_with_linear_scaling_below_km() -> None:
    # Vmax/Km in uL/min/mg: 500 pmol/min/mg / 5 umol/L = 100 uL/min/mg
    for scale, linear in (
        (in_vitro.scale_microsome_vmax, in_vitro.scale_microsome_clint),
        (in_vitro.scale_hepatocyte_vmax, in_vitro.scale_hepatocyte_clint),
    ):
        slope = scale(500.0, 325.8, 1.8) / in_vitro.km_unbound_mg_l(5.0, 325.8, 0.6)
        assert slope == pytest.approx(linear(100.0, 1.8, 0.6))


def test_pathway_from_an_assay() -> None:
    liver = float(human_reference().volume_l[ORGAN_INDEX["liver"]])
    assert reference_liver_l() == pytest.approx(liver)
    data = {"name": "CYP3A4", "vmax_pmol_min_mg": 500.0, "km_um": 5.0, "fu_inc": 0.6}
    pathway = SaturablePathway.from_mapping(data, 325.8)
    assert pathway.vmax_mg_h == pytest.approx(500e-12 * 40 * liver * 1000 * 60 * 325.8 * 1000)
    assert pathway.clint_l_h == pytest.approx(in_vitro.scale_microsome_clint(100.0, liver, 0.6))
    assert pathway.vmax_in(liver / 2) == pytest.approx(pathway.vmax_mg_h / 2)
    enzyme = {"name": "CYP3A4", "vmax_pmol_min_pmol": 10.0, "abundance_pmol_mg": 100.0, "isef": 0.5, "km_um": 5.0}
    assert SaturablePathway.from_mapping(enzyme, 325.8).vmax_mg_h == pytest.approx(pathway.vmax_mg_h)
    cells = SaturablePathway.from_mapping({"name": "a", "vmax_pmol_min_million_cells": 1.0, "km_u_mg_l": 2.0}, 300.0)
    assert (cells.vmax_mg_h, cells.km_u_mg_l) == (pytest.approx(1e-12 * 99 * liver * 1000 * 60 * 300 * 1000), 2.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"vmax_mg_h": 1, "km_u_mg_l": 1}, "saturable name is missing"),
        ({"name": "", "vmax_mg_h": 1, "km_u_mg_l": 1}, "saturable name is empty"),
        ({"name": "a", "km_u_mg_l": 1}, "saturable vmax_mg_h is missing"),
        ({"name": "a", "vmax_mg_h": 1}, "saturable km_u_mg_l is missing"),
        ({"name": "a", "vmax_mg_h": 0, "km_u_mg_l": 1}, r"vmax_mg_h of a is not allowed \(got 0 mg/h\)"),
        ({"name": "a", "vmax_mg_h": 1, "km_u_mg_l": 0}, r"km_u_mg_l of a is not allowed \(got 0 mg/L\)"),
        ({"name": "a", "vmax_mg_h": "1", "km_u_mg_l": 1}, "saturable vmax_mg_h is not a number"),
        ({"name": "a", "vmax_mg_h": math.nan, "km_u_mg_l": 1}, "saturable vmax_mg_h is not finite"),
        ({"name": "a", "vmax_mg_h": 1, "km_u_mg_l": 1, "km": 3}, "saturable km is no known key"),
        ({"name": "a", "vmax_mg_h": 1, "km_u_mg_l": 1, "fu_inc": 0.5}, "fu_inc belongs to km_um"),
        ({"name": "a", "vmax_mg_h": 1, "km_u_mg_l": 1, "km_um": 1}, "say the same thing twice"),
        ({"name": "a", "vmax_mg_h": 1, "km_um": -1}, "km_um is not allowed"),
        ({"name": "a", "vmax_mg_h": 1, "km_um": 1, "fu_inc": 2}, "fu_inc is not allowed"),
        ({"name": "a", "vmax_pmol_min_pmol": 1, "km_um": 1}, "saturable abundance_pmol_mg is missing"),
        ({"name": "a", "vmax_mg_h": 1, "km_um": 1, "isef": 1}, "saturable isef belongs to vmax_pmol_min_pmol"),
        (3, "saturable is no table"),
    ],
)
def test_pathway_refused(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SaturablePathway.from_mapping(data, 300.0)


def test_assay_binding_by_hand() -> None:
    # log P 3 and 1 mg/mL: 0.56 x 3 - 1.41 = 0.27; 0.072 x 9 + 0.067 x 3 - 1.126 = -0.277
    assert assay_binding.fu_microsomes(3.0, 1.0, method="austin") == pytest.approx(1 / (1 + 10**0.27))
    assert assay_binding.fu_microsomes(3.0, 0.5) == pytest.approx(1 / (1 + 0.5 * 10**-0.277))
    assert assay_binding.fu_hepatocytes(3.0) == pytest.approx(1 / (1 + 0.625 * 10**-0.277))


def test_bases_bind_by_log_p_and_acids_by_log_d() -> None:
    assert assay_binding.log_p_or_d(3.0, (), (9.4,)) == 3.0
    assert assay_binding.log_p_or_d(3.0, (4.4,)) == pytest.approx(3.0 - math.log10(1001))
    assert assay_binding.fu_hepatocytes(3.0, 1.0, (4.4,)) > assay_binding.fu_hepatocytes(3.0)


def test_assay_binding_never_rises_again_with_hydrophilicity() -> None:
    values = [assay_binding.fu_microsomes(logp / 4, 1.0) for logp in range(-40, 24)]
    assert all(a >= b for a, b in zip(values, values[1:], strict=False))


def test_renal_clearance_by_hand() -> None:
    assert renal.renal_clearance(0.25, 7.2) == pytest.approx(1.8)
    assert renal.renal_clearance(0.25, 7.2, 3.0) == pytest.approx(4.8)
    assert renal.renal_clearance(0.25, 7.2, -1.8) == pytest.approx(0.0)
    renal.check_renal_clearance(71.0, 1.0, 71.82)


REFUSED: list[tuple[Callable[..., Any], tuple[Any, ...], str]] = [
    (in_vitro.microsomal_protein_mg_g, (-1.0,), "age_years"),
    (in_vitro.microsomal_protein_mg_g, (math.nan,), "age_years"),
    (in_vitro.scale_hepatocyte_clint, (1.0, 1.8, 0.0), "fu_inc"),
    (in_vitro.scale_hepatocyte_clint, (1.0, 1.8, 1.0, 0.0), "million_cells_g"),
    (in_vitro.scale_microsome_clint, (-1.0, 1.8), "clint_ul_min_mg"),
    (in_vitro.scale_microsome_clint, (1.0, 1.8, 1.1), "fu_inc"),
    (in_vitro.scale_microsome_clint, (1.0, 1.8, 1.0, -1.0), "protein_mg_g"),
    (in_vitro.scale_recombinant_clint, (-1.0, 1.0, 1.8), "clint_ul_min_pmol"),
    (in_vitro.scale_recombinant_clint, (1.0, -1.0, 1.8), "abundance_pmol_mg"),
    (in_vitro.scale_recombinant_clint, (1.0, 1.0, 1.8, 1.0, 0.0), "isef"),
    (in_vitro.scale_microsome_vmax, (-1.0, 300.0, 1.8), "vmax_pmol_min_mg"),
    (in_vitro.scale_microsome_vmax, (1.0, 0.0, 1.8), "mw_g_mol"),
    (in_vitro.scale_hepatocyte_vmax, (math.inf, 300.0, 1.8), "vmax_pmol_min_million_cells"),
    (in_vitro.scale_hepatocyte_vmax, (1.0, 300.0, 0.0), "liver_volume_l"),
    (in_vitro.scale_recombinant_vmax, (-1.0, 1.0, 300.0, 1.8), "vmax_pmol_min_pmol"),
    (in_vitro.scale_recombinant_vmax, (1.0, -1.0, 300.0, 1.8), "abundance_pmol_mg"),
    (in_vitro.scale_recombinant_vmax, (1.0, 1.0, 300.0, 1.8, 0.0), "isef"),
    (in_vitro.km_unbound_mg_l, (0.0, 300.0), "km_um"),
    (assay_binding.fu_microsomes, (3.0, 0.0), "protein_mg_ml"),
    (assay_binding.fu_microsomes, (3.0, 1.0, (), (), "guess"), "method"),
    (assay_binding.fu_microsomes, (3.0, 1.0, (99.0,)), "pka_acid"),
    (assay_binding.fu_hepatocytes, (3.0, -1.0), "million_cells_ml"),
    (renal.renal_clearance, (0.0, 7.2), "fup"),
    (renal.renal_clearance, (0.5, -1.0), "gfr_l_h"),
    (renal.renal_clearance, (0.5, 7.2, -3.7), "cl_secretion_l_h"),
    (renal.renal_clearance, (0.5, 7.2, math.nan), "cl_secretion_l_h"),
    (renal.check_renal_clearance, (72.0, 1.0, 71.82), "cl_renal_l_h"),
    (renal.check_renal_clearance, (math.nan, 1.0, 71.82), "cl_renal_l_h"),
    (renal.check_renal_clearance, (1.0, 0.0, 71.82), "bp_ratio"),
    (renal.check_renal_clearance, (1.0, 1.0, 0.0), "kidney_flow_l_h"),
]


@pytest.mark.parametrize(("function", "arguments", "field"), REFUSED)
def test_refused(function: Callable[..., Any], arguments: tuple[Any, ...], field: str) -> None:
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert error.value.field == field
    assert "allowed:" in str(error.value)

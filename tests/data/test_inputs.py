"""Drug + body + doses -> a topology's inputs: what the mechanistic model then makes of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.data.batch import in_matrix
from perfuse.data.inputs import (
    Dose,
    curve_table_for,
    elimination_parameters,
    partition_parameters,
    reference_body,
)
from perfuse.data.stacking import stack_tables
from perfuse.data.table import to_batch
from perfuse.errors import InputError
from perfuse.pk import mechanistic
from perfuse.pk.clearance import (
    LIVER_MODELS,
    hepatic_clearance,
    hepatic_clearance_well_stirred,
    scale_hepatocyte_clint,
)
from perfuse.pk.drug import Drug, SaturablePathway
from perfuse.pk.partition import tissue_plasma_kp
from perfuse.pk.physiology import ORGAN_INDEX, human_reference
from perfuse.pk.topology import get_topology

HUB, CIRCULATION = get_topology("hub"), get_topology("circulation")
GOOD: dict[str, Any] = {"name": "x", "mw_g_mol": 300.0, "logp": 1.0, "fup": 0.2, "bp_ratio": 0.8}
DRUG = Drug(**GOOD, clint_ul_min_million_cells=10.0)
TIMES = np.linspace(0, 24, 13)
BOLUS = [Dose(0.0, 100.0)]
PERMEABLE = get_topology("circulation-ps")
MAN = human_reference(70.0)
SATURABLE = Drug(**GOOD, saturable=(SaturablePathway("a", 30.0, 0.5), SaturablePathway("b", 5.0, 0.02)))


def _plasma_auc(drug: Drug, topology_name: str, body_weight_kg: float = 70.0) -> float:
    """Plasma AUC to infinity, mg h/L: of the exact curve to 400 h, log-trapezoidal."""
    time = np.concatenate(([0.0], np.geomspace(1e-4, 400.0, 1500)))
    table = curve_table_for(drug, get_topology(topology_name), body_weight_kg, BOLUS, time)
    batch = to_batch(table)
    amounts = mechanistic.solve(batch.system, batch.doses, batch.time_h)
    plasma = in_matrix(batch, mechanistic.organ_concentrations(batch.system, amounts))[0, 0].numpy()
    return float(np.trapezoid(plasma, time))


def _exact_plasma_auc(drug: Drug, topology: Any, dose: Dose, **where: Any) -> float:
    """Plasma AUC to infinity of a linear curve, mg h/L: -K^-1 times the dose, in venous blood or in the gut."""
    table = curve_table_for(drug, topology, None if where else 70.0, [dose], np.asarray([1.0]), **where)
    batch = to_batch(table)
    generator = mechanistic.generator_matrix(topology, mechanistic.mechanistic_rates(batch.system))[0].numpy()
    entering = np.zeros(topology.n_nodes)
    oral = dose.route == "oral"
    entering[topology.absorption_node if oral else topology.dose_node] = dose.amount_mg * (drug.f_abs if oral else 1.0)
    amount_h = -np.linalg.solve(generator, entering)
    venous_l = float(batch.system.volume_l[0, topology.dose_node])
    return float(amount_h[topology.dose_node] / venous_l / table.bp_ratio[0])


@pytest.mark.parametrize("topology", [HUB, CIRCULATION], ids=["hub", "circulation"])
@pytest.mark.parametrize("model", LIVER_MODELS)
def test_liver_model_gives_its_clearance_to_the_whole_body(topology: Any, model: str) -> None:
    drug = Drug(**GOOD, clint_l_h=800.0, liver_model=model, cl_renal_l_h=1.0)
    flow = float(reference_body(topology, 70.0).flow_l_h[ORGAN_INDEX["liver"]])
    wanted = hepatic_clearance(800.0, 0.2, 0.8, flow, model) * 0.8 + 1.0  # plasma
    assert 100.0 / _exact_plasma_auc(drug, topology, BOLUS[0]) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("model", LIVER_MODELS)
def test_first_pass_is_the_liver_models_availability(model: str) -> None:
    drug = Drug(**GOOD, clint_l_h=800.0, liver_model=model, ka_1_h=1.0, fa=0.9, fg=0.6)
    flow = float(MAN.flow_l_h[ORGAN_INDEX["liver"]])
    availability = 1 - hepatic_clearance(800.0, 0.2, 0.8, flow, model) / flow
    oral = _exact_plasma_auc(drug, CIRCULATION, Dose(0.0, 100.0, route="oral"))
    assert oral / _exact_plasma_auc(drug, CIRCULATION, BOLUS[0]) == pytest.approx(0.54 * availability, rel=1e-9)


def test_stated_clearance_does_not_depend_on_the_liver_model() -> None:
    plain, other = (
        elimination_parameters(Drug(**GOOD, cl_total_l_h=20.0, liver_model=m), CIRCULATION, MAN)
        for m in ("well-stirred", "dispersion")
    )
    assert plain.tolist() == other.tolist()


def test_an_elimination_that_no_drug_states_is_refused() -> None:
    bile = replace(CIRCULATION, name="mine", eliminations=(replace(CIRCULATION.eliminations[0], name="cl_bile_l_h"),))
    with pytest.raises(InputError, match="cl_bile_l_h of topology mine is nothing that a drug states"):
        elimination_parameters(DRUG, bile, MAN)


def test_secretion_adds_to_filtration() -> None:
    drug = Drug(**GOOD, clint_l_h=0.0, cl_secretion_l_h=3.0)
    assert elimination_parameters(drug, CIRCULATION, MAN)[1] == pytest.approx(7.2 * 0.2 + 3.0)


def test_oral_dose_columns() -> None:
    drug = Drug(**GOOD, clint_l_h=10.0, ka_1_h=1.5, lag_h=0.25, fa=0.8, fg=0.5)
    doses = [Dose(0.0, 10.0), Dose(6.0, 20.0, route="oral")]
    table = curve_table_for(drug, CIRCULATION, 70.0, doses, TIMES)
    assert table.dose_route.tolist() == [[0, 1]] and table.dose_route.dtype == np.int8
    assert (table.ka_1_h[0], table.lag_h[0], table.f_abs[0]) == (1.5, 0.25, pytest.approx(0.4))
    intravenous = curve_table_for(drug, CIRCULATION, 70.0, BOLUS, TIMES)
    assert np.isnan(intravenous.ka_1_h[0]) and intravenous.f_abs[0] == 1.0


def test_saturable_pathways_scale_with_the_liver() -> None:
    table = curve_table_for(SATURABLE, CIRCULATION, 35.0, BOLUS, TIMES)
    assert table.vmax_mg_h[0] == pytest.approx([15.0, 2.5])
    assert table.km_u_mg_l[0].tolist() == [0.5, 0.02]
    assert table.elimination_l_h[0, 0] == 0.0


def test_saturable_pathways_far_below_km_are_linear() -> None:
    linear = Drug(**GOOD, clint_l_h=60.0 + 250.0)
    tiny = [Dose(0.0, 1e-6)]
    batches = [to_batch(curve_table_for(d, CIRCULATION, 70.0, tiny, TIMES)) for d in (SATURABLE, linear)]
    saturable, straight = (mechanistic.solve(b.system, b.doses, b.time_h)[0, 0] for b in batches)
    assert torch.allclose(saturable, straight, rtol=1e-4)


def test_permeability_in_the_topologys_order() -> None:
    drug = Drug(**GOOD, clint_l_h=1.0, ps_l_h={"muscle": 3.0, "adipose": 2.0, "brain": 1.0, "skin": 9.0})
    table = curve_table_for(drug, PERMEABLE, 70.0, BOLUS, TIMES)
    assert table.ps_l_h.tolist() == [[1.0, 2.0, 3.0]]
    assert curve_table_for(drug, CIRCULATION, 70.0, BOLUS, TIMES).ps_l_h.shape == (1, 0)


def test_descriptors_travel_with_the_curve() -> None:
    drug = Drug(**GOOD, pka_acid=(9.0, 3.0, 4.0), pka_base=(2.0,), clint_ul_min_million_cells=3.0)
    table = curve_table_for(drug, CIRCULATION, 70.0, BOLUS, TIMES)
    assert (table.mw_g_mol[0], table.logp[0], table.clint_ul_min_million_cells[0]) == (300.0, 1.0, 3.0)
    assert table.pka_acid.tolist() == [[3.0, 4.0]]
    assert table.pka_base[0, 0] == 2.0 and np.isnan(table.pka_base[0, 1])
    assert np.isnan(curve_table_for(SATURABLE, CIRCULATION, 70.0, BOLUS, TIMES).clint_ul_min_million_cells[0])


def test_body_instead_of_a_weight() -> None:
    body = replace(human_reference(50.0), name="someone")
    mine = curve_table_for(DRUG, CIRCULATION, None, BOLUS, TIMES, body=body)
    scaled = curve_table_for(DRUG, CIRCULATION, 50.0, BOLUS, TIMES)
    assert mine.body_weight_kg[0] == 50.0
    assert mine.elimination_l_h.tolist() == scaled.elimination_l_h.tolist()
    smaller = replace(body, volume_l=body.volume_l * np.where(np.arange(14) == ORGAN_INDEX["liver"], 0.5, 1.0))
    halved = curve_table_for(DRUG, CIRCULATION, None, BOLUS, TIMES, body=smaller)
    assert halved.elimination_l_h[0, 0] == pytest.approx(mine.elimination_l_h[0, 0] / 2)


def test_a_body_that_states_haematocrit_and_filtration_is_believed() -> None:
    patient = replace(MAN, name="patient")
    for name, value in (("haematocrit", 0.3), ("gfr_l_h", 2.0)):
        object.__setattr__(patient, name, value)
    unmeasured = Drug(**(GOOD | {"bp_ratio": None}), clint_l_h=5.0)
    table = curve_table_for(unmeasured, CIRCULATION, None, BOLUS, TIMES, body=patient)
    assert table.bp_ratio[0] == pytest.approx(unmeasured.bp_ratio_for(0.3))
    assert table.elimination_l_h[0].tolist() == pytest.approx([5.0, 2.0 * 0.2])


def test_hub_takes_blood_clearances_and_tissue_blood_kp() -> None:
    body = reference_body(HUB, 70.0)
    hepatic, renal = elimination_parameters(DRUG, HUB, body)
    clint = scale_hepatocyte_clint(10.0, 1.8, DRUG.fu_inc_or_default)
    assert hepatic == pytest.approx(hepatic_clearance_well_stirred(clint, 0.2, 0.8, 90.0))
    assert renal == pytest.approx(7.2 * 0.2 / 0.8)
    kp = partition_parameters(DRUG, HUB)
    plain = tissue_plasma_kp(DRUG.partition_inputs())
    assert kp[0] == 1.0
    assert kp[1:] == pytest.approx(plain[1:] / 0.8)


def test_circulation_takes_clint_and_plasma_renal_clearance() -> None:
    body = reference_body(CIRCULATION, 90.0)
    clint, renal = elimination_parameters(DRUG, CIRCULATION, body)
    assert clint == pytest.approx(scale_hepatocyte_clint(10.0, 1.8 / 73 * 90, DRUG.fu_inc_or_default))
    assert renal == pytest.approx(7.2 * (90 / 70) ** 0.75 * 0.2)
    assert partition_parameters(DRUG, CIRCULATION) == pytest.approx(tissue_plasma_kp(DRUG.partition_inputs()))


@pytest.mark.parametrize("topology_name", ["hub", "circulation"])
def test_stated_total_clearance_is_the_plasma_clearance_of_the_curve(topology_name: str) -> None:
    drug = Drug(**GOOD, cl_total_l_h=12.0, cl_renal_l_h=2.0)
    assert 100.0 / _plasma_auc(drug, topology_name) == pytest.approx(12.0, rel=2e-3)


@pytest.mark.parametrize("topology_name", ["hub", "circulation"])
def test_stated_hepatic_clearance_adds_filtration(topology_name: str) -> None:
    drug = Drug(**GOOD, cl_hepatic_l_h=9.0)
    assert 100.0 / _plasma_auc(drug, topology_name) == pytest.approx(9.0 + 7.2 * 0.2, rel=2e-3)


def test_intrinsic_clearance_means_the_same_on_both_topologies() -> None:
    drug = Drug(**GOOD, clint_l_h=80.0)
    hub, circulation = (_plasma_auc(drug, name) for name in ("hub", "circulation"))
    # the liver flows differ: 90 L/h and 25.5 % of 378 L/h
    assert hub / circulation == pytest.approx(1.0, abs=0.02)


def test_zero_clint_leaves_filtration_alone() -> None:
    drug = Drug(**GOOD, clint_ul_min_million_cells=0.0)
    assert elimination_parameters(drug, HUB, reference_body(HUB, 70.0)) == pytest.approx([0.0, 7.2 * 0.2 / 0.8])


@pytest.mark.parametrize("topology", [HUB, CIRCULATION], ids=["hub", "circulation"])
def test_table_row(topology: Any) -> None:
    doses = [Dose(0.0, 100.0), Dose(8.0, 50.0, 0.5)]
    table = curve_table_for(DRUG, topology, 90.0, doses, TIMES, "blood_venous", curve_id="c", compound_id="k")
    assert (table.curve_id[0], table.compound_id[0], table.matrix[0]) == ("c", "k", "blood_venous")
    assert table.dose_mg.tolist() == [[100.0, 50.0]]
    assert table.dose_duration_h.tolist() == [[0.0, 0.5]]
    assert np.isnan(table.conc_mg_l).all()
    assert (table.fup[0], table.bp_ratio[0]) == (0.2, 0.8)
    assert table.body_weight_kg[0] == 90.0
    blood = table.volume_l[0, ORGAN_INDEX["blood"]]
    assert blood == pytest.approx(5.0 if topology is HUB else 5.6 / 73 * 90)
    assert table.loq_mg_l[0] == pytest.approx(1e-5 * 150.0 / blood)


def test_plasma_is_blood_over_bp() -> None:
    tables = [curve_table_for(DRUG, HUB, 70.0, BOLUS, TIMES, matrix) for matrix in ("plasma", "blood_venous")]
    batch = to_batch(stack_tables(tables))
    amounts = mechanistic.solve(batch.system, batch.doses, batch.time_h)
    conc = in_matrix(batch, mechanistic.organ_concentrations(batch.system, amounts))
    assert torch.allclose(conc[0, 0] * 0.8, conc[1, 0])
    assert torch.allclose(conc[0, 1:], conc[1, 1:])


def test_stacked_curves_keep_their_own_curves() -> None:
    short = curve_table_for(DRUG, CIRCULATION, 70.0, BOLUS, np.asarray([1.0, 2.0]))
    long = curve_table_for(DRUG, CIRCULATION, 70.0, [Dose(0.0, 10.0, 1.0), Dose(6.0, 10.0)], TIMES)
    both = stack_tables([short, long]).validate()
    assert both.time_h.shape == (2, 13)
    assert both.dose_mg.tolist() == [[100.0, 0.0], [10.0, 10.0]]
    assert np.isnan(both.time_h[0, 2:]).all()
    batch, alone = to_batch(both), to_batch(short)
    joint = mechanistic.solve(batch.system, batch.doses, batch.time_h)[0, :, :2]
    single = mechanistic.solve(alone.system, alone.doses, alone.time_h)[0]
    assert torch.allclose(joint, single, rtol=1e-9)


def test_same_drug_in_two_doses_is_one_parameter_group() -> None:
    one = curve_table_for(DRUG, HUB, 70.0, BOLUS, TIMES)
    two = curve_table_for(DRUG, HUB, 90.0, [Dose(0.0, 5.0, 1.0)], TIMES)
    assert one.group_id[0] == two.group_id[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 10.0, 0.0, "nasal"), "route is not modelled"),
        ((0.0, 10.0, 0.5, "oral"), "contradicts the route"),
        ((-1.0, 10.0), "dose time_h"),
        ((0.0, 0.0), "dose amount_mg"),
        ((0.0, math.nan), "dose amount_mg is not finite"),
        ((0.0, 10.0, -1.0), "dose duration_h"),
        ((0.0, 10.0, 1.0, "iv_bolus"), "contradicts the route"),
        ((0.0, 10.0, 0.0, "iv_infusion"), "contradicts the route"),
    ],
)
def test_dose_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dose(*arguments)


def test_route_follows_duration() -> None:
    assert Dose(0.0, 1.0).route == "iv_bolus"
    assert Dose(0.0, 1.0, 0.5).route == "iv_infusion"
    assert Dose(0.0, 1.0, route="oral").route == "oral"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doses": []}, "doses are missing"),
        ({"body_weight_kg": 0.0}, "body_weight_kg"),
        ({"body_weight_kg": 400.0}, "body_weight_kg"),
        ({"time_h": np.asarray([])}, "time_h is no row"),
        ({"time_h": np.asarray([2.0, 1.0])}, "time_h is not increasing"),
        ({"time_h": np.asarray([-1.0, 1.0])}, "negative or not finite"),
        ({"time_h": np.asarray([1.0, np.nan])}, "negative or not finite"),
        ({"matrix": "sweat"}, "matrix is unknown"),
        (
            {"matrix": "blood_arterial"},
            "modelled.*plasma, serum, blood_venous.*reported blood is venous",
        ),
        ({"matrix": "arterial_plasma"}, "matrix cannot be modelled.*got arterial_plasma.*reported blood is venous"),
        ({"matrix": "tissue_homogenate"}, "matrix does not fit blood.*tissue_homogenate is for tissues"),
        ({"kp_method": "magic"}, "kp_method is unknown"),
        ({"doses": [Dose(0.0, 10.0, route="oral")]}, "ka_1_h is missing.*absorption rate constant"),
        ({"body_weight_kg": None}, "body_weight_kg is missing"),
        ({"drug": Drug(**GOOD, clint_l_h=1.0, cl_secretion_l_h=-2.0)}, "cl_secretion_l_h reabsorbs more"),
        ({"drug": Drug(**GOOD, clint_l_h=1.0), "topology": HUB, "body": MAN}, "body cannot be chosen on topology hub"),
        ({"body": MAN, "topology": CIRCULATION, "body_weight_kg": 71.0}, "body_weight_kg contradicts the body"),
        ({"drug": SATURABLE, "topology": HUB}, "saturable cannot be modelled on topology hub"),
        (
            {"drug": Drug(**GOOD, clint_l_h=1.0, ps_l_h={"brain": 1.0}), "topology": PERMEABLE},
            "ps_l_h.adipose is missing",
        ),
        ({"drug": Drug(**GOOD)}, "clearance of the liver is missing"),
        ({"drug": Drug(**GOOD, cl_total_l_h=1.0)}, "cl_total_l_h is below renal clearance"),
        ({"drug": Drug(**GOOD, cl_hepatic_l_h=90.0), "topology": CIRCULATION}, "reaches hepatic blood flow"),
        (
            {"drug": Drug(**GOOD, clint_l_h=1.0, cl_renal_l_h=60.0), "topology": CIRCULATION},
            "cl_renal_l_h exceeds kidney blood flow",
        ),
    ],
)
@pytest.mark.parametrize("topology", [HUB, CIRCULATION], ids=["hub", "circulation"])
def test_inputs_refused(topology: Any, changes: dict[str, Any], message: str) -> None:
    good = {"drug": DRUG, "topology": topology, "body_weight_kg": 70.0, "doses": BOLUS, "time_h": TIMES}
    with pytest.raises(InputError, match=message) as error:
        curve_table_for(**(good | changes))
    assert "\n" not in str(error.value)


def test_stack_refused() -> None:
    with pytest.raises(InputError, match="curves are missing"):
        stack_tables([])
    one, other = (curve_table_for(DRUG, topology, 70.0, BOLUS, TIMES) for topology in (HUB, CIRCULATION))
    with pytest.raises(InputError, match="topology differs"):
        stack_tables([one, other])

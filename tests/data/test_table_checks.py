"""Every check of ``CurveTable.validate`` refuses the value that it is there for, in one line that names it."""

from dataclasses import replace

import numpy as np
import pytest

from perfuse.data.table import CurveTable, system_parameters
from perfuse.errors import InputError
from perfuse.pk.topology import get_topology


def changed(table: CurveTable, field: str, at: tuple[int, ...], value: object) -> CurveTable:
    column = table.column(field).copy()
    column[at] = value
    return replace(table, **{field: column})


BAD = [
    ("volume_l", (1, 3), 0.0, r"volume_l\[brain\] is not allowed \(got 0 L\); allowed: > 0 and finite"),
    ("volume_l", (1, 3), np.inf, r"volume_l\[brain\]"),
    ("kp", (1, 1), 1e-15, r"kp\[liver\] is not allowed \(got 1e-15\); allowed: \[0.0001, 1e\+06\]"),
    ("kp", (1, 1), 1e7, r"kp\[liver\]"),
    ("kp", (1, 1), np.nan, r"kp\[liver\]"),
    ("bp_ratio", (1,), -1.0, "bp_ratio"),
    ("body_weight_kg", (1,), np.nan, "body_weight_kg"),
    ("loq_mg_l", (1,), 0.0, "loq_mg_l"),
    ("fup", (1,), 0.0, r"fup is not allowed \(got 0\); allowed: \(0, 1\]"),
    ("fup", (1,), 1.01, "fup"),
    ("flow_l_h", (1, 2), -3.0, r"flow_l_h\[kidney\] is not allowed \(got -3 L/h\)"),
    ("elimination_l_h", (1, 0), np.inf, "elimination_l_h"),
    ("dose_mg", (1, 0), -5.0, r"dose_mg is not allowed \(got -5 mg\)"),
    ("dose_mg", (1, 0), 0.0, r"dose_mg is not allowed \(got 0 mg\); allowed: > 0 in total"),
    ("dose_duration_h", (1, 0), -1.0, "dose_duration_h"),
    ("dose_duration_h", (1, 0), 1e-9, r"dose_duration_h is not allowed .*allowed: 0 \(bolus\) or >= 1e-6"),
    ("dose_time_h", (1, 0), np.nan, "dose_time_h"),
    ("time_h", (1, 5), -1.0, r"time_h is not allowed \(got -1 h\)"),
    ("time_h", (1, 5), np.inf, "time_h"),
    ("time_h", (1, 5), 0.0, "time_h is not allowed .*strictly increasing; hint: sort the rows by time"),
    ("conc_mg_l", (1, 0, 4), -0.1, r"conc_mg_l\[blood\] is not allowed \(got -0.1 mg/L\)"),
    ("conc_mg_l", (1, 0, 4), np.inf, r"conc_mg_l\[blood\]"),
]


@pytest.mark.parametrize(("field", "at", "value", "match"), BAD)
def test_each_check_names_curve_field_and_value(
    t1_table: CurveTable, field: str, at: tuple[int, ...], value: float, match: str
) -> None:
    table = t1_table.take([0, 1, 2])
    assert table.validate() is table
    with pytest.raises(InputError, match=match) as error:
        changed(table, field, at, value).validate("file.csv")
    text = str(error.value)
    assert text.startswith(f"file.csv: curve {table.curve_id[1]}: ")
    assert "\n" not in text


def test_no_curves_wrong_shapes_and_unknown_matrices(t1_table: CurveTable) -> None:
    with pytest.raises(InputError, match="curves are missing"):
        t1_table.take([]).validate()
    with pytest.raises(InputError, match=r"fup has a wrong shape \(got \(2,\)\); allowed: \(3,\)"):
        replace(t1_table.take([0, 1, 2]), fup=np.ones(2)).validate()
    with pytest.raises(InputError, match=r"matrix cannot be modelled \(got blood_arterial\)"):
        replace(t1_table.take([0]), matrix=np.asarray(["blood_arterial"])).validate()
    with pytest.raises(InputError, match=r"matrix is unknown \(got tears\); allowed: plasma, serum, blood_venous"):
        replace(t1_table.take([0]), matrix=np.asarray(["tears"])).validate()


def test_absent_values_and_padding_are_allowed(t1_table: CurveTable) -> None:
    table = t1_table.take([0])
    table.conc_mg_l[0, 3] = np.nan
    table.time_h[0, 90:] = np.nan
    table.conc_mg_l[0, :, 90:] = np.nan
    table.validate()


def test_a_flow_that_leaves_nothing_for_an_edge_is_refused(t1_table: CurveTable) -> None:
    table = replace(t1_table.take([0]), topology=get_topology("circulation"))
    with pytest.raises(InputError, match=r"flow arterial -> liver .* L/h\); allowed: > 0"):
        system_parameters(changed(table, "flow_l_h", (0, 8), 500.0))

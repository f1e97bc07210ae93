"""CSV of drugs x doses: the columns beyond the simplest drug arrive in the table, bad ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perfuse.data.importers.drug_csv import read_drug_dose_csv
from perfuse.errors import InputError
from perfuse.pk.topology import get_topology

TIMES = np.asarray([1.0, 2.0])
HEAD = "name,mw_g_mol,logp,fup,dose_mg"


def _read(tmp_path: Path, text: str, topology: str = "circulation"):  # type: ignore[no-untyped-def]
    path = tmp_path / "d.csv"
    path.write_text(text)
    return read_drug_dose_csv(path, get_topology(topology), TIMES)


def test_absorption_pathway_permeability_and_liver_model(tmp_path: Path) -> None:
    table = _read(
        tmp_path,
        f"{HEAD},route,clint_l_h,liver_model,ka_1_h,lag_h,fa,fg,vmax_mg_h,km_u_mg_l,ps_l_h_brain,ps_l_h_adipose,"
        "ps_l_h_muscle\n"
        "a,300,1,0.2,10,oral,5,,1.5,0.2,0.5,0.5,9,0.3,1,2,3\n"
        "b,300,1,0.2,10,,500,parallel-tube,,,,,,,1,2,3\n",
        "circulation-ps",
    )
    assert (table.ka_1_h[0], table.lag_h[0], table.f_abs[0]) == (1.5, 0.2, 0.25)
    assert table.dose_route.tolist() == [[1], [0]]
    assert table.vmax_mg_h[:, 0].tolist() == [pytest.approx(9.0), 0.0]
    assert table.km_u_mg_l[0, 0] == 0.3
    assert table.ps_l_h.tolist() == [[1, 2, 3]] * 2
    assert table.elimination_l_h[0, 0] == 5.0
    assert table.elimination_l_h[1, 0] > 600.0  # clears more than a well-stirred liver of 500 L/h


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD},clint_l_h,route\na,300,1,0.2,10,5,oral\n", "line 2.*ka_1_h is missing"),
        (f"{HEAD},clint_l_h,ka_1_h\na,300,1,0.2,10,5,-1\n", "line 2.*ka_1_h is not allowed"),
        (f"{HEAD},vmax_mg_h\na,300,1,0.2,10,5\n", "line 2.*saturable km_u_mg_l is missing"),
        (f"{HEAD},clint_l_h,liver_model\na,300,1,0.2,10,5,tube\n", "line 2.*liver_model is unknown"),
        (f"{HEAD},clint_l_h,ps_l_h_brain\na,300,1,0.2,10,5,-1\n", "line 2.*ps_l_h.brain is not allowed"),
        (f"{HEAD},clint_l_h,ps_l_h_blood\na,300,1,0.2,10,5,1\n", "column ps_l_h_blood is unknown"),
        (f"{HEAD},clint_l_h,route,ka_1_h\na,300,1,0.2,10,5,oral,1\na,300,1,0.2,10,5,oral,2\n", "ka_1_h differs"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _read(tmp_path, text)

"""What a concentration was measured in, and what the reported blood can be compared with."""

from __future__ import annotations

from perfuse.errors import InputError

MATRICES = ("blood_venous", "blood_arterial", "plasma", "serum", "arterial_plasma", "tissue_homogenate")
"""What the `blood` row of a curve was measured in. Plasma = blood / (B:P); serum is read as plasma."""

BLOOD_MATRICES = ("plasma", "serum", "blood_venous")
"""What the blood row can be compared with: reported blood is venous, and tissues are homogenates."""
TISSUE_MATRIX = "tissue_homogenate"
PLASMA_MATRICES = ("plasma", "serum")
"""Those of them that are blood / (B:P)."""


def check_blood_matrix(matrix: str, where: str = "") -> None:
    """Refuse a matrix that the blood row does not mean: like is compared with like.

    Raises:
        InputError: for an arterial matrix, ``tissue_homogenate``, or an unknown one.
    """
    if matrix in BLOOD_MATRICES:
        return
    if matrix not in MATRICES:
        problem, hint = "is unknown", ""
    elif "arterial" in matrix:
        problem, hint = "cannot be modelled", "reported blood is venous, and arterial blood differs from it"
    else:
        problem, hint = "does not fit blood", f"{matrix} is for tissues"
    raise InputError("matrix", problem, value=matrix, allowed=", ".join(BLOOD_MATRICES), hint=hint, where=where)

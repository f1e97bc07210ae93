"""Decompositions on several threads give what one thread gives, and their errors."""

import pytest
import torch

from perfuse.pk.batched import in_threads


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("n", [1, 63, 65, 130])
def test_parts_are_joined_in_order(n: int) -> None:
    matrices = torch.rand(n, 4, 4, dtype=torch.float64)
    symmetric = matrices + matrices.mT
    for ours, theirs in zip(in_threads(torch.linalg.eigh, symmetric), torch.linalg.eigh(symmetric), strict=True):
        assert torch.equal(ours, theirs)
    with torch.inference_mode():
        assert torch.equal(in_threads(torch.linalg.eig, symmetric)[0], torch.linalg.eig(symmetric)[0])


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_another_thread_is_raised_here() -> None:
    matrices = torch.rand(80, 3, 3, dtype=torch.float64)
    matrices[70] = torch.nan
    with pytest.raises(RuntimeError, match="inf|nan|NaN|converge"):
        in_threads(torch.linalg.eig, matrices)

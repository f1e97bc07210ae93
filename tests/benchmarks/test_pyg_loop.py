"""The PyTorch Geometric reference: it learns, batches curves apart, and scores as training does."""

from dataclasses import replace

import pytest
import torch

from perfuse.config import LossConfig
from perfuse.data.table import CurveTable, to_batch
from perfuse.pk.physiology import ORGANS
from perfuse.training.loss import CurveLoss

pytest.importorskip("torch_geometric", reason="the extra bench is not installed")
from benchmarks import pyg_loop


@pytest.fixture(scope="module")
def short_table(t1_table: CurveTable) -> CurveTable:
    """16 of the shared curves at every ninth time: the loop's cost is proportional to times."""
    table, every = t1_table.take(range(16)), slice(None, None, 9)
    return replace(
        table, time_h=table.time_h[:, every], conc_mg_l=table.conc_mg_l[:, :, every],
        censored=table.censored[:, :, every],
    )  # fmt: skip


def test_it_learns_by_training_s_own_loss(short_table: CurveTable) -> None:
    loop, rows = pyg_loop.PygLoop(short_table), list(range(8))
    with torch.no_grad():
        predicted = loop.predict(rows)
        batch, loss = to_batch(short_table.take(rows)), CurveLoss(LossConfig())
        expected = float(loss(predicted, batch).total) / loss.weight(batch).total
        assert float(loop.loss(predicted, rows)) == pytest.approx(expected, rel=1e-5)
    losses = [loop.train_step(rows) for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]


def test_curves_of_a_batch_do_not_meet(short_table: CurveTable) -> None:
    loop = pyg_loop.PygLoop(short_table)
    with torch.no_grad():
        together = loop.predict([4, 9])
        alone = torch.cat([loop.predict([4]), loop.predict([9])])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=0)
    assert together.shape == (2, len(ORGANS), short_table.time_h.shape[1])


def test_its_rate_and_its_table(
    short_table: CurveTable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyg_loop.train_rate(short_table, 4, 0.01, hidden=16) > 0
    monkeypatch.setattr(pyg_loop, "simulate_task", lambda *_: short_table)
    monkeypatch.setattr("sys.argv", ["pyg_loop.py", "--batch-sizes", "4", "--threads", "1", "--seconds", "0.01"])
    pyg_loop.main()
    assert "| 4 | 1 |" in capsys.readouterr().out

"""The CUDA path: the same results as on the CPU within rounding, and every precision trains."""

from pathlib import Path

import pytest
import torch

from perfuse.config import MODEL_CONFIGS, RunConfig
from perfuse.data.table import CurveTable, to_batch
from perfuse.training.load import load_model
from perfuse.training.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def run_config(model: str, device: str, precision: str = "32") -> RunConfig:
    training = {"epochs": 5, "device": device, "precision": precision, "tensorboard": False}
    return RunConfig.model_validate({"model": {"name": model}, "training": training})


@pytest.mark.parametrize("model", list(MODEL_CONFIGS))
def test_a_gpu_run_agrees_with_a_cpu_run(model: str, t1_table: CurveTable, tmp_path: Path) -> None:
    predictions = []
    batch = to_batch(t1_table)
    for device in ("cpu", "cuda"):
        train(t1_table, run_config(model, device), tmp_path / device)
        with torch.no_grad():
            predictions.append(load_model(tmp_path / device).model(batch).log()[batch.mask])
    assert (predictions[0] - predictions[1]).abs().mean() < 0.02


@pytest.mark.parametrize("precision", ["bf16", "16"])
@pytest.mark.parametrize("model", list(MODEL_CONFIGS))
def test_every_model_trains_in_mixed_precision(
    model: str, precision: str, t1_table: CurveTable, tmp_path: Path
) -> None:
    result = train(t1_table, run_config(model, "cuda", precision), tmp_path / "run")
    assert result.steps >= 4
    assert result.best_val_loss < 100


def test_a_batch_on_the_gpu_gives_the_same_curves(t1_table: CurveTable, tmp_path: Path) -> None:
    train(t1_table, run_config("flux", "cpu"), tmp_path / "run")
    model, batch = load_model(tmp_path / "run").model, to_batch(t1_table)
    with torch.no_grad():
        on_cpu = model(batch)
        on_gpu = model.to("cuda")(batch.to("cuda")).cpu()
    torch.testing.assert_close(on_gpu[batch.mask], on_cpu[batch.mask], rtol=1e-4, atol=0)

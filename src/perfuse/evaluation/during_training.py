"""The metric that training shows beside its loss, handed to the trainer so that training imports no judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from perfuse.data.loader import LoadedBatch
from perfuse.evaluation.metrics import FLOOR_FRACTION_OF_LOQ


def validation_gmfe(batches: Sequence[LoadedBatch], predictions: Sequence[Tensor]) -> dict[str, float]:
    """``val_gmfe``: exp of the mean |ln(pred / true)|, every curve weighing the same.

    Values that count are those of ``evaluation.metrics``; a compound is known there, a curve here, so the two figures
    differ where compounds have unequal numbers of curves.

    Args:
        batches: The validation split.
        predictions: mg/L, ``(B, O, T)``, one per batch.
    """
    total, curves = 0.0, 0
    for loaded, pred in zip(batches, predictions, strict=True):
        batch = loaded.batch
        counts = batch.mask & ~batch.censored
        floor = FLOOR_FRACTION_OF_LOQ * batch.loq_mg_l[:, None, None]
        fold = (torch.maximum(pred.to(floor.dtype), floor) / torch.where(counts, batch.conc_mg_l, 1.0)).log().abs()
        n = counts.sum((1, 2))
        per_curve = torch.where(counts, fold, 0.0).sum((1, 2)) / n.clamp_min(1)
        total += float(per_curve[n > 0].sum())
        curves += int((n > 0).sum())
    return {"val_gmfe": float(torch.tensor(total / curves, dtype=torch.float64).exp())} if curves else {}

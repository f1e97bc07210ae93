"""The metric that training shows beside its loss, handed to the trainer so that training imports no judge."""

from __future__ import annotations

import torch
from torch import Tensor

from perfuse.data.loader import LoadedBatch
from perfuse.evaluation.metrics import FLOOR_FRACTION_OF_LOQ


class ValidationGmfe:
    """``val_gmfe``: exp of the mean |ln(pred / true)|, every curve weighing the same.

    Values that count are those of ``evaluation.metrics``; a compound is known there, a curve here, so the two figures
    differ where compounds have unequal numbers of curves.
    """

    def sums(self, loaded: LoadedBatch, pred_mg_l: Tensor) -> Tensor:
        """Sum over curves of their mean |ln(pred / true)|, and how many curves have a value, ``(2,)``."""
        batch = loaded.batch
        counts = batch.mask & ~batch.censored
        floor = FLOOR_FRACTION_OF_LOQ * batch.loq_mg_l[:, None, None]
        fold = (torch.maximum(pred_mg_l.to(floor.dtype), floor) / torch.where(counts, batch.conc_mg_l, 1.0)).log().abs()
        n = counts.sum((1, 2))
        per_curve = torch.where(counts, fold, 0.0).sum((1, 2)) / n.clamp_min(1)
        return torch.stack((per_curve[n > 0].sum(), (n > 0).sum()))

    def finish(self, sums: Tensor) -> dict[str, float]:
        """``val_gmfe``, where any curve has a value."""
        total, curves = sums.tolist()
        return {"val_gmfe": float(torch.tensor(total / curves, dtype=torch.float64).exp())} if curves else {}

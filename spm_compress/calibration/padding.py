"""Rows of real tokens among those of padding."""

from __future__ import annotations

import torch
from torch import Tensor

from spm_compress.calibration.data import Batch

__all__ = ["real_rows"]


def real_rows(x: Tensor, batch: Batch) -> Tensor:
    """Return the inputs x (..., n) as rows (rows, n) float32, without those that the attention mask hides."""
    rows = x.detach().reshape(-1, x.shape[-1]).to(torch.float32, copy=True)  # the model may change x afterwards
    mask = batch.get("attention_mask")
    if mask is None or tuple(mask.shape) != tuple(x.shape[:-1]):
        return rows
    return rows[torch.from_numpy(mask.reshape(-1) != 0)]

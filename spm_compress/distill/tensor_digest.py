"""Tensors by their bytes, whatever their dtype and device."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import torch
from torch import Tensor

__all__ = ["add_tensors"]


def add_tensors(digest: blake2b, tensors: Mapping[str, Tensor]) -> None:
    """Add names, dtypes, shapes and values to a digest, in the order that they come in."""
    for name, x in tensors.items():
        digest.update(f"{name}/{x.dtype}/{tuple(x.shape)}/".encode())
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

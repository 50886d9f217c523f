"""Batches as a loader yields them, and models run on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spm_compress.distill.outputs import Batch
from spm_compress.errors import SourceError, first_line

__all__ = ["masked", "placed", "run", "samples_of"]


def placed(part: Any, device: torch.device) -> Any:
    """Return a batch on a device: keyword arguments, or the first of several tensors."""
    if isinstance(part, Mapping):
        return {name: x.to(device) for name, x in part.items()}
    return (part[0] if isinstance(part, (tuple, list)) else part).to(device)


def run(model: nn.Module, part: Any) -> Any:
    """Return what a model answers. Raises SourceError where it does not run."""
    try:
        return model(**part) if isinstance(part, Mapping) else model(part)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError) as error:  # the user's own
        raise SourceError(f"the model does not run on the data ({first_line(error)})") from error


def masked(part: Any) -> Batch:
    """Return what may hold an `attention_mask`."""
    return part if isinstance(part, Mapping) else {}


def samples_of(part: Any) -> int:
    """Return how many samples a batch has."""
    first = next(iter(part.values())) if isinstance(part, Mapping) else part
    return len(first)

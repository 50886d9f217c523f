"""The optimizer that a training is asked for."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from spm_compress.distill.settings import DistillSettings
from spm_compress.errors import UsageError, first_line

__all__ = ["made_optimizer"]

# Adam's own 0.999 remembers the gradients of a thousand steps, about as many as there are.
_BETAS = (0.9, 0.99)


def made_optimizer(groups: list[dict[str, Any]], settings: DistillSettings) -> torch.optim.Optimizer:
    """Return it for groups of parameters. Raises UsageError for one that cannot step on them."""
    kind = getattr(torch.optim, settings.optimizer)
    takes = inspect.signature(kind).parameters
    if "lr" not in takes or kind in (torch.optim.LBFGS, torch.optim.SparseAdam):
        raise UsageError(
            f"`optimizer` {settings.optimizer!r}: does not step on one dense gradient at a time; use AdamW"
        )
    wanted = {"weight_decay": settings.weight_decay, "betas": _BETAS}
    chosen: dict[str, Any] = {name: value for name, value in wanted.items() if name in takes}
    if "fused" in takes and all(each.device.type == "cpu" for group in groups for each in group["params"]):
        chosen["fused"] = True  # AdamW on a table of 30522x384: 18 ms, 119 one operation after the other
    try:
        optimizer: torch.optim.Optimizer = kind(groups, lr=settings.rates.spm, **chosen)
    except ValueError as error:  # Muon takes matrices only
        raise UsageError(f"`optimizer` {settings.optimizer!r}: {first_line(error)}; use AdamW") from error
    return optimizer

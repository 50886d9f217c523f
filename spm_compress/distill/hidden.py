"""What the blocks of a model answer while it runs, to be compared as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spm_compress.distill.outputs import Batch, squared_error
from spm_compress.distill.transformer_blocks import first_of

__all__ = ["hidden_distance", "tapped"]


@contextmanager
def tapped(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Yield a mapping that fills with what each module answers: its name -> (samples, ..., features)."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], answer: Any) -> None:
            found[name] = first_of(answer)

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def hidden_distance(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return the mean over blocks of ||x - target||^2 / ||target||^2 over real tokens; both as `tapped` yields them."""
    return torch.stack([squared_error(x.float(), teacher[name].float(), batch) for name, x in student.items()]).mean()

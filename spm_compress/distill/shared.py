"""Embeddings that train as a whole, besides row by row.

A row of a table learns only from samples that hold its word, and most words are rare. While a student trains, all rows
of a table therefore share a matrix besides: W + W M^T, with M zero at first. What is to change in all words changes in
those too that the data never shows. Folded into the table afterwards, it costs nothing; what it gains is in
docs/measurements.md.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spm_compress.distill.tables import lone_tables

__all__ = ["shared_changes"]

_NAME = "shared_change"


@contextmanager
def shared_changes(student: nn.Module, trained: dict[str, nn.Parameter], but: Container[str] = ()) -> Iterator[None]:
    """Add a matrix (width, width) to each table that trains and belongs to one module alone; fold them in at the end.

    trained: parameters by name, to which the matrices are added; but: names of tables that get none. Afterwards the
    student has the modules and parameters that it had, and answers as with the matrices.
    """
    tables = {
        name.removesuffix("weight"): module
        for name, module in lone_tables(student).items()
        if name in trained and name not in but
    }
    for name, module in tables.items():
        matrix = nn.Parameter(module.weight.new_zeros(module.embedding_dim, module.embedding_dim))
        module.register_parameter(_NAME, matrix)
        trained[f"{name}{_NAME}"] = matrix
    hooks = [module.register_forward_hook(_changed) for module in tables.values()]
    try:
        yield
    finally:
        for hook, module in zip(hooks, tables.values(), strict=True):
            hook.remove()
            with torch.no_grad():
                module.weight.copy_(_changed(module, (), module.weight))
            delattr(module, _NAME)


def _changed(module: nn.Module, _: tuple[Tensor, ...], x: Tensor) -> Tensor:
    matrix: Tensor = getattr(module, _NAME)
    return x + x @ matrix.T

"""A graph as a module that torch can train, whatever it was read from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["ImportedModel"]


class ImportedModel(nn.Module):
    """A graph in torch, called with its inputs by name.

    graph: what runs; inputs: name -> dtype, in its order, float32 for any of floating point; members: name of a tensor
    of the source -> name of the parameter that it became, the matrix of an nn.Linear as (out, in); batch: number of
    samples that the graph is for, None for any; importer: name and version of what made it, None for torch itself.
    """

    importer: str | None = None

    def __init__(
        self, graph: nn.Module, inputs: Mapping[str, torch.dtype], members: Mapping[str, str], batch: int | None
    ) -> None:
        super().__init__()
        self.graph = graph
        self.inputs, self.members, self.batch = inputs, members, batch

"""A student trains through the rounding of its file: what it computes with is what the file decodes to.

The student's own parameters are the latents, which a step changes by less than a level; whenever it runs, the rounded
numbers stand in their place. Of a table the rows are rounded that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from spm_compress.codecs import FLOAT32, Grid, Rounding, StoredArray, straight_through
from spm_compress.distill.tables import lone_tables

__all__ = ["RoundedStudent", "is_scale"]

_T = TypeVar("_T")
_SCALE = ".scale_ratio"


def is_scale(name: str) -> bool:
    """Return whether a parameter is of the scales that `RoundedStudent` trains."""
    return name.endswith(_SCALE)


class RoundedStudent:
    """Runs a student with numbers as they are stored.

    stored: name of one of the student's parameters, as `named_parameters` has it -> how a file holds it. Scales train
    as ratios to those of the file, so that one learning rate fits all.
    """

    def __init__(self, student: nn.Module, stored: Mapping[str, StoredArray]) -> None:
        self._call = _Call(student)
        parameters = dict(student.named_parameters())
        self._parameters = {name: parameters[name] for name in stored}
        self._roundings = {name: Rounding.of(each).to(self._parameters[name].device) for name, each in stored.items()}
        self.ratios = {
            f"{name}{_SCALE}": nn.Parameter(torch.ones_like(each.scales))
            for name, each in self._roundings.items()
            if each.scales is not None
        }
        self._tables = _tables(student, self._roundings)

    def __call__(self, run: Callable[[], _T]) -> _T:
        """Return what a function returns that runs the student or parts of it; gradients reach latents and scales."""
        found = {
            f"student.{name}": straight_through(each.codec, self._parameters[name], self._scales(name))
            for name, each in self._roundings.items()
            if name not in self._tables and each.codec != FLOAT32
        }
        with self._read_rounded():
            answer: _T = functional_call(self._call, found, (run,))
        return answer

    def stored(self) -> dict[str, StoredArray]:
        """Return the arrays as a file holds them now: they decode to what the student runs with."""
        return {
            name: each.stored(self._parameters[name], self.ratios.get(f"{name}{_SCALE}"))
            for name, each in self._roundings.items()
        }

    @torch.no_grad()
    def fold(self) -> dict[str, StoredArray]:
        """Put what `stored` decodes to in the latents' place; return that."""
        found = self.stored()
        for name, each in found.items():
            self._parameters[name].copy_(each.decoded())
        return found

    def _scales(self, name: str) -> Tensor | None:
        return self._roundings[name].scales_at(self.ratios.get(f"{name}{_SCALE}"))

    @contextmanager
    def _read_rounded(self) -> Iterator[None]:
        hooks = [
            module.register_forward_hook(partial(_rounded_rows, codec, self._scales(name)))
            for name, (module, codec) in self._tables.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Call(nn.Module):
    """Calls a function under the names of a student's parameters, for `functional_call`."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


def _tables(student: nn.Module, roundings: Mapping[str, Rounding]) -> dict[str, tuple[nn.Embedding, Grid]]:
    """Return the tables that can be rounded as they are read: nothing else uses them, and no scale spans two rows."""
    found = {}
    for name, module in lone_tables(student).items():
        codec = roundings[name].codec if name in roundings else None
        if isinstance(codec, Grid) and codec.shared not in ("column", "matrix"):
            found[name] = (module, codec)
    return found


def _rounded_rows(
    codec: Grid, scales: Tensor | None, module: nn.Module, read: tuple[Tensor, ...], rows: Tensor
) -> Tensor:
    del module
    assert scales is not None
    return straight_through(codec, rows, F.embedding(read[0], scales))

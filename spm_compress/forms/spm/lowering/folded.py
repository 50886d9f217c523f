"""How large the values are that a runtime makes of a chain's numbers when it loads the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from spm_compress.forms.lowering import Lowering, Stages

if TYPE_CHECKING:
    from spm_compress.forms.spm.form import SPM

__all__ = ["folded"]


def folded(structure: SPM, lowering: Lowering) -> int:
    """As `Form.folded`: coefficients, blocks, or what the matrix goes through; at least the largest of them."""
    return max(_sizes(structure, lowering), default=0)


def _sizes(structure: SPM, lowering: Lowering) -> Iterator[int]:
    into = structure.in_features
    for chain, after in zip(structure.chains, structure.widths[2:], strict=True):
        yield max(chain.stages, 2) * chain.width  # positions have twice the bytes of numbers
        if isinstance(lowering, Stages):
            continue
        slots = [group.block * len(group.members(chain.width)) for group in chain.groups]
        yield sum(count * group.block for count, group in zip(slots, chain.groups, strict=True))
        if lowering.layout is None:
            yield max(into, chain.width + after, *slots) * into  # a fold is completed with less than a copy

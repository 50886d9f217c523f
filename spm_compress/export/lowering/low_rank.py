"""The low-rank term beside a chain: two thin products."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from spm_compress.export.lowering.emitter import Emitter
from spm_compress.export.lowering.interface import Layout

__all__ = ["with_low_rank"]


def with_low_rank(emit: Emitter, x: ir.Value | None, layout: Layout | None, chains: Callable[[], ir.Value]) -> ir.Value:
    """Return what `chains` emits plus left (right x), each where the structure has it.

    layout: of x and of the result; None: the result is the matrix (out, in) and there is no x.
    """
    op, structure = emit.op, emit.structure
    if not structure.rank:
        return chains()
    left, right = (
        op.Cast(emit.numbers(f"{len(structure.chains)}.{name}"), to=emit.dtype) for name in ("left", "right")
    )
    if layout is Layout.FEATURE_MAJOR:
        added = op.MatMul(left, op.MatMul(right, x))
    elif layout is Layout.BATCH_MAJOR:
        added = op.MatMul(op.MatMul(x, op.Transpose(right, perm=[1, 0])), op.Transpose(left, perm=[1, 0]))
    else:
        added = op.MatMul(left, right)
    return op.Add(chains(), added) if structure.chains else added

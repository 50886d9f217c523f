"""Products with matrices of numbers, as ONNX."""

from __future__ import annotations

import onnx_ir as ir

from spm_compress.forms.emitter import Emitter
from spm_compress.forms.lowering import Layout, Lowering

__all__ = ["product", "two_products"]


def product(emit: Emitter, matrix: ir.Value, x: ir.Value | None, lowering: Lowering) -> ir.Value:
    """Return the product of a matrix (out, in) with x, which is laid out as the lowering says; the matrix without x."""
    op = emit.op
    matrix = op.Cast(matrix, to=emit.dtype)
    if x is None:
        return matrix
    if lowering.layout is Layout.FEATURE_MAJOR:
        return op.MatMul(matrix, x)
    return op.MatMul(x, op.Transpose(matrix, perm=[1, 0]))


def two_products(emit: Emitter, left: ir.Value, right: ir.Value, x: ir.Value | None, lowering: Lowering) -> ir.Value:
    """Return left (right x), left @ right without x; x as in `product`."""
    if x is None:
        return emit.op.MatMul(*(emit.op.Cast(each, to=emit.dtype) for each in (left, right)))
    return product(emit, left, product(emit, right, x, lowering), lowering)

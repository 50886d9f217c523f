"""A Monarch matrix as ONNX: two batched products and a Transpose between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from spm_compress.forms.emitter import Emitter
from spm_compress.forms.lowering import Layout, Lowering

if TYPE_CHECKING:
    from spm_compress.forms.monarch.form import Monarch

__all__ = ["lower"]


def lower(form: Monarch, emit: Emitter, x: ir.Value | None, lowering: Lowering) -> ir.Value:
    """Emit the map of x, laid out as the lowering says; without x the matrix."""
    op, (p, q), k, s = emit.op, form.tile, form.right_blocks, form.left_blocks
    left, right = (op.Cast(emit.constant(name), to=emit.dtype) for name in ("left", "right"))
    missing = k * q - form.in_features
    if x is None:
        rows = op.Reshape(op.Transpose(right, perm=[1, 0, 2]), emit.integers(s, 1, k, q))
        tiles = op.Mul(op.Reshape(left, emit.integers(s, p, k, 1)), rows)  # (s, p, k, q)
        whole = _cropped(emit, op.Reshape(tiles, emit.integers(s * p, k * q)), form.out_features, 0)
        return _cropped(emit, whole, form.in_features, 1)
    if lowering.layout is Layout.FEATURE_MAJOR:
        x = op.Pad(x, emit.integers(0, 0, missing, 0)) if missing else x
        between = op.MatMul(right, op.Reshape(x, emit.integers(k, q, -1)))  # (k, s, rows)
        mixed = op.MatMul(left, op.Transpose(between, perm=[1, 0, 2]))  # (s, p, rows)
        return _cropped(emit, op.Reshape(mixed, emit.integers(s * p, -1)), form.out_features, 0)
    x = op.Pad(x, emit.integers(0, 0, 0, missing)) if missing else x
    blocks = op.Transpose(op.Reshape(x, emit.integers(-1, k, q)), perm=[1, 0, 2])  # (k, rows, q)
    between = op.MatMul(blocks, op.Transpose(right, perm=[0, 2, 1]))  # (k, rows, s)
    mixed = op.MatMul(op.Transpose(between, perm=[2, 1, 0]), op.Transpose(left, perm=[0, 2, 1]))  # (s, rows, p)
    return _cropped(
        emit, op.Reshape(op.Transpose(mixed, perm=[1, 0, 2]), emit.integers(-1, s * p)), form.out_features, 1
    )


def _cropped(emit: Emitter, values: ir.Value, size: int, axis: int) -> ir.Value:
    """Return the first `size` entries along an axis."""
    return emit.op.Slice(values, emit.integers(0), emit.integers(size), emit.integers(axis))

"""Products with matrices of numbers, as ONNX."""

from __future__ import annotations

import onnx_ir as ir

from spm_compress.codecs import BLOCKS, Codec, Float, Grid
from spm_compress.codecs.constants import integers, number
from spm_compress.codecs.scales import emitted_scales
from spm_compress.forms.emitter import Emitter
from spm_compress.forms.lowering import Layout, Lowering

__all__ = ["int8_product", "looked_up", "nbits_block", "nbits_product", "product", "two_products", "whole_numbers"]

# On x86 without VNNI the kernel adds two products of activations (at most 255) and levels in 16 bits that saturate:
# 2 * 255 * 64 fits, 2 * 255 * 65 does not. With levels of up to 127 one was off by 7 %, and by 45 % with many of them.
_OUTERMOST = 64
# Of a row of zeros, which has no scale.
_LEAST_SCALE = 1e-30


def product(emit: Emitter, name: str, x: ir.Value | None, lowering: Lowering) -> ir.Value:
    """Return the product of a made matrix (out, in) with x, which is laid out as the lowering says; it alone without x.

    The products of pieces of its rows stand one after the other.
    """
    op = emit.op
    pieces = [op.Cast(emit.constant(piece), to=emit.dtype) for piece in emit.pieces(name)]
    if x is None:
        (matrix,) = pieces
        return matrix
    if lowering.layout is Layout.FEATURE_MAJOR:
        return _beside(emit, [op.MatMul(piece, x) for piece in pieces], 0)
    return _beside(emit, [op.MatMul(x, op.Transpose(piece, perm=[1, 0])) for piece in pieces], -1)


def two_products(emit: Emitter, left: str, right: str, x: ir.Value | None, lowering: Lowering) -> ir.Value:
    """Return left (right x), left @ right without x; both as in `product`."""
    if x is None:
        return emit.op.MatMul(*(product(emit, each, None, lowering) for each in (left, right)))
    return product(emit, left, product(emit, right, x, lowering), lowering)


def _beside(emit: Emitter, products: list[ir.Value], axis: int) -> ir.Value:
    return products[0] if len(products) == 1 else emit.op.Concat(*products, axis=axis)


def whole_numbers(emit: Emitter, name: str) -> dict[str, ir.Value]:
    """Return stored matrices as `levels`, int8 (maps * in, out), and `scales`, (maps * out,), float32.

    Of pieces of their rows `0.levels`, `1.levels`, ... Levels of 8 bits, and those that share a scale with other than
    their row, are rounded once more: to -64 to 64, a scale a row.
    """
    return {
        f"{piece.removesuffix(name)}{part}": made
        for piece in emit.pieces(name)
        for part, made in _whole_numbers(emit, piece).items()
    }


def _whole_numbers(emit: Emitter, name: str) -> dict[str, ir.Value]:
    op, codec = emit.op, emit.codec(name)
    shape, parts = emit.shape(name), emit.parts(name)
    if isinstance(codec, Grid) and codec.shared == "row" and codec.outermost <= _OUTERMOST:
        levels = codec.emit_levels(op, parts["codes"], shape)
        scales = emitted_scales(op, parts, len(shape))
    else:
        matrix = codec.emit(op, parts, shape)
        scales = op.Max(op.Mul(emit.largest(op.Abs(matrix), 2), number(op, 1 / _OUTERMOST)), number(op, _LEAST_SCALE))
        levels = op.Round(op.Div(matrix, scales))
    whole = op.Transpose(op.Cast(levels, to=ir.DataType.INT8), perm=[0, 2, 1])
    return {"levels": op.Reshape(whole, integers(op, -1, shape[1])), "scales": op.Reshape(scales, integers(op, -1))}


def int8_product(emit: Emitter, name: str, x: ir.Value) -> ir.Value:
    """Return the product of `whole_numbers` with x (..., in), (..., out), as `quantize_dynamic` writes it.

    ONNX Runtime has one kernel for it.
    """
    op = emit.op
    x = x if emit.dtype == ir.DataType.FLOAT else op.Cast(x, to=ir.DataType.FLOAT)
    rounded, scale, zero = op.DynamicQuantizeLinear(x, _outputs=3)
    products = []
    for piece in emit.pieces(name):
        levels, scales = (emit.constant(f"{piece.removesuffix(name)}{part}") for part in ("levels", "scales"))
        product = op.Cast(op.MatMulInteger(rounded, levels, zero), to=ir.DataType.FLOAT)
        products.append(op.Mul(product, op.Mul(scale, scales)))
    return emit.narrowed(_beside(emit, products, -1))


def nbits_block(codec: Codec, features: int) -> int | None:
    """Return how many numbers of a row of so many share a scale in `nbits_product`; None where it cannot be had."""
    if not isinstance(codec, Grid) or (codec.kind, codec.bits) != ("integer", 4):
        return None
    if isinstance(codec.shared, int):
        return codec.shared
    found = next((block for block in reversed(BLOCKS) if features % block == 0), None)
    return found if codec.shared == "row" else None


def nbits_product(emit: Emitter, name: str, x: ir.Value) -> ir.Value:
    """Return the product of x (..., in) with a stored matrix (out, in) whose codes come as levels, int4 (in, out).

    ONNX Runtime makes one MatMulNBits of it (from 1.22 on), and keeps what it folds packed.
    """
    op, codec = emit.op, emit.codec(name)
    parts, (out, features) = emit.parts(name), emit.shape(name)
    block = nbits_block(codec, features)
    assert block is not None
    scales = op.Transpose(emitted_scales(op, parts, 2), perm=[1, 0])
    scales = op.Expand(scales, integers(op, features // block, out))
    x = x if emit.dtype == ir.DataType.FLOAT else op.Cast(x, to=ir.DataType.FLOAT)
    return emit.narrowed(op.MatMul(x, op.DequantizeLinear(parts["codes"], scales, axis=0, block_size=block)))


def looked_up(emit: Emitter, name: str, rows: ir.Value) -> ir.Value:
    """Return rows of a stored matrix (table, n), by their indices of any shape: (..., n).

    Codes are gathered as they are stored and unpacked afterwards: nothing is done to the rows that are not asked for.
    """
    op, codec, features = emit.op, emit.codec(name), emit.shape(name)[1]
    parts = emit.parts(name)
    if isinstance(codec, Float):
        return op.Cast(op.Gather(parts[""], rows, axis=0), to=emit.dtype)
    if not isinstance(codec, Grid):  # as nobody writes it, and somebody may
        return op.Cast(op.Gather(codec.emit(op, parts, emit.shape(name)), rows, axis=0), to=emit.dtype)
    flat = op.Reshape(rows, integers(op, -1))
    levels = codec.emit_levels(op, op.Gather(parts["codes"], flat, axis=0), (-1, features))
    if codec.shared not in ("column", "matrix"):
        parts["scales"] = op.Gather(parts["scales"], flat, axis=0)
    made = codec.emit_scaled(op, levels, emitted_scales(op, parts, 2), (-1, features))
    shape = op.Concat(op.Shape(rows), integers(op, features), axis=0)
    return emit.narrowed(op.Reshape(made, shape))

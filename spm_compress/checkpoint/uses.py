"""What an ONNX graph does with each of its stored tensors, in words that a report can give as a reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from spm_compress.checkpoint.products import Product, is_step
from spm_compress.checkpoint.tensor_info import Role

__all__ = ["readers", "role_of", "use_of"]

_LOOKUPS = ("Gather", "GatherElements", "GatherND", "GatherBlockQuantized")
_RECURRENT = ("LSTM", "GRU", "RNN")
# Operators of ONNX Runtime and late opsets that hold their projections inside, as inputs of theirs.
_FUSED = ("Attention", "QAttention", "MultiHeadAttention", "DecoderAttention", "LongformerAttention", "MoE", "QMoE")
_PACKED = ("MatMulNBits", "MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm")


def readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Yield the nodes, and which input of theirs, that read a value as it is, turned, or in another dtype."""
    for node, index in value.uses():
        if index == 0 and is_step(node):
            yield from readers(node.outputs[0])
        else:
            yield node, index


def role_of(value: ir.Value, products: Sequence[Product]) -> tuple[Role, str]:
    """Return what a graph does with a stored tensor, and that in words. products: those that the tensor is in."""
    inside = {(id(product.node), product.operand) for product in products}
    others = [(node, index) for node, index in readers(value) if (id(node), index) not in inside]
    is_table = any(_is_lookup(node, index) for node, index in others)
    if any(product.is_quantized for product in products):
        bits = value.const_value.dtype.bitwidth if value.const_value is not None else 8
        return Role.QUANTIZED, f"int{bits} with a scale (DequantizeLinear); compress the model it was quantized from"
    if products and is_table:
        return Role.TABLE, "a table whose rows are looked up, tied to a product with it"
    if products:
        return Role.MAP, f"also read by {_kinds(others)}" if others else ""
    if is_table:
        return Role.TABLE, "a table: its rows are looked up (Gather)"
    return Role.OTHER, next(filter(None, (use_of(node, index) for node, index in others)), _not_multiplied(others))


def use_of(node: ir.Node, index: int) -> str | None:
    """Return the reason why a matrix that this node multiplies by cannot be replaced; None if it does not multiply."""
    if node.op_type in _RECURRENT and index in (1, 2):
        return f"a weight of {_article(node.op_type)} node, which multiplies by it inside"
    if node.op_type in _FUSED and index:
        return f"a weight of {_article(node.op_type)} node, which multiplies by it inside"
    if node.op_type in _PACKED and index:
        return f"quantized already ({node.op_type}); compress the model it was quantized from"
    if node.op_type == "Conv" and index == 1:
        options: Mapping[str, ir.Attr] = node.attributes
        is_grouped = "group" in options and options["group"].as_int() != 1
        return "a kernel of a grouped Conv, no matrix" if is_grouped else "a kernel of a Conv wider than 1x1, no matrix"
    if node.op_type == "ConvTranspose" and index == 1:
        return "a kernel of a ConvTranspose, no matrix"
    if node.op_type == "MatMul":
        return "a stack of matrices (a MatMul in batches), not one"
    if node.op_type == "Einsum":
        return "multiplied by in an Einsum, which is not looked into"
    return None


def _is_lookup(node: ir.Node, index: int) -> bool:
    return index == 0 and node.op_type in _LOOKUPS


def _not_multiplied(others: Sequence[tuple[ir.Node, int]]) -> str:
    return f"the graph does not multiply by it ({_kinds(others)})" if others else "the graph does not use it"


def _kinds(others: Sequence[tuple[ir.Node, int]]) -> str:
    return ", ".join(dict.fromkeys(node.op_type for node, _ in others))


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "AELMR" and kind != "MultiHeadAttention" and kind != "MoE" else f"a {kind}"

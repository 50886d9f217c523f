"""What an ONNX graph does with each of its stored tensors, in words that a report can give as a reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from spm_compress.checkpoint.products import Product, is_step, stored_tensor
from spm_compress.checkpoint.quantized import FROM
from spm_compress.checkpoint.tensor_info import Role

__all__ = ["is_handed_out", "readers", "role_of", "use_of"]

_LOOKUPS = ("Gather", "GatherElements", "GatherND", "GatherBlockQuantized")
_RECURRENT = ("LSTM", "GRU", "RNN")
# Operators of ONNX Runtime and late opsets that hold their projections inside, as inputs of theirs.
_FUSED: tuple[str, ...] = (
    *("Attention", "QAttention", "MultiHeadAttention", "DecoderAttention", "LongformerAttention", "MoE", "QMoE"),
    *("FusedMatMul", "FusedGemm", "FusedConv", "TransposeMatMul", "GemmFastGelu", "NhwcFusedConv"),
    "SparseToDenseMatMul",
)
_PACKED: tuple[str, ...] = (
    *("MatMulNBits", "MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm"),
    *("QLinearConv", "ConvInteger"),
)
_SCALED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLSTM")
_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
# Which inputs of them are multiplied by, where that is not asked of `use_of`.
_MULTIPLIED: Mapping[str, tuple[int, ...]] = {
    **{"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,), "ConvTranspose": (1,), "Einsum": (0, 1, 2)},
    **dict.fromkeys((*_RECURRENT, *_FUSED), (1, 2)),
}


def readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Yield the nodes, and which input of theirs, that read a value as it is, turned, or in another dtype."""
    for node, index in value.uses():
        if index == 0 and is_step(node):
            yield from readers(node.outputs[0])
        else:
            yield node, index


def is_handed_out(value: ir.Value) -> bool:
    """Say whether a value, or what it is when turned or in another dtype, is an output of a graph."""
    turned = (node.outputs[0] for node, index in value.uses() if index == 0 and is_step(node))
    return value.is_graph_output() or any(is_handed_out(each) for each in turned)


def role_of(value: ir.Value, products: Sequence[Product]) -> tuple[Role, str]:
    """Return what a graph does with a stored tensor, and that in words. products: those that the tensor is in."""
    inside = {(id(product.node), product.operand) for product in products}
    others = [(node, index) for node, index in readers(value) if (id(node), index) not in inside]
    is_table = any(_is_lookup(node, index) for node, index in others)
    dtype = ir.DataType.FLOAT if value.const_value is None else value.const_value.dtype
    if any(product.is_quantized for product in products):
        return Role.QUANTIZED, f"quantized already ({dtype.name.lower()}, DequantizeLinear); {FROM}"
    if is_table and dtype.is_integer() and dtype.bitwidth <= 8:
        return Role.OTHER, f"quantized already ({dtype.name.lower()}, Gather); {FROM}"
    if products and is_table:
        return Role.TABLE, "a table whose rows are looked up, tied to a product with it"
    kinds = [node.op_type for node, _ in others] + ["an output of the graph"] * is_handed_out(value)
    if products:
        return Role.MAP, f"also read by {_listed(kinds)}" if kinds else ""
    if is_table:
        return Role.TABLE, "a table: its rows are looked up (Gather)"
    rank = 0 if value.const_value is None else len(value.const_value.shape)
    reasons = (use_of(node, index, rank) or _use_behind(node) for node, index in others)
    return Role.OTHER, next(filter(None, reasons), _not_multiplied(kinds))


def use_of(node: ir.Node, index: int, rank: int) -> str | None:
    """Return the reason why a tensor that this node multiplies by cannot be replaced; None if it does not multiply.

    index: which input of the node it is; rank: how many dimensions it has.
    """
    if node.op_type in _RECURRENT and index in (1, 2):
        return f"a weight of {_article(node.op_type)} node, which multiplies by it inside"
    if node.op_type in _FUSED and index and rank > 1:
        return f"a weight of {_article(node.op_type)} node, which multiplies by it inside"
    if node.op_type in _PACKED and index and rank < 2:
        return f"a scale, zero point or bias of {_article(node.op_type)} node"
    if node.op_type in _PACKED and index:
        return f"quantized already ({node.op_type}); {FROM}"
    if node.op_type == "Conv" and index == 1:
        options: Mapping[str, ir.Attr] = node.attributes
        if "group" in options and options["group"].as_int() != 1:
            return "a kernel of a grouped Conv, no matrix"
        kernel = node.inputs[1]
        if kernel is not None and kernel.shape is not None and all(size == 1 for size in kernel.shape[2:]):
            return "a 1x1 kernel of a Conv, stored in an order that is not looked into"
        return "a kernel of a Conv wider than 1x1, no matrix"
    if node.op_type == "ConvTranspose" and index == 1:
        return "a kernel of a ConvTranspose, no matrix"
    if node.op_type in ("MatMul", "Gemm") and index < 2:
        return _operand(node, index, rank)
    if node.op_type == "DequantizeLinear" and not index and rank > 1:
        return f"quantized already ({node.op_type}); {FROM}"
    if node.op_type in _SCALED and index:
        return f"a scale or zero point of {_article(node.op_type)} node"
    if node.op_type == "Einsum":
        return "multiplied by in an Einsum, which is not looked into"
    if node.domain not in _STANDARD and node.graph is not None and rank > 1:
        return f"read by {_article(node.op_type)} node of domain {node.domain}, which is not looked into"
    return None


def _operand(node: ir.Node, index: int, rank: int) -> str:
    if rank == 1:
        return f"a vector in {_article(node.op_type)}, no matrix"
    if rank > 2:
        return "a stack of matrices (a MatMul in batches), not one"
    other = node.inputs[1 - index]
    if other is not None and _is_constant(other):
        return f"multiplied by another constant ({node.op_type})"
    return f"multiplied by in {_article(node.op_type)}, which is not looked into"


def _use_behind(node: ir.Node, seen: frozenset[ir.Node] = frozenset()) -> str | None:
    """Return the reason where a node computes another constant, and that is multiplied by."""
    if node in seen or not all(value is None or _is_constant(value) for value in node.inputs):
        return None
    for output in node.outputs:
        for reader, index in readers(output):
            is_product = reader.op_type in _MULTIPLIED and index in _MULTIPLIED[reader.op_type]
            if is_product or _use_behind(reader, seen | {node}):
                return f"multiplied by only after {_article(node.op_type)}, which is not followed"
    return None


def _is_constant(value: ir.Value, seen: frozenset[ir.Value] = frozenset()) -> bool:
    node = value.producer()
    if stored_tensor(value) is not None or (node is not None and node.op_type == "Constant"):
        return True
    if node is None or value in seen or not node.inputs:
        return False
    return all(each is None or _is_constant(each, seen | {value}) for each in node.inputs)


def _is_lookup(node: ir.Node, index: int) -> bool:
    return index == 0 and node.op_type in _LOOKUPS


def _not_multiplied(kinds: Sequence[str]) -> str:
    return f"the graph does not multiply by it ({_listed(kinds)})" if kinds else "the graph does not use it"


def _listed(kinds: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(kinds))


def _article(kind: str) -> str:
    is_spelled = kind in ("LSTM", "RNN")
    return f"an {kind}" if is_spelled or kind[0] in "AEIOU" else f"a {kind}"

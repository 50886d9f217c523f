"""The dense graph in fewer bits, before its layers are replaced."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.checkpoint.products import align_opsets, products
from spm_compress.checkpoint.uses import readers
from spm_compress.errors import ExportError, VerificationError, first_line
from spm_compress.export.saving import LIMIT
from spm_compress.export.settings import Precision
from spm_compress.export.splicing.matches import Digests, digest_of, lookups, matches
from spm_compress.export.verification import session
from spm_compress.quiet import quiet

__all__ = ["check_precision", "in_precision"]

# Weights of these are stored as int8; a Conv in int8 is slower than in float32 on most processors.
_QUANTIZED = ["MatMul", "Gemm", "Gather"]
# The first opset in which the scales of quantized tensors may be float16.
_HALF_SCALES = 19


def in_precision(
    dense: ir.Model, layers: Sequence[FittedLayer], precision: Precision, digests: Digests | None = None
) -> tuple[ir.Model, tuple[FittedLayer, ...]]:
    """Return the graph in a precision and the layers as they are recognised in it.

    float16: all but inputs and outputs. int8: the weights that stay dense, by ONNX Runtime's dynamic quantization.
    Raises ExportError for a graph of 2 GB or more, which neither converter takes.
    """
    if precision is Precision.FLOAT32:
        return dense, tuple(layers)
    if sum(value.const_value.nbytes for value in dense.graph.initializers.values() if value.const_value) >= LIMIT:
        raise ExportError(f"a graph of 2 GB or more cannot be converted to {precision.value}; export it in float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        RemoveInitializersFromInputsPass()(dense)  # weights that are listed as inputs, and would keep their type
        convert = _half if precision is Precision.FLOAT16 else _quantized
        return _told(lambda: convert(dense, layers, digests or Digests()), precision)


def check_precision(path: Path, precision: Precision) -> None:
    """Raise ExportError if ONNX Runtime cannot load what a converter made of the graph."""
    if precision is not Precision.FLOAT32:
        try:
            session(path)
        except VerificationError as error:
            raise _refusal(precision, error) from error


_Converted = tuple[ir.Model, tuple[FittedLayer, ...]]


def _told(convert: Callable[[], _Converted], precision: Precision) -> _Converted:
    try:
        return convert()
    except Exception as error:  # the converters of others assert, and raise many types
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise _refusal(precision, cause) from error


def _refusal(precision: Precision, cause: BaseException) -> ExportError:
    why = first_line(cause) or type(cause).__name__
    return ExportError(f"the graph cannot be converted to {precision.value} ({why}); export it in float32")


def _half(dense: ir.Model, layers: Sequence[FittedLayer], digests: Digests) -> tuple[ir.Model, tuple[FittedLayer, ...]]:
    # The converter leaves local functions as they are, and takes initializers of one name for one.
    align_opsets(dense)
    InlinePass()(dense)
    _tell_apart(dense)
    opset = dense.opset_imports.get("", 0)
    blocked = [] if opset >= _HALF_SCALES else ["QuantizeLinear", "DequantizeLinear"]
    # The converter rounds in its own way (nothing to zero), so the rounded weights are found again by their names.
    names = {match.product.root.name: match for match in matches(dense, layers, digests)}
    tables = {lookup.table.name: lookup.layer for lookup in lookups(dense, layers, digests)}
    converted = ir.serde.deserialize_model(
        convert_float_to_float16(
            ir.serde.serialize_model(dense), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *blocked]
        )
    )
    converted.graph.sort()  # the converter puts its casts at the end
    rounded = {}
    for product in products(converted):
        match = names.get(product.root.name)
        if match is not None:
            e = product.matrix().astype(np.float32)
            rounded[match.layer.name] = digest_of(e.T if match.transposed else e)
    for name, layer in tables.items():
        value = converted.graph.initializers.get(name or "")
        if value is not None and value.const_value is not None:
            rounded.setdefault(layer.name, digest_of(value.const_value.numpy().astype(np.float32)))
    return converted, tuple(replace(layer, sha256=rounded.get(layer.name, layer.sha256)) for layer in layers)


def _quantized(
    dense: ir.Model, layers: Sequence[FittedLayer], digests: Digests
) -> tuple[ir.Model, tuple[FittedLayer, ...]]:
    found = list(matches(dense, layers, digests))
    _name_nodes(dense)  # the quantizer leaves nodes out by name
    for node in dense.graph:  # and takes an input that is left out for one that is there
        while node.inputs and node.inputs[-1] is None:
            node.resize_inputs(len(node.inputs) - 1)
    # What else reads a fitted weight, as a table, gets its operator's matrix, and no quantized copy of the dense one.
    nodes = [match.product.node for match in found]
    nodes += [node for match in found for node, _ in readers(match.product.root)]
    looked_up = list(lookups(dense, layers, digests))
    nodes += [lookup.node for lookup in looked_up]
    nodes += [node for lookup in looked_up for node, _ in readers(lookup.table)]
    names = list(dict.fromkeys(node.name or "" for node in nodes))
    replaced = names + [f"{name}_MatMul" for name in names]  # what the quantizer makes of a Gemm before it looks
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        with quiet():
            quantize_dynamic(
                ir.serde.serialize_model(dense), path, op_types_to_quantize=_QUANTIZED, nodes_to_exclude=replaced
            )
        return ir.serde.deserialize_model(ir.serde.serialize_model(ir.load(path))), tuple(layers)


def _name_nodes(model: ir.Model) -> None:
    """Give every node of the graph a name of its own."""
    taken: set[str] = set()
    for i, node in enumerate(model.graph):
        name = node.name or f"node_{i}"
        candidates = (name, *(f"{name}_{j}" for j in range(2, len(model.graph) + 3)))
        node.name = next(each for each in candidates if each not in taken)
        taken.add(node.name)


def _tell_apart(model: ir.Model) -> None:
    """Give initializers of branches and loops names that no other graph's have."""
    taken = set(model.graph.initializers)
    taken |= {value.name for node in model.graph.all_nodes() for value in node.outputs if value.name}
    for graph in model.graph.subgraphs():
        for value in list(graph.initializers.values()):
            name = value.name or ""
            value.name = next(n for n in (name, *(f"{name}.{i}" for i in range(2, len(taken) + 3))) if n not in taken)
            taken.add(value.name)

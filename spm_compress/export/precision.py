"""The dense graph in fewer bits, before its layers are replaced."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.checkpoint.products import products
from spm_compress.errors import ExportError
from spm_compress.export.saving import LIMIT
from spm_compress.export.settings import Precision
from spm_compress.export.splicing.matches import digest_of, matches
from spm_compress.quiet import quiet

__all__ = ["in_precision"]

# Weights of these are stored as int8; a Conv in int8 is slower than in float32 on most processors.
_QUANTIZED = ["MatMul", "Gemm", "Gather"]


def in_precision(
    dense: ir.Model, layers: Sequence[FittedLayer], precision: Precision
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
        return _half(dense, layers) if precision is Precision.FLOAT16 else _quantized(dense, layers)


def _half(dense: ir.Model, layers: Sequence[FittedLayer]) -> tuple[ir.Model, tuple[FittedLayer, ...]]:
    # The converter rounds in its own way (nothing to zero), so the rounded weights are found again by their names.
    names = {match.product.root.name: match for match in matches(dense, layers)}
    converted = ir.serde.deserialize_model(
        convert_float_to_float16(ir.serde.serialize_model(dense), keep_io_types=True)
    )
    converted.graph.sort()  # the converter puts its casts at the end
    rounded = {}
    for product in products(converted):
        match = names.get(product.root.name)
        if match is not None:
            e = product.matrix().astype(np.float32)
            rounded[match.layer.name] = digest_of(e.T if match.transposed else e)
    return converted, tuple(replace(layer, sha256=rounded.get(layer.name, layer.sha256)) for layer in layers)


def _quantized(dense: ir.Model, layers: Sequence[FittedLayer]) -> tuple[ir.Model, tuple[FittedLayer, ...]]:
    for i, node in enumerate(dense.graph):  # the quantizer leaves nodes out by name
        node.name = node.name or f"node_{i}"
    names = [match.product.node.name or "" for match in matches(dense, layers)]
    replaced = names + [f"{name}_MatMul" for name in names]  # what the quantizer makes of a Gemm before it looks
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        with quiet():
            quantize_dynamic(
                ir.serde.serialize_model(dense), path, op_types_to_quantize=_QUANTIZED, nodes_to_exclude=replaced
            )
        return ir.serde.deserialize_model(ir.serde.serialize_model(ir.load(path))), tuple(layers)

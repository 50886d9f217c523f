"""The dense matrix itself, multiplied out when the model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from spm_compress.export.lowering.blocks import BlocksBody
from spm_compress.export.lowering.emitter import Emitter
from spm_compress.export.lowering.interface import Layout, write_function
from spm_compress.operator.structure import Structure

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense:
    """Runs as the MatMul that was replaced, from a file that holds the mixers' numbers only."""

    name: str = "dense"
    layout: None = None

    def function(self, structure: Structure, dtype: ir.DataType, opset: int, name: str) -> ir.Function:
        """Return the local function; inputs: x, then the arrays in the order of `number_names`."""

        def body(op: OpBuilder, x: ir.Value, arrays: Mapping[str, ir.Value]) -> ir.Value:
            # In the precision of the numbers: only the finished matrix is rounded to a narrow dtype.
            precision = Emitter(op, structure, arrays, dtype).precision
            emit = Emitter(op, structure, arrays, precision)
            position = emit.positions(structure.in_features)
            identity = op.Equal(op.Unsqueeze(position, emit.integers(1)), position)
            matrix = BlocksBody(emit, Layout.FEATURE_MAJOR).map(op.Cast(identity, to=precision))  # (out, in)
            return op.MatMul(x, op.Cast(op.Transpose(matrix, perm=[1, 0]), to=dtype))

        return write_function(structure, body, opset, name)

"""The dense matrix itself, multiplied out when the model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from spm_compress.export.lowering.blocks import BlocksBody
from spm_compress.export.lowering.emitter import Emitter
from spm_compress.export.lowering.interface import Layout, write_function
from spm_compress.export.lowering.low_rank import with_low_rank
from spm_compress.operator.structure import Structure

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense:
    """Runs as the product that was there, with a matrix made of the mixers' numbers, which are all that is stored."""

    name: str = "dense"
    layout: None = None

    def function(self, structure: Structure, dtype: ir.DataType, opset: int, name: str) -> ir.Function:
        """Return the local function; inputs: the arrays in the order of `number_names`; returns (out, in)."""

        def body(op: OpBuilder, x: ir.Value | None, arrays: Mapping[str, ir.Value]) -> ir.Value:
            del x
            # In the precision of the numbers: only the finished matrix is rounded to a narrow dtype.
            precision = Emitter(op, structure, arrays, dtype, opset).precision
            emit = Emitter(op, structure, arrays, precision, opset)

            def chains() -> ir.Value:
                position = emit.positions(structure.in_features)
                identity = op.Equal(op.Reshape(position, emit.integers(-1, 1)), position)
                return BlocksBody(emit, Layout.FEATURE_MAJOR).map(op.Cast(identity, to=precision))

            return op.Cast(with_low_rank(emit, None, None, chains), to=dtype)

        return write_function(structure, body, opset, name, takes_x=False)

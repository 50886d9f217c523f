"""Constants of what codecs emit as ONNX."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

__all__ = ["integers", "number"]


def integers(op: OpBuilder, *values: int) -> ir.Value:
    """Return an int64 vector."""
    found: ir.Value = op.Constant(value=ir.tensor(list(values), dtype=ir.DataType.INT64))
    return found


def number(op: OpBuilder, value: float) -> ir.Value:
    """Return a float32 scalar."""
    found: ir.Value = op.Constant(value=ir.tensor(value, dtype=ir.DataType.FLOAT))
    return found

"""The one ONNX function that every lowering of a chain is made of: Gather, Mul, Add.

On the activations it runs a chain stage by stage; on the identity of a block it makes the blocks of a group
(`operands.py`, which the last stage is written out for).
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from spm_compress.forms.local_function import local_function

__all__ = ["stage_function"]

_AXIS = 3  # features first: (1, 1, runs, 2, stride, rows); features last: (rows, 1, runs, 2, stride)


def stage_function(opset: int, *, has_diagonal: bool) -> ir.Function:
    """Return y = x + off_diagonal * x[partner], or with the diagonal y = diagonal * x + off_diagonal * x[partner].

    partner: indices along the fourth axis of x; the coefficients are shaped to multiply x.
    """

    def emitted(op: OpBuilder, x: ir.Value, partner: ir.Value, *coefficients: ir.Value) -> ir.Value:
        mixed = op.Mul(op.Gather(x, partner, axis=_AXIS), coefficients[0])
        return op.Add(op.Mul(x, coefficients[1]) if has_diagonal else x, mixed)

    names = ["x", "partner", "off_diagonal", *(["diagonal"] if has_diagonal else [])]
    name = "StageWithDiagonal" if has_diagonal else "Stage"
    own = "diagonal * x" if has_diagonal else "x"
    about = f"one mixing stage: y = {own} + off_diagonal * x[partner]"
    return local_function(name, emitted, names, opset, about=about)

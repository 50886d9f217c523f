"""The local functions of a model that are ours: what forms, their stages and the turns around layers are written as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir
from onnxscript import OpBuilder, build_function

__all__ = ["DOMAIN", "local_function"]

DOMAIN = "spm_compress"


def local_function(
    name: str,
    body: Callable[..., ir.Value | Mapping[str, ir.Value]],
    inputs: Sequence[str],
    opset: int,
    *,
    about: str,
    output: str = "y",
) -> ir.Function:
    """Return the function of what `body` emits when it is given an `OpBuilder` and the inputs: values by their names.

    output: the name of a single value; about: what a viewer says of the function.
    """
    names = [output]

    def emitted(op: OpBuilder, *inputs: ir.Value) -> list[ir.Value]:
        made = body(op, *inputs)
        if isinstance(made, ir.Value):
            return [made]
        names[:] = made
        return list(made.values())

    values = [ir.Value(name=each) for each in inputs]
    function = build_function(emitted, values, domain=DOMAIN, name=name, opset_imports={"": opset})
    for node in function:
        node.metadata_props.clear()  # the builder's notes on itself: 60 % of the function's bytes
    for value, own in zip(function.outputs, names, strict=True):
        value.name = own
    function.doc_string = about
    return function

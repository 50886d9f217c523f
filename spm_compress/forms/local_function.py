"""The local functions of a model that are ours: what forms, their stages and the turns around layers are written as."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnxscript import build_function

__all__ = ["DOMAIN", "local_function"]

DOMAIN = "spm_compress"


def local_function(
    name: str,
    body: Callable[..., ir.Value],
    inputs: Sequence[str],
    opset: int,
    *,
    about: str,
    output: str = "y",
) -> ir.Function:
    """Return the function of one output that `body` emits when it is given an `OpBuilder` and the inputs.

    about: what a viewer says of it.
    """
    values = [ir.Value(name=each) for each in inputs]
    function = build_function(body, values, domain=DOMAIN, name=name, opset_imports={"": opset})
    for node in function:
        node.metadata_props.clear()  # the builder's notes on itself: 60 % of the function's bytes
    function.outputs[0].name = output
    function.doc_string = about
    return function

"""A form written as an ONNX function of the activations and the stored arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder, build_function
from torch import Tensor

from spm_compress.codecs import Codec, StoredArray
from spm_compress.forms.emitter import DOMAIN, Emitter
from spm_compress.forms.form import Form, numbers_of
from spm_compress.forms.lowering import Lowering

__all__ = ["Written", "stored_values", "write_function"]


@dataclass(frozen=True)
class Written:
    """function: its inputs are x (if the lowering has a layout), then the values of `stored_values` in their order.

    needed: functions that it calls.
    """

    function: ir.Function
    needed: Sequence[ir.Function]


def stored_values(form: Form, arrays: Mapping[str, StoredArray]) -> dict[str, Tensor]:
    """Return name -> tensor of everything that a function of the form reads: parts of arrays, then index tables."""
    parts = {
        f"{name}.{part}" if part else name: tensor
        for name, stored in arrays.items()
        for part, tensor in stored.parts.items()
    }
    return {**parts, **form.tables}


def _value_names(form: Form, codecs: Mapping[str, Codec]) -> list[str]:
    parts = [f"{name}.{part}" if part else name for name in form.shapes for part in codecs[name].part_names()]
    return [*parts, *form.tables]


def write_function(
    form: Form, codecs: Mapping[str, Codec], lowering: Lowering, dtype: ir.DataType, opset: int, name: str
) -> Written:
    """Return the local function of a form whose arrays are stored by these codecs.

    dtype: of x and y, or of the matrix.
    """
    names = _value_names(form, codecs)
    takes_x = lowering.layout is not None
    needed: dict[str, ir.Function] = {}

    def emitted(op: OpBuilder, *values: ir.Value) -> ir.Value:
        x, arrays = (values[0], values[1:]) if takes_x else (None, values)
        emit = Emitter(op, dict(zip(names, arrays, strict=True)), codecs, dtype, opset)
        if not takes_x:  # only the finished matrix is rounded to a narrow dtype
            emit = Emitter(op, emit.values, codecs, emit.precision, opset)
        made = form.lower(emit, x, lowering)
        needed.update(emit.functions)
        return made if emit.dtype == dtype else op.Cast(made, to=dtype)

    shown = _shown(names)
    inputs = [ir.Value(name=each) for each in (("x", *shown) if takes_x else shown)]
    function = build_function(emitted, inputs, domain=DOMAIN, name=name, opset_imports={"": opset})
    if needed:
        function.opset_imports[DOMAIN] = 1
    for node in function:
        node.metadata_props.clear()  # the builder's notes on itself: 60 % of the function's bytes
    function.outputs[0].name = "y" if takes_x else "matrix"
    what = f"{'y = S x' if takes_x else 'the matrix S'}, S of {form.out_features}x{form.in_features}"
    function.doc_string = "\n".join([what, *form.described(), f"{numbers_of(form):,} numbers"])
    return Written(function, tuple(needed.values()))


def _shown(names: Sequence[str]) -> list[str]:
    """Return names as a viewer shows them: without the numbers of chains and parts where they are clear without."""
    split = [re.fullmatch(r"((?:\d+\.)*)(.*)", name) for name in names]
    pairs = [(found[1].rstrip(".").replace(".", "_"), found[2].replace(".", "_")) for found in split if found]
    plain = [rest for _, rest in pairs]
    return [rest if plain.count(rest) == 1 else f"{rest}_{number}" for number, rest in pairs]

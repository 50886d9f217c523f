"""A form written as an ONNX function of the activations and of what is stored of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from spm_compress.codecs import Codec, part_key
from spm_compress.forms.emitter import Emitter, precision_of
from spm_compress.forms.form import Form, numbers_of
from spm_compress.forms.local_function import DOMAIN, local_function
from spm_compress.forms.lowering import Lowering

__all__ = ["Written", "write_function"]


@dataclass(frozen=True)
class Written:
    """function: its inputs are x (if the lowering has a layout), then `StoredOperator.tensors` in their order.

    needed: functions that it calls.
    """

    function: ir.Function
    needed: Sequence[ir.Function]


def write_function(
    form: Form, codecs: Mapping[str, Codec], lowering: Lowering, dtype: ir.DataType, opset: int, name: str
) -> Written:
    """Return the local function of a form whose arrays are stored by these codecs.

    dtype: of x and y, or of the matrix.
    """
    parts = [part_key(name, part) for name in form.shapes for part in codecs[name].part_names()]
    names = [*parts, *form.tables]
    takes_x = lowering.layout is not None
    needed: dict[str, ir.Function] = {}

    def emitted(op: OpBuilder, *values: ir.Value) -> ir.Value:
        x, arrays = (values[0], values[1:]) if takes_x else (None, values)
        # Of a matrix only the finished one is rounded to a narrow dtype.
        working = dtype if takes_x else precision_of(dtype)
        emit = Emitter(op, dict(zip(names, arrays, strict=True)), codecs, form.shapes, working, opset)
        made = form.lower(emit, x, lowering)
        needed.update(emit.functions)
        return made if working == dtype else op.Cast(made, to=dtype)

    shown = _shown(names)
    what = f"{'y = S x' if takes_x else 'the matrix S'}, S of {form.out_features}x{form.in_features}"
    function = local_function(
        name,
        emitted,
        ("x", *shown) if takes_x else shown,
        opset,
        output="y" if takes_x else "matrix",
        about="\n".join([what, *form.described(), f"{numbers_of(form):,} numbers"]),
    )
    if needed:
        function.opset_imports[DOMAIN] = 1
    return Written(function, tuple(needed.values()))


def _shown(names: Sequence[str]) -> list[str]:
    """Return names as a viewer shows them: without the numbers of chains and parts where they are clear without."""
    split = [re.fullmatch(r"((?:\d+\.)*)(.*)", name) for name in names]
    pairs = [(found[1].rstrip(".").replace(".", "_"), found[2].replace(".", "_")) for found in split if found]
    plain = [rest for _, rest in pairs]
    return [rest if plain.count(rest) == 1 else f"{rest}_{number}" for number, rest in pairs]

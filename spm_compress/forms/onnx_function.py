"""A form written as two ONNX functions: of what is stored of several maps, and of the activations of one of them.

The first is constant, so a runtime folds it when it loads the model, once for all layers that are alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from spm_compress.forms.emitter import Emitter, precision_of
from spm_compress.forms.form import numbers_of
from spm_compress.forms.local_function import DOMAIN, local_function
from spm_compress.forms.lowering import Lowering, NBits, Rows
from spm_compress.forms.stored import StoredOperator

__all__ = ["Written", "write_functions"]


@dataclass(frozen=True)
class Written:
    """The functions of a form.

    constants: of the parts of all arrays, each with an axis of maps before its own, and the index tables; returns what
    `Form.constants` has made. None for `Rows` and `NBits`, which start from the parts.
    function: of x (if the lowering has a layout), then what `constants` returns, its own share of the first axis, and
    the index tables; without constants, x and the parts and index tables.
    needed: functions that these call.
    """

    constants: ir.Function | None
    function: ir.Function
    needed: Sequence[ir.Function]


def write_functions(stored: StoredOperator, lowering: Lowering, dtype: ir.DataType, opset: int, name: str) -> Written:
    """Return the local functions of an operator, whose numbers they do not depend on.

    stored: with its matrices whole or `in_pieces`; dtype: of x and y, or of the matrix.
    """
    form, codecs = stored.form, stored.codecs
    shapes = {array: each.shape for array, each in stored.arrays.items()}
    given_names = list(stored.tensors)
    takes_x = lowering.layout is not None
    # Of a matrix only the finished one is rounded to a narrow dtype.
    working = dtype if takes_x else precision_of(dtype)
    needed: dict[str, ir.Function] = {}
    names: list[str] = []
    what = f"S of {form.out_features}x{form.in_features}"
    about = "\n".join(["", *form.described(), f"{numbers_of(form):,} numbers"])

    def made(op: OpBuilder, *values: ir.Value) -> Mapping[str, ir.Value]:
        several = {array: (-1, *shape) for array, shape in shapes.items()}
        emit = Emitter(op, dict(zip(given_names, values, strict=True)), codecs, several, working, opset)
        found = form.constants(emit, lowering)
        names.extend(found)
        needed.update(emit.functions)
        # Names of their own: what is stored may have the same.
        return dict(zip((f"{each}_made" for each in _shown(names)), found.values(), strict=True))

    constants = None
    if not isinstance(lowering, Rows | NBits):
        told = f"what several maps {what} need at run time, made when the model is loaded{about}"
        constants = local_function(f"{name}_constants", made, _shown(given_names), opset, about=told)

    def emitted(op: OpBuilder, *values: ir.Value) -> ir.Value:
        x, given = (values[0], values[1:]) if takes_x else (None, values)
        own: dict[str, ir.Value] = {}
        if constants is not None:
            own, given = dict(zip(names, given, strict=False)), given[len(names) :]
        named = dict(zip(given_names if constants is None else form.tables, given, strict=True))
        emit = Emitter(op, named, codecs, shapes, working, opset, constants=own)
        found = form.lower(emit, x, lowering)
        needed.update(emit.functions)
        return found if working == dtype else op.Cast(found, to=dtype)

    inputs = _shown(given_names if constants is None else [*names, *form.tables])
    output, told = ("y", f"y = S x, {what}{about}") if takes_x else ("matrix", f"the matrix {what}{about}")
    function = local_function(name, emitted, ["x", *inputs] if takes_x else inputs, opset, output=output, about=told)
    for each in (constants, function):
        if needed and each is not None:
            each.opset_imports[DOMAIN] = 1
    return Written(constants, function, tuple(needed.values()))


def _shown(names: Sequence[str]) -> list[str]:
    """Return names as a viewer shows them: without the numbers of chains and parts where they are clear without."""
    split = [re.fullmatch(r"((?:\d+\.)*)(.*)", name) for name in names]
    pairs = [(found[1].rstrip(".").replace(".", "_"), found[2].replace(".", "_")) for found in split if found]
    plain = [rest for _, rest in pairs]
    return [rest if plain.count(rest) == 1 else f"{rest}_{number}" for number, rest in pairs]

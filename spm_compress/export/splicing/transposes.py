"""The small functions that stand around a layer and make a matrix of its activations.

A layer works on (features, rows) or (rows, features) and stands between `FeaturesFirst` and `FeaturesLast`, or between
`Rows` and `RowsBack`. Leading dimensions are asked for once for all values that have the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from spm_compress.codecs.constants import integers
from spm_compress.forms.local_function import DOMAIN, local_function
from spm_compress.forms.lowering import Layout

__all__ = ["FIRST", "LAST", "Transposes", "axis_names", "before_last", "is_transpose", "leading_dimensions"]

FIRST, LAST = "FeaturesFirst", "FeaturesLast"
_ROWS, _BACK, _LEAD = "Rows", "RowsBack", "LeadingDimensions"
# What a viewer says of the functions; longer names first.
_ABOUT = {
    FIRST: "x (..., features) as (features, rows)",
    LAST: "x (features, rows) as (..., features) again",
    _BACK: "x (rows, features) as (..., features) again",
    _ROWS: "x (..., features) as (rows, features)",
    _LEAD: "all dimensions of x but the last",
}


class Transposes:
    """Writes the functions around layers into one graph of a model; nodes that are returned are not in it yet."""

    def __init__(self, model: ir.Model, opset: int) -> None:
        self.model = model
        self.opset = opset
        self.names = axis_names(model)
        self.leads: dict[object, ir.Value] = {}

    def into(self, layout: Layout, x: ir.Value) -> list[ir.Node]:
        """Return nodes that end in x (..., n) as (n, rows) or (rows, n)."""

        def features_first(op: OpBuilder, x: ir.Value) -> ir.Value:
            return op.Transpose(op.Flatten(x, axis=-1), perm=[1, 0])

        def rows(op: OpBuilder, x: ir.Value) -> ir.Value:
            return op.Flatten(x, axis=-1)

        if layout is Layout.FEATURES_LAST:
            return []
        if layout is Layout.FEATURE_MAJOR:
            return [self._call(FIRST, features_first, [x])]
        return [] if _is_matrix(x) else [self._call(_ROWS, rows, [x])]

    def back(self, layout: Layout, y: ir.Value, like: ir.Value, features: int) -> list[ir.Node]:
        """Return nodes that end in y, (features, rows) or (rows, features), with the leading dimensions of `like`."""

        def transposed(op: OpBuilder, y: ir.Value) -> ir.Value:
            return op.Transpose(y, perm=[1, 0])

        def features_last(op: OpBuilder, y: ir.Value, lead: ir.Value) -> ir.Value:
            return rows_back(op, op.Transpose(y, perm=[1, 0]), lead)

        def rows_back(op: OpBuilder, y: ir.Value, lead: ir.Value) -> ir.Value:
            return op.Reshape(y, op.Concat(lead, integers(op, features), axis=0))

        if layout is Layout.FEATURES_LAST:
            return []
        feature_major = layout is Layout.FEATURE_MAJOR
        if _is_matrix(like):
            return [self._call(LAST, transposed, [y])] if feature_major else []
        new, lead = self._lead(like)
        name, body = (LAST, features_last) if feature_major else (_BACK, rows_back)
        return [*new, self._call(f"{name}{features}", body, [y, lead])]

    def _lead(self, like: ir.Value) -> tuple[list[ir.Node], ir.Value]:
        """Return the leading dimensions of a value, and the node that finds them if none did before."""

        def leading(op: OpBuilder, x: ir.Value) -> ir.Value:
            return op.Slice(op.Shape(x), integers(op, 0), integers(op, -1))

        key = leading_dimensions(like, self.names) or like
        if key in self.leads:
            return [], self.leads[key]
        node = self._call(_LEAD, leading, [like])
        self.leads[key] = node.outputs[0]
        return [node], node.outputs[0]

    def _call(self, name: str, body: Callable[..., ir.Value], inputs: Sequence[ir.Value]) -> ir.Node:
        if (DOMAIN, name, "") not in self.model.functions:
            about = _ABOUT[next(each for each in _ABOUT if name.startswith(each))]
            function = local_function(name, body, ("x", "lead")[: len(inputs)], self.opset, about=about)
            self.model.functions[function.identifier()] = function
        self.model.graph.opset_imports[DOMAIN] = 1
        return ir.Node(DOMAIN, name, list(inputs))


def axis_names(model: ir.Model) -> frozenset[str]:
    """Return the names of the dynamic axes of a model's inputs, the only ones that are relied upon.

    Some exporters write "?" on all axes, and on inner values names that do not hold.
    """
    shapes = [value.shape for value in model.graph.inputs if value.shape is not None]
    named = {dim.value for shape in shapes for dim in shape if isinstance(dim, ir.SymbolicDim) and dim.value}
    return frozenset(named - {"?"})


def leading_dimensions(value: ir.Value, names: frozenset[str]) -> tuple[int | str, ...] | None:
    """Return all dimensions of a value but the features', None if one of them is not known for certain."""
    if value.shape is None or len(value.shape) < 2:
        return None
    dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape[:-1]]
    known = [dim for dim in dims if dim is not None and (dim in names if isinstance(dim, str) else dim > 0)]
    return tuple(known) if len(known) == len(dims) else None


def is_transpose(node: ir.Node | None, name: str) -> bool:
    """Say whether a node is one of the functions of this module: FIRST or LAST."""
    return node is not None and node.domain == DOMAIN and node.op_type.startswith(name)


def before_last(value: ir.Value | None) -> ir.Value | None:
    """Return what FeaturesLast made the value of, if it did."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and is_transpose(node, LAST) else None


def _is_matrix(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 2

"""Keeping activations features first from layer to layer, instead of turning them for every one.

1. A value is transposed once, whoever asks for it (query, key and value share one).
2. FeaturesFirst of FeaturesLast is what stood before both.
3. Between two layers, elementwise operators work on (features, rows) as well: if all that goes into them is
   transposed already or a constant along the features, they are moved there and both transposes disappear.
4. A value that is still wanted as it was is transposed back once, under its own name.

Tried and lost on MiniLM: to merge FeaturesLast with attention's split into heads, and its joining with FeaturesFirst.
ONNX Runtime 1.32 takes longer for one Transpose of four axes than for two simple ones (docs/measurements.md).
"""

from __future__ import annotations

import math

import onnx_ir as ir

from spm_compress.export.splicing.transposes import (
    FIRST,
    LAST,
    axis_names,
    before_last,
    is_transpose,
    leading_dimensions,
)
from spm_compress.forms.local_function import DOMAIN

__all__ = ["keep_features_first"]

_STANDARD = ("", "ai.onnx")
_UNARY = {"Abs", "Cast", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity"}
_UNARY |= {"LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt"}
_UNARY |= {"Swish", "Tanh", "ThresholdedRelu"}
_SEVERAL = {"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Where"}


def keep_features_first(model: ir.Model) -> None:
    """Remove avoidable transposes from every graph of a model, under the rules above."""
    for graph in {id(node.graph): node.graph for node in model.graph.all_nodes() if is_transpose(node, FIRST)}.values():
        assert isinstance(graph, ir.Graph)
        _Pass(graph, axis_names(model)).run()


class _Pass:
    def __init__(self, graph: ir.Graph, names: frozenset[str]) -> None:
        self.graph = graph
        self.names = names
        self.transposed: dict[ir.Value, ir.Value] = {}  # value -> the same features first

    def run(self) -> None:
        for node in list(self.graph):
            if is_transpose(node, FIRST):
                self.visit(node)
        for node in reversed(list(self.graph)):  # transposes that nobody asks for any more
            is_wanted = any(value.uses() or value.is_graph_output() for value in node.outputs)
            if (is_transpose(node, FIRST) or is_transpose(node, LAST)) and not is_wanted:
                self.graph.remove(node, safe=True)
        self.graph.sort()

    def visit(self, node: ir.Node) -> None:
        moved: list[ir.Node] = []
        if self.can_transpose(_input(node), moved):
            makers = [operand.producer() for each in moved for operand in each.inputs if operand is not None]
            last = next((maker for maker in makers if maker is not None and is_transpose(maker, LAST)), None)
            if last is not None:  # else nothing would be won
                for each in moved:  # rule 3; operands come before what they go into
                    self.move(each, last)
        x, first = _input(node), node.outputs[0]
        found = self.transposed.get(x) or before_last(x)  # rules 1 and 2
        if found is not None:
            first.replace_all_uses_with(found)
        self.transposed[x] = found or first

    def can_transpose(self, value: ir.Value, moved: list[ir.Node]) -> bool:
        """Say whether a value can be had features first; list the operators that have to move, in order."""
        if value in self.transposed or before_last(value) is not None:
            return True
        node = value.producer()
        if node is None or node.graph is not self.graph or node.domain not in _STANDARD:
            return False
        if node in moved:
            return True
        if node.op_type not in _UNARY | _SEVERAL or len(node.outputs) != 1 or value.shape is None:
            return False
        for operand in node.inputs:
            if operand is None or _is_number(operand) or _is_along_features(operand, value):
                continue
            if not self.are_alike(operand, value) or not self.can_transpose(operand, moved):
                return False
        moved.append(node)
        return True

    def are_alike(self, operand: ir.Value, value: ir.Value) -> bool:
        """Say whether no dimension of the operand is repeated to give those of the value."""
        lead = leading_dimensions(operand, self.names)
        if lead is None or operand.shape is None or value.shape is None:
            return False
        return lead == leading_dimensions(value, self.names) and operand.shape[-1] == value.shape[-1]

    def move(self, node: ir.Node, last: ir.Node) -> None:
        """Let an operator work features first; `last` transposes values of its shape back."""
        old = node.outputs[0]
        for i, operand in enumerate(list(node.inputs)):
            if operand is None or _is_number(operand):
                continue
            if _is_along_features(operand, old):
                node.replace_input_with(i, self.column(operand))
            else:
                node.replace_input_with(i, self.transposed.get(operand) or before_last(operand))
        new = ir.Value(name=f"{old.name}.features_first", type=old.type)
        moved = ir.Node(
            node.domain, node.op_type, list(node.inputs), list(node.attributes.values()), outputs=[new], name=node.name
        )
        # rule 4; removed again if nobody wants it
        back = ir.Node(DOMAIN, last.op_type, [new, *last.inputs[1:]], name=f"{old.name}.features_last")
        back.outputs[0].name, back.outputs[0].type, back.outputs[0].shape = old.name, old.type, old.shape
        ir.convenience.replace_nodes_and_values(self.graph, node, [node], [moved, back], [old], [back.outputs[0]])
        self.transposed[back.outputs[0]] = new

    def column(self, constant: ir.Value) -> ir.Value:
        """Return a constant (n,) or (1, .., n) as (n, 1)."""
        name = f"{constant.name}.column"
        known = next((node.outputs[0] for node in self.graph if node.outputs[0].name == name), None)
        if known is not None:
            return known
        value = ir.AttrTensor("value", ir.tensor([-1, 1]))
        shape = ir.Node("", "Constant", [], [value], name=f"{name}.shape")
        node = ir.Node("", "Reshape", [constant, shape.outputs[0]], name=name)
        shape.outputs[0].name, node.outputs[0].name = f"{name}.shape", name
        self.graph.extend([shape, node])  # the graph is sorted at the end
        return node.outputs[0]


def _input(node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    assert x is not None
    return x


def _constant_shape(value: ir.Value) -> tuple[int, ...] | None:
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tuple(tensor.shape.numpy())


def _is_number(value: ir.Value) -> bool:
    return _constant_shape(value) in ((), (1,))


def _is_along_features(constant: ir.Value, value: ir.Value) -> bool:
    """Say whether a constant has one entry a feature of the value and none along its other dimensions."""
    shape = _constant_shape(constant)
    if not shape or value.shape is None or len(shape) > len(value.shape):
        return False
    return shape[-1] == math.prod(shape) and shape[-1] in (1, value.shape[-1])

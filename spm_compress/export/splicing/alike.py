"""Layers that are alike: what is made of their numbers when the model is loaded is made once, for all of them."""

from __future__ import annotations

import math

import onnx_ir as ir

from spm_compress.checkpoint.free_names import free_name
from spm_compress.forms.local_function import DOMAIN
from spm_compress.forms.onnx_function import Written

__all__ = ["Alike"]

# Split says how many outputs it has from this opset on.
_COUNTED = 18


class Alike:
    """Maps of one form, joined part by part, given to one call of the constant function, and split again.

    The nodes stand in the main graph, before all else: bodies of loops and branches see what is made, too.
    """

    def __init__(
        self, model: ir.Model, written: Written, most: int, prefix: str, tables: list[ir.Value], taken: set[str]
    ) -> None:
        # most: maps that may come to them; taken: names of values, to which those of new ones are added.
        assert written.constants is not None
        self._graph = model.graph
        self._opset = model.opset_imports[""]
        self._prefix = prefix
        self._taken = taken
        self._most = most
        self._shares: dict[str, list[ir.Value]] = {}
        made = written.constants.outputs
        missing = [None] * (len(written.constants.inputs) - len(tables))
        name = written.constants.name
        self._call = ir.Node(DOMAIN, name, [*missing, *tables], num_outputs=len(made), name=prefix)
        self._joined: list[ir.Node] = []
        self._splits: list[ir.Node] = []
        for value, own in zip(self._call.outputs, made, strict=True):
            value.name = f"{prefix}.{own.name}"
            self._splits.append(ir.Node("", "Split", [value], [ir.AttrInt64("axis", 0)], num_outputs=0))
            self._splits[-1].name = f"{value.name}.split"
        first = next(iter(self._graph), None)
        new = [self._call, *self._splits]
        self._graph.extend(new) if first is None else self._graph.insert_before(first, new)

    def takes(self, layer: str) -> bool:
        """Say whether a layer is among them or may come to them."""
        return layer in self._shares or len(self._shares) < self._most

    def share(self, layer: str, parts: list[ir.Value], prefix: str) -> list[ir.Value]:
        """Return a layer's share of what is made, whose stored parts are put to those of the others.

        prefix: of the names of new values.
        """
        if layer not in self._shares:
            if not self._shares:
                self._join(parts)
            before = len(self._shares)
            for node, part in zip(self._joined, parts, strict=True):
                node.resize_inputs(before + 1)
                node.replace_input_with(before, part)
            for node, made in zip(self._splits, self._call.outputs, strict=True):
                node.resize_outputs(before + 1)
                assert made.name is not None
                # A layer that runs in two ways is among two kinds.
                name = free_name(prefix + made.name.removeprefix(self._prefix), self._taken)
                node.outputs[before].name = name
                self._taken.add(name)
                if self._opset >= _COUNTED:
                    node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", before + 1)
            self._shares[layer] = [node.outputs[before] for node in self._splits]
        return list(self._shares[layer])

    def _join(self, parts: list[ir.Value]) -> None:
        """Put what joins the parts of several layers, each of one shape, before the call."""
        for i, part in enumerate(parts):
            assert part.shape is not None
            own = part.shape.numpy()
            joined = ir.Node("", "Concat", [None], [ir.AttrInt64("axis", 0)])
            new = {"joined": joined}
            if math.prod(own):  # an empty one has the axis of the maps
                sizes = ir.AttrTensor("value", ir.tensor([-1, *own], dtype=ir.DataType.INT64))
                new["shape"] = ir.Node("", "Constant", [], [sizes])
                new["maps"] = ir.Node("", "Reshape", [joined.outputs[0], new["shape"].outputs[0]])
            for step, node in new.items():
                node.name = node.outputs[0].name = f"{self._prefix}.{i}.{step}"
            self._graph.insert_before(self._call, list(new.values()))
            self._call.replace_input_with(i, list(new.values())[-1].outputs[0])
            self._joined.append(joined)

"""What a graph says of its inputs and outputs, which it says again when others have worked on it; outputs it stores."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from spm_compress.checkpoint.free_names import free_name
from spm_compress.checkpoint.products import is_step, stored_tensor

__all__ = ["Declared", "declare", "declared", "hand_out_copies"]

Declared = Mapping[str, tuple[ir.TypeProtocol | None, ir.Shape | None]]


def declared(model: ir.Model) -> Declared:
    """Return what a graph says of its inputs and outputs: name -> type and shape."""
    values = [*model.graph.inputs, *model.graph.outputs]
    return {value.name or "": (value.type, None if value.shape is None else value.shape.copy()) for value in values}


def declare(model: ir.Model, said: Declared) -> None:
    """Let inputs and outputs say again what they said: passes of others find, and some forget, shapes."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if (name := value.name or "") in said:
            kind, shape = said[name]
            value.type, value.shape = kind, None if shape is None else shape.copy()


def hand_out_copies(model: ir.Model) -> None:
    """Let every output that is a stored tensor, as it is or transposed, be an Identity of it, under the output's name.

    The tensor gets another name, and can then be replaced like any other; converters to other types count on that, too.
    """
    taken = {value.name for graph in model.graphs() for node in graph for value in node.outputs if value.name}
    taken |= {name for graph in model.graphs() for name in graph.initializers}
    for graph in model.graphs():
        for i, value in enumerate(graph.outputs):
            node = value.producer()
            if stored_tensor(value) is None and (node is None or not is_step(node)):
                continue
            name = value.name or ""
            copy = ir.Node("", "Identity", [value])
            output = copy.outputs[0]
            graph.outputs[i] = output
            value.name = free_name(f"{name}.stored", taken)
            output.name, output.type, output.shape = name, value.type, value.shape
            taken.add(value.name)
            graph.append(copy)

"""Outputs of a graph that are its stored tensors."""

from __future__ import annotations

import onnx_ir as ir

from spm_compress.checkpoint.free_names import free_name
from spm_compress.checkpoint.products import is_step, stored_tensor

__all__ = ["hand_out_copies"]


def hand_out_copies(model: ir.Model) -> None:
    """Let every output that is a stored tensor, as it is or turned, be an Identity of it, under the output's name.

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

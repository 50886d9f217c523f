"""What a graph says of its inputs and outputs, which it says again when others have worked on it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

__all__ = ["Declared", "declare", "declared"]

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

"""ONNX models as modules that torch can train: onnx2fx turns a graph into one, operator by operator.

1. Names in a file are anybody's, and onnx2fx writes Python with the names that it is given: every value gets one of
   ours first. `ImportedGraph.members` says which tensor of the source became which parameter.
2. Which matrices become linear layers, and which tensors parameters, says `linear_calls.py`; all others are buffers.
3. Outputs are answered by name. Where the first is a Softmax over the last axis, what that is taken of is answered
   too, as `logits`; where no output has a name that a training knows, the first of numbers is `output` as well.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, ShapeInferencePass
from torch import Tensor, nn

from spm_compress.checkpoint.imported_model import ImportedModel
from spm_compress.checkpoint.linear_calls import DOMAIN, are_linear, by_root, place
from spm_compress.checkpoint.onnx_source import OnnxSource, open_graph
from spm_compress.checkpoint.products import inline_products
from spm_compress.errors import SourceError, first_line
from spm_compress.quiet import quiet

__all__ = ["ImportedGraph", "import_graph", "importer", "why_not_imported"]

# What `distill` compares answers by, where a model has them.
_COMPARED = ("logits", "last_hidden_state", "output")
# Opset from which a Softmax is over one axis, the last unless it says otherwise.
_SOFTMAX_OF_ONE_AXIS = 13


class ImportedGraph(ImportedModel):
    """An ONNX graph in torch, called by position: it answers with its outputs by name. outputs: names, in its order."""

    def __init__(
        self,
        graph: nn.Module,
        inputs: Mapping[str, torch.dtype],
        outputs: Sequence[str],
        members: Mapping[str, str],
        batch: int | None,
    ) -> None:
        super().__init__(graph, inputs, members, batch)
        self.outputs, self.importer = outputs, importer()

    def forward(self, /, **inputs: Tensor) -> dict[str, Tensor]:
        """Run the model. Raises KeyError for an input that is missing."""
        found = self.graph(*(inputs[name].to(dtype) for name, dtype in self.inputs.items()))
        return dict(zip(self.outputs, found if len(self.outputs) > 1 else (found,), strict=True))


def importer() -> str:
    """Return the name and version of what imports graphs."""
    return f"onnx2fx {importlib.metadata.version('onnx2fx')}"


def why_not_imported(source: OnnxSource, fitted: Collection[str]) -> str | None:
    """Return why a model with these fitted weights cannot be trained, in words, None if it can.

    Without onnx2fx nothing is known of any, and the model is taken at its word.
    """
    onnx2fx = _onnx2fx()
    if onnx2fx is None:
        return None
    model = _inlined(source)
    missing = next(_unsupported(onnx2fx, model), None)
    if missing is not None or not fitted:
        return missing
    inside = next((name for name in fitted if name not in model.graph.initializers), None)
    if inside is not None:
        return f"{inside} belongs to a branch or loop"
    if not set(fitted) & {name for name, each in by_root(model).items() if are_linear(each, model)}:
        return "it does not multiply by a fitted weight in plain products alone"
    return None


def import_graph(source: OnnxSource) -> ImportedGraph:
    """Return the model of a source as torch computes it, in float32, in evaluation mode; no code from the file is run.

    Raises SourceError where onnx2fx is missing, lacks one of the operators, or fails.
    """
    onnx2fx = _onnx2fx()
    if onnx2fx is None:
        raise SourceError(
            f"{source.path}: training an ONNX model needs onnx2fx, for Python 3.11 or later; install it with: "
            "pip install 'spm-compress[train-onnx]'"
        )
    model = _inlined(source)
    missing = next(_unsupported(onnx2fx, model), None)
    if missing is not None:
        raise SourceError(f"{source.path}: cannot be trained, as {missing}")
    return _imported(onnx2fx, model, source.path)


def _onnx2fx() -> ModuleType | None:
    try:
        with quiet():
            import onnx2fx
    except ImportError:
        return None
    module: ModuleType = onnx2fx
    return module


def _inlined(source: OnnxSource) -> ir.Model:
    """Return the source's graph without local functions and Constant nodes."""
    model = open_graph(source.path)
    inline_products(model)
    try:
        InlinePass()(model)
    except Exception as error:  # as of `inline_products`
        raise SourceError(
            f"{source.path}: its local functions cannot be inlined ({first_line(error.__cause__ or error)})"
        ) from error
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model


def _unsupported(onnx2fx: ModuleType, model: ir.Model) -> Iterator[str]:
    for node in model.graph.all_nodes():
        opset = model.opset_imports.get(node.domain, 1)
        if not onnx2fx.is_supported(node.op_type, "" if node.domain == "ai.onnx" else node.domain, opset):
            domain = f" of {node.domain}" if node.domain else f" of opset {opset}"
            yield f"{importer()} has no operator {node.op_type}{domain}"


def _imported(onnx2fx: ModuleType, model: ir.Model, path: Path) -> ImportedGraph:
    ir.external_data.load_to_model(model)
    ShapeInferencePass()(model)  # of what stands behind a linear layer nothing can be inferred later
    outputs = _answer(model)
    placed = place(model)
    given = [value for value in model.graph.inputs if not value.is_initializer()]
    inputs = {value.name or "": _dtype(value) for value in given}
    sizes = [value.shape[0] for value in given if value.shape]
    _rename(model)
    graph = _converted(onnx2fx, model, placed.linears, path)
    members = {name: f"graph.{linear}.weight" for name, linear in placed.names.items()}
    for name, value in placed.values.items():
        assert value.name is not None
        members[name] = f"graph.{value.name}"
        if name in placed.learnt and hasattr(graph, value.name):  # what nothing reads is not there
            tensor = getattr(graph, value.name)
            delattr(graph, value.name)
            graph.register_parameter(value.name, nn.Parameter(tensor))
    batch = next((size for size in sizes if isinstance(size, int) and size > 0), None)
    return ImportedGraph(graph, inputs, outputs, members, batch).float().eval()


def _answer(model: ir.Model) -> list[str]:
    """Give the graph the outputs of rule 3; return the names of all."""
    outputs = model.graph.outputs
    names = [value.name or "" for value in outputs]
    softmax = outputs[0].producer() if outputs else None
    if softmax is not None and "logits" not in names and _is_softmax(softmax, model.opset_imports.get("", 1)):
        assert softmax.inputs[0] is not None
        outputs.append(softmax.inputs[0])
        names.append("logits")
    elif not set(names) & set(_COMPARED):
        numbers = [value for value in outputs if value.dtype is None or value.dtype.is_floating_point()]
        outputs.extend(numbers[:1])
        names += ["output"] * len(numbers[:1])
    return names


def _is_softmax(node: ir.Node, opset: int) -> bool:
    if node.op_type not in ("Softmax", "LogSoftmax") or node.domain not in ("", "ai.onnx"):
        return False
    axis = node.attributes.get_int("axis", -1 if opset >= _SOFTMAX_OF_ONE_AXIS else 1)
    shape = node.outputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _dtype(value: ir.Value) -> torch.dtype:
    """Return what an input is given as: its dtype, float32 for any of floating point."""
    dtype = value.dtype or ir.DataType.FLOAT
    if dtype.is_floating_point():
        return torch.float32
    found: torch.dtype = torch.from_numpy(np.zeros(1, dtype.numpy())).dtype
    return found


def _rename(model: ir.Model) -> None:
    values: dict[int, ir.Value] = {}
    for graph in model.graphs():
        made = (value for node in graph for value in node.outputs)
        values |= {id(value): value for value in (*graph.inputs, *graph.initializers.values(), *made)}
    prefix = "v"
    while any((value.name or "").startswith(prefix) for value in values.values()):
        prefix += "v"
    for i, value in enumerate(values.values()):
        if value.name != "":  # an output that nobody reads has none
            value.name = f"{prefix}{i}"
    for i, node in enumerate(model.graph.all_nodes()):
        node.name = f"n{i}"


def _converted(onnx2fx: ModuleType, model: ir.Model, linears: Mapping[str, nn.Linear], path: Path) -> nn.Module:
    """Return the graph as a module that holds the linear layers under their names."""
    registered: dict[str, str] = {}

    def call(builder: Any, node: Any) -> Any:
        name = node.attribute[0].s.decode()
        if name not in registered:
            registered[name] = builder.register_submodule(name, linears[name])
        return builder.call_module(registered[name], (builder.get_value(node.input[0]),))

    model.opset_imports[DOMAIN] = 1
    onnx2fx.register_op("Linear", call, domain=DOMAIN)
    try:
        with quiet():
            found: nn.Module = onnx2fx.convert(ir.serde.serialize_model(model))
    except Exception as error:  # it raises many types for what it does not expect in an attribute or an input
        raise SourceError(f"{path}: cannot be trained, as {importer()} fails on it ({first_line(error)})") from error
    finally:
        onnx2fx.unregister_op("Linear", domain=DOMAIN)
    return found

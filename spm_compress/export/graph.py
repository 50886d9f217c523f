"""Where the dense ONNX graphs of a model come from, and what its live module answers to the same inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnxscript.rewriter import onnx_fusions
from torch import Tensor, nn

from spm_compress.checkpoint.module_source import BuiltSource, ModuleSource
from spm_compress.checkpoint.source import Source
from spm_compress.checkpoint.unwrapping import copied
from spm_compress.compress.module import set_tensors
from spm_compress.errors import ExportError, first_line
from spm_compress.export.trials import Known
from spm_compress.quiet import quiet

__all__ = [
    "ACTIVATIONS",
    "WAYS",
    "DenseGraph",
    "Live",
    "chain_of_linears",
    "from_built",
    "from_chain",
    "from_module",
    "from_program",
]

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "none": nn.Identity,
}

WAYS = (
    "give the dense model's graph with `graph` dense.onnx; or fit a Hugging Face folder (config.json beside "
    "the weights); or a plain nn.Sequential of linears (0.weight, 2.weight, ...); or write each layer by "
    "itself with `export_layers`"
)


@dataclass(frozen=True)
class Live:
    """The torch module that a graph was made of.

    module: whose layers an artifact can be put into; answer: returns the outputs in the order of the graph's, given the
    graph's inputs by name.
    """

    module: nn.Module
    answer: Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class DenseGraph:
    """One graph of a model.

    part: "encoder" or "decoder" of a model that is two graphs; example: inputs that it was exported with, by name;
    has_past: whether its inputs and outputs hold keys and values of earlier tokens; known: what trials can go by.
    """

    model: ir.Model
    live: Live | None = None
    part: str = ""
    example: Mapping[str, Tensor] = field(default_factory=dict)
    has_past: bool = False
    known: Known = field(default_factory=Known)


def known_of(model: ir.Model, example: Mapping[str, Tensor]) -> Known:
    """Return what an example says: all of it where only the batch is dynamic, else the sizes of the other axes."""
    inputs = {value.name: value for value in model.graph.inputs}
    named = {name: each for name, each in example.items() if name in inputs}
    sizes = []
    for name, each in named.items():
        shape = inputs[name].shape
        sizes += [each.shape[i] for i, dim in enumerate(shape or ()) if i and not isinstance(dim, int)]
    return Known(sizes=tuple(sizes)) if sizes else Known({name: each.numpy() for name, each in named.items()})


def from_built(source: BuiltSource, changed: Mapping[str, Tensor] | None = None) -> DenseGraph:
    """Export a module of the user; the first axis of every input is dynamic.

    Raises ExportError if there are no example inputs.
    """
    example = source.example()
    if example is None:
        if isinstance(source, ModuleSource):
            raise ExportError(f"{source.path}: there are no example inputs to export with; give some")
        raise ExportError(
            f"`factory` {source.factory}: gives no example inputs to export with; return a pair of the module and "
            "them, or give the dense model's graph with `graph` dense.onnx"
        )
    model = copied(source.build())  # its layers are going to be replaced, and the function may return it again
    set_tensors(model, changed or {})
    graph = from_module(model, example, {name: {0: "batch"} for name in example}, None)
    live = Live(model, lambda inputs: _flat(model(**inputs)))
    return DenseGraph(graph, live, example=example, known=known_of(graph, example))


def from_chain(source: Source, activation: str) -> DenseGraph:
    """Export the `chain_of_linears` of a state dict. Raises ExportError as that does."""
    chain = chain_of_linears(source, activation)
    width = next(layer.in_features for layer in chain if isinstance(layer, nn.Linear))
    graph = from_module(chain, {"input": torch.zeros(2, width)}, {"input": {0: "batch"}}, ["output"])
    return DenseGraph(graph, Live(chain, lambda inputs: [chain(**inputs)]))


def _flat(answer: Any) -> list[Tensor]:
    """Return the tensors of an answer, as the exporter flattens it."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]


def from_program(program: torch.export.ExportedProgram, changed: Mapping[str, Tensor] | None = None) -> ir.Model:
    """Export a program of torch.export; what is dynamic in it stays so. Raises ExportError as `from_module`.

    changed: tensors that have other values than the program's.
    """
    held = program.state_dict
    before = {name: held[name] for name in changed or {}}
    try:
        held.update({name: nn.Parameter(x.to(before[name])) for name, x in (changed or {}).items()})
        return _exported(program)
    finally:
        held.update(before)


def from_module(
    model: nn.Module,
    example: Mapping[str, Any],
    axes: Mapping[str, Any],
    outputs: list[str] | None,
    inputs: list[str] | None = None,
) -> ir.Model:
    """Export a module called with keyword tensors. axes: input -> {dimension: name} of the dynamic ones.

    Both may hold lists of tensors. outputs, inputs: their names; None leaves them to the exporter, or to the keywords.
    Raises ExportError for what torch.onnx cannot export.
    """
    return _exported(
        model.eval(),
        kwargs=dict(example),
        dynamic_shapes=dict(axes),
        input_names=inputs or list(example),
        output_names=outputs,
    )


def _exported(model: Any, **options: Any) -> ir.Model:
    try:
        with quiet():
            program = torch.onnx.export(model, dynamo=True, verbose=False, optimize=False, **options)
            assert program is not None  # only returned as None for the exporter that writes files
            _optimize(program)
            _forget_notes(program.model)
    except Exception as error:  # the exporter raises many types, with pages of advice; the first cause says most
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ExportError(
            f"torch.onnx.export cannot export the model ({first_line(cause)[:200]}); give the dense model's graph with "
            "`graph` dense.onnx"
        ) from error
    return program.model


def _optimize(program: torch.onnx.ONNXProgram) -> None:
    """Optimize as the exporter does, but fold no weight into what stands beside it, as it would not be found again.

    1. No BatchNormalization goes into the weight before it: what is asked for as an output stays.
    2. No product of constants is computed: of learned queries or relative positions with a weight, where it is small.
    """
    outputs = program.model.graph.outputs
    own = len(outputs)
    normalized = (node.inputs[0] for node in program.model.graph if node.op_type == "BatchNormalization")
    outputs.extend(value for value in dict.fromkeys(normalized) if value is not None and not value.is_graph_input())
    onnxscript.optimizer.optimize_ir(program.model, should_fold=lambda node: False if _is_product(node) else None)
    onnx_fusions.fuse(program.model)
    _einsums_as_products(program.model)
    del outputs[own:]


def _forget_notes(model: ir.Model) -> None:
    """Leave out what the exporter notes on every node and value, with stack traces: 0.56 MB of MiniLM's graph."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _einsums_as_products(model: ir.Model) -> None:
    """Write an Einsum that is a product with a matrix from the right, `...n,nm->...m` or `...n,mn->...m`, as MatMul."""
    for node in list(model.graph):
        if node.op_type != "Einsum" or len(node.inputs) != 2:
            continue
        terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
        left, _, right = terms.partition(",")
        weight = node.inputs[1]
        if weight is None or len(right) != 2 or not left or left[-1] not in right or "." in terms:
            continue
        out = right.replace(left[-1], "", 1)
        if out in left or result != left[:-1] + out or len(set(left)) < len(left):
            continue
        made = []
        if right[0] == out:
            made.append(ir.Node("", "Transpose", [weight], [ir.AttrInt64s("perm", [1, 0])]))
            weight = made[0].outputs[0]
            weight.name = f"{node.outputs[0].name}.turned"
        made.append(ir.Node("", "MatMul", [node.inputs[0], weight], name=node.name))
        before, after = node.outputs[0], made[-1].outputs[0]
        after.type, after.shape = before.type, before.shape
        model.graph.insert_before(node, made)
        ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
        after.name = before.name
        model.graph.remove(node, safe=True)


def _is_product(node: ir.Node) -> bool:
    return node.op_type in ("MatMul", "Gemm", "Conv", "Einsum")


def chain_of_linears(source: Source, activation: str) -> nn.Sequential:
    """Rebuild an `nn.Sequential` of linears from its state dict (0.weight, 0.bias, 2.weight, ...).

    Where the numbering skips, something without weights stood between: the activation.
    Raises ExportError, with the ways to supply a graph, for any other state dict.
    """
    infos = source.tensors()
    parsed = {name: re.fullmatch(r"(.*?)(\d+)\.(weight|bias)", name) for name in infos}
    foreign = [name for name, match in parsed.items() if match is None]
    if foreign:
        raise ExportError(f"{source.path}: is no plain chain of linears ({foreign[0]}) and has no graph; {WAYS}")
    prefixes = {match[1] for match in parsed.values() if match}
    indices = sorted({int(match[2]) for match in parsed.values() if match})
    if len(prefixes) != 1:
        raise ExportError(f"{source.path}: holds several chains ({', '.join(sorted(prefixes))}) and no graph; {WAYS}")
    (prefix,) = prefixes
    layers: dict[str, nn.Module] = {}
    width: int | None = None
    for position, index in enumerate(indices):
        name = f"{prefix}{index}.weight"
        shape = infos[name].shape if name in infos else ()
        if len(shape) != 2 or (width is not None and shape[1] != width):
            raise ExportError(f"{source.path}: {prefix}{index} does not follow as a linear layer ({shape}); {WAYS}")
        if position and index > indices[position - 1] + 1:
            layers[f"{index}_activation"] = ACTIVATIONS[activation]()
        width = shape[0]
        layers[str(index)] = _linear(source, f"{prefix}{index}", shape)
    chain = nn.Sequential()
    for layer_name, layer in layers.items():
        chain.add_module(layer_name, layer)
    return chain.eval()


def _linear(source: Source, name: str, shape: tuple[int, ...]) -> nn.Linear:
    has_bias = f"{name}.bias" in source.tensors()
    layer = nn.Linear(shape[1], shape[0], bias=has_bias)
    with torch.no_grad():
        layer.weight.copy_(source.read(f"{name}.weight"))
        if has_bias:
            layer.bias.copy_(source.read(f"{name}.bias"))
    return layer

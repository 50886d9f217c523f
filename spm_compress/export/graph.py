"""Where the dense ONNX graph of a model without one comes from: a Hugging Face folder, or a plain chain of linears."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from spm_compress.checkpoint.factory_source import FactorySource
from spm_compress.checkpoint.huggingface import load_huggingface
from spm_compress.checkpoint.source import Source
from spm_compress.compress.module import set_tensors
from spm_compress.errors import ExportError, first_line
from spm_compress.quiet import quiet

__all__ = [
    "ACTIVATIONS",
    "WAYS",
    "chain_of_linears",
    "from_factory",
    "from_huggingface",
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
    "give the dense model's graph with --graph dense.onnx; or fit a Hugging Face folder (config.json beside "
    "the weights); or a plain nn.Sequential of linears (0.weight, 2.weight, ...); or write each layer by "
    "itself with --layers"
)


def from_huggingface(source: Source, changed: Mapping[str, Tensor] | None = None) -> tuple[nn.Module, ir.Model]:
    """Load a Hugging Face folder as a torch module (float32) and export it with dynamic axes.

    changed: tensors that have other values than in the folder.

    Raises SourceError where transformers is missing or does not know the architecture.
    """
    model = load_huggingface(source)
    set_tensors(model, changed or {})
    if hasattr(model.config, "use_cache"):  # a graph has no place for keys and values of earlier tokens
        model.config.use_cache = False
    example = _example_inputs(model, source.config or {})
    with torch.no_grad():
        outputs = model(**example)
    names = [name for name, value in outputs.items() if isinstance(value, Tensor)]
    axes: dict[str, Any] = {
        name: {0: "batch", 1: "sequence"} if value.dim() == 2 else {0: "batch"} for name, value in example.items()
    }
    return model, from_module(model, example, axes, names)


def from_factory(source: FactorySource, changed: Mapping[str, Tensor] | None = None) -> ir.Model:
    """Export the module that a function of the user builds; the first axis of every input is dynamic.

    Raises ExportError if the function gives no example inputs.
    """
    example = source.example()
    if example is None:
        raise ExportError(
            f"--factory {source.factory}: gives no example inputs to export with; return a pair of the module and "
            "them, or give the dense model's graph with --graph dense.onnx"
        )
    model = source.build()
    set_tensors(model, changed or {})
    return from_module(model, example, {name: {0: "batch"} for name in example}, None)


def from_program(program: torch.export.ExportedProgram) -> ir.Model:
    """Export a program of torch.export; what is dynamic in it stays so. Raises ExportError as `from_module`."""
    return _exported(program)


def from_module(
    model: nn.Module,
    example: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
    outputs: list[str] | None,
) -> ir.Model:
    """Export a module called with keyword tensors. axes: input -> {dimension: name} of the dynamic ones.

    outputs: their names; None leaves them to the exporter. Raises ExportError for what torch.onnx cannot export.
    """
    return _exported(
        model.eval(),
        kwargs=dict(example),
        dynamic_shapes={name: dict(dims) for name, dims in axes.items()},
        input_names=list(example),
        output_names=outputs,
    )


def _exported(model: Any, **options: Any) -> ir.Model:
    try:
        with quiet():
            program = torch.onnx.export(model, dynamo=True, verbose=False, **options)
    except Exception as error:  # the exporter raises many types, with pages of advice; the first cause says most
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ExportError(
            f"torch.onnx.export cannot export the model ({first_line(cause)[:200]}); give the dense model's graph with "
            "--graph dense.onnx"
        ) from error
    assert program is not None  # only returned as None for the exporter that writes files
    return program.model


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


def _example_inputs(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Tensor]:
    accepted = inspect.signature(model.forward).parameters
    if getattr(model, "main_input_name", "input_ids") == "pixel_values":
        size = config.get("image_size", 224)
        return {"pixel_values": torch.zeros(2, config.get("num_channels", 3), size, size)}
    tokens = torch.arange(2 * 8).reshape(2, 8) % int(config.get("vocab_size", 2))
    example = {"input_ids": tokens}
    if "attention_mask" in accepted:
        example["attention_mask"] = torch.ones_like(tokens)
    if "token_type_ids" in accepted and config.get("type_vocab_size", 0):
        example["token_type_ids"] = torch.zeros_like(tokens)
    return example

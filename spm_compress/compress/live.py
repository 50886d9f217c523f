"""A compressed model as a live module, and back: load, train on in any way, save."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spm_compress.checkpoint.artifact import Artifact, FittedLayer, read_artifact, write_artifact
from spm_compress.checkpoint.artifact_source import source_of
from spm_compress.checkpoint.entries import as_in_source
from spm_compress.checkpoint.huggingface import member_of, module_of
from spm_compress.checkpoint.modules import load_module
from spm_compress.checkpoint.source import Source
from spm_compress.checkpoint.tensor_info import bias_of
from spm_compress.checkpoint.trace import own_tensors
from spm_compress.codecs import Codec
from spm_compress.compress.module import apply_artifact
from spm_compress.compress.settings import bits_said, parse_store
from spm_compress.errors import ArtifactError
from spm_compress.forms.dense import Dense
from spm_compress.forms.form import Operator, relative_error
from spm_compress.forms.stored import Encoded, StoredOperator, encoded
from spm_compress.layers.linear import FormLinear
from spm_compress.version import __version__

__all__ = ["frozen", "load", "load_model", "parameters_of", "refreshed", "save", "storable"]


def load(artifact: Path | str, source: Path | str | None = None, *, factory: str | None = None) -> nn.Module:
    """Return a compressed model, live, in evaluation mode: the original model with SPMLinear layers.

    artifact: file that `fit` or `distill` wrote; source: the Hugging Face folder that was fitted, if it has moved;
    factory: `module:function` that builds the model, if it was fitted from one.
    Raises ArtifactError if either is missing, damaged or does not belong to the other; SourceError if transformers
    cannot load the model.
    """
    path = Path(artifact)
    found = read_artifact(path)
    return load_model(found, source_of(found, path, None if source is None else Path(source), factory))


def save(model: nn.Module, path: Path | str, *, like: Path | str, factory: str | None = None) -> None:
    """Write the numbers that a model from `load` has now as an artifact, which exports and reports as any other.

    like: the artifact that the model was loaded from; what it keeps by name (layers, kept tensors) is taken from the
    model. Raises ArtifactError if the model has no SPMLinear for one of its layers, SpmError if it cannot be written.
    """
    path, like = Path(path), Path(like)
    artifact = read_artifact(like)
    source = source_of(artifact, like, factory=factory)
    write_artifact(refreshed(artifact, model, source, beside=path.parent), path)


def load_model(artifact: Artifact, source: Source, *, as_stored: bool = False) -> nn.Module:
    """Return the compressed model, live: the source's model with SPMLinear layers, in evaluation mode.

    as_stored: as in `apply_artifact`.
    Raises SourceError if the source cannot be loaded, ArtifactError if the artifact does not belong to it.
    """
    model = load_module(source)
    apply_artifact(model, artifact, as_stored=as_stored)
    return model


def storable(artifact: Artifact, model: nn.Module) -> dict[str, str]:
    """Return name of a parameter of the model -> name of the kept tensor in which the artifact holds it."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {member: name for name in artifact.tensors if (member := member_of(name, model, parameters)) is not None}


def refreshed(
    artifact: Artifact,
    model: nn.Module,
    source: Source,
    *,
    beside: Path,
    recovery: Mapping[str, Any] | None = None,
    stored: Mapping[str, StoredOperator] | None = None,
) -> Artifact:
    """Return the artifact with the numbers that a live model has now, on the CPU.

    source: the model that was fitted; errors are against its weights. beside: the folder that the artifact is going to
    lie in. recovery: what is known of the training. stored: layers, by name, that are to be stored so, as the model has
    what they decode to; the others are encoded anew.
    Layers that the model holds as matrices stay as they were fitted (`frozen`), unless they are among them.
    Raises ArtifactError if the model has no SPMLinear for one of the other layers, or has trained such a matrix.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    held = {name: parameters[member] for name in artifact.tensors if (member := member_of(name, model, parameters))}
    now = {name: parameter.detach().cpu() for name, parameter in held.items()}
    kept = {id(parameter) for parameter in held.values()}
    tensors = {name: now[name].to(old.dtype) if name in now else old for name, old in artifact.tensors.items()}
    changed = [name for name, old in artifact.tensors.items() if not torch.equal(tensors[name], old)]
    asked, _ = parse_store(bits_said(artifact.settings))
    return replace(
        artifact,
        source={**artifact.source, "path": os.path.relpath(source.path, beside)},
        layers=tuple(
            _refreshed(layer, model, source, kept, asked, (stored or {}).get(layer.name)) for layer in artifact.layers
        ),
        versions={"spm_compress": __version__, "torch": torch.__version__},
        tensors=tensors,
        recovery={**(recovery or {}), "retrained": sorted({*changed, *artifact.retrained})},
    )


def frozen(artifact: Artifact, model: nn.Module) -> tuple[str, ...]:
    """Return the names of layers that a model of `load` holds as a multiplied-out matrix, whose factors it has not.

    Those are structured, and parameters that the model multiplies by itself (`in_proj_weight`) or ties to a table.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = own_tensors(model)
    held = parameters_of(artifact, model)
    return tuple(
        layer.name
        for layer in artifact.layers
        if layer.name not in held
        and _form_linear(layer, model, modules) is None
        and member_of(layer.name, model, parameters) is not None
    )


def parameters_of(artifact: Artifact, model: nn.Module) -> dict[str, dict[str, str]]:
    """Return layer -> array of its stored form -> name of the model's parameter that it is, of layers that have both.

    They are the same in a model that was loaded `as_stored`, of a dense map also where it is a parameter by itself.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = own_tensors(model)
    found: dict[str, dict[str, str]] = {}
    for layer in artifact.layers:
        module = _form_linear(layer, model, modules)
        member = member_of(layer.name, model, tensors) if module is None else None
        if module is not None and module.form == layer.stored.form:
            own = dict(module.named_parameters())
            found[layer.name] = {array: names[id(own[name])] for array, name in module.names().items()}
        elif member is not None and isinstance(layer.stored.form, Dense):
            tensor = tensors[member]
            if tensor.shape == layer.shape and id(tensor) in names:
                found[layer.name] = {"weight": names[id(tensor)]}
    return found


def _form_linear(layer: FittedLayer, model: nn.Module, modules: Mapping[str, nn.Module]) -> FormLinear | None:
    found = (modules.get(module_of(name, model, modules) or "") for name in layer.names)
    return next((each for each in found if isinstance(each, FormLinear)), None)


def _refreshed(
    layer: FittedLayer,
    model: nn.Module,
    source: Source,
    kept: Container[int],
    asked: Codec,
    stored: StoredOperator | None,
) -> FittedLayer:
    """Return the layer with the model's numbers in the stored form.

    kept: ids of parameters that are kept tensors. asked: codec of the fit, which this layer may have refused. stored:
    what the model's numbers were decoded from, if that is known.
    """
    if stored is not None:
        error = relative_error(source.read(layer.name), stored.decoded())
        layer = _with_stored(layer, Encoded(stored, error, layer.reason))
    modules = dict(model.named_modules(remove_duplicate=False))
    module = _form_linear(layer, model, modules)
    parameters = own_tensors(model)
    member = member_of(layer.name, model, parameters) if module is None else None
    if member is not None:
        held = parameters[member].detach().cpu()
        is_linear = isinstance(modules.get(module_of(layer.name, model, modules) or ""), nn.Linear)
        fitted = as_in_source(layer, layer.operator.to(torch.float64).to_dense().to(held.dtype))
        is_fitted = held.shape == fitted.shape and torch.equal(held, fitted)
        if not is_fitted and is_linear:
            raise _no_layer(layer)
        if not is_fitted:
            raise ArtifactError(
                f"{layer.name}: the model computes with its matrix, which was trained, and an artifact has no place "
                "for that; leave it as it was loaded"
            )
        biases = (member_of(bias_of(name), model, parameters) for name in layer.names)
        is_kept = any(bias is not None and id(parameters[bias]) in kept for bias in biases)
        return replace(layer, bias_correction=None) if is_kept else layer
    if module is None or (module.out_features, module.in_features) != layer.shape:
        raise _no_layer(layer)
    if stored is None:
        live = module.operator()
        operator = Operator(live.form, {name: array.detach().cpu() for name, array in live.arrays.items()})
        codec = asked if layer.reason else layer.stored.codec
        layer = _with_stored(layer, encoded(operator, codec, source.read(layer.name).float(), is_target=False))
    correction = None if module.bias is None or id(module.bias) in kept else module.bias.detach().cpu().float()
    return replace(layer, bias_correction=correction)


def _with_stored(layer: FittedLayer, found: Encoded) -> FittedLayer:
    # Errors of outputs were measured before, and nothing says what they are now.
    return replace(
        layer,
        stored=found.operator,
        error=found.error,
        reason=found.reason,
        output_error=None,
        svd_output_error=None,
    )


def _no_layer(layer: FittedLayer) -> ArtifactError:
    return ArtifactError(f"{layer.name}: the model has no SPMLinear of shape {layer.shape} there; load it anew")

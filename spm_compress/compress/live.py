"""A compressed model as a live module, and back: load, train on in any way, save."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spm_compress.checkpoint.artifact import Artifact, FittedLayer, read_artifact, write_artifact
from spm_compress.checkpoint.huggingface import member_of, module_of
from spm_compress.checkpoint.modules import load_module
from spm_compress.checkpoint.origin import source_of
from spm_compress.checkpoint.source import Source
from spm_compress.compress.layers import stored_as
from spm_compress.compress.module import apply_artifact
from spm_compress.errors import ArtifactError
from spm_compress.fitting.fit import relative_error, stored_form
from spm_compress.fitting.settings import FitResult
from spm_compress.layers.linear import SPMLinear
from spm_compress.operator.spm import SPM
from spm_compress.version import __version__

__all__ = ["load", "load_model", "refreshed", "save", "storable"]


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


def load_model(artifact: Artifact, source: Source) -> nn.Module:
    """Return the compressed model, live: the source's model with SPMLinear layers, in evaluation mode.

    Raises SourceError if the source cannot be loaded, ArtifactError if the artifact does not belong to it.
    """
    model = load_module(source)
    apply_artifact(model, artifact)
    return model


def storable(artifact: Artifact, model: nn.Module) -> dict[str, str]:
    """Return name of a parameter of the model -> name of the kept tensor in which the artifact holds it."""
    parameters = dict(model.named_parameters())
    return {member: name for name in artifact.tensors if (member := member_of(name, model, parameters)) is not None}


def refreshed(
    artifact: Artifact, model: nn.Module, source: Source, *, beside: Path, recovery: Mapping[str, Any] | None = None
) -> Artifact:
    """Return the artifact with the numbers that a live model has now, on the CPU.

    source: the model that was fitted; errors are against its weights. beside: the folder that the artifact is going to
    lie in. recovery: what is known of the training.
    Raises ArtifactError if the model has no SPMLinear for one of the layers.
    """
    parameters = dict(model.named_parameters())
    now = {name: parameters[member].detach().cpu() for member, name in storable(artifact, model).items()}
    tensors = {name: now[name].to(old.dtype) if name in now else old for name, old in artifact.tensors.items()}
    changed = [name for name, old in artifact.tensors.items() if not torch.equal(tensors[name], old)]
    return replace(
        artifact,
        source={**artifact.source, "path": os.path.relpath(source.path, beside)},
        layers=tuple(_refreshed(layer, model, source.read(layer.name), tensors) for layer in artifact.layers),
        versions={"spm_compress": __version__, "torch": torch.__version__},
        tensors=tensors,
        recovery={**(recovery or {}), "retrained": sorted({*changed, *artifact.retrained})},
    )


def _refreshed(layer: FittedLayer, model: nn.Module, weight: Tensor, tensors: Mapping[str, Tensor]) -> FittedLayer:
    """Return the layer with the model's numbers in the stored form."""
    name = module_of(layer.name, model, dict(model.named_modules()))
    module = None if name is None else model.get_submodule(name)
    if not isinstance(module, SPMLinear) or (module.out_features, module.in_features) != layer.shape:
        raise ArtifactError(f"{layer.name}: the model has no SPMLinear of shape {layer.shape} there; load it anew")
    live = module.spm()
    numbers = [{key: x.detach().cpu() for key, x in named.items()} for named in live.numbers]
    spm = stored_form(SPM(live.structure, numbers))
    dtype = next(x.dtype for named in layer.spm.numbers for key, x in named.items() if key != "diagonals")
    error = relative_error(weight.float(), spm)
    spm, error = stored_as(FitResult(spm, error, 0, 0, ""), weight.float(), dtype)
    bias = layer.name.removesuffix("weight") + "bias"
    shift = None if bias in tensors or module.bias is None else module.bias.detach().cpu().float()
    # Errors of outputs were measured before, and nothing says what they are now.
    return replace(layer, spm=spm, error=error, shift=shift, output_error=None, svd_output_error=None)

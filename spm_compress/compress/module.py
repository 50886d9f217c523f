"""Replacing the linear layers of a live `nn.Module`, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spm_compress.checkpoint.artifact import Artifact, FittedLayer
from spm_compress.checkpoint.huggingface import member_of, module_of
from spm_compress.checkpoint.linears import use_linears
from spm_compress.checkpoint.tensor_info import TensorInfo, dtype_name
from spm_compress.compress.layers import batches
from spm_compress.compress.selection import select
from spm_compress.errors import ArtifactError, FitError, UsageError
from spm_compress.fitting.fit import fit_matrices
from spm_compress.fitting.settings import FitSettings
from spm_compress.layers.linear import SPMLinear

__all__ = ["Compressed", "apply_artifact", "compress_model", "set_tensors"]


@dataclass(frozen=True)
class Compressed:
    """What `compress_model` did: name -> relative error of each replaced layer, name -> reason of each kept one."""

    replaced: Mapping[str, float]
    kept: Mapping[str, str] = field(default_factory=dict)


def compress_model(
    model: nn.Module,
    stages: int = 10,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_features: int = 32,
    settings: FitSettings | None = None,
) -> Compressed:
    """Replace every `nn.Linear` (and Conv1D of transformers) of a module by an SPMLinear fitted to it, in place.

    include, exclude: globs on module names ("encoder.*"); settings takes the place of `stages`. Layers
    that share a weight go on sharing it; a linear layer whose weight something else uses too (an
    embedding) stays, as does a layer that would not get smaller. The output projection of
    `nn.MultiheadAttention` is replaced as well: that module reads `.weight`, so it saves memory there, not time.

    Raises UsageError for a glob without a match, FitError naming a layer that cannot be fitted.
    """
    settings = settings or FitSettings(stages=stages)
    use_linears(model)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    infos = {
        name: TensorInfo(tuple(module.weight.shape), dtype_name(module.weight.dtype))
        for name, module in linears.items()
    }
    selection = select(infos, include=tuple(include), exclude=tuple(exclude), min_features=min_features)
    kept = dict(selection.kept)
    owners = _owners(model)
    first_of: dict[int, str] = {}
    twins: dict[str, list[str]] = {}
    for name in selection.fitted:
        module = linears[name]
        structure = settings.stored_structure(module.out_features, module.in_features)
        if structure.parameter_count >= module.weight.numel():
            kept[name] = f"would not get smaller: {structure.parameter_count} numbers for {module.weight.numel()}"
        elif owners[id(module.weight)] - {id(linear) for linear in linears.values()}:
            kept[name] = "its weight is shared with a module that is no linear layer"
        else:
            twins.setdefault(first_of.setdefault(id(module.weight), name), []).append(name)
    replaced: dict[str, float] = {}
    for batch in batches({name: (linears[name].out_features, linears[name].in_features) for name in twins}):
        weights = torch.stack([linears[name].weight.detach().float() for name in batch])
        try:
            results = fit_matrices(weights, settings)
        except FitError as error:
            raise FitError(f"{', '.join(batch)}: {error}") from error
        for first, result in zip(batch, results, strict=True):
            shared: SPMLinear | None = None
            for name in twins[first]:
                layer = SPMLinear.in_place_of(linears[name], result.spm)
                if shared is not None:
                    layer.chains = shared.chains
                shared = layer
                _replace(model, name, layer)
                replaced[name] = result.error
    return Compressed(replaced, kept)


def apply_artifact(model: nn.Module, artifact: Artifact) -> None:
    """Put the fitted layers of an artifact into a module of the original architecture, in place.

    A fitted tensor that is the `.weight` of an `nn.Linear`, and of nothing else, becomes an SPMLinear; any other
    parameter (a fused projection, a table that a head is tied to) gets the multiplied-out matrix. Names may differ by
    the module's `base_model_prefix`, as Hugging Face checkpoints do. Of the kept tensors those are set that a recovery
    changed.

    Raises ArtifactError if a layer is missing from the module or has another shape.
    """
    use_linears(model)
    set_tensors(model, artifact.retrained)
    owners = _owners(model)
    for layer in artifact.layers:
        shared: SPMLinear | None = None
        for tensor_name in layer.names:
            modules = dict(model.named_modules())
            name = module_of(tensor_name, model, modules)
            linear = modules.get(name) if name is not None else None
            if name is None or not isinstance(linear, nn.Linear) or _is_shared(linear, owners, modules.values()):
                _set_matrix(model, tensor_name, layer)
                continue
            if tuple(linear.weight.shape) != layer.shape:
                raise ArtifactError(
                    f"{tensor_name}: is {tuple(linear.weight.shape)} in the model, {layer.shape} fitted"
                )
            spm_linear = SPMLinear.in_place_of(linear, layer.spm, layer.shift)
            if shared is not None:
                spm_linear.chains = shared.chains
            shared = spm_linear
            _replace(model, name, spm_linear)


def set_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters other values, in place; names as in a checkpoint. Raises ArtifactError for a missing one."""
    parameters = dict(model.named_parameters())
    for tensor_name, tensor in tensors.items():
        name = member_of(tensor_name, model, parameters)
        if name is None or parameters[name].shape != tensor.shape:
            raise ArtifactError(f"{tensor_name}: the model has no parameter of that name and shape")
        with torch.no_grad():
            parameters[name].copy_(tensor)


def _is_shared(linear: nn.Linear, owners: Mapping[int, set[int]], modules: Iterable[nn.Module]) -> bool:
    """Whether something that is no linear layer reads the weight too."""
    plain = {id(module) for module in modules if isinstance(module, nn.Linear)}
    return bool(owners.get(id(linear.weight), set()) - plain)


def _set_matrix(model: nn.Module, tensor_name: str, layer: FittedLayer) -> None:
    set_tensors(model, {tensor_name: layer.spm.to(torch.float64).to_dense()})
    if layer.shift is not None:
        raise ArtifactError(f"{tensor_name}: was fitted with calibration data, and the model has no bias beside it")


def _owners(model: nn.Module) -> dict[int, set[int]]:
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
    return owners


def _replace(model: nn.Module, name: str, layer: SPMLinear) -> None:
    if not name:
        raise UsageError("the model is itself a linear layer; use SPMLinear.from_linear on it")
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)

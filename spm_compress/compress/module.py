"""Replacing the linear layers of a live `nn.Module`, in place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spm_compress.checkpoint.artifact import Artifact, FittedLayer
from spm_compress.checkpoint.entries import as_in_source
from spm_compress.checkpoint.huggingface import member_of, module_of
from spm_compress.checkpoint.tensor_info import bias_of
from spm_compress.checkpoint.trace import own_tensors
from spm_compress.checkpoint.unwrapping import use_linears
from spm_compress.errors import ArtifactError, UsageError
from spm_compress.layers.linear import FormLinear

__all__ = ["apply_artifact", "set_tensors"]


def apply_artifact(model: nn.Module, artifact: Artifact, *, as_stored: bool = False) -> None:
    """Put the fitted layers of an artifact into a module of the original architecture, in place.

    A fitted tensor that is the `.weight` of an `nn.Linear`, and of nothing else, becomes a FormLinear; any other
    parameter (a fused projection, a table that a head is tied to) gets the multiplied-out matrix. What was tied stays
    tied: names of one weight share its numbers, layers of one bias go on sharing it. Names may differ by the module's
    `base_model_prefix`, as Hugging Face checkpoints do. Of the kept tensors those are set that a recovery changed.
    as_stored: layers have the very arrays that are stored where these train (`Form.trains`).

    Raises ArtifactError if a layer is missing from the module or has another shape.
    """
    use_linears(model)
    set_tensors(model, artifact.retrained)
    modules = dict(model.named_modules(remove_duplicate=False))
    matrices = _only_matrices(model, modules)
    raised: dict[int, FittedLayer] = {}  # biases that were raised by a bias_correction: layers may share one
    for layer in artifact.layers:
        made: dict[int, FormLinear] = {}
        for tensor_name in layer.names:
            name = module_of(tensor_name, model, modules)
            linear = modules.get(name) if name is not None else None
            if not name or not isinstance(linear, nn.Linear) or id(linear.weight) in matrices:
                _set_matrix(model, tensor_name, layer, linear, raised)
                continue
            if tuple(linear.weight.shape) != layer.shape:
                raise ArtifactError(
                    f"{tensor_name}: is {tuple(linear.weight.shape)} in the model, {layer.shape} fitted"
                )
            if id(linear) not in made:
                made[id(linear)] = _in_place_of(linear, layer, next(iter(made.values()), None), raised, as_stored)
            _replace(model, name, made[id(linear)])


def _in_place_of(
    linear: nn.Linear, layer: FittedLayer, tied: FormLinear | None, raised: dict[int, FittedLayer], as_stored: bool
) -> FormLinear:
    """Return the layer with the very bias of the linear; tied: a layer of the same weight, whose numbers it shares."""
    found = FormLinear.in_place_of(linear, layer.operator, layer.bias_correction, is_stored=as_stored)
    if tied is not None:
        found.arrays = tied.arrays
    if linear.bias is not None:
        if layer.bias_correction is not None:
            _raise_bias(linear.bias, layer, raised)
        found.bias = linear.bias
    elif tied is not None and tied.bias is not None and layer.bias_correction is not None:
        found.bias = tied.bias  # of the bias_correction alone, as this one's
    return found


def set_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers other values, in place; names as in a checkpoint.

    Raises ArtifactError for a missing one.
    """
    parameters = own_tensors(model)
    for tensor_name, tensor in tensors.items():
        name = member_of(tensor_name, model, parameters)
        if name is None or parameters[name].shape != tensor.shape:
            raise ArtifactError(f"{tensor_name}: the model has no parameter of that name and shape")
        with torch.no_grad():
            parameters[name].copy_(tensor)


def _only_matrices(model: nn.Module, modules: Mapping[str, nn.Module]) -> set[int]:
    """Return the weights of linear layers that something else reads too, which needs them as matrices."""
    linears = {id(module): id(module.weight) for module in modules.values() if isinstance(module, nn.Linear)}
    owners = _owners(model)
    return {weight for weight in linears.values() if owners.get(weight, set()) - set(linears)}


def _set_matrix(
    model: nn.Module, tensor_name: str, layer: FittedLayer, module: nn.Module | None, raised: dict[int, FittedLayer]
) -> None:
    """Give a parameter the multiplied-out matrix, and the bias beside it what calibration adds.

    module: the one that has it as its weight. A table that is looked up has no bias, and needs none.
    """
    set_tensors(model, {tensor_name: as_in_source(layer, layer.operator.to(torch.float64).to_dense())})
    if layer.bias_correction is None or isinstance(module, nn.Embedding):
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    name = member_of(bias_of(tensor_name), model, parameters)
    if name is not None and parameters[name].shape == layer.bias_correction.shape:
        _raise_bias(parameters[name], layer, raised)
    elif isinstance(module, nn.Linear) and module.bias is None:
        module.bias = nn.Parameter(layer.bias_correction.to(module.weight))
    else:
        raise ArtifactError(f"{tensor_name}: was fitted with calibration data, and the model has no bias beside it")


def _raise_bias(bias: nn.Parameter, layer: FittedLayer, raised: dict[int, FittedLayer]) -> None:
    """Add the layer's bias_correction to a bias, once for all names that it has."""
    assert layer.bias_correction is not None
    if id(bias) not in raised:
        raised[id(bias)] = layer
        with torch.no_grad():
            bias.add_(layer.bias_correction.to(bias))
    elif raised[id(bias)] is not layer:
        raise ArtifactError(
            f"{raised[id(bias)].name} and {layer.name}: share one bias, which calibration changes in two ways; leave "
            "one of them out of the fit with `exclude`"
        )


def _owners(model: nn.Module) -> dict[int, set[int]]:
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
    return owners


def _replace(model: nn.Module, name: str, layer: FormLinear) -> None:
    if not name:
        raise UsageError("the model is itself a linear layer; use SPMLinear.from_linear on it")
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)

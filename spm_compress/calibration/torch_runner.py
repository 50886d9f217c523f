"""Hugging Face folders, watched by hooks before their linear layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn

from spm_compress.calibration.data import Batch, check_names, read_batches
from spm_compress.calibration.padding import real_rows
from spm_compress.checkpoint.huggingface import module_of
from spm_compress.checkpoint.imported_model import ImportedModel
from spm_compress.checkpoint.modules import load_module
from spm_compress.checkpoint.source import Source
from spm_compress.errors import SourceError, UsageError, first_line
from spm_compress.quiet import quiet

__all__ = ["TorchRunner", "as_tensors", "batches_for", "open_torch_runner"]


_Identity = tuple[int, int]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Layer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def _identity(x: Tensor) -> _Identity:
    """Return what differs between two tensors, and in one that was changed in place in between."""
    return id(x), x._version


@dataclass(frozen=True)
class TorchRunner:
    """A Runner of a torch module that is called with keyword tensors. layers: tensor name -> the layers with it.

    A 1x1 convolution is a linear layer at every place.
    """

    path: Path
    model: nn.Module
    batches: Sequence[Batch]
    layers: Mapping[str, Sequence[_Layer]]
    _biases: dict[int, Tensor | None] = field(default_factory=dict)

    def order(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the names as the model uses them; those that are given the same tensors together."""
        waiting = [name for name in names if self.layers.get(name)]
        groups: dict[tuple[_Identity, ...], list[str]] = {}
        kept: list[Tensor] = []  # alive while their identities are compared
        for batch in self.batches:  # a model may reach some of its layers with some inputs only
            uses: dict[str, list[_Identity]] = {}

            def watch(name: str, x: Tensor, uses: dict[str, list[_Identity]] = uses) -> None:
                kept.append(x)
                uses.setdefault(name, []).append(_identity(x))

            self._run(waiting, batch, watch)
            for name, identities in uses.items():
                groups.setdefault(tuple(identities), []).append(name)
            waiting = [name for name in waiting if name not in uses]
            if not waiting:
                break
        return [tuple(group) for group in groups.values()]

    def inputs(self, names: Sequence[str], batch: Batch) -> dict[str, list[Tensor]]:
        """Run one batch; return name -> (rows, n) float32 at each use. Raises SourceError if the model cannot run."""
        found: dict[str, list[Tensor]] = {}
        rows: dict[_Identity, tuple[Tensor, Tensor]] = {}

        def watch(name: str, x: Tensor) -> None:
            if _identity(x) not in rows:
                rows[_identity(x)] = x, real_rows(x, batch)
            found.setdefault(name, []).append(rows[_identity(x)][1])

        self._run(names, batch, watch)
        return found

    def replace(self, name: str, weight: Tensor, correction: Tensor) -> None:
        """From now on compute with another weight (out, in) and add correction (out,)."""
        with torch.no_grad():
            for layer in self.layers[name]:
                layer.weight = nn.Parameter(weight.to(layer.weight).reshape(layer.weight.shape))
                # Tied names reach the same layer: the correction is always that of the bias it came with.
                own = self._biases.setdefault(id(layer), layer.bias)
                bias = torch.zeros_like(correction) if own is None else own
                layer.bias = nn.Parameter((bias + correction).to(layer.weight))

    def _run(self, names: Sequence[str], batch: Batch, watch: Callable[[str, Tensor], None]) -> None:
        def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
            return lambda module, arguments, named: watch(
                name, _features_last(module, arguments[0] if arguments else named["input"])
            )

        handles = [
            layer.register_forward_pre_hook(hook(name), with_kwargs=True)
            for name in names
            for layer in self.layers.get(name, ())
        ]
        try:
            with torch.no_grad(), quiet():
                self.model(**as_tensors(batch))
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError) as error:
            raise SourceError(f"{self.path}: does not run on the calibration data ({first_line(error)})") from error
        finally:
            for handle in handles:
                handle.remove()


def _features_last(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs of a layer as (..., n); a view, so that what a convolution is given is nothing else's too."""
    return x.movedim(1 - layer.weight.dim(), -1) if isinstance(layer, _CONVOLUTIONS) else x


def as_tensors(batch: Batch) -> dict[str, Tensor]:
    """Return a batch as torch models take it: float32, int64 and bool."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    return {name: _as_taken(x) for name, x in tensors.items()}


def _as_taken(x: Tensor) -> Tensor:
    if x.dtype == torch.bool:  # a mask
        return x
    return x.float() if x.is_floating_point() else x.long()


def open_torch_runner(source: Source, data: Path) -> TorchRunner:
    """Load the live model. Raises SourceError or UsageError as `load_module` and `read_batches`."""
    model = load_module(source)
    return TorchRunner(source.path, model, batches_for(model, source, data), _layers(model, source))


def batches_for(
    model: nn.Module, source: Source, data: Path, size: int | None = None, longest: int | None = None
) -> list[Batch]:
    """Return the batches of `read_batches` that a model of the source takes. Raises UsageError for other inputs."""
    if isinstance(model, ImportedModel):
        batches = read_batches(source, data, model.batch or size, longest)
        check_names(batches, data, list(model.inputs), list(model.inputs))
        return batches if model.batch is None else _of_size(batches, model.batch, data)
    batches = read_batches(source, data, size, longest)
    parameters = inspect.signature(model.forward).parameters.values()
    known = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    if data.suffix == ".txt" or data.is_dir():  # tokenizers may say more than the model takes
        batches = [{name: array for name, array in batch.items() if name in known} for batch in batches]
    required = [each.name for each in parameters if each.default is each.empty and each.name in known]
    check_names(batches, data, known, required)
    return batches


def _of_size(batches: list[Batch], size: int, data: Path) -> list[Batch]:
    """Return the batches of this size, all but a smaller last one."""
    found = [batch for batch in batches if len(next(iter(batch.values()))) == size]
    if not found:
        raise UsageError(f"{data}: holds fewer samples than the {size} that the model is made for; give more data")
    return found


def _layers(model: nn.Module, source: Source) -> dict[str, list[_Layer]]:
    """Return tensor name -> the linear layers that have it."""
    linears: dict[str, _Layer] = {name: module for name, module in model.named_modules() if _is_linear(module)}
    found: dict[str, list[_Layer]] = {}
    for tensor in source.tensors():
        name = module_of(tensor, model, linears)
        if name is not None:
            weight = linears[name].weight
            found[tensor] = [layer for layer in linears.values() if layer.weight is weight]
    return found


def _is_linear(module: nn.Module) -> TypeGuard[_Layer]:
    """Whether a module is a linear layer, or a 1x1 convolution that neither skips nor adds places."""
    if isinstance(module, _CONVOLUTIONS):
        sizes = (*module.kernel_size, *module.stride, module.groups)
        padding = (module.padding,) if isinstance(module.padding, str) else module.padding
        return all(size == 1 for size in sizes) and all(each in (0, "valid", "same") for each in padding)
    return isinstance(module, nn.Linear)

"""A live module as a source, beside what a factory builds."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn

from spm_compress.checkpoint.factory_source import FactorySource, digest_of_tensors, inputs_by_name
from spm_compress.checkpoint.tensor_info import TensorInfo, dtype_name
from spm_compress.checkpoint.unwrapping import as_float32, copied, use_linears

__all__ = ["BuiltSource", "ModuleSource", "open_module"]


@dataclass(frozen=True)
class ModuleSource:
    """A Source of a module in memory, which nobody else changes; its tensors are those of its state dict.

    inputs: example inputs by name, of two samples or more, which exporting needs.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor] | None = None

    @property
    def path(self) -> Path:
        """The name of the module's class: there is no file."""
        return Path(type(self.module).__name__)

    @property
    def config(self) -> None:
        """None: the module says what it is."""

    @property
    def graph(self) -> None:
        """None: a graph is made when it is asked for."""

    @property
    def input_first(self) -> Container[str]:
        """No weight is held as (in_features, out_features)."""
        return ()

    @cached_property
    def _values(self) -> dict[str, Tensor]:
        found = {name: x.detach() for name, x in self.module.state_dict().items() if isinstance(x, Tensor)}
        return dict(sorted(found.items()))

    def build(self) -> nn.Module:
        """Return a copy of the module, float32, on the CPU, in evaluation mode."""
        return copied(self.module).float().cpu().eval()

    def example(self) -> Mapping[str, Tensor] | None:
        """Return the example inputs by name, if there are some."""
        return self.inputs

    def called_with(self, example_inputs: Any) -> ModuleSource:
        """Return the same source with other example inputs. Raises SourceError as `open_module`."""
        return replace(self, inputs=as_float32(inputs_by_name("`example_inputs`", self.module, example_inputs)))

    def tensors(self) -> dict[str, TensorInfo]:
        """Return name -> shape and dtype, in the order of the names."""
        return {name: TensorInfo(tuple(x.shape), dtype_name(x.dtype)) for name, x in self._values.items()}

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU; weights as (out_features, in_features)."""
        return self._values[name].cpu()

    def place(self, name: str) -> Path:
        """Return what stands for the file of a tensor."""
        return self.path

    def hashes(self) -> dict[str, str]:
        """Return the module's class -> SHA-256 of its values."""
        return {str(self.path): digest_of_tensors(self._values)}


# What has `build` and `example`: a module that can be run, trained and exported.
BuiltSource: TypeAlias = FactorySource | ModuleSource


def open_module(module: nn.Module, example_inputs: Any = None) -> ModuleSource:
    """Return a copy of a module, as it is now, as a source: what is done to the module afterwards does not reach it.

    example_inputs: a tensor, a tuple of them or a mapping of keyword arguments; None for none.
    Raises SourceError for inputs of another kind.
    """
    held = copied(module)
    use_linears(held)
    source = ModuleSource(held)
    return source if example_inputs is None else source.called_with(example_inputs)

"""A model that a function of the user, named module:function, builds."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spm_compress.checkpoint.tensor_info import TensorInfo, dtype_name
from spm_compress.checkpoint.unwrapping import (
    as_float32,
    initialized,
    require_float32,
    unwrapped,
    unwrapped_names,
    use_linears,
)
from spm_compress.errors import SourceError, UsageError, first_line

__all__ = ["FactorySource", "digest_of_tensors", "import_function", "inputs_by_name", "open_factory"]


@dataclass(frozen=True)
class FactorySource:
    """A Source of a module that is built; its tensors are those of its state dict.

    path: the file that the function is in, or the weights that are loaded into what it builds; weights: that Source's
    tensors; factory: `module:function`.
    """

    path: Path
    factory: str
    weights: Any = None  # a Source, which this module is below
    graph: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return FactorySource, (self.path, self.factory, self.weights, self.graph)  # another process builds its own

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The Hugging Face config.json beside the weights, if there is one."""
        return None if self.weights is None else self.weights.config

    @property
    def input_first(self) -> Container[str]:
        """Names of weights that the files hold as (in_features, out_features)."""
        return () if self.weights is None else self.weights.input_first

    @cached_property
    def _built(self) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
        function = import_function("`factory`", self.factory)
        try:
            found = function()
        except Exception as error:  # the user's own code
            raise SourceError(
                f"`factory` {self.factory}: raises {type(error).__name__}: {first_line(error)}"
            ) from error
        module, example = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        if not isinstance(module, nn.Module):
            raise SourceError(
                f"`factory` {self.factory}: returns a {type(module).__name__}; return an nn.Module, or a pair of one "
                "and its example inputs"
            )
        module = unwrapped(module)
        is_wide = any(each.dtype == torch.float64 for each in module.parameters())
        example = None if example is None else as_float32(inputs_by_name(f"`factory` {self.factory}", module, example))
        module = initialized(module.float().cpu(), example, f"`factory` {self.factory}").eval()
        if is_wide and example is not None:
            require_float32(module, example, f"`factory` {self.factory}")
        use_linears(module)
        if self.weights is not None:
            self._fill(module)
        return module, example

    def _fill(self, module: nn.Module) -> None:
        names = unwrapped_names(self.weights.tensors(), module.state_dict())
        values = {name: self.weights.read(stored) for stored, name in names.items()}
        try:
            module.load_state_dict(values)
        except RuntimeError as error:
            what = " ".join(str(error).split())[:300]
            raise SourceError(f"{self.path}: does not fit what `factory` {self.factory} builds ({what})") from error

    @cached_property
    def _values(self) -> dict[str, Tensor]:
        found = {name: x.detach() for name, x in self._built[0].state_dict().items() if isinstance(x, Tensor)}
        if not found:
            raise SourceError(
                f"`factory` {self.factory}: builds a module without tensors; there is nothing to compress"
            )
        return dict(sorted(found.items()))

    def build(self) -> nn.Module:
        """Return the module, float32, on the CPU, in evaluation mode; a new one at every call."""
        return FactorySource(self.path, self.factory, self.weights, self.graph)._built[0]

    def example(self) -> Mapping[str, Tensor] | None:
        """Return example inputs by name, if the function gives some: two samples or more along the first axis."""
        return self._built[1]

    def tensors(self) -> dict[str, TensorInfo]:
        """Return name -> shape and dtype, in the order of the names."""
        if self.weights is not None:
            return self.weights.tensors()  # type: ignore[no-any-return]
        return {name: TensorInfo(tuple(x.shape), dtype_name(x.dtype)) for name, x in self._values.items()}

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU; weights as (out_features, in_features)."""
        return self._values[name] if self.weights is None else self.weights.read(name)

    def place(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self.path if self.weights is None else self.weights.place(name)

    def hashes(self) -> dict[str, str]:
        """Return what the model consists of -> SHA-256: the weights' files, or else the values that were built."""
        if self.weights is not None:
            return self.weights.hashes()  # type: ignore[no-any-return]
        return {self.factory: digest_of_tensors(self._values)}


def open_factory(factory: str, weights: Any = None) -> FactorySource:
    """Return the model that `module:function` builds, with its own values or those of another Source.

    The function returns an nn.Module, or a pair of one and its example inputs (a mapping of keyword arguments, a
    tensor or a tuple of them), which exporting needs. Raises UsageError if it cannot be imported, SourceError if it
    fails, does not build a module, or the weights do not fit it.
    """
    file = inspect.getsourcefile(inspect.unwrap(import_function("`factory`", factory)))
    source = FactorySource(weights.path if weights is not None else Path(file or factory), factory, weights)
    source.build()
    return source


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name, x in tensors.items():
        digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
        digest.update(x.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def inputs_by_name(what: str, module: nn.Module, example: Any) -> Mapping[str, Tensor]:
    """Return example inputs as keyword arguments of the module's forward; what: where they were given, for messages."""
    if isinstance(example, Tensor):
        example = (example,)
    if isinstance(example, (tuple, list)):
        example = dict(zip(inspect.signature(module.forward).parameters, example, strict=False))
    if isinstance(example, Mapping):  # an optional input that is left out
        example = {name: x for name, x in example.items() if x is not None}
    if not isinstance(example, Mapping) or not all(isinstance(x, Tensor) for x in example.values()):
        raise SourceError(f"{what}: its example inputs are no tensor, tuple or mapping of tensors")
    return example


def import_function(option: str, name: str) -> Callable[..., Any]:
    """Import `module:function`; the working directory is searched first, as by `python -m`.

    This runs the module's code, the only code that is ever run. option: that it was given with. Raises UsageError if
    there is none of that name.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UsageError(f"{option} {name}: is not of the form module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{option} {name}: cannot be imported ({first_line(error)})") from error
    if not callable(found):
        raise UsageError(f"{option} {name}: is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]

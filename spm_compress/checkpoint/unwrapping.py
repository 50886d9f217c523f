"""Modules without what was put around them to run them faster, with one kind of linear layer and all parameters."""

from __future__ import annotations

import copy
import re
from collections.abc import Container, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spm_compress.errors import SourceError, first_line
from spm_compress.quiet import quiet

__all__ = [
    "as_float32",
    "bare_names",
    "copied",
    "initialized",
    "require_float32",
    "unwrapped",
    "unwrapped_names",
    "use_linears",
]

# The class of a wrapper and the attribute that it has its module in.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module that was compiled, spread over devices or averaged, at any depth; changes the module."""
    while (inner := _WRAPPERS.get(type(module).__name__)) is not None and type(module).__module__.startswith("torch."):
        module = getattr(module, inner)
    for name, child in list(module.named_modules()):
        if name and type(child).__name__ in _WRAPPERS and type(child).__module__.startswith("torch."):
            module.set_submodule(name, unwrapped(child))
    for each in module.modules():
        each._compiled_call_impl = None  # module.compile() compiles in place
    return module


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy. torch copies no tensor that was computed, which is what pruning leaves as a weight."""
    held = (value for each in module.modules() for value in vars(each).values())
    computed = [each for each in held if isinstance(each, Tensor) and not each.is_leaf]
    return copy.deepcopy(module, {id(each): each.detach().clone() for each in computed})


def initialized(module: nn.Module, example: Mapping[str, Tensor] | None, what: str) -> nn.Module:
    """Return the module with its lazy parameters made, by a run on the example inputs.

    what: names the module in messages. Raises SourceError if there is no example, or the module does not run on it.
    """
    if not any(is_lazy(each) for each in (*module.parameters(), *module.buffers())):
        return module
    if example is None:
        raise SourceError(
            f"{what}: builds a module with lazy layers, which have no weights before their first run; run it once in "
            "the function, or return a pair of the module and its example inputs"
        )
    try:
        with torch.no_grad(), quiet():
            module.eval()(**example)
    except Exception as error:  # the user's own module
        raise SourceError(f"{what}: its module does not run on its example inputs ({first_line(error)})") from error
    return module


def require_float32(module: nn.Module, example: Mapping[str, Tensor], what: str) -> None:
    """Raise SourceError if a module that was float64 does not run in float32: something in it stayed as it was."""
    try:
        with torch.no_grad(), quiet():
            module(**example)
    except Exception as error:  # the user's own module
        raise SourceError(
            f"{what}: its float64 module does not run in float32, in which it is compressed ({first_line(error)}); "
            "make its constants in the dtype of its inputs"
        ) from error


def as_float32(example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs as a module in float32 on the CPU takes them."""
    return {name: (x.float() if x.is_floating_point() else x).detach().cpu() for name, x in example.items()}


def use_linears(model: nn.Module) -> None:
    """Put `nn.Linear` where transformers' Conv1D computes the same with its weight the other way; changes the model."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers"):
            weight = module.get_parameter("weight")
            linear = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
            linear.weight = nn.Parameter(weight.detach().T.contiguous(), requires_grad=weight.requires_grad)
            linear.bias = module.get_parameter("bias")
            model.set_submodule(name, linear.train(module.training))


# What torch.compile and the parallel wrappers of torch put before the names of a module's own tensors.
_WRAPPER = re.compile(r"(_orig_mod|module)\.")


def bare_names(name: str) -> Iterator[str]:
    """Yield a name without one wrapper, without two, ...: `_orig_mod.w` and `w` for `module._orig_mod.w`."""
    while match := _WRAPPER.match(name):
        name = name[match.end() :]
        yield name


def unwrapped_names(names: Iterable[str], own: Container[str]) -> dict[str, str]:
    """Return stored name -> name in the module that is filled, of which `own` are the names.

    A wrapper stands before all names of what it wraps; where one lacks it, or is the module's own, nothing is changed.
    """
    stored = list(names)
    if any(name in own or not _WRAPPER.match(name) for name in stored):
        return {name: name for name in stored}
    return {name: _bare(name, own) for name in stored}


def _bare(name: str, own: Container[str]) -> str:
    """Take wrappers off until the module knows the name: it may have a submodule called `module` itself."""
    tried = list(bare_names(name))
    return next((each for each in tried if each in own), tried[-1])

"""What a torch module does with each of its parameters, seen while it runs once.

1. Every operator that is given a parameter, or a view of one, is noted: products, look-ups, others. Views are known by
   the memory that they share, so a module may be on the meta device, where nothing is computed.
2. A parameter that was multiplied by as a whole is a map; one that rows were taken from is a table, whether it is
   multiplied by or not. One of which parts were multiplied by, or that only went into something else, is neither; nor
   is one that a whole run had no use for.
3. The weights of recurrent modules are left: ONNX has one node for such a module, which multiplies inside.
4. Where the module cannot run to its end, the kinds of modules say it of the parameters that it did not reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from spm_compress.checkpoint.tensor_info import Role
from spm_compress.quiet import quiet

__all__ = ["TABLE", "module_roles", "own_tensors"]

UNUSED = "the model does not use it when it runs on its example inputs"
TABLE = "a table: its rows are looked up"
_TIED = "a table whose rows are looked up, tied to a product with it"
_PARTS = "a fused projection, of which the model multiplies by parts"
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "mv", "addmv", "_scaled_mm", "mkldnn_linear"}
_COPIES = {"_to_copy", "clone"}
_FUSED = {"_native_multi_head_attention", "_transformer_encoder_layer_fwd"}
_LOOKUPS = {"embedding", "index_select", "index", "gather", "take", "_embedding_bag", "_embedding_bag_forward_only"}

# Of two weights in one product the first is data: learned queries, relative positions.
_AS_DATA = " with another weight"

# What was seen of a parameter; else the names of operators.
_LOOKED_UP, _MULTIPLIED, _MULTIPLIED_IN_PART = "look-up", "product", "part of it in a product"

Roles = dict[str, tuple[Role, str]]


def module_roles(module: nn.Module, run: Callable[[nn.Module], Any] | None) -> Roles:
    """Return parameter name -> role and that in words, for those that are known. run: calls the module."""
    found = _by_kind(module)
    if run is not None:
        watch = _Watch({name: x for name, x in own_tensors(module).items() if x.dim() >= 2})
        try:
            with torch.no_grad(), quiet(), watch:
                run(module)
        except Exception:  # whatever a module raises on the meta device; what was seen until then holds
            watch.is_whole = False
        recurrent = {name for name, (role, _) in found.items() if role is Role.OTHER}
        tables = {name for name, (role, _) in found.items() if role is Role.TABLE}
        for name, (role, use) in watch.roles().items():
            if name in tables and role is not Role.TABLE:  # read whole, as tables of relative positions are
                found[name] = Role.TABLE, "a table: the weight of an embedding"
            elif name not in recurrent:
                found[name] = role, use
    return found


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module by all their names."""
    found: dict[str, Tensor] = dict(module.named_buffers(remove_duplicate=False))
    return {**found, **dict(module.named_parameters(remove_duplicate=False))}


def _by_kind(module: nn.Module) -> Roles:
    roles: Roles = {}
    for name, child in module.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if isinstance(child, (nn.Embedding, nn.EmbeddingBag)):
            roles[f"{prefix}weight"] = Role.TABLE, TABLE
        elif isinstance(child, nn.RNNBase):
            reason = f"a weight of an nn.{type(child).__name__}, whose ONNX node multiplies by it inside"
            roles.update({f"{prefix}{each}": (Role.OTHER, reason) for each, _ in child.named_parameters(recurse=False)})
        elif isinstance(child, _ConvNd):
            roles[f"{prefix}weight"] = _role_of_kernel(child.kernel_size, child.transposed, child.groups)
    tables = {id(module.get_parameter(name)) for name, (role, _) in roles.items() if role is Role.TABLE}
    for name, child in module.named_modules(remove_duplicate=False):
        if isinstance(child, nn.Linear) and "weight" in child._parameters:
            tied = id(child.weight) in tables
            roles[f"{name}.weight" if name else "weight"] = (Role.TABLE, _TIED) if tied else (Role.MAP, "")
    return roles


def _role_of_kernel(sizes: Sequence[int], transposed: bool, groups: int) -> tuple[Role, str]:
    """Return the role of a convolution's kernel. sizes: along the axes that it moves along."""
    if transposed:
        return Role.OTHER, "a kernel of a transposed convolution, no matrix"
    if groups != 1:
        return Role.OTHER, "a kernel of a grouped convolution, no matrix"
    if any(size != 1 for size in sizes):
        return Role.OTHER, "a kernel of a convolution wider than 1x1, no matrix"
    return Role.MAP, ""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what operators are given of some parameters."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        matrices = {name: x for name, x in parameters.items() if x.dim() == 2}
        self.sizes = {name: x.numel() for name, x in matrices.items()}
        self.names: dict[int, list[str]] = {}
        for name, x in matrices.items():
            self.names.setdefault(_memory(x), []).append(name)
        self.others = {_memory(x): name for name, x in parameters.items() if name not in matrices}
        self.kernels: Roles = {}
        self.seen: dict[str, set[str]] = {name: set() for name in matrices}
        self.kept: list[Any] = []
        self.is_whole = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = function._schema.name.rpartition("::")[2]
        if name == "_local_scalar_dense" and args[0].is_meta:  # a question about values: masks in a trace are all ones
            return torch.ones((), dtype=args[0].dtype).item()
        answer = function(*args, **(kwargs or {}))
        if name == "convolution" and _is_plain(args[1]) and (kernel := self.others.get(_memory(args[1]))) is not None:
            self.kernels[kernel] = _role_of_kernel(args[1].shape[2:], args[6], args[8])
        views = {_memory(x) for x in torch.utils._pytree.tree_leaves(answer) if _is_plain(x)}
        given = torch.utils._pytree.tree_leaves((args, kwargs))
        if name in _PRODUCTS and sum(_is_plain(x) and _memory(x) in self.names for x in given) > 1:
            first = next(x for x in given if _is_plain(x) and _memory(x) in self.names)
            for parameter in self.names[_memory(first)]:
                self.seen[parameter].add(f"{name}{_AS_DATA}")
            given = [None if x is first else x for x in given]
        for position, x in enumerate(given):
            for parameter in self.names.get(_memory(x), ()) if _is_plain(x) else ():
                if name in _COPIES:
                    self.kept.append(answer)  # while it lives, no other tensor has its memory
                    self.names.setdefault(_memory(answer), []).append(parameter)
                elif _memory(x) not in views:
                    self._note(parameter, name, position, x)
        return answer

    def _note(self, parameter: str, operator: str, position: int, x: Tensor) -> None:
        if operator in _LOOKUPS and position == 0:
            self.seen[parameter].add(_LOOKED_UP)
        elif operator in _FUSED or (operator in _PRODUCTS and x.numel() >= self.sizes[parameter]):
            self.seen[parameter].add(_MULTIPLIED)
        else:
            self.seen[parameter].add(_MULTIPLIED_IN_PART if operator in _PRODUCTS else operator)

    def roles(self) -> Roles:
        found: Roles = dict(self.kernels)
        is_any_seen = any(self.seen.values())  # compiled code hides all that it does
        for name, seen in self.seen.items():
            if _LOOKED_UP in seen:
                found[name] = Role.TABLE, _TIED if seen & {_MULTIPLIED, _MULTIPLIED_IN_PART} else TABLE
            elif any(each.endswith(_AS_DATA) for each in seen):
                found[name] = Role.OTHER, f"the model takes it as data ({', '.join(sorted(seen))})"
            elif _MULTIPLIED_IN_PART in seen:
                found[name] = Role.OTHER, _PARTS
            elif _MULTIPLIED in seen:
                found[name] = Role.MAP, ""
            elif seen and self.is_whole:
                found[name] = Role.OTHER, f"the model does not multiply by it ({', '.join(sorted(seen))})"
            elif self.is_whole and is_any_seen:
                found[name] = Role.OTHER, UNUSED
        return found


def _is_plain(x: object) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided


def _memory(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)

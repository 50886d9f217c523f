"""Programs of torch.export as modules that train: their products as calls of linear layers.

1. A weight `X.weight` that the program reads in plain products only, x W^T or x W^T + b, becomes that of an nn.Linear
   `X`, so that a form can take its place; `X.bias` goes with it. Where `X` holds anything else it stays a parameter.
2. All other tensors keep their names; every one is a copy, so that two imports share nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spm_compress.checkpoint.imported_model import ImportedModel
from spm_compress.checkpoint.program_source import ProgramSource
from spm_compress.checkpoint.trace import own_tensors
from spm_compress.errors import SourceError

__all__ = ["ImportedProgram", "import_program", "why_not_imported_program"]

_ATEN = torch.ops.aten
_TURNS: Mapping[Any, tuple[Any, ...]] = {_ATEN.t.default: (), _ATEN.permute.default: ([1, 0],)}
_SWAPS = _ATEN.transpose.int
# Name of an input, or None and a constant.
_Leaf = tuple[str | None, Any]
# Operators that draw or measure where their argument of this place says that the model was training.
_TRAINING: Mapping[Any, int] = {_ATEN.dropout.default: 2, _ATEN.native_dropout.default: 2, _ATEN.batch_norm.default: 5}


class ImportedProgram(ImportedModel):
    """A program in torch: called with its inputs by name, it answers what the program does.

    own: name of an input -> the program's dtype; given: in the order of its arguments' leaves names, and constants as
    they are.
    """

    def __init__(
        self,
        graph: nn.Module,
        own: Mapping[str, torch.dtype],
        given: Sequence[_Leaf],
        spec: Any,
        members: Mapping[str, str],
        batch: int | None,
    ) -> None:
        inputs = {name: torch.float32 if dtype.is_floating_point else dtype for name, dtype in own.items()}
        super().__init__(graph, inputs, members, batch)
        self.own, self._given, self._spec = own, given, spec

    def forward(self, /, **inputs: Tensor) -> Any:
        """Run the program. Raises KeyError for an input that is missing."""
        positional, named = self.arguments(inputs, self.inputs)
        return self.graph(*positional, **named)

    def arguments(
        self, inputs: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the program is called with, of tensors by the names of its inputs."""
        leaves = [constant if name is None else inputs[name].to(dtypes[name]) for name, constant in self._given]
        found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(leaves, self._spec)
        return found


def why_not_imported_program(source: ProgramSource, fitted: Collection[str]) -> str | None:
    """Return why a program with these fitted weights cannot be trained, in words, None if it can."""
    graph = _unlifted(source)
    training = next((node for node in graph.graph.nodes if _is_training(node)), None)
    if training is not None:
        return f"it was exported in training mode ({training.target}); call eval() on the model before torch.export"
    if fitted and not set(fitted) & set(_products(graph)):
        return "it does not multiply by a fitted weight in plain products alone"
    return None


def import_program(source: ProgramSource) -> ImportedProgram:
    """Return the model of a program, in float32. Raises SourceError for one whose operators are those of a training."""
    why = why_not_imported_program(source, ())
    if why is not None:
        raise SourceError(f"{source.path}: cannot be trained, as {why}")
    graph = _unlifted(source)
    program = source.program
    examples = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    # By the signature's names: the graph calls an `input` input_1.
    pairs = list(zip(program.graph_signature.user_inputs, examples, strict=True))
    tensors = {str(name): x for name, x in pairs if isinstance(x, Tensor)}
    for name, calls in _products(graph).items():
        _call_linear(graph, name.removesuffix(".weight"), calls)
    graph.graph.eliminate_dead_code()
    plain = fx.GraphModule(graph, graph.graph)  # torch.export's own refuses eval()
    members = _members(plain, program.state_dict)
    _copy_tensors(plain)
    batch = next((x.shape[0] for x in tensors.values() if x.dim() and isinstance(x.shape[0], int)), None)
    own = {name: x.dtype for name, x in tensors.items()}
    given = [(str(each), None) if isinstance(x, Tensor) else (None, each) for each, x in pairs]
    return ImportedProgram(plain, own, given, program.call_spec.in_spec, members, batch).float().eval()


def _unlifted(source: ProgramSource) -> fx.GraphModule:
    found: fx.GraphModule = source.program.module(check_guards=False)
    return found


def _members(graph: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name of a tensor -> where it is in the graph, which reads one that has two names under one of them."""
    held = {name: x.data_ptr() for name, x in own_tensors(graph).items()}
    names = {place: name for name, place in held.items()}
    found = {name: name if name in held else names.get(x.data_ptr()) for name, x in tensors.items()}
    return {name: f"graph.{member}" for name, member in found.items() if member is not None}


def _copy_tensors(model: nn.Module) -> None:
    """Give a module tensors of its own, each where it was, those that are one still one."""
    copies: dict[int, Tensor] = {}
    for module in model.modules():
        holders: tuple[Any, ...] = (module._parameters, module._buffers)
        for held in holders:
            for name, x in held.items():
                if x is not None:
                    if id(x) not in copies:
                        made = x.detach().clone()
                        copies[id(x)] = nn.Parameter(made) if isinstance(x, nn.Parameter) else made
                    held[name] = copies[id(x)]


def _is_training(node: fx.Node) -> bool:
    place = _TRAINING.get(node.target) if node.op == "call_function" else None
    return place is not None and len(node.args) > place and node.args[place] is True


# A node that is a product; the places among its arguments of what is multiplied, and of what is added, if anything is.
# Not the arguments themselves: one of them may be a product, which another node takes the place of.
_Call = tuple[fx.Node, int, int | None]


def _products(graph: fx.GraphModule) -> dict[str, list[_Call]]:
    """Return name of a weight under rule 1 -> its products."""
    reading: dict[int, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            reading.setdefault(id(operator.attrgetter(str(node.target))(graph)), []).append(node)
    found = {}
    for nodes in reading.values():
        name = str(nodes[0].target)
        if not name.endswith(".weight") or len({node.target for node in nodes}) > 1:
            continue
        calls = [call for node in nodes for call in _calls(node)]
        complete = [call for call in calls if call is not None]
        if calls and len(complete) == len(calls) and _is_linear(graph, name, complete):
            found[name] = complete
    return found


def _calls(weight: fx.Node) -> Iterator[_Call | None]:
    """Yield the products of a matrix, None for a use that is none."""
    for user in weight.users:
        if user.target is _ATEN.linear.default and not user.kwargs:
            yield (user, 0, 2 if len(user.args) > 2 and user.args[2] else None) if user.args[0] is not weight else None
        elif _turns(user):
            yield from (_turned_call(each, user) for each in user.users)
        else:
            yield None


def _turns(node: fx.Node) -> bool:
    if node.target is _SWAPS:
        return {each % 2 for each in node.args[1:] if isinstance(each, int)} == {0, 1}
    return node.op == "call_function" and _TURNS.get(node.target) == tuple(node.args[1:])


def _turned_call(user: fx.Node, turned: fx.Node) -> _Call | None:
    if user.kwargs or user.args.count(turned) != 1:
        return None
    if user.target in (_ATEN.mm.default, _ATEN.matmul.default) and user.args[1] is turned:
        return user, 0, None
    return (user, 1, 0) if user.target is _ATEN.addmm.default and user.args[2] is turned else None


def _is_linear(graph: fx.GraphModule, name: str, calls: list[_Call]) -> bool:
    """Whether what holds a weight is a linear layer: it and a bias, which is added at each product."""
    owner = graph.get_submodule(name.removesuffix(".weight"))
    own = {*owner._parameters, *owner._buffers}
    bias = f"{name.removesuffix('weight')}bias"
    added = all(each is not None and getattr(node.args[each], "target", None) == bias for node, _, each in calls)
    small = own == {"weight"} or (own == {"weight", "bias"} and added and getattr(owner, "bias", None) is not None)
    return small and not owner._modules and isinstance(owner.weight, nn.Parameter) and owner.weight.dim() == 2


def _call_linear(graph: fx.GraphModule, name: str, calls: list[_Call]) -> None:
    """Let a linear layer compute the products; what is added besides its own bias is added behind it."""
    owner = graph.get_submodule(name)
    weight, bias = owner.weight, owner._parameters.get("bias")
    assert isinstance(weight, nn.Parameter)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = weight
    if bias is not None:
        linear.bias = bias
    parent, _, child = name.rpartition(".")
    setattr(graph.get_submodule(parent), child, linear)
    for node, x, added in calls:
        with graph.graph.inserting_before(node):
            y = graph.graph.call_module(name, (node.args[x],))
            if bias is None and added is not None:
                y = graph.graph.call_function(_ATEN.add.Tensor, (y, node.args[added]))
        node.replace_all_uses_with(y)
        graph.graph.erase_node(node)

"""What is known of a source's tensors before any of them is read: shape, dtype, and how the model uses each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from spm_compress.checkpoint.examples import example_inputs
from spm_compress.checkpoint.huggingface import member_of, outline
from spm_compress.checkpoint.module_source import BuiltSource
from spm_compress.checkpoint.program_source import ProgramSource
from spm_compress.checkpoint.source import Source
from spm_compress.checkpoint.tensor_info import Role, TensorInfo, as_matrix
from spm_compress.checkpoint.trace import module_roles, own_tensors

__all__ = ["tensors_with_roles"]


def tensors_with_roles(source: Source) -> dict[str, TensorInfo]:
    """Return `source.tensors()` with the roles that a trace of the model shows, where there is a model to trace.

    1x1 convolutions are the matrices that they multiply by (`as_matrix`).
    A Hugging Face folder is traced by its config alone, without weights; a factory's module and a program run once on
    their example inputs. Raises what building the user's module raises.
    """
    return {name: as_matrix(name, info) for name, info in _with_roles(source).items()}


def _with_roles(source: Source) -> dict[str, TensorInfo]:
    infos = source.tensors()
    traced = _traced(source)
    if traced is None:
        return infos
    module, run = traced
    roles = module_roles(module, run)
    parameters = own_tensors(module)
    for name, info in infos.items():
        member = member_of(name, module, parameters) if info.role is None else None
        if member is None:
            continue
        if parameters[member].numel() != math.prod(info.shape):
            infos[name] = replace(info, role=Role.OTHER, use=f"a part of {member}, which the model holds as one tensor")
        elif member in roles:
            role, use = roles[member]
            infos[name] = replace(info, role=role, use=use)
    return infos


def _traced(source: Source) -> tuple[nn.Module, Callable[[nn.Module], Any] | None] | None:
    if isinstance(source, BuiltSource):
        example = source.example()
        return source.build(), None if example is None else lambda module: module(**example)
    if isinstance(source, ProgramSource):
        program = source.program
        inputs = program.example_inputs
        if inputs is None:
            return None
        positional, named = inputs
        return program.module(check_guards=False), lambda module: module(*positional, **named)
    outlined = outline(source)
    if outlined is None:
        return None
    inputs_of: Mapping[str, Any] = source.config or {}
    return outlined, lambda module: module(
        **{name: x.to("meta") for name, x in example_inputs(module, inputs_of).items()}
    )

"""The models in what torch.save wrote: mappings of tensors, wherever training programs put them.

1. A mapping is one model if tensors stand in it by name. Mappings are looked for four keys deep, in lists too; a name
   such as `nets.0.ema` is the way to one, and `.` is the top.
2. State of optimizers, schedulers, scalers and generators of random numbers is none, by its keys and its content.
3. Where some mapping holds matrices, those that hold none (averages, loss weights, counters) are no models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, uint8

from spm_compress.checkpoint.quantized import FROM
from spm_compress.errors import SourceError, UsageError, near_misses

__all__ = ["TOP", "choose", "models_in", "quantized_by_torch"]

TOP = "."
_DEEPEST = 4
_LISTED = 20
# Things looked at: what refers to itself would never end.
_MOST = 5_000_000
_STATE = re.compile(
    r"optimi[sz]er|(?<![a-z])optim(?![a-z])|schedulers?(?![a-z])|(?<![a-z])sched(?![a-z])|(?<![a-z])scalers?(?![a-z])"
    r"|(?<![a-z])rng|random_state|(?<![a-z])exp_avg|momentum_buffer|_extra_state$",
    re.IGNORECASE,
)
_SLOTS = frozenset(("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "exp_avg_sq_row", "exp_inf", "acc_delta"))

Model = Mapping[str, Tensor]


def models_in(content: Any) -> dict[str, Model]:
    """Return the way to every mapping of tensors -> its tensors by name, in the order of the content (rules 1 to 3).

    Raises ValueError, with what to do, for content that has no end and for weights that torch has quantized.
    """
    found: dict[str, Model] = {}
    for way, model in _walk(content, (), [_MOST]):
        name = ".".join(way) or TOP
        while name in found:  # {"a.b": ..., "a": {"b": ...}}
            name += "+"
        found[name] = model
    heavy = {name: model for name, model in found.items() if any(x.ndim >= 2 for x in model.values())}
    return heavy or found


def choose(path: Path, content: Any, key: str | None) -> tuple[str | None, Model]:
    """Return the way to the one model, None if it is the top, and its tensors.

    Raises UsageError for several without a key, which it lists, and for a key that is not there; SourceError where
    there is none.
    """
    try:
        found = models_in(content)
    except ValueError as error:
        raise SourceError(f"{path}: {error}") from error
    if not found and not isinstance(content, Mapping):
        raise SourceError(f"{path}: holds a {type(content).__name__}, not a state dict; save model.state_dict()")
    if not found:
        raise SourceError(f"{path}: holds no tensors of a model; there is nothing to compress")
    if key is not None and key not in found:
        near = near_misses(key, found) or f"; there is: {_listed(found)}"
        raise UsageError(f"{path}: holds no model under `key` {key}{near}")
    if key is None and len(found) > 1:
        raise UsageError(f"{path}: holds several models: {_listed(found)}; choose one with `key` NAME")
    name = key if key is not None else next(iter(found))
    return (None if name == TOP and len(found) == 1 else name), found[name]


def quantized_by_torch(x: Tensor) -> str:
    """Return what a quantized tensor is, and what to do: no artifact can hold it."""
    return f"quantized already ({str(x.dtype).removeprefix('torch.')}, torch.ao); {FROM}"


def _listed(found: Mapping[str, Model]) -> str:
    named = [f"{name} ({len(model)} tensor{'' if len(model) == 1 else 's'})" for name, model in found.items()]
    more = f", and {len(named) - _LISTED} more" if len(named) > _LISTED else ""
    return ", ".join(named[:_LISTED]) + more


def _walk(content: Any, way: tuple[str, ...], left: list[int]) -> Iterator[tuple[tuple[str, ...], Model]]:
    """Yield every model and the way to it, outer ones first."""
    if isinstance(content, Mapping):
        if _is_training_state(content):
            return
        entries = [(str(key), value) for key, value in content.items()]
        tensors = {key: value for key, value in entries if isinstance(value, Tensor)}
        if tensors and not all(x.ndim <= 1 and x.dtype == uint8 for x in tensors.values()):
            yield way, tensors
    elif isinstance(content, (list, tuple)):
        entries = [(str(i), value) for i, value in enumerate(content)]
        packed = next((x for x in content if isinstance(x, Tensor) and x.is_quantized), None)
        if packed is not None:  # a weight and its bias, as modules of torch.ao pack them
            raise ValueError(f"{'.'.join(way)} is {quantized_by_torch(packed)}")
    else:
        return
    left[0] -= len(entries)
    if left[0] < 0:
        raise ValueError(f"holds more than {_MOST:,} values in lists and mappings; save the model's state_dict() alone")
    if len(way) == _DEEPEST:
        return
    for key, value in entries:
        if isinstance(value, (Mapping, list, tuple)) and not _STATE.search(key):
            yield from _walk(value, (*way, key), left)


def _is_training_state(content: Mapping[Any, Any]) -> bool:
    return "param_groups" in content or not _SLOTS.isdisjoint(key for key in content if isinstance(key, str))

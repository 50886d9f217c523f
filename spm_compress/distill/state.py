"""The state of a training on disk: with it, an interrupted one ends with the same bytes as one that was not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spm_compress.checkpoint.files import write_tensors
from spm_compress.errors import ArtifactError

__all__ = ["State", "kept_step", "read_state", "write_state"]

_KEY = "spm_compress_training"
# Fields of a state that are tensors by name.
_KINDS = ("parameters", "optimizer", "best", "averaged")


@dataclass(frozen=True)
class State:
    """After `step` steps: parameters and the optimizer's tensors by name, the best parameters so far, the mean of
    all (empty without one), agreement on the held-out data, looks since, and the recipe that all this belongs to."""

    recipe: Mapping[str, Any]
    step: int
    parameters: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]
    agreement: float
    before: float
    looks: int
    losses: tuple[float, ...] = field(default=())


def write_state(state: State, path: Path) -> None:
    """Write the state; raises SpmError if it cannot be written."""
    tensors = {}
    for kind in _KINDS:
        tensors.update({f"{kind}/{name}": x.detach().cpu().contiguous() for name, x in getattr(state, kind).items()})
    plain = {name: getattr(state, name) for name in ("recipe", "step", "agreement", "before", "looks", "losses")}
    write_tensors(tensors, path, {_KEY: json.dumps(plain)})


def kept_step(path: Path) -> int | None:
    """Return the step of the state that is kept in a file, None if there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads((file.metadata() or {})[_KEY])["step"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return None


def read_state(path: Path, recipe: Mapping[str, Any]) -> State | None:
    """Return the state that a training with this recipe left, None if there is none.

    Raises ArtifactError for a damaged file, and for one of another recipe, naming what differs.
    """
    if not path.exists():
        return None
    advice = f"delete {path.name} to begin again"
    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        nothing: dict[str, Any] = {kind: {} for kind in _KINDS}
        found = State(**nothing, **{**plain, "losses": tuple(plain["losses"])})
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: is not the state of a training ({error}); {advice}") from error
    differing = [key for key in {**found.recipe, **recipe} if found.recipe.get(key) != recipe.get(key)]
    if differing:
        key = sorted(differing)[0]
        raise ArtifactError(
            f"{path}: is of another training ({key} was {found.recipe.get(key)!r}, is {recipe.get(key)!r}); "
            f"repeat that one, or {advice}"
        )
    kinds: dict[str, Any] = {kind: {} for kind in _KINDS}
    for name, tensor in tensors.items():
        kind, _, own = name.partition("/")
        if kind in kinds:
            kinds[kind][own] = tensor
    return replace(found, **kinds)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """Return the optimizer's state, parameter by parameter; names: id of a parameter -> its name."""
    return {
        f"{names[id(parameter)]}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], kept: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned."""
    for name, tensor in kept.items():
        own, _, key = name.rpartition("/")
        parameter = parameters[own]
        optimizer.state[parameter][key] = tensor if tensor.dim() == 0 else tensor.to(parameter)

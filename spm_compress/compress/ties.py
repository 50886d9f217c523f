"""Weights under several names: one weight, one decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spm_compress.checkpoint.tensor_info import TensorInfo
from spm_compress.compress.selection import NOT_INCLUDED
from spm_compress.compress.weights import Weights

__all__ = ["Tied", "tied"]


@dataclass(frozen=True)
class Tied:
    """weights: digest and all names of each weight to fit, in the order of its first; kept: name -> reason, of all."""

    weights: tuple[tuple[str, tuple[str, ...]], ...]
    kept: Mapping[str, str]


def tied(
    weights: Weights,
    infos: Mapping[str, TensorInfo],
    chosen: Sequence[str],
    kept: Mapping[str, str],
    include: Sequence[str],
) -> Tied:
    """Group the chosen weights by their values and let each group be decided as one.

    1. Names with equal values are one weight.
    2. If one of the names is a tensor that stays, a table or one that is excluded, the weight stays.
    3. Unless it was asked for by name: then it is fitted under all its names. So is one whose other names were only not
       among those asked for.

    Raises SourceError naming a chosen tensor that holds NaN.
    """
    groups: dict[tuple[_Kind, str], list[str]] = {}
    for name in chosen:
        groups.setdefault((_kind(infos[name]), weights.digest(name)), []).append(name)
    twins: dict[tuple[_Kind, str], list[str]] = {}
    for name in _possible_twins(infos, chosen, kept):
        twins.setdefault((_kind(infos[name]), weights.digest(name, is_chosen=False)), []).append(name)
    found = []
    reasons = dict(kept)
    for key, group in groups.items():
        staying = [name for name in twins.get(key, ()) if kept[name] != NOT_INCLUDED]
        names = [*group, *twins.get(key, ())]
        if staying and not any(name in include for name in names):
            reasons.update(dict.fromkeys(group, f"tied to {staying[0]}, which stays ({kept[staying[0]]})"))
            continue
        found.append((key[1], tuple(name for name in infos if name in names)))
        for name in names:
            reasons.pop(name, None)
    return Tied(tuple(found), reasons)


_Kind = tuple[tuple[int, ...], int]


def _kind(info: TensorInfo) -> _Kind:
    """Return what names of one weight have in common: a 1x1 convolution is no linear map of the same numbers."""
    return info.shape, info.kernel_dims


def _possible_twins(infos: Mapping[str, TensorInfo], chosen: Sequence[str], kept: Mapping[str, str]) -> list[str]:
    alike = {(infos[name].shape, infos[name].dtype) for name in chosen}
    return [name for name in kept if (infos[name].shape, infos[name].dtype) in alike]

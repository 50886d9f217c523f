"""The oracle on a structure of which only data is read: widths, strides' exponents, the integers of each order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from oracle import dense_matrix
from torch import Tensor

from spm_compress.operator import SPM, Structure
from spm_compress.operator.pairing import Affine, Group, Shuffle


def group_order(group: Group, width: int) -> np.ndarray:
    if isinstance(group.order, Affine):
        return np.array([(group.order.multiplier * i + group.order.offset) % width for i in range(width)])
    if isinstance(group.order, Shuffle):
        columns = width // group.order.rows
        return np.array([i % group.order.rows * columns + i // group.order.rows for i in range(width)])
    return np.array(group.order.features)


def group_strides(group: Group) -> list[int]:
    exponents = range(group.stages - 1, -1, -1) if group.descending else range(group.stages)
    return [group.low * 2**k for k in exponents]


def dense_by_definition(structure: Structure, numbers: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    chains = [
        (c.width, [(group_order(g, c.width), group_strides(g)) for g in c.groups], c.diagonals)
        for c in structure.chains
    ]
    return dense_matrix(structure.in_features, structure.out_features, structure.mixer.value, chains, numbers)


def as_arrays(numbers: Sequence[Mapping[str, Tensor]]) -> list[dict[str, np.ndarray]]:
    return [{name: array.detach().double().numpy() for name, array in named.items()} for named in numbers]


def dense_of(spm: SPM) -> np.ndarray:
    return dense_by_definition(spm.structure, as_arrays(spm.numbers))


def relative(found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """||found - expected|| / ||expected|| (Frobenius), in float64."""
    a, b = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))

"""An SPM from its definition, in numpy, sharing no code with the library: dense matrices, multiplied out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def resize_matrix(n: int, m: int) -> np.ndarray:
    """Repeat (feature j is j mod n) or fold (sum of all features equal to j modulo m)."""
    matrix = np.zeros((m, n))
    for i in range(max(n, m)):
        matrix[i % m, i % n] = 1
    return matrix


def stage_matrix(width: int, stride: int, diagonal: np.ndarray, off_diagonal: np.ndarray) -> np.ndarray:
    matrix = np.diag(diagonal.astype(np.float64))
    for i in range(width):
        other = i ^ stride
        if other < width:
            matrix[i, other] = off_diagonal[i]
    return matrix


def rotation_stage(width: int, stride: int, angles: list[float]) -> np.ndarray:
    matrix = np.eye(width)
    for u in range(width):
        v = u ^ stride
        if u < v < width:
            angle = angles.pop(0)
            matrix[u, u] = matrix[v, v] = np.cos(angle)
            matrix[u, v], matrix[v, u] = -np.sin(angle), np.sin(angle)
    return matrix


def dense_matrix(
    in_features: int,
    out_features: int,
    stage_kind: str,
    chains: Sequence[tuple[int, Sequence[tuple[np.ndarray, Sequence[int]]], Sequence[int]]],
    numbers: Sequence[Mapping[str, np.ndarray]],
) -> np.ndarray:
    """stage_kind: rotation, general or canonical; chains: (width, groups of (order, strides), scaled boundaries)."""
    total, width = np.eye(in_features), in_features
    for (chain_width, groups, boundaries), named in zip(chains, numbers, strict=True):
        total, width = resize_matrix(width, chain_width) @ total, chain_width
        scales = dict(zip(boundaries, named.get("scales", []), strict=True))
        angles = list(named.get("angles", []))
        stage = 0
        for boundary, (order, strides) in enumerate(groups):
            total = np.diag(scales.get(boundary, np.ones(width))) @ total
            total = np.eye(width)[order] @ total
            for stride in strides:
                if stage_kind == "rotation":
                    matrix = rotation_stage(width, stride, angles)
                else:
                    diagonal = named["diagonal"][stage] if stage_kind == "general" else np.ones(width)
                    matrix = stage_matrix(width, stride, diagonal, named["off_diagonal"][stage])
                total = matrix @ total
                stage += 1
        total = np.diag(scales.get(len(groups), np.ones(width))) @ total
    return resize_matrix(width, out_features) @ total

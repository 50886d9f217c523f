"""The oracle on a form of which only data is read: widths, strides' exponents, the integers of each order, ranks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from oracle import dense_matrix
from torch import Tensor

from spm_compress.forms import Form, Operator
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.spm import SPM, Gauge
from spm_compress.forms.spm.pairing import Affine, Group, Shuffle
from spm_compress.forms.sum import Sum

Numbers = dict[str, np.ndarray]


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


def dense_by_definition(form: Form, numbers: Mapping[str, np.ndarray]) -> np.ndarray:
    """Numbers by the flat names of their arrays: `0.off_diagonal` of the first chain, `1.left` of the second part."""
    if isinstance(form, Sum):
        total = np.zeros((form.out_features, form.in_features))
        for i, part in enumerate(form.parts):
            total = total + dense_by_definition(part, _of_part(numbers, i))
        return total
    if isinstance(form, LowRank):
        return np.asarray(numbers["left"] @ numbers["right"])
    assert isinstance(form, SPM)
    stage = "canonical" if form.gauge is Gauge.CANONICAL else form.mixer.value
    chains = [(c.width, [(group_order(g, c.width), group_strides(g)) for g in c.groups], c.scales) for c in form.chains]
    by_chain = [_of_part(numbers, i) for i in range(len(chains))]
    return dense_matrix(form.in_features, form.out_features, stage, chains, by_chain)


def _of_part(numbers: Mapping[str, np.ndarray], i: int) -> Numbers:
    split = {name: name.split(".", 1) for name in numbers}
    return {rest: numbers[name] for name, (part, rest) in split.items() if part == str(i)}


def as_arrays(arrays: Mapping[str, Tensor]) -> Numbers:
    """Copies in numpy's float64."""
    return {name: array.detach().double().numpy().copy() for name, array in arrays.items()}


def dense_of(operator: Operator) -> np.ndarray:
    return dense_by_definition(operator.form, as_arrays(operator.arrays))


def drawn_numbers(form: Form, seed: int = 0) -> Numbers:
    """Gaussian numbers of every array, without torch."""
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=shape) for name, shape in form.shapes.items()}


def relative(found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """||found - expected|| / ||expected|| (Frobenius), in float64."""
    a, b = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))

"""An operator as it is stored: a form, and every array in its codec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spm_compress.codecs import FLOAT32, SCALES, Angle, Codec, StoredArray, cannot_hold, integer, part_key, refusal
from spm_compress.errors import FitError
from spm_compress.fitting.objective import Objective, output_error
from spm_compress.forms.form import Form, Operator, relative_error

__all__ = ["Encoded", "StoredOperator", "encoded", "fewest_bits"]

# By which factor fewer bits may raise the error that the numbers have in float32.
_LITTLE = 1.005


@dataclass(frozen=True)
class StoredOperator:
    """What a file holds of one linear map; arrays by the names of `form.shapes`."""

    form: Form
    arrays: Mapping[str, StoredArray]

    @classmethod
    def of(cls, operator: Operator, codec: Codec = FLOAT32, target: Objective | None = None) -> StoredOperator:
        """Return the operator with its numbers in a codec, in the form that serves it. Raises FitError as `store`.

        target: what the map, one of a batch of one, is to be near; else it is the operator itself.
        """
        stored = operator.stored(codec, target)
        codecs = stored.form.codecs(codec)
        metric = stored.form.rounding_metric(target)
        arrays = {name: StoredArray.of(codecs[name], array, metric) for name, array in stored.arrays.items()}
        return cls(stored.form, arrays)

    def decoded(self) -> Operator:
        """Return the operator that everybody computes with, float32."""
        return Operator(self.form, {name: array.decoded() for name, array in self.arrays.items()})

    @property
    def codecs(self) -> dict[str, Codec]:
        """The codec of every array."""
        return {name: array.codec for name, array in self.arrays.items()}

    @property
    def codec(self) -> Codec:
        """The codec that the numbers are in, as one asks for it; some arrays may need another one beside it."""
        found = next((codec for codec in self.codecs.values() if codec not in (FLOAT32, SCALES)), FLOAT32)
        return integer(found.bits) if isinstance(found, Angle) else found

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that is stored: the arrays' parts by `part_key`, then the index tables."""
        parts = {
            part_key(name, part): tensor for name, array in self.arrays.items() for part, tensor in array.parts.items()
        }
        return {**parts, **self.form.tables}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays and index tables."""
        tables = sum(table.nbytes for table in self.form.tables.values())
        return tables + sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True)
class Encoded:
    """An operator as it is stored, its relative error there, and why not in the codec that was asked for, if so."""

    operator: StoredOperator
    error: float
    reason: str | None = None


def encoded(
    operator: Operator,
    codec: Codec,
    weight: Tensor,
    error: float | None = None,
    metric: Tensor | None = None,
    *,
    is_target: bool = True,
) -> Encoded:
    """Store an operator that stands for a weight (out, in) in a codec, or in float32 where that would harm it.

    error: of the operator itself, if it is known; metric: (in, in) covariance of the inputs, if that is. is_target:
    whether rounding may move the map towards the weight; not of one that was trained to be another.
    """
    plain = StoredOperator.of(operator)
    before = relative_error(weight, plain.decoded()) if error is None else error
    if codec == FLOAT32:
        return Encoded(plain, before)
    try:
        target = Objective(weight[None].float(), None if metric is None else metric[None].to(weight.device))
        narrow = StoredOperator.of(operator, codec, target if is_target else None)
    except FitError:
        return Encoded(plain, before, cannot_hold(codec))
    after = relative_error(weight, narrow.decoded())
    reason = refusal(codec, before, after, operator.form.most_harm(codec))
    return Encoded(plain, before, reason) if reason else Encoded(narrow, after)


def fewest_bits(
    operator: Operator, most: Codec, weight: Tensor, error: float | None = None, metric: Tensor | None = None
) -> Encoded:
    """Store an operator in the fewest bits that raise its error by less than 0.5 %, or in the codec `most`.

    As `encoded`; where there is a metric it is the error of the outputs that counts.
    """
    plain = encoded(operator, FLOAT32, weight, error)

    def harm(found: Encoded) -> float:
        if metric is None:
            return found.error
        return output_error(weight, found.operator.decoded().to(torch.float64).to_dense(), metric)

    before = harm(plain)
    for bits in range(operator.form.fewest_bits, 8):
        found = encoded(operator, integer(bits), weight, plain.error, metric)
        if harm(found) <= _LITTLE * before:
            return found
    return encoded(operator, most, weight, plain.error, metric)

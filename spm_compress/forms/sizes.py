"""The largest form of a kind that keeps to a number of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from spm_compress.codecs import FLOAT32
from spm_compress.forms.form import Form, numbers_of

__all__ = ["largest_within"]

AnyForm = TypeVar("AnyForm", bound=Form)


def largest_within(numbers: int, make: Callable[[int], AnyForm]) -> AnyForm | None:
    """Return make(size) of the largest size, 1 or more, whose stored form has at most so many numbers; None for none.

    make: larger sizes have more numbers.
    """

    def fits(size: int) -> bool:
        return numbers_of(make(size).stored(FLOAT32)) <= numbers

    if not fits(1):
        return None
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return make(low)

"""Numbers that options take: several sizes (--batch 1,8,64), a number in a range."""

from __future__ import annotations

import math

import click


class Sizes(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 1 on, separated by commas."""

    name = "N,N,..."

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers in the order given, each once."""
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(dict.fromkeys(int(part) for part in value.split(",")))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is not a list of sizes from 1 on, such as 1,8,64", param, ctx)
        return sizes


class Range(click.FloatRange):
    """As click's own, which takes NaN for a number in every range."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{number} is not in the range {self._describe_range()}.", param, ctx)
        return number

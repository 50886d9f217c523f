"""Training through a codec: forward what a file decodes to, backward as if nothing had been rounded.

Bengio, Leonard, Courville, arXiv 1308.3432. The scales that numbers share train too, by the gradient of LSQ (Esser et
al., arXiv 1902.08153).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spm_compress.codecs.angle import Angle
from spm_compress.codecs.codec import Codec, StoredArray
from spm_compress.codecs.grid import Grid
from spm_compress.codecs.scales import SCALES

__all__ = ["Rounding", "straight_through"]


@dataclass(frozen=True)
class Rounding:
    """How an array is rounded while it trains: by its codec, at the scales that were stored of it, if it has any.

    scales: float32, in the shape that `Grid.scales` gives them; None for other codecs.
    """

    codec: Codec
    scales: Tensor | None = None

    @classmethod
    def of(cls, stored: StoredArray) -> Rounding:
        """Return the rounding that an array is stored with."""
        codec = stored.codec
        return cls(codec, codec.scales(stored.parts, stored.shape) if isinstance(codec, Grid) else None)

    def to(self, device: torch.device) -> Rounding:
        """Return the rounding of an array on a device."""
        return self if self.scales is None else Rounding(self.codec, self.scales.to(device))

    def scales_at(self, ratio: Tensor | None) -> Tensor | None:
        """Return the scales as they are stored, at a ratio to those that they began with; gradients pass."""
        if self.scales is None:
            return None
        return straight_through(SCALES, self.scales if ratio is None else self.scales * ratio)

    def stored(self, array: Tensor, ratio: Tensor | None = None) -> StoredArray:
        """Return what a file holds of latents and scales: it decodes to what `straight_through` of them is."""
        latents = _within_range(self.codec, array.detach().cpu())
        if not isinstance(self.codec, Grid) or self.scales is None:
            return StoredArray.of(self.codec, latents)
        scales = (self.scales if ratio is None else self.scales * ratio.detach()).cpu()
        return StoredArray(self.codec, self.codec.encode_at(latents, scales), tuple(array.shape))

    @staticmethod
    def latents(stored: StoredArray, weight: Tensor) -> Tensor:
        """Return where latents begin: as near to a weight as they round to what is stored."""
        if isinstance(stored.codec, Grid):
            return stored.codec.nearest_within(stored.parts, weight)
        return stored.decoded()


def straight_through(codec: Codec, array: Tensor, scales: Tensor | None = None) -> Tensor:
    """Return what the codec makes of the array, to the bit; gradients pass as if nothing had been rounded.

    scales: of a `Grid`, as they are stored, broadcast to the array once they are `Grid.spread`; without, they are
    searched.
    """
    rounded: Tensor = _StraightThrough.apply(array, scales, codec)  # type: ignore[no-untyped-call]
    return rounded


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, array: Tensor, scales: Tensor | None, codec: Codec) -> Tensor:
        ctx.codec = codec
        if isinstance(codec, Grid) and scales is not None:
            each = codec.spread(scales, tuple(array.shape))
            levels = codec.nearest_levels(array.float(), each)
            ctx.save_for_backward(array, scales, levels)
            return (levels * each).to(array.dtype)
        latents = _within_range(codec, array)
        rounded = codec.rounded(latents) if isinstance(codec, Angle) else StoredArray.of(codec, latents).decoded()
        return rounded.to(array.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        if not ctx.saved_tensors or not ctx.needs_input_grad[1]:
            return gradient, None, None
        array, scales, levels = ctx.saved_tensors
        codec: Grid = ctx.codec
        each = codec.spread(scales, tuple(array.shape))
        # d(levels * scale) / d(scale): of a number in range its rounding error, beyond it the outermost level,
        # the range ending half a level beyond that, as rounding has it.
        ratio = torch.where(each == 0, levels, array / torch.where(each == 0, 1, each))
        missed = levels - ratio
        slope = torch.where(missed.abs() <= codec.step / 2, missed, levels)
        return gradient, codec.over_shared(gradient * slope).reshape(scales.shape), None


def _within_range(codec: Codec, array: Tensor) -> Tensor:
    """Keep the latents of half a turn from coming round: at its ends a stage would change its sign."""
    if isinstance(codec, Angle) and not codec.whole:
        return array.clamp(0, math.pi * (1 - 2.0**-20))
    return array

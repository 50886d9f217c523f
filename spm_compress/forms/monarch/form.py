"""A Monarch matrix: two block-diagonal factors with the perfect shuffle between (Dao et al., arXiv 2204.00595).

    x in k blocks of q features -> each block to s features -> s blocks of k features -> each block to p features

The part of the matrix from one block of inputs to one block of outputs is a tile (p, q), and it is the outer product
of a column of the left factor with a row of the right one. No two tiles share a number, so the nearest Monarch matrix
has the best rank one of each tile, in closed form. Weighted by the inputs the tiles of a row meet, and a descent from
there goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from spm_compress.codecs import Codec, with_shared
from spm_compress.fitting.objective import Objective
from spm_compress.fitting.settings import OnStep
from spm_compress.fitting.truncated_svd import rank_one
from spm_compress.forms.descending import Start, WholeTarget, fit_by_descent
from spm_compress.forms.form import Arrays, Fitted, Form, Operator, PlainRunner, Runner
from spm_compress.forms.json_values import whole

if TYPE_CHECKING:
    import onnx_ir as ir

    from spm_compress.forms.emitter import Emitter
    from spm_compress.forms.lowering import Lowering
    from spm_compress.forms.settings import FitSettings

__all__ = ["Monarch"]

# Of the rate that an SPM begins with. Weighted, 600 steps, MiniLM's query of layer 0 at the size of 40 stages: 0.682 at
# a hundredth, 0.672 at 0.03, 0.671 at 0.1 and at 0.3; so on two more weights and at 10 stages. The start is at 0.855.
_RATE = 0.1


@dataclass(frozen=True)
class Monarch(Form):
    """right_blocks: of inputs, k; left_blocks: of outputs, s. Widths that they do not divide are padded with zeros."""

    kind: ClassVar[str] = "monarch"

    in_features: int
    out_features: int
    right_blocks: int
    left_blocks: int

    @property
    def tile(self) -> tuple[int, int]:
        """Outputs and inputs of a block: p and q."""
        return math.ceil(self.out_features / self.left_blocks), math.ceil(self.in_features / self.right_blocks)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As `Form.shapes`: `left` (s, p, k) and `right` (k, s, q)."""
        (p, q), k, s = self.tile, self.right_blocks, self.left_blocks
        return {"left": (s, p, k), "right": (k, s, q)}

    def folded(self, lowering: Lowering) -> int:
        """As `Form.folded`: the matrix before it is cropped."""
        return math.prod((*self.tile, self.right_blocks, self.left_blocks)) if lowering.layout is None else 0

    @property
    def multiply_adds(self) -> int:
        """As `Form.multiply_adds`: one a number."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def summary(self) -> Mapping[str, int | str]:
        """As `Form.summary`."""
        return {"right": self.right_blocks, "left": self.left_blocks}

    def apply(self, arrays: Arrays, x: Tensor) -> Tensor:
        """As `Form.apply`."""
        missing = self.right_blocks * self.tile[1] - self.in_features
        padded = nn.functional.pad(x, (0, 0, 0, missing))
        blocks = padded.reshape(*x.shape[:-2], self.right_blocks, self.tile[1], x.shape[-1])  # (..., k, q, rows)
        between = (arrays["right"] @ blocks).transpose(-3, -2)  # (..., s, k, rows)
        return (arrays["left"] @ between).flatten(-3, -2)[..., : self.out_features, :]

    def runner(self) -> Runner:
        """As `Form.runner`."""
        return _MonarchRunner(self)

    def transposed(self) -> Monarch:
        """As `Form.transposed`."""
        return Monarch(self.out_features, self.in_features, self.left_blocks, self.right_blocks)

    def transpose(self, arrays: Arrays) -> Operator:
        """As `Form.transpose`."""
        return Operator(self.transposed(), {"left": arrays["right"].mT, "right": arrays["left"].mT})

    def codecs(self, codec: Codec) -> Mapping[str, Codec]:
        """As `Form.codecs`: a scale for each block, as rows of few numbers would pay much for theirs."""
        return dict.fromkeys(self.shapes, with_shared(codec, "matrix"))

    def draw(self, arrays: Mapping[str, Tensor]) -> None:
        """As `Form.draw`."""
        for array in arrays.values():
            nn.init.normal_(array)

    def scaled(self, arrays: Arrays, factor: Tensor) -> Arrays:
        """As `Form.scaled`."""
        return {"left": arrays["left"] * factor[:, None, None, None], "right": arrays["right"]}

    @classmethod
    def candidates(cls, settings: FitSettings, out_features: int, in_features: int) -> Sequence[Monarch]:
        """As `Form.candidates`: tiles as square as the shape allows, and as small as the numbers do."""
        most = settings.numbers(out_features, in_features)
        for size in range(1, max(out_features, in_features) + 1):
            blocks = math.ceil(in_features / size), math.ceil(out_features / size)
            form = cls(in_features, out_features, *blocks)
            if form.multiply_adds <= most:
                return [form]
        return []

    def begin(self, objective: Objective, settings: FitSettings, *, alone: bool) -> Start:
        """As `Descending.begin`: the nearest Monarch matrix of each weight."""
        del alone
        return Start(
            WholeTarget(objective, self),
            self._nearest(objective.weights),
            "projection",
            settings.learning_rate * _RATE,
        )

    def descends(self, objective: Objective) -> bool:
        """As `Form.descends`: only where there is a metric."""
        return objective.metric is not None

    def fit(self, objective: Objective, settings: FitSettings, watch: OnStep | None) -> list[Fitted]:
        """As `Form.fit`: the projection, the best there is; where the objective is weighted, a descent from it."""
        if self.descends(objective):
            return fit_by_descent(self, objective, settings, watch)
        found = []
        for i in range(len(objective.weights)):  # one by one, so that each ends the same in whatever batch
            row = objective.row(i)
            arrays = self._nearest(row.weights)
            error = float(row.errors(self._tiles_joined(arrays)))
            found.append(Fitted({name: array[0] for name, array in arrays.items()}, error, 0, 0, "projection"))
        return found

    def _nearest(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the arrays (batch, ...) of the Monarch matrices nearest to weights (batch, out, in)."""
        (p, q), k, s = self.tile, self.right_blocks, self.left_blocks
        missing = (0, k * q - self.in_features, 0, s * p - self.out_features)
        tiles = nn.functional.pad(weights, missing).reshape(-1, s, p, k, q).transpose(2, 3)  # (batch, s, k, p, q)
        left, right = rank_one(tiles.reshape(-1, p, q).double().cpu())
        left, right = left.reshape(-1, s, k, p).mT, right.reshape(-1, s, k, q).transpose(1, 2)
        return {"left": left.to(weights), "right": right.to(weights)}

    def _tiles_joined(self, arrays: Arrays) -> Tensor:
        """Return the matrix (..., out, in), each tile the outer product that it is."""
        (p, q), k, s = self.tile, self.right_blocks, self.left_blocks
        left, right = arrays["left"], arrays["right"]
        tiles = left.unsqueeze(-1) * right.transpose(-3, -2).unsqueeze(-3)  # (..., s, p, k, q)
        whole = tiles.reshape(*left.shape[:-3], s * p, k * q)
        return whole[..., : self.out_features, : self.in_features].contiguous()

    def to_json(self) -> dict[str, Any]:
        """As `Form.to_json`."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "right_blocks": self.right_blocks,
            "left_blocks": self.left_blocks,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], tables: Mapping[str, Tensor]) -> Monarch:
        """As `Form.from_json`."""
        into, out = whole(entry["in_features"]), whole(entry["out_features"])
        right, left = whole(entry["right_blocks"]), whole(entry["left_blocks"])
        if not 1 <= right <= into or not 1 <= left <= out:
            raise ValueError(f"a Monarch matrix {out}x{into} in {right} and {left} blocks")
        return cls(into, out, right, left)

    def lower(self, emit: Emitter, x: ir.Value | None, lowering: Lowering) -> ir.Value:
        """As `Form.lower`: two batched products, whatever the lowering."""
        from spm_compress.forms.monarch.lowering import lower  # ONNX only where it is written

        return lower(self, emit, x, lowering)

    def described(self) -> Sequence[str]:
        """As `Form.described`."""
        p, q = self.tile
        return [
            f"{self.right_blocks} blocks of {q} features, each to {self.left_blocks}; shuffled;",
            f"{self.left_blocks} blocks of {self.right_blocks} features, each to {p}",
        ]


class _MonarchRunner(PlainRunner):
    """Applies the two factors; makes the matrix tile by tile, without a product."""

    form: Monarch

    def dense(self, prepared: Arrays, tables: Sequence[Tensor | None] | None = None) -> Tensor:
        return self.form._tiles_joined(prepared)

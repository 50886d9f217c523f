"""A low-rank map: two thin matrices, left (out, rank) and right (rank, in)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from spm_compress.codecs import Codec, with_shared
from spm_compress.fitting.objective import Objective
from spm_compress.fitting.settings import OnStep
from spm_compress.fitting.truncated_svd import low_rank_factors
from spm_compress.forms.form import Arrays, Fitted, Form, Operator
from spm_compress.forms.json_values import whole

if TYPE_CHECKING:
    import onnx_ir as ir

    from spm_compress.forms.emitter import Emitter
    from spm_compress.forms.lowering import Lowering
    from spm_compress.forms.settings import FitSettings

__all__ = ["LowRank"]


@dataclass(frozen=True)
class LowRank(Form):
    """left @ right, fitted as a truncated SVD (Eckart and Young 1936)."""

    kind: ClassVar[str] = "low_rank"

    in_features: int
    out_features: int
    rank: int

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As `Form.shapes`."""
        return {"left": (self.out_features, self.rank), "right": (self.rank, self.in_features)}

    @property
    def matrices(self) -> Sequence[str]:
        """As `Form.matrices`."""
        return tuple(self.shapes)

    @property
    def multiply_adds(self) -> int:
        """As `Form.multiply_adds`."""
        return self.rank * (self.in_features + self.out_features)

    @property
    def summary(self) -> Mapping[str, int | str]:
        """As `Form.summary`."""
        return {"rank": self.rank}

    def apply(self, arrays: Arrays, x: Tensor) -> Tensor:
        """As `Form.apply`."""
        return arrays["left"] @ (arrays["right"] @ x)

    def transposed(self) -> LowRank:
        """As `Form.transposed`."""
        return LowRank(self.out_features, self.in_features, self.rank)

    def transpose(self, arrays: Arrays) -> Operator:
        """As `Form.transpose`."""
        return Operator(self.transposed(), {"left": arrays["right"].mT, "right": arrays["left"].mT})

    def codecs(self, codec: Codec) -> Mapping[str, Codec]:
        """As `Form.codecs`: numbers that share a scale belong to one of the ranks."""
        return {"left": with_shared(codec, "column"), "right": with_shared(codec, "row")}

    def draw(self, arrays: Mapping[str, Tensor]) -> None:
        """As `Form.draw`: orthogonal factors."""
        for array in arrays.values():  # by a QR decomposition, of which there is none below float32
            array.copy_(nn.init.orthogonal_(array.new_empty(array.shape, dtype=torch.float32)))

    def scaled(self, arrays: Arrays, factor: Tensor) -> Arrays:
        """As `Form.scaled`."""
        return {"left": arrays["left"] * factor[:, None, None], "right": arrays["right"]}

    @classmethod
    def candidates(cls, settings: FitSettings, out_features: int, in_features: int) -> Sequence[LowRank]:
        """As `Form.candidates`."""
        most = settings.numbers(out_features, in_features) // (out_features + in_features)
        rank = min(settings.rank or most, out_features, in_features)
        return [cls(in_features, out_features, rank)] if rank else []

    def descends(self, objective: Objective) -> bool:
        """As `Form.descends`."""
        return False

    def fit(self, objective: Objective, settings: FitSettings, watch: OnStep | None) -> list[Fitted]:
        """As `Form.fit`: one truncated SVD for each, weighted where the objective is."""
        return [self._fit(objective.row(i)) for i in range(len(objective.weights))]

    def _fit(self, row: Objective) -> Fitted:
        metric = None if row.metric is None else row.metric[0]
        weight = row.weights[0].mT if row.is_transposed else row.weights[0]
        left, right = low_rank_factors(weight, self.rank, metric)
        if row.is_transposed:
            left, right = right.mT, left.mT
        left, right = left.float(), right.float()
        error = float(row.errors((left @ right)[None]))
        return Fitted({"left": left, "right": right}, error, 0, 0, "svd")

    def to_json(self) -> dict[str, Any]:
        """As `Form.to_json`."""
        return {"in_features": self.in_features, "out_features": self.out_features, "rank": self.rank}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], tables: Mapping[str, Tensor]) -> LowRank:
        """As `Form.from_json`."""
        into, out, rank = whole(entry["in_features"]), whole(entry["out_features"]), whole(entry["rank"])
        if not 0 < rank <= min(into, out):
            raise ValueError(f"a low-rank map {out}x{into} of rank {rank}")
        return cls(into, out, rank)

    def lower(self, emit: Emitter, x: ir.Value | None, lowering: Lowering) -> ir.Value:
        """As `Form.lower`: two thin products, whatever the lowering."""
        from spm_compress.forms.products import two_products  # ONNX only where it is written

        return two_products(emit, "left", "right", x, lowering)

    def described(self) -> Sequence[str]:
        """As `Form.described`."""
        return [f"left (right x) of rank {self.rank}"]

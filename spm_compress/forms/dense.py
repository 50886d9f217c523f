"""A dense map as a form: the matrix itself, whose numbers a codec may store in fewer bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from spm_compress.codecs import Codec, Grid
from spm_compress.fitting.objective import Objective
from spm_compress.fitting.settings import OnStep
from spm_compress.forms.form import Arrays, Fitted, Form, Operator, PlainRunner, Runner
from spm_compress.forms.json_values import whole
from spm_compress.forms.lowering import Dense as Made
from spm_compress.forms.lowering import Int8, Lowering, NBits, Rows

if TYPE_CHECKING:
    import onnx_ir as ir

    from spm_compress.forms.emitter import Emitter
    from spm_compress.forms.settings import FitSettings

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Form):
    """The matrix (out, in)."""

    kind: ClassVar[str] = "dense"

    in_features: int
    out_features: int

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As `Form.shapes`."""
        return {"weight": (self.out_features, self.in_features)}

    @property
    def matrices(self) -> Sequence[str]:
        """As `Form.matrices`."""
        return tuple(self.shapes)

    @property
    def multiply_adds(self) -> int:
        """As `Form.multiply_adds`."""
        return self.in_features * self.out_features

    @property
    def summary(self) -> Mapping[str, int | str]:
        """As `Form.summary`: the shape says it all."""
        return {}

    def apply(self, arrays: Arrays, x: Tensor) -> Tensor:
        """As `Form.apply`."""
        return arrays["weight"] @ x

    def runner(self) -> Runner:
        """As `Form.runner`: the matrix is there."""
        return _Given(self)

    def transposed(self) -> Dense:
        """As `Form.transposed`."""
        return Dense(self.out_features, self.in_features)

    def transpose(self, arrays: Arrays) -> Operator:
        """As `Form.transpose`."""
        return Operator(self.transposed(), {"weight": arrays["weight"].mT})

    def most_harm(self, codec: Codec) -> float:
        """As `Form.most_harm`: nothing was lost before, and bits are what was asked for."""
        return math.inf if isinstance(codec, Grid) else codec.most_harm

    def draw(self, arrays: Mapping[str, Tensor]) -> None:
        """As `Form.draw`."""
        nn.init.normal_(arrays["weight"])

    def scaled(self, arrays: Arrays, factor: Tensor) -> Arrays:
        """As `Form.scaled`."""
        return {"weight": arrays["weight"] * factor[:, None, None]}

    @classmethod
    def candidates(cls, settings: FitSettings, out_features: int, in_features: int) -> Sequence[Dense]:
        """As `Form.candidates`; where no other form is asked for, of whatever size."""
        form = cls(in_features, out_features)
        is_wanted = settings.forms == (cls.kind,) or form.multiply_adds <= settings.numbers(out_features, in_features)
        return [form] if is_wanted else []

    def descends(self, objective: Objective) -> bool:
        """As `Form.descends`."""
        return False

    def fit(self, objective: Objective, settings: FitSettings, watch: OnStep | None) -> list[Fitted]:
        """As `Form.fit`: nothing is lost."""
        return [Fitted({"weight": weight.clone()}, 0.0, 0, 0, "exact") for weight in objective.weights]

    def holding(self, weight: Tensor) -> Arrays:
        """As `Form.holding`."""
        return {"weight": weight}

    def best_factor(self, objective: Objective, arrays: Arrays) -> Tensor:
        """As `Form.best_factor`: one."""
        return torch.ones(len(objective.weights), device=objective.weights.device)

    def rounding_metric(self, target: Objective | None) -> Tensor | None:
        """As `Form.rounding_metric`: what is rounded is the map itself."""
        return None if target is None or target.metric is None else target.metric[0]

    def to_json(self) -> dict[str, Any]:
        """As `Form.to_json`."""
        return {"in_features": self.in_features, "out_features": self.out_features}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], tables: Mapping[str, Tensor]) -> Dense:
        """As `Form.from_json`."""
        return cls(whole(entry["in_features"]), whole(entry["out_features"]))

    def constants(self, emit: Emitter, lowering: Lowering) -> Mapping[str, ir.Value]:
        """As `Form.constants`: the matrix, or whole numbers and their scales."""
        from spm_compress.forms.products import whole_numbers  # ONNX only where it is written

        return whole_numbers(emit, "weight") if isinstance(lowering, Int8) else super().constants(emit, lowering)

    def lower(self, emit: Emitter, x: ir.Value | None, lowering: Lowering) -> ir.Value:
        """As `Form.lower`: one product, or rows."""
        from spm_compress.forms.products import int8_product, looked_up, nbits_product, product

        if x is not None and isinstance(lowering, NBits):
            return nbits_product(emit, "weight", x)
        if x is not None and isinstance(lowering, Rows):
            return looked_up(emit, "weight", x)
        if x is not None and isinstance(lowering, Int8):
            return int8_product(emit, "weight", x)
        return product(emit, "weight", x, lowering)

    def lowerings(self, codecs: Mapping[str, Codec]) -> Sequence[Lowering]:
        """As `Form.lowerings`: the matrix that is made at load, or whole numbers where few bits are stored."""
        from spm_compress.forms.products import nbits_block

        codec = codecs["weight"]
        if not isinstance(codec, Grid):
            return [Made()]
        return [Made(), Int8(), *([NBits()] if nbits_block(codec, self.in_features) else [])]

    def described(self) -> Sequence[str]:
        """As `Form.described`."""
        return ["the matrix as it is stored"]


class _Given(PlainRunner):
    """Does not multiply the matrix out of the identity."""

    def dense(self, prepared: Arrays, tables: Sequence[Tensor | None] | None = None) -> Tensor:
        """As `Runner.dense`."""
        return prepared["weight"]

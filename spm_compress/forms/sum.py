"""A sum of forms: an SPM, or another form that descends, and a low rank beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from spm_compress.codecs import Codec
from spm_compress.fitting.descent import descend
from spm_compress.fitting.objective import Objective
from spm_compress.fitting.settings import DescentSettings, OnStep
from spm_compress.forms.descending import Descending
from spm_compress.forms.form import Arrays, Fitted, Form, Operator, Runner, prefixed, under
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.sizes import largest_within

if TYPE_CHECKING:
    import onnx_ir as ir

    from spm_compress.forms.emitter import Emitter
    from spm_compress.forms.lowering import Lowering
    from spm_compress.forms.settings import FitSettings

__all__ = ["Sum", "SumRunner"]

# Shares of the numbers that `rank=None` gives to the low-rank term beside the stages.
_SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Sum(Form):
    """The sum of what its parts map to; the arrays of part i are named `<i>.<name>`."""

    kind: ClassVar[str] = "sum"
    fewest_bits: ClassVar[int] = 4  # of an SPM

    parts: tuple[Form, ...]

    @property
    def in_features(self) -> int:  # type: ignore[override]  # follows from the parts
        """As `Form.in_features`."""
        return self.parts[0].in_features

    @property
    def out_features(self) -> int:  # type: ignore[override]
        """As `Form.out_features`."""
        return self.parts[0].out_features

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As `Form.shapes`."""
        return prefixed(part.shapes for part in self.parts)

    @property
    def tables(self) -> Mapping[str, Tensor]:
        """As `Form.tables`."""
        return prefixed(part.tables for part in self.parts)

    @property
    def matrices(self) -> Sequence[str]:
        """As `Form.matrices`."""
        return [f"{i}.{name}" for i, part in enumerate(self.parts) for name in part.matrices]

    @property
    def multiply_adds(self) -> int:
        """As `Form.multiply_adds`."""
        return sum(part.multiply_adds for part in self.parts)

    @property
    def summary(self) -> Mapping[str, int | str]:
        """As `Form.summary`: what the parts say."""
        return {name: value for part in self.parts for name, value in part.summary.items()}

    def apply(self, arrays: Arrays, x: Tensor) -> Tensor:
        """As `Form.apply`."""
        return _total([part.apply(own, x) for part, own in self._parts(arrays)])

    def runner(self) -> SumRunner:
        """As `Form.runner`."""
        return SumRunner([part.runner() for part in self.parts])

    def transposed(self) -> Sum:
        """As `Form.transposed`."""
        return Sum(tuple(part.transposed() for part in self.parts))

    def transpose(self, arrays: Arrays) -> Operator:
        """As `Form.transpose`."""
        return _joined([part.transpose(own) for part, own in self._parts(arrays)])

    def stored(self, codec: Codec) -> Sum:
        """As `Form.stored`."""
        return Sum(tuple(part.stored(codec) for part in self.parts))

    def store(self, arrays: Arrays, codec: Codec, target: Objective | None = None) -> Operator:
        """As `Form.store`; what the sum is to be near is none of a part's."""
        del target
        return _joined([part.store(own, codec) for part, own in self._parts(arrays)])

    def codecs(self, codec: Codec) -> Mapping[str, Codec]:
        """As `Form.codecs`."""
        return prefixed(part.codecs(codec) for part in self.parts)

    def trainable(self, arrays: Arrays) -> Operator:
        """As `Form.trainable`."""
        return _joined([part.trainable(own) for part, own in self._parts(arrays)])

    @property
    def trains(self) -> bool:
        """As `Form.trains`."""
        return all(part.trains for part in self.parts)

    def draw(self, arrays: Mapping[str, Tensor]) -> None:
        """As `Form.draw`: beside another part a low rank begins as nothing, as in LoRA."""
        for part, own in self._parts(arrays):
            part.draw(own)
            if isinstance(part, LowRank):
                nn.init.zeros_(own["left"])

    def scaled(self, arrays: Arrays, factor: Tensor) -> Arrays:
        """As `Form.scaled`."""
        return prefixed(part.scaled(own, factor) for part, own in self._parts(arrays))

    @classmethod
    def candidates(cls, settings: FitSettings, out_features: int, in_features: int) -> Sequence[Sum]:
        """As `Form.candidates`: an SPM and a low rank, in several shares where the rank is open."""
        numbers = settings.numbers(out_features, in_features)
        most = numbers // (out_features + in_features)
        whole = min(out_features, in_features)
        asked = [settings.rank] if settings.rank else [round(share * most) for share in _SHARES]
        ranks = sorted({min(rank, whole) for rank in asked} - {0})
        found = []
        for mixer in settings.mixers:
            for rank in ranks:
                term = LowRank(in_features, out_features, rank)

                def beside(stages: int, mixer: Any = mixer, term: LowRank = term) -> Sum:
                    own = replace(settings, stages=stages, mixer=mixer)
                    return Sum((own.spm(out_features, in_features), term))

                form = largest_within(numbers, beside)
                if form is not None:
                    found.append(form)
        return found

    def descends(self, objective: Objective) -> bool:
        """As `Form.descends`."""
        return True

    def fit(self, objective: Objective, settings: FitSettings, watch: OnStep | None) -> list[Fitted]:
        """As `Form.fit`: the low rank follows the descent of the other part, step by step."""
        form, term = self.parts
        assert isinstance(form, Descending) and isinstance(term, LowRank)
        start = form.begin(objective, settings, alone=False)
        descent = DescentSettings(settings.steps, start.learning_rate, settings.seed)
        found = []
        for each in descend(start.target, start.arrays, descent, term.rank, watch):
            left, right = each.factors
            arrays = prefixed([each.arrays, {"left": left, "right": right}])
            found.append(Fitted(arrays, each.error, each.steps, each.restarts, start.name))
        return found

    def to_json(self) -> dict[str, Any]:
        """As `Form.to_json`."""
        return {"parts": [{"kind": part.kind, **part.to_json()} for part in self.parts]}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], tables: Mapping[str, Tensor]) -> Sum:
        """As `Form.from_json`."""
        from spm_compress.forms.registry import read_form  # which knows this form, too

        if len(entry["parts"]) != 2 or any(part["kind"] == cls.kind for part in entry["parts"]):
            raise ValueError("a sum has two parts that are no sums")
        parts = tuple(read_form(part, under(tables, str(i))) for i, part in enumerate(entry["parts"]))
        if not isinstance(parts[0], Descending) or not isinstance(parts[1], LowRank):
            raise ValueError("a sum is a form that descends and a low rank beside it")
        if len({(part.in_features, part.out_features) for part in parts}) != 1:
            raise ValueError("the parts of a sum differ in shape")
        return cls(parts)

    def constants(self, emit: Emitter, lowering: Lowering) -> Mapping[str, ir.Value]:
        """As `Form.constants`: those of the parts."""
        return prefixed(part.constants(emit.under(str(i)), lowering) for i, part in enumerate(self.parts))

    def lower(self, emit: Emitter, x: ir.Value | None, lowering: Lowering) -> ir.Value:
        """As `Form.lower`."""
        first, *others = (part.lower(emit.under(str(i)), x, lowering) for i, part in enumerate(self.parts))
        for other in others:
            first = emit.op.Add(first, other)
        return first

    def folded(self, lowering: Lowering) -> int:
        """As `Form.folded`."""
        return max(part.folded(lowering) for part in self.parts)

    def described(self) -> Sequence[str]:
        """As `Form.described`."""
        lines = [list(part.described()) for part in self.parts]
        return [*lines[0], *(f"plus {line}" for part in lines[1:] for line in part)]

    def _parts(self, arrays: Arrays) -> list[tuple[Form, dict[str, Tensor]]]:
        return [(part, under(arrays, str(i))) for i, part in enumerate(self.parts)]


class SumRunner:
    """As `Runner`: those of the parts."""

    def __init__(self, parts: Sequence[Runner]) -> None:
        self.parts = parts
        self.tables: list[Tensor | None] = [table for part in parts for table in part.tables]

    def prepared(self, arrays: Arrays) -> list[Any]:
        """As `Runner.prepared`."""
        return [part.prepared(under(arrays, str(i))) for i, part in enumerate(self.parts)]

    def apply(self, prepared: Sequence[Any], x: Tensor, tables: Sequence[Tensor | None] | None = None) -> Tensor:
        """As `Runner.apply`."""
        parts = zip(self.parts, prepared, self._tables(tables), strict=True)
        return _total([part.apply(own, x, moved) for part, own, moved in parts])

    def dense(self, prepared: Sequence[Any], tables: Sequence[Tensor | None] | None = None) -> Tensor:
        """As `Runner.dense`."""
        parts = zip(self.parts, prepared, self._tables(tables), strict=True)
        return _total([part.dense(own, moved) for part, own, moved in parts])

    def _tables(self, tables: Sequence[Tensor | None] | None) -> list[Sequence[Tensor | None] | None]:
        if tables is None:
            return [None] * len(self.parts)
        found: list[Sequence[Tensor | None] | None] = []
        start = 0
        for part in self.parts:
            found.append(tables[start : start + len(part.tables)])
            start += len(part.tables)
        return found


def _total(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _joined(parts: Sequence[Operator]) -> Operator:
    arrays = prefixed(part.arrays for part in parts)
    return Operator(Sum(tuple(part.form for part in parts)), arrays)

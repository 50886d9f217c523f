"""What every form is: a linear map described without its numbers, and the operator that it is with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from spm_compress.codecs import FLOAT32, Codec
from spm_compress.fitting.objective import Objective
from spm_compress.fitting.settings import OnStep
from spm_compress.forms.lowering import Lowering, lowerings

if TYPE_CHECKING:
    import onnx_ir as ir

    from spm_compress.forms.emitter import Emitter
    from spm_compress.forms.settings import FitSettings

__all__ = ["Arrays", "Fitted", "Form", "Operator", "PlainRunner", "Runner", "prefixed", "relative_error", "under"]

Arrays = Mapping[str, Tensor]
_T = TypeVar("_T")

# Errors are computed in float64 by so many columns at a time: a large weight in float64 would take most of the memory.
_COLUMNS = 512


@dataclass(frozen=True)
class Fitted:
    """Arrays of one matrix, before the factor of least error, and how they were reached.

    error: relative, by the objective; steps, restarts: of the descent, 0 without one; start: what it began from.
    """

    arrays: Arrays
    error: float
    steps: int
    restarts: int
    start: str


class Runner(Protocol):
    """A form made ready to be applied many times.

    tables: index tensors (None where one would change nothing) that a module keeps on its device and hands back.
    """

    tables: list[Tensor | None]

    def prepared(self, arrays: Arrays) -> Any:
        """Return what has to be computed once for the arrays; gradients flow through it."""

    def apply(self, prepared: Any, x: Tensor, tables: Sequence[Tensor | None] | None = None) -> Tensor:
        """Apply the map: (..., in, rows) -> (..., out, rows)."""

    def dense(self, prepared: Any, tables: Sequence[Tensor | None] | None = None) -> Tensor:
        """Return the matrix (..., out, in)."""


class Form(Protocol):
    """A linear map of in_features to out_features features, before any number.

    A form is a frozen dataclass: equal forms have the same arrays and run in the same way. Everything that is counted
    follows from `shapes`, `tables` and the codecs of the arrays. Arrays may have leading dimensions `...`, so that
    several maps of one form are handled as a batch. What follows without a body every form has to say for itself.
    """

    kind: ClassVar[str]
    # Of a number that is stored in whole bits.
    fewest_bits: ClassVar[int] = 2
    in_features: int
    out_features: int

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of every array of numbers."""

    @property
    def tables(self) -> Mapping[str, Tensor]:
        """Name -> int32 tensor of every index table that is stored beside the numbers."""
        return {}

    @property
    def matrices(self) -> Sequence[str]:
        """Names of arrays (out, in) that `lower` only multiplies with, so that they may come in pieces of rows."""
        return ()

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one row of inputs."""

    @property
    def summary(self) -> Mapping[str, int | str]:
        """What tells forms of this kind apart, for tables and reports: name -> figure or word."""

    def apply(self, arrays: Arrays, x: Tensor) -> Tensor:
        """Apply the map literally as it is defined: (..., in, rows) -> (..., out, rows)."""

    def runner(self) -> Runner:
        """Return the fastest way to apply it; the same map, with other rounding."""
        return PlainRunner(self)

    def transposed(self) -> Form:
        """Return the form of the transposed map."""

    def transpose(self, arrays: Arrays) -> Operator:
        """Return the transposed map."""

    def stored(self, codec: Codec) -> Form:
        """Return the form in which the map is stored when its arrays are stored by a codec."""
        del codec
        return self

    def store(self, arrays: Arrays, codec: Codec, target: Objective | None = None) -> Operator:
        """Return the same map in the form `stored`, its arrays as the codec is going to round them.

        target: a batch of one, what the map is to be near where rounding moves it; None: the map itself.
        Raises FitError if the codec cannot hold it.
        """
        del codec, target
        return Operator(self, arrays)

    def codecs(self, codec: Codec) -> Mapping[str, Codec]:
        """Return the codec of every array when the numbers are to be stored by one."""
        return dict.fromkeys(self.shapes, codec)

    def rounding_metric(self, target: Objective | None) -> Tensor | None:
        """Return the metric of `Codec.encode` for the arrays of this form, which are rounded as they come without."""
        del target
        return None

    def trainable(self, arrays: Arrays) -> Operator:
        """Return the same map in the form that trains best."""
        return Operator(self, arrays)

    @property
    def trains(self) -> bool:
        """Whether it descends well in the form that it has; else `trainable` is another."""
        return True

    def most_harm(self, codec: Codec) -> float:
        """By which factor a codec may raise the error of a map of this form (`Codec.most_harm`)."""
        return codec.most_harm

    def draw(self, arrays: Mapping[str, Tensor]) -> None:
        """Fill arrays, in place, with random numbers to train from; their scale is set afterwards."""

    def scaled(self, arrays: Arrays, factor: Tensor) -> Arrays:
        """Return the arrays of factor (k,) times each map of a batch of k."""

    @classmethod
    def candidates(cls, settings: FitSettings, out_features: int, in_features: int) -> Sequence[Form]:
        """Return the forms of this kind to try for a weight, the plainest first; none where the smallest is too large.

        They store at most as many numbers as `settings.numbers` says.
        """

    def descends(self, objective: Objective) -> bool:
        """Return whether a fit to this objective descends, so that short trials choose; if not, it is a closed form."""

    def fit(self, objective: Objective, settings: FitSettings, watch: OnStep | None) -> list[Fitted]:
        """Fit the form to each matrix of a batch, of any scale."""

    def holding(self, weight: Tensor) -> Arrays | None:
        """Return the arrays with which the map is a weight (out, in), to the bit; None for a form that is not any map.

        What was fitted went through a scale and back, which rounds.
        """
        return None

    def best_factor(self, objective: Objective, arrays: Arrays) -> Tensor:
        """Return (k,) the factors with which the maps of a batch of arrays have the least error."""
        runner = self.runner()
        return objective.best_scale(runner.dense(runner.prepared(arrays)))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values from which `from_json` makes the form again."""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], tables: Mapping[str, Tensor]) -> Form:
        """Return the form that an entry of a stranger's manifest describes. tables: int32, by the names of `tables`.

        Raises ValueError, LookupError or TypeError for anything that is no such form, before memory is taken for it.
        """

    def constants(self, emit: Emitter, lowering: Lowering) -> Mapping[str, ir.Value]:
        """Emit what does not depend on x, of several maps at once: name -> values of one map after the other.

        A runtime folds it when it loads the model. Not asked for `Rows` and `NBits`.
        """
        return {piece: emit.decoded(piece) for name in self.shapes for piece in emit.pieces(name)}

    def lower(self, emit: Emitter, x: ir.Value | None, lowering: Lowering) -> ir.Value:
        """Emit one map of x as ONNX; without an x, which is how `Dense` comes, the matrix (out, in).

        It starts from `Emitter.constant`, its own of what `constants` has made.
        """

    def folded(self, lowering: Lowering) -> int:
        """Return the most numbers of a value that is made of one map at load, besides the stored arrays."""
        return self.out_features * self.in_features if lowering.layout is None else 0

    def lowerings(self, codecs: Mapping[str, Codec]) -> Sequence[Lowering]:
        """Return the lowerings that are worth timing when the arrays are stored by these codecs; `Dense` among them."""
        del codecs
        return lowerings()

    def described(self) -> Sequence[str]:
        """Return lines that say what is computed, for who opens an ONNX file in a viewer."""


class PlainRunner:
    """Applies a form as it is defined."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.tables: list[Tensor | None] = []

    def prepared(self, arrays: Arrays) -> Arrays:
        """As `Runner.prepared`: there is nothing to compute."""
        return arrays

    def apply(self, prepared: Arrays, x: Tensor, tables: Sequence[Tensor | None] | None = None) -> Tensor:
        """As `Runner.apply`."""
        return self.form.apply(prepared, x)

    def dense(self, prepared: Arrays, tables: Sequence[Tensor | None] | None = None) -> Tensor:
        """As `Runner.dense`: the map of the identity."""
        like = next(iter(prepared.values()))
        return self.form.apply(prepared, torch.eye(self.form.in_features, dtype=like.dtype, device=like.device))


@dataclass(frozen=True)
class Operator:
    """One linear map: a form and its arrays, named and shaped as `form.shapes` says."""

    form: Form
    arrays: Arrays

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features), as torch writes a weight."""
        return self.form.out_features, self.form.in_features

    @property
    def parameter_count(self) -> int:
        """Numbers stored."""
        return numbers_of(self.form)

    def matmul(self, x: Tensor) -> Tensor:
        """Return W x for x (in_features, rows)."""
        runner = self.form.runner()
        return runner.apply(runner.prepared(self.arrays), x)

    def to_dense(self) -> Tensor:
        """Return W (out_features, in_features)."""
        runner = self.form.runner()
        return runner.dense(runner.prepared(self.arrays))

    def to(self, dtype: torch.dtype) -> Operator:
        """Return the same operator with its numbers in another dtype."""
        return Operator(self.form, {name: array.to(dtype) for name, array in self.arrays.items()})

    def transposed(self) -> Operator:
        """Return the operator of the transposed map."""
        return self.form.transpose(self.arrays)

    def stored(self, codec: Codec = FLOAT32, target: Objective | None = None) -> Operator:
        """Return the operator in the form in which it is stored by a codec. Raises FitError as `Form.store`."""
        return self.form.store(self.arrays, codec, target)


def numbers_of(form: Form) -> int:
    """Return how many numbers a form has. Bias and index tables are not among them."""
    return sum(math.prod(shape) for shape in form.shapes.values())


def stored_bytes(form: Form, codec: Codec = FLOAT32) -> int:
    """Return the bytes that a form takes when its numbers are stored by a codec, index tables included."""
    stored = form.stored(codec)
    codecs = stored.codecs(codec)
    numbers = sum(codecs[name].bytes(shape) for name, shape in stored.shapes.items())
    return numbers + sum(table.nbytes for table in stored.tables.values())


def form_text(kind: str, summary: Mapping[str, int | str]) -> str:
    """Return a form in a few words: `sum: stages 8, rank 3`."""
    figures = ", ".join(f"{name} {value}" for name, value in summary.items() if isinstance(value, int))
    return f"{kind}: {figures}" if figures else kind


def under(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    """Return the arrays whose names begin with `prefix.`, by the rest of their names."""
    start = f"{prefix}."
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def prefixed(parts: Iterable[Mapping[str, _T]]) -> dict[str, _T]:
    """Return what parts have by name as one mapping, that of part i as `<i>.<name>`; `under` is the way back."""
    return {f"{i}.{name}": value for i, part in enumerate(parts) for name, value in part.items()}


def relative_error(weight: Tensor, operator: Operator) -> float:
    """Return ||W - S|| / ||W|| in float64 (Frobenius); 0 or infinity when W is zero."""
    exact = operator.to(torch.float64)
    runner = exact.form.runner()
    prepared = runner.prepared(exact.arrays)
    if weight.shape[1] <= _COLUMNS:
        return _relative(float((weight.double() - runner.dense(prepared)).norm()), float(weight.double().norm()))
    difference = norm = 0.0
    for start in range(0, weight.shape[1], _COLUMNS):
        part = weight[:, start : start + _COLUMNS].double()
        probe = torch.zeros(weight.shape[1], part.shape[1], dtype=torch.float64)
        probe.diagonal(-start).fill_(1)
        difference = math.hypot(difference, float((part - runner.apply(prepared, probe)).norm()))
        norm = math.hypot(norm, float(part.norm()))
    return _relative(difference, norm)


def _relative(difference: float, norm: float) -> float:
    return difference / norm if norm else (0.0 if difference == 0 else math.inf)

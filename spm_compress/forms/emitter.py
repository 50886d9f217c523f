"""What every form is written to ONNX with: its numbers, integers, positions, each emitted once in a function."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import onnx_ir as ir
from onnxscript import OpBuilder

from spm_compress.codecs import Codec, part_key
from spm_compress.codecs.constants import integers
from spm_compress.forms.local_function import DOMAIN

__all__ = ["Emitter", "precision_of"]

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def precision_of(dtype: ir.DataType) -> ir.DataType:
    """Return in which dtype coefficients are computed for activations of this one.

    Never below float32, as canonical numbers span more than 16 bits hold.
    """
    return ir.DataType.FLOAT if dtype in _NARROW else dtype


class Emitter:
    """Emits the values that one function needs.

    dtype: of the activations; precision: of the coefficients. functions: of ours that the nodes call.
    """

    def __init__(
        self,
        op: OpBuilder,
        values: Mapping[str, ir.Value],
        codecs: Mapping[str, Codec],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: ir.DataType,
        opset: int,
        *,
        constants: Mapping[str, ir.Value] | None = None,
    ) -> None:
        # values: name -> value of every index table, and of every part of an array, by `part_key`. shapes: of arrays,
        # as they come: with -1 before them, of as many maps as there are. constants: of one map.
        self.op = op
        self.opset = opset
        self.values = values
        self.codecs = codecs
        self.shapes = shapes
        self.dtype = dtype
        self.is_narrow = dtype in _NARROW
        self.precision = precision_of(dtype)
        self.constants = constants or {}
        self.functions: dict[str, ir.Function] = {}
        self.prefix = ""
        self._known: dict[tuple[str | int, ...], ir.Value] = {}

    def under(self, prefix: str) -> Emitter:
        """Return the emitter of a part, whose arrays and tables are `PREFIX.name` here; what is known is shared."""
        part = Emitter(self.op, self.values, self.codecs, self.shapes, self.dtype, self.opset, constants=self.constants)
        part.prefix = f"{self.prefix}{prefix}."
        part._known, part.functions = self._known, self.functions
        return part

    def once(self, key: tuple[str | int, ...], make: Callable[[], ir.Value]) -> ir.Value:
        """Return what `make` emitted for this key the first time."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def numbers(self, name: str) -> ir.Value:
        """Return an array of numbers, as its codec decodes it, in the precision of the coefficients."""

        def decoded() -> ir.Value:
            made = self.codec(name).emit(self.op, self.parts(name), self.shape(name))
            return made if self.precision == ir.DataType.FLOAT else self.op.Cast(made, to=self.precision)

        return self.once(("numbers", f"{self.prefix}{name}"), decoded)

    def in_a_row(self, values: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """Return values (maps, *shape) as (maps * first, ...), one map after the other."""
        return self.op.Reshape(values, self.integers(-1, *shape[1:]))

    def decoded(self, name: str) -> ir.Value:
        """Return an array of numbers of several maps `in_a_row`."""
        return self.in_a_row(self.numbers(name), self.shape(name)[1:])

    def pieces(self, name: str) -> list[str]:
        """Return the names of the arrays that a matrix comes as: its own, or those of its pieces of rows."""
        if f"{self.prefix}{name}" in self.shapes:
            return [name]
        names = (f"{i}.{name}" for i in itertools.count())
        return list(itertools.takewhile(lambda each: f"{self.prefix}{each}" in self.shapes, names))

    def codec(self, name: str) -> Codec:
        """Return the codec of an array."""
        return self.codecs[f"{self.prefix}{name}"]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array."""
        return self.shapes[f"{self.prefix}{name}"]

    def parts(self, name: str) -> dict[str, ir.Value]:
        """Return the stored parts of an array."""
        full = f"{self.prefix}{name}"
        return {part: self.values[part_key(full, part)] for part in self.codecs[full].part_names()}

    def constant(self, name: str) -> ir.Value:
        """Return what `Form.constants` has made under a name, of this map."""
        return self.constants[f"{self.prefix}{name}"]

    def has_constant(self, name: str) -> bool:
        """Say whether `Form.constants` has made anything under a name."""
        return f"{self.prefix}{name}" in self.constants

    def narrowed(self, values: ir.Value) -> ir.Value:
        """Return float32 values in the dtype of the activations; casts that cast nothing stay in some graphs."""
        return values if self.dtype == ir.DataType.FLOAT else self.op.Cast(values, to=self.dtype)

    def table(self, name: str) -> ir.Value:
        """Return an index table, int32."""
        return self.values[f"{self.prefix}{name}"]

    def call(self, function: ir.Function, *inputs: ir.Value) -> ir.Value:
        """Call another local function, which is then needed in the model."""
        self.functions[function.name] = function
        return getattr(self.op, function.name)(*inputs, _domain=DOMAIN)

    def integer(self, value: int) -> ir.Value:
        """Return an int64 scalar."""
        return self.once(("integer", value), lambda: self.op.Constant(value=ir.tensor(value, dtype=ir.DataType.INT64)))

    def integers(self, *values: int) -> ir.Value:
        """Return an int64 vector."""
        # A tensor, not value_ints: up to 1.24, ONNX Runtime refuses a function whose Pad reads those.
        return self.once(("integers", *values), lambda: integers(self.op, *values))

    def number(self, value: float) -> ir.Value:
        """Return a scalar in the precision of the coefficients."""
        return self.once(("number", str(value)), lambda: self.op.Constant(value=ir.tensor(value, dtype=self.precision)))

    def filled(self, value: float, *shape: int) -> ir.Value:
        """Return the same number for every map, (maps, *shape), in the precision of the coefficients."""
        array, codec = next(iter(self.codecs.items()))
        stored = self.op.Shape(self.values[part_key(array, codec.part_names()[0])])
        maps = self.op.Slice(stored, self.integers(0), self.integers(1), self.integers(0))
        sizes = self.op.Concat(maps, self.integers(*shape), axis=0)
        return self.op.ConstantOfShape(sizes, value=ir.tensor([value], dtype=self.precision))

    def positions(self, width: int) -> ir.Value:
        """Return (width,) 0, 1, 2, ..."""
        return self.once(
            ("positions", width),
            lambda: self.op.Range(self.integer(0), self.integer(width), self.integer(1)),
        )

    def identity(self, width: int) -> ir.Value:
        """Return the identity (width, width) in the precision of the coefficients."""
        position = self.positions(width)
        return self.op.Cast(self.op.Equal(self.op.Reshape(position, self.integers(-1, 1)), position), to=self.precision)

    def summed(self, values: ir.Value, axis: int, *, keepdims: int) -> ir.Value:
        """Sum along an axis; which was an attribute before opset 13."""
        if self.opset < 13:
            return self.op.ReduceSum(values, axes=[axis], keepdims=keepdims)
        return self.op.ReduceSum(values, self.integers(axis), keepdims=keepdims)

    def largest(self, values: ir.Value, axis: int) -> ir.Value:
        """Return the largest along an axis, which stays; it was an attribute before opset 18."""
        if self.opset < 18:
            return self.op.ReduceMax(values, axes=[axis], keepdims=1)
        return self.op.ReduceMax(values, self.integers(axis), keepdims=1)

    def at_most(self, position: ir.Value, last: int) -> ir.Value:
        """Return positions, those past the last one as the last one."""
        op = self.op  # Min takes no integers before opset 12
        return op.Where(op.Less(position, self.integer(last)), position, self.integer(last))
